#!/usr/bin/env bash
# What `scripts/bench ipvs` runs in the guest: the hosts, the peers, and all rounds. One line for each
# value, as scripts/bench keeps them; other lines are for reading.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
PATH=$BIN:$PATH:/usr/sbin:/sbin
cd "$ROOT"
LAB=scripts/lab
# shellcheck source=hosts.sh
. scripts/bench.d/hosts.sh
# shellcheck source=balancers.sh
. scripts/bench.d/balancers.sh
WORK=$(mktemp -d)

declare -A TO=([meshd]=192.168.77.12:5000 [iptables]=192.168.77.213:5000 [ipvs]=192.168.77.214:5000
    [unbalanced]=10.200.0.12:5000)
WAYS=(meshd iptables ipvs unbalanced)

# ipvs_balancer NS ADDRESS: round robin with NAT, as kube-proxy has it: the source becomes the host's own.
ipvs_balancer() {
    modprobe -a ip_vs ip_vs_rr
    in_ns "$1" sh -c "echo 1 >/proc/sys/net/ipv4/vs/conntrack
        ipvsadm -A -t $2:5000 -s rr && ipvsadm -a -t $2:5000 -r 10.200.0.12:5000 -m &&
        iptables -t nat -A POSTROUTING -d 10.200.0.12 -p tcp --dport 5000 -j MASQUERADE" || return 1
    short_timeouts "$1"
    in_ns "$1" ipvsadm --set 2 2 2
}

# p1 routes, p2 has what answers, p3 and p4 balance; h2 is meshd's entry, h3 has its backend.
PEERS=4
$LAB up --nodes 3 >&2
for ((n = 1; n <= PEERS; n++)); do
    peer $n
done
ip -n mesh-client route add 10.200.0.0/24 via 192.168.77.211
ip -n mesh-p2c route add default via 10.200.0.1
serve mesh-p2c
$LAB exec h1 -- meshctl network create bench >/dev/null
$LAB exec h1 -- meshctl service create --name few --network bench --publish 5000:5000 >/dev/null
for n in 1 2 3 4 5 6 7 8 9; do
    $LAB exec h1 -- meshctl service create --name "other-$n" --network bench --publish "$((9000 + n)):5000" >/dev/null
done
$LAB run h3 b3 --network bench --service few -- sh -c "$SERVER" >&2
for ns in mesh-client mesh-h2 mesh-h3 mesh-p1 mesh-p1c mesh-p2 mesh-p2c mesh-p3 mesh-p4 b3; do
    ports "$ns"
done
iptables_balancer mesh-p3 10 || die 1 "no rules of iptables"
ipvs_balancer mesh-p4 192.168.77.214 || die 1 "no IPVS"
for way in "${WAYS[@]}"; do
    within 15 answers mesh-client "${TO[$way]}" || die 1 "no answer through $way"
done
# Nothing but the balancers is to be measured: no meshd looks after anything meanwhile.
for host in h1 h2 h3; do
    $LAB freeze "$host"
done
for ((round = 1; round <= ROUNDS; round++)); do
    note "round $round of $ROUNDS"
    for way in "${WAYS[@]}"; do
        rate=$(in_ns mesh-client meshd-bench connect "${TO[$way]}" --seconds "$SECONDS_EACH" | jq .per_second)
        printf 'new connections, Linux 6.1\t1/s\t%s\t%s\n' "$way" "$rate"
    done
done
rm -r "$WORK"

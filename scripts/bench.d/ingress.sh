# shellcheck shell=bash
# New connections through a published port, the backend on another host: through meshd, through the
# peers of balancers.sh, and with no balancing, which is the client's way to the same backend by a host
# that routes. With 10 services, and with 50,000 (iptables also with 5,000). Sourced by scripts/bench.
# shellcheck source=scripts/bench.d/hosts.sh
. scripts/bench.d/hosts.sh
# shellcheck source=scripts/bench.d/balancers.sh
. scripts/bench.d/balancers.sh

MANY=50000
# The ways of few services and of many, and where each answers.
FEW_WAYS=(meshd iptables nftables haproxy unbalanced underlay)
MANY_WAYS=(meshd nftables 'iptables 5,000' 'iptables 50,000')
declare -A FEW_TO=([meshd]=192.168.77.12:5000 [iptables]=192.168.77.213:5000 [nftables]=192.168.77.214:5000
    [haproxy]=192.168.77.215:5000 [unbalanced]=10.200.0.12:5000 [underlay]=192.168.77.212:5000)
declare -A MANY_TO=([meshd]=192.168.77.14:5001 [nftables]=192.168.77.217:5000
    ['iptables 5,000']=192.168.77.216:5000 ['iptables 50,000']=192.168.77.218:5000)

# many_services: gives h4 and h5 ledgers with so many services. No manager is there then to tell them
# otherwise, and their meshds do no more than look at times, in which they would take from all others.
many_services() {
    local host revision='' grown ledger
    $LAB kill h1
    for host in h4 h5; do
        # At its end it writes the ledger to disk.
        $LAB restart "$host"
        $LAB kill "$host"
        # shellcheck disable=SC2016  # expanded by the host's shell
        ledger=$($LAB exec "$host" -- sh -c 'echo "${MESHD_SOCKET%/run/*}/data/ledger.redb"')
        grown=$(meshd-scale ledger "$ledger" --services $MANY --endpoints 1 | jq .revision) || die 1 "no ledger of $MANY services"
        [[ ${revision:=$grown} == "$grown" ]] || die 1 "h4 and h5 know different states of the cluster"
        $LAB restart "$host"
    done
    for host in h4 h5; do
        within 300 has_applied "$host" "$revision" || die 1 "$host does not come to revision $revision"
        $LAB freeze "$host"
    done
}

ingress_begin() {
    local n way
    need_hosts
    for n in 1 2 3 4 5 6 7 8 9; do
        $LAB exec h1 -- meshctl service create --name "other-$n" --network bench --publish "$((9000 + n)):5000" >/dev/null
    done
    within 15 answers mesh-client "${MANY_TO[meshd]}" || die 1 "no answer through h4"
    many_services
    iptables_balancer mesh-p3 10 || die 1 "no rules of iptables"
    nft_balancer mesh-p4 192.168.77.214 10
    haproxy_balancer mesh-p5
    iptables_balancer mesh-p6 5000 || die 1 "no 5,000 services of iptables"
    nft_balancer mesh-p7 192.168.77.217 $MANY
    if ! iptables_balancer mesh-p8 $MANY; then
        note "iptables takes no $MANY services in two minutes: left out"
        MANY_WAYS=("${MANY_WAYS[@]:0:3}")
    fi
    for way in "${FEW_WAYS[@]}"; do
        within 15 answers mesh-client "${FEW_TO[$way]}" || die 1 "no answer through $way"
    done
    for way in "${MANY_WAYS[@]}"; do
        within 15 answers mesh-client "${MANY_TO[$way]}" || die 1 "no answer through $way, many services"
    done
    goal 'new connections, 10 services' least 1.0 unbalanced
    goal 'new connections, 50,000 services' least 1.0 unbalanced
    goal 'added to each connection, 10 services' most 0.25 iptables
}

ingress_round() {
    local way out base
    declare -A rate
    for way in "${FEW_WAYS[@]}"; do
        rate[$way]=$(connections "${FEW_TO[$way]}") || die 1 "connections through $way"
        sample 'new connections, 10 services' 1/s "$way" "${rate[$way]}"
    done
    base=${rate[unbalanced]}
    for way in meshd iptables nftables haproxy; do
        sample 'added to each connection, 10 services' µs "$way" "$(added "${rate[$way]}" "$base")"
    done
    for way in "${MANY_WAYS[@]}"; do
        rate[$way]=$(connections "${MANY_TO[$way]}") || die 1 "connections through $way, many services"
        sample 'new connections, 50,000 services' 1/s "$way" "${rate[$way]}"
    done
    sample 'new connections, 50,000 services' 1/s unbalanced "$base"
    for way in "${MANY_WAYS[@]}"; do
        sample 'added to each connection, 50,000 services' µs "$way" "$(added "${rate[$way]}" "$base")"
    done
    for way in "${FEW_WAYS[@]}"; do
        out=$(in_ns mesh-client meshd-bench rr "${FEW_TO[$way]}" --seconds "$EACH") || die 1 "round trips through $way"
        sample 'TCP round trip p50' µs "$way" "$(jq .p50_us <<<"$out")"
        sample 'TCP round trip p99' µs "$way" "$(jq .p99_us <<<"$out")"
    done
}

# Its hosts have no manager any more: another bench makes its own.
ingress_end() {
    $LAB down
}

# connections ADDRESS: so many per second.
connections() {
    in_ns mesh-client meshd-bench connect "$1" --seconds "$EACH" | jq .per_second
}

# added RATE BASE: what a connection takes longer than one of BASE, in microseconds: all CPUs are busy with them.
added() {
    awk -v rate="$1" -v base="$2" 'BEGIN { print 1e6 / rate - 1e6 / base }'
}

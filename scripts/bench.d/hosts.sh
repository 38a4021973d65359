# shellcheck shell=bash
# The hosts of `scripts/bench overlay` and `ingress`: the lab's with meshd, and peers without. Sourced.
#
# h1 is the manager only. h2 and h3 have a container each, b2 and b3; so have h4 and h5, b4 and b5, which
# ingress makes the hosts of a cluster with many services. f2 to f5 on these hosts share a service. p1 to p8 are the peers' hosts, each with a
# container behind a plain bridge and vxlan device: p1 routes, p2 has what answers, the others balance.

PEERS=8
# What is measured against: throughput on 5201, the rest on 5000.
SERVER='iperf3 -s >/dev/null & exec meshd-bench serve 0.0.0.0:5000'

in_ns() {
    local ns=$1
    shift
    nsenter --net="/run/netns/$ns" -- "$@"
}

# peer N: a host p<N> without meshd, with a container behind the plain bridge and vxlan device that
# anyone would set up by hand. The names are among those that `lab down` removes.
peer() {
    local n=$1 host=mesh-p$1 box=mesh-p$1c other
    ip netns add "$host"
    ip netns add "$box"
    ip -n "$host" link set lo up
    ip -n "$box" link set lo up
    ip -n "$host" link add eth0 type veth peer name "p$n" netns mesh-underlay
    ip -n mesh-underlay link set "p$n" master br0 up
    ip -n "$host" addr add "192.168.77.$((210 + n))/24" dev eth0
    ip -n "$host" link set eth0 up
    ip -n "$host" link add br0 type bridge
    ip -n "$host" link add vx0 type vxlan id 100 dstport 4789 local "192.168.77.$((210 + n))"
    for ((other = 1; other <= PEERS; other++)); do
        ((other == n)) || bridge -n "$host" fdb append 00:00:00:00:00:00 dev vx0 dst "192.168.77.$((210 + other))"
    done
    ip -n "$host" link set vx0 master br0 up
    ip -n "$host" link add box type veth peer name eth0 netns "$box"
    ip -n "$host" link set box master br0 up
    ip -n "$host" link set br0 up
    ip -n "$host" addr add "10.200.0.$n/24" dev br0
    ip -n "$box" link set eth0 mtu 1450 up
    ip -n "$box" addr add "10.200.0.1$n/24" dev eth0
    in_ns "$host" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}

# ports NS: room for many connections in turn.
ports() {
    in_ns "$1" sh -c 'echo 1024 65000 >/proc/sys/net/ipv4/ip_local_port_range'
}

serve() {
    in_ns "$1" setsid sh -c "$SERVER" </dev/null >/dev/null 2>&1 &
}

# answers NS ADDRESS:PORT
answers() {
    in_ns "$1" meshd-bench rr "$2" --seconds 0.01 >/dev/null 2>&1
}

# address_of NAME: a container's.
address_of() {
    ip -n "$1" -j -4 addr show dev eth0 | jq -r '.[0].addr_info[0].local'
}

# vip_of SERVICE
vip_of() {
    $LAB exec h2 -- meshctl service inspect "$1" -o json | jq -r '.vips[0].ip'
}

# has_applied HOST REVISION
has_applied() {
    [[ $($LAB exec "$1" -- meshctl status -o json 2>/dev/null | jq .applied_generation) == "$2" ]]
}

# need_hosts: makes them, once; anew if another bench has taken the lab down since.
need_hosts() {
    local n ns
    [[ -z ${HOSTS_MADE:-} || ! -e /run/netns/mesh-p$PEERS ]] || return 0
    HOSTS_MADE=1
    $LAB down
    ends+=("$LAB down")
    $LAB up --nodes 5
    for ((n = 1; n <= PEERS; n++)); do
        peer $n
    done
    # The client's way to the plain overlay, and back: by p1.
    ip -n mesh-client route add 10.200.0.0/24 via 192.168.77.211
    ip -n mesh-p2c route add default via 10.200.0.1
    serve mesh-p2
    serve mesh-p2c
    $LAB exec h1 -- meshctl network create bench --driver overlay >/dev/null
    $LAB exec h1 -- meshctl service create --name few --network bench --publish 5000:5000 >/dev/null
    $LAB exec h1 -- meshctl service create --name many --network bench --publish 5001:5000 >/dev/null
    $LAB run h2 b2 --network bench -- -
    $LAB run h3 b3 --network bench --service few -- sh -c "$SERVER"
    $LAB run h4 b4 --network bench -- -
    $LAB run h5 b5 --network bench --service many -- sh -c "$SERVER"
    $LAB exec h1 -- meshctl service create --name shared --network bench --publish 5002:5000 >/dev/null
    for n in 2 3 4 5; do
        $LAB run h$n f$n --network bench --service shared -- sh -c "$SERVER"
    done
    for ((n = 1; n <= 5; n++)); do
        ports "mesh-h$n"
    done
    for ((n = 1; n <= PEERS; n++)); do
        ports "mesh-p$n"
    done
    for ns in mesh-client mesh-p1c mesh-p2c b2 b3 b4 b5; do
        ports "$ns"
    done
}

# shellcheck shell=bash
# The hosts of `scripts/bench overlay` and `ingress`: two of the lab's with meshd, and three without. Sourced.

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
    for other in 1 2 3; do
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

# Room for many connections in turn.
ports() {
    in_ns "$1" sh -c 'echo 1024 65000 >/proc/sys/net/ipv4/ip_local_port_range'
}

# What is measured against: throughput on 5201, the rest on 5000.
SERVER='iperf3 -s >/dev/null & exec meshd-bench serve 0.0.0.0:5000'

serve() {
    in_ns "$1" setsid sh -c "$SERVER" </dev/null >/dev/null 2>&1 &
}

answers() {
    in_ns "$1" meshd-bench rr "$2:5000" --seconds 0.01 >/dev/null 2>&1
}

# need_hosts: makes them, once. Sets B2, the address of the container that answers behind meshd.
need_hosts() {
    local n ns
    [[ -z ${B2:-} ]] || return 0
    $LAB down
    ends+=("$LAB down")
    $LAB up --nodes 2
    for n in 1 2 3; do
        peer $n
    done
    serve mesh-p2
    serve mesh-p2c
    $LAB exec h1 -- meshctl network create bench --driver overlay >/dev/null
    $LAB exec h1 -- meshctl service create --name bench --network bench --publish 5000:5000 >/dev/null
    $LAB run h1 b1 --network bench -- -
    $LAB run h2 b2 --network bench --service bench -- sh -c "$SERVER"
    B2=$(ip -n b2 -j -4 addr show dev eth0 | jq -r '.[0].addr_info[0].local')
    # The rule that a published port is to a plain host: the connection is passed on as the host's own.
    # On a host of its own, so that the plain overlay is measured without conntrack; and with short
    # timeouts, or thousands of closed connections a second fill its table.
    in_ns mesh-p3 iptables -t nat -A PREROUTING -d 192.168.77.213 -p tcp --dport 5000 -j DNAT --to-destination 10.200.0.12:5000
    in_ns mesh-p3 iptables -t nat -A POSTROUTING -d 10.200.0.12 -p tcp --dport 5000 -j MASQUERADE
    in_ns mesh-p3 sh -c 'cd /proc/sys/net/netfilter && echo 2 >nf_conntrack_tcp_timeout_time_wait && echo 2 >nf_conntrack_udp_timeout && echo 2 >nf_conntrack_udp_timeout_stream'
    for ns in mesh-client mesh-p1 mesh-p1c mesh-p2 mesh-p2c mesh-p3 b1 b2 mesh-h1 mesh-h2; do
        ports "$ns"
    done
}

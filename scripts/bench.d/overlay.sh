# shellcheck shell=bash
# From container to container between two hosts: meshd, the plain bridge and vxlan device that anyone would
# set up by hand, Docker's overlay, and from host to host without an overlay. Meshd also by a network that does not
# encapsulate between hosts of one segment, beside the same peers.
#
# And floors, the same devices by hand with nothing that filters or balances: a vxlan device alone, from host to host; a
# container behind a veth pair that its host routes, without bridge, to the underlay; the same with a vxlan
# device. Sourced by scripts/bench, and by profile.sh.
# shellcheck source=scripts/bench.d/hosts.sh
. scripts/bench.d/hosts.sh
# shellcheck source=scripts/bench.d/docker.sh
. scripts/bench.d/docker.sh

BARE=', not encapsulated'
# What each measurement is told as: by VXLAN, and without.
OVERLAY_WORKS=('' "$BARE")
OVERLAY_WAYS=(meshd segment plain docker vxlan routed tunnel underlay)

# alone N OTHER: a vxlan device between two peers' hosts, with an address of its own.
alone() {
    ip -n "mesh-p$1" link add vx1 type vxlan id 101 dstport 4789 local "192.168.77.$((210 + $1))" remote "192.168.77.$((210 + $2))"
    ip -n "mesh-p$1" addr add "10.201.0.$1/24" dev vx1
    ip -n "mesh-p$1" link set vx1 mtu 1450 up
}

# routed N OTHER: a container behind a veth pair that its host routes: to 10.202.OTHER.2 by the underlay, to
# 10.203.OTHER.2 by the device of `alone`.
routed() {
    local n=$1 other=$2 host=mesh-p$1 box=mesh-p$1r net via
    ip netns add "$box"
    ip -n "$box" link set lo up
    ip -n "$host" link add routed mtu 1450 type veth peer name eth0 mtu 1450 netns "$box"
    ip -n "$host" link set routed up
    ip -n "$box" link set eth0 up
    while read -r net via; do
        ip -n "$host" addr add "$net.$n.1/24" dev routed
        ip -n "$box" addr add "$net.$n.2/24" dev eth0
        ip -n "$box" route add "$net.$other.0/24" via "$net.$n.1"
        ip -n "$host" route add "$net.$other.0/24" via "$via"
    done <<<"10.202 192.168.77.$((210 + other))"$'\n'"10.203 10.201.0.$other"
}

# bare HOST: it sends to the other one without encapsulation.
bare() {
    $LAB exec "$1" -- meshctl doctor | grep -q '^ok *segment *1 nodes'
}

# overlay_ways: makes all of them but Docker's, and says where each begins and ends.
overlay_ways() {
    local host
    need_hosts
    if ! $LAB exec h1 -- meshctl network inspect bare >/dev/null 2>&1; then
        $LAB exec h1 -- meshctl network create bare --opt encapsulation=cross-subnet >/dev/null
        $LAB run h2 s2 --network bare -- -
        $LAB run h3 s3 --network bare -- sh -c "$SERVER"
    fi
    for host in h2 h3; do
        within 20 bare $host || die 1 "$host does not send without encapsulation"
    done
    if ! ip -n mesh-p1 link show vx1 >/dev/null 2>&1; then
        alone 1 2
        alone 2 1
        routed 1 2
        routed 2 1
        serve mesh-p2r
    fi
    # A way: the namespace that asks, and the address that answers.
    declare -gA FROM=([meshd]=b2 [segment]=s2 [plain]=mesh-p1c [vxlan]=mesh-p1 [routed]=mesh-p1r [tunnel]=mesh-p1r [underlay]=mesh-p1)
    declare -gA TO=([meshd]=$(address_of b3) [segment]=$(address_of s3) [plain]=10.200.0.12 [vxlan]=10.201.0.2 [routed]=10.202.2.2
        [tunnel]=10.203.2.2 [underlay]=192.168.77.212)
}

# overlay_answers WAY…
overlay_answers() {
    local way
    for way in "$@"; do
        within 15 answers "${FROM[$way]}" "${TO[$way]}:5000" || die 1 "no answer over $way"
    done
}

overlay_begin() {
    local work
    overlay_ways
    need_docker
    FROM[docker]=mesh-p4d TO[docker]=$D5
    overlay_answers "${OVERLAY_WAYS[@]}"
    for work in "${OVERLAY_WORKS[@]}"; do
        goal "TCP stream$work" least 0.75 underlay
        goal "TCP stream$work" least 1.25 plain
        goal "TCP stream$work" least 1.3 docker
        goal "TCP round trip p50$work" most 1.2 underlay
    done
}

# told WORK UNIT WAY VALUE: meshd's value by its way and beside its floors, a peer's for both.
told() {
    local work
    for work in "${OVERLAY_WORKS[@]}"; do
        case $3$work in
            meshd | "segment$BARE") sample "$1$work" "$2" meshd "$4" ;;
            tunnel) sample "$1$work" "$2" 'veth, vxlan alone' "$4" ;;
            vxlan) sample "$1$work" "$2" 'vxlan alone' "$4" ;;
            "routed$BARE") sample "$1$work" "$2" 'veth alone' "$4" ;;
            meshd* | segment* | routed* | tunnel* | vxlan*) ;;
            *) sample "$1$work" "$2" "$3" "$4" ;;
        esac
    done
}

overlay_round() {
    local way out
    for way in "${OVERLAY_WAYS[@]}"; do
        out=$(in_ns "${FROM[$way]}" iperf3 -c "${TO[$way]}" -t "$EACH" -J) || die 1 "iperf3 over $way: $(jq -r .error <<<"$out")"
        told 'TCP stream' Gb/s "$way" "$(jq '.end.sum_received.bits_per_second / 1e9' <<<"$out")"
        out=$(in_ns "${FROM[$way]}" meshd-bench rr "${TO[$way]}:5000" --seconds "$EACH") || die 1 "round trips over $way"
        told 'TCP round trip p50' µs "$way" "$(jq .p50_us <<<"$out")"
        told 'TCP round trip p99' µs "$way" "$(jq .p99_us <<<"$out")"
    done
}

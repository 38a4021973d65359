# shellcheck shell=bash
# Virtual addresses, balanced when a socket connects: a round trip by one against a round trip by the
# endpoint's own address; and how evenly the connections to a service with four endpoints are spread, by its
# virtual address and by its published port. Sourced by scripts/bench.
# shellcheck source=scripts/bench.d/hosts.sh
. scripts/bench.d/hosts.sh

vip_begin() {
    need_hosts
    declare -gA VIP_TO=([meshd]=$(vip_of few):5000 ['own address']=$(address_of b3):5000)
    SHARED=$(vip_of shared):5000
    local to
    for to in "${VIP_TO[@]}" "$SHARED"; do
        within 15 answers b2 "$to" || die 1 "no answer from $to"
    done
    within 15 answers mesh-client 192.168.77.12:5002 || die 1 "no answer from the service of four"
    goal 'TCP round trip p50 by VIP' most 1.01 'own address'
    goal 'most to least of four, by VIP' most 1.01
    goal 'most to least of four, by published port' most 1.01
}

vip_round() {
    local way ways=(meshd 'own address') out
    # Whichever is first, is so every other round.
    # shellcheck disable=SC2154  # of scripts/bench
    ((round % 2)) || ways=('own address' meshd)
    for way in "${ways[@]}"; do
        out=$(in_ns b2 meshd-bench rr "${VIP_TO[$way]}" --seconds "$EACH") || die 1 "round trips to $way"
        sample 'TCP round trip p50 by VIP' µs "$way" "$(jq .p50_us <<<"$out")"
        sample 'TCP round trip p99 by VIP' µs "$way" "$(jq .p99_us <<<"$out")"
    done
    sample 'most to least of four, by VIP' ratio meshd "$(spread b2 "$SHARED")"
    sample 'most to least of four, by published port' ratio meshd "$(spread mesh-client 192.168.77.12:5002)"
}

# spread NS ADDRESS: of 10,000 connections, the most that a server got to the least.
spread() {
    local out
    out=$(in_ns "$1" meshd-bench tally "$2") || die 1 "connections to $2"
    jq -e 'if length == 4 then [.[]] | max / min else error("\(length) servers answer") end' <<<"$out"
}

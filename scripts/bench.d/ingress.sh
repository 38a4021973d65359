# shellcheck shell=bash
# New connections through a published port, the backend on another host: through meshd, through a rule of
# iptables before the plain overlay, over the plain overlay with no balancing, and to the backend's host
# without an overlay. Sourced by scripts/bench.
# shellcheck source=scripts/bench.d/hosts.sh
. scripts/bench.d/hosts.sh

ingress_begin() {
    local way
    need_hosts
    declare -gA VIA_FROM=([meshd]=mesh-client [iptables]=mesh-client [underlay]=mesh-client [plain]=mesh-p1c)
    declare -gA VIA_TO=([meshd]=192.168.77.11 [iptables]=192.168.77.213 [underlay]=192.168.77.212 [plain]=10.200.0.12)
    for way in meshd iptables; do
        within 15 answers "${VIA_FROM[$way]}" "${VIA_TO[$way]}" || die 1 "no answer through $way"
    done
    goal 'new connections' least 1.0 plain
}

ingress_round() {
    local way out
    for way in meshd iptables plain underlay; do
        out=$(in_ns "${VIA_FROM[$way]}" meshd-bench connect "${VIA_TO[$way]}:5000" --seconds "$EACH") || die 1 "connections through $way"
        sample 'new connections' 1/s "$way" "$(jq .per_second <<<"$out")"
        out=$(in_ns "${VIA_FROM[$way]}" meshd-bench rr "${VIA_TO[$way]}:5000" --seconds "$EACH") || die 1 "round trips through $way"
        sample 'TCP round trip p50' µs "$way" "$(jq .p50_us <<<"$out")"
        sample 'TCP round trip p99' µs "$way" "$(jq .p99_us <<<"$out")"
    done
}

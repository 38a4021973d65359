# shellcheck shell=bash
# Nanoseconds of each program for one packet, by BPF_PROG_TEST_RUN, beside few services and beside many.
# Sourced by scripts/bench.

ns_begin() {
    # The whole workspace is selected, as for the tests: another selection compiles every dependency once more.
    NS=$(cargo bench --locked --workspace --bench ns --no-run --message-format=json |
        jq -r 'select(.target.name == "ns" and .executable) | .executable') || die 1 "the bench of the programs could not be built"
    goal 'from_uplink, known flow, 10 services' most 150
    goal 'from_uplink, known flow, 30000 services' most 150
}

ns_round() {
    local services out what value
    for services in 10 30000; do
        out=$("$NS" "$services") || die 1 "the programs beside $services services"
        while IFS=$'\t' read -r what value; do
            sample "$what, $services services" ns meshd "$value"
        done <<<"$out"
    done
}

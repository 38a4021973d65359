# shellcheck shell=bash
# One host of a large cluster. By the agent's code, in namespaces of its own: the time to bring its kernel
# to all of it and to one change, and the memory of the BPF maps. By meshd itself, as a worker whose
# manager is gone and whose ledger holds the cluster: its memory. Nothing else does all of this, so there
# are no peers. Sourced by scripts/bench.
# shellcheck source=scripts/bench.d/hosts.sh
. scripts/bench.d/hosts.sh

SERVICES=${SERVICES:-30000}
[[ $SERVICES =~ ^([1-9][0-9]{0,3}|[1-4][0-9]{4}|5[0-4][0-9]{3}|55000)$ ]] || die 2 "SERVICES \"$SERVICES\" is not a number from 1 to 55000"

scale_begin() {
    goal "load $SERVICES services x 4" most 5000
    goal 'one endpoint changes, in the kernel' most 10
    goal 'memory of the maps' most 60
    goal 'memory of meshd' most 64
    ends+=("$LAB down")
    $LAB down
    $LAB up --nodes 2
    $LAB kill h1
    $LAB kill h2
    # shellcheck disable=SC2016  # expanded by the host's shell
    LEDGER=$($LAB exec h2 -- sh -c 'echo "${MESHD_SOCKET%/run/*}/data/ledger.redb"')
    REVISION=$(meshd-scale ledger "$LEDGER" --services "$SERVICES" | jq .revision) || die 1 "no ledger of $SERVICES services"
}

# meshd_of HOST: its process.
meshd_of() {
    local pid
    for pid in $(ip netns pids "mesh-$1"); do
        [[ $(</proc/"$pid"/comm) != meshd ]] || echo "$pid"
    done
}

# memory_of PID FIELD: of /proc/PID/status, in MiB.
memory_of() {
    awk -v field="$2:" '$1 == field { print $2 / 1024 }' "/proc/$1/status"
}

# busy PID SECONDS: part of one CPU's time that the process takes.
busy() {
    local before after
    before=$(ticks "$1")
    sleep "$2"
    after=$(ticks "$1")
    awk -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v s="$2" 'BEGIN { print ticks / hz / s }'
}

# ticks PID: of CPU time that it has had. The name, in parentheses, may hold spaces.
ticks() {
    sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'
}

agent() {
    local pid began=${EPOCHREALTIME//[!0-9]/}
    $LAB restart h2
    within 300 has_applied h2 "$REVISION" || die 1 "meshd does not come to revision $REVISION"
    sample 'meshd from start to all applied' ms meshd $(((${EPOCHREALTIME//[!0-9]/} - began) / 1000))
    pid=$(meshd_of h2)
    # What a pass takes in between is given back, mostly.
    sleep 5
    sample 'memory of meshd' MiB meshd "$(memory_of "$pid" VmRSS)"
    sample '  most of it' MiB meshd "$(memory_of "$pid" VmHWM)"
    sample 'CPU of meshd, nothing to do' ratio meshd "$(busy "$pid" 20)"
    sample '  its maps' MB meshd "$(meshd-scale maps "$pid" | jq '.total / 1e6')"
    $LAB kill h2
}

scale_round() {
    local out
    out=$(meshd-scale kernel --services "$SERVICES") || die 1 "one host of a cluster of $SERVICES services"
    # All that it tells: where the time went, and each map's memory.
    jq . <<<"$out" >"$OUT/scale-profile.json"
    sample "load $SERVICES services x 4" ms meshd "$(jq .load.kernel_ms <<<"$out")"
    sample '  of which BPF maps and programs' ms meshd "$(jq .load.bpf_ms <<<"$out")"
    sample '  of which forwarding entries' ms meshd "$(jq '.load.each["net fdb"].ms' <<<"$out")"
    sample 'one endpoint changes, in the kernel' ms meshd "$(jq .change.each.kernel.median_ms <<<"$out")"
    sample 'one endpoint changes, whole pass' ms meshd "$(jq .change.each.pass.median_ms <<<"$out")"
    local part
    for part in intent dump observe plan execute; do
        sample "  of which $part" ms meshd "$(jq --arg p "$part" '.change.each[$p].median_ms' <<<"$out")"
    done
    sample 'a look at everything' ms meshd "$(jq .everything.pass.ms <<<"$out")"
    sample 'memory of the maps' MB meshd "$(jq '.maps.total / 1e6' <<<"$out")"
    agent
}

# shellcheck shell=bash
# What a container runtime waits for: ADD and DEL of meshd-cni, which commits the address to the whole
# cluster, against the reference plugins bridge and host-local, which know their own host only. One after
# the other, and 20 and 100 at once. Sourced by scripts/bench.

# Containers one after the other in a round; and at once.
ATTACH_EACH=30
ATTACH_BURSTS=(20 100)
# Debian's containernetworking-plugins.
ATTACH_PEER=/usr/lib/cni/bridge

# Run by a shell in a host's namespace, so that only the plugin itself is between the two clocks:
# PLUGIN CONF PREFIX each N | burst VERB N. Prints microseconds.
# shellcheck disable=SC2016  # expanded by that shell
ATTACH_SCRIPT='
plugin=$1 conf=$2 prefix=$3
export CNI_IFNAME=eth0 CNI_PATH=${plugin%/*}
call() {
    CNI_COMMAND=$1 CNI_CONTAINERID=$prefix$2 CNI_NETNS=/run/netns/$prefix$2 "$plugin" <"$conf" >/dev/null
}
now() {
    micros=${EPOCHREALTIME//[!0-9]/}
}
case $4 in
one)
    now; begun=$micros
    call "$5" "$6" || exit 1
    now; echo $((micros - begun))
    ;;
burst)
    now; begun=$micros
    for ((i = 1; i <= $6; i++)); do
        call "$5" $i &
        all[i]=$!
    done
    for ((i = 1; i <= $6; i++)); do
        wait "${all[i]}" || exit 1
    done
    now; echo $((micros - begun))
    ;;
esac'

attach_begin() {
    local i way burst most=${ATTACH_BURSTS[-1]}
    goal 'ADD p50' most 0.5 bridge
    goal 'DEL p50' most 0.2 bridge
    for burst in "${ATTACH_BURSTS[@]}"; do
        goal "$burst ADDs at once" most 1.0 bridge
    done
    ends+=("$LAB down")
    $LAB down
    $LAB up --nodes 3
    $LAB exec h1 -- meshctl network create attach >/dev/null
    # A host without meshd; these names are among those that `lab down` removes.
    ip netns add mesh-p1
    ip -n mesh-p1 link set lo up
    for way in meshd bridge; do
        for ((i = 1; i <= most; i++)); do
            ip netns add "$(attach_prefix "$way")$i"
        done
    done
    cat >"$WORK/meshd.conf" <<'CONF'
{"cniVersion": "1.0.0", "name": "attach", "type": "meshd-cni", "network": "attach"}
CONF
    # As in containerd's documentation.
    cat >"$WORK/bridge.conf" <<CONF
{"cniVersion": "1.0.0", "name": "attach", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$WORK/host-local"}}
CONF
    # What is there with the first container of a host is no container's price.
    for way in meshd bridge; do
        attach_do "$way" one ADD "$most" >/dev/null
    done
}

attach_prefix() {
    if [[ $1 == meshd ]]; then echo mesh-p8c; else echo mesh-p9c; fi
}

# attach_do WAY one VERB ITH | burst VERB N: microseconds.
attach_do() {
    local way=$1 plugin
    shift
    if [[ $way == meshd ]]; then
        plugin=$(command -v meshd-cni)
        # h2 is no manager: the address comes from another host.
        $LAB exec h2 -- bash -c "$ATTACH_SCRIPT" attach "$plugin" "$WORK/meshd.conf" "$(attach_prefix meshd)" "$@"
    else
        nsenter --net=/run/netns/mesh-p1 -- bash -c "$ATTACH_SCRIPT" attach "$ATTACH_PEER" "$WORK/bridge.conf" "$(attach_prefix bridge)" "$@"
    fi || die 1 "$way: $*"
}

# percentile P: of the numbers on standard input, in milliseconds.
percentile() {
    sort -n | awk -v p="$1" '{ v[NR] = $1 } END { i = int((NR * p + 99) / 100); print v[i < 1 ? 1 : i] / 1000 }'
}

attach_round() {
    local verb i way p burst
    for verb in ADD DEL; do
        for way in meshd bridge; do
            : >"$WORK/$way.$verb"
        done
        for ((i = 1; i <= ATTACH_EACH; i++)); do
            for way in meshd bridge; do
                attach_do "$way" one "$verb" "$i" >>"$WORK/$way.$verb"
            done
        done
        for p in 50 99; do
            for way in meshd bridge; do
                sample "$verb p$p" ms "$way" "$(percentile $p <"$WORK/$way.$verb")"
            done
        done
    done
    # The one that stays makes room for the last of the burst.
    for way in meshd bridge; do
        attach_do "$way" one DEL "${ATTACH_BURSTS[-1]}" >/dev/null
    done
    for burst in "${ATTACH_BURSTS[@]}"; do
        for verb in ADD DEL; do
            for way in meshd bridge; do
                sample "$burst ${verb}s at once" ms "$way" "$(($(attach_do "$way" burst "$verb" "$burst") / 1000))"
            done
        done
    done
    for way in meshd bridge; do
        attach_do "$way" one ADD "${ATTACH_BURSTS[-1]}" >/dev/null
    done
}

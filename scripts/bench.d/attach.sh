# shellcheck shell=bash
# What a container runtime waits for: ADD and DEL of meshd-cni, which commits the address to the whole
# cluster, against the reference plugins bridge and host-local, which know their own host only, and against
# what dockerd does for `docker network connect` to an overlay of its own (asked without Docker's command, which
# takes longer to start). One after the other, and 20 and 100 at once. Sourced by scripts/bench.

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

# Run by a shell on a host with Docker: connects a container to the overlay and disconnects it. Prints the
# microseconds of each.
# shellcheck disable=SC2016  # expanded by that shell
ATTACH_DOCKER='
for verb in connect disconnect; do
    begun=${EPOCHREALTIME//[!0-9]/}
    curl -sf --max-time 30 --unix-socket "${DOCKER_HOST#unix://}" -H "Content-Type: application/json" \
        -d "{\"Container\": \"attach\"}" "http://docker/networks/attach/$verb" || exit 1
    echo $((${EPOCHREALTIME//[!0-9]/} - begun))
done'

# A swarm of one host, with a container that is on the default network.
attach_docker_begin() {
    local root=$WORK/attach-image
    $LAB dockerd h3
    mkdir -p "$root/bin"
    cp "$(command -v busybox)" "$root/bin/sleep"
    tar -C "$root" -c . | $LAB exec h3 -- docker import - attach >/dev/null
    # Its own ports, not meshd's.
    $LAB exec h3 -- docker swarm init --advertise-addr 192.168.77.13 --listen-addr 192.168.77.13:2378 \
        --data-path-port 4799 >/dev/null
    $LAB exec h3 -- docker network create -d overlay --attachable attach >/dev/null
    $LAB exec h3 -- docker run -d --name attach attach sleep 1000000 >/dev/null
    # As of the others: the first one's price is no container's.
    $LAB exec h3 -- docker network connect attach attach
    $LAB exec h3 -- docker network disconnect attach attach
}

attach_begin() {
    local i way burst most=${ATTACH_BURSTS[-1]}
    goal 'ADD p50' most 0.5 bridge
    goal 'ADD p50' most 0.5 docker
    goal 'DEL p50' most 0.2 bridge
    goal 'DEL p50' most 0.5 docker
    for burst in "${ATTACH_BURSTS[@]}"; do
        goal "$burst ADDs at once" most 1.0 bridge
    done
    ends+=("$LAB down")
    $LAB down
    $LAB up --nodes 3
    $LAB exec h1 -- meshctl network create attach >/dev/null
    attach_docker_begin
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
    local verb i way p burst took
    : >"$WORK/docker.ADD"
    : >"$WORK/docker.DEL"
    for ((i = 1; i <= ATTACH_EACH; i++)); do
        mapfile -t took < <($LAB exec h3 -- bash -c "$ATTACH_DOCKER")
        ((${#took[@]} == 2)) || die 1 "docker: connect and disconnect"
        echo "${took[0]}" >>"$WORK/docker.ADD"
        echo "${took[1]}" >>"$WORK/docker.DEL"
    done
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
            for way in meshd bridge docker; do
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

# shellcheck shell=bash disable=SC2154  # networks, ips, ips6 and common are of `run`
# Docker on the lab's hosts: `lab dockerd`, and containers that are Docker's, attached by meshd's driver.
# Sourced by scripts/lab.

# dockerd HOST [ARG…]: with its own data, in a mount namespace of its own: Docker's places in /run are
# not ours to use. Returns when it answers; its process is that of HOST/docker/pid.
dockerd() {
    local host=${1:-}
    need_host "$host"
    shift
    lock
    gone "$LAB/$host/docker" || die 4 "dockerd runs on $host already"
    start_dockerd "$host" "$@"
}

start_dockerd() {
    local host=$1 dir=$LAB/$1/docker
    shift
    "$ROOT/scripts/setup" docker
    mkdir -p "$dir/plugins" "$dir/data" "$dir/exec"
    place /run/docker
    # One that was killed leaves its containerd, which keeps the next one from starting its own, and the
    # record of its process, which a live one may have by now.
    local pid
    pid=$(cat "$dir/exec/containerd/containerd.pid" 2>/dev/null) || true
    if [[ -n $pid && $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *"$dir/exec"* ]]; then
        kill "$pid" 2>/dev/null || true
        within 10 eval "! kill -0 $pid 2>/dev/null" || die 1 "containerd of $host does not end"
    fi
    rm -f "$dir/dockerd.pid" "$dir/exec/containerd/containerd.pid"
    # shellcheck disable=SC2016  # expanded by the inner shell
    space "$dir" "$host" '
        mount -t tmpfs mesh-lab /run/docker
        mkdir /run/docker/plugins
        mount --bind "$0/plugins" /run/docker/plugins
        mount --bind "$1" /etc/resolv.conf' "$LAB/$host/resolv.conf"
    spawn "$dir" nsenter --mount="/proc/$(pid_of "$dir/space")/ns/mnt" --net="/run/netns/mesh-$host" -- \
        dockerd --data-root "$dir/data" --exec-root "$dir/exec" -p "$dir/dockerd.pid" -H "unix://$dir/docker.sock" \
        --cgroup-parent "/$CGROUP" "$@"
    # One that was killed beside a hundred containers first clears up after them.
    within 90 docker_answers "$host" || {
        tail -n "$TAIL" "$dir/log" >&2
        die 1 "dockerd on $host does not answer"
    }
}

docker_answers() {
    pid_of "$LAB/$1/docker" >/dev/null && docker_api "$1" _ping 2 >/dev/null
}

# docker_api HOST PATH [SECONDS]: what the engine says, in a fraction of the time that `docker` needs to start.
docker_api() {
    curl -sf --max-time "${3:-120}" --unix-socket "$LAB/$1/docker/docker.sock" "http://docker/$2"
}

# ---- containers ----------------------------------------------------------------------------------

# docker_run HOST NAME CMD…: of `run`'s networks and wishes.
docker_run() {
    local host=$1 name=$2 dir=$LAB/containers/$2 i flag value pid options=() args
    shift 2
    # Without a bridge of Docker's own: nothing is on it.
    ! gone "$LAB/$host/docker" || start_dockerd "$host" --bridge none
    root_of_containers
    if [[ ! -s $LAB/$host/docker/image ]]; then
        tar -C "$LAB/root" -c . | in_host "$host" docker import - lab >"$LAB/$host/docker/image"
    fi
    for value in $(binds); do
        options+=(-v "$value:$value:ro")
    done
    for ((i = 0; i < ${#common[@]}; i += 2)); do
        flag=${common[i]} value=${common[i + 1]}
        case $flag in
        --service) options+=(--label "mesh.service=$value") ;;
        --alias) ;;
        *) options+=("$flag" "$value") ;;
        esac
    done
    [[ $1 != - ]] || set -- sleep infinity
    for i in "${!networks[@]}"; do
        docker_network "$host" "${networks[i]}"
        echo "${networks[i]}" >>"$dir/networks"
        args=()
        [[ -z ${ips[i]} ]] || args+=(--ip "${ips[i]}")
        [[ -z ${ips6[i]} ]] || args+=(--ip6 "${ips6[i]}")
        if ((i == 0)); then
            for value in $(wishes alias); do
                args+=(--network-alias "$value")
            done
            in_host "$host" docker create --name "$name" --hostname "$name" --env "PATH=$PATH" --env "MESH_ENDPOINT=$name" \
                --network "${networks[i]}" "${args[@]}" "${options[@]}" lab "$@" >/dev/null
        else
            for value in $(wishes alias); do
                args+=(--alias "$value")
            done
            in_host "$host" docker network connect "${args[@]}" "${networks[i]}" "$name"
        fi
    done
    in_host "$host" docker start "$name" >/dev/null
    pid=$(docker_api "$host" "containers/$name/json" | jq .State.Pid)
    # It may have had little to do.
    ((pid > 0)) || return 0
    first_process "$name" "$pid"
    within 10 known "$host" "$name" "${networks[@]}" || die 1 "$host does not know \"$name\" 10 s after Docker started it"
}

# docker_network HOST NETWORK: Docker's network for the one of the cluster, of the same name.
docker_network() {
    local host=$1 network=$2 all subnet args=()
    ! docker_api "$host" "networks/$network" >/dev/null || return 0
    all=$(subnets "$host" "$network" subnet)
    for subnet in $all; do
        [[ $subnet != *:* ]] || args+=(--ipv6)
        args+=(--subnet "$subnet")
    done
    in_host "$host" docker network create -d mesh --ipam-driver mesh --ipam-opt "mesh.network=$network" "${args[@]}" "$network" >/dev/null
}

# docker_stop HOST NAME: the container, and each network that was made for it and has no other.
docker_stop() {
    local host=$1 name=$2 network
    in_host "$host" docker rm -f "$name" >/dev/null || return
    [[ -e $LAB/containers/$name/networks ]] || return 0
    while read -r network; do
        in_host "$host" docker network rm "$network" >/dev/null 2>&1 || true
    done <"$LAB/containers/$name/networks"
}

docker_logs() {
    in_host "$1" docker logs "$2" 2>&1
}

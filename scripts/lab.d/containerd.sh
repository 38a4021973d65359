# shellcheck shell=bash disable=SC2154  # networks, ips, ips6 and common are of `run`
# containerd on the lab's hosts, and containers that are containerd's, attached by meshd-cni. Sourced by
# scripts/lab.

# start_containerd HOST: with its own data and its own places for CNI. Returns when it answers.
start_containerd() {
    local host=$1 dir=$LAB/$1/containerd at
    "$ROOT/scripts/setup" runtimes
    mkdir -p "$dir"
    for at in /etc/cni /opt/cni /var/lib/cni /run/containerd; do
        place "$at"
    done
    # What Kubernetes asks for, and snapshots: these containers need none.
    printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[plugins."io.containerd.internal.v1.opt"]\npath = "%s/opt"\n' \
        "$dir" >"$dir/config.toml"
    # `ctr` tells plugins nothing of its containers but an id; what runs pods with containerd tells their names, so.
    # shellcheck disable=SC2016  # expanded by the plugin's shell
    printf '#!/bin/sh\nCNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME=$MESH_ENDPOINT" exec %q/meshd-cni\n' "$BIN" >"$dir/meshd-cni"
    chmod +x "$dir/meshd-cni"
    # shellcheck disable=SC2016  # expanded by the inner shell
    space "$dir" "$host" '
        for at in /etc/cni /opt/cni /var/lib/cni /run/containerd; do mount -t tmpfs mesh-lab "$at"; done
        mkdir /etc/cni/net.d /opt/cni/bin
        cp "$0/meshd-cni" /opt/cni/bin/'
    spawn "$dir" nsenter --mount="/proc/$(pid_of "$dir/space")/ns/mnt" --net="/run/netns/mesh-$host" -- \
        containerd -c "$dir/config.toml" --root "$dir/root" --state "$dir/state" --address "$dir/sock"
    within 30 containerd_answers "$host" || {
        tail -n "$TAIL" "$dir/log" >&2
        die 1 "containerd on $host does not answer"
    }
}

# ctr HOST ARG…
ctr() {
    local host=$1 dir=$LAB/$1/containerd
    shift
    in_space "$dir" "$host" ctr -a "$dir/sock" "$@"
}

containerd_answers() {
    pid_of "$LAB/$1/containerd" >/dev/null || return 1
    ctr "$1" version >/dev/null 2>&1
}

# containerd_run HOST NAME CMD…: of `run`'s networks and wishes. `ctr` stays for the container's life and calls
# the plugin's DEL at its end; its process is that of CONTAINER/pid.
containerd_run() {
    local host=$1 name=$2 dir=$LAB/containers/$2 daemon=$LAB/$1/containerd options=() from
    shift 2
    ! gone "$daemon" || start_containerd "$host"
    root_of_containers
    mkdir -p "$dir/net.d"
    printf 'nameserver %s\noptions ndots:0\n' "$(subnets "$host" "${networks[0]}" gateway | head -1)" >"$dir/resolv.conf"
    printf '127.0.0.1 localhost\n' >"$dir/hosts"
    conflist >"$dir/net.d/10-mesh.conflist"
    for from in $(binds); do
        options+=(--mount "type=bind,src=$from,dst=$from,options=rbind:ro")
    done
    for from in resolv.conf hosts; do
        options+=(--mount "type=bind,src=$dir/$from,dst=/etc/$from,options=rbind:ro")
    done
    [[ $1 != - ]] || set -- sleep infinity
    # `ctr` reads /etc/cni/net.d itself. It has no option for a host name: the container shares its UTS namespace.
    # shellcheck disable=SC2016  # expanded by the inner shell
    spawn "$dir" nsenter --mount="/proc/$(pid_of "$daemon/space")/ns/mnt" --net="/run/netns/mesh-$host" -- \
        env MESH_ENDPOINT="$name" MESHD_SOCKET="$LAB/$host/run/meshd.sock" unshare --mount --uts -- sh -ec '
            mount --bind "$1" /etc/cni/net.d
            hostname "$0"
            socket=$2
            shift 2
            exec ctr -a "$socket" run --rm --cni --rootfs --with-ns "uts:/proc/$$/ns/uts" "$@"' "$name" "$dir/net.d" "$daemon/sock" \
        --cgroup "/$CGROUP/$name" --pid-file "$dir/first" --env "PATH=$PATH" --env "MESH_ENDPOINT=$name" "${options[@]}" \
        "$LAB/root" "$name" "$@"
    within 20 containerd_started "$name" || die 1 "container \"$name\" does not start: $(cat "$dir/log")"
    # It may have had little to do.
    pid_of "$dir" >/dev/null || return 0
    first_process "$name" "$(<"$dir/first")"
    within 10 known "$host" "$name" "${networks[@]}" || die 1 "$host does not know \"$name\" 10 s after containerd started it"
}

# containerd_started NAME: the container's first process is what it is to be, and no more what makes it.
containerd_started() {
    local dir=$LAB/containers/$1 comm
    if gone "$dir"; then
        ! grep -q '^ctr: ' "$dir/log" || die 1 "container \"$1\" did not start: $(cat "$dir/log")"
        return 0
    fi
    [[ -s $dir/first ]] && comm=$(cat "/proc/$(<"$dir/first")/comm" 2>/dev/null) && [[ $comm != runc* ]]
}

# conflist: the CNI configuration of one container.
conflist() {
    jq -n --arg service "$(wishes service)" --arg aliases "$(wishes alias)" --arg labels "$(wishes label)" \
        --arg ports "$(wishes publish)" --arg ips "$(printf '%s\n' "${ips[0]}" "${ips6[0]}")" --args '
        def lines: split("\n") | map(select(. != ""));
        def pair: index("=") as $at | {key: .[:$at], value: .[$at + 1:]};
        # [HOSTPORT:]PORT[/PROTOCOL]
        def mapping: split("/") | (.[1] // "tcp") as $protocol | .[0] | split(":") | map(tonumber)
            | {containerPort: .[-1], protocol: $protocol} + if length > 1 then {hostPort: .[0]} else {} end;
        {type: "meshd-cni", networks: $ARGS.positional, aliases: ($aliases | lines), ips: ($ips | lines),
            labels: ($labels | lines | map(pair) | from_entries)}
        + if $service == "" then {} else {service: $service} end
        + if $ports == "" then {} else {runtimeConfig: {portMappings: ($ports | lines | map(mapping))}} end
        | {cniVersion: "1.0.0", name: "lab", plugins: [.]}' "${networks[@]}"
}

# containerd_stop HOST NAME
containerd_stop() {
    local dir=$LAB/containers/$2
    # It may have ended by itself, and is then being removed.
    ctr "$1" tasks kill -s SIGKILL "$2" 2>/dev/null || true
    within 20 gone "$dir" || die 1 "ctr of \"$2\" does not end: $(cat "$dir/log")"
}

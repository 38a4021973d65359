# shellcheck shell=bash disable=SC2154  # common is of `run`
# What containers of real runtimes share: their file system, the namespace that a daemon's mounts are
# in, and how a command gets into one. Sourced by scripts/lab.
#
# A container's file system is nearly empty: the machine's programs and the lab's are bound into it, read-only,
# so that scenarios find in it what they find in a plain network namespace. All else is the runtime's: namespaces,
# cgroup, capabilities, resolv.conf, and the network, which comes from meshd by way of the runtime.

# Where the lab's containers have their first process: below CONTAINER/init, see pid_of.
INIT=init

# place DIR: a directory of the machine's that a daemon's mount namespace mounts something on. `down` removes it.
place() {
    if [[ ! -d $1 ]]; then
        mkdir "$1"
        echo "$1" >>"$LAB/places"
    fi
}

# space DIR HOST SCRIPT ARG…: keeps a mount namespace, with the host's network, for as long as the lab is up,
# in which SCRIPT has been run with DIR as $0. It outlives the daemon, whose containers' mounts are in it.
space() {
    local dir=$1 host=$2 script=$3
    shift 3
    ! gone "$dir/space" || spawn_space "$dir" "$host" "$script" "$@"
}

spawn_space() {
    local dir=$1 host=$2 script=$3
    shift 3
    mkdir -p "$dir/space"
    spawn "$dir/space" unshare -m -- nsenter --net="/run/netns/mesh-$host" -- sh -ec "
        mount --make-rprivate /
        $script
        exec sleep infinity" "$dir" "$@"
    within 10 asleep "$dir/space" || die 1 "$host has no place for a daemon: $(cat "$dir/space/log")"
}

# asleep DIR: the process that was started for DIR has come to its sleep.
asleep() {
    local pid
    pid=$(pid_of "$1") && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == sleep ]]
}

# in_space DIR HOST CMD…: in the namespaces of a host's daemon.
in_space() {
    local dir=$1 host=$2
    shift 2
    nsenter --mount="/proc/$(pid_of "$dir/space")/ns/mnt" --net="/run/netns/mesh-$host" -- "$@"
}

# binds: what is bound into every container, read-only: the lab's programs, those of the machine, and the scenarios'.
binds() {
    local dir
    for dir in /usr /bin /sbin /lib /lib64 "${TMPDIR:-/tmp}" "$BIN"; do
        # On Debian all but /usr are links into it.
        [[ ! -d $dir || -L $dir ]] || echo "$dir"
    done
}

# root_of_containers: makes the file system, once.
root_of_containers() {
    local root=$LAB/root link
    [[ ! -d $root ]] || return 0
    mkdir -p "$root.part"/{dev,etc,proc,run,sys,tmp}
    for link in /bin /sbin /lib /lib64; do
        [[ ! -L $link ]] || cp -P "$link" "$root.part$link"
    done
    # Other sources of names than these would bypass the container's resolv.conf.
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root.part/etc/nsswitch.conf"
    mv "$root.part" "$root"
}

# first_process NAME PID
first_process() {
    mkdir -p "$LAB/containers/$1/$INIT"
    echo "$2 $(started "$2")" >"$LAB/containers/$1/$INIT/pid"
}

# inside NAME CMD…: becomes CMD in the namespaces of a container of a runtime.
inside() {
    local name=$1 pid
    pid=$(pid_of "$LAB/containers/$name/$INIT") || die 4 "container \"$name\" has ended: its first process is gone"
    shift
    exec nsenter -t "$pid" --mount --uts --ipc --net -- env MESH_ENDPOINT="$name" "$@"
}

# known HOST NAME NETWORK…: the host knows the container by its name, ready, on each of the networks.
known() {
    local host=$1 name=$2
    shift 2
    in_host "$host" timeout $((5 * PATIENCE)) meshctl endpoint ls -o json 2>/dev/null |
        jq -e --arg name "$name" --argjson count $# '[.[] | select(.name == $name and .state == "ready")] | length == $count' >/dev/null 2>&1
}

# wishes FLAG: the values of a flag of `run` that stands for all its networks.
wishes() {
    local i
    for ((i = 0; i < ${#common[@]}; i += 2)); do
        [[ ${common[i]} != "--$1" ]] || echo "${common[i + 1]}"
    done
}

# shellcheck shell=bash
# Docker's overlay between h4 and h5: a swarm of two dockerds, beside the meshds that are there, with a
# container on each. Sourced by overlay.sh.

# Ports of the swarm and of its VXLAN, which are not those of meshd.
SWARM_PORT=2378
SWARM_VXLAN=4799

# docker_on HOST ARG…
docker_on() {
    local host=$1
    shift
    $LAB exec "$host" -- docker "$@"
}

# bench_image HOST: makes the image `bench`, of a shell and what measures.
bench_image() {
    local root=$WORK/image program lib
    if [[ ! -d $root ]]; then
        mkdir -p "$root/bin"
        cp "$(command -v busybox)" "$root/bin/busybox"
        for program in sh sleep; do
            ln -s busybox "$root/bin/$program"
        done
        for program in iperf3 meshd-bench; do
            cp "$(command -v $program)" "$root/bin/"
            for lib in $(ldd "$(command -v $program)" | grep -o '/[^ ]*'); do
                mkdir -p "$root${lib%/*}"
                cp -Ln "$lib" "$root$lib"
            done
        done
        mkdir -p "$root/tmp"
    fi
    tar -C "$root" -c . | docker_on "$1" import - bench >/dev/null
}

# need_docker: brings it up. Containers: d4, whose namespace is then mesh-p4d, and d5 with the server.
# Sets D5, the address of that.
need_docker() {
    local host token
    [[ -z ${D5:-} || ! -e /run/netns/mesh-p4d ]] || return 0
    for host in h4 h5; do
        $LAB dockerd "$host"
        bench_image "$host"
    done
    docker_on h4 swarm init --advertise-addr 192.168.77.14 --listen-addr 192.168.77.14:$SWARM_PORT \
        --data-path-port $SWARM_VXLAN >/dev/null
    token=$(docker_on h4 swarm join-token -q worker)
    docker_on h5 swarm join --advertise-addr 192.168.77.15 --listen-addr 192.168.77.15:$SWARM_PORT \
        --token "$token" 192.168.77.14:$SWARM_PORT >/dev/null
    docker_on h4 network create -d overlay --attachable bench >/dev/null
    docker_on h4 run -d --name d4 --network bench bench sleep 1000000 >/dev/null
    docker_on h5 run -d --name d5 --network bench bench sh -c "$SERVER" >/dev/null
    D5=$(docker_on h5 inspect -f '{{.NetworkSettings.Networks.bench.IPAddress}}' d5)
    # A name that `lab down` knows.
    ip netns attach mesh-p4d "$(docker_on h4 inspect -f '{{.State.Pid}}' d4)"
    ports mesh-p4d
}

# shellcheck shell=bash
# What the scripts share; sourced, never run. Sets ROOT, TARGET, BIN, ME and strict mode.
set -euo pipefail

ROOT=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
ME=${0##*/}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
# Where meshd, meshctl, meshd-cni, meshd-echo and meshd-bench are taken from.
BIN=${MESH_LAB_BIN:-$TARGET/release}
# How often longer everything that waits may take, on an emulated machine.
PATIENCE=${MESH_PATIENCE:-1}

# die STATUS MESSAGE…
die() {
    local status=$1
    shift
    printf '%s: %s\n' "$ME" "$*" >&2
    exit "$status"
}

note() {
    printf '%s: %s\n' "$ME" "$*" >&2
}

# help_if_asked ARG…: where the first of a script's arguments asks for help, prints the comment that the script begins
# with, and ends.
help_if_asked() {
    if [[ ${1:-} == -h || ${1:-} == --help ]]; then
        sed -n '2,${/^# shellcheck/q; /^#/!q; s/^# \{0,1\}//p}' "$0"
        exit 0
    fi
}

[[ $PATIENCE =~ ^[1-9][0-9]?$ ]] || die 2 "MESH_PATIENCE \"$PATIENCE\" is not a number from 1 to 99"

need_root() {
    [[ $EUID == 0 ]] || die 1 "must run as root: it makes network namespaces and loads eBPF programs"
}

# within SECONDS CMD…: runs CMD until it succeeds; fails when the time (times PATIENCE) is up. A second is one that
# this machine had: what a hypervisor gave to others meanwhile does not count.
within() {
    local end=$((${EPOCHREALTIME//[!0-9]/} + $1 * PATIENCE * 1000000)) before=0
    stolen before
    shift
    until "$@"; do
        local now=0
        stolen now
        ((${EPOCHREALTIME//[!0-9]/} < end + now - before)) || return 1
        sleep 0.05
    done
}

# stolen NAME: sets NAME to the microseconds, since it started, that a processor of this machine was given to others,
# on average (proc(5), steal: hundredths of a second).
stolen() {
    local line processors=-1 ticks=0
    while read -r -a line && [[ ${line[0]} == cpu* ]]; do
        ((++processors)) || ticks=${line[8]}
    done </proc/stat
    printf -v "$1" %d $((ticks * 10000 / (processors > 0 ? processors : 1)))
}

# Makes rustup's cargo usable from shells that never read its profile.
find_cargo() {
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || die 1 "no cargo: install rustup (https://rustup.rs); rust-toolchain.toml says the rest"
}

# build_binaries [CARGO-ARGS…]: brings the release binaries up to date.
# shellcheck disable=SC2119,SC2120  # most need no more
build_binaries() {
    find_cargo
    (cd "$ROOT" && cargo build --locked --release -p meshd -p meshctl -p meshd-cni -p mesh-tests -p mesh-clock "$@") || die 1 "the binaries could not be built"
}

# Builds the binaries if one is absent.
ensure_binaries() {
    local program
    for program in meshd meshctl meshd-cni meshd-echo meshd-bench; do
        if [[ ! -x $BIN/$program ]]; then
            [[ -z ${MESH_LAB_BIN:-} ]] || die 1 "no $program in MESH_LAB_BIN=$BIN"
            note "building $program and the other binaries"
            # shellcheck disable=SC2119
            build_binaries
            return
        fi
    done
}

# stage DIR: manual pages, and completions for shells, as the built programs give them.
stage() {
    rm -rf "$1"
    mkdir -p "$1"
    "$BIN/meshctl" man "$1/man"
    "$BIN/meshd" man "$1/man"
    "$BIN/meshctl" completion bash >"$1/meshctl.bash"
    "$BIN/meshctl" completion zsh >"$1/_meshctl"
    "$BIN/meshctl" completion fish >"$1/meshctl.fish"
}

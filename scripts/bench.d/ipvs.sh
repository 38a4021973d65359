# shellcheck shell=bash
# New connections through a published port against IPVS, which this machine's kernel need not have:
# all in one guest with Debian 12's kernel (scripts/vm), whose processor is emulated. Only ratios mean
# anything there. Sourced by scripts/bench; ipvs-guest.sh is what runs in the guest.

ipvs_begin() {
    scripts/setup vm
    goal 'new connections, Linux 6.1' least 1.0 unbalanced
    note "ipvs: $ROUNDS rounds in a guest; it takes minutes to bring up hosts there"
    MESH_LAB_BIN=$BIN MESH_PATIENCE=10 ROUNDS=$ROUNDS SECONDS_EACH=$EACH \
        scripts/vm run --timeout 1500 -- scripts/bench.d/ipvs-guest.sh >"$WORK/guest" || {
        tail -5 "$WORK/guest" >&2
        die 1 "the guest could not measure"
    }
    grep -P '\t' "$WORK/guest" >>"$SAMPLES" || die 1 "the guest has measured nothing: $(tail -3 "$WORK/guest")"
}

# The guest has been through all rounds, way by way in turn.
ipvs_round() {
    :
}

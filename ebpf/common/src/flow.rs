//! What a flow's state says about its next packet. Called by the programs for every packet of a
//! service; pure.

use crate::rows::{FlowKey, TCP, UDP};

/// FIN of TCP's flags byte.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// The client has sent its FIN.
pub const FIN_FORWARD: u32 = 1;
/// The backend has sent its FIN.
pub const FIN_REVERSE: u32 = 2;
/// Either has sent RST.
pub const RESET: u32 = 4;
/// The backend has been heard.
pub const REPLIED: u32 = 8;
/// The backend's packets do not come by here.
pub const DIRECT: u32 = 16;

/// A UDP flow that was silent for longer is over.
pub const UDP_IDLE_NS: u64 = 180 * 1_000_000_000;
/// So is a TCP flow: the shortest time after which RFC 1122 section 4.2.3.6 lets an idle connection
/// be probed, so that a connection with keep-alive never gets there.
pub const TCP_IDLE_NS: u64 = 2 * 3600 * 1_000_000_000 + 600 * 1_000_000_000;
/// A TCP flow that one end has closed is over when it was silent for longer (RFC 5382 section 5 asks
/// for the time of a connection in the middle of its closing, four minutes, at least).
pub const HALF_IDLE_NS: u64 = 11 * 60 * 1_000_000_000;
/// A flow's way back is kept so long after a reset, for what is still under way.
pub const RESET_GRACE_NS: u64 = 2 * 1_000_000_000;
/// And so long after both ends have closed: the backend then remembers the connection in TIME_WAIT
/// (`TCP_TIMEWAIT_LEN` of include/net/tcp.h, 60 s), and answers another flow's SYN on the same ports
/// with an ACK of the old one instead of taking it.
pub const CLOSED_GRACE_NS: u64 = 61 * 1_000_000_000;
/// `last_seen` is not written more often than that, to spare the cache line.
pub const TOUCH_NS: u64 = 1_000_000_000;

/// Both ends have closed, or one has reset.
#[inline(always)]
pub const fn closed(bits: u32) -> bool {
    // Of a flow whose replies go another way, no more than this is ever seen.
    let both = if bits & DIRECT != 0 {
        FIN_FORWARD
    } else {
        FIN_FORWARD | FIN_REVERSE
    };
    bits & RESET != 0 || bits & both == both
}

/// It has been silent for too long.
#[inline(always)]
pub const fn idle(proto: u8, bits: u32, last_seen: u64, now: u64) -> bool {
    now.saturating_sub(last_seen)
        > if proto == UDP {
            UDP_IDLE_NS
        } else if bits & (FIN_FORWARD | FIN_REVERSE) != 0 {
            HALF_IDLE_NS
        } else {
            TCP_IDLE_NS
        }
}

/// Both ends have been heard, and this packet of the client's opens nothing: from now on no other
/// flow may take its place.
#[inline(always)]
pub const fn proven(proto: u8, flags: u8, bits: u32) -> bool {
    bits & (REPLIED | DIRECT) != 0 && !opens(proto, flags) && bits & RESET == 0
}

/// Its way back may be given to another flow.
#[inline(always)]
pub const fn stale(proto: u8, bits: u32, last_seen: u64, now: u64) -> bool {
    let grace = if bits & RESET != 0 { RESET_GRACE_NS } else { CLOSED_GRACE_NS };
    idle(proto, bits, last_seen, now) || (closed(bits) && now.saturating_sub(last_seen) > grace)
}

/// Opens a connection: SYN without ACK.
#[inline(always)]
pub const fn opens(proto: u8, flags: u8) -> bool {
    proto == TCP && flags & (SYN | ACK | RST) == SYN
}

/// The mark that a flow's row gets when it has been followed by the tables of `epoch` (see
/// [`crate::rows::Config::epoch`]) at `jiffies` of the kernel's clock. As long as the mark is the same, the
/// tables lead where they led, and the flow has been seen just now: a tick of 128 jiffies is between an
/// eighth of a second and one and a quarter, and 65,536 of them more than the longest silence of any flow.
#[inline(always)]
pub const fn stamp(jiffies: u64, epoch: u16) -> u16 {
    // 2^16 over the golden ratio: few changes of the tables never look like few ticks.
    ((jiffies >> 7) as u16).wrapping_add(epoch.wrapping_mul(40_503))
}

/// Bits that a packet adds.
#[inline(always)]
pub const fn advance(flags: u8, forward: bool) -> u32 {
    let fin = match (flags & FIN != 0, forward) {
        (false, _) => 0,
        (true, true) => FIN_FORWARD,
        (true, false) => FIN_REVERSE,
    };
    let heard = if forward { 0 } else { REPLIED };
    if flags & RST != 0 { fin | heard | RESET } else { fin | heard }
}

/// A hash of some words that is the same on every host, and whose high bits are as good as its low
/// ones.
#[inline(always)]
pub const fn hash<const N: usize>(words: [u32; N]) -> u32 {
    let mut h = 0x9e37_79b9_7f4a_7c15u64;
    let mut i = 0;
    while i < N {
        // The multiplier of Knuth's MMIX generator; the shift mixes high bits into low ones.
        h = (h ^ words[i] as u64).wrapping_mul(0x5851_f42d_4c95_7f2d);
        h ^= h >> 29;
        i += 1;
    }
    (h >> 32) as u32
}

/// The hash of a client.
#[inline(always)]
pub const fn hash_source(key: &FlowKey) -> u32 {
    let s = key.src.0;
    hash([s[0], s[1], s[2], s[3]])
}

/// The hash of a flow. The address that was asked is left out: it is the node's own, and two nodes
/// must choose alike.
#[inline(always)]
pub const fn hash_flow(key: &FlowKey) -> u32 {
    let s = key.src.0;
    let ports = (key.sport as u32) << 16 | key.dport as u32;
    hash([s[0], s[1], s[2], s[3], ports, key.proto as u32])
}

/// What to do with a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Send it where the flow goes.
    Keep,
    /// Choose a backend.
    Choose,
    /// The connection's backend is gone: end it.
    Reset,
}

/// Judges a client's packet by the flow that its 5-tuple names (`None`: a new one), and by whether
/// that flow's backend is still there.
#[inline(always)]
pub const fn judge(proto: u8, flags: u8, flow: Option<(u32, u64)>, backend_there: bool, now: u64) -> Judgement {
    let Some((bits, last_seen)) = flow else { return Judgement::Choose };
    if proto == UDP {
        return if backend_there && !idle(proto, bits, last_seen, now) {
            Judgement::Keep
        } else {
            Judgement::Choose
        };
    }
    match (opens(proto, flags), backend_there) {
        (true, true) if !closed(bits) && !idle(proto, bits, last_seen, now) => Judgement::Keep,
        (true, _) => Judgement::Choose,
        (false, true) => Judgement::Keep,
        (false, false) => Judgement::Reset,
    }
}

/// A port from 1024 to 65535 for a random number.
#[inline(always)]
pub const fn port(random: u32) -> u16 {
    // The high half of a product spreads 2^32 values over 64512 ports without a division.
    1024 + ((random as u64 * 64_512) >> 32) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn tcp_life() {
        assert_eq!(judge(TCP, SYN, None, false, S), Judgement::Choose);
        assert_eq!(judge(TCP, ACK, None, false, S), Judgement::Choose);
        assert_eq!(judge(TCP, ACK, Some((0, S)), true, 2 * S), Judgement::Keep);
        assert_eq!(judge(TCP, SYN, Some((0, S)), true, 2 * S), Judgement::Keep, "a SYN sent again");
        assert_eq!(
            judge(TCP, SYN, Some((0, S)), false, 2 * S),
            Judgement::Choose,
            "its backend is gone"
        );
        assert_eq!(judge(TCP, ACK, Some((0, S)), false, 2 * S), Judgement::Reset);
        assert_eq!(judge(TCP, SYN, Some((FIN_FORWARD, S)), true, 2 * S), Judgement::Keep, "half closed");
        assert_eq!(
            judge(TCP, SYN, Some((FIN_FORWARD | FIN_REVERSE, S)), true, 2 * S),
            Judgement::Choose
        );
        assert_eq!(judge(TCP, SYN, Some((RESET, S)), true, 2 * S), Judgement::Choose);
        assert_eq!(
            judge(TCP, ACK, Some((RESET, S)), true, 2 * S),
            Judgement::Keep,
            "what is still under way"
        );
        assert_eq!(
            judge(TCP, ACK, Some((0, 0)), true, TCP_IDLE_NS * 3),
            Judgement::Keep,
            "idle connections live"
        );
        assert_eq!(judge(TCP, SYN, Some((0, 0)), true, TCP_IDLE_NS + 1), Judgement::Choose);
        assert_eq!(judge(TCP, SYN | ACK, Some((RESET, 0)), true, S), Judgement::Keep, "opens nothing");
    }

    #[test]
    fn udp_life() {
        assert_eq!(judge(UDP, 0, Some((0, S)), true, 181 * S), Judgement::Keep);
        assert_eq!(judge(UDP, 0, Some((0, S)), true, 181 * S + 1), Judgement::Choose);
        assert_eq!(judge(UDP, 0, Some((0, S)), false, 2 * S), Judgement::Choose);
    }

    #[test]
    fn a_way_back_outlives_its_flow_a_little() {
        let both = FIN_FORWARD | FIN_REVERSE;
        assert!(!stale(TCP, both, S, 62 * S), "the backend is in TIME_WAIT");
        assert!(stale(TCP, both, S, 62 * S + 1));
        assert!(!stale(TCP, RESET, S, 3 * S) && stale(TCP, RESET, S, 3 * S + 1));
        assert!(!stale(TCP, 0, S, 3600 * S));
        assert!(!stale(TCP, FIN_FORWARD, 0, 600 * S) && stale(TCP, FIN_FORWARD, 0, HALF_IDLE_NS + 1));
        assert!(stale(UDP, 0, 0, UDP_IDLE_NS + 1));
        assert!(!stale(TCP, RESET, 5 * S, S), "a clock read on another cpu may be behind");
    }

    proptest! {
        #[test]
        fn ports_are_in_range(random: u32) {
            prop_assert!(port(random) >= 1024);
        }

        #[test]
        fn closing_takes_both_ends_or_a_reset(packets in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..8)) {
            let bits = packets.iter().fold(0, |bits, (flags, forward)| bits | advance(*flags, *forward));
            let fin = |way| packets.iter().any(|(flags, forward)| flags & FIN != 0 && *forward == way);
            let reset = packets.iter().any(|(flags, _)| flags & RST != 0);
            prop_assert_eq!(closed(bits), reset || (fin(true) && fin(false)));
        }

        #[test]
        fn never_kept_without_a_backend(proto in prop_oneof![Just(TCP), Just(UDP)], flags: u8, bits in 0u32..8, last: u64, now: u64) {
            prop_assert_ne!(judge(proto, flags, Some((bits, last)), false, now), Judgement::Keep);
        }
    }

    #[test]
    fn a_flow_is_proven_by_its_backend_and_then_its_client() {
        assert!(!proven(TCP, ACK, 0), "one end only");
        assert!(!proven(TCP, SYN, REPLIED), "a SYN sent again");
        assert!(proven(TCP, ACK, REPLIED) && proven(TCP, ACK, DIRECT) && proven(UDP, 0, REPLIED));
        assert!(!proven(TCP, ACK, REPLIED | RESET));
        assert!(closed(DIRECT | FIN_FORWARD) && !closed(FIN_FORWARD));
        assert_eq!(advance(0, false), REPLIED);
    }

    #[test]
    fn a_flow_hashes_alike_at_every_node() {
        let key = |dst: u32, sport| FlowKey {
            src: crate::rows::Addr::v4(9),
            dst: crate::rows::Addr::v4(dst),
            sport,
            dport: 80,
            proto: TCP,
            zero: [0; 3],
        };
        assert_eq!(hash_flow(&key(1, 7)), hash_flow(&key(2, 7)));
        assert_ne!(hash_flow(&key(1, 7)), hash_flow(&key(1, 8)));
        assert_ne!(hash_flow(&key(1, 7)), hash_flow(&FlowKey { dport: 81, ..key(1, 7) }));
    }

    #[test]
    fn hashes_spread() {
        let mut seen = [0u32; 16];
        for i in 0..16_000u32 {
            seen[(hash([0, 0, 0xffff, i]) % 16) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
    }

    #[test]
    fn marks_differ_while_few_things_happen() {
        let first = stamp(1 << 40, 7);
        assert_eq!(first, stamp((1 << 40) + 127, 7));
        for (ticks, changes) in (0..20u64).flat_map(|t| (0..500u16).map(move |c| (t, c))).skip(1) {
            assert_ne!(first, stamp((1 << 40) + ticks * 128, 7 + changes), "{ticks} {changes}");
        }
        // At the quickest clock there is.
        const { assert!(65_536 * 128 / 1000 > TCP_IDLE_NS / S) };
    }

    #[test]
    fn ports_reach_both_ends() {
        assert_eq!((port(0), port(u32::MAX)), (1024, 65535));
    }
}

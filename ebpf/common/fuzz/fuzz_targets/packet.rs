//! Any frame at all through the checks and the arithmetic that the kernel programs share with user
//! space. Run by scripts/fuzz. Besides not panicking (sums that overflow included): what is called
//! sound lies inside the frame, answers carry right checksums, and a checksum that was right is still
//! right when the words under it are changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_ebpf_common::{
    answer::{answerable, port_unreachable, tcp_reset},
    answer6::{IcmpError6, TcpReset6, port_unreachable6, tcp_reset6},
    checksum::{add, changed, diff, fold, pseudo_v4, pseudo_v6},
    flow,
    header::{ETH_LEN, Extension, Icmp, Ipv4, Ipv6, Tcp, Udp, end_v6, extension_len, is_extension, part_v6, shape, tcp_fits, udp_fits},
    quote::{quotes, requoted},
    rows::{ICMP, ICMP6, TCP},
};

/// Extension headers that are followed, as in the programs.
const DEPTH: usize = 6;

/// The bytes at an offset.
fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn ipv4(b: [u8; 20]) -> Ipv4 {
    Ipv4 {
        version_ihl: b[0],
        tos: b[1],
        total_len: [b[2], b[3]],
        id: [b[4], b[5]],
        fragment: [b[6], b[7]],
        ttl: b[8],
        proto: b[9],
        checksum: [b[10], b[11]],
        src: [b[12], b[13], b[14], b[15]],
        dst: [b[16], b[17], b[18], b[19]],
    }
}

fn ipv6(b: [u8; 40]) -> Ipv6 {
    let address = |from: usize| std::array::from_fn(|i| b[from + i]);
    Ipv6 {
        version_flow: [b[0], b[1], b[2], b[3]],
        payload_len: [b[4], b[5]],
        next: b[6],
        hop_limit: b[7],
        src: address(8),
        dst: address(24),
    }
}

fn tcp(b: [u8; 20]) -> Tcp {
    Tcp {
        sport: [b[0], b[1]],
        dport: [b[2], b[3]],
        seq: [b[4], b[5], b[6], b[7]],
        ack: [b[8], b[9], b[10], b[11]],
        offset: b[12],
        flags: b[13],
        window: [b[14], b[15]],
        checksum: [b[16], b[17]],
        urgent: [b[18], b[19]],
    }
}

fn udp(b: [u8; 8]) -> Udp {
    Udp {
        sport: [b[0], b[1]],
        dport: [b[2], b[3]],
        len: [b[4], b[5]],
        checksum: [b[6], b[7]],
    }
}

fn icmp(b: [u8; 8]) -> Icmp {
    Icmp {
        kind: b[0],
        code: b[1],
        checksum: [b[2], b[3]],
        rest: [b[4], b[5], b[6], b[7]],
    }
}

/// What a device makes of a checksum that was left to it: the complement of the sum over `bytes`, the
/// pseudo header's sum being in the field already.
fn finished(bytes: &[u8; 20]) -> u16 {
    !fold(add(0, bytes))
}

fn words(b: [u8; 4]) -> u32 {
    u32::from_ne_bytes(b)
}

/// A header of IPv4 whose source and destination change keeps a right checksum right.
fn renumbered(ip: &Ipv4, src: [u8; 4], dst: [u8; 4]) {
    let right = fold(add(0, &ip.bytes())) == 0xffff;
    let by = diff([words(ip.src), words(ip.dst)], [words(src), words(dst)]);
    let new = Ipv4 {
        src,
        dst,
        checksum: changed(ip.checksum, by),
        ..*ip
    };
    if right {
        assert_eq!(fold(add(0, &new.bytes())), 0xffff, "{ip:?} to {new:?}");
    }
    let _ = requoted(ip, words(src), words(dst));
}

fn four(frame: &[u8], gso: bool, fresh: [u8; 8]) {
    let Some(ip) = at(frame, ETH_LEN as usize).map(ipv4) else { return };
    let len = frame.len() as u32;
    let Some(shape) = shape(&ip, len, gso) else { return };
    assert!(shape.l4 >= ETH_LEN + 20 && shape.l4 + shape.l4_len <= len, "{shape:?} of {len}");
    let [a, b, c, d, e, f, g, h] = fresh;
    renumbered(&ip, [a, b, c, d], [e, f, g, h]);
    upper(frame, shape.l4 as usize, shape.l4_len, ip.proto);
    let Some(quoted) = at(frame, shape.l4 as usize) else { return };
    let _ = udp_fits(&udp(quoted), &shape, gso);
    let _ = quotes(ICMP, &icmp(quoted));
    if !answerable(&ip) {
        return;
    }
    let back = port_unreachable(&ip, quoted);
    assert_eq!(fold(add(0, &back.ip.bytes())), 0xffff);
    let sum = add(add(add(0, &back.icmp.bytes()), &back.quoted_ip.bytes()), &back.quoted);
    assert_eq!(fold(sum), 0xffff);
    if let Some(back) = at(frame, shape.l4 as usize).and_then(|b| tcp_reset(&ip, &tcp(b), shape.l4_len)) {
        assert_eq!(fold(add(0, &back.ip.bytes())), 0xffff);
        let pseudo = pseudo_v4(back.ip.src, back.ip.dst, TCP, 20);
        assert_eq!(fold(add(pseudo, &back.tcp.bytes())), 0xffff, "{back:?}");
        // 0 and all ones are the same sum.
        let device = finished(&back.tcp.bytes());
        assert_eq!(device % 0xffff, u16::from_be_bytes(back.tcp.checksum) % 0xffff, "{back:?}");
    }
}

fn six(frame: &[u8], gso: bool) {
    let Some(ip) = at(frame, ETH_LEN as usize).map(ipv6) else { return };
    let len = frame.len() as u32;
    let Some(end) = end_v6(&ip, len, gso) else { return };
    assert!(end <= len && end >= ETH_LEN + 40, "{end} of {len}");
    let (mut next, mut l4) = (ip.next, ETH_LEN + 40);
    for _ in 0..DEPTH {
        if !is_extension(next) {
            break;
        }
        let Some(b) = at::<8>(frame, l4 as usize) else { return };
        let header = Extension {
            next: b[0],
            len: b[1],
            fragment: [b[2], b[3]],
            id: [b[4], b[5], b[6], b[7]],
        };
        let step = extension_len(next, &header);
        assert!(step >= 8, "an extension header that would never end");
        let _ = part_v6(&header);
        (next, l4) = (header.next, l4 + step);
    }
    let Some(l4_len) = end.checked_sub(l4) else { return };
    upper(frame, l4 as usize, l4_len, next);
    if let Some(b) = at(frame, l4 as usize) {
        let _ = quotes(ICMP6, &icmp(b));
    }
    if let Some(quoted) = at(frame, l4 as usize) {
        let mut back = IcmpError6::default();
        port_unreachable6(&ip, quoted, &mut back);
        let pseudo = pseudo_v6(&back.ip.src, &back.ip.dst, ICMP6, u16::from_be_bytes(back.ip.payload_len));
        let sum = add(add(add(pseudo, &back.icmp.bytes()), &back.quoted_ip.bytes()), &back.quoted);
        assert_eq!(fold(sum), 0xffff, "{back:?}");
    }
    if let Some(b) = at(frame, l4 as usize) {
        let mut back = TcpReset6::default();
        if tcp_reset6(&ip, &tcp(b), l4_len, &mut back) {
            let pseudo = pseudo_v6(&back.ip.src, &back.ip.dst, TCP, 20);
            assert_eq!(fold(add(pseudo, &back.tcp.bytes())), 0xffff, "{back:?}");
        }
    }
}

/// What is the same over both families.
fn upper(frame: &[u8], l4: usize, l4_len: u32, proto: u8) {
    if proto != TCP {
        return;
    }
    let Some(tcp) = at(frame, l4).map(tcp) else { return };
    let fits = tcp_fits(&tcp, l4_len);
    assert!(!fits || u32::from(tcp.offset >> 4) * 4 <= l4_len);
    for forward in [false, true] {
        let bits = flow::advance(tcp.flags, forward);
        let _ = (
            flow::closed(bits),
            flow::opens(proto, tcp.flags),
            flow::proven(proto, tcp.flags, bits),
        );
        let then = u64::from(u32::from_be_bytes(tcp.seq));
        let _ = (flow::stale(proto, bits, then, 0), flow::idle(proto, bits, 0, then));
        let _ = flow::judge(
            proto,
            tcp.flags,
            Some((bits, then)),
            forward,
            u64::from(u32::from_be_bytes(tcp.ack)),
        );
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((control, frame)) = input.split_first_chunk::<9>() else {
        return;
    };
    let [options, fresh @ ..] = *control;
    let gso = options & 1 != 0;
    let mut frame = frame.to_vec();
    // A right checksum is not found by chance often enough.
    if options & 2 != 0
        && let Some(ip) = at::<20>(&frame, ETH_LEN as usize)
    {
        let ip = Ipv4 {
            checksum: [0; 2],
            ..ipv4(ip)
        };
        let right = !fold(add(0, &ip.bytes()));
        frame[ETH_LEN as usize + 10..][..2].copy_from_slice(&right.to_be_bytes());
    }
    four(&frame, gso, fresh);
    six(&frame, gso);
});

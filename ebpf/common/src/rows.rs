//! Keys and values of the BPF maps, byte for byte as the kernel holds them.
//!
//! Addresses are 16 bytes, IPv4 as `::ffff:a.b.c.d`; where a row has both families, the IPv4 address is
//! a word as it lies in a packet, and zero stands for none. Ports are in host byte order. No type has
//! padding, so that keys compare and hash as bytes.

/// Types that are nothing but their bytes: `repr(C)`, no padding, every bit pattern valid.
///
/// # Safety
///
/// The implementor must be all that.
#[expect(unsafe_code, reason = "a marker that the compiler can not check")]
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($t:ty = $size:literal),+ $(,)?) => {$(
        // SAFETY: `repr(C)` with integer fields only; the size below is the sum of the fields'.
        #[expect(unsafe_code, reason = "see the trait")]
        unsafe impl Plain for $t {}
        const _: () = assert!(size_of::<$t>() == $size);
    )+};
}

// SAFETY: an integer.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for u32 {}

/// IPPROTO_TCP.
pub const TCP: u8 = 6;
/// IPPROTO_UDP.
pub const UDP: u8 = 17;
/// IPPROTO_ICMP.
pub const ICMP: u8 = 1;
/// IPPROTO_ICMPV6.
pub const ICMP6: u8 = 58;

/// [`Flow::stat`] and [`Reply::stat`] of a flow that is counted elsewhere, or nowhere.
pub const UNCOUNTED: u32 = u32::MAX;

/// In the number of a set of backends: by their IPv6 addresses (`mesh_core::lb::V6`).
pub const V6: u32 = 1 << 31;
/// In the number of a set of backends: those on this host only (`mesh_core::lb::LOCAL`).
pub const LOCAL: u32 = 1 << 30;

/// An IP address as four words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// `::ffff:a.b.c.d` for the word as it lies in a packet.
    #[inline(always)]
    pub const fn v4(raw: u32) -> Self {
        Self([0, 0, u32::from_be(0xffff), raw])
    }

    /// It is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == u32::from_be(0xffff)
    }

    /// It is no address: zero.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }

    /// It is an IPv6 address of one link only, `fe80::/10` (RFC 4291 section 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.0[0] & u32::from_be(0xffc0_0000) == u32::from_be(0xfe80_0000)
    }

    /// It is the address of one link that follows from the Ethernet address `mac` (RFC 4291 appendix A).
    #[inline(always)]
    pub const fn is_link_local_of(&self, mac: &[u8; 6]) -> bool {
        let [a, b, c, d, e, f] = *mac;
        self.0[0] == u32::from_be(0xfe80_0000)
            && self.0[1] == 0
            && self.0[2] == u32::from_ne_bytes([a ^ 2, b, c, 0xff])
            && self.0[3] == u32::from_ne_bytes([0xfe, d, e, f])
    }

    /// It is an address of localhost, of either family.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.0[3] & u32::from_be(0xff00_0000) == u32::from_be(0x7f00_0000);
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == u32::from_be(1)
    }

    /// The IPv4 address as it lies in a packet; meaningless for an IPv6 address.
    #[inline(always)]
    pub const fn raw_v4(&self) -> u32 {
        self.0[3]
    }

    /// Word by word: a compare of arrays can become a call of memcmp, which BPF has not.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.0[0] == other.0[0] && self.0[1] == other.0[1] && self.0[2] == other.0[2] && self.0[3] == other.0[3]
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        let o = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(a: Addr) -> Self {
        let mut o = [0; 16];
        for (to, word) in o.chunks_exact_mut(4).zip(a.0) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(o).to_canonical()
    }
}

/// An Ethernet address as a map key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MacKey {
    /// The address.
    pub mac: [u8; 6],
    /// Zero.
    pub zero: [u8; 2],
}

impl MacKey {
    /// The key of `mac`.
    #[inline(always)]
    pub const fn new(mac: [u8; 6]) -> Self {
        Self { mac, zero: [0; 2] }
    }
}

/// A flow, or its reverse: key of `FLOWS` and `REPLIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// [`TCP`] or [`UDP`].
    pub proto: u8,
    /// Zero.
    pub zero: [u8; 3],
}

impl FlowKey {
    /// The same flow, seen from its other end.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
            zero: [0; 3],
        }
    }
}

/// How a flow came to be.
pub mod kind {
    /// A client's packets to a published port.
    pub const INGRESS: u8 = 1;
    /// A container's packets to a VIP.
    pub const VIP: u8 = 2;
    /// A container's packets to a VIP or published port whose backend is itself.
    pub const HAIRPIN: u8 = 3;
    /// As [`INGRESS`], with replies that go straight to the client.
    pub const DIRECT: u8 = 4;
    /// As [`INGRESS`], of a client from outside, to a backend of another node. In [`super::Flow`] only.
    pub const CARRIED: u8 = 5;
}

/// What is remembered of a flow by the packets that its client sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flow {
    /// When a packet was last seen, up to [`crate::flow::TOUCH_NS`] and one tick of [`crate::flow::stamp`] late;
    /// nanoseconds since boot.
    pub last_seen: u64,
    /// Where it goes.
    pub backend: u32,
    /// See [`crate::flow`]; in the upper half the stamp.
    pub bits: u32,
    /// The set that chose, with its flags.
    pub service: u32,
    /// Index of the veth of the container on this host that asked this node; 0: it came in elsewhere.
    pub client: u32,
    /// Row of `STATS`.
    pub stat: u32,
    /// The client's port as the backend sees it; 0 while the NAT is another node's work.
    pub cport: u16,
    /// Port at the backend.
    pub target: u16,
    /// Node that the client's packets come in at; of a flow that is [`kind::CARRIED`] the backend.
    pub entry: [u8; 6],
    /// See [`kind`].
    pub kind: u8,
    /// Zero.
    pub zero: u8,
}

/// How a backend's packets find back to the address that its client asked. Keyed by the packet that
/// the backend sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reply {
    /// See [`Flow::last_seen`].
    pub last_seen: u64,
    /// See [`crate::flow`].
    pub bits: u32,
    /// See [`Flow::client`].
    pub client: u32,
    /// See [`Flow::stat`].
    pub stat: u32,
    /// Port that the client asked.
    pub dport: u16,
    /// The client's own port.
    pub cport: u16,
    /// Address that the client asked.
    pub dst: Addr,
    /// Node that the client's packets come in at.
    pub entry: [u8; 6],
    /// See [`kind`].
    pub kind: u8,
    /// Zero.
    pub zero: u8,
}

/// Own place in the ingress network; the one row of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// Own Ethernet address there.
    pub ingress_mac: [u8; 6],
    /// Goes up whenever a row that flows are led by changes: one of `PUBLISHED` or `BOUND`, or one that was
    /// there of `BACKENDS` or `NODE_ADDRS`.
    pub epoch: u16,
    /// Own IPv4 address there; 0: none.
    pub ingress_ip: u32,
    /// Index of the ingress VXLAN device; 0: none.
    pub ingress_ifindex: u32,
    /// Index of the device that clients arrive on; 0: none.
    pub uplink_ifindex: u32,
    /// MTU in bytes inside the ingress network.
    pub ingress_mtu: u32,
    /// 1: an endpoint here is reached without encapsulation, see [`SEGMENT`].
    pub segment: u32,
    /// Name of the ingress VXLAN device, filled with zeros.
    pub ingress_dev: [u8; 16],
    /// Name of the uplink, filled with zeros.
    pub uplink: [u8; 16],
}

/// Row of `PUBLISHED` for a port, `proto` being [`TCP`] or [`UDP`].
#[inline(always)]
pub const fn port_row(port: u16, proto: u8) -> u32 {
    port as u32 | if proto == UDP { 1 << 16 } else { 0 }
}

/// A port in a [`BoundKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PortKey {
    /// The published port.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub proto: u8,
    /// Zero.
    pub zero: u8,
}

/// Key of `BOUND`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BoundKey {
    /// The one address that the port is published at.
    pub addr: Addr,
    /// The port there.
    pub port: PortKey,
}

/// Value of `PUBLISHED` and `BOUND`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Published {
    /// Set of backends; 0 in `PUBLISHED`: look in `BOUND`.
    pub service: u32,
    /// Port at the backend.
    pub target: u16,
    /// 1: replies go straight to the client.
    pub direct: u8,
    /// 1: it is published; 0 in the rows of `PUBLISHED` for all other ports.
    pub there: u8,
}

/// How a member is taken: [`Service::method`].
pub mod method {
    /// In turn.
    pub const TURN: u8 = 0;
    /// At random.
    pub const RANDOM: u8 = 1;
    /// By the client's address.
    pub const SOURCE: u8 = 2;
    /// By addresses and ports.
    pub const FLOW: u8 = 3;
}

/// Value of `SERVICES`: a set's list of backends, or which of those in `MEMBERS` it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Service {
    /// How many choices in turn were made; the programs count it up.
    pub turn: u64,
    /// How many members.
    pub count: u32,
    /// Which of the two lists in `MEMBERS` is valid, 0 or 1, if there are more members than [`FEW`].
    pub bank: u32,
    /// Seconds for which a client comes back to its backend; 0: it does not.
    pub affinity: u32,
    /// See [`method`].
    pub method: u8,
    /// 1: clients are admitted by `SOURCES`.
    pub ranged: u8,
    /// Zero.
    pub zero: [u8; 2],
    /// The members, if there are no more than that: keys of `BACKENDS`. Places behind the last are zero, which
    /// is nobody's.
    pub members: [u32; FEW as usize],
}

/// Key of `MEMBERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemberKey {
    /// The service.
    pub service: u32,
    /// See [`Service::bank`].
    pub bank: u32,
    /// Which part of the list, from 0: that of the places from [`PART`] times it on.
    pub part: u32,
}

/// How many members are in the row of their service: most services have no more.
pub const FEW: u32 = 8;

/// How many members are in one row of `MEMBERS`: a row of a hash costs as much as a dozen of them.
pub const PART: u32 = 32;

/// Value of `MEMBERS`; places behind the list's last are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Members(pub [u32; PART as usize]);

/// A set of backends without flags, and one of its backends: key of `STAT_ROWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Pair {
    /// The set.
    pub service: u32,
    /// Key of `BACKENDS`.
    pub backend: u32,
}

/// Key of `SOURCES`, a longest-prefix-match map, behind the number of bits that count (`struct
/// bpf_lpm_trie_key`): 32 for the service, then those of the range (of IPv4 with the 96 before it).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Source {
    /// The service; with [`V6`] for IPv6 clients, so that no range of IPv6 holds the mapped addresses of
    /// IPv4.
    pub service: u32,
    /// The client.
    pub addr: Addr,
}

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AffinityKey {
    /// The set, with its flags.
    pub service: u32,
    /// The client.
    pub addr: Addr,
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Affinity {
    /// When the client last opened a flow; nanoseconds since boot.
    pub last_seen: u64,
    /// Its backend.
    pub backend: u32,
    /// Where the backend was in the list.
    pub index: u32,
}

/// Value of `STATS`: one backend of one service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stat {
    /// Flows that were given to it.
    pub flows: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients, frames whole.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes to clients, frames whole.
    pub reply_bytes: u64,
}

/// Value of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Backend {
    /// Its IPv4 address.
    pub ip4: u32,
    /// Its node's IPv4 address in the ingress network.
    pub node: u32,
    /// Its IPv6 address.
    pub ip6: Addr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// 1: on this host.
    pub local: u8,
    /// 1: takes new flows.
    pub accepting: u8,
}

impl Backend {
    /// Its address of the family of `other`; zero if it has none.
    #[inline(always)]
    pub const fn addr(&self, other: &Addr) -> Addr {
        if !other.is_v4() {
            self.ip6
        } else if self.ip4 == 0 {
            Addr([0; 4])
        } else {
            Addr::v4(self.ip4)
        }
    }
}

/// In [`Local::bits`]: between nodes of one segment, what it sends and gets is not encapsulated.
pub const SEGMENT: u32 = 1;
/// In [`Local::bits`]: the host's end of its pair has a queue, which what is for it has to pass.
pub const QUEUED: u32 = 2;

/// Value of `LOCALS` (by interface index) and `LOCAL_BY_MAC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Local {
    /// Its IPv6 address.
    pub ip6: Addr,
    /// Its IPv4 address.
    pub ip4: u32,
    /// Its number.
    pub slot: u32,
    /// Index of the host-side veth.
    pub ifindex: u32,
    /// VXLAN network identifier of its network.
    pub network: u32,
    /// Index of its network's VXLAN device.
    pub vxlan_ifindex: u32,
    /// [`SEGMENT`] and [`QUEUED`].
    pub bits: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its gateway's.
    pub gateway_mac: [u8; 6],
    /// Name of the host-side veth, filled with zeros.
    pub name: [u8; 16],
    /// Name of its network's VXLAN device, filled with zeros.
    pub vxlan: [u8; 16],
}

impl Local {
    /// Its address of the family of `other`; zero if it has none.
    #[inline(always)]
    pub const fn addr(&self, other: &Addr) -> Addr {
        if !other.is_v4() {
            self.ip6
        } else if self.ip4 == 0 {
            Addr([0; 4])
        } else {
            Addr::v4(self.ip4)
        }
    }
}

/// Value of `NETWORKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Network {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Name of the VXLAN device, filled with zeros.
    pub name: [u8; 16],
}

/// Value of `REMOTES`: where an endpoint is that is reached without encapsulation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Remote {
    /// VXLAN network identifier of its network.
    pub network: u32,
    /// The Ethernet addresses that a frame to it gets.
    pub macs: Macs,
}

/// The Ethernet addresses of a frame, as they lie in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Macs {
    /// To whom.
    pub dst: [u8; 6],
    /// From whom.
    pub src: [u8; 6],
}

/// Value of `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Vip {
    /// Set of backends.
    pub service: u32,
    /// VXLAN network identifier of the network that it belongs to.
    pub network: u32,
}

/// Key of `FRAGMENTS`: what all fragments of one packet share (RFC 791 section 3.2, RFC 8200 section
/// 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification, as it lies in the packet.
    pub id: u32,
    /// Protocol.
    pub proto: u8,
    /// Zero.
    pub zero: [u8; 3],
}

/// Value of `FRAGMENTS`: what only the first fragment tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FragmentPorts {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// Value of `NAMESPACES`, by network namespace cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Namespace {
    /// 1: the host's own.
    pub host: u32,
    /// VXLAN network identifiers of the networks whose VIPs it reaches; 0: none.
    pub networks: [u32; 8],
}

/// Key of `SOCKETS`: a socket, and one end that it sends to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SocketKey {
    /// Cookie of the socket.
    pub cookie: u64,
    /// Address of the other end.
    pub addr: Addr,
    /// Port of the other end.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub proto: u8,
    /// 0: the value is what the program asked for; 1: what it was given instead.
    pub forward: u8,
    /// Zero.
    pub zero: [u8; 4],
}

/// Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Socket {
    /// Address.
    pub addr: Addr,
    /// The backend.
    pub backend: u32,
    /// Port.
    pub port: u16,
    /// Zero.
    pub zero: [u8; 2],
}

/// What an [`Event`] tells.
pub mod told {
    /// A packet was dropped.
    pub const DROP: u16 = 1;
    /// A backend was chosen for a new flow.
    pub const FLOW: u16 = 2;
}

/// One record of `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// Nanoseconds since boot.
    pub at: u64,
    /// The packet's 5-tuple as it came; zeros for what has none.
    pub key: FlowKey,
    /// The set that chose, with its flags; 0: none did.
    pub service: u32,
    /// The backend; 0: none.
    pub backend: u32,
    /// Length of the frame in bytes.
    pub len: u32,
    /// Index of the device that the packet came in at.
    pub ifindex: u32,
    /// [`crate::Reason`].
    pub reason: u16,
    /// See [`told`].
    pub told: u16,
    /// Zero.
    pub zero: u32,
}

impl Event {
    /// A record as it lies in the ring buffer; `None` if it has another size.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: of that size, and every bit pattern is an event.
        #[expect(unsafe_code, reason = "see the trait Plain")]
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

plain! {
    Addr = 16, MacKey = 8, FlowKey = 40, Flow = 40, Reply = 48, Config = 60, PortKey = 4, BoundKey = 20, Published = 8,
    Service = 56, MemberKey = 12, Members = 128, Pair = 8, Source = 20, AffinityKey = 20, Affinity = 16, Stat = 40, Backend = 32,
    Local = 84, Network = 20, Remote = 16, Macs = 12, Vip = 8, FragmentKey = 40, FragmentPorts = 4, Namespace = 36, SocketKey = 32, Socket = 24,
    Event = 72,
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["10.1.2.3", "0.0.0.0", "255.255.255.255", "fd00::1:2", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(Addr::from(ip), Addr::v4(u32::from_ne_bytes([10, 1, 2, 3])));
        assert_eq!(Addr::from(ip).raw_v4().to_ne_bytes(), [10, 1, 2, 3]);
    }

    #[test]
    fn a_links_address_follows_from_the_ethernet_address() {
        let mac = [0x02, 0x6d, 10, 1, 0, 11];
        for (text, own) in [
            ("fe80::6d:aff:fe01:b", true),
            ("fe80::26d:aff:fe01:b", false),
            ("fe80::6d:aff:fe01:c", false),
            ("fe80:0:0:1:6d:aff:fe01:b", false),
            ("fe90::6d:aff:fe01:b", false),
            ("fe80::1", false),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from(ip).is_link_local_of(&mac), own, "{text}");
        }
    }

    #[test]
    fn reversed_twice_is_itself() {
        let key = FlowKey {
            src: Addr::v4(1),
            dst: Addr::v4(2),
            sport: 3,
            dport: 4,
            proto: TCP,
            zero: [0; 3],
        };
        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }
}

//! Keys and values of the BPF maps, byte for byte as the kernel holds them.
//!
//! Addresses are 16 bytes, IPv4 as `::ffff:a.b.c.d`, so that IPv6 is an addition. Ports are in host
//! byte order. No type has padding, so that keys compare and hash as bytes.

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

/// IPPROTO_TCP.
pub const TCP: u8 = 6;
/// IPPROTO_UDP.
pub const UDP: u8 = 17;
/// IPPROTO_ICMP.
pub const ICMP: u8 = 1;

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
    /// A container's packets to a VIP whose backend is itself.
    pub const HAIRPIN: u8 = 3;
}

/// What is remembered of a flow by the packets that its client sends. LRU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flow {
    /// When a packet was last seen, up to [`crate::flow::TOUCH_NS`] late; nanoseconds since boot.
    pub last_seen: u64,
    /// Where it goes.
    pub backend: u32,
    /// See [`crate::flow`].
    pub bits: u32,
    /// The service that chose.
    pub service: u32,
    /// The client's port as the backend sees it; 0 while the NAT is another node's work.
    pub cport: u16,
    /// Port at the backend.
    pub target: u16,
    /// Node that the client's packets come in at.
    pub entry: [u8; 6],
    /// See [`kind`].
    pub kind: u8,
    /// Zero.
    pub zero: u8,
}

/// How a backend's packets find back to the address that its client asked. Keyed by the packet that
/// the backend sends. LRU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reply {
    /// See [`Flow::last_seen`].
    pub last_seen: u64,
    /// See [`crate::flow`].
    pub bits: u32,
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
    /// Zero.
    pub zero: [u8; 2],
    /// Index of the ingress VXLAN device; 0: none.
    pub ingress_ifindex: u32,
    /// Index of the device that clients arrive on; 0: none.
    pub uplink_ifindex: u32,
    /// MTU in bytes inside the ingress network.
    pub ingress_mtu: u32,
    /// Name of the ingress VXLAN device, filled with zeros.
    pub ingress_dev: [u8; 16],
    /// Name of the uplink, filled with zeros.
    pub uplink: [u8; 16],
}

/// Key of `PUBLISHED`.
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

/// Value of `PUBLISHED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Published {
    /// Set of backends.
    pub service: u32,
    /// Port at the backend.
    pub target: u16,
    /// Zero.
    pub zero: u16,
}

/// Value of `SERVICES`: names the members that count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Service {
    /// How many members.
    pub count: u32,
    /// Which of the two lists in `MEMBERS` is valid: 0 or 1.
    pub bank: u32,
}

/// Key of `MEMBERS`; the value is a backend's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemberKey {
    /// The service.
    pub service: u32,
    /// See [`Service::bank`].
    pub bank: u32,
    /// Place in the list.
    pub index: u32,
}

/// Value of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Backend {
    /// Its address.
    pub ip: Addr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// 1: on this host.
    pub local: u8,
    /// 1: takes new flows.
    pub accepting: u8,
}

/// Value of `LOCALS` (by interface index) and `LOCAL_BY_MAC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Local {
    /// Its address.
    pub ip: Addr,
    /// Gateway of its network.
    pub gateway: Addr,
    /// Its number.
    pub slot: u32,
    /// Index of the host-side veth.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The gateway's.
    pub gateway_mac: [u8; 6],
    /// Name of the host-side veth, filled with zeros.
    pub name: [u8; 16],
    /// VXLAN network identifier of its network.
    pub network: u32,
    /// Index of its network's VXLAN device.
    pub vxlan_ifindex: u32,
    /// Name of that device, filled with zeros.
    pub vxlan: [u8; 16],
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

/// Value of `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Vip {
    /// Set of backends.
    pub service: u32,
    /// VXLAN network identifier of the network that it belongs to.
    pub network: u32,
}

/// Key of `FRAGMENTS`: what all fragments of one packet share (RFC 791 section 3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification, as it lies in the packet.
    pub id: u16,
    /// Protocol.
    pub proto: u8,
    /// Zero.
    pub zero: u8,
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

plain! {
    Addr = 16, MacKey = 8, FlowKey = 40, Flow = 32, Reply = 40, Config = 52, PortKey = 4, Published = 8,
    Service = 8, MemberKey = 12, Backend = 24, Local = 92, Network = 20, Vip = 8, FragmentKey = 36, FragmentPorts = 4,
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

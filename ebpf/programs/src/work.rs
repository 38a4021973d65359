//! Working memory of one program run, and what is in it after parsing.

use core::mem::offset_of;

use mesh_ebpf_common::{
    answer::{IcmpError, TcpReset},
    answer6::{Advertisement, IcmpError6, TcpReset6},
    header::{Arp, Eth, Extension, Icmp, Ipv4, Ipv6, Neighbor, Tcp, Udp},
    rows::{Event, Flow, FlowKey, FragmentKey, FragmentPorts, Macs, Plain, Reply, Service},
};

use crate::nat::To;

/// Ethernet and IPv4, loaded and stored at once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head {
    pub eth: Eth,
    pub ip: Ipv4,
}

// SAFETY: byte fields only.
unsafe impl Plain for Head {}

/// The first eight bytes of an option of neighbour discovery (RFC 4861 section 4.6).
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct NdOption(pub [u8; 8]);

// SAFETY: bytes.
unsafe impl Plain for NdOption {}

// [`crate::skb::Skb::read`] asks for that.
const _: () = assert!(offset_of!(Work, head) % 2 == 0);
const _: () = assert!(offset_of!(Work, tcp) % 2 == 0 && offset_of!(Work, udp) % 2 == 0);

/// One program run's memory. Everything is written before it is read in the same run.
#[repr(C)]
pub struct Work {
    /// The packet's own 5-tuple; the addresses are there as soon as the head is parsed.
    pub key: FlowKey,
    /// The tuple of the opposite direction at the backend.
    pub reply_key: FlowKey,
    /// Row to be written.
    pub flow: Flow,
    /// Row to be written.
    pub reply: Reply,
    /// The set's row, while a backend is chosen.
    pub list: Service,
    /// Record to be told.
    pub event: Event,
    /// Offset of the upper layer's header.
    pub l4: u32,
    /// Its length.
    pub l4_len: u32,
    /// Length of the frame up to what TCP or UDP carries.
    pub headers: u32,
    /// Length of the frame as it came.
    pub len: u32,
    /// Device that it came in at.
    pub ifindex: u32,
    /// The set that chose, and the backend, for who watches.
    pub service: u32,
    pub backend: u32,
    /// What flows are marked with; see [`crate::quick`].
    pub stamp: u16,
    /// The way back in [`Self::reply_key`] is one that is kept.
    pub kept: bool,
    /// Fragment's identity.
    pub fragment_key: FragmentKey,
    /// Row to be written.
    pub fragment_ports: FragmentPorts,
    /// Ethernet and IPv4 as they came.
    pub head: Head,
    /// IPv6 as it came.
    pub ip6: Ipv6,
    pub extension: Extension,
    /// TCP as it came; of UDP the first eight bytes.
    pub tcp: Tcp,
    /// UDP as it came.
    pub udp: Udp,
    /// It is IPv6.
    pub v6: bool,
    /// Protocol of the upper layer.
    pub proto: u8,
    /// TCP flags; 0 for UDP and later fragments.
    pub flags: u8,
    /// See [`crate::parse`].
    pub part: u8,
    pub icmp: Icmp,
    /// The 5-tuple that an ICMP error quotes.
    pub quoted: FlowKey,
    /// Offset of the quoted IP header.
    pub quoted_at: u32,
    /// Offset of the quoted upper layer.
    pub quoted_l4: u32,
    pub quoted_ip: Ipv4,
    pub quoted_ip6: Ipv6,
    /// What it becomes.
    pub requoted: FlowKey,
    /// What the packet becomes.
    pub to: To,
    pub macs: Macs,
    pub arp: Arp,
    pub neighbor: Neighbor,
    pub option: NdOption,
    pub reset: TcpReset,
    pub icmp_error: IcmpError,
    pub reset6: TcpReset6,
    pub icmp_error6: IcmpError6,
    pub advertisement: Advertisement,
}

//! Working memory of one program run, and what is in it after parsing.

use mesh_ebpf_common::{
    answer::{PortUnreachable, TcpReset},
    header::{Arp, Eth, Icmp, Ipv4, Tcp},
    rows::{Flow, FlowKey, FragmentKey, FragmentPorts, Plain, Reply},
};

/// The first headers, loaded at once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head {
    pub eth: Eth,
    pub ip: Ipv4,
}

// SAFETY: byte fields only.
unsafe impl Plain for Head {}

/// The Ethernet addresses, stored at once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Macs {
    pub dst: [u8; 6],
    pub src: [u8; 6],
}

// SAFETY: byte fields only.
unsafe impl Plain for Macs {}

/// One program run's memory. Everything is written before it is read in the same run.
#[repr(C)]
pub struct Work {
    /// The packet's own 5-tuple.
    pub key: FlowKey,
    /// The tuple of the opposite direction at the backend.
    pub reply_key: FlowKey,
    /// Row to be written.
    pub flow: Flow,
    /// Row to be written.
    pub reply: Reply,
    /// Offset of the upper layer's header.
    pub l4: u32,
    /// Its length.
    pub l4_len: u32,
    /// Fragment's identity.
    pub fragment_key: FragmentKey,
    /// Row to be written.
    pub fragment_ports: FragmentPorts,
    /// Ethernet and IP as they came.
    pub head: Head,
    /// TCP as it came; of UDP the first eight bytes.
    pub tcp: Tcp,
    /// TCP flags; 0 for UDP and later fragments.
    pub flags: u8,
    /// See [`crate::parse`].
    pub part: u8,
    pub icmp: Icmp,
    pub macs: Macs,
    pub arp: Arp,
    pub reset: TcpReset,
    pub unreachable: PortUnreachable,
}

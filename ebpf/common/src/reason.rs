//! Why a packet went where it went: one counter each, per CPU, in `COUNTERS`.
//!
//! The programs count by [`Reason`], the loader reads by [`NAMES`]. New reasons go to the end of the
//! list: a pinned counter map keeps its meaning.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal),+ $(,)?) => {
        /// Index into `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[doc = $doc])+ $variant),+ }

        /// Names for people and metrics, by [`Reason`].
        pub const NAMES: &[&str] = &[$($name),+];
    };
}

reasons! {
    /// Not a service's: left to the host.
    Pass = "pass",
    /// Left to the host: a fragment whose first part was not seen.
    PassFragment = "pass_fragment",
    /// Left to the host: headers that contradict themselves.
    PassMalformed = "pass_malformed",
    /// Left to the bridge.
    PassBridge = "pass_bridge",
    /// Left to the host or the bridge: the interface is no endpoint's.
    PassUnknownDevice = "pass_unknown_device",
    /// A backend was chosen for a new flow.
    NewFlow = "new_flow",
    /// Client's packet carried to the backend's node.
    Carried = "carried",
    /// Client's packet given to a backend here.
    Delivered = "delivered",
    /// Reply sent to the client from here.
    ReplySent = "reply_sent",
    /// Reply carried back to the node that the client came in at.
    ReplyCarried = "reply_carried",
    /// Packet to a VIP sent on to its backend.
    VipForwarded = "vip_forwarded",
    /// Backend's packet given the VIP as its source.
    VipReply = "vip_reply",
    /// Packet to a VIP, and its reply, turned around: the backend is the client.
    Hairpin = "hairpin",
    /// A client's port replaced because it was taken at the backend.
    PortTranslated = "port_translated",
    /// ARP request for a VIP answered.
    ArpAnswered = "arp_answered",
    /// Ping of a VIP answered.
    EchoAnswered = "echo_answered",
    /// TCP reset sent: the service has no backend.
    ResetNoBackend = "reset_no_backend",
    /// TCP reset sent: the flow's backend is gone.
    ResetGone = "reset_gone",
    /// ICMP port unreachable sent: the service has no backend.
    UnreachableNoBackend = "unreachable_no_backend",
    /// Headers that contradict themselves.
    DropMalformed = "drop_malformed",
    /// A container's packet with another source address than its own.
    DropSpoofedIp = "drop_spoofed_ip",
    /// A container's frame with another source Ethernet address than its own.
    DropSpoofedMac = "drop_spoofed_mac",
    /// A container's ARP packet that speaks for another.
    DropSpoofedArp = "drop_spoofed_arp",
    /// A container's IPv6 frame.
    DropIpv6 = "drop_ipv6",
    /// A container's frame that is neither IP nor ARP, or carries a VLAN tag.
    DropEthertype = "drop_ethertype",
    /// A fragment to a VIP whose first part was not seen.
    DropFragment = "drop_fragment",
    /// To a VIP, but neither TCP, UDP nor ping.
    DropVipProtocol = "drop_vip_protocol",
    /// From the ingress network, but from no node that is known.
    DropUnknownPeer = "drop_unknown_peer",
    /// From the ingress network, for an endpoint that is not here.
    DropUnknownEndpoint = "drop_unknown_endpoint",
    /// Carried to an endpoint here, but to no published port.
    DropUnpublished = "drop_unpublished",
    /// Every client port tried at the backend was taken.
    DropNoPort = "drop_no_port",
    /// Nothing to send to, and nothing to be answered: a reset.
    DropReset = "drop_reset",
    /// Nothing to send to, and not answered: IP options, a fragment, or a wrong header checksum.
    DropUnanswered = "drop_unanswered",
    /// The backend is said to be here, but has no interface.
    DropNoInterface = "drop_no_interface",
    /// The kernel refused to change or redirect the packet, or a map is full.
    DropFailed = "drop_failed",
    /// No ingress device or uplink is configured.
    DropUnconfigured = "drop_unconfigured",
    /// From a container to another of its network on this host, past the bridge.
    DirectLocal = "direct_local",
    /// From a container straight into its network's VXLAN device.
    DirectRemote = "direct_remote",
    /// From a network's VXLAN device to its endpoint here, past the bridge.
    DirectArrived = "direct_arrived",
    /// Neighbour solicitation for a VIP answered.
    NdAnswered = "nd_answered",
    /// ICMP error carried to the backend that it is about.
    IcmpCarried = "icmp_carried",
    /// ICMP error about a flow translated as the flow is.
    IcmpTranslated = "icmp_translated",
    /// A socket that connects to a service was given its backend.
    SocketConnected = "socket_connected",
    /// A datagram of a socket to a service was given its backend.
    SocketSent = "socket_sent",
    /// A socket that connects to a service without a backend was refused.
    SocketRefused = "socket_refused",
    /// Packet of a container to a published port of its own node.
    FromOwnNode = "from_own_node",
    /// Packet of another node's process to a published port of this one.
    FromPeerNode = "from_peer_node",
    /// A flow that both ends have been heard of is kept from now on.
    Kept = "kept",
    /// There was no room to keep it: a flood may displace it.
    NotKept = "not_kept",
    /// A client's address is not admitted to the service.
    DropSource = "drop_source",
    /// A container's neighbour advertisement that speaks for another.
    DropSpoofedNd = "drop_spoofed_nd",
    /// The packet's lifetime is over.
    DropTtl = "drop_ttl",
    /// Not told to who watches: the ring buffer was full.
    EventsLost = "events_lost",
    /// ICMP sent: the packet is too big for the ingress network.
    TooBig = "too_big",
    /// From a container to an endpoint of another node of the segment, without encapsulation.
    SegmentSent = "segment_sent",
    /// To an endpoint here from another node of the segment, without encapsulation.
    SegmentArrived = "segment_arrived",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_with_reasons_and_differ() {
        assert_eq!(NAMES[Reason::SegmentArrived as usize], "segment_arrived");
        assert_eq!(NAMES.len(), Reason::SegmentArrived as usize + 1);
        for (i, name) in NAMES.iter().enumerate() {
            assert!(!NAMES[..i].contains(name), "{name}");
        }
        assert!(NAMES.len() <= crate::spec::COUNTERS.max_entries as usize);
    }
}

//! What became of a packet, in a sentence: the programs count by these words
//! (`mesh_ebpf_common::reason`), people read the sentences in `meshctl flows --drops`.

/// The sentence for a reason; for one of newer programs, that it is not known.
pub fn meaning(reason: &str) -> &'static str {
    MEANINGS
        .iter()
        .find(|(name, _)| *name == reason)
        .map_or("not known to this release of meshd", |(_, text)| text)
}

/// Packets with this reason were dropped.
pub fn is_drop(reason: &str) -> bool {
    reason.starts_with("drop_")
}

const MEANINGS: &[(&str, &str)] = &[
    ("pass", "not for a service: left to the host"),
    ("pass_fragment", "left to the host: a fragment whose first part was not seen"),
    ("pass_malformed", "left to the host: headers that contradict themselves"),
    ("pass_bridge", "left to the network's bridge: ARP, groups, the gateway"),
    (
        "pass_unknown_device",
        "left to the host or the bridge: the interface is no endpoint's",
    ),
    ("new_flow", "a backend was chosen for a new flow"),
    ("carried", "a client's packet, carried to the backend's node"),
    ("delivered", "a client's packet, given to a backend on this node"),
    ("reply_sent", "a backend's answer, sent to the client from this node"),
    (
        "reply_carried",
        "a backend's answer, carried back to the node that the client asked",
    ),
    ("vip_forwarded", "to a service's virtual address, sent on to its backend"),
    ("vip_reply", "a backend's answer, given the service's virtual address as its source"),
    ("hairpin", "a container that asked for its own service and was chosen itself"),
    (
        "port_translated",
        "a client's port, replaced because another flow at the backend had it",
    ),
    ("arp_answered", "an ARP request for a virtual address, answered"),
    ("echo_answered", "a ping of a virtual address, answered"),
    ("reset_no_backend", "answered with a TCP reset: the service has no ready backend"),
    ("reset_gone", "answered with a TCP reset: the flow's backend is gone"),
    (
        "unreachable_no_backend",
        "answered with ICMP port unreachable: the service has no ready backend",
    ),
    ("drop_malformed", "headers that contradict themselves"),
    ("drop_spoofed_ip", "a container sent from an address that is not its own"),
    ("drop_spoofed_mac", "a container sent from an Ethernet address that is not its own"),
    ("drop_spoofed_arp", "a container spoke for another in ARP"),
    ("drop_ipv6", "a container sent IPv6 in a network without it"),
    ("drop_ethertype", "a container sent neither IP nor ARP, or a VLAN tag"),
    ("drop_fragment", "a fragment to a virtual address whose first part was not seen"),
    ("drop_vip_protocol", "to a virtual address, but neither TCP, UDP nor ping"),
    ("drop_unknown_peer", "came through the ingress network from no known node"),
    (
        "drop_unknown_endpoint",
        "came through the ingress network for an endpoint that is not on this node",
    ),
    ("drop_unpublished", "carried to an endpoint here, but to no published port"),
    ("drop_no_port", "every client port that was tried at the backend is taken"),
    ("drop_reset", "a TCP reset with nothing to send it to"),
    (
        "drop_unanswered",
        "no backend, and not of a kind that is answered: IP options, a fragment, or a wrong checksum",
    ),
    ("drop_no_interface", "the backend is said to be here, but its interface is gone"),
    ("drop_failed", "the kernel refused to change or send the packet, or a map is full"),
    ("drop_unconfigured", "this node has no ingress device or no uplink yet"),
    (
        "direct_local",
        "between two containers of one network on this node, past the bridge",
    ),
    ("direct_remote", "from a container straight into its network's VXLAN device"),
    ("direct_arrived", "from a network's VXLAN device straight to its container"),
    ("nd_answered", "a neighbour solicitation for a virtual address, answered"),
    ("icmp_carried", "an ICMP error, carried to the backend whose flow it is about"),
    ("icmp_translated", "an ICMP error about a flow, translated as the flow is"),
    ("socket_connected", "a socket that connected to a service and was given its backend"),
    ("socket_sent", "a socket's datagram to a service, given its backend"),
    (
        "socket_refused",
        "a socket's connection to a service without a ready backend, refused",
    ),
    ("from_own_node", "from a container to a published port of its own node"),
    ("from_peer_node", "from another node's process to a published port of this one"),
    ("kept", "a flow that both ends were heard of: kept from then on"),
    ("not_kept", "no room to keep such a flow: a flood may displace it"),
    (
        "drop_source",
        "the client's address is not admitted to the service (--source-range)",
    ),
    ("drop_spoofed_nd", "a container spoke for another in neighbour discovery"),
    ("drop_ttl", "the packet's lifetime (TTL, hop limit) is over"),
    ("events_lost", "events that meshctl flows had no room for"),
    (
        "too_big",
        "answered with ICMP: longer than the ingress network takes, and must not be fragmented",
    ),
    (
        "segment_sent",
        "from a container straight to another node of the segment, without encapsulation",
    ),
    (
        "segment_arrived",
        "from another node of the segment straight to its container, without encapsulation",
    ),
];

#[cfg(test)]
mod tests {
    use mesh_ebpf_common::reason;

    use super::*;

    #[test]
    fn every_reason_has_a_sentence() {
        for name in reason::NAMES {
            let text = MEANINGS.iter().find(|(n, _)| n == name).map(|(_, text)| *text);
            assert!(text.is_some_and(|t| t.len() > 10 && !t.contains('\n')), "{name}: {text:?}");
        }
        for (i, (name, _)) in MEANINGS.iter().enumerate() {
            assert!(reason::NAMES.contains(name), "{name} is no reason");
            assert!(MEANINGS[..i].iter().all(|(n, _)| n != name), "{name} is there twice");
        }
        assert_eq!(meaning("of_tomorrow"), "not known to this release of meshd");
    }

    #[test]
    fn drops_are_told_from_the_rest() {
        assert!(is_drop("drop_spoofed_ip") && !is_drop("pass") && !is_drop("reset_gone"));
    }
}

//! The table as text for `nft -f`. The rules are fixed; a value fills the sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_core::nft::{BridgeRules, Nft};

use crate::{error::Error, link};

/// Name of the table, family inet.
pub(super) const TABLE: &str = "meshd";
/// Removes the table, whether there is one or not.
pub(super) const REMOVE: &str = "add table inet meshd\ndelete table inet meshd\n";

/// Each set's name, type, and whether its elements are ranges. `nets` is a record for whoever reads
/// the table, this program first: which range is which bridge's.
const SETS: [(&str, &str, bool); 21] = [
    ("peers4", "ipv4_addr", false),
    ("peers6", "ipv6_addr", false),
    ("vtep4", "ipv4_addr", false),
    ("vtep6", "ipv6_addr", false),
    ("bridges", "ifname", false),
    ("internal", "ifname", false),
    ("ingress_dev", "ifname", false),
    ("ours", "ifname", false),
    ("same", "ifname . ifname", false),
    ("nets4", "ifname . ipv4_addr", true),
    ("nets6", "ifname . ipv6_addr", true),
    ("gateways4", "ifname . ipv4_addr", false),
    ("gateways6", "ifname . ipv6_addr", false),
    ("all_gateways4", "ipv4_addr", false),
    ("all_gateways6", "ipv6_addr", false),
    ("ingress4", "ipv4_addr", true),
    ("ingress6", "ipv6_addr", true),
    ("way_out4", "ipv4_addr", true),
    ("way_out6", "ipv6_addr", true),
    ("names", "ifname", false),
    ("resolvers", "ipv4_addr", false),
];

/// The rules. Every verdict is about our own bridges and devices: the policy is to accept, and what
/// concerns nobody here is never judged. VXLAN between peers is kept out of conntrack: every flow
/// inside has an outer source port of its own, and a busy host would fill the table with them. Every
/// packet between containers passes these chains, twice: so theirs is the shortest way through each, without
/// a look at the routing table (fib), and past what `input` has to say of others.
const CHAINS: &str = r#"
	chain vxlan {
		type filter hook prerouting priority raw; policy accept;
		udp dport 4789 jump to_vtep
	}
	chain to_vtep {
		ip daddr @vtep4 ip saddr @peers4 notrack accept
		ip6 daddr @vtep6 ip6 saddr @peers6 notrack accept
		fib daddr type local jump from_peer
	}
	chain from_peer {
		ip saddr @peers4 notrack accept
		ip6 saddr @peers6 notrack accept
		counter drop
	}
	chain vxlan_out {
		type filter hook output priority raw; policy accept;
		udp dport 4789 ip daddr @peers4 notrack accept
		udp dport 4789 ip6 daddr @peers6 notrack accept
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname @bridges jump from_bridge
		oifname @bridges jump to_bridge
	}
	chain from_bridge {
		iifname . oifname @same accept
		oifname @bridges counter drop
		iifname @internal counter drop
		accept
	}
	chain to_bridge {
		oifname @internal counter drop
		ct state established,related accept
		iifname @ingress_dev ip saddr @ingress4 accept
		iifname @ingress_dev ip6 saddr @ingress6 accept
		counter drop
	}
	chain input {
		type filter hook input priority filter; policy accept;
		udp dport 4789 ct state untracked accept
		iifname @bridges jump to_host
		iifname != @ours iifname != "lo" ip daddr @ingress4 counter drop
		iifname != @ours iifname != "lo" ip6 daddr @ingress6 counter drop
	}
	chain to_host {
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		ct state established,related accept
		iifname . ip daddr @gateways4 jump to_gateway
		iifname . ip6 daddr @gateways6 jump to_gateway
		ip daddr @all_gateways4 counter drop
		ip6 daddr @all_gateways6 counter drop
		iifname @internal counter drop
	}
	chain to_gateway {
		udp dport 53 accept
		tcp dport 53 accept
		icmp type echo-request accept
		icmpv6 type echo-request accept
		counter drop
	}
	chain names {
		type nat hook prerouting priority dstnat; policy accept;
		iifname @names ip daddr @resolvers udp dport 53 redirect
		iifname @names ip daddr @resolvers tcp dport 53 redirect
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @way_out4 oifname != @ours ip daddr != @ingress4 masquerade
		ip6 saddr @way_out6 oifname != @ours ip6 daddr != @ingress6 masquerade
	}
"#;

/// The elements of the sets, by set, as they are written.
pub(super) type Elements = BTreeMap<&'static str, BTreeSet<String>>;

/// The whole table, in one transaction.
///
/// # Errors
/// A device name that is none.
pub(super) fn render(nft: &Nft) -> Result<String, Error> {
    for name in nft.bridges.keys().chain(Some(&nft.ingress_dev).filter(|d| !d.is_empty())) {
        link::check_name(name)?;
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(Error::Invalid {
                what: "interface name",
                value: name.clone(),
                want: "letters, digits, - _ and .",
            });
        }
    }
    let elements = elements(nft);
    let mut text = format!("{REMOVE}table inet {TABLE} {{\n");
    for (name, kind, ranges) in &SETS {
        let flags = if *ranges { "; flags interval" } else { "" };
        // Writing to a string can not fail.
        let _ = write!(text, "\tset {name} {{ type {kind}{flags}");
        if let Some(rows) = elements.get(name).filter(|rows| !rows.is_empty()) {
            let rows = rows.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let _ = write!(text, "; elements = {{ {rows} }}");
        }
        text.push_str("; }\n");
    }
    text.push_str(CHAINS);
    text.push_str("}\n");
    Ok(text)
}

/// What the sets hold for a value.
pub(super) fn elements(nft: &Nft) -> Elements {
    let mut sets = Elements::new();
    let mut put = |set: &'static str, element: String| {
        sets.entry(set).or_default().insert(element);
    };
    let of = |v4: &'static str, v6: &'static str, ip: IpAddr| if ip.is_ipv4() { v4 } else { v6 };
    for peer in &nft.peers {
        put(of("peers4", "peers6", *peer), peer.to_string());
    }
    if let Some(vtep) = nft.vtep {
        put(of("vtep4", "vtep6", vtep), vtep.to_string());
    }
    if !nft.ingress_dev.is_empty() {
        put("ingress_dev", quoted(&nft.ingress_dev));
        put("ours", quoted(&nft.ingress_dev));
    }
    for resolver in &nft.resolvers {
        put("resolvers", resolver.to_string());
    }
    for net in nft.ingress.iter().copied() {
        put(of("ingress4", "ingress6", net.addr()), range(net));
    }
    for (name, rules) in &nft.bridges {
        let name = quoted(name);
        put("bridges", name.clone());
        put("ours", name.clone());
        put("same", format!("{name} . {name}"));
        if rules.internal {
            put("internal", name.clone());
        }
        if rules.names {
            put("names", name.clone());
        }
        for net in &rules.subnets {
            put(of("nets4", "nets6", net.addr()), format!("{name} . {}", range(*net)));
            if !rules.internal {
                put(of("way_out4", "way_out6", net.addr()), range(*net));
            }
        }
        for gateway in &rules.gateways {
            put(of("gateways4", "gateways6", *gateway), format!("{name} . {gateway}"));
            put(of("all_gateways4", "all_gateways6", *gateway), gateway.to_string());
        }
    }
    sets
}

/// The value that its own table is read as: ranges without host bits, lists sorted.
pub(super) fn canonical(nft: &Nft) -> Nft {
    let sorted = |rules: &BridgeRules| BridgeRules {
        subnets: rules
            .subnets
            .iter()
            .map(IpNet::trunc)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        gateways: rules.gateways.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        internal: rules.internal,
        names: rules.names,
    };
    Nft {
        peers: nft.peers.clone(),
        vtep: nft.vtep,
        bridges: nft.bridges.iter().map(|(name, rules)| (name.clone(), sorted(rules))).collect(),
        ingress: nft.ingress.iter().map(IpNet::trunc).collect(),
        ingress_dev: nft.ingress_dev.clone(),
        resolvers: nft.resolvers.clone(),
    }
}

/// An interface name as an element.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// A range as an element: one address is written without its prefix length, as `nft` shows it.
pub(super) fn range(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.trunc().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(networks: u8) -> Nft {
        let rules = |n: u8| BridgeRules {
            subnets: vec![format!("10.{n}.0.7/24").parse().unwrap()],
            gateways: vec![[10, n, 0, 1].into()],
            internal: n.is_multiple_of(2),
            names: false,
        };
        Nft {
            bridges: (0..networks).map(|n| (format!("mb-{n}"), rules(n))).collect(),
            ..Nft::default()
        }
    }

    #[test]
    fn networks_add_elements_and_no_rules() {
        let (few, many) = (render(&value(1)).unwrap(), render(&value(200)).unwrap());
        assert_eq!(few.lines().count(), many.lines().count());
        assert!(many.contains("\"mb-199\" . 10.199.0.0/24"), "host bits are cut off");
    }

    #[test]
    fn internal_networks_have_no_way_out() {
        let sets = elements(&value(3));
        assert_eq!(sets["way_out4"], BTreeSet::from(["10.1.0.0/24".to_owned()]));
        assert_eq!(sets["internal"], BTreeSet::from([quoted("mb-0"), quoted("mb-2")]));
        assert_eq!(sets["bridges"].len(), 3);
    }

    #[test]
    fn a_name_can_not_become_a_rule() {
        for bad in ["a\"b", "a;b", "a b", "$x", "@x", ""] {
            let mut nft = value(1);
            nft.bridges.insert(bad.into(), nft.bridges["mb-0"].clone());
            assert!(render(&nft).is_err(), "{bad}");
            let nft = Nft {
                ingress_dev: bad.into(),
                ..Nft::default()
            };
            assert!(bad.is_empty() || render(&nft).is_err(), "{bad}");
        }
    }
}

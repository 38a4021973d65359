//! Reads what `nft -j list table` prints (libnftables-json(5)): the elements of the sets, and all the
//! rest to compare with what it prints of a fresh table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_core::nft::{BridgeRules, Nft};
use serde_json::Value;

use super::ruleset;

/// The table without elements, handles and counts. Rules keep their order, which matters; sets and
/// chains are shown in none that does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skeleton {
    objects: BTreeSet<String>,
    rules: Vec<String>,
}

/// A listing, taken apart.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) skeleton: Skeleton,
    elements: BTreeMap<String, Vec<Value>>,
}

impl Listing {
    /// `None` when the text is no listing.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut document: Value = serde_json::from_str(text).ok()?;
        let mut listing = Self {
            skeleton: Skeleton {
                objects: BTreeSet::new(),
                rules: Vec::new(),
            },
            elements: BTreeMap::new(),
        };
        for object in document.get_mut("nftables")?.as_array_mut()? {
            let (kind, body) = object.as_object_mut()?.iter_mut().next()?;
            let body = body.as_object_mut()?;
            body.remove("handle");
            match kind.as_str() {
                "metainfo" => {}
                "rule" => {
                    body.get_mut("expr")?.as_array_mut()?.iter_mut().for_each(forget_counts);
                    listing.skeleton.rules.push(object.to_string());
                }
                "set" => {
                    let name = body.get("name")?.as_str()?.to_owned();
                    if let Some(Value::Array(elements)) = body.remove("elem") {
                        listing.elements.insert(name, elements);
                    }
                    listing.skeleton.objects.insert(object.to_string());
                }
                _ => {
                    listing.skeleton.objects.insert(object.to_string());
                }
            }
        }
        Some(listing)
    }

    /// The value that the sets hold; `None` when no value has just these elements.
    pub(super) fn value(&self) -> Option<Nft> {
        let mut nft = Nft::default();
        for bridge in self.of("bridges") {
            nft.bridges.insert(
                bridge.as_str()?.into(),
                BridgeRules {
                    subnets: vec![],
                    gateways: vec![],
                    internal: false,
                    names: false,
                },
            );
        }
        for bridge in self.of("internal") {
            nft.bridges.get_mut(bridge.as_str()?)?.internal = true;
        }
        for bridge in self.of("names") {
            nft.bridges.get_mut(bridge.as_str()?)?.names = true;
        }
        for resolver in self.of("resolvers") {
            nft.resolvers.insert(resolver.as_str()?.parse().ok()?);
        }
        for set in ["nets4", "nets6"] {
            for element in self.of(set) {
                let (bridge, net) = pair(element)?;
                nft.bridges.get_mut(bridge)?.subnets.push(range(net)?);
            }
        }
        for set in ["gateways4", "gateways6"] {
            for element in self.of(set) {
                let (bridge, gateway) = pair(element)?;
                nft.bridges.get_mut(bridge)?.gateways.push(address(gateway)?);
            }
        }
        for set in ["peers4", "peers6"] {
            for element in self.of(set) {
                nft.peers.insert(address(element)?);
            }
        }
        if let Some(element) = self.of("vtep4").first().or(self.of("vtep6").first()) {
            nft.vtep = Some(address(element)?);
        }
        for net in self.of("ingress4").iter().chain(self.of("ingress6")) {
            nft.ingress.insert(range(net)?);
        }
        nft.ingress_dev = self.of("ingress_dev").first().map_or(Some(""), Value::as_str)?.into();
        let nft = ruleset::canonical(&nft);
        (self.written()? == ruleset::elements(&nft)).then_some(nft)
    }

    fn of(&self, set: &str) -> &[Value] {
        self.elements.get(set).map_or(&[], Vec::as_slice)
    }

    /// All elements as they would have been written.
    fn written(&self) -> Option<BTreeMap<&str, BTreeSet<String>>> {
        let rows = self.elements.iter().filter(|(_, rows)| !rows.is_empty());
        rows.map(|(set, rows)| Some((set.as_str(), rows.iter().map(|e| text(set, e)).collect::<Option<_>>()?)))
            .collect()
    }
}

fn forget_counts(expression: &mut Value) {
    if let Some(counter) = expression.get_mut("counter") {
        *counter = Value::Null;
    }
}

/// The two parts of a concatenation, the first a name.
fn pair(element: &Value) -> Option<(&str, &Value)> {
    match element.get("concat")?.as_array()?.as_slice() {
        [name, second] => Some((name.as_str()?, second)),
        _ => None,
    }
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn range(value: &Value) -> Option<IpNet> {
    match value.get("prefix") {
        Some(prefix) => {
            let len = prefix.get("len")?.as_u64()?.try_into().ok()?;
            IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, len).ok()
        }
        None => address(value).map(IpNet::from),
    }
}

fn text(set: &str, element: &Value) -> Option<String> {
    if let Some((name, second)) = pair(element) {
        return Some(format!("{} . {}", ruleset::quoted(name), one(set == "same", second)?));
    }
    one(matches!(set, "bridges" | "internal" | "ingress_dev" | "ours" | "names"), element)
}

fn one(is_name: bool, value: &Value) -> Option<String> {
    if is_name {
        value.as_str().map(ruleset::quoted)
    } else {
        range(value).map(ruleset::range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "meshd", "handle": 2}},
        {"set": {"name": "peers4", "type": "ipv4_addr", "handle": 5, "elem": ["10.0.0.1"]}},
        {"set": {"name": "bridges", "type": "ifname", "handle": 6, "elem": ["mb-a"]}},
        {"set": {"name": "ours", "type": "ifname", "handle": 6, "elem": ["mb-a"]}},
        {"set": {"name": "same", "handle": 7, "elem": [{"concat": ["mb-a", "mb-a"]}]}},
        {"set": {"name": "way_out4", "handle": 8, "elem": [{"prefix": {"addr": "10.1.0.0", "len": 24}}]}},
        {"set": {"name": "nets4", "handle": 8, "elem": [{"concat": ["mb-a", {"prefix": {"addr": "10.1.0.0", "len": 24}}]}]}},
        {"rule": {"chain": "b", "handle": 13, "expr": [{"counter": {"packets": 7, "bytes": 9}}, {"drop": null}]}}]}"#;

    #[test]
    fn elements_give_the_value() {
        let nft = Listing::read(TEXT).and_then(|l| l.value()).unwrap_or_default();
        assert_eq!(nft.bridges["mb-a"].subnets, ["10.1.0.0/24".parse::<IpNet>().unwrap_or_default()]);
        assert_eq!(nft.peers.len(), 1);
    }

    #[test]
    fn counts_and_handles_do_not_matter_and_rules_do() {
        let skeleton = |text: &str| Listing::read(text).map(|l| l.skeleton);
        assert_eq!(
            skeleton(TEXT),
            skeleton(
                &TEXT
                    .replace(": 7, ", ": 70, ")
                    .replace(": 13", ": 14")
                    .replace("10.0.0.1", "10.0.0.2")
            )
        );
        assert_ne!(skeleton(TEXT), skeleton(&TEXT.replace("drop", "accept")));
    }

    #[test]
    fn what_does_not_fit_is_no_value() {
        for (old, new) in [
            ("mb-a\"]}},\n", "mb-b\"]}},\n"),
            ("\"10.0.0.1\"", "7"),
            ("24", "240"),
            ("\"len\": 24}}]}]", "\"len\": 23}}]}]"),
        ] {
            assert_ne!(TEXT.replace(old, new), TEXT, "{old}");
            assert_eq!(Listing::read(&TEXT.replace(old, new)).and_then(|l| l.value()), None, "{old}");
        }
        for junk in [
            "",
            "{}",
            "[]",
            "{\"nftables\": 1}",
            "{\"nftables\": [1]}",
            "{\"nftables\": [{\"set\": {}}]}",
        ] {
            assert!(Listing::read(junk).is_none(), "{junk}");
        }
    }
}

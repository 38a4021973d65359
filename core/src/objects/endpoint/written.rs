//! Endpoints as they are written and read: all in one object.

use std::net::{IpAddr, Ipv6Addr};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Endpoint, EndpointState, Health, Rare, Sandbox, USUAL};
use crate::{
    Id, Mac,
    objects::{Labels, Port, Seldom},
};

#[derive(Serialize)]
struct Written<'a> {
    id: Id,
    version: u64,
    created_at: Timestamp,
    name: &'a str,
    labels: &'a Seldom<Labels>,
    node: Id,
    network: Id,
    ip: IpAddr,
    ip6: Option<&'a Ipv6Addr>,
    mac: Mac,
    aliases: &'a Seldom<Vec<String>>,
    service: Option<Id>,
    sandbox: &'a Sandbox,
    ifname: &'a str,
    state: EndpointState,
    slot: u32,
    weight: u32,
    ports: &'a Seldom<Vec<Port>>,
    stopping: Option<&'a Timestamp>,
    health: Health,
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            id: self.id,
            version: self.version,
            created_at: self.created_at(),
            name: &self.name,
            labels: &self.labels,
            node: self.node,
            network: self.network,
            ip: self.ip,
            ip6: self.ip6.as_deref(),
            mac: self.mac(),
            aliases: &self.aliases,
            service: self.service,
            sandbox: &self.sandbox,
            ifname: &self.ifname,
            state: self.state,
            slot: self.slot,
            weight: self.weight,
            ports: &self.ports,
            stopping: self.stopping.as_deref(),
            health: self.health,
        };
        written.serialize(to)
    }
}

#[derive(Deserialize)]
struct Read {
    id: Id,
    version: u64,
    created_at: Timestamp,
    name: Box<str>,
    labels: Seldom<Labels>,
    node: Id,
    network: Id,
    ip: IpAddr,
    #[serde(default)]
    ip6: Option<Box<Ipv6Addr>>,
    mac: Mac,
    aliases: Seldom<Vec<String>>,
    service: Option<Id>,
    sandbox: Sandbox,
    ifname: String,
    state: EndpointState,
    slot: u32,
    #[serde(default = "usual_weight")]
    weight: u32,
    #[serde(default)]
    ports: Seldom<Vec<Port>>,
    #[serde(default)]
    stopping: Option<Box<Timestamp>>,
    #[serde(default)]
    health: Health,
}

fn usual_weight() -> u32 {
    USUAL.weight
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = Read::deserialize(from)?;
        let rare = Rare {
            labels: read.labels,
            ip6: read.ip6,
            mac: Some(read.mac).filter(|mac| *mac != Mac::for_ip(read.ip)),
            aliases: read.aliases,
            ifname: read.ifname,
            weight: read.weight,
            ports: read.ports,
            stopping: read.stopping,
            health: read.health,
        };
        Ok(Self {
            version: read.version,
            service: read.service,
            sandbox: read.sandbox,
            state: read.state,
            slot: read.slot,
            rare: (rare != USUAL).then(|| Box::new(rare)),
            ..Self::new(read.id, read.created_at, &read.name, (read.node, read.network), read.ip)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL_ONE: &str = r#"{"id":"000000000001","version":7,"created_at":"2026-01-01T00:00:00.123456789Z","name":"web","labels":{},"node":"000000000002","network":"000000000003","ip":"10.0.0.9","ip6":null,"mac":"MAC","aliases":[],"service":"000000000004","sandbox":{"container":"","netns":"","inode":5,"cookie":0,"routed":false,"handover":null},"ifname":"","state":"ready","slot":8,"weight":1,"ports":[],"stopping":null,"health":"well"}"#;

    fn usual() -> String {
        let mac = Mac::for_ip([10, 0, 0, 9].into());
        USUAL_ONE.replace("MAC", &mac.to_string())
    }

    #[test]
    fn is_read_as_it_was_written() {
        let one = usual();
        let own_mac = one.replace(&Mac::for_ip([10, 0, 0, 9].into()).to_string(), "02:00:00:00:00:09");
        for (text, is_usual) in [
            (one.clone(), true),
            (own_mac, false),
            (one.replace(r#""labels":{}"#, r#""labels":{"a":"b"}"#), false),
            (one.replace(r#""ip6":null"#, r#""ip6":"fd00::9""#), false),
            (one.replace(r#""aliases":[]"#, r#""aliases":["www"]"#), false),
            (one.replace(r#""ifname":"""#, r#""ifname":"eth0""#), false),
            (one.replace(r#""weight":1"#, r#""weight":0"#), false),
            (one.replace(r#""stopping":null"#, r#""stopping":"2026-01-01T00:00:09Z""#), false),
            (one.replace(r#""health":"well""#, r#""health":"unwell""#), false),
        ] {
            let read: Endpoint = serde_json::from_str(&text).expect(&text);
            assert_eq!(serde_json::to_string(&read).ok().as_deref(), Some(&*text));
            assert_eq!(read.rare.is_none(), is_usual, "{text}");
        }
    }

    #[test]
    fn what_an_older_release_left_out_is_as_usual() {
        let mut value: serde_json::Value = serde_json::from_str(&usual()).expect("an endpoint");
        let all: Endpoint = serde_json::from_value(value.clone()).expect("an endpoint");
        for key in ["ip6", "weight", "ports", "stopping", "health"] {
            value.as_object_mut().expect("an object").remove(key);
        }
        assert_eq!(serde_json::from_value::<Endpoint>(value).ok(), Some(all));
    }

    #[test]
    fn what_was_set_to_the_usual_is_the_same() {
        let usual: Endpoint = serde_json::from_str(&usual()).expect("an endpoint");
        let mut other = usual.clone();
        other.weight = 5;
        assert_ne!(other, usual);
        other.weight = 1;
        other.set_mac(Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(other.mac(), Mac([2, 0, 0, 0, 0, 9]));
        other.set_mac(Mac::for_ip(other.ip));
        other.ifname = "eth0".to_owned();
        assert_ne!(other, usual);
        other.seen_from(Id::from_bits(9));
        assert_eq!(other, usual);
        assert!(other.rare.is_none());
    }
}

//! Results, in and out (specification section 5, "ADD Success"): those of earlier plugins are passed on
//! with whatever they hold, and ours is put behind them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_api::rest::AttachmentView;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::version::Version;

/// A result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Interfaces, of the host and of the container.
    #[serde(deserialize_with = "or_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(deserialize_with = "or_default")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(deserialize_with = "or_default")]
    pub routes: Vec<Route>,
    /// Resolver.
    #[serde(deserialize_with = "or_default")]
    pub dns: Dns,
    /// What later versions add.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container that it is in; absent or empty: the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// What later versions add.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// With its prefix length.
    pub address: IpNet,
    /// Gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Place of its interface among the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Before 1.0.0: `4` or `6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What later versions add.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Its destination.
    pub dst: IpNet,
    /// Its next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// What later versions add.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What a container's resolver shall be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of servers.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to search.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Go writes null for an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::deserialize(d).map(Option::unwrap_or_default)
}

impl Dns {
    /// This, and where it says nothing, `other`.
    #[must_use]
    pub fn over(self, other: Self) -> Self {
        let or = |a: Vec<String>, b| if a.is_empty() { b } else { a };
        Self {
            nameservers: or(self.nameservers, other.nameservers),
            domain: self.domain.or(other.domain),
            search: or(self.search, other.search),
            options: or(self.options, other.options),
        }
    }
}

impl Outcome {
    /// Puts what was attached behind what is there. `netns` is CNI_NETNS.
    pub fn attached(&mut self, views: &[AttachmentView], netns: &str) {
        for view in views {
            let e = &view.endpoint;
            self.interfaces.push(Interface {
                name: view.host_ifname.clone(),
                mtu: e.mtu,
                ..Interface::default()
            });
            let inside = self.interfaces.len();
            self.interfaces.push(Interface {
                name: e.ifname.clone(),
                mac: Some(e.mac.to_string()),
                mtu: e.mtu,
                sandbox: Some(netns.to_owned()),
                ..Interface::default()
            });
            let ip6 = e.ip6.map(|ip| (IpAddr::V6(ip), e.prefix_len6, e.gateway6));
            for (ip, prefix, gateway) in [(e.ip, e.prefix_len, e.gateway)].into_iter().chain(ip6) {
                let alone = IpNet::from(ip);
                self.ips.push(Ip {
                    address: prefix.and_then(|p| IpNet::new(ip, p).ok()).unwrap_or(alone),
                    gateway,
                    interface: Some(inside),
                    version: None,
                    rest: Map::new(),
                });
            }
            self.routes.extend(view.default_gateways.iter().map(|gw| Route {
                dst: everywhere(*gw),
                gw: Some(*gw),
                rest: Map::new(),
            }));
        }
    }

    /// The document in that version of the specification.
    pub fn document(mut self, version: Version) -> Result<Value, serde_json::Error> {
        for interface in &mut self.interfaces {
            interface.mtu = interface.mtu.filter(|_| version >= Version::V110);
        }
        for ip in &mut self.ips {
            let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            ip.version = (version < Version::V100).then(|| family.to_owned());
        }
        let mut document = serde_json::to_value(self)?;
        document["cniVersion"] = version.as_str().into();
        Ok(document)
    }
}

/// The destination of default routes of an address's family.
pub fn everywhere(ip: IpAddr) -> IpNet {
    match ip {
        IpAddr::V4(_) => ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

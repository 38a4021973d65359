//! What is in a container's network namespace: read before another interface is put there, and to find
//! the one that a container engine has taken there.

use std::net::Ipv4Addr;

use mesh_core::Mac;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use crate::{error::Error, link, netns::Netns, socket::Socket};

/// A namespace's interfaces and routes, as far as another interface has to know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupied {
    /// Interfaces with their Ethernet addresses.
    pub links: Vec<(String, Option<Mac>)>,
    /// It has a default route for IPv4 over an interface that is not meshd's.
    pub routed: bool,
    /// See [`crate::netns::cookie`].
    pub cookie: u64,
}

impl Occupied {
    /// Reads the namespace at `path`.
    ///
    /// # Errors
    /// When there is none, it can not be entered, or the kernel refuses.
    pub async fn of(path: &str) -> Result<Self, Error> {
        let netns = Netns::open(path).map_err(Error::io(format!("open network namespace {path}")))?;
        let (socket, cookie) = Socket::open_with_cookie(&netns).await?;
        let devices = link::all(&socket).await?;
        let mut ask = RouteMessage::default();
        ask.header.address_family = link::family(Ipv4Addr::UNSPECIFIED.into());
        let rows = socket.dump("list routes", RouteNetlinkMessage::GetRoute(ask)).await?;
        // An endpoint that was removed just now may still have its interface there, and its routes.
        let is_ours = |index: u32| devices.iter().any(|d| d.index == index && d.group == link::PLACED);
        let is_default = |row: &RouteNetlinkMessage| {
            matches!(row, RouteNetlinkMessage::NewRoute(m) if m.header.destination_prefix_length == 0
                && m.header.kind == RouteType::Unicast && m.header.table == RouteHeader::RT_TABLE_MAIN
                && !m.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if is_ours(*index))))
        };
        let routed = rows.iter().any(is_default);
        Ok(Self {
            links: devices.into_iter().map(|d| (d.name, d.mac)).collect(),
            routed,
            cookie,
        })
    }

    /// The first of eth0, eth1, … that is free.
    pub fn free_name(&self) -> String {
        let is_free = |name: &String| self.links.iter().all(|(n, _)| n != name);
        // One more than there are interfaces.
        let mut names = (0..=self.links.len()).map(|n| format!("eth{n}"));
        names.find(is_free).unwrap_or_else(|| "eth0".to_owned())
    }

    /// The interface with that Ethernet address.
    pub fn with_mac(&self, mac: Mac) -> Option<&str> {
        self.links.iter().find(|(_, m)| *m == Some(mac)).map(|(n, _)| n.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_gap() {
        let occupied = |names: &[&str]| Occupied {
            links: names.iter().map(|n| ((*n).to_owned(), None)).collect(),
            ..Occupied::default()
        };
        assert_eq!(occupied(&["lo"]).free_name(), "eth0");
        assert_eq!(occupied(&["lo", "eth0", "eth2"]).free_name(), "eth1");
        assert_eq!(occupied(&["eth0", "eth1"]).free_name(), "eth2");
    }
}

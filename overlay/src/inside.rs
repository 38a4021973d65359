//! What a container has of an interface: read for those who ask whether it is still as it was made.

use ipnet::IpNet;
use mesh_core::{Mac, observed::SeenQueue};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{addr, error::Error, link, netns::Netns, queue, route, socket::Socket};

/// An interface in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is administratively up.
    pub up: bool,
    /// The queue that meshd gave it, which limits what leaves by it.
    pub queue: Option<SeenQueue>,
    /// Its addresses.
    pub addrs: Vec<IpNet>,
    /// Unicast routes over it, of every table, each with its next hop.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
}

/// Reads the interface of that name in the namespace at `netns`; `None` when there is none. Must be
/// called within a tokio runtime.
///
/// # Errors
/// [`Error::SandboxGone`] when there is no such namespace any more or another one is there; when the
/// kernel refuses.
pub async fn inspect(netns: &str, inode: u64, ifname: &str) -> Result<Option<Inside>, Error> {
    let netns = Netns::open_sandbox(netns, inode)?;
    let socket = Socket::open_in(&netns).await?;
    let Some(device) = link::find(&socket, ifname).await? else {
        return Ok(None);
    };
    let addrs = addr::all(&socket).await?.into_iter().filter(|a| a.index == device.index);
    let mut routes = Vec::new();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let mut ask = RouteMessage::default();
        ask.header.address_family = link::family(any);
        let rows = socket.dump("list routes", RouteNetlinkMessage::GetRoute(ask)).await?;
        let hops = rows.into_iter().filter_map(|row| match row {
            RouteNetlinkMessage::NewRoute(m) => route::hop(&m, any),
            _ => None,
        });
        routes.extend(
            hops.filter(|(index, ..)| *index == device.index)
                .map(|(_, dst, gateway)| (dst, gateway)),
        );
    }
    Ok(Some(Inside {
        mac: device.mac,
        mtu: device.mtu,
        up: device.up,
        queue: queue::at(&socket, &device).await?,
        addrs: addrs.map(|a| a.addr).collect(),
        routes,
    }))
}

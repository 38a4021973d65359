//! Routes of the main table. Those that meshd made carry its routing protocol number.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use mesh_core::desired::Route;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    error::Error,
    link::{self, Device},
    socket::Socket,
};

/// Routing protocol number of meshd's routes ("M" in ASCII); no other program is known to use it.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(77);

/// A unicast route of the main table.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) dst: IpNet,
    /// Index of the device, of the first one when there are several.
    pub(crate) index: u32,
    pub(crate) src: Option<IpAddr>,
    pub(crate) is_ours: bool,
}

/// Adds a route, or replaces meshd's own to the same destination. Another program's is left alone,
/// which is an error.
pub(crate) async fn add(socket: &Socket, route: &Route) -> Result<(), Error> {
    let request = || format!("add route {} over {}", route.dst, route.dev);
    let device = link::ours(socket, &route.dev, request).await?;
    let new = RouteNetlinkMessage::NewRoute(message(&device, route));
    match socket.change(request(), new.clone(), NLM_F_CREATE | NLM_F_EXCL).await {
        Err(e) if e.is(&[libc::EEXIST]) => {}
        done => return done,
    }
    let dst = route.dst.trunc();
    if let Some(other) = all(socket).await?.into_iter().find(|r| r.dst == dst && !r.is_ours) {
        let dev = link::all(socket)
            .await?
            .into_iter()
            .find(|d| d.index == other.index)
            .map_or(other.index.to_string(), |d| d.name);
        return Err(Error::RouteTaken { dst, dev });
    }
    socket.change(request(), new, NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Removes a route of meshd's. One that is gone already, or whose device is, is success.
pub(crate) async fn remove(socket: &Socket, route: &Route) -> Result<(), Error> {
    let Some(device) = link::find_ours(socket, &route.dev).await? else {
        return Ok(());
    };
    let del = RouteNetlinkMessage::DelRoute(message(&device, route));
    match socket
        .change(format!("remove route {} over {}", route.dst, route.dev), del, 0)
        .await
    {
        Err(e) if e.is(&[libc::ESRCH, libc::ENODEV]) => Ok(()),
        done => done,
    }
}

/// Gives a container its default route.
pub(crate) async fn add_default(socket: &Socket, device: &Device, gateway: IpAddr) -> Result<(), Error> {
    let mut m = header(gateway, 0);
    m.header.protocol = RouteProtocol::Boot;
    m.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(device.index)];
    let request = format!("add the default route over gateway {gateway} on {}", device.name);
    socket
        .change(request, RouteNetlinkMessage::NewRoute(m), NLM_F_CREATE | NLM_F_EXCL)
        .await
}

/// The unicast routes of the main table but for default routes, of both families.
pub(crate) async fn all(socket: &Socket) -> Result<Vec<Seen>, Error> {
    let mut seen = Vec::new();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let mut ask = RouteMessage::default();
        ask.header.address_family = link::family(any);
        let rows = socket.dump("list routes", RouteNetlinkMessage::GetRoute(ask)).await?;
        seen.extend(rows.into_iter().filter_map(|row| {
            if let RouteNetlinkMessage::NewRoute(m) = row {
                read(&m)
            } else {
                None
            }
        }));
    }
    Ok(seen)
}

/// Meshd's routes over these devices.
pub(crate) fn ours(all: &[Seen], devices: &HashMap<u32, &Device>) -> impl Iterator<Item = Route> {
    all.iter().filter(|r| r.is_ours).filter_map(|r| {
        Some(Route {
            dst: r.dst,
            dev: devices.get(&r.index)?.name.clone(),
            src: r.src?,
        })
    })
}

fn read(m: &RouteMessage) -> Option<Seen> {
    let (mut table, mut dst, mut index, mut src) = (u32::from(m.header.table), None, None, None);
    for attribute in &m.attributes {
        match attribute {
            RouteAttribute::Table(v) => table = *v,
            RouteAttribute::Destination(v) => dst = address(v),
            RouteAttribute::Oif(v) => index = Some(*v),
            RouteAttribute::MultiPath(hops) => index = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::PrefSource(v) => src = address(v),
            _ => {}
        }
    }
    if m.header.kind != RouteType::Unicast || table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let dst = IpNet::new(dst?, m.header.destination_prefix_length)
        .ok()
        .filter(|d| d.prefix_len() > 0)?;
    Some(Seen {
        dst,
        index: index?,
        src,
        is_ours: m.header.protocol == PROTOCOL,
    })
}

/// Device, destination and next hop of a unicast route of any table. `any` is the unspecified
/// address of its family: the destination of a default route.
pub(crate) fn hop(m: &RouteMessage, any: IpAddr) -> Option<(u32, IpNet, Option<IpAddr>)> {
    if m.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut dst, mut index, mut gateway) = (any, None, None);
    for attribute in &m.attributes {
        match attribute {
            RouteAttribute::Destination(v) => dst = address(v)?,
            RouteAttribute::Oif(v) => index = Some(*v),
            RouteAttribute::Gateway(v) => gateway = address(v),
            _ => {}
        }
    }
    let dst = IpNet::new(dst, m.header.destination_prefix_length).ok()?;
    Some((index?, dst, gateway))
}

fn address(a: &RouteAddress) -> Option<IpAddr> {
    match a {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn message(device: &Device, route: &Route) -> RouteMessage {
    let dst = route.dst.trunc();
    let mut m = header(dst.addr(), dst.prefix_len());
    m.header.protocol = PROTOCOL;
    m.header.scope = RouteScope::Link;
    m.attributes = vec![
        RouteAttribute::Destination(dst.addr().into()),
        RouteAttribute::Oif(device.index),
        RouteAttribute::PrefSource(route.src.into()),
    ];
    m
}

pub(crate) fn header(family_of: IpAddr, prefix: u8) -> RouteMessage {
    let mut m = RouteMessage::default();
    m.header.address_family = link::family(family_of);
    m.header.destination_prefix_length = prefix;
    m.header.table = RouteHeader::RT_TABLE_MAIN;
    m.header.kind = RouteType::Unicast;
    m
}

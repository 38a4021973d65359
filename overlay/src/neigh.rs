//! Permanent neighbours: on a bridge they are what ARP and ND are answered from (neighbour suppression), on
//! the ingress VXLAN device they spare both altogether.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use mesh_core::{Mac, desired::Neigh};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use crate::{
    error::Error,
    link::{self, Device},
    socket::Socket,
    tables::Tables,
};

/// Adds a neighbour, or replaces what is known of the same address.
pub(crate) async fn add(socket: &Socket, neigh: &Neigh) -> Result<(), Error> {
    let device = link::ours(socket, &neigh.dev, || request(neigh)).await?;
    socket
        .change(request(neigh), added(&device, neigh), NLM_F_CREATE | NLM_F_REPLACE)
        .await?;
    socket.known.put_neigh(device.index, neigh);
    Ok(())
}

/// What is asked for by [`added`].
pub(crate) fn request(neigh: &Neigh) -> String {
    format!("add neighbour {} {} on {}", neigh.ip, neigh.mac, neigh.dev)
}

/// The request that adds a neighbour to its device.
pub(crate) fn added(device: &Device, neigh: &Neigh) -> RouteNetlinkMessage {
    let mut new = message(device, neigh.ip);
    new.header.state = NeighbourState::Permanent;
    new.attributes.push(NeighbourAttribute::LinkLayerAddress(neigh.mac.0.to_vec()));
    RouteNetlinkMessage::NewNeighbour(new)
}

/// Removes a neighbour. One that is gone already, or whose device is, is success.
pub(crate) async fn remove(socket: &Socket, neigh: &Neigh) -> Result<(), Error> {
    let Some(device) = link::find_ours(socket, &neigh.dev).await? else {
        return Ok(());
    };
    let del = RouteNetlinkMessage::DelNeighbour(message(&device, neigh.ip));
    match socket
        .change(format!("remove neighbour {} of {}", neigh.ip, neigh.dev), del, 0)
        .await
    {
        Err(e) if e.is(&[libc::ENOENT, libc::ENODEV]) => {}
        done => done?,
    }
    socket.known.remove_neigh(device.index, neigh);
    Ok(())
}

fn message(device: &Device, ip: IpAddr) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = link::family(ip);
    m.header.ifindex = device.index;
    m.attributes.push(NeighbourAttribute::Destination(ip.into()));
    m
}

/// The permanent neighbours on these devices.
pub(crate) async fn all(tables: &Tables, devices: &HashMap<u32, &Device>) -> Result<BTreeSet<Neigh>, Error> {
    let ask = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let read = |row| match row {
        RouteNetlinkMessage::NewNeighbour(m) => read(&m, devices.get(&m.header.ifindex)?),
        _ => None,
    };
    tables.rows("list neighbours", &ask, read).await
}

fn read(m: &NeighbourMessage, device: &Device) -> Option<Neigh> {
    if m.header.state != NeighbourState::Permanent {
        return None;
    }
    Some(Neigh {
        dev: device.name.clone(),
        ip: ip(m)?,
        mac: mac(m)?,
    })
}

/// The address that a message is about.
pub(crate) fn ip(m: &NeighbourMessage) -> Option<IpAddr> {
    m.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
        _ => None,
    })
}

/// Its Ethernet address.
pub(crate) fn mac(m: &NeighbourMessage) -> Option<Mac> {
    m.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(v) => v.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

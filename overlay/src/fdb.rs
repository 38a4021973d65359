//! Forwarding entries, in a bridge's table and in a VXLAN device's own.
//!
//! The same message reaches both (RTM_NEWNEIGH of AF_BRIDGE): NTF_MASTER means the bridge that the
//! device is a port of, NTF_SELF the device.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use mesh_core::{Mac, desired::Fdb};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use crate::{
    error::Error,
    link::{self, Device},
    socket::Socket,
    tables::Tables,
};

// include/uapi/linux/neighbour.h
const NUD_REACHABLE: u16 = 0x02;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;

/// Adds an entry, or replaces the one for the same Ethernet address.
pub(crate) async fn add(socket: &Socket, entry: &Fdb) -> Result<(), Error> {
    let device = link::ours(socket, &entry.dev, || request(entry)).await?;
    socket
        .change(request(entry), added(&device, entry), NLM_F_CREATE | NLM_F_REPLACE)
        .await?;
    socket.known.put(device.index, entry);
    Ok(())
}

/// What is asked for by [`added`].
pub(crate) fn request(entry: &Fdb) -> String {
    format!("add forwarding entry {} on {}", entry.mac, entry.dev)
}

/// The request that adds an entry to its device.
pub(crate) fn added(device: &Device, entry: &Fdb) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewNeighbour(message(device, entry))
}

/// Removes an entry. One that is gone already, or whose device is, is success.
pub(crate) async fn remove(socket: &Socket, entry: &Fdb) -> Result<(), Error> {
    let Some(device) = link::find_ours(socket, &entry.dev).await? else {
        return Ok(());
    };
    if entry.vtep.is_none() && device.master.is_none() {
        return Ok(());
    }
    let del = RouteNetlinkMessage::DelNeighbour(message(&device, entry));
    match socket
        .change(format!("remove forwarding entry {} of {}", entry.mac, entry.dev), del, 0)
        .await
    {
        Err(e) if e.is(&[libc::ENOENT, libc::ENODEV]) => {}
        done => done?,
    }
    socket.known.remove(device.index, entry);
    Ok(())
}

fn message(device: &Device, entry: &Fdb) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = AddressFamily::Bridge;
    m.header.ifindex = device.index;
    m.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    match entry.vtep {
        Some(vtep) => {
            m.header.flags = NeighbourFlags::Own;
            m.header.state = NeighbourState::Other(NUD_NOARP | NUD_PERMANENT);
            m.attributes.push(NeighbourAttribute::Destination(vtep.into()));
        }
        None => {
            m.header.flags = NeighbourFlags::Controller;
            // Static, but not local: a permanent entry would say that the host itself has the address.
            m.header.state = NeighbourState::Other(NUD_NOARP | NUD_REACHABLE);
        }
    }
    m
}

/// The static entries on these devices. Left out are a device's own address, what was learned, and
/// multicast.
pub(crate) async fn all(tables: &Tables, devices: &HashMap<u32, &Device>) -> Result<BTreeSet<Fdb>, Error> {
    let mut ask = NeighbourMessage::default();
    ask.header.family = AddressFamily::Bridge;
    let read = |row| match row {
        RouteNetlinkMessage::NewNeighbour(m) => read(&m, devices.get(&m.header.ifindex)?),
        _ => None,
    };
    tables
        .rows("list forwarding entries", &RouteNetlinkMessage::GetNeighbour(ask), read)
        .await
}

fn read(m: &NeighbourMessage, device: &Device) -> Option<Fdb> {
    let row = row(m).filter(|row| row.is_put)?;
    Some(Fdb {
        dev: device.name.clone(),
        mac: row.mac,
        vtep: row.vtep,
    })
}

/// What a message says of one entry.
pub(crate) struct Row {
    pub(crate) mac: Mac,
    /// Of an entry of a VXLAN device's own.
    pub(crate) vtep: Option<IpAddr>,
    /// It is the bridge's.
    pub(crate) in_bridge: bool,
    /// It is one that somebody put there for good.
    pub(crate) is_put: bool,
}

/// Reads it; `None` without an Ethernet address.
pub(crate) fn row(m: &NeighbourMessage) -> Option<Row> {
    let (mut mac, mut vtep, mut in_bridge) = (None, None, false);
    for attribute in &m.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(v) => mac = v.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Destination(v) => vtep = address(v),
            NeighbourAttribute::Controller(_) => in_bridge = true,
            _ => {}
        }
    }
    let state = u16::from(m.header.state);
    let is_put = if in_bridge {
        vtep = None;
        state & (NUD_NOARP | NUD_PERMANENT) == NUD_NOARP
    } else {
        vtep.is_some() && state & NUD_PERMANENT != 0
    };
    Some(Row {
        mac: mac?,
        vtep,
        in_bridge,
        is_put,
    })
}

fn address(a: &NeighbourAddress) -> Option<IpAddr> {
    match a {
        NeighbourAddress::Inet(a) => Some((*a).into()),
        NeighbourAddress::Inet6(a) => Some((*a).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
        }
        _ => None,
    }
}

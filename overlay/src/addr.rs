//! Addresses of links.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use crate::{
    error::Error,
    link::{self, Device},
    socket::Socket,
};

/// One address as seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) index: u32,
    pub(crate) addr: IpNet,
    pub(crate) is_global: bool,
}

/// Adds an address, for which the kernel makes no route of its own.
pub(crate) async fn add(socket: &Socket, device: &Device, addr: IpNet) -> Result<(), Error> {
    let mut new = message(device.index, addr);
    new.attributes
        .push(AddressAttribute::Flags(AddressFlags::Noprefixroute | no_dad(addr)));
    change(socket, device, addr, new, NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Adds an address and, as the kernel does, the route to its network.
pub(crate) async fn add_with_route(socket: &Socket, device: &Device, addr: IpNet) -> Result<(), Error> {
    let mut new = message(device.index, addr);
    new.attributes.push(AddressAttribute::Flags(no_dad(addr)));
    change(socket, device, addr, new, NLM_F_CREATE | NLM_F_EXCL).await
}

/// Duplicate address detection is left out: the control plane gave the address once, or to every host
/// (a gateway's).
fn no_dad(addr: IpNet) -> AddressFlags {
    if addr.addr().is_ipv6() {
        AddressFlags::Nodad
    } else {
        AddressFlags::empty()
    }
}

async fn change(socket: &Socket, device: &Device, addr: IpNet, new: AddressMessage, flags: u16) -> Result<(), Error> {
    socket
        .change(
            format!("add address {addr} to {}", device.name),
            RouteNetlinkMessage::NewAddress(new),
            flags,
        )
        .await
}

/// Removes an address. One that is gone already is success.
pub(crate) async fn remove(socket: &Socket, device: &Device, addr: IpNet) -> Result<(), Error> {
    let del = RouteNetlinkMessage::DelAddress(message(device.index, addr));
    match socket.change(format!("remove address {addr} from {}", device.name), del, 0).await {
        Err(e) if e.is(&[libc::EADDRNOTAVAIL, libc::ENODEV]) => Ok(()),
        done => done,
    }
}

/// All addresses.
pub(crate) async fn all(socket: &Socket) -> Result<Vec<Seen>, Error> {
    let rows = socket
        .dump("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            if let RouteNetlinkMessage::NewAddress(m) = row {
                read(&m)
            } else {
                None
            }
        })
        .collect())
}

fn read(message: &AddressMessage) -> Option<Seen> {
    // IFA_ADDRESS is the far end of a point-to-point link, IFA_LOCAL this one; IPv6 has only the first
    // when they are the same.
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    let ip = find(true).or_else(|| find(false))?;
    let addr = IpNet::new(ip, message.header.prefix_len).ok()?;
    Some(Seen {
        index: message.header.index,
        addr,
        is_global: message.header.scope == AddressScope::Universe,
    })
}

fn message(index: u32, addr: IpNet) -> AddressMessage {
    let ip = addr.addr();
    let mut m = AddressMessage::default();
    m.header.family = link::family(ip);
    m.header.prefix_len = addr.prefix_len();
    m.header.index = index;
    m.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    m
}

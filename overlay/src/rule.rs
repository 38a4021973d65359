//! The way back from an interface of a container that has its default route elsewhere: what leaves from
//! the interface's address goes over the interface, whatever its destination. Called by [`crate::veth`].
//!
//! Who asks for a published port may be anywhere, and is answered from the address that was asked. Each such
//! interface has a routing table of its own, numbered after it, and a rule that leads there. The kernel
//! removes the table's routes with the interface, and leaves the rule: it leads nowhere then, and goes
//! when the next interface comes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::{
    error::Error,
    link::{self, Device},
    route::{self, PROTOCOL},
    socket::Socket,
};

/// The first of our tables' numbers; the interface's index is added. "M" in ASCII, as [`PROTOCOL`].
const TABLES: u32 = 0x4d00_0000;
/// Interfaces of a namespace, of which our tables are told apart.
const MOST: u32 = 0x00ff_ffff;
/// Place among the rules: before the main table's (32766), behind those that others add by themselves.
const PRIORITY: u32 = 32_700;

/// Sends what leaves from `addr` over `device` and its gateway. A kernel without routing rules does
/// without.
pub(crate) async fn add(socket: &Socket, device: &Device, addr: IpNet, gateway: IpAddr) -> Result<(), Error> {
    sweep(socket).await?;
    let table = TABLES + (device.index & MOST);
    let mut rule = message(addr.addr());
    rule.header.src_len = if addr.addr().is_ipv4() { 32 } else { 128 };
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Source(addr.addr()),
        RuleAttribute::Table(table),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    let request = format!("add a rule for what leaves from {} on {}", addr.addr(), device.name);
    match socket
        .change(request, RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)
        .await
    {
        Err(e) if e.is(&[libc::EEXIST]) => {}
        Err(e) if e.is(&[libc::EOPNOTSUPP, libc::EAFNOSUPPORT]) => return Ok(()),
        done => done?,
    }
    let net = addr.trunc();
    let mut near = in_table(net.addr(), net.prefix_len(), table);
    near.header.scope = RouteScope::Link;
    near.attributes.extend([
        RouteAttribute::Destination(net.addr().into()),
        RouteAttribute::Oif(device.index),
        RouteAttribute::PrefSource(addr.addr().into()),
    ]);
    let mut far = in_table(gateway, 0, table);
    far.attributes
        .extend([RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(device.index)]);
    for (route, to) in [(near, net.to_string()), (far, "all else".to_owned())] {
        let request = format!("add the way back to {to} over {}", device.name);
        let done = socket.change(request, RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL);
        match done.await {
            Err(e) if e.is(&[libc::EEXIST]) => {}
            done => done?,
        }
    }
    Ok(())
}

fn in_table(family_of: IpAddr, prefix: u8, table: u32) -> RouteMessage {
    let mut m = route::header(family_of, prefix);
    m.header.protocol = PROTOCOL;
    m.header.table = RouteHeader::RT_TABLE_UNSPEC;
    m.attributes = vec![RouteAttribute::Table(table)];
    m
}

fn message(family_of: IpAddr) -> RuleMessage {
    let mut m = RuleMessage::default();
    m.header.family = link::family(family_of);
    m
}

/// Removes the rules of interfaces that are gone.
async fn sweep(socket: &Socket) -> Result<(), Error> {
    let mut rules = Vec::new();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let rows = socket.dump("list rules", RouteNetlinkMessage::GetRule(message(any))).await;
        match rows {
            Err(e) if e.is(&[libc::EOPNOTSUPP, libc::EAFNOSUPPORT]) => {}
            rows => rules.extend(rows?),
        }
    }
    let ours = rules.into_iter().filter_map(|row| match row {
        RouteNetlinkMessage::NewRule(m) => table_of(&m).map(|table| (m, table)),
        _ => None,
    });
    let ours: Vec<_> = ours.collect();
    if ours.is_empty() {
        return Ok(());
    }
    let there = link::all(socket).await?;
    for (rule, _) in ours
        .into_iter()
        .filter(|(_, t)| there.iter().all(|d| TABLES + (d.index & MOST) != *t))
    {
        match socket
            .change(
                "remove the rule of an interface that is gone",
                RouteNetlinkMessage::DelRule(rule),
                0,
            )
            .await
        {
            Err(e) if e.is(&[libc::ENOENT, libc::ESRCH]) => {}
            done => done?,
        }
    }
    Ok(())
}

/// The table that a rule of ours leads to.
fn table_of(rule: &RuleMessage) -> Option<u32> {
    let is_ours = rule
        .attributes
        .iter()
        .any(|a| matches!(a, RuleAttribute::Protocol(p) if *p == PROTOCOL));
    let table = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.filter(|t| is_ours && t & !MOST == TABLES)
}

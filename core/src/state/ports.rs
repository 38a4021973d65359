//! Published ports: who may have which. Called when services and endpoints are made or changed.
//!
//! A service's port is the cluster's: no other service has it, and no container has it for itself. A
//! port that a container publishes for itself is its node's.

use std::{collections::BTreeSet, net::IpAddr};

use super::State;
use crate::{
    Id, Refusal,
    command::PortRange,
    desired::VXLAN_PORT,
    ipam::DYNAMIC_PORTS,
    objects::{Endpoint, Port, Protocol, PublishMode, Service},
    spec::check_ports,
};

/// Checks the ports asked for and fills in those left open.
pub(super) fn of_service(state: &State, service: &Service, asked: &[Port]) -> Result<Vec<Port>, Refusal> {
    let mut mine: BTreeSet<(Protocol, u16)> = BTreeSet::new();
    for p in asked.iter().filter(|p| p.published != 0) {
        let (proto, port) = (p.protocol.as_str(), p.published);
        let others = state.publishers(p.protocol, port).filter(|(_, owner)| *owner != service.id);
        if let Some((at, owner)) = { others }.find(|(at, _)| collide(*at, p.address)) {
            return Err(taken_by_service(state, p, at, owner));
        }
        if let Some((at, e)) = state.node_publishers(p.protocol, port).find(|(at, _)| collide(*at, p.address)) {
            return Err(taken_by_endpoint(state, p, at, e));
        }
        if let Some(why) = reserved(state, p.protocol, port) {
            return Err(Refusal::conflict(format!("port {port}/{proto} is {why}: choose another")));
        }
        mine.insert((p.protocol, port));
    }
    let mut out = Vec::with_capacity(asked.len());
    for p in asked {
        let mut p = p.clone();
        if p.published == 0 {
            // An update that leaves the port open keeps the one that the service has.
            let kept = service.ports.iter().find(|o| {
                (o.target, o.protocol, o.address) == (p.target, p.protocol, p.address) && !mine.contains(&(o.protocol, o.published))
            });
            p.published = match kept {
                Some(kept) => kept.published,
                None => DYNAMIC_PORTS
                    .clone()
                    .find(|n| {
                        let taken = state.publishers(p.protocol, *n).next().is_some()
                            || state.node_publishers(p.protocol, *n).next().is_some()
                            || mine.contains(&(p.protocol, *n));
                        !taken && reserved(state, p.protocol, *n).is_none()
                    })
                    .ok_or_else(|| Refusal::other("every port from 30000 to 32767 is published: give one yourself"))?,
            };
            mine.insert((p.protocol, p.published));
        }
        out.push(p);
    }
    Ok(out)
}

/// Whether two ports of the same number would answer at one address.
pub(super) fn collide(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    a.is_none() || b.is_none() || a == b
}

fn reserved(state: &State, protocol: Protocol, port: u16) -> Option<&'static str> {
    match protocol {
        Protocol::Udp => (port == VXLAN_PORT).then_some("the nodes' own for vxlan"),
        Protocol::Tcp => state
            .objects
            .nodes
            .values()
            .any(|n| n.control_port == port)
            .then_some("the nodes' own for the control plane"),
    }
}

/// Checks the ports that a container of `node` publishes for itself and fills in those left open. Those
/// that the endpoint `own` has are nobody else's.
pub(super) fn of_endpoint(state: &State, node: Id, own: Option<Id>, asked: &[Port], ranges: &[PortRange]) -> Result<Vec<Port>, Refusal> {
    check_ports(asked)?;
    let mut out: Vec<Port> = Vec::with_capacity(asked.len() + ranges.len());
    for p in asked {
        if p.mode != PublishMode::Host {
            return Err(Refusal::malformed(format!(
                "port {} of a container cannot be published on every node: use mode=host, or a service that publishes it",
                p.target
            )));
        }
        let mut p = p.clone();
        match p.published {
            0 => {
                p.published = DYNAMIC_PORTS
                    .clone()
                    .find(|n| {
                        refusal(
                            state,
                            (node, own),
                            &out,
                            &Port {
                                published: *n,
                                ..p.clone()
                            },
                        )
                        .is_none()
                    })
                    .ok_or_else(|| Refusal::other("every port from 30000 to 32767 is published: give one yourself"))?;
            }
            _ => {
                if let Some(why) = refusal(state, (node, own), &out, &p) {
                    return Err(why);
                }
            }
        }
        out.push(p);
    }
    for range in ranges {
        check_ports(std::slice::from_ref(&range.port))?;
        out.push(first_free(state, (node, own), &out, range)?);
    }
    Ok(out)
}

/// The first port of a range that a container, which has `mine` already, can have; `of` as for [`refusal`].
fn first_free(state: &State, of: (Id, Option<Id>), mine: &[Port], range: &PortRange) -> Result<Port, Refusal> {
    let (first, last) = (range.port.published, range.last);
    if first == 0 || first > last || range.port.mode != PublishMode::Host {
        return Err(Refusal::malformed(format!(
            "ports {first}-{last} are not a range of one node's ports: give a first and a last one, with mode=host"
        )));
    }
    let at = |published| Port {
        published,
        ..range.port.clone()
    };
    (first..=last)
        .map(at)
        .find(|p| refusal(state, of, mine, p).is_none())
        .ok_or_else(|| {
            let protocol = range.port.protocol.as_str();
            Refusal::conflict(format!("every port of {first}-{last}/{protocol} is published: give a wider range"))
        })
}

/// Why a container of a node, and of an endpoint that is there already, which has `mine` so far, cannot
/// have a port for itself.
fn refusal(state: &State, (node, own): (Id, Option<Id>), mine: &[Port], p: &Port) -> Option<Refusal> {
    let (proto, port) = (p.protocol.as_str(), p.published);
    let same = |q: &Port| (q.protocol, q.published) == (p.protocol, port) && collide(q.address, p.address);
    if mine.iter().any(same) {
        return Some(Refusal::conflict(format!(
            "port {port}/{proto} is taken by another port of this container"
        )));
    }
    if let Some((at, owner)) = state.publishers(p.protocol, port).find(|(at, _)| collide(*at, p.address)) {
        return Some(taken_by_service(state, p, at, owner));
    }
    let mut here = state
        .node_publishers(p.protocol, port)
        .filter(|(_, e)| e.node == node && Some(e.id) != own);
    if let Some((at, e)) = here.find(|(at, _)| collide(*at, p.address)) {
        return Some(taken_by_endpoint(state, p, at, e));
    }
    let why = reserved(state, p.protocol, port)?;
    Some(Refusal::conflict(format!("port {port}/{proto} is {why}: choose another")))
}

fn taken_by_service(state: &State, p: &Port, at: Option<IpAddr>, owner: Id) -> Refusal {
    let owner = state.objects.services.get(&owner).map_or("?", |s| s.name.as_str());
    taken(p, at, &format!("service {owner:?}"))
}

fn taken_by_endpoint(state: &State, p: &Port, at: Option<IpAddr>, owner: &Endpoint) -> Refusal {
    let node = state.objects.nodes.get(&owner.node).map_or("?", |n| n.hostname.as_str());
    taken(p, at, &format!("endpoint {:?} on {node}", owner.name))
}

fn taken(p: &Port, at: Option<IpAddr>, by: &str) -> Refusal {
    let at = at.map_or_else(String::new, |at| format!(" at {at}"));
    Refusal::conflict(format!(
        "port {}/{} is published{at} by {by}: choose another",
        p.published,
        p.protocol.as_str()
    ))
}

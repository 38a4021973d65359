//! Endpoints: attached, moved on in their life, detached.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Effect, State, gone, networks, put, put_endpoint, services};
use crate::{
    Id, Mac, Refusal,
    command::{NewEndpoint, Reply},
    objects::{Endpoint, EndpointState, Kind, Network, Object},
    spec::{check_name, check_weight},
};

pub(super) fn create(state: &State, new: &NewEndpoint, at: Timestamp, index: u64) -> Effect {
    let mut cluster = state.cluster()?.clone();
    if let Some(same) = state.objects.endpoints.get(&new.id) {
        return Ok((Reply::Endpoint(Box::new(Endpoint::clone(same))), Vec::new()));
    }
    check_name("endpoint", &new.name)?;
    for alias in &new.aliases {
        check_name("alias", alias)?;
    }
    let node = state
        .objects
        .nodes
        .get(&new.node)
        .ok_or_else(|| Refusal::not_found(format!("no node {}: it was removed from the cluster", new.node)))?;
    let network = state.find_network(&new.network)?;
    if network.ingress {
        return Err(Refusal::other(
            "the ingress network is for published ports only: give another network",
        ));
    }
    let service = new
        .service
        .as_deref()
        .map(|s| services::on_network(state, s, network))
        .transpose()?;
    if let Some(other) = state.named(Kind::Endpoint, Some(network.id), &new.name) {
        let at = state
            .objects
            .endpoints
            .get(&other)
            .and_then(|e| state.objects.nodes.get(&e.node))
            .map_or("?", |n| n.hostname.as_str());
        return Err(Refusal::conflict(format!(
            "endpoint name {:?} is taken in network {:?} (on {at}): give another with --hostname",
            new.name, network.name
        )));
    }
    let siblings: Vec<_> = state
        .objects
        .endpoints
        .values()
        .filter(|e| e.node == node.id && e.sandbox.inode == new.sandbox.inode)
        .collect();
    if siblings.iter().any(|e| e.network == network.id) {
        return Err(Refusal::conflict(format!(
            "container {} is attached to network {:?} already",
            new.sandbox.container, network.name
        )));
    }
    let ifname = match &new.ifname {
        Some(name) => {
            check_ifname(name)?;
            if let Some(e) = siblings.iter().find(|e| e.ifname == *name) {
                return Err(Refusal::conflict(format!(
                    "interface {name} of {} is taken by endpoint {}: choose another --ifname",
                    new.sandbox.container, e.id
                )));
            }
            name.clone()
        }
        None => free_ifname(&siblings),
    };
    let mut network = Network::clone(network);
    let ip = match new.ip {
        Some(ip) => {
            networks::check_address(state, &network, ip)?;
            ip
        }
        None => state.take_address(&mut network, &[])?,
    };
    let mac = new.mac.unwrap_or_else(|| Mac::for_ip(ip));
    if !mac.is_usable() {
        return Err(Refusal::malformed(format!(
            "ethernet address {mac} is not one that a host can have: give a unicast one"
        )));
    }
    if let Some(other) = state.macs.get(&mac) {
        return Err(Refusal::conflict(format!(
            "ethernet address {mac} is taken by endpoint {other}: choose another"
        )));
    }
    let endpoint = Endpoint {
        id: new.id,
        version: index,
        created_at: at,
        name: new.name.clone(),
        labels: new.labels.clone(),
        node: node.id,
        network: network.id,
        ip,
        ip6: None,
        mac,
        aliases: new.aliases.clone(),
        service: service.map(|s| s.id),
        sandbox: new.sandbox.clone(),
        ifname,
        state: EndpointState::Starting,
        slot: services::take_slot(&mut cluster),
        weight: 1,
    };
    let reply = Reply::Endpoint(Box::new(endpoint.clone()));
    Ok((
        reply,
        vec![
            put(Object::Cluster(Arc::new(cluster))),
            put(Object::Network(Arc::new(network))),
            put_endpoint(endpoint),
        ],
    ))
}

/// The kernel's rule for interface names (dev_valid_name in net/core/dev.c), and printable.
fn check_ifname(name: &str) -> Result<(), Refusal> {
    let fine = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%')
        && !matches!(name, "." | ".." | "lo");
    if fine {
        Ok(())
    } else {
        Err(Refusal::malformed(format!(
            "interface name {name:?} is not one: use 1 to 15 characters without space, '/', ':' or '%'"
        )))
    }
}

fn free_ifname(siblings: &[&Arc<Endpoint>]) -> String {
    let mut n = 0;
    loop {
        let name = format!("eth{n}");
        if siblings.iter().all(|e| e.ifname != name) {
            return name;
        }
        n += 1;
    }
}

fn get(state: &State, id: Id) -> Result<&Arc<Endpoint>, Refusal> {
    state
        .objects
        .endpoints
        .get(&id)
        .ok_or_else(|| Refusal::not_found(format!("no endpoint {id}: see meshctl endpoint ls")))
}

pub(super) fn set(state: &State, id: Id, to: EndpointState, index: u64) -> Effect {
    let mut endpoint = Endpoint::clone(get(state, id)?);
    if endpoint.state == to {
        return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new()));
    }
    endpoint.state = to;
    endpoint.version = index;
    Ok((Reply::Endpoint(Box::new(endpoint.clone())), vec![put_endpoint(endpoint)]))
}

pub(super) fn weigh(state: &State, id: Id, weight: u32, index: u64) -> Effect {
    check_weight(weight)?;
    let mut endpoint = Endpoint::clone(get(state, id)?);
    if endpoint.weight == weight {
        return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new()));
    }
    endpoint.weight = weight;
    endpoint.version = index;
    Ok((Reply::Endpoint(Box::new(endpoint.clone())), vec![put_endpoint(endpoint)]))
}

pub(super) fn remove(state: &State, id: Id) -> Effect {
    let endpoint = get(state, id)?;
    Ok((Reply::Endpoint(Box::new(Endpoint::clone(endpoint))), vec![gone(Kind::Endpoint, id)]))
}

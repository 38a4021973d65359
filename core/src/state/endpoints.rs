//! Endpoints: attached, moved on in their life, detached.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Effect, State, gone, leases, networks, ports, put, put_endpoint, services};
use crate::{
    Id, Mac, Refusal,
    command::{Learnt, NewEndpoint, PortRange, Reply},
    objects::{Endpoint, EndpointState, Health, Kind, Network, Object, Port},
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
    if let Some(bandwidth) = &new.sandbox.bandwidth {
        bandwidth.check()?;
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
        .sandboxes
        .get(&(node.id, new.sandbox.inode))
        .into_iter()
        .flatten()
        .filter_map(|id| state.objects.endpoints.get(id))
        .filter(|e| e.sandbox.is_same(&new.sandbox))
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
            if let Some(e) = siblings.iter().find(|e| *e.ifname == **name) {
                return Err(Refusal::conflict(format!(
                    "interface {name} of {} is taken by endpoint {}: choose another --ifname",
                    new.sandbox.container, e.id
                )));
            }
            name.clone()
        }
        None => free_ifname(&siblings),
    };
    let ports = ports::of_endpoint(state, node.id, None, &new.ports, &new.port_ranges)?;
    let mut network = Network::clone(network);
    let mut sandbox = new.sandbox.clone();
    let leased = leases::take(&mut network, node.id, new.ip.into_iter().chain(new.ip6.map(IpAddr::V6)));
    if let Some(handover) = &mut sandbox.handover {
        handover.leased = !leased.is_empty();
    }
    let (ip, ip6) = addresses(state, new, &mut network, &leased)?;
    let mac = mac(state, new.mac, ip, &network)?;
    let mut endpoint = Endpoint::new(new.id, at, &new.name, (node.id, network.id), ip);
    endpoint.version = index;
    endpoint.labels = new.labels.clone().into();
    endpoint.ip6 = ip6.map(Box::new);
    endpoint.set_mac(mac);
    endpoint.aliases = new.aliases.clone().into();
    endpoint.service = service.map(|s| s.id);
    endpoint.sandbox = sandbox;
    endpoint.ifname = ifname;
    endpoint.slot = services::take_slot(&mut cluster);
    endpoint.ports = ports.into();
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

/// Its addresses: those asked for, of which `leased` were reserved for it, and the next ones of the
/// families left open.
fn addresses(state: &State, new: &NewEndpoint, network: &mut Network, leased: &[IpAddr]) -> Result<(IpAddr, Option<Ipv6Addr>), Refusal> {
    let (ip4, also6) = match new.ip {
        Some(IpAddr::V4(ip)) => (Some(ip), None),
        Some(IpAddr::V6(ip)) => (None, Some(ip)),
        None => (None, None),
    };
    if let (Some(a), Some(b)) = (also6, new.ip6) {
        return Err(Refusal::malformed(format!(
            "two IPv6 addresses are asked for, {a} and {b}: give one"
        )));
    }
    let ip6 = also6.or(new.ip6);
    let asked = ip4.map(IpAddr::V4).into_iter().chain(ip6.map(IpAddr::V6));
    for ip in asked.filter(|ip| !leased.contains(ip)) {
        networks::check_address(state, network, ip)?;
    }
    state.take_addresses(network, ip4, ip6)
}

/// Its Ethernet address: the one asked for, or the first free one that goes with its address.
fn mac(state: &State, asked: Option<Mac>, ip: IpAddr, network: &Network) -> Result<Mac, Refusal> {
    let is_gateway = |mac: Mac| network.subnets.iter().any(|s| Mac::for_ip(s.gateway) == mac);
    let Some(mac) = asked else {
        let is_free = |mac: &Mac| !state.macs.contains_key(mac) && !is_gateway(*mac);
        return Mac::candidates(ip)
            .find(is_free)
            .ok_or_else(|| Refusal::other(format!("no ethernet address is free for {ip}")));
    };
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
    // It belongs to whoever gets that address, an endpoint, a gateway or a node.
    if is_gateway(mac) || (mac.is_of_ip4() && mac != Mac::for_ip(ip)) {
        return Err(Refusal::conflict(format!(
            "ethernet address {mac} is one that meshd gives itself: choose another, not beginning with 02:6d"
        )));
    }
    Ok(mac)
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
        if siblings.iter().all(|e| *e.ifname != *name) {
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
    // Whoever says that it shall take flows knows better than a signal, or a check.
    let is_kept = endpoint.stopping.is_some() || endpoint.health == Health::Unwell;
    let goes_on = to == EndpointState::Ready && endpoint.state != EndpointState::Starting && is_kept;
    if endpoint.state == to && !goes_on {
        return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new()));
    }
    endpoint.state = to;
    if goes_on {
        endpoint.stopping = None;
        if endpoint.health == Health::Unwell {
            endpoint.health = Health::Overruled;
        }
    }
    endpoint.version = index;
    Ok((Reply::Endpoint(Box::new(endpoint.clone())), vec![put_endpoint(endpoint)]))
}

/// Its container was asked to stop, or runs on in spite of that.
pub(super) fn stopping(state: &State, id: Id, until: Option<Timestamp>, index: u64) -> Effect {
    let mut endpoint = Endpoint::clone(get(state, id)?);
    if endpoint.stopping.as_deref() == until.as_ref() {
        return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new()));
    }
    endpoint.stopping = until.map(Box::new);
    endpoint.version = index;
    Ok((Reply::Endpoint(Box::new(endpoint.clone())), vec![put_endpoint(endpoint)]))
}

/// Its container is well, or is not; one that an operator has overruled says so in vain until it is well.
pub(super) fn health(state: &State, id: Id, healthy: bool, index: u64) -> Effect {
    let mut endpoint = Endpoint::clone(get(state, id)?);
    endpoint.health = match (endpoint.health, healthy) {
        (Health::Well, false) => Health::Unwell,
        (Health::Unwell | Health::Overruled, true) => Health::Well,
        (Health::Well, true) | (Health::Unwell | Health::Overruled, false) => return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new())),
    };
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

/// Ports of its own, in the place of those that it has.
pub(super) fn publish(state: &State, id: Id, ports: &[Port], ranges: &[PortRange], index: u64) -> Effect {
    let mut endpoint = Endpoint::clone(get(state, id)?);
    let ports = ports::of_endpoint(state, endpoint.node, Some(id), ports, ranges)?;
    if *endpoint.ports == *ports {
        return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new()));
    }
    endpoint.ports = ports.into();
    endpoint.version = index;
    Ok((Reply::Endpoint(Box::new(endpoint.clone())), vec![put_endpoint(endpoint)]))
}

/// What became known of its container. A name that another endpoint of the network has is kept as a
/// further one: an engine lets containers of two hosts have the same.
pub(super) fn learn(state: &State, id: Id, learnt: &Learnt, index: u64) -> Effect {
    let was = get(state, id)?;
    let mut endpoint = Endpoint::clone(was);
    if let Some(sandbox) = &learnt.sandbox {
        // Whether its addresses were reserved is the allocator's knowledge.
        let handover = endpoint.sandbox.handover.take();
        // What it may receive and send was said when it was made.
        let bandwidth = endpoint.sandbox.bandwidth.take();
        endpoint.sandbox = sandbox.clone();
        endpoint.sandbox.handover = handover;
        endpoint.sandbox.bandwidth = bandwidth;
    }
    if let Some(ifname) = &learnt.ifname {
        check_ifname(ifname)?;
        endpoint.ifname.clone_from(ifname);
    }
    if let Some(aliases) = &learnt.aliases {
        endpoint.aliases = aliases.clone().into();
    }
    if let Some(name) = &learnt.name {
        check_name("endpoint", name)?;
        match state.named(Kind::Endpoint, Some(endpoint.network), name) {
            Some(other) if other != id => endpoint.aliases = [&endpoint.aliases[..], std::slice::from_ref(name)].concat().into(),
            _ => endpoint.name = name.as_str().into(),
        }
    }
    for alias in &endpoint.aliases {
        check_name("alias", alias)?;
    }
    if let Some(labels) = &learnt.labels {
        endpoint.labels = labels.clone().into();
    }
    if let Some(service) = &learnt.service {
        let network = state.objects.networks.get(&endpoint.network);
        let network = network.ok_or_else(|| Refusal::not_found(format!("the network of endpoint {id} is gone")))?;
        endpoint.service = Some(services::on_network(state, service, network)?.id);
    }
    if endpoint == **was {
        return Ok((Reply::Endpoint(Box::new(endpoint)), Vec::new()));
    }
    endpoint.version = index;
    Ok((Reply::Endpoint(Box::new(endpoint.clone())), vec![put_endpoint(endpoint)]))
}

pub(super) fn remove(state: &State, id: Id, index: u64) -> Effect {
    let endpoint = get(state, id)?;
    let mut changes = vec![gone(Kind::Endpoint, id)];
    // After the endpoint: the address leaves one and enters the other.
    changes.extend(leases::kept(state, endpoint, index));
    Ok((Reply::Endpoint(Box::new(Endpoint::clone(endpoint))), changes))
}

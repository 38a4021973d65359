//! Networks: made, removed, pruned.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{Effect, State, gone, put, some_of};
use crate::{
    Id, Refusal,
    command::Reply,
    ipam,
    objects::{Cluster, Kind, Network, Object, Subnet},
    spec::{IPV6_MIN_MTU, NetworkSpec, check_host, overlap},
};

/// VNIs below are left to others, as Swarm does.
pub const FIRST_VNI: u32 = 4096;
/// VNIs have 24 bits (RFC 7348 section 5).
const LAST_VNI: u32 = (1 << 24) - 1;

pub(super) fn create(state: &State, id: Id, at: Timestamp, spec: &NetworkSpec, index: u64) -> Effect {
    let mut cluster = state.cluster()?.clone();
    if let Some(same) = state.objects.networks.get(&id) {
        return Ok((Reply::Network(Box::new(Network::clone(same))), Vec::new()));
    }
    spec.check()?;
    if let Some(other) = state.named(Kind::Network, None, &spec.name) {
        return Err(Refusal::conflict(format!(
            "network {:?} exists already ({other}): choose another name",
            spec.name
        )));
    }
    let mtu = spec.mtu()?;
    if let (Some(mtu), Some(room)) = (mtu, state.objects.underlay_room())
        && mtu > room
    {
        return Err(Refusal::other(format!(
            "mtu {mtu} does not fit: the nodes' underlay leaves {room} bytes inside vxlan"
        )));
    }
    if spec.wants_ip6() {
        check_room(state, "an IPv6 network", IPV6_MIN_MTU)?;
    }
    for net in &spec.subnets {
        check_free(state, *net)?;
    }
    let nets = ranges(state, &cluster, spec)?;
    if cluster.next_vni > LAST_VNI {
        return Err(Refusal::other(format!(
            "every vxlan network identifier up to {LAST_VNI} was used: remake the cluster"
        )));
    }
    let network = Network {
        id,
        version: index,
        created_at: at,
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        driver: "overlay".to_owned(),
        subnets: nets.into_iter().map(|net| subnet(net, spec)).collect::<Result<_, _>>()?,
        vni: cluster.next_vni,
        mtu,
        internal: spec.internal,
        attachable: spec.attachable,
        ingress: false,
        options: spec.options.clone(),
        reserved: BTreeMap::new(),
    };
    cluster.next_vni += 1;
    let reply = Reply::Network(Box::new(network.clone()));
    Ok((
        reply,
        vec![put(Object::Cluster(Arc::new(cluster))), put(Object::Network(Arc::new(network)))],
    ))
}

/// The ranges of a new network, IPv4 first: those asked for, and one from the pools of each family
/// that it shall have and has none of.
fn ranges(state: &State, cluster: &Cluster, spec: &NetworkSpec) -> Result<Vec<IpNet>, Refusal> {
    let (mut nets, mut six): (Vec<IpNet>, Vec<IpNet>) = spec.subnets.iter().copied().partition(|n| n.addr().is_ipv4());
    let (pools, mut pools6): (Vec<IpNet>, Vec<IpNet>) = cluster.address_pools.iter().copied().partition(|n| n.addr().is_ipv4());
    let taken = taken(state);
    if nets.is_empty() && spec.wants_ip4() {
        nets.push(ipam::next_subnet(&pools, cluster.subnet_prefix, &taken)?);
    }
    if six.is_empty() && spec.wants_ip6() {
        if pools6.is_empty() {
            pools6.push(ipam::local_pool(cluster.id).into());
        }
        six.push(ipam::next_subnet(&pools6, ipam::IPV6_PREFIX, &taken)?);
    }
    nets.append(&mut six);
    Ok(nets)
}

/// Refuses what needs more MTU than the nodes' underlay leaves inside VXLAN.
fn check_room(state: &State, what: &str, needed: u32) -> Result<(), Refusal> {
    match state.objects.underlay_room() {
        Some(room) if room < needed => Err(Refusal::other(format!(
            "{what} needs an mtu of {needed} bytes: the nodes' underlay leaves {room} inside vxlan"
        ))),
        _ => Ok(()),
    }
}

fn subnet(net: IpNet, spec: &NetworkSpec) -> Result<Subnet, Refusal> {
    let aux = spec
        .aux_addresses
        .iter()
        .filter(|(_, ip)| net.contains(*ip))
        .map(|(n, ip)| (n.clone(), *ip))
        .collect();
    let mut made = Subnet {
        subnet: net,
        gateway: net.network(),
        ip_range: spec.ip_ranges.iter().find(|r| net.contains(*r)).copied(),
        aux,
        cursor: None,
    };
    made.gateway = match spec.gateways.iter().find(|g| net.contains(*g)) {
        Some(gateway) => *gateway,
        // The first address, as Docker does; also when ip_range leaves it out.
        None => ipam::next_address(
            &spec.name,
            &Subnet {
                ip_range: None,
                ..made.clone()
            },
            &made.aux.values().copied().collect(),
        )?,
    };
    check_host(net, made.gateway, "gateway")?;
    Ok(made)
}

/// Ranges that no new network may overlap.
pub(super) fn taken(state: &State) -> Vec<IpNet> {
    let nets = state.objects.networks.values().flat_map(|n| n.subnets.iter().map(|s| s.subnet));
    let routes = state.objects.nodes.values().flat_map(|n| n.host_routes.iter().map(|r| r.dst));
    let nodes = state.objects.cluster.iter().map(|c| ipam::node_range(c.id).into());
    nets.chain(routes).chain(nodes).collect()
}

fn check_free(state: &State, net: IpNet) -> Result<(), Refusal> {
    for other in state.objects.networks.values() {
        if let Some(s) = other.subnets.iter().find(|s| overlap(s.subnet, net)) {
            return Err(Refusal::conflict(format!(
                "subnet {net} overlaps {} of network {:?}: choose another range",
                s.subnet, other.name
            )));
        }
    }
    if let Some(range) = state.objects.cluster.as_ref().map(|c| ipam::node_range(c.id).into())
        && overlap(range, net)
    {
        return Err(Refusal::conflict(format!(
            "subnet {net} overlaps {range}, where the nodes' own addresses are: choose another range"
        )));
    }
    for node in state.objects.nodes.values() {
        if let Some(r) = node.host_routes.iter().find(|r| overlap(r.dst, net)) {
            return Err(Refusal::conflict(format!(
                "subnet {net} overlaps the route {} dev {} of node {}: choose another range",
                r.dst, r.dev, node.hostname
            )));
        }
    }
    Ok(())
}

/// Who uses a network, in words; empty when nobody does.
fn users(state: &State, id: Id) -> String {
    let all = &state.objects;
    let endpoints = all.endpoints.in_network(id).map(|e| {
        let node = all.nodes.get(&e.node).map_or("?", |n| n.hostname.as_str());
        format!("endpoint {} on {node}", e.name)
    });
    let services = all
        .services
        .values()
        .filter(|s| s.networks.contains(&id))
        .map(|s| format!("service {}", s.name));
    some_of(services.chain(endpoints))
}

pub(super) fn remove(state: &State, r: &str) -> Effect {
    let network = state.find_network(r)?;
    if network.ingress {
        return Err(Refusal::conflict(
            "the ingress network carries the published ports and stays as long as the cluster",
        ));
    }
    let users = users(state, network.id);
    if !users.is_empty() {
        return Err(Refusal::conflict(format!(
            "network {:?} is in use by {users}: disconnect and remove them first",
            network.name
        )));
    }
    Ok((Reply::Done, vec![gone(Kind::Network, network.id)]))
}

pub(super) fn prune(state: &State) -> Effect {
    let unused: Vec<_> = state
        .objects
        .networks
        .values()
        .filter(|n| !n.ingress && users(state, n.id).is_empty())
        .collect();
    let names = unused.iter().map(|n| n.name.clone()).collect();
    Ok((Reply::Networks(names), unused.iter().map(|n| gone(Kind::Network, n.id)).collect()))
}

/// Finds the subnet that an address asked for belongs to, and checks that it is free there.
pub(super) fn check_address(state: &State, network: &Network, ip: IpAddr) -> Result<(), Refusal> {
    let Some(subnet) = network.subnet_of(ip) else {
        let nets = some_of(network.subnets.iter().map(|s| s.subnet.to_string()));
        return Err(Refusal::other(format!(
            "address {ip} is not in network {:?} ({nets}): choose one from there",
            network.name
        )));
    };
    check_host(subnet.subnet, ip, "address").map_err(|r| Refusal::other(r.message))?;
    if state.used.get(&network.id).is_some_and(|u| u.contains(&ip)) {
        return Err(Refusal::conflict(format!(
            "address {ip} is taken by {}: choose another",
            state.holder(network, ip)
        )));
    }
    Ok(())
}

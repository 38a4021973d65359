//! The cluster's beginning, and its nodes: taken in, changed, removed.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{Effect, State, gone, leases, put, some_of};
use crate::{
    Id, Refusal,
    command::{NewNode, Reply},
    ipam,
    objects::{Availability, Cluster, Dataplane, Kind, Network, Node, NodeState, Object, Objects, Protocol, Role, Subnet, vxlan_overhead},
    spec::{IPV6_MIN_MTU, MIN_MTU, check_name, check_unicast, overlap},
};

/// Prefix length of the ingress network, which has an address for every node.
const INGRESS_PREFIX: u8 = 16;

pub(super) fn init(mut cluster: Cluster, ingress: Id, node: &NewNode, at: Timestamp, index: u64) -> Effect {
    check_name("host", &node.hostname)?;
    check_pools(&cluster)?;
    check_mtu(&State::default(), node.data_path_addr, node.underlay_mtu)?;
    let taken: Vec<IpNet> = node.host_routes.iter().map(|r| r.dst).collect();
    // A small pool must not be eaten up by the ingress network alone.
    let roomy = cluster
        .address_pools
        .iter()
        .any(|p| p.addr().is_ipv4() && p.prefix_len() + 4 <= INGRESS_PREFIX);
    let prefix = if roomy { INGRESS_PREFIX } else { cluster.subnet_prefix };
    let pools: Vec<_> = cluster.address_pools.iter().copied().filter(|p| p.addr().is_ipv4()).collect();
    let net = ipam::next_subnet(&pools, prefix, &taken).map_err(|e| covered(&pools, prefix, node).unwrap_or(e))?;
    let mut subnet = Subnet {
        subnet: net,
        gateway: net.network(),
        ip_range: None,
        aux: Default::default(),
        cursor: None,
    };
    subnet.gateway = ipam::next_address("ingress", &subnet, &Default::default())?;
    subnet.cursor = Some(subnet.gateway);
    let mut network = Network {
        id: ingress,
        version: index,
        created_at: at,
        name: "ingress".to_owned(),
        labels: Default::default(),
        driver: "overlay".to_owned(),
        subnets: vec![subnet],
        vni: cluster.next_vni,
        mtu: None,
        internal: false,
        attachable: false,
        ingress: true,
        options: Default::default(),
        reserved: Default::default(),
    };
    cluster.next_vni += 1;
    let ip = ipam::next_address("ingress", &network.subnets[0], &[network.subnets[0].gateway].into())?;
    network.subnets[0].cursor = Some(ip);
    let node = made(node, 1, ip, at, index);
    let reply = Reply::Node(Box::new(node.clone()));
    let changes = vec![
        put(Object::Cluster(Arc::new(cluster))),
        put(Object::Network(Arc::new(network))),
        put(Object::Node(Arc::new(node))),
    ];
    Ok((reply, changes))
}

/// Which of the first node's routes leave no room in the pools; `None` when it is not them.
fn covered(pools: &[IpNet], prefix: u8, node: &NewNode) -> Option<Refusal> {
    let said = |n: &IpNet| n.to_string();
    let there: Vec<_> = node
        .host_routes
        .iter()
        .filter(|r| pools.iter().any(|p| overlap(r.dst, *p)))
        .collect();
    let routes: Vec<_> = there.iter().take(3).map(|r| format!("{} dev {}", r.dst, r.dev)).collect();
    let more = there.len().saturating_sub(routes.len());
    (!there.is_empty()).then(|| {
        Refusal::conflict(format!(
            "no /{prefix} is free for the ingress network in the address pools ({}): host {} has the {} {}{}; give other pools (--default-addr-pool)",
            pools.iter().map(said).collect::<Vec<_>>().join(", "),
            node.hostname,
            if there.len() == 1 { "route" } else { "routes" },
            routes.join(", "),
            if more > 0 { format!(" and {more} more") } else { String::new() },
        ))
    })
}

fn check_pools(cluster: &Cluster) -> Result<(), Refusal> {
    let prefix = cluster.subnet_prefix;
    for pool in &cluster.address_pools {
        if pool.addr() != pool.network() {
            return Err(Refusal::malformed(format!(
                "address pool {pool} has host bits set: use {}",
                pool.trunc()
            )));
        }
        check_unicast(*pool, "address pool")?;
        let prefix = if pool.addr().is_ipv4() { prefix } else { ipam::IPV6_PREFIX };
        if pool.prefix_len() > prefix {
            return Err(Refusal::malformed(format!(
                "address pool {pool} is smaller than a subnet (/{prefix}): give a larger pool or a larger --subnet-size"
            )));
        }
    }
    if !cluster.address_pools.iter().any(|p| p.addr().is_ipv4()) {
        return Err(Refusal::malformed(
            "no address pool is IPv4, which the ingress network needs: give one like 10.0.0.0/8",
        ));
    }
    if !(8..=29).contains(&prefix) {
        return Err(Refusal::malformed(format!(
            "subnet size {prefix} is not a prefix length from 8 to 29"
        )));
    }
    Ok(())
}

fn made(new: &NewNode, raft_id: u64, ingress_ip: IpAddr, at: Timestamp, index: u64) -> Node {
    Node {
        id: new.id,
        version: index,
        created_at: at,
        hostname: new.hostname.clone(),
        labels: Default::default(),
        role: new.role,
        raft_id,
        availability: Availability::Active,
        addr: new.addr,
        control_port: new.control_port,
        data_path_addr: new.data_path_addr,
        underlay_mtu: new.underlay_mtu,
        underlay_mac: None,
        ingress_ip,
        host_routes: new.host_routes.clone(),
        state: NodeState::Unknown,
        dataplane: Dataplane::Reachable,
    }
}

pub(super) fn join(state: &State, new: &NewNode, at: Timestamp, index: u64) -> Effect {
    state.cluster()?;
    if let Some(same) = state.objects.nodes.get(&new.id) {
        return Ok((Reply::Node(Box::new(Node::clone(same))), Vec::new()));
    }
    check_name("host", &new.hostname)?;
    if let Some(other) = state.named(Kind::Node, None, &new.hostname) {
        return Err(Refusal::conflict(format!(
            "host name {:?} is taken by node {other}: give --hostname to meshd, or remove that node first (meshctl node rm)",
            new.hostname
        )));
    }
    if let Some(other) = state.objects.nodes.values().find(|n| n.data_path_addr == new.data_path_addr) {
        return Err(Refusal::conflict(format!(
            "data-path address {} is taken by node {}: give --data-path-addr",
            new.data_path_addr, other.hostname
        )));
    }
    check_family(state, new.id, new.data_path_addr)?;
    check_mtu(state, new.data_path_addr, new.underlay_mtu)?;
    if let Some((_, owner)) = state.publishers(Protocol::Tcp, new.control_port).next() {
        let owner = state.objects.services.get(&owner).map_or("?", |s| s.name.as_str());
        return Err(Refusal::conflict(format!(
            "port {}/tcp, this host's for the control plane, is published by service {owner:?}: give meshd another, or publish it no more",
            new.control_port
        )));
    }
    if let Some((_, e)) = state.node_publishers(Protocol::Tcp, new.control_port).next() {
        return Err(Refusal::conflict(format!(
            "port {}/tcp, this host's for the control plane, is published by endpoint {:?}: give meshd another, or detach that",
            new.control_port, e.name
        )));
    }
    for network in state.objects.networks.values() {
        for subnet in &network.subnets {
            if let Some(r) = new.host_routes.iter().find(|r| overlap(r.dst, subnet.subnet)) {
                return Err(Refusal::conflict(format!(
                    "the route {} dev {} of this host overlaps {} of network {:?}: remove one of them first",
                    r.dst, r.dev, subnet.subnet, network.name
                )));
            }
        }
    }
    let ingress = state
        .objects
        .ingress()
        .ok_or_else(|| Refusal::other("the cluster has no ingress network"))?;
    let mut ingress = Network::clone(ingress);
    let ip = state.take_ip4(&mut ingress)?.into();
    let node = made(new, if new.role == Role::Manager { index } else { 0 }, ip, at, index);
    Ok((
        Reply::Node(Box::new(node.clone())),
        vec![put(Object::Network(Arc::new(ingress))), put(Object::Node(Arc::new(node)))],
    ))
}

/// All VTEPs are of one family: a VXLAN device sends from an address of one family only.
fn check_family(state: &State, me: Id, vtep: IpAddr) -> Result<(), Refusal> {
    let family = |ip: IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut nodes = state.objects.nodes.values();
    match nodes.find(|n| n.id != me && n.data_path_addr.is_ipv4() != vtep.is_ipv4()) {
        Some(other) => Err(Refusal::other(format!(
            "data-path address {vtep} is {}, those of the cluster are {} (node {} has {}): give one of that family with --data-path-addr",
            family(vtep),
            family(other.data_path_addr),
            other.hostname,
            other.data_path_addr
        ))),
        None => Ok(()),
    }
}

/// The underlay of a node leaves what its networks need inside VXLAN.
fn check_mtu(state: &State, vtep: IpAddr, mtu: u32) -> Result<(), Refusal> {
    let all = &state.objects;
    let overhead = vxlan_overhead(vtep);
    if mtu < MIN_MTU + overhead {
        return Err(Refusal::other(format!(
            "the link of {vtep} has an mtu of {mtu} bytes: vxlan needs {} or more",
            MIN_MTU + overhead
        )));
    }
    let six = all
        .networks
        .values()
        .find(|n| n.has_ip6())
        .filter(|_| mtu < IPV6_MIN_MTU + overhead);
    let sized = all.networks.values().find(|n| n.mtu.is_some_and(|m| m + overhead > mtu));
    if let Some(n) = six.or(sized) {
        let needed = n.mtu.unwrap_or(IPV6_MIN_MTU) + overhead;
        return Err(Refusal::other(format!(
            "the link of {vtep} has an mtu of {mtu} bytes: network {:?} needs {needed} or more",
            n.name
        )));
    }
    Ok(())
}

/// What a node says of itself. A smaller MTU is a fact, whatever suffers from it; VTEPs of two
/// families are a mistake.
pub(super) fn report(state: &State, id: Id, index: u64, data_path_addr: IpAddr, f: impl FnOnce(&mut Node)) -> Effect {
    check_family(state, id, data_path_addr)?;
    change(state, id, index, |n| {
        n.data_path_addr = data_path_addr;
        f(n);
    })
}

/// Changes a node; one that stays as it is gets no new version and wakes nobody.
pub(super) fn change(state: &State, id: Id, index: u64, f: impl FnOnce(&mut Node)) -> Effect {
    let old = state
        .objects
        .nodes
        .get(&id)
        .ok_or_else(|| Refusal::not_found(format!("no node {id}: it was removed from the cluster")))?;
    let mut node = Node::clone(old);
    f(&mut node);
    let reply = |n: &Node| Reply::Node(Box::new(n.clone()));
    if node == **old {
        return Ok((reply(&node), Vec::new()));
    }
    node.version = index;
    Ok((reply(&node), vec![put(Object::Node(Arc::new(node)))]))
}

pub(super) fn remove(state: &State, r: &str, force: bool, index: u64) -> Effect {
    let node = state.find_node(r)?;
    let all = &state.objects;
    may_stop_managing(all, node)?;
    if node.state == NodeState::Ready && !force {
        return Err(Refusal::conflict(format!(
            "node {} is ready: run meshctl leave there, or use --force",
            node.hostname
        )));
    }
    let endpoints: Vec<_> = all.endpoints.on_node(node.id).collect();
    if !endpoints.is_empty() && !force {
        let names = some_of(endpoints.iter().map(|e| e.name.clone()));
        return Err(Refusal::conflict(format!(
            "node {} has the endpoints {names}: disconnect them, or use --force",
            node.hostname
        )));
    }
    let mut changes: Vec<_> = endpoints.iter().map(|e| gone(Kind::Endpoint, e.id)).collect();
    changes.extend(leases::without(state, node.id, index));
    changes.push(gone(Kind::Node, node.id));
    Ok((Reply::Done, changes))
}

/// Makes a node a manager or a worker. A new manager gets a raft id of its own every time: what a node
/// promised as one voter must not count for another.
pub(super) fn set_role(state: &State, r: &str, role: Role, index: u64) -> Effect {
    let node = state.find_node(r)?;
    if node.role == role {
        return Ok((Reply::Node(Box::new(Node::clone(node))), Vec::new()));
    }
    match role {
        Role::Worker => may_stop_managing(&state.objects, node)?,
        Role::Manager if node.state != NodeState::Ready => {
            let how = if node.state == NodeState::Down {
                "is down"
            } else {
                "was not heard yet"
            };
            return Err(Refusal::conflict(format!(
                "node {} {how}: a manager that does not answer counts against the quorum; promote it once it is ready",
                node.hostname
            )));
        }
        Role::Manager => {}
    }
    change(state, node.id, index, |n| {
        n.role = role;
        n.raft_id = if role == Role::Manager { index } else { 0 };
    })
}

/// Refuses to let a manager go that is the only one, or when no majority of the others is up: nothing could
/// be changed any more. One that was not heard yet counts as up: it has just joined. Workers may always go.
///
/// # Errors
/// A conflict that names the managers in question.
pub fn may_stop_managing(all: &Objects, leaver: &Node) -> Result<(), Refusal> {
    if leaver.role == Role::Worker {
        return Ok(());
    }
    let others = all.nodes.values().filter(|n| n.role == Role::Manager && n.id != leaver.id);
    let rest: Vec<_> = others.collect();
    if rest.is_empty() {
        return Err(Refusal::conflict(format!(
            "node {} is the only manager: make another one first (meshctl node promote NODE)",
            leaver.hostname
        )));
    }
    let down: Vec<_> = rest.iter().filter(|n| n.state == NodeState::Down).collect();
    if down.len() * 2 < rest.len() {
        return Ok(());
    }
    Err(Refusal::conflict(format!(
        "without node {} the managers would have no majority (quorum): {} of the other {} {} down ({}); bring it back or remove it first",
        leaver.hostname,
        down.len(),
        rest.len(),
        if down.len() == 1 { "is" } else { "are" },
        some_of(down.iter().map(|n| n.hostname.clone()))
    )))
}

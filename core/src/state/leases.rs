//! Addresses that a container engine was promised: reserved before there is an endpoint for them, and
//! again after it, until the engine gives them back (libnetwork's IPAM contract). A node lets go of
//! those that nothing came of (`agent/src/session.rs`).

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{Effect, State, gone, networks, put};
use crate::{
    Id, Refusal,
    command::Reply,
    objects::{Change, Endpoint, Kind, Network, Object},
};

pub(super) fn reserve(state: &State, network: &str, node: Id, ip: Option<IpAddr>, six: bool, index: u64) -> Effect {
    if !state.objects.nodes.contains_key(&node) {
        return Err(Refusal::not_found(format!("no node {node}: it was removed from the cluster")));
    }
    let mut network = Network::clone(state.find_network(network)?);
    if network.ingress {
        return Err(Refusal::other(
            "the ingress network is for published ports only: give another network",
        ));
    }
    let ip = match ip {
        Some(ip) => {
            networks::check_address(state, &network, ip)?;
            ip
        }
        None if six => state.take_ip6(&mut network)?.into(),
        None => state.take_ip4(&mut network)?.into(),
    };
    let length = network.subnet_of(ip).map(|s| s.subnet.prefix_len());
    let with_length = length.and_then(|length| IpNet::new(ip, length).ok());
    network.reserved.insert(ip, node);
    network.version = index;
    Ok((
        Reply::Address(with_length.unwrap_or_else(|| ip.into())),
        vec![put(Object::Network(Arc::new(network)))],
    ))
}

pub(super) fn release(state: &State, network: &str, node: Id, ip: IpAddr, with_endpoint: bool, index: u64) -> Effect {
    let network = state.find_network(network)?;
    if network.reserved.get(&ip) == Some(&node) {
        let mut network = Network::clone(network);
        network.reserved.remove(&ip);
        network.version = index;
        return Ok((Reply::Done, vec![put(Object::Network(Arc::new(network)))]));
    }
    let is_holder = |e: &&Arc<Endpoint>| e.node == node && e.ips().any(|a| a == ip);
    let holder = state.objects.endpoints.in_network(network.id).find(is_holder);
    let given_up = holder.filter(|e| with_endpoint && e.sandbox.handover.is_some());
    let changes = given_up.map(|e| gone(Kind::Endpoint, e.id)).into_iter().collect();
    Ok((Reply::Done, changes))
}

/// Takes those of `asked` out of the reserve that are there for `node`, and says which.
pub(super) fn take(network: &mut Network, node: Id, asked: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let is_mine = |ip: &IpAddr| network.reserved.get(ip) == Some(&node);
    let mine: Vec<_> = asked.filter(is_mine).collect();
    for ip in &mine {
        network.reserved.remove(ip);
    }
    mine
}

/// The network of an endpoint that goes, with the addresses that its engine still has to give back.
pub(super) fn kept(state: &State, endpoint: &Endpoint, index: u64) -> Option<Change> {
    endpoint.sandbox.handover.as_ref().filter(|h| h.leased)?;
    let mut network = Network::clone(state.objects.networks.get(&endpoint.network)?);
    network.reserved.extend(endpoint.ips().map(|ip| (ip, endpoint.node)));
    network.version = index;
    Some(put(Object::Network(Arc::new(network))))
}

/// The networks that have something reserved for a node that goes, without it.
pub(super) fn without(state: &State, node: Id, index: u64) -> impl Iterator<Item = Change> {
    let has = move |n: &&Arc<Network>| n.reserved.values().any(|of| *of == node);
    state.objects.networks.values().filter(has).map(move |n| {
        let mut network = Network::clone(n);
        network.reserved.retain(|_, of| *of != node);
        network.version = index;
        put(Object::Network(Arc::new(network)))
    })
}

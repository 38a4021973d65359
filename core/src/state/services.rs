//! Services: made, changed, removed.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Effect, State, gone, ports, put, put_endpoint, some_of};
use crate::{
    Id, Refusal,
    command::Reply,
    objects::{Cluster, EndpointMode, Kind, Network, Object, Service, Vip},
    spec::ServiceSpec,
};

pub(super) fn create(state: &State, id: Id, at: Timestamp, spec: &ServiceSpec, index: u64) -> Effect {
    let mut cluster = state.cluster()?.clone();
    if let Some(same) = state.objects.services.get(&id) {
        return Ok((Reply::Service(Box::new(Service::clone(same))), Vec::new()));
    }
    spec.check()?;
    if let Some(other) = state.named(Kind::Service, None, &spec.name) {
        return Err(Refusal::conflict(format!(
            "service {:?} exists already ({other}): choose another name",
            spec.name
        )));
    }
    let slot = take_slot(&mut cluster);
    let service = Service {
        id,
        version: index,
        created_at: at,
        name: spec.name.clone(),
        labels: spec.labels.clone().into(),
        networks: Vec::new(),
        endpoint_mode: spec.endpoint_mode,
        algorithm: spec.algorithm,
        ports: Vec::new(),
        vips: Vec::new(),
        slot,
        drain_secs: spec.drain_secs,
        affinity_secs: spec.affinity_secs,
        source_ranges: spec.source_ranges.clone().into(),
        lb_return: spec.lb_return,
        selector: spec.selector.clone().into(),
    };
    settle(state, cluster, service, spec)
}

pub(super) fn update(state: &State, r: &str, version: u64, spec: &ServiceSpec, index: u64) -> Effect {
    let cluster = state.cluster()?.clone();
    let old = state.find_service(r)?;
    spec.check()?;
    if version != 0 && version != old.version {
        return Err(Refusal::conflict(format!(
            "service {:?} was changed meanwhile: it is at version {}, not {version}; read it and try again",
            old.name, old.version
        )));
    }
    if !spec.name.eq_ignore_ascii_case(&old.name) {
        return Err(Refusal::other(format!(
            "service {:?} cannot be renamed: make a service {:?} and remove this one",
            old.name, spec.name
        )));
    }
    let mut service = Service::clone(old);
    service.version = index;
    service.labels = spec.labels.clone().into();
    service.endpoint_mode = spec.endpoint_mode;
    service.algorithm = spec.algorithm;
    service.drain_secs = spec.drain_secs;
    service.affinity_secs = spec.affinity_secs;
    service.source_ranges = spec.source_ranges.clone().into();
    service.lb_return = spec.lb_return;
    service.selector = spec.selector.clone().into();
    settle(state, cluster, service, spec)
}

/// Gives the service its networks, virtual addresses and ports, keeping those that it has.
fn settle(state: &State, mut cluster: Cluster, mut service: Service, spec: &ServiceSpec) -> Effect {
    let mut changes = Vec::new();
    let mut networks = Vec::new();
    for r in &spec.networks {
        let network = state.find_network(r)?;
        if network.ingress {
            return Err(Refusal::other(
                "the ingress network is for published ports only: give another network",
            ));
        }
        if !networks.contains(&network.id) {
            networks.push(network.id);
        }
    }
    for id in service.networks.iter().filter(|id| !networks.contains(id)) {
        let there = state.objects.endpoints.of_service(service.id).filter(|e| e.network == *id);
        let there = some_of(there.map(|e| e.name.clone()));
        if !there.is_empty() {
            return Err(Refusal::conflict(format!(
                "service {:?} has endpoints on the network to be removed ({there}): disconnect them first",
                service.name
            )));
        }
    }
    service
        .vips
        .retain(|v| networks.contains(&v.network) && service.endpoint_mode == EndpointMode::Vip);
    if service.endpoint_mode == EndpointMode::Vip {
        for id in &networks {
            let has = service.vips.iter().any(|v| v.network == *id);
            let Some(network) = state.objects.networks.get(id).filter(|_| !has) else {
                continue;
            };
            let mut network = Network::clone(network);
            let (ip, ip6) = state.take_addresses(&mut network, None, None)?;
            service.vips.push(Vip {
                network: *id,
                ip,
                ip6,
                slot: take_slot(&mut cluster),
            });
            changes.push(put(Object::Network(Arc::new(network))));
        }
    }
    service.ports = ports::of_service(state, &service, &spec.ports)?;
    service.networks = networks;
    changes.push(put(Object::Cluster(Arc::new(cluster))));
    changes.push(put(Object::Service(Arc::new(service.clone()))));
    Ok((Reply::Service(Box::new(service)), changes))
}

pub(super) fn take_slot(cluster: &mut Cluster) -> u32 {
    let slot = cluster.next_slot;
    cluster.next_slot += 1;
    slot
}

pub(super) fn remove(state: &State, r: &str, index: u64) -> Effect {
    let service = state.find_service(r)?;
    let mut changes = Vec::new();
    for e in state.objects.endpoints.of_service(service.id) {
        let mut e = crate::objects::Endpoint::clone(e);
        e.service = None;
        e.version = index;
        changes.push(put_endpoint(e));
    }
    changes.push(gone(Kind::Service, service.id));
    Ok((Reply::Done, changes))
}

/// A service by its id, for endpoints that name it.
pub(super) fn on_network<'a>(state: &'a State, r: &str, network: &Network) -> Result<&'a Service, Refusal> {
    let service = state.find_service(r)?;
    if !service.networks.contains(&network.id) {
        let on = some_of(
            service
                .networks
                .iter()
                .filter_map(|n: &Id| state.objects.networks.get(n))
                .map(|n| n.name.clone()),
        );
        return Err(Refusal::other(format!(
            "service {:?} is not on network {:?}: it is on {on}",
            service.name, network.name
        )));
    }
    Ok(service)
}

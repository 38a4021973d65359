//! The verbs of the network driver and of the IPAM driver that do something, as commands to the
//! cluster. Called by the plugin's router.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use mesh_api::query::Query;
use mesh_core::{
    Id, Refusal, RefusalKind,
    command::{Command, NewEndpoint, Reply},
    intent::vxlan_name,
    objects::{Endpoint, Handover, Labels, Network, Object, Place, Sandbox},
    spec::unknown,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::wire::{self, CreateEndpoint, CreateNetwork, Interface, Joined, OfAddress, OfEndpoint, PoolGiven, Program, RequestPool};
use crate::{app::App, reconcile::resolvers::of_host};

/// The network by name or id, as the managers have it.
async fn network(app: &App, r: &str) -> Result<Arc<Network>, Refusal> {
    let read = app.query(Query::Network(r.to_owned())).await?;
    let found = read.objects.into_iter().find_map(|o| match o {
        Object::Network(n) => Some(n),
        _ => None,
    });
    found.ok_or_else(|| unknown("network", r))
}

/// The network that an address is of: no two have ranges that overlap.
async fn network_of(app: &App, ip: IpAddr) -> Result<Arc<Network>, Refusal> {
    let is_it = |n: &&Arc<Network>| n.subnet_of(ip).is_some();
    if let Some(known) = app.ledger.view().objects.networks.values().find(is_it) {
        return Ok(known.clone());
    }
    let read = app.query(Query::Networks).await?;
    let mut all = read.objects.into_iter().filter_map(|o| match o {
        Object::Network(n) => Some(n),
        _ => None,
    });
    all.find(|n| n.subnet_of(ip).is_some()).ok_or_else(|| {
        Refusal::not_found(format!(
            "no network of the cluster has the address {ip}: it was removed; remake docker's too"
        ))
    })
}

/// An endpoint that docker asks about.
async fn endpoint(app: &App, id: Id) -> Result<Arc<Endpoint>, Refusal> {
    if let Some(known) = app.ledger.view().objects.endpoints.get(&id) {
        return Ok(known.clone());
    }
    let read = app.query(Query::Endpoint(id.to_string())).await?;
    let found = read.objects.into_iter().find_map(|o| match o {
        Object::Endpoint(e) if e.id == id => Some(e),
        _ => None,
    });
    found.ok_or_else(|| Refusal::not_found(format!("no endpoint {id}: start the container again")))
}

/// Neither an option nor a range says which network is meant.
fn unnamed(what: &str) -> Refusal {
    Refusal::malformed(format!("the {what} has to know the network: use {}", wire::advice("NETWORK", None)))
}

pub async fn request_pool(app: Arc<App>, request: RequestPool) -> Result<PoolGiven, Refusal> {
    let network = match (request.options.get(wire::NETWORK), request.pool.parse::<IpNet>()) {
        (Some(name), _) => network(&app, name).await?,
        // `--subnet` alone says it as well: no two networks have ranges that overlap.
        (None, Ok(pool)) => network_of(&app, pool.addr()).await.map_err(|e| match e.kind {
            RefusalKind::NotFound => unnamed("IPAM driver"),
            _ => e,
        })?,
        (None, Err(_)) => return Err(unnamed("IPAM driver")),
    };
    let given = wire::pool(&request, &network)?;
    // Libnetwork asks again and again for a pool that does not overlap a link-scope route of this
    // host (requestPoolHelper in its network.go), which this network's own does; it does not look when
    // the pool was named.
    let device = vxlan_name(network.id);
    if request.pool.is_empty() && app.applied.borrow().hooks.iter().any(|h| h.dev == device) {
        return Err(Refusal::other(format!(
            "network {:?} is on this host already, which docker takes for another's: add --subnet {}",
            network.name, given.pool
        )));
    }
    Ok(given)
}

/// Addresses that were given to whoever asked again for what an earlier meshd had reserved.
#[derive(Default)]
pub struct Promises(Mutex<BTreeSet<IpAddr>>);

/// `again` is there where a meshd that was killed before it could answer may have reserved the address for this
/// very request. Of two containers that ask for one address, which Docker does not tell apart, the first has it.
pub async fn request_address(app: Arc<App>, request: OfAddress, again: Option<Arc<Promises>>) -> Result<Value, Refusal> {
    let (id, six) = wire::read_pool(&request.pool_id)?;
    let network = network(&app, &id.to_string()).await?;
    if let Some(address) = wire::standing(&request, &network, six)? {
        return Ok(json!({ "Address": address }));
    }
    let (node, ip) = (app.own_node().await?, wire::asked(&request)?);
    let command = Command::AddressReserve {
        network: id.to_string(),
        node,
        ip,
        six,
    };
    let refusal = match app.propose(command).await {
        Ok((_, Reply::Address(net))) => return Ok(json!({ "Address": net.to_string() })),
        Ok(_) => return Err(Refusal::other("the manager's answer has no address: is it of another version?")),
        Err(refusal) => refusal,
    };
    let (Some(ip), Some(promises), RefusalKind::Conflict) = (ip, again, refusal.kind) else {
        return Err(refusal);
    };
    let network = self::network(&app, &id.to_string()).await?;
    match wire::promised(&network, node, ip) {
        Some(address) if promises.0.lock().await.insert(ip) => Ok(json!({ "Address": address })),
        _ => Err(refusal),
    }
}

/// One that is asked `again` may have been carried out already, and the address be another container's by now: then
/// no endpoint is removed for it. What Docker has forgotten goes all the same, later ([`super::forgotten`]).
pub async fn release_address(app: Arc<App>, request: OfAddress, again: Option<Arc<Promises>>) -> Result<Value, Refusal> {
    let Some(ip) = wire::asked(&request)? else {
        return Ok(json!({}));
    };
    // Docker names no pool for an address that it did not ask for itself.
    let network = match network_of(&app, ip).await {
        Ok(network) => network.id.to_string(),
        // It went with its network.
        Err(e) if e.kind == RefusalKind::NotFound => return Ok(json!({})),
        Err(e) => return Err(e),
    };
    let command = Command::AddressRelease {
        network,
        node: app.own_node().await?,
        ip,
        with_endpoint: again.is_none(),
    };
    match app.propose(command).await {
        Err(e) if e.kind != RefusalKind::NotFound => Err(e),
        _ => Ok(json!({})),
    }
}

pub async fn create_network(app: Arc<App>, request: CreateNetwork) -> Result<Value, Refusal> {
    let named = wire::named(&request.options);
    let own = request.ipv4.iter().find(|p| p.address_space == wire::SPACE);
    let pool = own.and_then(|p| p.pool.parse::<IpNet>().ok());
    let found = match (named, pool) {
        (Some(name), _) => network(&app, name).await?,
        (None, Some(pool)) => network_of(&app, pool.addr()).await?,
        (None, None) => return Err(unnamed("driver")),
    };
    wire::check_network(&request, &found)?;
    Ok(json!({}))
}

pub async fn create_endpoint(app: Arc<App>, request: CreateEndpoint) -> Result<Value, Refusal> {
    let id = wire::endpoint_id(&request.endpoint)?;
    let decided = wire::decided(&request.interface)?;
    let network = network_of(&app, decided.ip).await?;
    let service = request.options.get(wire::SERVICE).and_then(Value::as_str).map(str::to_owned);
    let new = NewEndpoint {
        id,
        node: app.own_node().await?,
        network: network.id.to_string(),
        service,
        // Docker tells its container's name to nobody before it runs.
        name: format!("docker-{id}"),
        ip: Some(decided.ip),
        ip6: decided.ip6,
        mac: decided.mac,
        aliases: Vec::new(),
        labels: Labels::new(),
        sandbox: Sandbox::new(
            0,
            Place {
                container: format!("docker:{}", request.endpoint),
                handover: Some(Box::new(Handover {
                    endpoint: request.endpoint.clone(),
                    leased: false,
                })),
                ..Place::default()
            },
        ),
        ifname: None,
        ports: Vec::new(),
        port_ranges: Vec::new(),
    };
    app.attach(new, Timestamp::now()).await?;
    let made = endpoint(&app, id).await?;
    let left = wire::left(&request.interface, &made, &network);
    // Libnetwork takes nothing at all where nothing was left to decide.
    if left == Interface::default() {
        return Ok(json!({}));
    }
    Ok(json!({ "Interface": left }))
}

pub async fn join(app: Arc<App>, request: OfEndpoint) -> Result<Joined, Refusal> {
    let id = wire::endpoint_id(&request.endpoint)?;
    let endpoint = endpoint(&app, id).await?;
    // It was made by CreateEndpoint, unless this host has been restarted in between.
    app.made(id).await?;
    let first = endpoint.ip;
    let network = network_of(&app, first).await?;
    Ok(wire::joined(&endpoint, &network, &of_host(&app.config.resolv_conf)))
}

/// The container's default route is this endpoint's: what it publishes is published here. Docker offers
/// the same ports to every network of a container, when it makes an endpoint there; only one can answer.
pub async fn program(app: Arc<App>, request: Program) -> Result<Value, Refusal> {
    let id = wire::endpoint_id(&request.endpoint)?;
    let (ports, port_ranges) = wire::ports(&request.options)?;
    if endpoint(&app, id).await?.ports.is_empty() && ports.is_empty() && port_ranges.is_empty() {
        return Ok(json!({}));
    }
    app.publish(id, ports, port_ranges).await?;
    Ok(json!({}))
}

/// It is not any more, or the container has ended.
pub async fn revoke(app: Arc<App>, request: OfEndpoint) -> Result<Value, Refusal> {
    let id = wire::endpoint_id(&request.endpoint)?;
    let has_none = app.ledger.view().objects.endpoints.get(&id).is_some_and(|e| e.ports.is_empty());
    if has_none {
        return Ok(json!({}));
    }
    match app.publish(id, Vec::new(), Vec::new()).await {
        Err(e) if e.kind != RefusalKind::NotFound => Err(e),
        _ => Ok(json!({})),
    }
}

pub async fn delete_endpoint(app: Arc<App>, request: OfEndpoint) -> Result<Value, Refusal> {
    let id = wire::endpoint_id(&request.endpoint)?;
    app.let_go(id).await;
    Ok(json!({}))
}

//! Handlers for nodes, networks, services, endpoints, tokens and the root.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use jiff::Timestamp;
use mesh_api::{
    query::{Answer as Read, Query},
    rest::{
        CaView, ConnectRequest, DisconnectRequest, EndpointPatch, EndpointView, ForceQuery, NetworkView, NodePatch, NodeView, PruneReply,
        ServiceUpdate, ServiceView, TokenReply, paths,
    },
};
use mesh_core::{
    Id, Refusal,
    command::{Command, Reply},
    objects::{Change, Endpoint, EndpointState, Kind, Network, Node, Objects, Role, Service},
    spec::{NetworkSpec, ServiceSpec},
};

use super::{Answer, Args, Body, Ctx, Ref, answer, whole};
use crate::app::{App, fresh_id};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(paths::TOKEN, get(token))
        .route(paths::TOKEN_ROTATE, post(token_rotate))
        .route(paths::CA, get(ca))
        .route(paths::CA_ROTATE, post(ca_rotate))
        .route(paths::NODES, get(nodes))
        .route(paths::NODE, get(node).patch(node_update).delete(node_remove))
        .route(paths::NETWORKS, get(networks).post(network_create))
        .route(paths::NETWORKS_PRUNE, post(network_prune))
        .route(paths::NETWORK, get(network).delete(network_remove))
        .route(paths::NETWORK_CONNECT, post(connect))
        .route(paths::NETWORK_DISCONNECT, post(disconnect))
        .route(paths::SERVICES, get(services).post(service_create))
        .route(paths::SERVICE, get(service).put(service_update).delete(service_remove))
        .route(paths::SERVICE_ENDPOINTS, get(service_endpoints))
        .route(paths::ENDPOINTS, get(endpoints))
        .route(paths::ENDPOINT, get(endpoint).patch(endpoint_update))
}

/// The objects of an answer, as a whole.
fn objects(read: &Read) -> Objects {
    let mut all = Objects::default();
    for object in &read.objects {
        let (kind, id) = object.key();
        all.apply(&Change {
            kind,
            id,
            object: Some(object.clone()),
        });
    }
    all
}

/// The object that a query by reference is about.
fn first(read: &Read, kind: Kind) -> Result<Id, Refusal> {
    let found = read.objects.first().map(|o| o.key()).filter(|(k, _)| *k == kind);
    found
        .map(|(_, id)| id)
        .ok_or_else(|| Refusal::other("the manager's answer has no object: is it of another version?"))
}

fn lost() -> Refusal {
    Refusal::other("the manager's answer lacks the object: is it of another version?")
}

async fn read_node(app: &App, r: &str) -> Result<(Arc<Node>, bool), Refusal> {
    let read = app.query(Query::Node(r.to_owned())).await?;
    let node = objects(&read).nodes.remove(&first(&read, Kind::Node)?).ok_or_else(lost)?;
    let leads = read.managers.iter().any(|m| m.leader && m.node == node.id);
    Ok((node, leads))
}

async fn read_network(app: &App, r: &str) -> Result<(Arc<Network>, Objects), Refusal> {
    let read = app.query(Query::Network(r.to_owned())).await?;
    let all = objects(&read);
    let network = all.networks.get(&first(&read, Kind::Network)?).cloned().ok_or_else(lost)?;
    Ok((network, all))
}

async fn read_service(app: &App, r: &str) -> Result<(Arc<Service>, Objects), Refusal> {
    let read = app.query(Query::Service(r.to_owned())).await?;
    let all = objects(&read);
    let service = all.services.get(&first(&read, Kind::Service)?).cloned().ok_or_else(lost)?;
    Ok((service, all))
}

/// An endpoint with all that its view needs.
pub async fn read_endpoint(app: &App, r: &str) -> Result<(Arc<Endpoint>, Objects), Refusal> {
    let read = app.query(Query::Endpoint(r.to_owned())).await?;
    let all = objects(&read);
    let endpoint = all.endpoints.get(&first(&read, Kind::Endpoint)?).cloned().ok_or_else(lost)?;
    Ok((endpoint, all))
}

async fn network_view(app: &App, r: &str) -> Result<NetworkView, Refusal> {
    read_network(app, r).await.map(|(n, all)| NetworkView::of(&n, &all))
}

async fn service_view(app: &App, r: &str) -> Result<ServiceView, Refusal> {
    read_service(app, r).await.map(|(s, all)| ServiceView::of(&s, &all))
}

async fn done(app: &App, command: Command) -> Result<(), Refusal> {
    app.propose(command).await.map(drop)
}

async fn token(State(app): Ctx, Ref(role): Ref<String>) -> Answer<TokenReply> {
    answer(read_token(&app, &role).await)
}

async fn read_token(app: &App, role: &str) -> Result<TokenReply, Refusal> {
    let role = parse_role(role)?;
    let read = app.query(Query::Token(role)).await?;
    let leader = read.managers.iter().find(|m| m.leader).or(read.managers.first());
    let address = leader.map(|m| m.addr.clone()).unwrap_or_default();
    let token = read.token.ok_or_else(|| Refusal::other("the manager did not say the token"))?;
    Ok(TokenReply { role, token, address })
}

fn parse_role(role: &str) -> Result<Role, Refusal> {
    match role {
        "worker" => Ok(Role::Worker),
        "manager" => Ok(Role::Manager),
        _ => Err(Refusal::malformed(format!("{role:?} is not a role: use worker or manager"))),
    }
}

async fn token_rotate(State(app): Ctx, Ref(role): Ref<String>) -> Answer<TokenReply> {
    let rotate = async {
        let command = Command::TokenRotate {
            role: parse_role(&role)?,
            secret: mesh_control::token::new_secret(),
        };
        done(&app, command).await?;
        read_token(&app, &role).await
    };
    answer(rotate.await)
}

async fn ca(State(app): Ctx) -> Answer<CaView> {
    answer(app.ca().await)
}

async fn ca_rotate(State(app): Ctx) -> Answer<CaView> {
    answer(whole(async move { app.ca_rotate().await }).await)
}

async fn nodes(State(app): Ctx) -> Answer<Vec<NodeView>> {
    let list = async {
        let read = app.query(Query::Nodes).await?;
        let leads = |id: Id| read.managers.iter().any(|m| m.leader && m.node == id);
        let mut nodes: Vec<_> = objects(&read).nodes.values().map(|n| NodeView::of(n, leads(n.id))).collect();
        nodes.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        Ok(nodes)
    };
    answer(list.await)
}

async fn node(State(app): Ctx, Ref(r): Ref<String>) -> Answer<NodeView> {
    answer(read_node(&app, &r).await.map(|(n, leads)| NodeView::of(&n, leads)))
}

async fn node_update(State(app): Ctx, Ref(r): Ref<String>, Body(p): Body<NodePatch>) -> Answer<NodeView> {
    let update = async {
        if let Some(role) = p.role {
            let (worker, node) = (app.clone(), r.clone());
            whole(async move { worker.set_role(&node, role).await }).await?;
        }
        if p.availability.is_some() || !p.label_add.is_empty() || !p.label_rm.is_empty() {
            let command = Command::NodeUpdate {
                node: r.clone(),
                availability: p.availability,
                label_add: p.label_add,
                label_rm: p.label_rm,
            };
            done(&app, command).await?;
        }
        read_node(&app, &r).await.map(|(n, leads)| NodeView::of(&n, leads))
    };
    answer(update.await)
}

async fn node_remove(State(app): Ctx, Ref(r): Ref<String>, Args(q): Args<ForceQuery>) -> Answer<()> {
    answer(done(&app, Command::NodeRemove { node: r, force: q.force }).await)
}

async fn networks(State(app): Ctx) -> Answer<Vec<NetworkView>> {
    answer(app.query(Query::Networks).await.map(|read| NetworkView::list(&objects(&read))))
}

async fn network(State(app): Ctx, Ref(r): Ref<String>) -> Answer<NetworkView> {
    answer(network_view(&app, &r).await)
}

async fn network_create(State(app): Ctx, Body(spec): Body<NetworkSpec>) -> Answer<NetworkView> {
    let create = async {
        spec.check()?;
        let id = fresh_id();
        done(
            &app,
            Command::NetworkCreate {
                id,
                at: Timestamp::now(),
                spec,
            },
        )
        .await?;
        network_view(&app, &id.to_string()).await
    };
    answer(create.await)
}

async fn network_remove(State(app): Ctx, Ref(r): Ref<String>) -> Answer<()> {
    answer(done(&app, Command::NetworkRemove { network: r }).await)
}

async fn network_prune(State(app): Ctx) -> Answer<PruneReply> {
    let prune = async {
        match app.propose(Command::NetworkPrune {}).await? {
            (_, Reply::Networks(removed)) => Ok(PruneReply { removed }),
            _ => Err(lost()),
        }
    };
    answer(prune.await)
}

async fn connect(State(app): Ctx, Ref(r): Ref<String>, Body(request): Body<ConnectRequest>) -> Answer<EndpointView> {
    let connect = async {
        let (worker, network) = (app.clone(), r.clone());
        let id = whole(async move { worker.connect(&network, request).await }).await?;
        read_endpoint(&app, &id.to_string())
            .await
            .map(|(e, all)| EndpointView::of(&e, &all))
    };
    answer(connect.await)
}

async fn disconnect(State(app): Ctx, Ref(r): Ref<String>, Body(request): Body<DisconnectRequest>) -> Answer<()> {
    answer(whole(async move { app.disconnect(&r, request).await }).await)
}

async fn services(State(app): Ctx) -> Answer<Vec<ServiceView>> {
    answer(app.query(Query::Services).await.map(|read| ServiceView::list(&objects(&read))))
}

async fn service(State(app): Ctx, Ref(r): Ref<String>) -> Answer<ServiceView> {
    answer(service_view(&app, &r).await)
}

async fn service_create(State(app): Ctx, Body(spec): Body<ServiceSpec>) -> Answer<ServiceView> {
    let create = async {
        spec.check()?;
        let id = fresh_id();
        done(
            &app,
            Command::ServiceCreate {
                id,
                at: Timestamp::now(),
                spec,
            },
        )
        .await?;
        service_view(&app, &id.to_string()).await
    };
    answer(create.await)
}

async fn service_update(State(app): Ctx, Ref(r): Ref<String>, Body(update): Body<ServiceUpdate>) -> Answer<ServiceView> {
    let change = async {
        update.spec.check()?;
        done(
            &app,
            Command::ServiceUpdate {
                service: r.clone(),
                version: update.version,
                spec: update.spec,
            },
        )
        .await?;
        service_view(&app, &r).await
    };
    answer(change.await)
}

async fn service_remove(State(app): Ctx, Ref(r): Ref<String>) -> Answer<()> {
    answer(done(&app, Command::ServiceRemove { service: r }).await)
}

async fn service_endpoints(State(app): Ctx, Ref(r): Ref<String>) -> Answer<Vec<EndpointView>> {
    answer(read_service(&app, &r).await.map(|(_, all)| EndpointView::list(&all)))
}

async fn endpoints(State(app): Ctx) -> Answer<Vec<EndpointView>> {
    answer(app.query(Query::Endpoints).await.map(|read| EndpointView::list(&objects(&read))))
}

async fn endpoint(State(app): Ctx, Ref(r): Ref<String>) -> Answer<EndpointView> {
    answer(read_endpoint(&app, &r).await.map(|(e, all)| EndpointView::of(&e, &all)))
}

async fn endpoint_update(State(app): Ctx, Ref(r): Ref<String>, Body(p): Body<EndpointPatch>) -> Answer<EndpointView> {
    let update = async {
        let (endpoint, _) = read_endpoint(&app, &r).await?;
        let id = endpoint.id;
        if p.state == Some(EndpointState::Starting) || p.state.is_some() && endpoint.state == EndpointState::Starting {
            return Err(Refusal::other(format!(
                "endpoint {} is still being attached, or was asked to begin again: only ready and draining can be set",
                endpoint.name
            )));
        }
        if let Some(weight) = p.weight {
            done(&app, Command::EndpointWeigh { id, weight }).await?;
        }
        match p.state {
            Some(EndpointState::Draining) => {
                let (worker, endpoint) = (app.clone(), endpoint.clone());
                whole(async move { worker.drain(&endpoint).await }).await?;
            }
            Some(state) => done(&app, Command::EndpointSet { id, state }).await?,
            None => {}
        }
        read_endpoint(&app, &endpoint.id.to_string())
            .await
            .map(|(e, all)| EndpointView::of(&e, &all))
    };
    answer(update.await)
}

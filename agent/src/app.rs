//! What meshd can do for whoever asks: the operations behind the local API.
//!
//! Reads and writes of the cluster go to its managers; an attachment is a write that comes back as
//! intent. Nothing here touches the kernel: the reconcile loop does.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use mesh_api::{
    query::{Answer, Query},
    rest::{ConnectRequest, DataplaneView, DisconnectRequest, Event, ManagerView, NodeName, StatusView},
};
use mesh_control::client::ControlClient;
use mesh_core::{
    Id, Mac, Refusal, RefusalKind,
    command::{Command, NewEndpoint, PortRange, Reply},
    lb::{Hook, Program},
    objects::{Bandwidth, Endpoint, EndpointState, Object, Port},
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::timeout,
};

use crate::{
    attachments::Attachments,
    config::Config,
    events::EventLog,
    ledger::Ledger,
    membership::Membership,
    reconcile::{Applied, Request},
    sandbox,
    traffic::flows::Hub,
};

/// How long an attachment may take before it is given up and taken back.
pub(crate) const ATTACH_TIME: Duration = Duration::from_secs(10);
const STATUS_TIME: Duration = Duration::from_secs(2);

/// A new object's id.
pub fn fresh_id() -> Id {
    Id::from_bits(rand::random())
}

/// meshd, as its local API sees it.
pub struct App {
    /// Settings.
    pub config: Config,
    /// This host's copy of the objects.
    pub ledger: Arc<Ledger>,
    /// News.
    pub events_log: Arc<EventLog>,
    /// Outcome of the reconcile loop.
    pub applied: watch::Receiver<Applied>,
    /// To the reconcile loop.
    pub requests: mpsc::Sender<Request>,
    /// The host's place in a cluster.
    pub membership: Membership,
    /// Attachments that are waited for or given up.
    pub attachments: Arc<Attachments>,
    /// The stream of flows.
    pub flows: Arc<Hub>,
    /// Nodes of the segment that take packets without encapsulation, by their Ethernet addresses.
    pub neighbors: watch::Receiver<BTreeSet<Mac>>,
    /// What this kernel lacks.
    pub degraded: Vec<String>,
}

pub(crate) fn no_cluster() -> Refusal {
    Refusal::other("this host belongs to no cluster: run meshctl init or meshctl join first")
}

impl App {
    async fn client(&self) -> Result<Arc<ControlClient>, Refusal> {
        self.membership.client().await.ok_or_else(no_cluster)
    }

    /// Carries out a command: its revision and what it answered.
    pub async fn propose(&self, command: Command) -> Result<(u64, Reply), Refusal> {
        let (revision, outcome) = self.client().await?.propose(command).await?;
        outcome.map(|reply| (revision, reply))
    }

    /// Reads from the managers.
    pub async fn query(&self, query: Query) -> Result<Answer, Refusal> {
        self.client().await?.query(query).await
    }

    /// This host, as a node.
    pub async fn own_node(&self) -> Result<Id, Refusal> {
        self.membership.node().await.ok_or_else(no_cluster)
    }

    /// Attaches a container of this host: returns once its interface, its names and its balancing
    /// work here. Whatever fails, nothing stays.
    pub async fn connect(&self, network: &str, request: ConnectRequest) -> Result<Id, Refusal> {
        let node = self.own_node().await?;
        let bandwidth = request.bandwidth.map(Bandwidth::from).filter(Bandwidth::is_limit);
        if let Some(bandwidth) = &bandwidth {
            bandwidth.check()?;
        }
        let mut found = sandbox::find(&request.container, &self.config.engines()).await?;
        if let Some(sibling) = self.sibling(node, found.sandbox.inode) {
            found.sandbox.routed = sibling.sandbox.routed;
        }
        if bandwidth.is_some() {
            found.sandbox.bandwidth = bandwidth.map(Box::new);
        }
        let endpoint = NewEndpoint {
            id: fresh_id(),
            node,
            network: network.to_owned(),
            service: request.service,
            name: request.hostname.unwrap_or(found.name),
            ip: request.ip,
            ip6: request.ip6,
            mac: request.mac,
            aliases: request.aliases,
            labels: request.labels,
            sandbox: found.sandbox,
            ifname: request.ifname.or(found.ifname),
            ports: request.ports,
            port_ranges: Vec::new(),
        };
        let id = endpoint.id;
        self.attach(endpoint, Timestamp::now()).await.map(|()| id)
    }

    /// An endpoint of this host in the namespace of that inode. It knows whether that had a default route
    /// before any was there.
    fn sibling(&self, node: Id, inode: u64) -> Option<Arc<Endpoint>> {
        let all = self.ledger.view().objects;
        all.endpoints.on_node(node).find(|e| e.sandbox.inode == inode).cloned()
    }

    /// Attaches an endpoint of this host: returns once its interface, its names and its balancing work
    /// here, or, for one that an engine takes into its container itself, can be taken. Whatever fails,
    /// nothing stays.
    pub async fn attach(&self, endpoint: NewEndpoint, at: Timestamp) -> Result<(), Refusal> {
        let id = endpoint.id;
        let _awaited = self.attachments.await_one(id, &endpoint.labels);
        if let Err(refusal) = self.propose(Command::EndpointCreate { endpoint, at }).await {
            // Nobody said no: it may still be carried out.
            if refusal.kind == RefusalKind::Unavailable {
                self.attachments.abandon(id);
            }
            return Err(refusal);
        }
        let attached = self.made(id).await;
        if attached.is_err() {
            self.take_back(id).await;
        }
        attached
    }

    /// Waits until an endpoint of this host works.
    pub async fn made(&self, id: Id) -> Result<(), Refusal> {
        match timeout(ATTACH_TIME, self.attached(id)).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::other(format!(
                "the container was not attached within {} s: see meshctl status",
                ATTACH_TIME.as_secs()
            ))),
        }
    }

    /// Whether an engine has taken an endpoint of this host, into a container that is not known yet.
    pub fn is_taken(&self, e: &Endpoint) -> bool {
        self.is_made(e) && !e.sandbox.is_known() && !self.applied.borrow().waiting.contains(&e.id)
    }

    /// Whether the kernel has been brought to an endpoint of this host.
    pub fn is_made(&self, e: &Endpoint) -> bool {
        let applied = self.applied.borrow();
        e.version <= applied.revision && !applied.failed.contains_key(&e.id)
    }

    /// Removes an endpoint of this host that an engine gives up; returns once its interface is gone.
    /// One that does not exist is gone; where no manager answers, it goes as soon as one does.
    pub async fn let_go(&self, id: Id) {
        self.take_back(id).await;
    }

    /// Gives an endpoint of this host these ports of its own; returns once they answer.
    pub async fn publish(&self, id: Id, ports: Vec<Port>, port_ranges: Vec<PortRange>) -> Result<(), Refusal> {
        let (revision, _) = self.propose(Command::EndpointPublish { id, ports, port_ranges }).await?;
        if timeout(ATTACH_TIME, self.reached(revision)).await.is_err() {
            tracing::warn!(endpoint = %id, "its ports are published, but this host has not caught up");
        }
        Ok(())
    }

    /// Removes a failed attachment, and waits until it is gone from this host: what was tried can be
    /// tried again then.
    async fn take_back(&self, id: Id) {
        match self.propose(Command::EndpointRemove { id }).await {
            Ok((revision, _)) => {
                if timeout(ATTACH_TIME, self.reached(revision)).await.is_err() {
                    tracing::warn!(endpoint = %id, "a failed attachment is removed, but this host has not caught up");
                }
            }
            // Its container ended meanwhile, and it was removed for that.
            Err(e) if e.kind == RefusalKind::NotFound => {}
            Err(e) => {
                tracing::warn!(endpoint = %id, error = %e.message, "a failed attachment is taken back once a manager answers");
                self.attachments.abandon(id);
            }
        }
    }

    /// Waits until an endpoint of this host is ready and the kernel has been brought to that.
    async fn attached(&self, id: Id) -> Result<(), Refusal> {
        let mut applied = self.applied.clone();
        let mut ledger = self.ledger.subscribe();
        let mut seen = false;
        loop {
            let (revision, failure, gone) = {
                let a = applied.borrow_and_update();
                (a.revision, a.failed.get(&id).cloned(), a.gone.contains(&id))
            };
            ledger.mark_unchanged();
            match self.ledger.view().objects.endpoints.get(&id) {
                Some(e) => {
                    seen = true;
                    if let Some(why) = failure {
                        return Err(if gone { Refusal::not_found(why) } else { Refusal::other(why) });
                    }
                    // An engine's is ready only once it was taken, which waits for this.
                    let is_done = e.state != EndpointState::Starting || e.sandbox.handover.is_some();
                    if is_done && e.version <= revision {
                        return Ok(());
                    }
                }
                None if seen => return Err(Refusal::not_found("the container ended while it was being attached")),
                None => {}
            }
            tokio::select! {
                r = applied.changed() => r.map_err(|_| Refusal::unavailable("meshd is stopping"))?,
                r = ledger.changed() => r.map_err(|_| Refusal::unavailable("meshd is stopping"))?,
            }
        }
    }

    /// Detaches a container of this host; returns once its interface is gone. One that serves is let go
    /// by every node first, and its flows may end within the time that its service gives them, unless
    /// that is forced.
    pub async fn disconnect(&self, network: &str, request: DisconnectRequest) -> Result<(), Refusal> {
        let node = self.own_node().await?;
        let read = self.query(Query::Network(network.to_owned())).await?;
        let here = read.objects.iter().filter_map(|o| match o {
            Object::Endpoint(e) if e.node == node => Some(e.as_ref()),
            _ => None,
        });
        let here: Vec<&Endpoint> = here.collect();
        let endpoint = match named(&here, &request.container) {
            Some(endpoint) => endpoint,
            None => {
                let none = || {
                    Refusal::not_found(format!(
                        "container {:?} is not attached to network {network:?} on this host",
                        request.container
                    ))
                };
                let sandbox = match sandbox::find(&request.container, &self.config.engines()).await {
                    Ok(found) => found.sandbox,
                    Err(_) if request.force => return Err(none()),
                    Err(e) => return Err(e),
                };
                here.iter().find(|e| e.sandbox.is_same(&sandbox)).ok_or_else(none)?
            }
        };
        if endpoint.sandbox.handover.is_some() && !request.force {
            return Err(Refusal::conflict(format!(
                "docker attached {0:?}: use docker network disconnect NETWORK {0}, or --force",
                endpoint.sandbox.container
            )));
        }
        let id = endpoint.id;
        let drain_secs = read.objects.iter().filter_map(|o| match o {
            Object::Service(s) if s.has(endpoint) => Some(s.drain_secs),
            _ => None,
        });
        if let Some(secs) = drain_secs.max()
            && !request.force
            && endpoint.state != EndpointState::Starting
        {
            self.drain(endpoint).await?;
            self.emptied(endpoint, Duration::from_secs(secs.into())).await;
        }
        let (revision, _) = self.propose(Command::EndpointRemove { id }).await?;
        match timeout(ATTACH_TIME, self.reached(revision)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(Refusal::other(
                "the container is detached, but this host has not caught up: see meshctl status",
            )),
        }
    }

    pub(crate) async fn reached(&self, revision: u64) -> Result<(), Refusal> {
        let mut applied = self.applied.clone();
        applied
            .wait_for(|a| a.revision >= revision)
            .await
            .map(drop)
            .map_err(|_| Refusal::unavailable("meshd is stopping"))
    }

    /// What happened, and what happens from now on.
    pub fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.events_log.read()
    }

    /// How this host is. Answers at once, with or without managers.
    pub async fn status(&self) -> StatusView {
        let view = self.ledger.view();
        let applied = self.applied.borrow().clone();
        let identity = self.membership.identity().await;
        let head = match self.membership.client().await {
            Some(client) => timeout(STATUS_TIME, client.query(Query::Head)).await.ok().and_then(Result::ok),
            None => None,
        };
        let node = identity.as_ref().map(|i| NodeName {
            id: i.node,
            hostname: self.hostname(i.node),
        });
        let hooks = applied.hooks.iter().map(hook_name).collect();
        StatusView {
            node,
            cluster: identity.as_ref().map(|i| i.cluster),
            role: identity.as_ref().map(|i| i.role),
            manager: head.map(|h| ManagerView::of(h.revision, &h.managers)),
            applied_generation: applied.revision,
            networks: view.objects.networks.len() as u64,
            services: view.objects.services.len() as u64,
            endpoints: view.objects.endpoints.len() as u64,
            dataplane: DataplaneView {
                hooks,
                kernel: kernel_release(),
                degraded: self.degraded().into_iter().chain(self.copied().await).collect(),
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            errors: applied.errors,
        }
    }

    /// What does not work as it should: what this kernel lacks, and a ledger that is not on disk.
    fn degraded(&self) -> Vec<String> {
        self.degraded.iter().cloned().chain(self.ledger.trouble()).collect()
    }

    /// That this host is a copy of one that runs, if it is.
    pub(crate) async fn copied(&self) -> Option<String> {
        let other = self.membership.client().await?.twin()?;
        Some(format!(
            "the host at {other} has this node's identity too and counts as the node: if this one was copied from it, run meshctl \
             leave --force here, which leaves that one alone, and join again"
        ))
    }

    fn hostname(&self, node: Id) -> String {
        self.ledger
            .view()
            .objects
            .nodes
            .get(&node)
            .map_or_else(|| self.config.hostname.clone(), |n| n.hostname.clone())
    }
}

/// The endpoint that `container` means: its container, or else its id, or else its name, which may
/// be that of another's container.
fn named<'a>(here: &[&'a Endpoint], container: &str) -> Option<&'a Endpoint> {
    let find = |is: &dyn Fn(&Endpoint) -> bool| here.iter().find(|e| is(e)).copied();
    find(&|e| e.sandbox.container == container)
        .or_else(|| find(&|e| e.id.to_string() == container))
        .or_else(|| find(&|e| *e.name == *container))
}

/// A program at its device, for people.
pub fn hook_name(hook: &Hook) -> String {
    match hook.dev.as_str() {
        // The programs of sockets sit at no device.
        "" => program_name(hook.program).to_owned(),
        dev => format!("{}@{dev}", program_name(hook.program)),
    }
}

/// The program's name in the object and in pins.
fn program_name(program: Program) -> &'static str {
    match program {
        Program::FromUplink => "from_uplink",
        Program::FromOverlay => "from_overlay",
        Program::FromNetwork => "from_network",
        Program::FromContainer => "from_container",
        Program::ToContainer => "to_container",
        Program::Sockets => "sockets",
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_goes_before_a_name() {
        let endpoint = |n: u64, name: &str, container: &str| -> Endpoint {
            serde_json::from_value(serde_json::json!({
                "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": name, "labels": {},
                "node": Id::from_bits(1), "network": Id::from_bits(2), "ip": "10.0.0.9", "mac": "02:00:00:00:00:09",
                "aliases": [], "service": null, "ifname": "eth0", "state": "ready", "slot": 1,
                "sandbox": {"container": container, "netns": "/run/netns/e", "inode": 5},
            }))
            .unwrap()
        };
        let second = Id::from_bits(2).to_string();
        let all = [endpoint(1, "web", "db"), endpoint(2, "db", "web"), endpoint(3, &second, "netns:x")];
        let here: Vec<_> = all.iter().collect();
        let found = |container: &str| named(&here, container).map(|e| e.id.bits());
        assert_eq!(found("db"), Some(1));
        assert_eq!(found("web"), Some(2));
        assert_eq!(found(&second), Some(2), "an id goes before a name");
        assert_eq!(found("netns:x"), Some(3));
        assert_eq!(found("none"), None);
    }
}

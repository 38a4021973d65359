//! Commands, reads and renewals.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use mesh_api::{
    proto::{ProposeReply, ProposeRequest, QueryReply, QueryRequest, RenewReply, RenewRequest, control_server::Control},
    query::{self, Answer, Query, Roots},
};
use mesh_core::{
    Refusal,
    command::Command,
    objects::{Node, NodeState, Objects, Role},
    state::may_stop_managing,
};
use tonic::{Request, Response, Status};

use super::{Shared, certify, hint, json, managers, member, name, read_json, status_of};
use crate::{
    authz::{self, Member},
    consensus::Leadership,
    health::lead,
    pki::Authority,
    roots, token,
};

/// How long the removal or demotion of a manager may take from its application until the vote is gone.
const VOTE_TIME: Duration = Duration::from_secs(10);

pub(super) struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl Control for Service {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let caller = member(&request)?;
        let command: Command = read_json("command", &request.get_ref().command)?;
        let led_by = |leader| {
            Ok(Response::new(ProposeReply {
                leader,
                ..Default::default()
            }))
        };
        if let Some(leader) = self.0.leader_elsewhere() {
            return led_by(leader);
        }
        if let Err(refusal) = authz::may_propose(caller, &command, &self.0.consensus.objects().1) {
            // What this manager knows may be behind what it already committed as a new leader.
            match self.0.consensus.read_barrier().await.map_err(hint) {
                Ok(_) => authz::may_propose(caller, &command, &self.0.consensus.objects().1).map_err(|r| status_of(&r))?,
                Err(Ok(leader)) => return led_by(leader),
                Err(Err(_)) => return Err(status_of(&refusal)),
            }
        }
        self.keeps_a_voter(&command).map_err(|refusal| status_of(&refusal))?;
        let name = command.name();
        let takes_vote = command.leaver().is_some();
        self.understood(&command).map_err(|refusal| status_of(&refusal))?;
        if self.ends_me(&command)
            && let Some(leader) = self.hand_over().await?
        {
            return led_by(leader);
        }
        // The new root must be signed by the one that it replaces, not by one that this manager still has.
        if matches!(command, Command::CaRotate { .. })
            && let Some(leader) = self.0.elsewhere().await?
        {
            return led_by(leader);
        }
        let command = self.filled(command).map_err(|refusal| status_of(&refusal))?;
        match self.0.consensus.propose(pinned(command, caller)).await {
            Ok(applied) => {
                tracing::debug!(command = name, by = %caller.node, revision = applied.revision, ok = applied.outcome.is_ok(), "command carried out");
                if takes_vote {
                    self.take_votes().await.map_err(|refusal| status_of(&refusal))?;
                }
                let outcome = json(&applied.outcome)?;
                Ok(Response::new(ProposeReply {
                    revision: applied.revision,
                    outcome,
                    leader: String::new(),
                }))
            }
            Err(e) => led_by(hint(e)?),
        }
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let caller = member(&request)?;
        let query: Query = read_json("query", &request.get_ref().query)?;
        let led_by = |leader| {
            Ok(Response::new(QueryReply {
                leader,
                ..Default::default()
            }))
        };
        if let Some(leader) = self.0.elsewhere().await? {
            return led_by(leader);
        }
        let answer = json(&self.answer(caller, &query))?;
        Ok(Response::new(QueryReply {
            answer,
            leader: String::new(),
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let name = name(&request)?;
        let led_by = |leader| {
            Ok(Response::new(RenewReply {
                leader,
                ..Default::default()
            }))
        };
        // A manager that is behind would sign with a root that is forgotten, and say that it is the only one.
        if let Some(leader) = self.0.elsewhere().await? {
            return led_by(leader);
        }
        let (_, all) = self.0.consensus.objects();
        let refuse = |r: Refusal| status_of(&r);
        let cluster = all
            .cluster
            .as_ref()
            .ok_or_else(|| refuse(Refusal::unavailable("this manager is being brought up to date")))?;
        let voters = self.0.consensus.leadership().borrow().voters.clone();
        let (role, raft_id) = certify::certified(&name, &all, &voters).map_err(refuse)?;
        let ca = Authority::load(cluster.id, &cluster.ca_cert, &cluster.ca_key).map_err(|e| Status::internal(e.to_string()))?;
        let cert = ca
            .sign(&request.get_ref().csr, name.node, role, raft_id)
            .map_err(|e| refuse(Refusal::malformed(e.to_string())))?;
        tracing::info!(node = %name.node, role = role.as_str(), "certificate renewed");
        Ok(Response::new(RenewReply {
            cert: roots::chain(cluster, &cert),
            ca: roots::bundle(cluster),
            leader: String::new(),
        }))
    }
}

impl Service {
    /// A command with what only a manager can fill in: a new root, which the present one has to sign.
    fn filled(&self, command: Command) -> Result<Command, Refusal> {
        let Command::CaRotate { from, at, .. } = command else {
            return Ok(command);
        };
        let (_, all) = self.0.consensus.objects();
        let cluster = all
            .cluster
            .as_ref()
            .ok_or_else(|| Refusal::unavailable("this manager is being brought up to date"))?;
        // Otherwise it is a repetition, or comes too late: the state tells them apart.
        let made = (cluster.ca_cert == from).then(|| roots::next(cluster)).transpose();
        let made = made.map_err(|e| Refusal::other(format!("can not make a new root: {e}")))?;
        Ok(Command::CaRotate { from, at, made })
    }

    /// Refuses what nodes of a release before it could not follow: a manager of one can not read the log entry.
    /// Those releases do not say with their heartbeat which root their certificate is of.
    fn understood(&self, command: &Command) -> Result<(), Refusal> {
        if !matches!(command, Command::NodeRole { .. } | Command::CaRotate { .. }) {
            return Ok(());
        }
        let silent = self.0.health().rootless();
        let (_, all) = self.0.consensus.objects();
        let names: Vec<_> = silent
            .iter()
            .filter_map(|id| all.nodes.get(id))
            .map(|n| n.hostname.as_str())
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Refusal::conflict(format!(
            "meshd is of an older release on {}, which does not know this command: upgrade every node first",
            names.join(", ")
        )))
    }

    /// What the cluster trusts, and which nodes have said that they do.
    fn roots(&self, all: &Objects) -> Option<Roots> {
        let cluster = all.cluster.as_deref()?;
        let said = self.0.health().roots();
        let former = || cluster.former_roots.iter();
        Some(Roots {
            certs: std::iter::once(&cluster.ca_cert)
                .chain(former().map(|r| &r.cert))
                .cloned()
                .collect(),
            replaced_at: former().map(|r| r.replaced_at).collect(),
            known_by: roots::known_by(cluster, &said),
        })
    }

    /// Refuses to let a voter go when no other manager has a vote and is up, as far as is known. The state can not tell: it has
    /// managers that were just promoted, but not who of them votes.
    fn keeps_a_voter(&self, command: &Command) -> Result<(), Refusal> {
        let (_, all) = self.0.consensus.objects();
        let Some(leaver) = command.leaver().and_then(|r| all.node(r)) else {
            return Ok(());
        };
        let leadership = self.0.consensus.leadership();
        let now = leadership.borrow();
        keeps_a_voter(&all, &now, leaver)
    }

    /// Whether a command ends this manager, and will not be refused for it.
    fn ends_me(&self, command: &Command) -> bool {
        let Some(leaver) = command.leaver() else { return false };
        let (_, all) = self.0.consensus.objects();
        let own = all.node(leaver).filter(|n| n.id == self.0.identity.file().node);
        own.is_some_and(|n| n.role == Role::Manager && may_stop_managing(&all, n).is_ok())
    }

    /// Hands leadership to a manager that is up, because this one is to go: whoever leads
    /// takes the vote away, and can not take its own. Returns the new leader's `host:port`; `None`
    /// when this is the only voter.
    async fn hand_over(&self) -> Result<Option<String>, Status> {
        let own = self.0.identity.file().raft_id;
        let voters = self.0.consensus.leadership().borrow().voters.clone();
        let (_, all) = self.0.consensus.objects();
        let is_up = |id: u64| all.nodes.values().any(|n| n.raft_id == id && n.state == NodeState::Ready);
        let others = voters.iter().filter(|(id, _)| **id != own);
        let Some((to, addr)) = others.max_by_key(|(id, _)| is_up(**id)) else {
            return Ok(None);
        };
        match self.0.consensus.transfer_leader(*to).await {
            Ok(()) => Ok(Some(addr.clone())),
            Err(e) => hint(e).map(Some),
        }
    }

    /// Takes the votes of managers that were removed or demoted, before they are told so: they stop then,
    /// and if their votes still counted the others might have no majority to take them. Also when a removal
    /// was repeated and found nothing: the first one may not have come this far.
    async fn take_votes(&self) -> Result<(), Refusal> {
        let managers = lead::managers(&self.0.consensus.objects().1);
        let mut leadership = self.0.consensus.leadership();
        let gone = leadership.wait_for(|l| l.voters.keys().all(|id| managers.contains_key(id)));
        let taken = async {
            tokio::select! {
                biased;
                _ = gone => Ok(()),
                done = self.0.consensus.set_members(managers.clone()) => done,
            }
        };
        let why = match tokio::time::timeout(VOTE_TIME, taken).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no answer within {} s", VOTE_TIME.as_secs()),
        };
        Err(Refusal::other(format!(
            "the node is no manager any more, but its vote still counts towards the quorum ({why}): it is tried again, leave meshd running there until then"
        )))
    }

    fn answer(&self, caller: Member, query: &Query) -> Result<Answer, Refusal> {
        let (revision, all) = self.0.consensus.objects();
        authz::may_query(caller, query, &all)?;
        let token = match query {
            Query::Token(role) => Some(token_of(&all, *role)?),
            _ => None,
        };
        let applied = match query {
            Query::Applied => self.0.health().applied(),
            _ => Default::default(),
        };
        let leadership = self.0.consensus.leadership().borrow().clone();
        Ok(Answer {
            revision,
            managers: managers(&all, &leadership),
            members: leadership.voters.keys().chain(leadership.learners.keys()).copied().collect(),
            time: Some(Timestamp::now()),
            objects: query::select(&all, query)?,
            applied,
            roots: matches!(query, Query::Authority).then(|| self.roots(&all)).flatten(),
            token,
        })
    }
}

/// See [`Service::keeps_a_voter`]. A node that is the only manager is left to the state, which says so better.
fn keeps_a_voter(all: &Objects, now: &Leadership, leaver: &Node) -> Result<(), Refusal> {
    let votes = |n: &Node| n.role == Role::Manager && now.voters.contains_key(&n.raft_id);
    if !votes(leaver) || may_stop_managing(all, leaver).is_err() {
        return Ok(());
    }
    let stays = |n: &&std::sync::Arc<Node>| n.id != leaver.id && n.state != NodeState::Down && votes(n);
    if all.nodes.values().any(|n| stays(&n)) {
        return Ok(());
    }
    Err(Refusal::conflict(format!(
        "node {} is the only manager that has a vote and is not down: wait until another one has (meshctl node ls)",
        leaver.hostname
    )))
}

fn token_of(all: &mesh_core::objects::Objects, role: Role) -> Result<String, Refusal> {
    let cluster = all
        .cluster
        .as_ref()
        .ok_or_else(|| Refusal::unavailable("this manager is being brought up to date"))?;
    Ok(token::for_role(cluster, role)
        .map_err(|e| Refusal::other(e.to_string()))?
        .to_string())
}

/// A worker's command about itself by name becomes one by id: the name could be another's by the
/// time the command is carried out.
fn pinned(command: Command, caller: Member) -> Command {
    match (command, caller.role) {
        (Command::NodeRemove { force, .. }, Role::Worker) => Command::NodeRemove {
            node: caller.node.to_string(),
            force,
        },
        (command, _) => command,
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        Id,
        command::NewNode,
        objects::{Change, Kind, Object},
        state::State,
    };

    use super::*;

    /// Managers with the raft ids of `nodes`, in these states.
    fn cluster(nodes: &[(u64, NodeState)]) -> Objects {
        let node = NewNode {
            id: Id::from_bits(7),
            hostname: "h".into(),
            role: Role::Manager,
            addr: [192, 0, 2, 1].into(),
            control_port: 2377,
            data_path_addr: [192, 0, 2, 1].into(),
            underlay_mtu: 1500,
            host_routes: vec![],
        };
        let init = Command::Init {
            id: Id::from_bits(1),
            ingress: Id::from_bits(2),
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_prefix: 24,
            ca_cert: "cert".into(),
            ca_key: "key".into(),
            worker_secret: "0".into(),
            manager_secret: "0".into(),
            node,
        };
        let mut state = State::default();
        state.apply(1, &init).0.unwrap();
        let first = Node::clone(state.objects().nodes.values().next().unwrap());
        let mut all = Objects::default();
        for (raft_id, state) in nodes {
            let node = Node {
                id: Id::from_bits(*raft_id),
                raft_id: *raft_id,
                hostname: format!("h{raft_id}"),
                state: *state,
                ..first.clone()
            };
            all.apply(&Change {
                kind: Kind::Node,
                id: node.id,
                object: Some(Object::Node(Arc::new(node))),
            });
        }
        all
    }

    #[test]
    fn a_manager_goes_only_when_another_one_votes_and_is_ready() {
        use NodeState::{Down, Ready};
        let voters = |ids: &[u64]| Leadership {
            voters: ids.iter().map(|id| (*id, String::new())).collect(),
            ..Leadership::default()
        };
        let check = |all: &Objects, now: &Leadership, id: u64| keeps_a_voter(all, now, all.nodes.get(&Id::from_bits(id)).unwrap());
        // The second was promoted, but has no vote yet: it may go, the first may not.
        let all = cluster(&[(3, Ready), (4, Ready)]);
        let why = check(&all, &voters(&[3]), 3).unwrap_err();
        assert!(why.message.contains("h3") && why.message.contains("vote"), "{why}");
        check(&all, &voters(&[3]), 4).unwrap();
        check(&all, &voters(&[3, 4]), 3).unwrap();
        // One that votes, but is down, and one that is ready, but does not vote, are no other voter together.
        let all = cluster(&[(3, Ready), (4, Down), (5, Ready), (6, Ready)]);
        assert!(check(&all, &voters(&[3, 4]), 3).is_err());
        check(&all, &voters(&[3, 4]), 4).unwrap();
        check(&all, &voters(&[3, 4, 5]), 3).unwrap();
    }
}

//! How a host says how it is: status and doctor.

use mesh_core::{Id, objects::Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::query::Manager;

/// How this host is. Everything about the cluster is null before it belongs to one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// This node.
    pub node: Option<NodeName>,
    /// Id of the cluster.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<Id>,
    /// manager or worker.
    #[schema(value_type = Option<String>)]
    pub role: Option<Role>,
    /// The control plane as seen from here; null when no manager answers.
    pub manager: Option<ManagerView>,
    /// Revision of the cluster's state that this host's kernel has been brought to.
    pub applied_generation: u64,
    /// Networks in the cluster, as far as this host knows.
    pub networks: u64,
    /// Services, likewise.
    pub services: u64,
    /// Endpoints, likewise.
    pub endpoints: u64,
    /// The data plane.
    pub dataplane: DataplaneView,
    /// meshd's version.
    pub version: String,
    /// What went wrong in the last reconcile pass and is being tried again.
    pub errors: Vec<String>,
}

/// A node's id and name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeName {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its host name.
    pub hostname: String,
}

/// The control plane as seen from a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ManagerView {
    /// Host name of the leader; null while there is none.
    pub leader: Option<String>,
    /// Raft index that the managers are at.
    pub revision: u64,
    /// All managers.
    pub peers: Vec<Peer>,
}

impl ManagerView {
    /// From the head of an answer.
    pub fn of(revision: u64, managers: &[Manager]) -> Self {
        let peer = |m: &Manager| Peer {
            id: m.node,
            hostname: m.hostname.clone(),
            addr: m.addr.clone(),
            leader: m.leader,
            voter: m.voter,
        };
        let leader = managers.iter().find(|m| m.leader).map(|m| m.hostname.clone());
        Self {
            leader,
            revision,
            peers: managers.iter().map(peer).collect(),
        }
    }
}

/// A manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Its node id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its host name.
    pub hostname: String,
    /// HOST:PORT of its control plane.
    pub addr: String,
    /// It leads.
    pub leader: bool,
    /// It votes; false while it is brought up to date.
    pub voter: bool,
}

/// A host's data plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataplaneView {
    /// Programs and the devices that they sit at, `program@device`.
    pub hooks: Vec<String>,
    /// The kernel's release.
    pub kernel: String,
    /// What this kernel lacks, and what works less well for it.
    pub degraded: Vec<String>,
}

/// What `meshctl doctor` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Doctor {
    /// Every check.
    pub checks: Vec<Check>,
    /// The steps that the next reconcile pass would take; empty when not asked for.
    pub plan: Vec<String>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// It is as it should be.
    pub ok: bool,
    /// What was found, and what would help.
    pub detail: String,
}

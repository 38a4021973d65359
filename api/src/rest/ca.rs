//! The cluster's root of trust as users see it.

use jiff::Timestamp;
use mesh_core::{Id, objects::NodeState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The root that signs the nodes' certificates, and how far its rotation is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CaView {
    /// SHA-256 of its certificate in DER, in hexadecimal.
    pub fingerprint: String,
    /// Whom it names, in the form of RFC 4514.
    pub subject: String,
    /// Valid from.
    #[schema(value_type = String)]
    pub not_before: Timestamp,
    /// Valid to.
    #[schema(value_type = String)]
    pub not_after: Timestamp,
    /// Roots that it replaced and that are still trusted, the last one first; none: no rotation is under way.
    pub former: Vec<FormerRootView>,
    /// The nodes, by host name.
    pub nodes: Vec<CaNode>,
    /// Its certificate, PEM.
    pub pem: String,
}

impl CaView {
    /// The nodes that have no certificate of it yet.
    pub fn missing(&self) -> impl Iterator<Item = &CaNode> {
        self.nodes.iter().filter(|n| !n.renewed)
    }
}

/// A root that was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FormerRootView {
    /// As [`CaView::fingerprint`].
    pub fingerprint: String,
    /// When it was replaced.
    #[schema(value_type = String)]
    pub replaced_at: Timestamp,
}

/// A node, as far as the root is concerned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CaNode {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its host name.
    pub hostname: String,
    /// ready, down or unknown.
    #[schema(value_type = String)]
    pub state: NodeState,
    /// It has a certificate of the root, and trusts what the cluster does.
    pub renewed: bool,
}

//! node ls, inspect, rm, promote, demote, update.

use clap::{Args, Subcommand};
use mesh_core::objects::Availability;

use crate::values;

/// Manage nodes
#[derive(Debug, Subcommand)]
pub enum Node {
    /// List nodes
    #[command(
        visible_alias = "list",
        after_long_help = "\
Examples:
  meshctl node ls
  meshctl node ls -o json | jq -r '.[] | select(.state != \"ready\") | .hostname'"
    )]
    Ls,
    /// Show a node
    #[command(after_long_help = "\
Examples:
  meshctl node inspect h2
  meshctl node inspect h2 -o json")]
    Inspect {
        /// Host name or id
        #[arg(value_name = "NODE", value_parser = values::reference)]
        node: String,
    },
    /// Remove nodes that are down, with their endpoints
    #[command(
        visible_alias = "remove",
        after_long_help = "\
Examples:
  meshctl node rm h3
  meshctl node rm --force h3      also while its meshd is heard"
    )]
    Rm {
        /// Host names or ids
        #[arg(value_name = "NODE", required = true, value_parser = values::reference)]
        nodes: Vec<String>,
        /// Also nodes that are ready
        #[arg(short, long)]
        force: bool,
    },
    /// Make workers managers
    #[command(after_long_help = "\
Returns when the node votes. Three managers stand the loss of one, five that of two; an even number
stands no more than one less. A node that is down can not be promoted. A manager keeps the
cluster's secrets. Every node must run a release that knows this command: upgrade all first.

Examples:
  meshctl node promote h2 h3
  meshctl node ls                 the column MANAGER says who leads and who is reached")]
    Promote {
        /// Host names or ids
        #[arg(value_name = "NODE", required = true, value_parser = values::reference)]
        nodes: Vec<String>,
    },
    /// Make managers workers again
    #[command(after_long_help = "\
Returns when the node's vote is gone. A manager that leads hands over first. Refused for the only
manager, and when no majority of the others is up. The node removes its copy of the cluster's
secrets, but has known them: the key of the root certificate and both join tokens. If it is not
trusted any more, remove it (meshctl node rm) and replace them all (meshctl ca rotate).

Examples:
  meshctl node demote h3")]
    Demote {
        /// Host names or ids
        #[arg(value_name = "NODE", required = true, value_parser = values::reference)]
        nodes: Vec<String>,
    },
    /// Change a node
    Update(Update),
}

/// Change a node
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  meshctl node update h2 --availability drain      its endpoints take no new flows
  meshctl node update h2 --availability active
  meshctl node update h2 --label-add rack=7 --label-rm old")]
pub struct Update {
    /// Host name or id
    #[arg(value_name = "NODE", value_parser = values::reference)]
    pub node: String,
    /// drain: its endpoints take no new flows, and containers can be attached all the same; pause: kept and shown; active: neither
    #[arg(long, value_parser = values::availability())]
    pub availability: Option<Availability>,
    /// Set a label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub label_add: Vec<(String, String)>,
    /// Remove a label, if it is there; may be given several times
    #[arg(long, value_name = "KEY", value_parser = values::reference)]
    pub label_rm: Vec<String>,
}

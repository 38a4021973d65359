//! endpoint ls, inspect, update.

use clap::{ArgGroup, Subcommand};
use mesh_core::objects::EndpointState;

use crate::values;

/// Manage endpoints: containers' interfaces in networks
#[derive(Debug, Subcommand)]
pub enum Endpoint {
    /// List endpoints
    #[command(
        visible_alias = "list",
        after_long_help = "\
Examples:
  meshctl endpoint ls
  meshctl endpoint ls -o json | jq -r '.[] | select(.node == \"h1\") | .ip'"
    )]
    Ls,
    /// Show an endpoint
    #[command(after_long_help = "\
Examples:
  meshctl endpoint inspect web1
  meshctl endpoint inspect 3k7m9p2r5t8w -o json | jq -r .gateway")]
    Inspect {
        /// Name or id
        #[arg(value_name = "ENDPOINT", value_parser = values::reference)]
        endpoint: String,
    },
    /// Take an endpoint out of rotation or back in, or give it more or fewer of the new flows
    #[command(group(ArgGroup::new("change").required(true).multiple(true)), after_long_help = "\
A draining endpoint takes no new flow; those that it has go on. Of two endpoints of one service, one
of weight 3 takes three times as many new flows as one of weight 1, which all begin with. One that
is told to be ready takes new flows even if its container was asked to stop, or its engine's check
of it does not succeed.

Examples:
  meshctl endpoint update web1 --weight 3
  meshctl endpoint update web1 --state draining
  meshctl endpoint update web1 --state ready")]
    Update {
        /// Name or id
        #[arg(value_name = "ENDPOINT", value_parser = values::reference)]
        endpoint: String,
        /// The state that it shall have
        #[arg(long, group = "change", value_parser = values::endpoint_state())]
        state: Option<EndpointState>,
        /// How many new flows it takes beside the others, 0 to 1000; 0: none
        #[arg(long, group = "change", value_name = "N", value_parser = values::weight)]
        weight: Option<u32>,
    },
}

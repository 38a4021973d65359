//! ca show, rotate.

use clap::Subcommand;

/// Manage the root of the nodes' certificates
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Show the root certificate, and how far its rotation is
    #[command(after_long_help = "\
Examples:
  meshctl ca show
  meshctl ca show --pem > root.pem
  meshctl ca show -o json | jq -r '.nodes[] | select(.renewed | not) | .hostname'")]
    Show {
        /// Print the certificate only, PEM
        #[arg(long)]
        pem: bool,
    },
    /// Replace the root certificate
    #[command(after_long_help = "\
Every node gets a certificate of the new root while everything runs on. The former root stays
trusted until all of them have one: a node that is away follows when it is back, and one that does
not come back is removed (meshctl node rm), or forgotten after 90 days, when its own certificate has
expired; it must then join again. Both join tokens are drawn anew: those from before join nobody any
more.

Until the former root is forgotten, who has its key can still make certificates of it; connections
that were opened with one end then. Every node must run a release that knows this command: upgrade
all first.

Examples:
  meshctl ca rotate
  meshctl ca rotate && meshctl token worker")]
    Rotate,
}

//! What can be typed. One file per noun; help texts teach by example.

pub mod attach;
pub mod ca;
pub mod cluster;
pub mod endpoint;
pub mod network;
pub mod node;
pub mod run;
pub mod service;
pub mod traffic;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use mesh_api::{local, rest::Since};

use crate::times;

/// Tell this host's meshd what the mesh shall be, and ask how it is.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    max_term_width = 100,
    after_long_help = "\
Examples:
  meshctl init                                           make a cluster with this host
  meshctl join --token MESH-1-… 192.168.77.11            join one
  meshctl network create kafka --subnet 172.30.0.0/16    a network that spans the hosts
  meshctl service create --name web --network kafka --publish 8888:80
  meshctl network connect --service web kafka netns:web1
  meshctl service ps web

Exit codes: 0 done; 2 the command line cannot be read; 3 not found; 4 conflict (taken, in use,
already done); 5 no manager or no quorum; 1 anything else."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// table for people, json for programs: one document, as meshd sends it
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORMAT", help_heading = "Global options")]
    pub output: Output,
    /// Print ids only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// meshd's socket
    #[arg(long, global = true, env = "MESHD_SOCKET", default_value = local::DEFAULT_SOCKET, value_name = "PATH", help_heading = "Global options")]
    pub socket: PathBuf,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a cluster with this host as its first manager
    Init(cluster::Init),
    /// Make this host a node of a cluster
    Join(cluster::Join),
    /// Take this host out of its cluster
    Leave(cluster::Leave),
    /// Show or rotate a join token
    Token(cluster::Token),
    /// Manage the root of the nodes' certificates
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Show how this host is
    #[command(after_long_help = "\
Examples:
  meshctl status
  meshctl status -o json | jq .manager.leader")]
    Status,
    /// Check what this host needs, and say what is missing
    #[command(after_long_help = "\
Exits with 1 when a check fails.

Examples:
  meshctl doctor
  meshctl doctor --plan      also the steps that the next reconcile pass would take")]
    Doctor {
        /// Also print the steps that the next reconcile pass would take
        #[arg(long)]
        plan: bool,
    },
    /// Manage nodes
    #[command(subcommand)]
    Node(node::Node),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Network),
    /// Manage services
    #[command(subcommand)]
    Service(service::Service),
    /// Manage endpoints: containers' interfaces in networks
    #[command(subcommand)]
    Endpoint(endpoint::Endpoint),
    /// Run a command in a network of its own, without a container runtime
    Run(Box<run::Run>),
    /// Follow what happens to the cluster's objects
    #[command(after_long_help = "\
Prints a line per change until it is interrupted; with -o json, a JSON document per line.

Examples:
  meshctl events
  meshctl events --since 10m                      also what meshd remembers of the last 10 minutes
  meshctl events --since 1042 -o json             go on after revision 1042")]
    Events {
        /// Begin with what meshd remembers after this point: a duration (10m), a time (2026-01-31T12:00:00Z) or a revision (1042)
        #[arg(long, value_name = "T", value_parser = times::since)]
        since: Option<Since>,
    },
    /// Follow new flows, or dropped packets with the reason for each
    Flows(traffic::Flows),
    /// Show the traffic of services and their backends, as rates
    Top(traffic::Top),
    /// Print a shell's completion script
    #[command(after_long_help = "\
Examples:
  meshctl completion bash > /etc/bash_completion.d/meshctl
  source <(meshctl completion zsh)")]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages
    #[command(after_long_help = "\
Examples:
  meshctl man target/man && man -l target/man/meshctl-run.1")]
    Man {
        /// Directory to write them to
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no text", command.get_name());
            for arg in command
                .get_arguments()
                .filter(|a| !["help", "version"].contains(&a.get_id().as_str()))
            {
                assert!(arg.get_help().is_some(), "{} of {} has no text", arg.get_id(), command.get_name());
            }
            let mut subs = command.get_subcommands().peekable();
            if subs.peek().is_none() {
                assert!(command.get_after_long_help().is_some(), "{} has no example", command.get_name());
            }
            // A line that is longer is broken once more, in the middle of a column.
            let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{}: {line:?} is longer than 100", command.get_name());
            }
            subs.for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn flags_are_taken_anywhere() {
        for line in [
            "meshctl network create kafka --driver overlay --subnet 172.30.0.0/16",
            "meshctl network create --driver overlay --subnet 172.30.0.0/16 kafka",
            "meshctl network create -d overlay kafka --subnet 172.30.0.0/16 --subnet 172.31.0.0/16 -o json",
            "meshctl -o json network --socket /x create -q kafka --opt mtu=1400 --label a=b --label c",
            "meshctl network connect kafka netns:a --service web --ip 172.30.0.5 --alias x --alias y",
            "meshctl service create --publish 8888:80 --name web --network kafka --publish published=53,target=53,protocol=udp",
            "meshctl network rm a b c",
            "meshctl token worker --rotate -q",
            "meshctl run --network kafka --service web --env A=b -- nginx -g x",
            "meshctl run --network kafka sh -c x -q --socket",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}

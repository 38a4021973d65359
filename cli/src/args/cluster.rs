//! init, join, leave, token.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;
use mesh_core::objects::Role;

use crate::values;

/// Make a cluster with this host as its first manager
#[derive(Args, Debug)]
#[command(after_long_help = "\
Prints the command that joins a worker.

Examples:
  meshctl init
  meshctl init --advertise-addr 192.168.77.11
  meshctl init --default-addr-pool 10.64.0.0/10 --subnet-size 22")]
pub struct Init {
    /// Address at which other nodes reach this one [default: that of the uplink]
    #[arg(long, value_name = "ADDRESS", value_parser = values::ip)]
    pub advertise_addr: Option<IpAddr>,
    /// Address for VXLAN [default: the advertised one]
    #[arg(long, value_name = "ADDRESS", value_parser = values::ip)]
    pub data_path_addr: Option<IpAddr>,
    /// Pool that networks without --subnet take theirs from; may be given several times [default: 10.0.0.0/8, 172.16.0.0/12]
    #[arg(long = "default-addr-pool", value_name = "CIDR", value_parser = values::subnet)]
    pub default_addr_pools: Vec<IpNet>,
    /// Prefix length of a subnet taken from a pool [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(8..=30))]
    pub subnet_size: Option<u8>,
}

/// Make this host a node of a cluster
#[derive(Args, Debug)]
#[command(after_long_help = "\
The token says whether this host becomes a worker or a manager; `meshctl token worker` on a
manager prints the whole command.

Examples:
  meshctl join --token MESH-1-… 192.168.77.11:2377
  meshctl join --token MESH-1-… h1.example --advertise-addr 192.168.77.12")]
pub struct Join {
    /// The join token
    #[arg(long, value_name = "TOKEN", value_parser = values::token)]
    pub token: String,
    /// Any manager; the port is 2377 unless given
    #[arg(value_name = "HOST[:PORT]", value_parser = values::manager)]
    pub manager: String,
    /// Address at which other nodes reach this one [default: that of the uplink]
    #[arg(long, value_name = "ADDRESS", value_parser = values::ip)]
    pub advertise_addr: Option<IpAddr>,
    /// Address for VXLAN [default: the advertised one]
    #[arg(long, value_name = "ADDRESS", value_parser = values::ip)]
    pub data_path_addr: Option<IpAddr>,
}

/// Take this host out of its cluster
#[derive(Args, Debug)]
#[command(after_long_help = "\
Everything of the mesh is removed from this host, the cluster's state too.

Examples:
  meshctl leave
  meshctl leave --force      also the last manager, or when no manager answers")]
pub struct Leave {
    /// Also when this is a manager, or no manager answers
    #[arg(short, long)]
    pub force: bool,
}

/// Show or rotate a join token
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  meshctl token worker                the command that joins a worker
  meshctl token manager -q            only the token
  meshctl token worker --rotate       a new token; the old one joins nobody any more")]
pub struct Token {
    /// What the token lets a host become
    #[arg(value_parser = values::role())]
    pub role: Role,
    /// Make a new token; the old one is worth nothing then
    #[arg(long)]
    pub rotate: bool,
}

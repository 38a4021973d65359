//! network create, ls, inspect, rm, prune, connect, disconnect.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::attach::Attach;
use crate::values;

/// Manage networks
#[derive(Debug, Subcommand)]
pub enum Network {
    /// Make a network that spans the cluster's hosts; prints its id
    Create(Create),
    /// List networks
    #[command(
        visible_alias = "list",
        after_long_help = "\
Examples:
  meshctl network ls
  meshctl network ls -q"
    )]
    Ls,
    /// Show a network with its endpoints
    #[command(after_long_help = "\
Examples:
  meshctl network inspect kafka
  meshctl network inspect kafka -o json | jq .subnets")]
    Inspect {
        /// Name or id
        #[arg(value_name = "NETWORK", value_parser = values::reference)]
        network: String,
    },
    /// Remove networks that nobody uses
    #[command(
        visible_alias = "remove",
        after_long_help = "\
Examples:
  meshctl network rm kafka
  meshctl network rm kafka shop"
    )]
    Rm {
        /// Names or ids
        #[arg(value_name = "NETWORK", required = true, value_parser = values::reference)]
        networks: Vec<String>,
    },
    /// Remove every network that nobody uses; prints their names
    #[command(after_long_help = "\
Examples:
  meshctl network prune")]
    Prune,
    /// Attach a container of this host to a network; prints its address
    Connect(Connect),
    /// Detach a container of this host from a network
    Disconnect(Disconnect),
}

/// Make a network that spans the cluster's hosts; prints its id
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  meshctl network create kafka
  meshctl network create kafka --driver overlay --subnet 172.30.0.0/16 --attachable
  meshctl network create kafka --subnet 172.30.0.0/16 --gateway 172.30.0.254 \\
          --ip-range 172.30.8.0/24 --aux-address router=172.30.0.2
  meshctl network create kafka --ipv6                                      IPv4 and IPv6
  meshctl network create kafka --subnet fd12:3456:789a:1::/64              IPv6 only
  meshctl network create db --internal --opt mtu=1400 --label team=data
  meshctl network create fast --opt encapsulation=cross-subnet             no VXLAN on one segment

Options:
  mtu=BYTES                    of the containers' interfaces; else what is left under VXLAN
  encapsulation=vxlan          always VXLAN between hosts (the default)
  encapsulation=cross-subnet   VXLAN between hosts of different segments only; on one, packets go
                               as they are, from and to the hosts' own Ethernet addresses, once the
                               other host is found to get them. For segments that judge neither
                               addresses nor protocols (clouds mostly do)")]
pub struct Create {
    /// Its name: 1 to 63 letters, digits and hyphens
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Only overlay
    #[arg(short, long, default_value = "overlay")]
    pub driver: String,
    /// Address range; may be given several times [default: one from the cluster's pools]
    #[arg(long = "subnet", value_name = "CIDR", value_parser = values::subnet)]
    pub subnets: Vec<IpNet>,
    /// Gateway of one of the subnets; may be given several times [default: the subnet's first address]
    #[arg(long = "gateway", value_name = "ADDRESS", value_parser = values::ip)]
    pub gateways: Vec<IpAddr>,
    /// Part of a subnet that addresses are handed out from; may be given several times
    #[arg(long = "ip-range", value_name = "CIDR", value_parser = values::subnet)]
    pub ip_ranges: Vec<IpNet>,
    /// Address that is never handed out; may be given several times
    #[arg(long = "aux-address", value_name = "NAME=ADDRESS", value_parser = values::aux_address)]
    pub aux_addresses: Vec<(String, IpAddr)>,
    /// IPv6 too: a range of the cluster's own, unless --subnet gives one
    #[arg(long)]
    pub ipv6: bool,
    /// No way out of the network, and none in: its containers answer no published port
    #[arg(long)]
    pub internal: bool,
    /// Kept and shown, as Docker does; containers outside a service may attach to any network
    #[arg(long)]
    pub attachable: bool,
    /// Driver option (mtu, encapsulation); may be given several times
    #[arg(long = "opt", value_name = "KEY=VALUE", value_parser = values::option)]
    pub options: Vec<(String, String)>,
    /// Label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    pub labels: Vec<(String, String)>,
}

/// Attach a container of this host to a network; prints its address
#[derive(Args, Debug)]
#[command(after_long_help = "\
CONTAINER is a Docker or Podman name or id, netns:NAME or netns:/PATH for a network namespace, or
pid:N for that of a process.

Examples:
  meshctl network connect kafka broker1
  meshctl network connect --service web --alias www shop netns:web1
  meshctl network connect --publish 8080:80 shop web1       answered by this host only
  meshctl network connect --ip 172.30.0.5 --ifname eth1 kafka pid:4711 -o json")]
pub struct Connect {
    /// Name or id of the network
    #[arg(value_name = "NETWORK", value_parser = values::reference)]
    pub network: String,
    /// The container
    #[arg(value_name = "CONTAINER", value_parser = values::reference)]
    pub container: String,
    #[command(flatten)]
    pub attach: Attach,
    /// Name of the endpoint [default: the container's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Interface inside the container [default: the first free of eth0, eth1, …]
    #[arg(long, value_name = "NAME", value_parser = values::ifname)]
    pub ifname: Option<String>,
}

/// Detach a container of this host from a network
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  meshctl network disconnect kafka broker1
  meshctl network disconnect --force kafka netns:web1      also when the namespace is gone")]
pub struct Disconnect {
    /// Name or id of the network
    #[arg(value_name = "NETWORK", value_parser = values::reference)]
    pub network: String,
    /// The container, as it was attached
    #[arg(value_name = "CONTAINER", value_parser = values::reference)]
    pub container: String,
    /// Also when the container can no longer be found; and at once, without letting its flows end
    #[arg(short, long)]
    pub force: bool,
}

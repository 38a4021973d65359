//! service create, ls, inspect, ps, update, rm.

use clap::{Args, Subcommand};
use mesh_core::objects::{Algorithm, EndpointMode, Port};

use crate::{ports, times, values};

/// Manage services
#[derive(Debug, Subcommand)]
pub enum Service {
    /// Make a service: one name, and one address, for a set of endpoints; prints its id
    Create(Create),
    /// List services
    #[command(
        visible_alias = "list",
        after_long_help = "\
Examples:
  meshctl service ls
  meshctl service ls -o json | jq -r '.[].name'"
    )]
    Ls,
    /// Show a service with its endpoints
    #[command(after_long_help = "\
Examples:
  meshctl service inspect web
  meshctl service inspect web -o json | jq .vips")]
    Inspect {
        /// Name or id
        #[arg(value_name = "SERVICE", value_parser = values::reference)]
        service: String,
    },
    /// List a service's endpoints
    #[command(after_long_help = "\
Examples:
  meshctl service ps web")]
    Ps {
        /// Name or id
        #[arg(value_name = "SERVICE", value_parser = values::reference)]
        service: String,
    },
    /// Change a service
    Update(Update),
    /// Remove services; their endpoints stay
    #[command(
        visible_alias = "remove",
        after_long_help = "\
Examples:
  meshctl service rm web
  meshctl service rm web api"
    )]
    Rm {
        /// Names or ids
        #[arg(value_name = "SERVICE", required = true, value_parser = values::reference)]
        services: Vec<String>,
    },
}

/// Make a service: one name, and one address, for a set of endpoints; prints its id
#[derive(Args, Debug)]
#[command(after_long_help = "\
Endpoints come to it by `meshctl network connect --service NAME`. A published port answers on every
node; without a number for it, a free one of 30000-32767 is taken.

Examples:
  meshctl service create --name web --network shop --publish 8888:80
  meshctl service create --name dns --network shop --publish 53:5353/udp --publish 53:5353/tcp
  meshctl service create --name web --network shop --publish published=8888,target=80,mode=ingress
  meshctl service create --name db --network shop --endpoint-mode dnsrr --drain 2m --label team=data")]
pub struct Create {
    /// Its name: 1 to 63 letters, digits and hyphens
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Network that it is in; may be given several times
    #[arg(long = "network", value_name = "NETWORK", value_parser = values::reference)]
    pub networks: Vec<String>,
    /// Port to answer at: [PUBLISHED:]TARGET[/tcp|udp] or published=,target=,protocol=,mode=; may be given several times
    #[arg(short, long = "publish", value_name = "SPEC", value_parser = ports::parse)]
    pub ports: Vec<Port>,
    /// vip: its name means one virtual address; dnsrr: the addresses of its ready endpoints
    #[arg(long, default_value = "vip", value_parser = values::endpoint_mode())]
    pub endpoint_mode: EndpointMode,
    /// How an endpoint is chosen for a new flow: rr, strictly in turn
    #[arg(long, default_value = "rr", value_name = "ALGORITHM", value_parser = values::algorithm)]
    pub lb: Algorithm,
    /// How long the flows of an endpoint that leaves may last
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = times::seconds)]
    pub drain: u32,
    /// Label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    pub labels: Vec<(String, String)>,
}

/// Change a service
#[derive(Args, Debug)]
#[command(after_long_help = "\
What is not named stays as it is. A change that somebody else made meanwhile is a conflict (exit
code 4), never overwritten.

Examples:
  meshctl service update web --publish-add 8443:443
  meshctl service update web --publish-rm 80          by target port
  meshctl service update web --network-add backend --drain 1m
  meshctl service update web --label-add tier=front --label-rm old")]
pub struct Update {
    /// Name or id
    #[arg(value_name = "SERVICE", value_parser = values::reference)]
    pub service: String,
    /// Publish another port; may be given several times
    #[arg(long, value_name = "SPEC", value_parser = ports::parse)]
    pub publish_add: Vec<Port>,
    /// Publish a port no more: TARGET[/udp] or PUBLISHED:TARGET[/udp]; may be given several times
    #[arg(long, value_name = "SPEC", value_parser = ports::parse)]
    pub publish_rm: Vec<Port>,
    /// Be in another network; may be given several times
    #[arg(long, value_name = "NETWORK", value_parser = values::reference)]
    pub network_add: Vec<String>,
    /// Be in a network no more; may be given several times
    #[arg(long, value_name = "NETWORK", value_parser = values::reference)]
    pub network_rm: Vec<String>,
    /// vip or dnsrr
    #[arg(long, value_parser = values::endpoint_mode())]
    pub endpoint_mode: Option<EndpointMode>,
    /// How an endpoint is chosen for a new flow
    #[arg(long, value_name = "ALGORITHM", value_parser = values::algorithm)]
    pub lb: Option<Algorithm>,
    /// How long the flows of an endpoint that leaves may last
    #[arg(long, value_name = "DURATION", value_parser = times::seconds)]
    pub drain: Option<u32>,
    /// Set a label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub label_add: Vec<(String, String)>,
    /// Remove a label; may be given several times
    #[arg(long, value_name = "KEY", value_parser = values::reference)]
    pub label_rm: Vec<String>,
}

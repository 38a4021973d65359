//! service create, ls, inspect, ps, update, rm.

use clap::{Args, Subcommand};
use ipnet::IpNet;
use mesh_core::objects::{Algorithm, EndpointMode, LbReturn, Port, SourceRange};

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
Endpoints come to it by `meshctl network connect --service NAME`, or by labels that --selector
names.
A published port answers on every node; without a number for it, a free one of 30000-32767 is taken.
With mode=host it answers only on nodes that run an endpoint, by that endpoint. With an address
before it, it answers only there, and other services may have the same port at other addresses.

How a new flow is balanced (--lb), by the endpoints' weights (meshctl endpoint update --weight):
  rr           strictly in turn
  random       at random
  maglev       by a hash of the flow; every node chooses alike, and an endpoint that comes or goes
               changes little for the others
  source-hash  the same by the client's address only: a client stays with its endpoint

Examples:
  meshctl service create --name web --network shop --publish 8888:80
  meshctl service create --name dns --network shop --publish 53:5353/udp --publish 53:5353/tcp
  meshctl service create --name web --network shop --publish published=8888,target=80,mode=ingress
  meshctl service create --name db --network shop --endpoint-mode dnsrr --drain 2m --label team=data
  meshctl service create --name web --network shop -p 443 --lb maglev --lb-return direct
  meshctl service create --name web --network shop -p 192.168.77.11:8080:80 --affinity 10m
  meshctl service create --name log --network shop \\
          -p target=514,published=514,protocol=udp,mode=host
  meshctl service create --name adm --network shop -p 9000:80 --source-range 10.0.0.0/8 \\
          --source-range '!10.1.0.0/16'
  meshctl service create --name api --network shop -p 8080:80 --selector app=api \\
          --selector tier=front")]
pub struct Create {
    /// Its name: 1 to 63 letters, digits and hyphens
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Network that it is in; may be given several times
    #[arg(long = "network", value_name = "NETWORK", value_parser = values::reference)]
    pub networks: Vec<String>,
    /// Port to answer at: [[ADDRESS:]PUBLISHED:]TARGET[/tcp|udp] or published=,target=,protocol=,mode=ingress|host; may be given several times
    #[arg(short, long = "publish", value_name = "SPEC", value_parser = ports::parse)]
    pub ports: Vec<Port>,
    /// vip: its name means one virtual address; dnsrr: the addresses of its ready endpoints
    #[arg(long, default_value = "vip", value_parser = values::endpoint_mode())]
    pub endpoint_mode: EndpointMode,
    /// How an endpoint is chosen for a new flow
    #[arg(long, default_value = "rr", value_name = "ALGORITHM", value_parser = values::algorithm())]
    pub lb: Algorithm,
    /// For how long after its last new flow a client comes back to its endpoint; 0s: it does not; at most 24h.
    /// Each node remembers by itself: with --lb source-hash a client meets the same endpoint on all of them
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = times::seconds)]
    pub affinity: u32,
    /// Clients that published ports let in; with ! before it, that they do not. The longest prefix decides; may be given several times
    #[arg(long = "source-range", value_name = "[!]CIDR", value_parser = values::source_range)]
    pub source_ranges: Vec<SourceRange>,
    /// Way of the replies: tunnel, back by the node that was asked; direct, straight to the client where the underlay lets them
    #[arg(long, default_value = "tunnel", value_name = "WAY", value_parser = values::lb_return())]
    pub lb_return: LbReturn,
    /// Endpoints on its networks that have this label serve it too; given several times: all these labels
    #[arg(long = "selector", value_name = "KEY=VALUE", value_parser = values::label)]
    pub selector: Vec<(String, String)>,
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
  meshctl service update web --lb source-hash --affinity 0s
  meshctl service update web --source-range-add 10.0.0.0/8 --source-range-rm 10.1.0.0/16
  meshctl service update web --selector-add app=web --selector-rm tier
  meshctl service update web --label-add tier=front --label-rm old")]
pub struct Update {
    /// Name or id
    #[arg(value_name = "SERVICE", value_parser = values::reference)]
    pub service: String,
    /// Publish another port; one that is published so already stays; may be given several times
    #[arg(long, value_name = "SPEC", value_parser = ports::parse)]
    pub publish_add: Vec<Port>,
    /// Publish a port no more: TARGET[/udp] or [ADDRESS:]PUBLISHED:TARGET[/udp]; may be given several times
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
    #[arg(long, value_name = "ALGORITHM", value_parser = values::algorithm())]
    pub lb: Option<Algorithm>,
    /// For how long after its last new flow a client comes back to its endpoint; 0s: it does not
    #[arg(long, value_name = "DURATION", value_parser = times::seconds)]
    pub affinity: Option<u32>,
    /// Let these clients in, or with ! before it do not; may be given several times
    #[arg(long, value_name = "[!]CIDR", value_parser = values::source_range)]
    pub source_range_add: Vec<SourceRange>,
    /// Forget a source range, whichever way it was given; may be given several times
    #[arg(long, value_name = "[!]CIDR", value_parser = values::source_net)]
    pub source_range_rm: Vec<IpNet>,
    /// Way of the replies of published ports
    #[arg(long, value_name = "WAY", value_parser = values::lb_return())]
    pub lb_return: Option<LbReturn>,
    /// Have only endpoints with this label too serve it; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub selector_add: Vec<(String, String)>,
    /// Ask for a label no more; may be given several times
    #[arg(long, value_name = "KEY", value_parser = values::reference)]
    pub selector_rm: Vec<String>,
    /// How long the flows of an endpoint that leaves may last
    #[arg(long, value_name = "DURATION", value_parser = times::seconds)]
    pub drain: Option<u32>,
    /// Set a label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub label_add: Vec<(String, String)>,
    /// Remove a label, if it is there; may be given several times
    #[arg(long, value_name = "KEY", value_parser = values::reference)]
    pub label_rm: Vec<String>,
}

//! What `run` and `network connect` say alike of the endpoint that they make.

use std::net::{IpAddr, Ipv6Addr};

use clap::Args;
use mesh_api::rest::{BandwidthView, ConnectRequest};
use mesh_core::{Mac, Refusal, objects::Port, spec::check_name};

use crate::{ports, values};

/// The endpoint to be.
#[derive(Args, Clone, Debug)]
pub struct Attach {
    /// Service that it serves
    #[arg(long, value_name = "SERVICE", value_parser = values::reference)]
    pub service: Option<String>,
    /// Address [default: the next free one]
    #[arg(long, value_name = "ADDRESS", value_parser = values::ip)]
    pub ip: Option<IpAddr>,
    /// IPv6 address in a network that has both [default: the next free one]
    #[arg(long, value_name = "ADDRESS", value_parser = values::ip6)]
    pub ip6: Option<Ipv6Addr>,
    /// Ethernet address [default: made from the address]
    #[arg(long, value_name = "MAC", value_parser = values::mac)]
    pub mac: Option<Mac>,
    /// Further name in this network; may be given several times
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<String>,
    /// Label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    pub labels: Vec<(String, String)>,
    /// Port that this host answers for it: [[ADDRESS:]PUBLISHED:]TARGET[/tcp|udp]; may be given several times
    #[arg(short, long = "publish", value_name = "SPEC", value_parser = ports::parse_own)]
    pub ports: Vec<Port>,
    /// Most that it receives, in bits per second: 500K, 20M, 1G [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub bandwidth_in: Option<u64>,
    /// Most that it sends, in bits per second: 500K, 20M, 1G [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub bandwidth_out: Option<u64>,
}

impl Attach {
    /// Checks what meshd would refuse only after something was made.
    ///
    /// # Errors
    /// A malformed alias.
    pub fn check(&self) -> Result<(), Refusal> {
        self.aliases.iter().try_for_each(|alias| check_name("alias", alias))
    }

    /// The request to attach `container` as this, under a name and with an interface of a name.
    pub fn request(self, container: String, hostname: Option<String>, ifname: Option<String>) -> ConnectRequest {
        ConnectRequest {
            container,
            service: self.service,
            ip: self.ip,
            ip6: self.ip6,
            mac: self.mac,
            aliases: self.aliases,
            labels: self.labels.into_iter().collect(),
            hostname,
            ifname,
            ports: self.ports,
            bandwidth: BandwidthView::of_rates(self.bandwidth_in, self.bandwidth_out),
        }
    }

    /// What of it holds in a further network of the same container too.
    pub fn elsewhere(&self) -> Self {
        Self {
            service: None,
            ip: None,
            ip6: None,
            mac: None,
            ports: Vec::new(),
            ..self.clone()
        }
    }
}

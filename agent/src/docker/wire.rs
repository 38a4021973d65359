//! The plugin's messages, and what they mean to meshd: pure translation, without I/O.
//!
//! The shapes are libnetwork's (docs/remote.md, docs/ipam.md, drivers/remote/api, ipams/remote/api),
//! whose field names are Go's and whose empty lists and maps are null.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use mesh_core::{
    Id, Mac, Refusal,
    command::PortRange,
    objects::{Endpoint, Network, Port, Protocol, PublishMode, Subnet},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::engine::nullable;

/// Address space of this driver's pools; it tells them from those of Docker's own IPAM.
pub const SPACE: &str = "mesh";
/// The option that names the mesh network (`-o`, `--ipam-opt`).
pub const NETWORK: &str = "mesh.network";
/// The driver option, or container label, that names the service.
pub const SERVICE: &str = "mesh.service";

const PORTS: &str = "com.docker.network.portmap";
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
const GATEWAY: &str = "com.docker.network.gateway";

/// `NetworkDriver.CreateNetwork`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CreateNetwork {
    /// What `-o` and the engine's own flags say.
    #[serde(rename = "Options", deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    /// Pools of IPv4 addresses.
    #[serde(rename = "IPv4Data", deserialize_with = "nullable")]
    pub ipv4: Vec<Pool>,
    /// Pools of IPv6 addresses.
    #[serde(rename = "IPv6Data", deserialize_with = "nullable")]
    pub ipv6: Vec<Pool>,
}

/// A pool that the engine's network has.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Pool {
    /// Who made it.
    pub address_space: String,
    /// The range.
    pub pool: String,
    /// The gateway, with a prefix length.
    pub gateway: String,
    /// Addresses that are not handed out.
    #[serde(deserialize_with = "nullable")]
    pub aux_addresses: BTreeMap<String, String>,
}

/// `NetworkDriver.CreateEndpoint`
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateEndpoint {
    /// The engine's id of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    /// Driver options of the endpoint.
    #[serde(deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    /// What the engine has decided.
    #[serde(deserialize_with = "nullable")]
    pub interface: Interface,
}

/// An interface's addresses; empty where they are not decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Interface {
    /// IPv4 address with its prefix length.
    pub address: String,
    /// IPv6 address with its prefix length.
    #[serde(rename = "AddressIPv6")]
    pub address_ipv6: String,
    /// Ethernet address.
    pub mac_address: String,
}

/// A port that `docker run -p` publishes (types.PortBinding).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Binding {
    proto: u8,
    port: u16,
    #[serde(rename = "HostIP")]
    host_ip: String,
    host_port: u16,
    /// Last port of a range to choose from; 0 or `host_port`: none.
    host_port_end: u16,
}

/// Any verb about one endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct OfEndpoint {
    /// The engine's id of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
}

/// `NetworkDriver.ProgramExternalConnectivity`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Program {
    /// The engine's id of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    /// What is known of its container: ports among it.
    #[serde(rename = "Options", deserialize_with = "nullable")]
    pub options: Map<String, Value>,
}

/// The answer to `NetworkDriver.Join`
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    /// The interface that the engine takes, and the first letters of its new name.
    pub interface_name: InterfaceName,
    /// Gateway of the IPv4 default route; empty: none.
    pub gateway: String,
    /// Gateway of the IPv6 default route; empty: none.
    #[serde(rename = "GatewayIPv6")]
    pub gateway_ipv6: String,
    /// Further routes.
    pub static_routes: Vec<StaticRoute>,
    /// Do not give the container a bridge of the engine's own for want of a gateway.
    pub disable_gateway_service: bool,
}

/// A route over a next hop.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StaticRoute {
    /// Where to.
    pub destination: String,
    /// 0: over a next hop (types.NEXTHOP).
    pub route_type: u8,
    /// The next hop.
    pub next_hop: String,
}

/// See [`Joined`].
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    /// Its name in the host's namespace.
    pub src_name: String,
    /// First letters of its name in the container.
    pub dst_prefix: &'static str,
}

/// `IpamDriver.RequestPool`
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RequestPool {
    /// The range asked for (`--subnet`).
    pub pool: String,
    /// The part of it to hand out from (`--ip-range`).
    pub sub_pool: String,
    /// What `--ipam-opt` says.
    #[serde(deserialize_with = "nullable")]
    pub options: BTreeMap<String, String>,
    /// An IPv6 range.
    pub v6: bool,
}

/// The answer to it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PoolGiven {
    /// Its name from now on.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The range.
    pub pool: String,
    /// The gateway.
    pub data: BTreeMap<&'static str, String>,
}

/// `IpamDriver.RequestAddress` and `IpamDriver.ReleaseAddress`
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct OfAddress {
    /// The pool.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The address asked for, or given back; empty: any.
    pub address: String,
    /// What it is for.
    #[serde(deserialize_with = "nullable")]
    pub options: BTreeMap<String, String>,
}

/// Reads a body. Docker's plugin client sends a request whose connection broke again, of which it has
/// read the body to its end already (callWithRetry in moby's pkg/plugins/client.go): what it wanted is
/// nowhere then, where the [`super::front`] was killed too.
///
/// # Errors
/// Malformed.
pub fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    if body.trim_ascii().is_empty() {
        return Err(Refusal::malformed(
            "docker sent this request again without its content, as it does when meshd is restarted meanwhile: try again",
        ));
    }
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::malformed("this is not libnetwork's message: it is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|e| Refusal::malformed(format!("this is not libnetwork's message: {e}")))
}

/// Our id of an endpoint of the engine's: its first 60 bits. It is the same when the engine asks
/// again because meshd was restarted meanwhile.
///
/// # Errors
/// Malformed, when it is not one of Docker's random ids.
pub fn endpoint_id(endpoint: &str) -> Result<Id, Refusal> {
    let is_id = endpoint.len() == 64 && endpoint.bytes().all(|b| b.is_ascii_hexdigit());
    let bits = endpoint
        .get(..15)
        .filter(|_| is_id)
        .and_then(|first| u64::from_str_radix(first, 16).ok());
    bits.map(Id::from_bits)
        .ok_or_else(|| Refusal::malformed(format!("endpoint {:?} is not an id of 64 hexadecimal digits", crop(endpoint))))
}

fn crop(s: &str) -> String {
    s.chars().take(80).collect()
}

/// The command that makes a network of the engine's which works; with the subnet, also for `docker run --ip`.
pub fn advice(network: &str, subnet: Option<IpNet>) -> String {
    let subnet = subnet.map(|s| format!("--subnet {s} ")).unwrap_or_default();
    format!("docker network create -d mesh --ipam-driver mesh --ipam-opt {NETWORK}={network} {subnet}{network}")
}

/// The mesh network that `CreateNetwork` names, if it names one.
pub fn named(options: &Map<String, Value>) -> Option<&str> {
    options.get(GENERIC)?.get(NETWORK)?.as_str()
}

/// Checks that a network of the engine's fits the mesh network: its containers then get addresses that
/// nobody else in the cluster has, and the gateway that is there.
///
/// # Errors
/// Says what does not fit, with the command that does.
pub fn check_network(request: &CreateNetwork, network: &Network) -> Result<(), Refusal> {
    let name = &network.name;
    let command = advice(name, network.subnets.iter().map(|s| s.subnet).find(|s| s.addr().is_ipv4()));
    for pool in request.ipv4.iter().chain(&request.ipv6) {
        let range: Option<IpNet> = pool.pool.parse().ok();
        let Some(subnet) = range.and_then(|r| network.subnets.iter().find(|s| s.subnet == r.trunc())) else {
            return Err(Refusal::other(format!(
                "docker would hand out addresses of {} host by host, which are not network {name:?}'s: use {command}",
                crop(&pool.pool)
            )));
        };
        let gateway: Option<IpNet> = pool.gateway.parse().ok();
        if gateway.map(|g| g.addr()) != Some(subnet.gateway) {
            return Err(Refusal::other(format!(
                "the gateway of network {name:?} is {}, not {:?}: use {command}",
                subnet.gateway,
                crop(&pool.gateway)
            )));
        }
        let strange = pool.aux_addresses.values().find(|aux| {
            let ip = aux.parse::<IpNet>().map(|n| n.addr()).or_else(|_| aux.parse::<IpAddr>());
            !ip.is_ok_and(|ip| subnet.aux.values().any(|a| *a == ip))
        });
        if let Some(aux) = strange {
            return Err(Refusal::other(format!(
                "network {name:?} does not keep {:?} free: give --aux-address to meshctl network create, for all hosts",
                crop(aux)
            )));
        }
    }
    let internal = request.options.get(INTERNAL).and_then(Value::as_bool).unwrap_or(false);
    if internal && !network.internal {
        return Err(Refusal::other(format!(
            "network {name:?} has a way out: give --internal to meshctl network create, for all hosts"
        )));
    }
    Ok(())
}

/// The subnet of the mesh network that a pool is.
///
/// # Errors
/// When the network has none of that family or range, or the part asked for is another.
pub fn pool(request: &RequestPool, network: &Network) -> Result<PoolGiven, Refusal> {
    let name = &network.name;
    let family = |s: &&Subnet| s.subnet.addr().is_ipv6() == request.v6;
    let asked = match request.pool.as_str() {
        "" => None,
        text => Some(range("subnet", text)?),
    };
    let all = || {
        network
            .subnets
            .iter()
            .filter(family)
            .map(|s| s.subnet.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = network.subnets.iter().filter(family).find(|s| asked.is_none_or(|a| s.subnet == a));
    let subnet = found.ok_or_else(|| match (asked, all()) {
        (_, none) if none.is_empty() && request.v6 => Refusal::other(format!(
            "network {name:?} has no IPv6: leave --ipv6 out, or remake it with meshctl network create --ipv6"
        )),
        (_, none) if none.is_empty() => Refusal::other(format!(
            "network {name:?} has no IPv4 addresses, without which docker has no network: use meshctl network connect"
        )),
        (Some(asked), all) => Refusal::other(format!(
            "network {name:?} has the subnet {all}, not {asked}: give that, or leave --subnet out"
        )),
        (None, _) => Refusal::other(format!("network {name:?} has no subnet")),
    })?;
    if !request.sub_pool.is_empty() && subnet.ip_range != Some(range("ip-range", &request.sub_pool)?) {
        return Err(Refusal::other(format!(
            "network {name:?} hands out its addresses for all hosts: give --ip-range to meshctl network create, and leave it out here"
        )));
    }
    Ok(PoolGiven {
        pool_id: pool_id(network.id, subnet.subnet),
        pool: subnet.subnet.to_string(),
        data: BTreeMap::from([(GATEWAY, with_prefix(subnet.gateway, subnet))]),
    })
}

fn range(what: &str, text: &str) -> Result<IpNet, Refusal> {
    let net = text.parse::<IpNet>();
    net.map(|n| n.trunc())
        .map_err(|_| Refusal::malformed(format!("{what} {:?} is not a range in CIDR notation", crop(text))))
}

/// `NETWORK/RANGE`: all that is to know of a pool, so that nothing has to be remembered.
fn pool_id(network: Id, subnet: IpNet) -> String {
    format!("{network}/{subnet}")
}

/// Reads a pool's name back: its network, and whether it is of IPv6.
///
/// # Errors
/// Malformed.
pub fn read_pool(pool_id: &str) -> Result<(Id, bool), Refusal> {
    let parts = pool_id.split_once('/');
    let read = parts.and_then(|(network, net)| Some((network.parse().ok()?, net.parse::<IpNet>().ok()?.addr().is_ipv6())));
    read.ok_or_else(|| Refusal::malformed(format!("pool {:?} is none of this driver's", crop(pool_id))))
}

/// The address asked for, if one is.
///
/// # Errors
/// Malformed.
pub fn asked(request: &OfAddress) -> Result<Option<IpAddr>, Refusal> {
    match request.address.as_str() {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| Refusal::malformed(format!("address {:?} is not one", crop(text)))),
    }
}

/// An address that the network has anyhow, its gateway or one that it keeps free: it is not reserved.
///
/// # Errors
/// When another gateway is asked for.
pub fn standing(request: &OfAddress, network: &Network, six: bool) -> Result<Option<String>, Refusal> {
    let ip = asked(request)?;
    let is_gateway = request.options.get("RequestAddressType").is_some_and(|t| t == GATEWAY);
    for subnet in network.subnets.iter().filter(|s| s.subnet.addr().is_ipv6() == six) {
        let held = ip.filter(|ip| *ip == subnet.gateway && is_gateway || subnet.aux.values().any(|a| a == ip));
        if let Some(ip) = held.or((is_gateway && ip.is_none()).then_some(subnet.gateway)) {
            return Ok(Some(with_prefix(ip, subnet)));
        }
    }
    match ip {
        Some(ip) if is_gateway => Err(Refusal::other(format!(
            "{ip} is not the gateway of network {:?}: leave --gateway out",
            network.name
        ))),
        _ => Ok(None),
    }
}

/// An address that is reserved for this node, and that no endpoint has taken yet.
pub fn promised(network: &Network, node: Id, ip: IpAddr) -> Option<String> {
    let subnet = network.subnet_of(ip)?;
    (network.reserved.get(&ip) == Some(&node)).then(|| with_prefix(ip, subnet))
}

fn with_prefix(ip: IpAddr, subnet: &Subnet) -> String {
    format!("{ip}/{}", subnet.subnet.prefix_len())
}

/// What an engine has decided of an interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Decided {
    /// Its IPv4 address.
    pub ip: IpAddr,
    /// Its IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
}

/// Reads an interface.
///
/// # Errors
/// Malformed; or without an address, when the engine's network is not one that [`check_network`] lets
/// pass.
pub fn decided(interface: &Interface) -> Result<Decided, Refusal> {
    let net = |what: &str, text: &str| {
        text.parse::<IpNet>()
            .map_err(|_| Refusal::malformed(format!("{what} address {:?} is not one with a prefix length", crop(text))))
    };
    if interface.address.is_empty() {
        return Err(Refusal::other(format!(
            "docker has no address for the container: its network was not made with --ipam-driver mesh --ipam-opt {NETWORK}=NETWORK"
        )));
    }
    let ip6 = match interface.address_ipv6.as_str() {
        "" => None,
        text => match net("IPv6", text)?.addr() {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => return Err(Refusal::malformed(format!("address {text:?} is not IPv6"))),
        },
    };
    let mac = match interface.mac_address.as_str() {
        "" => None,
        text => Some(text.parse::<Mac>().map_err(|e| Refusal::malformed(e.to_string()))?),
    };
    Ok(Decided {
        ip: net("IPv4", &interface.address)?.addr(),
        ip6,
        mac,
    })
}

/// The ports that an endpoint's container publishes on its host, and those that it wants one of a range for.
///
/// # Errors
/// Malformed; or a protocol that is not carried.
pub fn ports(options: &Map<String, Value>) -> Result<(Vec<Port>, Vec<PortRange>), Refusal> {
    let bindings = match options.get(PORTS) {
        None | Some(Value::Null) => Vec::new(),
        Some(value) => {
            Vec::<Binding>::deserialize(value).map_err(|e| Refusal::malformed(format!("{PORTS} is not a list of ports: {e}")))?
        }
    };
    let read = |b: Binding| {
        let protocol = match b.proto {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            other => {
                return Err(Refusal::other(format!(
                    "port {} of IP protocol {other} cannot be published: use tcp or udp",
                    b.port
                )));
            }
        };
        let address = match b.host_ip.as_str() {
            "" => None,
            text => Some(
                text.parse::<IpAddr>()
                    .map_err(|_| Refusal::malformed(format!("host address {:?} is not one", crop(text))))?,
            ),
        };
        let port = Port {
            published: b.host_port,
            target: b.port,
            protocol,
            mode: PublishMode::Host,
            address: address.filter(|a| !a.is_unspecified()),
        };
        Ok((port, Some(b.host_port_end).filter(|end| *end > b.host_port)))
    };
    let (mut one, mut ranges) = (Vec::new(), Vec::new());
    for binding in bindings {
        match read(binding)? {
            (port, Some(last)) => ranges.push(PortRange { port, last }),
            (port, None) => one.push(port),
        }
    }
    Ok((one, ranges))
}

/// What is left to the driver to decide; libnetwork refuses what repeats its own.
pub fn left(interface: &Interface, e: &Endpoint, network: &Network) -> Interface {
    let ip6 = e.ip6().filter(|_| interface.address_ipv6.is_empty());
    let ip6 = ip6.and_then(|ip| Some(with_prefix(ip.into(), network.subnet_of(ip.into())?)));
    let mac = Some(e.mac().to_string()).filter(|_| interface.mac_address.is_empty());
    Interface {
        address: String::new(),
        address_ipv6: ip6.unwrap_or_default(),
        mac_address: mac.unwrap_or_default(),
    }
}

/// What the engine has to know to take the interface over. Docker's own resolver asks the host's from
/// within the container: without a way out it has to know the way to the gateway, which answers for them.
pub fn joined(e: &Endpoint, network: &Network, resolvers: &BTreeSet<Ipv4Addr>) -> Joined {
    let gateway = |is_wanted: fn(&IpAddr) -> bool| {
        let ip = e.ips().find(is_wanted);
        ip.and_then(|ip| network.subnet_of(ip))
            .map(|s| s.gateway.to_string())
            .unwrap_or_default()
    };
    let (four, six) = (gateway(IpAddr::is_ipv4), gateway(IpAddr::is_ipv6));
    let to_resolvers = resolvers.iter().filter(|_| network.internal).map(|ip| StaticRoute {
        destination: format!("{ip}/32"),
        route_type: 0,
        next_hop: four.clone(),
    });
    Joined {
        interface_name: InterfaceName {
            src_name: mesh_core::intent::waiting_name(e.id),
            dst_prefix: "eth",
        },
        static_routes: to_resolvers.collect(),
        gateway: if network.internal { String::new() } else { four.clone() },
        gateway_ipv6: if network.internal { String::new() } else { six },
        disable_gateway_service: true,
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

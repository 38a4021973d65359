//! A cluster of any size, made by the commands that users' requests become.
//!
//! Every service is on one network, has a virtual address there and a published TCP port, and as many
//! endpoints as asked for, on nodes in turn. 100 services share a network.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use mesh_core::{
    Id,
    command::{Command, NewEndpoint, NewNode},
    objects::{
        Algorithm, Change, Cluster, EndpointMode, EndpointState, Labels, LbReturn, Objects, Place, Port, Protocol, PublishMode, Role,
        Sandbox,
    },
    spec::{NetworkSpec, ServiceSpec},
    state::State,
};

use crate::Failure;

/// Services per network.
const PER_NETWORK: u64 = 100;
/// The first published port.
const FIRST_PORT: u64 = 10_000;

/// How large.
#[derive(clap::Args, Clone, Debug)]
pub struct Size {
    /// Services.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(0..=55_000))]
    pub services: u64,
    /// Endpoints of each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=8))]
    pub endpoints: u64,
    /// Nodes that they are on.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub nodes: u64,
}

/// A state that is being made, and the log index that it is at.
pub struct Maker {
    state: State,
    index: u64,
}

/// Ids as they are drawn: all over their range. SplitMix64.
fn id(kind: u64, n: u64) -> Id {
    let x = (kind << 48 | n).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Id::from_bits(x ^ (x >> 31))
}

/// Node `n`.
pub fn node(n: u64) -> Id {
    id(1, n)
}

/// Network `n`.
fn network(n: u64) -> Id {
    id(2, n)
}

/// Endpoint `j` of service `i`.
pub fn endpoint(i: u64, j: u64) -> Id {
    id(4, i << 8 | j)
}

/// VTEP of node `n`: of the range for benchmarks (RFC 2544).
pub fn vtep(n: u64) -> IpAddr {
    Ipv4Addr::from(0xc612_0001 + n as u32).into()
}

/// The port that service `i` is published at; no service has that of the control plane, 2377.
fn port(i: u64) -> u16 {
    (FIRST_PORT + i) as u16
}

fn new_node(n: u64, role: Role) -> NewNode {
    NewNode {
        id: node(n),
        hostname: format!("node-{n}"),
        role,
        addr: vtep(n),
        control_port: 2377,
        data_path_addr: vtep(n),
        underlay_mtu: 1500,
        host_routes: Vec::new(),
    }
}

impl Maker {
    /// A cluster of one node, 0.
    pub fn new() -> Result<Self, Failure> {
        let mut maker = Self {
            state: State::default(),
            index: 0,
        };
        maker.apply(Command::Init {
            id: id(0, 0),
            ingress: id(0, 1),
            at: Timestamp::UNIX_EPOCH,
            address_pools: vec![IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8)?)],
            subnet_prefix: 24,
            ca_cert: String::new(),
            ca_key: String::new(),
            worker_secret: String::new(),
            manager_secret: String::new(),
            node: new_node(0, Role::Manager),
        })?;
        Ok(maker)
    }

    /// Goes on from what a host of a cluster knows, at `index`.
    pub fn from(mut objects: Objects, id: Id, index: u64) -> Self {
        let services = objects
            .services
            .values()
            .flat_map(|s| s.vips.iter().map(|v| v.slot).chain([s.slot]));
        let slots = services.chain(objects.endpoints.values().map(|e| e.slot));
        let vnis = objects.networks.values().map(|n| n.vni);
        objects.cluster = Some(Arc::new(Cluster {
            id,
            version: index,
            created_at: Timestamp::UNIX_EPOCH,
            address_pools: Vec::new(),
            subnet_prefix: 24,
            ca_cert: String::new(),
            ca_key: String::new(),
            former_roots: Vec::new(),
            worker_secret: String::new(),
            manager_secret: String::new(),
            next_vni: vnis.max().unwrap_or_default() + 1,
            next_slot: slots.max().unwrap_or_default() + 1,
        }));
        Self {
            state: State::from_objects(objects),
            index,
        }
    }

    /// What there is.
    pub fn objects(&self) -> &Objects {
        self.state.objects()
    }

    /// The log index that it is at.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// One more entry of the log.
    pub fn apply(&mut self, command: Command) -> Result<Vec<Change>, Failure> {
        self.index += 1;
        let (outcome, changes) = self.state.apply(self.index, &command);
        outcome.map_err(|refusal| format!("{}: {refusal}", command.name()))?;
        Ok(changes)
    }

    /// Adds nodes `first` and on, networks, services and endpoints. Endpoint `j` of service `i` is on node `first +
    /// (i + j) % nodes`, but for those in `here`, which are on node 0 in that sandbox.
    pub fn grow(&mut self, size: &Size, first: u64, here: &[Sandbox]) -> Result<(), Failure> {
        let at = Timestamp::UNIX_EPOCH;
        for n in first..first + size.nodes {
            let node = new_node(n, Role::Worker);
            self.apply(Command::NodeJoin { node, at })?;
        }
        for n in 0..size.services.div_ceil(PER_NETWORK) {
            // Of the range for carriers (RFC 6598), which no host's own network has.
            let subnet = Ipv4Net::new(Ipv4Addr::from(0x6440_0000 + n as u32 * 1024), 22)?;
            let spec = NetworkSpec {
                name: format!("network-{n}"),
                subnets: vec![IpNet::V4(subnet)],
                ..NetworkSpec::default()
            };
            self.apply(Command::NetworkCreate { id: network(n), at, spec })?;
        }
        for i in 0..size.services {
            self.apply(Command::ServiceCreate {
                id: id(3, i),
                at,
                spec: service(i),
            })?;
        }
        let mut here = here.iter().cloned().fuse();
        for i in 0..size.services {
            for j in 0..size.endpoints {
                // The first endpoint of each network, until there are no more sandboxes.
                let own = if i % PER_NETWORK == 0 && j == 0 { here.next() } else { None };
                let on = if own.is_some() { 0 } else { first + (i + j) % size.nodes };
                let number = 1 << 33 | i << 8 | j;
                let place = Place {
                    container: format!("netns:s{i}-{j}"),
                    netns: format!("/run/netns/s{i}-{j}"),
                    cookie: number,
                    ..Place::default()
                };
                let sandbox = own.unwrap_or_else(|| Sandbox::new(number, place));
                let new = NewEndpoint {
                    id: endpoint(i, j),
                    node: node(on),
                    network: network(i / PER_NETWORK).to_string(),
                    service: Some(id(3, i).to_string()),
                    name: format!("service-{i}-{j}"),
                    ip: None,
                    ip6: None,
                    mac: None,
                    aliases: Vec::new(),
                    labels: Labels::new(),
                    sandbox,
                    ifname: None,
                    ports: Vec::new(),
                    port_ranges: Vec::new(),
                };
                self.apply(Command::EndpointCreate { endpoint: new, at })?;
                let (id, state) = (endpoint(i, j), EndpointState::Ready);
                self.apply(Command::EndpointSet { id, state })?;
            }
        }
        Ok(())
    }
}

fn service(i: u64) -> ServiceSpec {
    ServiceSpec {
        name: format!("service-{i}"),
        networks: vec![network(i / PER_NETWORK).to_string()],
        ports: vec![Port {
            published: port(i),
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            address: None,
        }],
        endpoint_mode: EndpointMode::Vip,
        algorithm: Algorithm::Rr,
        drain_secs: 10,
        affinity_secs: 0,
        source_ranges: Vec::new(),
        lb_return: LbReturn::Tunnel,
        selector: Labels::new(),
        labels: Labels::new(),
    }
}

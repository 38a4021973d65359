//! What one host must look like, from the objects that it knows and a few facts about itself.
//!
//! Pure; the agent calls it with its ledger whenever the ledger or the facts change.

mod balancer;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use crate::{
    Id, Mac,
    desired::{Desired, Fdb, Link, Neigh, Peer, Queue, Route, Veth},
    ipam, lb,
    nft::{BridgeRules, Nft},
    objects::{Dataplane, Encapsulation, Endpoint, Network, Node, Objects, Turn},
};

/// What the host knows of itself that the objects do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Device that clients arrive on.
    pub uplink: String,
    /// Its addresses: where published ports answer.
    pub addrs: BTreeSet<IpAddr>,
    /// Its resolvers, but for those at a loopback address.
    pub resolvers: BTreeSet<Ipv4Addr>,
    /// Cookie of its own network namespace; 0 where the kernel has none.
    pub cookie: u64,
    /// Range of the Ethernet segment that its VTEP is on, where that is the uplink's.
    pub segment: Option<IpNet>,
    /// Ethernet addresses of nodes there that take packets without encapsulation.
    pub neighbors: BTreeSet<Mac>,
}

/// Name of a network's bridge.
pub fn bridge_name(network: Id) -> String {
    format!("mb-{network}")
}

/// Name of a network's VXLAN device.
pub fn vxlan_name(network: Id) -> String {
    format!("mx-{network}")
}

/// First letters of [`veth_name`]s.
pub const VETH: &str = "mv-";

/// Name of an endpoint's host-side veth.
pub fn veth_name(endpoint: Id) -> String {
    format!("{VETH}{endpoint}")
}

/// Name of an endpoint's other end while that waits in the host's namespace for an engine.
pub fn waiting_name(endpoint: Id) -> String {
    format!("mc-{endpoint}")
}

/// What the host of node `me` must look like. A node that is not among the objects has nothing.
pub fn desired(objects: &Objects, revision: u64, cluster: Id, me: Id, facts: &Facts) -> Desired {
    let mut out = Desired {
        revision,
        cluster: Some(cluster),
        ..Desired::default()
    };
    let (Some(node), Some(ingress)) = (objects.nodes.get(&me), objects.ingress()) else {
        return out;
    };
    let host = Host::new(objects, cluster, ingress, node);
    host.ingress(cluster, ingress, facts, &mut out);
    for network in host.local.keys().filter_map(|id| objects.networks.get(id)) {
        host.network(network, facts, &mut out);
    }
    host.neighbors(&mut out);
    host.balancer(cluster, ingress, facts, &mut out);
    host.names(&mut out.names);
    out
}

/// The node's own addresses, from which its host speaks into networks, with their ranges: in the
/// ingress network, and an IPv6 one once any network has IPv6.
fn own_addresses(objects: &Objects, cluster: Id, ingress: &Network, node: &Node) -> Vec<IpNet> {
    let v4 = ingress.subnet_of(node.ingress_ip).map(|s| with_prefix(node.ingress_ip, s.subnet));
    let v6 = objects
        .networks
        .values()
        .any(|n| n.has_ip6())
        .then(|| with_prefix(ipam::node_address(cluster, node.id).into(), ipam::node_range(cluster).into()));
    v4.into_iter().chain(v6).collect()
}

struct Host<'a> {
    objects: &'a Objects,
    node: &'a Node,
    /// See [`own_addresses`].
    own: Vec<IpNet>,
    /// The endpoints of this host.
    here: Vec<&'a Endpoint>,
    /// Of them, those whose container's namespace is known, by its inode.
    sandboxes: BTreeMap<u64, Vec<&'a Endpoint>>,
    /// The networks that have an endpoint here (only they exist here), with all their endpoints.
    local: BTreeMap<Id, Vec<&'a Endpoint>>,
    /// See [`Objects::members`].
    members: BTreeMap<Id, Vec<&'a Endpoint>>,
}

impl<'a> Host<'a> {
    /// Looks for what is wanted often once.
    fn new(objects: &'a Objects, cluster: Id, ingress: &Network, node: &'a Node) -> Self {
        let here: Vec<&Endpoint> = objects.endpoints.on_node(node.id).map(AsRef::as_ref).collect();
        let mut sandboxes: BTreeMap<u64, Vec<&Endpoint>> = BTreeMap::new();
        for e in here.iter().filter(|e| e.sandbox.inode != 0) {
            sandboxes.entry(e.sandbox.inode).or_default().push(e);
        }
        let networks: BTreeSet<Id> = here.iter().map(|e| e.network).collect();
        let of_network = |id| objects.endpoints.in_network(id).map(AsRef::as_ref).collect();
        let local = networks.into_iter().map(|id| (id, of_network(id))).collect();
        Self {
            objects,
            node,
            own: own_addresses(objects, cluster, ingress, node),
            here,
            sandboxes,
            local,
            members: objects.members(),
        }
    }
}

impl Host<'_> {
    fn others(&self) -> impl Iterator<Item = &Node> {
        self.objects.nodes.values().map(AsRef::as_ref).filter(|n| n.id != self.node.id)
    }

    /// The VTEP of an endpoint's node, when that is another one.
    fn vtep(&self, e: &Endpoint) -> Option<IpAddr> {
        self.objects
            .nodes
            .get(&e.node)
            .filter(|n| n.id != self.node.id)
            .map(|n| n.data_path_addr)
    }

    /// The ingress device, and the packet filter's frame.
    fn ingress(&self, cluster: Id, ingress: &Network, facts: &Facts, out: &mut Desired) {
        let dev = vxlan_name(ingress.id);
        let link = Link::Vxlan {
            vni: ingress.vni,
            local: self.node.data_path_addr,
            mtu: self.objects.mtu(ingress),
            bridge: None,
            mac: Some(self.node.ingress_mac()),
            ipv6: self.own.iter().any(|a| a.addr().is_ipv6()),
        };
        out.links.insert(dev.clone(), (ingress.id, link));
        for own in &self.own {
            out.addrs.insert((dev.clone(), *own));
            out.routes.insert(Route {
                dst: own.trunc(),
                dev: dev.clone(),
                src: own.addr(),
            });
        }
        for peer in self.others() {
            for ip in own_addresses(self.objects, cluster, ingress, peer) {
                out.neighs.insert(Neigh {
                    dev: dev.clone(),
                    ip: ip.addr(),
                    mac: peer.ingress_mac(),
                });
            }
            out.fdb.insert(Fdb {
                dev: dev.clone(),
                mac: peer.ingress_mac(),
                vtep: Some(peer.data_path_addr),
            });
        }
        let peers = self.others().map(|n| n.data_path_addr).collect();
        out.nft = Some(Nft {
            peers,
            vtep: Some(self.node.data_path_addr),
            bridges: BTreeMap::new(),
            ingress: self.own.iter().map(IpNet::trunc).collect(),
            ingress_dev: dev.clone(),
            resolvers: facts.resolvers.clone(),
        });
        out.hooks.insert(lb::Hook {
            program: lb::Program::FromOverlay,
            dev,
        });
        out.hooks.insert(lb::Hook {
            program: lb::Program::Sockets,
            dev: String::new(),
        });
        if !facts.uplink.is_empty() {
            out.hooks.insert(lb::Hook {
                program: lb::Program::FromUplink,
                dev: facts.uplink.clone(),
            });
        }
    }

    /// One network that has an endpoint here.
    fn network(&self, network: &Network, facts: &Facts, out: &mut Desired) {
        let (bridge, vxlan) = (bridge_name(network.id), vxlan_name(network.id));
        let Some(first) = network.subnets.first() else { return };
        let mtu = self.objects.mtu(network);
        out.links.insert(
            bridge.clone(),
            (
                network.id,
                Link::Bridge {
                    mac: Mac::for_ip(first.gateway),
                    mtu,
                    ipv6: network.has_ip6(),
                },
            ),
        );
        let link = Link::Vxlan {
            vni: network.vni,
            local: self.node.data_path_addr,
            mtu,
            bridge: Some(bridge.clone()),
            mac: None,
            ipv6: false,
        };
        out.links.insert(vxlan.clone(), (network.id, link));
        out.tables.networks.insert(vxlan.clone(), network.vni);
        if network.encapsulation() == Encapsulation::CrossSubnet {
            out.tables.ranges.extend(network.subnets.iter().map(|s| (s.subnet, network.vni)));
        }
        out.hooks.insert(lb::Hook {
            program: lb::Program::FromNetwork,
            dev: vxlan.clone(),
        });
        for s in &network.subnets {
            out.addrs.insert((bridge.clone(), with_prefix(s.gateway, s.subnet)));
            let v4 = s.subnet.addr().is_ipv4();
            out.routes
                .extend(self.own.iter().find(|own| own.addr().is_ipv4() == v4).map(|own| Route {
                    dst: s.subnet,
                    dev: bridge.clone(),
                    src: own.addr(),
                }));
        }
        if let Some(nft) = &mut out.nft {
            // Sorted, as they are read back.
            let subnets = network
                .subnets
                .iter()
                .map(|s| s.subnet)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            let gateways = network
                .subnets
                .iter()
                .map(|s| s.gateway)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            let rules = BridgeRules {
                subnets,
                gateways,
                internal: network.internal,
                names: self.is_dockers(network.id),
            };
            nft.bridges.insert(bridge.clone(), rules);
        }
        for &e in self.endpoints_of(network) {
            match self.vtep(e) {
                Some(vtep) => {
                    out.neighs.extend(e.ips().map(|ip| neighbour(&bridge, ip, e.mac())));
                    out.fdb.insert(Fdb {
                        dev: vxlan.clone(),
                        mac: e.mac(),
                        vtep: Some(vtep),
                    });
                    out.fdb.insert(Fdb {
                        dev: vxlan.clone(),
                        mac: e.mac(),
                        vtep: None,
                    });
                    self.remote(network, e, facts, out);
                }
                None if e.node == self.node.id => self.endpoint(network, e, &bridge, mtu, out),
                // Its node was removed: the endpoint is about to follow.
                None => {}
            }
        }
    }

    /// An endpoint of another node, if that is reached without encapsulation: when both nodes are on one segment, the
    /// other has said which Ethernet address it has there (an older meshd does not), and it was found to listen.
    fn remote(&self, network: &Network, e: &Endpoint, facts: &Facts, out: &mut Desired) {
        if network.encapsulation() != Encapsulation::CrossSubnet {
            return;
        }
        let there = self.objects.nodes.get(&e.node).and_then(|n| at_segment(n, facts.segment));
        let near = there.filter(|mac| facts.neighbors.contains(mac));
        let (Some(own), Some(node)) = (self.node.underlay_mac, near) else {
            return;
        };
        for ip in e.ips() {
            if out.tables.remotes.len() == lb::REMOTES {
                return;
            }
            let network = network.vni;
            out.tables.remotes.insert(ip, lb::Remote { network, node, own });
        }
    }

    /// From whom packets are taken that are not encapsulated: all nodes that speak so, also those that this one takes
    /// to be on another segment.
    fn neighbors(&self, out: &mut Desired) {
        if out.tables.locals.values().any(|l| l.segment) {
            out.tables.neighbors = self.others().filter_map(|n| n.underlay_mac).collect();
        }
    }

    /// A container engine has containers of this host on the network.
    fn is_dockers(&self, network: Id) -> bool {
        let is_it = |e: &Endpoint| e.node == self.node.id && e.network == network && e.sandbox.handover.is_some();
        self.here.iter().any(|e| is_it(e))
    }

    /// One endpoint of this host.
    fn endpoint(&self, network: &Network, e: &Endpoint, bridge: &str, mtu: u32, out: &mut Desired) {
        // The bridge has no link-local address to ask for a neighbour from.
        out.neighs
            .extend(e.ips().filter(IpAddr::is_ipv6).map(|ip| neighbour(bridge, ip, e.mac())));
        let subnets = || e.ips().filter_map(|ip| Some((ip, network.subnet_of(ip)?)));
        let name = veth_name(e.id);
        let waits = e.sandbox.handover.is_some() && !e.sandbox.is_known();
        let taken = e.sandbox.handover.is_some() && !waits;
        let gateways = gateways(self.objects, e, self.siblings(e));
        // Which of its networks an engine gives the default route, and for how long, is not known.
        let is_routed = |ip: IpAddr| !taken && gateways.iter().any(|g| g.is_ipv4() == ip.is_ipv4());
        let has_route = |ip: IpAddr| network.internal || is_routed(ip);
        let returns = subnets().filter(|(ip, _)| !has_route(*ip)).map(|(_, s)| s.gateway).collect();
        // What an engine takes is its own to queue.
        let bandwidth = e.sandbox.bandwidth.as_deref().filter(|_| e.sandbox.handover.is_none());
        let queue = |rate| Some(Queue::new(rate?, mtu));
        let received = bandwidth.and_then(|b| queue(b.ingress));
        let peer = Peer {
            netns: e.sandbox.netns.clone(),
            inode: e.sandbox.inode,
            waits,
            taken,
            ifname: if waits { waiting_name(e.id) } else { e.ifname.to_string() },
            mac: e.mac(),
            addrs: subnets().map(|(ip, s)| with_prefix(ip, s.subnet)).collect(),
            gateways,
            returns,
            queue: bandwidth.and_then(|b| queue(b.egress)),
        };
        out.veths.insert(
            name.clone(),
            Veth {
                endpoint: e.id,
                bridge: bridge.to_owned(),
                mtu,
                queue: received,
                peer,
            },
        );
        out.fdb.insert(Fdb {
            dev: name.clone(),
            mac: e.mac(),
            vtep: None,
        });
        for program in [lb::Program::FromContainer, lb::Program::ToContainer] {
            out.hooks.insert(lb::Hook {
                program,
                dev: name.clone(),
            });
        }
        // VIPs stand behind the gateway's Ethernet address, which is that of the first subnet.
        let Some(gateway) = network.subnets.first().map(|s| s.gateway) else {
            return;
        };
        let (vni, vxlan) = (network.vni, vxlan_name(network.id));
        out.tables.locals.insert(
            name,
            lb::Local {
                slot: e.slot,
                ip4: e.ip4(),
                ip6: e.ip6(),
                mac: e.mac(),
                gateway_mac: Mac::for_ip(gateway),
                network: vni,
                vxlan,
                segment: network.encapsulation() == Encapsulation::CrossSubnet,
                queued: received.is_some(),
            },
        );
    }

    /// The endpoints of the same container of this host, itself included.
    fn siblings<'b>(&'b self, e: &'b Endpoint) -> impl Iterator<Item = &'b Endpoint> + Clone {
        let known = self.sandboxes.get(&e.sandbox.inode);
        // Of a namespace that is not known yet, only the endpoint itself is.
        let itself = known.is_none().then_some(e);
        known.into_iter().flatten().copied().chain(itself)
    }

    /// All endpoints of a network that is here.
    fn endpoints_of(&self, network: &Network) -> &[&Endpoint] {
        self.local.get(&network.id).map_or(&[], Vec::as_slice)
    }

    fn is_reachable(&self, e: &Endpoint) -> bool {
        self.objects
            .nodes
            .get(&e.node)
            .is_some_and(|n| n.id == self.node.id || n.dataplane == Dataplane::Reachable)
    }

    /// When it is an endpoint's turn to be given new flows.
    fn turn(&self, e: &Endpoint) -> Option<Turn> {
        e.turn(self.objects.nodes.get(&e.node).map(|n| &**n), Some(self.node.id))
    }

    /// It takes new flows, as many as its weight says.
    fn takes_new(&self, e: &Endpoint) -> bool {
        self.turn(e) == Some(Turn::Fit)
    }
}

/// The nodes that node `me` may send to without encapsulation, by their Ethernet addresses, with those in the ingress
/// network: those on its segment that have an endpoint in a network with one here that asks for it.
pub fn on_segment(objects: &Objects, me: Id, segment: Option<IpNet>) -> BTreeMap<Mac, Ipv4Addr> {
    let here: BTreeSet<Id> = objects.endpoints.on_node(me).map(|e| e.network).collect();
    let is_bare = |id: &Id| {
        objects
            .networks
            .get(id)
            .is_some_and(|n| n.encapsulation() == Encapsulation::CrossSubnet)
    };
    let nodes: BTreeSet<Id> = here
        .iter()
        .filter(|id| is_bare(id))
        .flat_map(|id| objects.endpoints.in_network(*id).map(|e| e.node))
        .collect();
    let others = nodes.into_iter().filter(|id| *id != me).filter_map(|id| objects.nodes.get(&id));
    let others = others.filter(|n| n.dataplane == Dataplane::Reachable);
    others
        .filter_map(|n| match (at_segment(n, segment), n.ingress_ip) {
            (Some(mac), IpAddr::V4(ip)) => Some((mac, ip)),
            _ => None,
        })
        .collect()
}

/// The Ethernet address of a node, if that is on this segment.
fn at_segment(node: &Node, segment: Option<IpNet>) -> Option<Mac> {
    node.underlay_mac
        .filter(|_| segment.is_some_and(|s| s.contains(&node.data_path_addr)))
}

/// The gateways of a container's default routes that go over one of its endpoints, of each family one
/// at most: each goes over its oldest network that has a way out and that family. `objects` has all
/// endpoints of the container.
pub fn default_gateways(objects: &Objects, e: &Endpoint) -> Vec<IpAddr> {
    let (id, node, inode) = (e.id, e.node, e.sandbox.inode);
    let all = objects.endpoints.on_node(node).map(AsRef::as_ref);
    // Of a namespace that is not known yet, only the endpoint itself is.
    let siblings = all.filter(|o: &&Endpoint| o.id == id || inode != 0 && o.sandbox.inode == inode);
    gateways(objects, e, siblings)
}

/// As [`default_gateways`]; `siblings` are all endpoints of the container.
fn gateways<'a>(objects: &Objects, e: &Endpoint, siblings: impl Iterator<Item = &'a Endpoint> + Clone) -> Vec<IpAddr> {
    if e.sandbox.routed {
        return Vec::new();
    }
    let is_first = |ip: IpAddr| {
        let has_family = |o: &&Endpoint| o.ips().any(|other| other.is_ipv4() == ip.is_ipv4());
        let first = siblings
            .clone()
            .filter(has_family)
            .filter(|o| objects.is_outward(o))
            .min_by_key(|o| o.slot);
        first.is_some_and(|o| o.id == e.id)
    };
    let network = objects.networks.get(&e.network);
    let gateway = |ip: IpAddr| network.and_then(|n| n.subnet_of(ip)).map(|s| s.gateway);
    e.ips().filter(|ip| is_first(*ip)).filter_map(gateway).collect()
}

fn neighbour(dev: &str, ip: IpAddr, mac: Mac) -> Neigh {
    Neigh {
        dev: dev.to_owned(),
        ip,
        mac,
    }
}

/// `ip` with the prefix length of its subnet.
fn with_prefix(ip: IpAddr, net: IpNet) -> IpNet {
    IpNet::new(ip, net.prefix_len()).unwrap_or(net)
}

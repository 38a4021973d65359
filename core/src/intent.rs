//! What one host must look like, from the objects that it knows and a few facts about itself.
//!
//! Pure; the agent calls it with its ledger whenever the ledger or the facts change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{
    Id, Mac,
    desired::{Desired, Fdb, Link, Neigh, Peer, Route, Veth},
    lb,
    names::{Listener, NameTable, Zone},
    nft::{BridgeRules, Nft},
    objects::{Availability, Dataplane, Endpoint, EndpointMode, EndpointState, Network, Node, Objects, PublishMode, Service},
};

/// What the host knows of itself that the objects do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Device that clients arrive on.
    pub uplink: String,
    /// Its addresses: where published ports answer.
    pub addrs: BTreeSet<IpAddr>,
}

/// Name of a network's bridge.
pub fn bridge_name(network: Id) -> String {
    format!("mb-{network}")
}

/// Name of a network's VXLAN device.
pub fn vxlan_name(network: Id) -> String {
    format!("mx-{network}")
}

/// Name of an endpoint's host-side veth.
pub fn veth_name(endpoint: Id) -> String {
    format!("mv-{endpoint}")
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
    let host = Host {
        objects,
        node,
        local: local_networks(objects, me),
    };
    host.ingress(ingress, facts, &mut out);
    for network in host.local.iter().filter_map(|id| objects.networks.get(id)) {
        host.network(network, &mut out);
    }
    host.balancer(ingress, facts, &mut out);
    host.names(&mut out.names);
    out
}

/// The networks that have an endpoint on `node`: only they exist there.
fn local_networks(objects: &Objects, node: Id) -> BTreeSet<Id> {
    objects.endpoints.values().filter(|e| e.node == node).map(|e| e.network).collect()
}

struct Host<'a> {
    objects: &'a Objects,
    node: &'a Node,
    local: BTreeSet<Id>,
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
    fn ingress(&self, ingress: &Network, facts: &Facts, out: &mut Desired) {
        let dev = vxlan_name(ingress.id);
        let link = Link::Vxlan {
            vni: ingress.vni,
            local: self.node.data_path_addr,
            mtu: self.objects.mtu(ingress),
            bridge: None,
            mac: Some(self.node.ingress_mac()),
        };
        out.links.insert(dev.clone(), (ingress.id, link));
        let net = ingress.subnets.iter().map(|s| s.subnet).find(|s| s.contains(&self.node.ingress_ip));
        if let Some(net) = net {
            out.addrs.insert((dev.clone(), with_prefix(self.node.ingress_ip, net)));
            out.routes.insert(Route {
                dst: net,
                dev: dev.clone(),
                src: self.node.ingress_ip,
            });
        }
        for peer in self.others() {
            out.neighs.insert(Neigh {
                dev: dev.clone(),
                ip: peer.ingress_ip,
                mac: peer.ingress_mac(),
            });
            out.fdb.insert(Fdb {
                dev: dev.clone(),
                mac: peer.ingress_mac(),
                vtep: Some(peer.data_path_addr),
            });
        }
        let peers = self.others().map(|n| n.data_path_addr).collect();
        out.nft = Some(Nft {
            peers,
            bridges: BTreeMap::new(),
            ingress: net,
            ingress_dev: dev.clone(),
        });
        out.hooks.insert(lb::Hook {
            program: lb::Program::FromOverlay,
            dev,
        });
        if !facts.uplink.is_empty() {
            out.hooks.insert(lb::Hook {
                program: lb::Program::FromUplink,
                dev: facts.uplink.clone(),
            });
        }
    }

    /// One network that has an endpoint here.
    fn network(&self, network: &Network, out: &mut Desired) {
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
                },
            ),
        );
        let link = Link::Vxlan {
            vni: network.vni,
            local: self.node.data_path_addr,
            mtu,
            bridge: Some(bridge.clone()),
            mac: None,
        };
        out.links.insert(vxlan.clone(), (network.id, link));
        out.tables.networks.insert(vxlan.clone(), network.vni);
        out.hooks.insert(lb::Hook {
            program: lb::Program::FromNetwork,
            dev: vxlan.clone(),
        });
        for s in &network.subnets {
            out.addrs.insert((bridge.clone(), with_prefix(s.gateway, s.subnet)));
            out.routes.insert(Route {
                dst: s.subnet,
                dev: bridge.clone(),
                src: self.node.ingress_ip,
            });
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
            };
            nft.bridges.insert(bridge.clone(), rules);
        }
        for e in self.objects.endpoints.values().filter(|e| e.network == network.id) {
            match self.vtep(e) {
                Some(vtep) => {
                    out.neighs.insert(Neigh {
                        dev: bridge.clone(),
                        ip: e.ip,
                        mac: e.mac,
                    });
                    out.fdb.insert(Fdb {
                        dev: vxlan.clone(),
                        mac: e.mac,
                        vtep: Some(vtep),
                    });
                    out.fdb.insert(Fdb {
                        dev: vxlan.clone(),
                        mac: e.mac,
                        vtep: None,
                    });
                }
                None if e.node == self.node.id => self.endpoint(network, e, &bridge, mtu, out),
                // Its node was removed: the endpoint is about to follow.
                None => {}
            }
        }
    }

    /// One endpoint of this host.
    fn endpoint(&self, network: &Network, e: &Endpoint, bridge: &str, mtu: u32, out: &mut Desired) {
        let Some(subnet) = network.subnets.iter().find(|s| s.subnet.contains(&e.ip)) else {
            return;
        };
        let name = veth_name(e.id);
        let peer = Peer {
            netns: e.sandbox.netns.clone(),
            inode: e.sandbox.inode,
            ifname: e.ifname.clone(),
            mac: e.mac,
            addr: with_prefix(e.ip, subnet.subnet),
            gateway: self.has_default_route(e).then_some(subnet.gateway),
        };
        out.veths.insert(
            name.clone(),
            Veth {
                endpoint: e.id,
                bridge: bridge.to_owned(),
                mtu,
                peer,
            },
        );
        out.fdb.insert(Fdb {
            dev: name.clone(),
            mac: e.mac,
            vtep: None,
        });
        for program in [lb::Program::FromContainer, lb::Program::ToContainer] {
            out.hooks.insert(lb::Hook {
                program,
                dev: name.clone(),
            });
        }
        // VIPs stand behind the gateway's Ethernet address, which is that of the first subnet.
        let gateway = network.subnets.first().map_or(subnet.gateway, |s| s.gateway);
        let (vni, vxlan) = (network.vni, vxlan_name(network.id));
        out.tables.locals.insert(
            name,
            lb::Local {
                slot: e.slot,
                ip4: v4(e.ip),
                ip6: v6(e.ip),
                mac: e.mac,
                gateway_mac: Mac::for_ip(gateway),
                network: vni,
                vxlan,
            },
        );
    }

    /// A container's default route goes over its oldest network that has a way out.
    fn has_default_route(&self, e: &Endpoint) -> bool {
        let outward = |o: &&Endpoint| self.objects.networks.get(&o.network).is_some_and(|n| !n.internal);
        let first = self.siblings(e).filter(outward).min_by_key(|o| o.slot);
        first.is_some_and(|o| o.id == e.id)
    }

    /// The endpoints of the same container, itself included.
    fn siblings(&self, e: &Endpoint) -> impl Iterator<Item = &Endpoint> {
        let (node, inode) = (e.node, e.sandbox.inode);
        self.objects
            .endpoints
            .values()
            .map(AsRef::as_ref)
            .filter(move |o| o.node == node && o.sandbox.inode == inode)
    }

    fn is_reachable(&self, e: &Endpoint) -> bool {
        self.objects
            .nodes
            .get(&e.node)
            .is_some_and(|n| n.id == self.node.id || n.dataplane == Dataplane::Reachable)
    }

    fn takes_new(&self, e: &Endpoint) -> bool {
        let willing = self
            .objects
            .nodes
            .get(&e.node)
            .is_some_and(|n| n.availability != Availability::Drain);
        e.state == EndpointState::Ready && willing && self.is_reachable(e)
    }

    fn balancer(&self, ingress: &Network, facts: &Facts, out: &mut Desired) {
        let t = &mut out.tables;
        t.ingress_mac = self.node.ingress_mac();
        t.ingress_dev = vxlan_name(ingress.id);
        t.ingress_mtu = self.objects.mtu(ingress);
        t.uplink = facts.uplink.clone();
        t.node_addrs = facts.addrs.clone();
        t.peers = self.others().map(Node::ingress_mac).collect();
        let mut members: BTreeMap<Id, Vec<&Endpoint>> = BTreeMap::new();
        for e in self.objects.endpoints.values() {
            if let Some(s) = e.service {
                members.entry(s).or_default().push(e);
            }
        }
        for list in members.values_mut() {
            list.sort_by_key(|e| e.slot);
        }
        for service in self.objects.services.values() {
            let all = members.get(&service.id).map_or(&[][..], Vec::as_slice);
            self.service(service, all, &vxlan_name(ingress.id), out);
        }
    }

    fn service(&self, service: &Service, members: &[&Endpoint], ingress_dev: &str, out: &mut Desired) {
        let mut seen = BTreeSet::new();
        // A container that serves over two networks is one backend of a published port.
        let once: Vec<_> = members.iter().copied().filter(|e| seen.insert((e.node, e.sandbox.inode))).collect();
        let mut published = false;
        for port in service.ports.iter().filter(|p| p.mode == PublishMode::Ingress) {
            published = true;
            let key = (port.protocol, port.published);
            out.tables.published.insert(
                key,
                lb::Published {
                    service: service.slot,
                    target: port.target,
                    direct: false,
                },
            );
        }
        if published {
            self.pool(service.slot, &once, out);
            for e in &once {
                if let Some(vtep) = self.vtep(e) {
                    out.fdb.insert(Fdb {
                        dev: ingress_dev.to_owned(),
                        mac: e.mac,
                        vtep: Some(vtep),
                    });
                }
            }
        }
        for vip in service.vips.iter().filter(|v| self.local.contains(&v.network)) {
            let Some(network) = self.objects.networks.get(&vip.network) else {
                continue;
            };
            let here: Vec<_> = members.iter().copied().filter(|e| e.network == vip.network).collect();
            out.tables.vips.insert(
                vip.ip,
                lb::Vip {
                    service: vip.slot,
                    network: network.vni,
                },
            );
            self.pool(vip.slot, &here, out);
        }
    }

    /// A set of backends: those that take new flows in its list, those that keep theirs as rows.
    fn pool(&self, slot: u32, members: &[&Endpoint], out: &mut Desired) {
        let list = members.iter().filter(|e| self.takes_new(e)).map(|e| e.slot).collect();
        out.tables.services.insert(
            slot,
            lb::Pool {
                list,
                ..lb::Pool::default()
            },
        );
        for e in members
            .iter()
            .filter(|e| self.is_reachable(e) && e.state != EndpointState::Starting)
        {
            let row = lb::Backend {
                ip4: v4(e.ip),
                ip6: v6(e.ip),
                mac: e.mac,
                node: None,
                local: e.node == self.node.id,
                accepting: self.takes_new(e),
            };
            out.tables.backends.insert(e.slot, row);
        }
    }

    fn names(&self, out: &mut NameTable) {
        for network in self.local.iter().filter_map(|id| self.objects.networks.get(id)) {
            for s in &network.subnets {
                let listener = Listener {
                    network: network.id,
                    dev: bridge_name(network.id),
                    forward: !network.internal,
                };
                out.listeners.insert(s.gateway, listener);
            }
            out.zones.insert(network.id, self.zone(network));
        }
        for e in self.objects.endpoints.values().filter(|e| e.node == self.node.id) {
            let mut others: Vec<_> = self.siblings(e).filter(|o| o.id != e.id).collect();
            others.sort_by_key(|o| o.slot);
            let networks = std::iter::once(e.network).chain(others.iter().map(|o| o.network)).collect();
            out.clients.insert(e.ip, networks);
        }
    }

    fn zone(&self, network: &Network) -> Zone {
        let mut zone = Zone {
            network: network.name.to_ascii_lowercase(),
            ..Zone::default()
        };
        let mut add = |name: String, ip: Option<IpAddr>| {
            let list = zone.names.entry(name.to_ascii_lowercase()).or_default();
            list.extend(ip.filter(|ip| !list.contains(ip)));
        };
        let services: Vec<_> = self
            .objects
            .services
            .values()
            .filter(|s| s.networks.contains(&network.id))
            .collect();
        let taken: BTreeSet<_> = services.iter().map(|s| s.name.to_ascii_lowercase()).collect();
        for s in &services {
            add(format!("tasks.{}", s.name), None);
            add(s.name.clone(), s.vips.iter().find(|v| v.network == network.id).map(|v| v.ip));
        }
        for e in self.objects.endpoints.values().filter(|e| e.network == network.id) {
            // A service's name is the service's, also when a container has it too.
            for name in std::iter::once(&e.name)
                .chain(&e.aliases)
                .filter(|n| !taken.contains(&n.to_ascii_lowercase()))
            {
                add(name.clone(), Some(e.ip));
            }
            let Some(s) = services.iter().find(|s| Some(s.id) == e.service).filter(|_| self.takes_new(e)) else {
                continue;
            };
            add(format!("tasks.{}", s.name), Some(e.ip));
            if s.endpoint_mode == EndpointMode::Dnsrr {
                add(s.name.clone(), Some(e.ip));
            }
        }
        let endpoints = self
            .objects
            .endpoints
            .values()
            .filter(|e| e.network == network.id)
            .map(|e| (e.ip, e.name.clone()));
        let vips = services
            .iter()
            .flat_map(|s| s.vips.iter().filter(|v| v.network == network.id).map(|v| (v.ip, s.name.clone())));
        zone.reverse = endpoints.chain(vips).map(|(ip, name)| (ip, name.to_ascii_lowercase())).collect();
        zone
    }
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}

/// `ip` with the prefix length of its subnet.
fn with_prefix(ip: IpAddr, net: IpNet) -> IpNet {
    IpNet::new(ip, net.prefix_len()).unwrap_or(net)
}

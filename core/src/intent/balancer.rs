//! The balancer's tables: who serves what, and who may be sent to. Called by [`super::desired`].

use std::{
    collections::BTreeSet,
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Facts, Host, vxlan_name};
use crate::{
    Id, balance,
    desired::{Desired, Fdb},
    ipam, lb,
    objects::{Algorithm, Dataplane, Endpoint, EndpointState, LbReturn, Network, Node, Port, PublishMode, Service, v4},
};

/// Whether an endpoint has an address of a family.
type Has = fn(&Endpoint) -> bool;
/// The families that a set of backends exists for, with their bit in its number and who is in it.
const FAMILIES: [(u32, Has); 2] = [(0, |e| e.ip4().is_some()), (lb::V6, |e| e.ip6().is_some())];

/// Networks whose VIPs one namespace's sockets reach without a translation per packet; the VIPs of
/// others are translated on the way.
const NETWORKS: usize = 8;

impl Host<'_> {
    pub(super) fn balancer(&self, cluster: Id, ingress: &Network, facts: &Facts, out: &mut Desired) {
        let t = &mut out.tables;
        t.ingress_mac = self.node.ingress_mac();
        t.ingress_ip = v4(self.node.ingress_ip);
        t.ingress_dev = vxlan_name(ingress.id);
        t.ingress_mtu = self.objects.mtu(ingress);
        t.uplink = facts.uplink.clone();
        t.node_addrs = facts.addrs.clone();
        t.peers = self.others().map(Node::ingress_mac).collect();
        if self.own.iter().any(|own| own.addr().is_ipv6()) {
            let nodes = self.objects.nodes.values();
            t.nodes = nodes
                .filter_map(|n| Some((v4(n.ingress_ip)?, ipam::node_address(cluster, n.id))))
                .collect();
        }
        let lost = self.objects.endpoints.values().filter(|e| !self.is_reachable(e));
        let silent = self.others().filter(|n| n.dataplane != Dataplane::Reachable);
        let silent = silent.flat_map(|n| {
            let six = v4(n.ingress_ip).and_then(|ip| t.nodes.get(&ip).copied());
            iter::once(n.ingress_ip).chain(six.map(IpAddr::V6))
        });
        out.unreachable = lost.flat_map(|e| e.ips()).chain(silent).collect();
        self.namespaces(facts, &mut out.tables);
        for service in self.objects.services.values() {
            let all = self.members.get(&service.id).map_or(&[][..], Vec::as_slice);
            self.service(service, all, &vxlan_name(ingress.id), out);
        }
        self.own_ports(out);
    }

    /// The ports that containers of this host publish for themselves: each is a set of its own, numbered
    /// as its only backend.
    fn own_ports(&self, out: &mut Desired) {
        let options = PoolOptions {
            algorithm: Algorithm::Rr,
            affinity_secs: 0,
            ranged: false,
        };
        for e in self
            .here
            .iter()
            .filter(|e| !e.ports.is_empty() && e.state != EndpointState::Starting)
        {
            for port in &e.ports {
                publish(port, e.slot | lb::LOCAL, LbReturn::Tunnel, &mut out.tables);
            }
            for (family, has) in FAMILIES {
                let one: &[&Endpoint] = if has(e) && self.objects.is_outward(e) { &[e] } else { &[] };
                self.pool(e.slot | lb::LOCAL | family, one, options, out);
            }
        }
    }

    /// The namespaces whose sockets are balanced when they connect: the containers' and the host's.
    fn namespaces(&self, facts: &Facts, t: &mut lb::Tables) {
        let vni = |id| self.objects.networks.get(id).map(|n| n.vni);
        for e in self.here.iter().filter(|e| e.sandbox.cookie != 0) {
            let space = t.namespaces.entry(e.sandbox.cookie).or_default();
            space.networks.extend(vni(&e.network).filter(|_| space.networks.len() < NETWORKS));
        }
        if facts.cookie != 0 {
            let all: BTreeSet<_> = self.local.keys().filter_map(vni).collect();
            let networks = all.into_iter().take(NETWORKS).collect();
            t.namespaces.insert(facts.cookie, lb::Namespace { host: true, networks });
        }
    }

    fn service(&self, service: &Service, members: &[&Endpoint], ingress_dev: &str, out: &mut Desired) {
        let runs = members.iter().any(|e| e.node == self.node.id && e.state != EndpointState::Starting);
        let (mut everywhere, mut only_here) = (false, false);
        for port in &service.ports {
            let set = match port.mode {
                PublishMode::Ingress => {
                    everywhere = true;
                    service.slot
                }
                PublishMode::Host if runs => {
                    only_here = true;
                    service.slot | lb::LOCAL
                }
                PublishMode::Host => continue,
            };
            publish(port, set, service.lb_return, &mut out.tables);
        }
        let options = PoolOptions {
            algorithm: service.algorithm,
            affinity_secs: service.affinity_secs,
            ranged: !service.source_ranges.is_empty(),
        };
        for (family, has) in FAMILIES {
            let mut seen = BTreeSet::new();
            // A container that serves over two networks is one backend of a published port.
            // While its namespace is not known, an endpoint counts as a container of its own.
            // Clients from outside get no answer from an internal network: they are refused, and not left waiting.
            let container = |e: &Endpoint| (e.sandbox.inode, (!e.sandbox.is_known()).then_some(e.id));
            let mut is_first = |e: &&Endpoint| has(e) && self.objects.is_outward(e) && seen.insert((e.node, container(e)));
            let once: Vec<_> = members.iter().copied().filter(|e| is_first(e)).collect();
            if everywhere {
                self.pool(service.slot | family, &once, options, out);
                for e in &once {
                    if let Some(vtep) = self.vtep(e) {
                        out.fdb.insert(Fdb {
                            dev: ingress_dev.to_owned(),
                            mac: e.mac(),
                            vtep: Some(vtep),
                        });
                    }
                }
            }
            if only_here || everywhere && runs {
                let here: Vec<_> = once.into_iter().filter(|e| e.node == self.node.id).collect();
                self.pool(service.slot | lb::LOCAL | family, &here, options, out);
            }
        }
        if everywhere || only_here {
            sources(service, &mut out.tables);
        }
        for vip in service.vips.iter().filter(|v| self.local.contains_key(&v.network)) {
            let Some(network) = self.objects.networks.get(&vip.network) else {
                continue;
            };
            for ip in vip.ips() {
                let (family, has) = FAMILIES[usize::from(ip.is_ipv6())];
                let there = members.iter().copied().filter(|e| e.network == vip.network && has(e));
                let there: Vec<_> = there.collect();
                let set = vip.slot | family;
                let row = lb::Vip {
                    service: set,
                    network: network.vni,
                };
                out.tables.vips.insert(ip, row);
                // Source ranges are about clients from outside.
                self.pool(set, &there, PoolOptions { ranged: false, ..options }, out);
            }
        }
    }

    /// A set of backends: those whose turn it is to take new flows in its list, and those that keep theirs as rows. A
    /// set of IPv6 without any is left out, for the sake of large clusters without IPv6: to the programs it is
    /// the same, but for clients that are not admitted.
    fn pool(&self, slot: u32, members: &[&Endpoint], options: PoolOptions, out: &mut Desired) {
        if slot & lb::V6 != 0 && members.is_empty() && !options.ranged {
            return;
        }
        let able = members.iter().filter(|e| e.weight > 0);
        let turns: Vec<_> = able.filter_map(|e| Some((self.turn(e)?, e))).collect();
        let first = turns.iter().map(|(turn, _)| *turn).min();
        let now = turns.iter().filter(|(turn, _)| Some(*turn) == first);
        let weights: Vec<_> = now.map(|(_, e)| (e.slot, e.weight)).collect();
        let (method, list) = balance::list(options.algorithm, &weights);
        let pool = lb::Pool {
            method,
            affinity_secs: options.affinity_secs,
            ranged: options.ranged,
            list,
        };
        out.tables.services.insert(slot, pool);
        for e in members
            .iter()
            .filter(|e| self.is_reachable(e) && e.state != EndpointState::Starting)
        {
            let row = lb::Backend {
                ip4: e.ip4(),
                ip6: e.ip6(),
                mac: e.mac(),
                node: self.objects.nodes.get(&e.node).and_then(|n| v4(n.ingress_ip)),
                local: e.node == self.node.id,
                accepting: self.weight(e) > 0,
            };
            out.tables.backends.insert(e.slot, row);
        }
    }

    /// How many new flows an endpoint takes now.
    fn weight(&self, e: &Endpoint) -> u32 {
        if self.takes_new(e) { e.weight } else { 0 }
    }
}

/// What the sets of a service have in common.
#[derive(Clone, Copy)]
struct PoolOptions {
    algorithm: Algorithm,
    affinity_secs: u32,
    ranged: bool,
}

fn publish(port: &Port, set: u32, way: LbReturn, t: &mut lb::Tables) {
    let (protocol, number) = (port.protocol, port.published);
    let row = lb::Published {
        service: set,
        target: port.target,
        direct: way == LbReturn::Direct,
    };
    let Some(address) = port.address else {
        t.published.insert((protocol, number), row);
        return;
    };
    t.bound.insert((address, protocol, number), row);
    let elsewhere = lb::Published {
        service: 0,
        target: 0,
        direct: false,
    };
    t.published.insert((protocol, number), elsewhere);
}

/// Who may be a client. Where some are only denied, all others are let in.
fn sources(service: &Service, t: &mut lb::Tables) {
    let ranges = &service.source_ranges;
    let rows = ranges.iter().map(|r| ((service.slot, r.net), r.allow));
    t.sources.extend(rows);
    if !ranges.is_empty() && ranges.iter().all(|r| !r.allow) {
        for all in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let net = IpNet::new_assert(all, 0);
            t.sources.entry((service.slot, net)).or_insert(true);
        }
    }
}

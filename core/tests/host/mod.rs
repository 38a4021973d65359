//! A host for tests of plans: what it must be, and one that does what it is told.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part")]

use mesh_core::{
    Mac,
    action::{Action, BpfAction, NetAction},
    desired::Desired,
    intent::{self, Facts},
    lb::{Program, Row, Tables},
    observed::{Observed, SeenLink, SeenQueue, SeenVeth},
};

use super::common::*;

pub fn facts(n: u64) -> Facts {
    Facts {
        uplink: "eth0".into(),
        addrs: [ip(&format!("192.168.77.{}", 10 + n))].into(),
        resolvers: Default::default(),
        cookie: 500 + n,
        segment: Some("192.168.77.0/24".parse().unwrap()),
        neighbors: (1..=9).map(|n| Mac([2, 0, 0, 0, 0, n])).collect(),
    }
}

pub fn desired(lab: &Lab, n: u64) -> Desired {
    intent::desired(lab.state.objects(), lab.index, id(1), node_id(n), &facts(n))
}

/// A host that does what it is told.
pub fn carry_out(seen: &mut Observed, steps: &[Action]) {
    for step in steps {
        match step.clone() {
            Action::Names(table) => seen.names = *table,
            Action::Bpf(BpfAction::Attach(h)) => {
                let known = match h.program {
                    Program::FromNetwork => seen.tables.networks.contains_key(&h.dev),
                    Program::FromContainer | Program::ToContainer => seen.tables.locals.contains_key(&h.dev),
                    Program::FromUplink | Program::FromOverlay | Program::Sockets => true,
                };
                assert!(known, "a program comes after its rows");
                seen.hooks.insert(h);
            }
            Action::Bpf(BpfAction::Detach(h)) => drop(seen.hooks.remove(&h)),
            Action::Bpf(BpfAction::Row(row)) => {
                let dev = match &row {
                    Row::Network(dev, Some(_)) => Some(dev),
                    Row::Local(_, Some(local)) => Some(&local.vxlan),
                    _ => None,
                };
                if let Some(dev) = dev {
                    assert!(seen.overlay.links.contains_key(dev), "a device comes before the rows that name it");
                }
                if let Row::Local(name, Some(local)) = &row
                    && local.queued
                {
                    let queue = seen.overlay.veths.get(name).and_then(|v| v.queue);
                    assert!(queue.is_some(), "a queue comes before what has to pass it");
                }
                put(&mut seen.tables, row);
            }
            Action::Net(step) => net(seen, step),
        }
    }
}

fn net(seen: &mut Observed, step: NetAction) {
    let o = &mut seen.overlay;
    match step {
        NetAction::PutLink { name, mark, link } => drop(o.links.insert(
            name,
            SeenLink {
                mark,
                link: *link,
                settled: true,
            },
        )),
        NetAction::DelLink(name) => {
            o.links.remove(&name);
            o.veths.remove(&name);
            o.addrs.retain(|(d, _)| *d != name);
            o.routes.retain(|r| r.dev != name);
            o.fdb.retain(|e| e.dev != name);
            o.neighs.retain(|n| n.dev != name);
            seen.hooks.retain(|h| h.dev != name);
        }
        NetAction::PutVeth { name, veth, .. } => {
            assert!(o.links.contains_key(&veth.bridge), "the bridge comes before its ports");
            o.veths.insert(
                name,
                SeenVeth {
                    endpoint: veth.endpoint,
                    bridge: Some(veth.bridge),
                    mtu: veth.mtu,
                    up: true,
                    returns: false,
                    queue: veth.queue.map(SeenQueue::from),
                },
            );
        }
        NetAction::AddReturns { name, .. } => o.veths.get_mut(&name).expect("the interface comes before its ways back").returns = true,
        NetAction::AddAddr(d, a) => drop(o.addrs.insert((d, a))),
        NetAction::DelAddr(d, a) => drop(o.addrs.remove(&(d, a))),
        NetAction::AddRoute(r) => {
            o.routes.retain(|m| m.dst != r.dst);
            o.routes.insert(r);
        }
        NetAction::DelRoute(r) => drop(o.routes.remove(&r)),
        NetAction::AddFdb(e) => {
            assert!(
                o.links.contains_key(&e.dev) || o.veths.contains_key(&e.dev),
                "the device comes before its entries"
            );
            o.fdb
                .retain(|m| (&m.dev, m.mac, m.vtep.is_some()) != (&e.dev, e.mac, e.vtep.is_some()));
            o.fdb.insert(e);
        }
        NetAction::DelFdb(e) => drop(o.fdb.remove(&e)),
        NetAction::AddNeigh(n) => {
            o.neighs.retain(|m| (&m.dev, m.ip) != (&n.dev, n.ip));
            o.neighs.insert(n);
        }
        NetAction::DelNeigh(n) => drop(o.neighs.remove(&n)),
        NetAction::SetNft(n) => o.nft = n.map(|n| *n),
        NetAction::PassForward => o.blocked = false,
        NetAction::EndSockets { .. } => {}
    }
}

fn put(t: &mut Tables, row: Row) {
    fn set<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, k: K, v: Option<V>) {
        match v {
            Some(v) => drop(map.insert(k, v)),
            None => drop(map.remove(&k)),
        }
    }
    match row {
        Row::Config {
            ingress_mac,
            ingress_ip,
            ingress_dev,
            uplink,
            ingress_mtu,
        } => {
            (t.ingress_mac, t.ingress_ip) = (ingress_mac, ingress_ip);
            (t.ingress_dev, t.uplink, t.ingress_mtu) = (ingress_dev, uplink, ingress_mtu);
        }
        Row::NodeAddr(a, on) => drop(if on { t.node_addrs.insert(a) } else { t.node_addrs.remove(&a) }),
        Row::Remote(k, v) => set(&mut t.remotes, k, v),
        Row::Range(k, v) => set(&mut t.ranges, k, v),
        Row::Neighbor(m, on) => drop(if on { t.neighbors.insert(m) } else { t.neighbors.remove(&m) }),
        Row::Node(k, v) => set(&mut t.nodes, k, v),
        Row::Peer(m, on) => drop(if on { t.peers.insert(m) } else { t.peers.remove(&m) }),
        Row::Published(k, v) => set(&mut t.published, k, v),
        Row::Bound(k, v) => set(&mut t.bound, k, v),
        Row::Source(k, v) => set(&mut t.sources, k, v),
        Row::Namespace(k, v) => set(&mut t.namespaces, k, v),
        Row::Vip(k, v) => set(&mut t.vips, k, v),
        Row::Service(k, v) => {
            for backend in v.iter().flat_map(|pool| &pool.list) {
                assert!(
                    t.backends.contains_key(backend),
                    "backends come before the service that sends to them"
                );
            }
            set(&mut t.services, k, v);
        }
        Row::Backend(k, v) => {
            assert!(
                v.is_some() || !t.services.values().any(|s| s.list.contains(&k)),
                "a backend leaves after its service let it go"
            );
            set(&mut t.backends, k, v);
        }
        Row::Local(k, v) => set(&mut t.locals, k, v.map(|v| *v)),
        Row::Network(k, v) => set(&mut t.networks, k, v),
    }
}

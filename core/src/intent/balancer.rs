//! The balancer's tables: who serves what, and who may be sent to. Called by [`super::desired`].

use std::collections::{BTreeMap, BTreeSet};

use super::{Facts, Host, vxlan_name};
use crate::{
    Id,
    desired::{Desired, Fdb},
    lb,
    objects::{Endpoint, EndpointState, Network, Node, PublishMode, Service},
};

impl Host<'_> {
    pub(super) fn balancer(&self, ingress: &Network, facts: &Facts, out: &mut Desired) {
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
                ip4: e.ip4(),
                ip6: e.ip6(),
                mac: e.mac,
                node: None,
                local: e.node == self.node.id,
                accepting: self.takes_new(e),
            };
            out.tables.backends.insert(e.slot, row);
        }
    }
}

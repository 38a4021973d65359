//! The names that this host's containers can ask for. Called by [`super::desired`].

use std::{collections::BTreeSet, net::IpAddr};

use super::{Host, bridge_name};
use crate::{
    names::{Listener, NameTable, Zone},
    objects::{EndpointMode, Network, Vip},
};

impl Host<'_> {
    pub(super) fn names(&self, out: &mut NameTable) {
        for network in self.local.keys().filter_map(|id| self.objects.networks.get(id)) {
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
        for e in &self.here {
            let mut others: Vec<_> = self.siblings(e).filter(|o| o.id != e.id).collect();
            others.sort_by_key(|o| o.slot);
            let networks = std::iter::once(e.network).chain(others.iter().map(|o| o.network)).collect();
            let networks: Vec<_> = networks;
            out.clients.extend(e.ips().map(|ip| (ip, networks.clone())));
        }
    }

    fn zone(&self, network: &Network) -> Zone {
        let mut zone = Zone {
            network: network.name.to_ascii_lowercase(),
            ..Zone::default()
        };
        let mut add = |name: String, ips: Vec<IpAddr>| {
            let list = zone.names.entry(name.to_ascii_lowercase()).or_default();
            for ip in ips {
                if !list.contains(&ip) {
                    list.push(ip);
                }
            }
        };
        let there = self.objects.services.in_network(network.id);
        let services: Vec<_> = there.filter(|s| s.networks.contains(&network.id)).collect();
        let taken: BTreeSet<_> = services.iter().map(|s| s.name.to_ascii_lowercase()).collect();
        for s in &services {
            add(format!("tasks.{}", s.name), Vec::new());
            let vip = s.vips.iter().find(|v| v.network == network.id);
            add(s.name.clone(), vip.into_iter().flat_map(Vip::ips).collect());
        }
        for e in self.endpoints_of(network) {
            // A service's name is the service's, also when a container has it too.
            for name in std::iter::once(&*e.name)
                .chain(e.aliases.iter().map(String::as_str))
                .filter(|n| !taken.contains(&n.to_ascii_lowercase()))
            {
                add(name.to_owned(), e.ips().collect());
            }
        }
        for s in &services {
            let all = self.members.get(&s.id).into_iter().flatten();
            let turns: Vec<_> = all
                .filter(|e| e.network == network.id)
                .filter_map(|e| Some((self.turn(e)?, e)))
                .collect();
            let first = turns.iter().map(|(turn, _)| *turn).min();
            for (_, e) in turns.into_iter().filter(|(turn, _)| Some(*turn) == first) {
                add(format!("tasks.{}", s.name), e.ips().collect());
                if s.endpoint_mode == EndpointMode::Dnsrr {
                    add(s.name.clone(), e.ips().collect());
                }
            }
        }
        let endpoints = self.endpoints_of(network).iter().flat_map(|e| e.ips().map(|ip| (ip, &*e.name)));
        let vips = services.iter().flat_map(|s| {
            s.vips
                .iter()
                .filter(|v| v.network == network.id)
                .flat_map(Vip::ips)
                .map(|ip| (ip, s.name.as_str()))
        });
        zone.reverse = endpoints.chain(vips).map(|(ip, name)| (ip, name.to_ascii_lowercase())).collect();
        zone
    }
}

//! Names for the data plane's numbers, from the objects that this host knows.

use std::collections::{HashMap, HashSet};

use mesh_api::rest::{BackendTraffic, FlowBackend};
use mesh_core::{Id, lb, objects::Objects};
use mesh_loader::Stat;

/// The service's name in the row of all services and backends that had no room for rows of their own.
const EVERYONE_ELSE: &str = "*";

/// A set of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Id of the service; `None` for an endpoint's own ports.
    pub id: Option<Id>,
    /// Its name, or the endpoint's.
    pub service: String,
    /// The network whose virtual address is asked; `None` for published ports.
    pub network: Option<String>,
}

/// Sets and backends by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Names {
    sets: HashMap<u32, Set>,
    backends: HashMap<u32, FlowBackend>,
}

impl Names {
    /// Of all services and endpoints.
    pub fn of(all: &Objects) -> Self {
        Self::those(all, |_| true, |_| true)
    }

    /// Of those that were counted: a host balances to few of a large cluster's endpoints.
    pub fn counted(all: &Objects, stats: &[Stat]) -> Self {
        let sets: HashSet<u32> = stats.iter().map(|s| base(s.service)).collect();
        let backends: HashSet<u32> = stats.iter().map(|s| s.backend).collect();
        Self::those(all, |set| sets.contains(&set), |backend| backends.contains(&backend))
    }

    fn those(all: &Objects, is_set: impl Fn(u32) -> bool, is_backend: impl Fn(u32) -> bool) -> Self {
        let mut names = Self::default();
        for service in all.services.values() {
            let set = |network| Set {
                id: Some(service.id),
                service: service.name.clone(),
                network,
            };
            if is_set(service.slot) {
                names.sets.insert(service.slot, set(None));
            }
            for vip in service.vips.iter().filter(|v| is_set(v.slot)) {
                let network = all.networks.get(&vip.network);
                let network = network.map_or_else(|| vip.network.to_string(), |n| n.name.clone());
                names.sets.insert(vip.slot, set(Some(network)));
            }
        }
        for endpoint in all.endpoints.values().filter(|e| is_backend(e.slot)) {
            let node = all.nodes.get(&endpoint.node);
            let backend = FlowBackend {
                id: endpoint.id,
                name: endpoint.name.to_string(),
                node: node.map_or_else(|| endpoint.node.to_string(), |n| n.hostname.clone()),
                ip: endpoint.ip.to_string(),
            };
            names.backends.insert(endpoint.slot, backend);
            if !endpoint.ports.is_empty() {
                let own = Set {
                    id: None,
                    service: endpoint.name.to_string(),
                    network: None,
                };
                names.sets.insert(endpoint.slot, own);
            }
        }
        names
    }

    /// The set behind a number, with or without flags.
    pub fn set(&self, number: u32) -> Option<&Set> {
        self.sets.get(&base(number))
    }

    /// The backend with a number.
    pub fn backend(&self, number: u32) -> Option<&FlowBackend> {
        self.backends.get(&number)
    }

    /// Names put to what was counted. Numbers without one are shown as such: the object is gone, the
    /// traffic was. `None` for the row of those that had no room, while there are none.
    pub fn traffic(&self, stat: &Stat) -> Option<BackendTraffic> {
        let number = base(stat.service);
        if number == 0 && stat.flows == 0 && stat.packets == 0 && stat.reply_packets == 0 {
            return None;
        }
        let set = self.set(number);
        let backend = self.backend(stat.backend);
        Some(BackendTraffic {
            service: match set {
                Some(set) => set.service.clone(),
                None if number == 0 => EVERYONE_ELSE.to_owned(),
                None => format!("#{number}"),
            },
            service_id: set.and_then(|s| s.id),
            network: set.and_then(|s| s.network.clone()),
            backend: match backend {
                Some(b) => Some(b.name.clone()),
                None if stat.backend == 0 => None,
                None => Some(format!("#{}", stat.backend)),
            },
            node: backend.map(|b| b.node.clone()),
            flows: stat.flows,
            packets: stat.packets,
            bytes: stat.bytes,
            reply_packets: stat.reply_packets,
            reply_bytes: stat.reply_bytes,
        })
    }
}

/// The number of a set without its flags.
fn base(number: u32) -> u32 {
    number & !(lb::V6 | lb::LOCAL)
}

#[cfg(test)]
mod tests {
    use mesh_core::objects::{Change, Object};
    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> Change {
        let object: Object = serde_json::from_value(value).unwrap();
        let (kind, id) = object.key();
        Change {
            kind,
            id,
            object: Some(object),
        }
    }

    /// A node, a network `shop`, the service `web` and its endpoint `w1`.
    fn objects() -> Objects {
        let at = "2026-01-31T12:00:00Z";
        let mut all = Objects::default();
        for value in [
            json!({"node": {"id": "000000000002", "version": 1, "created_at": at, "hostname": "h1", "labels": {}, "role": "manager", "raft_id": 1,
                "availability": "active", "addr": "192.168.77.11", "control_port": 2377, "data_path_addr": "192.168.77.11", "underlay_mtu": 1500,
                "ingress_ip": "10.255.0.2", "host_routes": [], "state": "ready", "dataplane": "reachable"}}),
            json!({"network": {"id": "000000000004", "version": 2, "created_at": at, "name": "shop", "labels": {}, "driver": "overlay",
                "subnets": [], "vni": 4097, "mtu": null, "internal": false, "attachable": true, "ingress": false, "options": {}}}),
            json!({"service": {"id": "000000000005", "version": 3, "created_at": at, "name": "web", "labels": {}, "networks": ["000000000004"],
                "endpoint_mode": "vip", "algorithm": "rr", "ports": [], "vips": [{"network": "000000000004", "ip": "172.30.0.2", "slot": 8}],
                "slot": 7, "drain_secs": 10}}),
            json!({"endpoint": {"id": "000000000006", "version": 4, "created_at": at, "name": "w1", "labels": {}, "node": "000000000002",
                "network": "000000000004", "ip": "172.30.0.3", "mac": "02:6d:ac:1e:00:03", "aliases": [], "service": "000000000005",
                "sandbox": {"container": "netns:w1", "netns": "/run/netns/w1", "inode": 7}, "ifname": "eth0", "state": "ready", "slot": 9}}),
        ] {
            all.apply(&object(value));
        }
        all
    }

    #[test]
    fn numbers_become_names() {
        let names = Names::of(&objects());
        let stat = |service, backend| Stat {
            service,
            backend,
            flows: 1,
            packets: 2,
            bytes: 3,
            reply_packets: 4,
            reply_bytes: 5,
        };
        let port = names.traffic(&stat(7 | lb::V6, 9)).unwrap();
        assert_eq!((port.service.as_str(), port.network.as_deref()), ("web", None));
        assert_eq!((port.backend.as_deref(), port.node.as_deref()), (Some("w1"), Some("h1")));
        let vip = names.traffic(&stat(8, 9)).unwrap();
        assert_eq!((vip.service.as_str(), vip.network.as_deref()), ("web", Some("shop")));
        let rest = names.traffic(&stat(0, 0)).unwrap();
        assert_eq!((rest.service.as_str(), rest.backend), ("*", None));
        let none = Stat {
            flows: 0,
            packets: 0,
            reply_packets: 0,
            ..stat(0, 0)
        };
        assert_eq!(names.traffic(&none), None, "nobody is left out");
        let gone = names.traffic(&stat(9999, 8888)).unwrap();
        assert_eq!(
            (gone.service.as_str(), gone.service_id, gone.backend.as_deref()),
            ("#9999", None, Some("#8888"))
        );
        assert_eq!(names.backend(9).unwrap().ip, "172.30.0.3");
        let counted = Names::counted(&objects(), &[stat(7 | lb::V6, 9)]);
        assert_eq!(counted.traffic(&stat(7, 9)), Some(port));
        assert!(counted.set(8).is_none(), "not asked for");
    }
}

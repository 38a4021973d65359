//! The tables: rows of `lb::Tables` as rows of BPF maps and back.
//!
//! Read from the maps once, when the loader opens them; from then on the loader is the only writer
//! and keeps a shadow. A row changes in one atomic map update, except for a list of members: see
//! [`lists`].

mod array;
mod held;
mod lists;
mod places;
mod stats;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use ipnet::IpNet;
use mesh_core::{
    Mac,
    lb::{self, Row, Tables},
    objects::Protocol,
};
use mesh_ebpf_common::{
    rows::{self, Addr},
    spec,
};

use crate::Error;
use array::Rows;
use places::{raw4, raw6, read4, read6};
use stats::Stats;
use table::{Bytes, Table, Trie};

/// All tables of a host.
pub struct Store {
    config: Array<MapData, Bytes<rows::Config>>,
    node_addrs: Table<Bytes<rows::Addr>, u32>,
    published: Rows<rows::Published>,
    bound: Table<Bytes<rows::BoundKey>, Bytes<rows::Published>>,
    vips: Table<Bytes<rows::Addr>, Bytes<rows::Vip>>,
    services: Table<u32, Bytes<rows::Service>>,
    members: Table<Bytes<rows::MemberKey>, Bytes<rows::Members>>,
    sources: Trie<Bytes<rows::Source>, u32>,
    backends: Table<u32, Bytes<rows::Backend>>,
    locals: Table<u32, Bytes<rows::Local>>,
    local_by_mac: Table<Bytes<rows::MacKey>, Bytes<rows::Local>>,
    local_by_addr: Table<Bytes<rows::Addr>, u32>,
    ranges: Trie<Bytes<rows::Addr>, u32>,
    remotes: Table<Bytes<rows::Addr>, Bytes<rows::Remote>>,
    neighbors: Table<Bytes<rows::MacKey>, u32>,
    networks: Table<u32, Bytes<rows::Network>>,
    peers: Table<Bytes<rows::MacKey>, u32>,
    nodes: Table<u32, Bytes<rows::Addr>>,
    namespaces: Table<u64, Bytes<rows::Namespace>>,
    stats: Stats,
    shadow: Tables,
    /// The row as the kernel has it.
    own: rows::Config,
    /// Rows of locals as the kernel has them.
    own_locals: BTreeMap<String, rows::Local>,
    /// Index of each network's VXLAN device as the kernel has it.
    own_networks: BTreeMap<String, u32>,
}

/// What went through one backend of one service since it was first given a flow here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The set of backends, without flags; 0: all pairs that had no room for rows of their own.
    pub service: u32,
    /// The backend.
    pub backend: u32,
    /// Flows that were given to it.
    pub flows: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients, whole frames.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes to clients, whole frames.
    pub reply_bytes: u64,
}

impl Store {
    /// Takes the maps and reads what they hold.
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let name = spec::CONFIG.name;
        let config = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        let config = config.try_into().map_err(|source| Error::map(name, "open", source))?;
        let mut store = Self {
            config,
            node_addrs: Table::take(ebpf, &spec::NODE_ADDRS)?,
            published: Rows::take(ebpf, &spec::PUBLISHED)?,
            bound: Table::take(ebpf, &spec::BOUND)?,
            vips: Table::take(ebpf, &spec::VIPS)?,
            services: Table::take(ebpf, &spec::SERVICES)?,
            members: Table::take(ebpf, &spec::MEMBERS)?,
            sources: Trie::take(ebpf, &spec::SOURCES)?,
            backends: Table::take(ebpf, &spec::BACKENDS)?,
            locals: Table::take(ebpf, &spec::LOCALS)?,
            local_by_mac: Table::take(ebpf, &spec::LOCAL_BY_MAC)?,
            local_by_addr: Table::take(ebpf, &spec::LOCAL_BY_ADDR)?,
            ranges: Trie::take(ebpf, &spec::RANGES)?,
            remotes: Table::take(ebpf, &spec::REMOTES)?,
            neighbors: Table::take(ebpf, &spec::NEIGHBORS)?,
            networks: Table::take(ebpf, &spec::NETWORKS)?,
            peers: Table::take(ebpf, &spec::PEERS)?,
            nodes: Table::take(ebpf, &spec::NODES)?,
            namespaces: Table::take(ebpf, &spec::NAMESPACES)?,
            stats: Stats::take(ebpf)?,
            shadow: Tables::default(),
            own: rows::Config::default(),
            own_locals: BTreeMap::new(),
            own_networks: BTreeMap::new(),
        };
        store.read_places()?;
        store.read_services()?;
        store.read()?;
        // A loader that was stopped may have changed rows just before.
        store.next_epoch()?;
        Ok(store)
    }

    /// Gives back memory that very many changes left unused.
    pub fn compact(&mut self) {
        let t = &mut self.shadow;
        compact(&mut t.published);
        compact(&mut t.vips);
        compact(&mut t.services);
        compact(&mut t.backends);
    }

    /// What the maps hold.
    pub fn tables(&self) -> &Tables {
        &self.shadow
    }

    fn read(&mut self) -> Result<(), Error> {
        let t = &mut self.shadow;
        t.node_addrs = self.node_addrs.rows()?.into_iter().map(|(Bytes(a), _)| a.into()).collect();
        let vip = |v: rows::Vip| lb::Vip {
            service: v.service,
            network: v.network,
        };
        let vips = self.vips.rows()?.into_iter();
        t.vips = vips.map(|(Bytes(a), Bytes(v))| (a.into(), vip(v))).collect();
        t.peers = self.peers.rows()?.into_iter().map(|(Bytes(m), _)| Mac(m.mac)).collect();
        let nodes = self.nodes.rows()?.into_iter();
        t.nodes = nodes.filter_map(|(ip, Bytes(a))| Some((read4(ip)?, read6(a)?))).collect();
        for (bits, Bytes(a), vni) in self.ranges.rows()? {
            t.ranges.extend(range(32 + bits, a).map(|net| (net, vni)));
        }
        let remote = |r: rows::Remote| lb::Remote {
            network: r.network,
            node: Mac(r.macs.dst),
            own: Mac(r.macs.src),
        };
        let remotes = self.remotes.rows()?.into_iter();
        t.remotes = remotes.map(|(Bytes(a), Bytes(r))| (a.into(), remote(r))).collect();
        t.neighbors = self.neighbors.rows()?.into_iter().map(|(Bytes(m), _)| Mac(m.mac)).collect();
        self.published.each(|row, v| {
            if v.there == 1 {
                let proto = if row < 1 << 16 { Protocol::Tcp } else { Protocol::Udp };
                t.published.insert((proto, row as u16), published(v));
            }
        })?;
        for (Bytes(k), Bytes(v)) in self.bound.rows()? {
            t.bound.insert((k.addr.into(), proto(k.port.proto), k.port.port), published(v));
        }
        for (bits, Bytes(k), v) in self.sources.rows()? {
            if let Some(net) = range(bits, k.addr) {
                t.sources.insert((k.service & !rows::V6, net), v == 1);
            }
        }
        for (slot, Bytes(b)) in self.backends.rows()? {
            let backend = lb::Backend {
                ip4: read4(b.ip4),
                ip6: read6(b.ip6),
                mac: Mac(b.mac),
                node: read4(b.node),
                local: b.local == 1,
                accepting: b.accepting == 1,
            };
            t.backends.insert(slot, backend);
        }
        for (cookie, Bytes(n)) in self.namespaces.rows()? {
            let namespace = lb::Namespace {
                host: n.host == 1,
                networks: n.networks.into_iter().filter(|vni| *vni != 0).collect(),
            };
            t.namespaces.insert(cookie, namespace);
        }
        Ok(())
    }

    /// Puts or removes one row.
    pub fn put(&mut self, row: &Row) -> Result<(), Error> {
        match row {
            Row::Config {
                ingress_mac,
                ingress_ip,
                ingress_dev,
                uplink,
                ingress_mtu,
            } => self.put_config(*ingress_mac, *ingress_ip, ingress_dev, uplink, *ingress_mtu),
            Row::NodeAddr(ip, true) => {
                self.node_addrs.put(Bytes((*ip).into()), 1)?;
                self.shadow.node_addrs.insert(*ip);
                Ok(())
            }
            Row::NodeAddr(ip, false) => {
                self.node_addrs.remove(&Bytes((*ip).into()))?;
                let led = self.shadow.node_addrs.remove(ip);
                self.led(led)
            }
            Row::Published(key, value) => self.put_published(*key, *value),
            Row::Bound(key, value) => self.put_bound(*key, *value),
            Row::Vip(ip, Some(v)) => {
                let row = rows::Vip {
                    service: v.service,
                    network: v.network,
                };
                self.vips.put(Bytes((*ip).into()), Bytes(row))?;
                self.shadow.vips.insert(*ip, *v);
                Ok(())
            }
            Row::Vip(ip, None) => {
                self.vips.remove(&Bytes((*ip).into()))?;
                self.shadow.vips.remove(ip);
                Ok(())
            }
            Row::Service(set, Some(pool)) => self.put_service(*set, pool),
            Row::Service(set, None) => self.remove_service(*set),
            Row::Source(key, value) => self.put_source(*key, *value),
            Row::Backend(slot, Some(b)) => {
                let row = rows::Backend {
                    ip4: raw4(b.ip4),
                    node: raw4(b.node),
                    ip6: raw6(b.ip6),
                    mac: b.mac.0,
                    local: b.local.into(),
                    accepting: b.accepting.into(),
                };
                self.backends.put(slot, Bytes(row))?;
                let former = self.shadow.backends.insert(*slot, *b);
                self.led(former.is_some_and(|former| former != *b))
            }
            Row::Backend(slot, None) => {
                self.backends.remove(slot)?;
                let led = self.shadow.backends.remove(slot).is_some();
                self.led(led)
            }
            Row::Local(name, value) => self.put_local(name, value.as_deref()),
            Row::Network(name, vni) => self.put_network(name, *vni),
            Row::Remote(ip, Some(r)) => {
                let row = rows::Remote {
                    network: r.network,
                    macs: rows::Macs {
                        dst: r.node.0,
                        src: r.own.0,
                    },
                };
                self.remotes.put(Bytes((*ip).into()), Bytes(row))?;
                self.shadow.remotes.insert(*ip, *r);
                Ok(())
            }
            Row::Remote(ip, None) => {
                self.remotes.remove(&Bytes((*ip).into()))?;
                self.shadow.remotes.remove(ip);
                Ok(())
            }
            Row::Range(net, vni) => {
                let (bits, addr) = (bits(*net) - 32, Bytes(net.network().into()));
                match vni {
                    Some(vni) => {
                        self.ranges.put(bits, addr, *vni)?;
                        self.shadow.ranges.insert(*net, *vni);
                    }
                    None => {
                        self.ranges.remove(bits, addr)?;
                        self.shadow.ranges.remove(net);
                    }
                }
                Ok(())
            }
            Row::Neighbor(mac, true) => {
                self.neighbors.put(Bytes(rows::MacKey::new(mac.0)), 1)?;
                self.shadow.neighbors.insert(*mac);
                Ok(())
            }
            Row::Neighbor(mac, false) => {
                self.neighbors.remove(&Bytes(rows::MacKey::new(mac.0)))?;
                self.shadow.neighbors.remove(mac);
                Ok(())
            }
            Row::Peer(mac, true) => {
                self.peers.put(Bytes(rows::MacKey::new(mac.0)), 1)?;
                self.shadow.peers.insert(*mac);
                Ok(())
            }
            Row::Peer(mac, false) => {
                self.peers.remove(&Bytes(rows::MacKey::new(mac.0)))?;
                self.shadow.peers.remove(mac);
                Ok(())
            }
            Row::Node(ip, Some(v6)) => {
                self.nodes.put(raw4(Some(*ip)), Bytes(raw6(Some(*v6))))?;
                self.shadow.nodes.insert(*ip, *v6);
                Ok(())
            }
            Row::Node(ip, None) => {
                self.nodes.remove(&raw4(Some(*ip)))?;
                self.shadow.nodes.remove(ip);
                Ok(())
            }
            Row::Namespace(cookie, value) => self.put_namespace(*cookie, value.as_ref()),
        }
    }

    /// To be called after a row of those that flows are led by was put or removed; `led`: it now leads
    /// elsewhere.
    fn led(&mut self, led: bool) -> Result<(), Error> {
        if led { self.next_epoch() } else { Ok(()) }
    }

    fn put_published(&mut self, key: (Protocol, u16), value: Option<lb::Published>) -> Result<(), Error> {
        let row = rows::port_row(key.1, key.0.number());
        if let Some(p) = value {
            self.published.write(row, &[published_row(p)])?;
            let former = self.shadow.published.insert(key, p);
            self.led(former != Some(p))
        } else {
            self.published.write(row, &[rows::Published::default()])?;
            let led = self.shadow.published.remove(&key).is_some();
            self.led(led)
        }
    }

    fn put_bound(&mut self, key: (IpAddr, Protocol, u16), value: Option<lb::Published>) -> Result<(), Error> {
        let row = Bytes(rows::BoundKey {
            addr: key.0.into(),
            port: port_key(key.1, key.2),
        });
        if let Some(p) = value {
            self.bound.put(row, Bytes(published_row(p)))?;
            let former = self.shadow.bound.insert(key, p);
            self.led(former != Some(p))
        } else {
            self.bound.remove(&row)?;
            let led = self.shadow.bound.remove(&key).is_some();
            self.led(led)
        }
    }

    fn put_source(&mut self, key: (u32, IpNet), value: Option<bool>) -> Result<(), Error> {
        let (service, net) = key;
        let family = if matches!(net, IpNet::V4(_)) { 0 } else { rows::V6 };
        let row = Bytes(rows::Source {
            service: service | family,
            addr: net.network().into(),
        });
        if let Some(admitted) = value {
            self.sources.put(bits(net), row, admitted.into())?;
            self.shadow.sources.insert(key, admitted);
        } else {
            self.sources.remove(bits(net), row)?;
            self.shadow.sources.remove(&key);
        }
        Ok(())
    }

    fn put_namespace(&mut self, cookie: u64, value: Option<&lb::Namespace>) -> Result<(), Error> {
        if let Some(n) = value {
            let mut networks = [0; 8];
            for (to, vni) in networks.iter_mut().zip(&n.networks) {
                *to = *vni;
            }
            let row = rows::Namespace {
                host: n.host.into(),
                networks,
            };
            self.namespaces.put(cookie, Bytes(row))?;
            self.shadow.namespaces.insert(cookie, n.clone());
        } else {
            self.namespaces.remove(&cookie)?;
            self.shadow.namespaces.remove(&cookie);
        }
        Ok(())
    }

    /// The row of the counters of a backend of a set; 0: that of those that had no room.
    pub fn stat_row(&mut self, set: u32, backend: u32) -> Result<u32, Error> {
        let service = lists::base(set);
        self.stats.row(rows::Pair { service, backend })
    }

    /// Counters are held that were taken away from backends, or are to be taken away.
    pub fn stats_due(&self) -> bool {
        self.stats.due()
    }

    /// Takes the counters of backends that are in no list away from them; all that are held now, and the mark
    /// for [`Self::free_stats`].
    pub fn held_stats(&mut self) -> Result<(BTreeSet<u32>, u64), Error> {
        if self.stats.changed() {
            self.forget_unlisted()?;
        }
        Ok(self.stats.held())
    }

    /// Gives out counters that were held before `mark`, of which no flow names these.
    pub fn free_stats(&mut self, rows: &BTreeSet<u32>, mark: u64) -> Result<(), Error> {
        self.stats.free_unnamed(rows, mark)
    }

    /// Gives out held counters if few are free.
    pub fn free_oldest_stats(&mut self) -> Result<(), Error> {
        self.stats.free_oldest()
    }

    /// What went through each backend of each service that was given a flow here.
    pub fn stats(&self) -> Result<Vec<Stat>, Error> {
        self.stats.read()
    }
}

/// Makes a map anew without room for more: one that was filled in order has room for nearly as much again.
fn compact<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

fn proto(number: u8) -> Protocol {
    if number == rows::TCP { Protocol::Tcp } else { Protocol::Udp }
}

fn port_key(proto: Protocol, port: u16) -> rows::PortKey {
    rows::PortKey {
        port,
        proto: proto.number(),
        zero: 0,
    }
}

fn published(row: rows::Published) -> lb::Published {
    lb::Published {
        service: row.service,
        target: row.target,
        direct: row.direct == 1,
    }
}

fn published_row(p: lb::Published) -> rows::Published {
    rows::Published {
        service: p.service,
        target: p.target,
        direct: p.direct.into(),
        there: 1,
    }
}

/// The service's bits, then the range's; of IPv4 those before the address too.
fn bits(net: IpNet) -> u32 {
    let before = if matches!(net, IpNet::V4(_)) { 96 } else { 0 };
    32 + before + u32::from(net.prefix_len())
}

fn range(bits: u32, addr: Addr) -> Option<IpNet> {
    let ip = IpAddr::from(addr);
    let before = if ip.is_ipv4() { 96 } else { 0 };
    let len = u8::try_from(bits.checked_sub(32 + before)?).ok()?;
    IpNet::new(ip, len).ok()
}

//! The tables: rows of `lb::Tables` as rows of BPF maps and back.
//!
//! Read from the maps once, when the loader opens them; from then on the loader is the only writer
//! and keeps a shadow. A row changes in one atomic map update, except for a list of members: that is
//! written as a second list, which one update of the service's row makes valid.

use std::{borrow::Borrow, collections::BTreeMap, io};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData, MapError},
    sys::SyscallError,
};
use mesh_core::{
    Mac,
    lb::{self, Row, Tables},
    objects::Protocol,
};
use mesh_ebpf_common::{
    rows::{self, Plain},
    spec::{self, MapSpec},
};

use crate::{Error, sys};

/// BPF_ANY and BPF_NOEXIST.
const ANY: u64 = 0;
const NOEXIST: u64 = 1;

/// A row as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Bytes<T>(T);

// SAFETY: `Plain` is the same promise as `Pod`, and the wrapper is transparent.
#[expect(unsafe_code, reason = "aya's marker for a type of another crate")]
unsafe impl<T: Plain> Pod for Bytes<T> {}

/// A hash map with its name for errors.
struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn take(ebpf: &mut Ebpf, spec: &MapSpec) -> Result<Self, Error> {
        let name = spec.name;
        let map = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        let map = map.try_into().map_err(|source| Error::map(name, "open", source))?;
        Ok(Self { name, map })
    }

    fn put(&mut self, key: impl Borrow<K>, value: impl Borrow<V>) -> Result<(), Error> {
        self.map
            .insert(key, value, ANY)
            .map_err(|source| Error::map(self.name, "write to", source))
    }

    fn put_new(&mut self, key: impl Borrow<K>, value: impl Borrow<V>) -> Result<(), Error> {
        match self.map.insert(key, value, NOEXIST) {
            Err(MapError::SyscallError(SyscallError { io_error, .. })) if io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map_err(|source| Error::map(self.name, "write to", source)),
        }
    }

    fn remove(&mut self, key: &K) -> Result<(), Error> {
        match self.map.remove(key) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(SyscallError { io_error, .. })) if io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| Error::map(self.name, "remove from", source)),
        }
    }

    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(Error::map(self.name, "read", source)),
        }
    }

    fn rows(&self) -> Result<Vec<(K, V)>, Error> {
        self.map
            .iter()
            .map(|row| row.map_err(|source| Error::map(self.name, "read", source)))
            .collect()
    }
}

/// All tables of a host.
pub struct Store {
    config: Array<MapData, Bytes<rows::Config>>,
    node_addrs: Table<Bytes<rows::Addr>, u32>,
    published: Table<Bytes<rows::PortKey>, Bytes<rows::Published>>,
    vips: Table<Bytes<rows::Addr>, Bytes<rows::Vip>>,
    services: Table<u32, Bytes<rows::Service>>,
    members: Table<Bytes<rows::MemberKey>, u32>,
    turns: Table<u32, u64>,
    backends: Table<u32, Bytes<rows::Backend>>,
    locals: Table<u32, Bytes<rows::Local>>,
    local_by_mac: Table<Bytes<rows::MacKey>, Bytes<rows::Local>>,
    networks: Table<u32, Bytes<rows::Network>>,
    peers: Table<Bytes<rows::MacKey>, u32>,
    shadow: Tables,
    /// The row as the kernel has it.
    own: rows::Config,
    /// Rows of locals as the kernel has them.
    own_locals: BTreeMap<String, rows::Local>,
    /// Index of each network's VXLAN device as the kernel has it.
    own_networks: BTreeMap<String, u32>,
}

impl Store {
    /// Takes the maps and reads what they hold.
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let name = spec::CONFIG.name;
        let config = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        let mut store = Self {
            config: config.try_into().map_err(|source| Error::map(name, "open", source))?,
            node_addrs: Table::take(ebpf, &spec::NODE_ADDRS)?,
            published: Table::take(ebpf, &spec::PUBLISHED)?,
            vips: Table::take(ebpf, &spec::VIPS)?,
            services: Table::take(ebpf, &spec::SERVICES)?,
            members: Table::take(ebpf, &spec::MEMBERS)?,
            turns: Table::take(ebpf, &spec::TURNS)?,
            backends: Table::take(ebpf, &spec::BACKENDS)?,
            locals: Table::take(ebpf, &spec::LOCALS)?,
            local_by_mac: Table::take(ebpf, &spec::LOCAL_BY_MAC)?,
            networks: Table::take(ebpf, &spec::NETWORKS)?,
            peers: Table::take(ebpf, &spec::PEERS)?,
            shadow: Tables::default(),
            own: rows::Config::default(),
            own_locals: BTreeMap::new(),
            own_networks: BTreeMap::new(),
        };
        store.read()?;
        Ok(store)
    }

    /// What the maps hold.
    pub fn tables(&self) -> &Tables {
        &self.shadow
    }

    fn read(&mut self) -> Result<(), Error> {
        let t = &mut self.shadow;
        let Bytes(own) = self
            .config
            .get(&0, 0)
            .map_err(|source| Error::map(spec::CONFIG.name, "read", source))?;
        self.own = own;
        t.ingress_mac = Mac(own.ingress_mac);
        t.ingress_mtu = own.ingress_mtu;
        t.ingress_dev = text(&own.ingress_dev);
        t.uplink = text(&own.uplink);
        t.node_addrs = self.node_addrs.rows()?.into_iter().map(|(Bytes(a), _)| a.into()).collect();
        t.vips = self
            .vips
            .rows()?
            .into_iter()
            .map(|(Bytes(a), Bytes(v))| {
                let vip = lb::Vip {
                    service: v.service,
                    network: v.network,
                };
                (a.into(), vip)
            })
            .collect();
        t.peers = self.peers.rows()?.into_iter().map(|(Bytes(m), _)| Mac(m.mac)).collect();
        for (Bytes(k), Bytes(v)) in self.published.rows()? {
            let proto = if k.proto == rows::TCP { Protocol::Tcp } else { Protocol::Udp };
            t.published.insert(
                (proto, k.port),
                lb::Published {
                    service: v.service,
                    target: v.target,
                    direct: false,
                },
            );
        }
        for (slot, Bytes(b)) in self.backends.rows()? {
            let backend = lb::Backend {
                ip4: v4(b.ip),
                ip6: None,
                mac: Mac(b.mac),
                node: None,
                local: b.local == 1,
                accepting: b.accepting == 1,
            };
            t.backends.insert(slot, backend);
        }
        for (index, Bytes(n)) in self.networks.rows()? {
            self.own_networks.insert(text(&n.name), index);
            t.networks.insert(text(&n.name), n.vni);
        }
        for (_, Bytes(l)) in self.locals.rows()? {
            self.own_locals.insert(text(&l.name), l);
            t.locals.insert(
                text(&l.name),
                lb::Local {
                    slot: l.slot,
                    ip4: v4(l.ip),
                    ip6: None,
                    mac: Mac(l.mac),
                    gateway_mac: Mac(l.gateway_mac),
                    network: l.network,
                    vxlan: text(&l.vxlan),
                },
            );
        }
        let valid: BTreeMap<u32, rows::Service> = self.services.rows()?.into_iter().map(|(slot, Bytes(s))| (slot, s)).collect();
        let mut lists: BTreeMap<u32, BTreeMap<u32, u32>> = valid.keys().map(|slot| (*slot, BTreeMap::new())).collect();
        for (key, backend) in self.members.rows()? {
            let Bytes(k) = key;
            match (valid.get(&k.service), lists.get_mut(&k.service)) {
                (Some(s), Some(list)) if s.bank == k.bank && k.index < s.count => drop(list.insert(k.index, backend)),
                // Left by a loader that was stopped between writing a list and making it valid.
                _ => self.members.remove(&key)?,
            }
        }
        let pool = |list: BTreeMap<u32, u32>| lb::Pool {
            list: list.into_values().collect(),
            ..lb::Pool::default()
        };
        t.services = lists.into_iter().map(|(slot, list)| (slot, pool(list))).collect();
        Ok(())
    }

    /// Forgets rows that name a device by an index that is another's, or nobody's, by now.
    pub fn refresh(&mut self) -> Result<(), Error> {
        let is = |name: &str, index: u32| sys::ifindex(name) == Some(index);
        let stale = |(name, index): (&String, u32)| (!is(name, index)).then(|| name.clone());
        let locals: Vec<_> = self.own_locals.iter().map(|(n, l)| (n, l.ifindex)).filter_map(stale).collect();
        for name in locals {
            self.put_local(&name, None)?;
        }
        let networks: Vec<_> = self.own_networks.iter().map(|(n, i)| (n, *i)).filter_map(stale).collect();
        for name in networks {
            self.put_network(&name, None)?;
        }
        // Such a row stays, for the sake of the source check.
        for (name, row) in &self.own_locals {
            if let Some(local) = self.shadow.locals.get_mut(name) {
                local.vxlan = text(&row.vxlan);
                if !is(&local.vxlan, row.vxlan_ifindex) {
                    local.vxlan.clear();
                }
            }
        }
        // Its names say what the row was made for; an empty one is what no plan wants.
        for (name, row, index) in [
            (&mut self.shadow.ingress_dev, &self.own.ingress_dev, self.own.ingress_ifindex),
            (&mut self.shadow.uplink, &self.own.uplink, self.own.uplink_ifindex),
        ] {
            *name = text(row);
            if !name.is_empty() && !is(name, index) {
                name.clear();
            }
        }
        Ok(())
    }

    /// Puts or removes one row.
    pub fn put(&mut self, row: &Row) -> Result<(), Error> {
        match row {
            Row::Config {
                ingress_mac,
                ingress_ip: _,
                ingress_dev,
                uplink,
                ingress_mtu,
            } => self.put_config(*ingress_mac, ingress_dev, uplink, *ingress_mtu),
            Row::NodeAddr(ip, true) => {
                self.node_addrs.put(Bytes((*ip).into()), 1)?;
                self.shadow.node_addrs.insert(*ip);
                Ok(())
            }
            Row::NodeAddr(ip, false) => {
                self.node_addrs.remove(&Bytes((*ip).into()))?;
                self.shadow.node_addrs.remove(ip);
                Ok(())
            }
            Row::Published((proto, port), value) => self.put_published(*proto, *port, *value),
            Row::Bound(..) => Err(Error::NotInObject { name: "BOUND" }),
            Row::Source(..) => Err(Error::NotInObject { name: "SOURCES" }),
            Row::Namespace(..) => Err(Error::NotInObject { name: "NAMESPACES" }),
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
            Row::Service(slot, Some(pool)) => self.put_service(*slot, &pool.list),
            Row::Service(slot, None) => self.remove_service(*slot),
            Row::Backend(slot, Some(b)) => {
                let row = rows::Backend {
                    ip: b.ip4.map_or_else(rows::Addr::default, |ip| std::net::IpAddr::V4(ip).into()),
                    mac: b.mac.0,
                    local: b.local.into(),
                    accepting: b.accepting.into(),
                };
                self.backends.put(slot, Bytes(row))?;
                self.shadow.backends.insert(*slot, *b);
                Ok(())
            }
            Row::Backend(slot, None) => {
                self.backends.remove(slot)?;
                self.shadow.backends.remove(slot);
                Ok(())
            }
            Row::Local(name, value) => self.put_local(name, value.as_ref()),
            Row::Network(name, vni) => self.put_network(name, *vni),
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
        }
    }

    fn put_config(&mut self, ingress_mac: Mac, ingress_dev: &str, uplink: &str, ingress_mtu: u32) -> Result<(), Error> {
        let index = |name: &str| if name.is_empty() { Ok(0) } else { index(name) };
        let row = rows::Config {
            ingress_mac: ingress_mac.0,
            zero: [0; 2],
            ingress_ifindex: index(ingress_dev)?,
            uplink_ifindex: index(uplink)?,
            ingress_mtu,
            ingress_dev: filled(ingress_dev)?,
            uplink: filled(uplink)?,
        };
        // Its bytes are not written in one piece, so not without need.
        if row != self.own {
            self.config
                .set(0, Bytes(row), ANY)
                .map_err(|source| Error::map(spec::CONFIG.name, "write to", source))?;
            self.own = row;
        }
        let t = &mut self.shadow;
        (t.ingress_mac, t.ingress_mtu) = (ingress_mac, ingress_mtu);
        (t.ingress_dev, t.uplink) = (ingress_dev.to_owned(), uplink.to_owned());
        Ok(())
    }

    fn put_published(&mut self, proto: Protocol, port: u16, value: Option<lb::Published>) -> Result<(), Error> {
        let number = match proto {
            Protocol::Tcp => rows::TCP,
            Protocol::Udp => rows::UDP,
        };
        let key = Bytes(rows::PortKey {
            port,
            proto: number,
            zero: 0,
        });
        if let Some(p) = value {
            self.published.put(
                key,
                Bytes(rows::Published {
                    service: p.service,
                    target: p.target,
                    zero: 0,
                }),
            )?;
            self.shadow.published.insert((proto, port), p);
        } else {
            self.published.remove(&key)?;
            self.shadow.published.remove(&(proto, port));
        }
        Ok(())
    }

    fn put_service(&mut self, slot: u32, list: &[u32]) -> Result<(), Error> {
        let old = self.services.get(&slot)?.map(|Bytes(s)| s);
        if old.is_some() && self.shadow.services.get(&slot).is_some_and(|p| p.list == list) {
            return Ok(());
        }
        self.turns.put_new(slot, 0)?;
        let bank = old.map_or(0, |s| s.bank ^ 1);
        let key = |bank, index| {
            Bytes(rows::MemberKey {
                service: slot,
                bank,
                index,
            })
        };
        let mut count = 0;
        for backend in list {
            self.members.put(key(bank, count), backend)?;
            count += 1;
        }
        self.services.put(slot, Bytes(rows::Service { count, bank }))?;
        let pool = lb::Pool {
            list: list.to_vec(),
            ..lb::Pool::default()
        };
        self.shadow.services.insert(slot, pool);
        if let Some(old) = old {
            for i in 0..old.count {
                self.members.remove(&key(old.bank, i))?;
            }
        }
        Ok(())
    }

    fn remove_service(&mut self, slot: u32) -> Result<(), Error> {
        let old = self.services.get(&slot)?;
        self.services.remove(&slot)?;
        self.shadow.services.remove(&slot);
        if let Some(Bytes(old)) = old {
            for index in 0..old.count {
                self.members.remove(&Bytes(rows::MemberKey {
                    service: slot,
                    bank: old.bank,
                    index,
                }))?;
            }
        }
        self.turns.remove(&slot)
    }

    fn put_network(&mut self, name: &str, vni: Option<u32>) -> Result<(), Error> {
        let row = match vni {
            None => None,
            Some(vni) => Some((index(name)?, rows::Network { vni, name: filled(name)? })),
        };
        if let Some((index, row)) = row {
            self.networks.put(index, Bytes(row))?;
        }
        if let Some(former) = self.own_networks.get(name).copied()
            && row.is_none_or(|(index, _)| index != former)
            // The index may be another device's by now.
            && self.networks.get(&former)?.is_some_and(|Bytes(n)| text(&n.name) == name)
        {
            self.networks.remove(&former)?;
        }
        match row {
            Some((index, row)) => {
                self.own_networks.insert(name.to_owned(), index);
                self.shadow.networks.insert(name.to_owned(), row.vni);
            }
            None => {
                self.own_networks.remove(name);
                self.shadow.networks.remove(name);
            }
        }
        Ok(())
    }

    fn put_local(&mut self, name: &str, value: Option<&lb::Local>) -> Result<(), Error> {
        let row = match value {
            None => None,
            Some(l) => Some(rows::Local {
                ip: l.ip4.map_or_else(rows::Addr::default, |ip| std::net::IpAddr::V4(ip).into()),
                gateway: rows::Addr::default(),
                slot: l.slot,
                ifindex: index(name)?,
                mac: l.mac.0,
                gateway_mac: l.gateway_mac.0,
                name: filled(name)?,
                network: l.network,
                vxlan_ifindex: index(&l.vxlan)?,
                vxlan: filled(&l.vxlan)?,
            }),
        };
        let former = self.own_locals.get(name).map(|l| l.ifindex);
        if let Some(row) = row {
            self.locals.put(row.ifindex, Bytes(row))?;
            self.local_by_mac.put(Bytes(rows::MacKey::new(row.mac)), Bytes(row))?;
        }
        if let Some(former) = former
            && row.is_none_or(|r| r.ifindex != former)
            // The index may be another interface's by now.
            && self.locals.get(&former)?.is_some_and(|Bytes(r)| text(&r.name) == name)
        {
            self.locals.remove(&former)?;
        }
        // The Ethernet address may be another interface's by now: the endpoint was attached anew.
        if let Some(old) = self.shadow.locals.get(name) {
            let key = Bytes(rows::MacKey::new(old.mac.0));
            let same = row.is_some_and(|r| r.mac == old.mac.0);
            if !same
                && self
                    .local_by_mac
                    .get(&key)?
                    .is_some_and(|Bytes(r)| Some(r.ifindex) == former && text(&r.name) == name)
            {
                self.local_by_mac.remove(&key)?;
            }
        }
        match (row, value) {
            (Some(row), Some(l)) => {
                self.own_locals.insert(name.to_owned(), row);
                self.shadow.locals.insert(name.to_owned(), l.clone());
            }
            _ => {
                self.own_locals.remove(name);
                self.shadow.locals.remove(name);
            }
        }
        Ok(())
    }
}

fn v4(a: rows::Addr) -> Option<std::net::Ipv4Addr> {
    match a.into() {
        std::net::IpAddr::V4(ip) => Some(ip),
        std::net::IpAddr::V6(_) => None,
    }
}

fn index(name: &str) -> Result<u32, Error> {
    sys::ifindex(name).ok_or_else(|| Error::NoDevice { name: name.to_owned() })
}

/// A device name as a row holds it.
fn filled(name: &str) -> Result<[u8; 16], Error> {
    let mut out = [0; 16];
    // IFNAMSIZ counts the final zero.
    if name.len() >= out.len() {
        return Err(Error::DeviceName { name: name.to_owned() });
    }
    out[..name.len()].copy_from_slice(name.as_bytes());
    Ok(out)
}

fn text(name: &[u8; 16]) -> String {
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names() {
        assert_eq!(text(&filled("mv-0123456789ab").unwrap()), "mv-0123456789ab");
        assert_eq!(text(&filled("").unwrap()), "");
        assert!(matches!(filled("0123456789abcdef"), Err(Error::DeviceName { .. })));
    }
}

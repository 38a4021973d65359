//! Rows that name devices by their index, for [`super::Store`]: own place, endpoints, networks.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_core::{Mac, lb};
use mesh_ebpf_common::{
    rows::{self, Addr},
    spec,
};

use super::{
    Store,
    table::{ANY, Bytes},
};
use crate::{Error, sys};

/// An IPv4 address as a row holds it; 0: none.
pub fn raw4(ip: Option<Ipv4Addr>) -> u32 {
    ip.map_or(0, |ip| u32::from_ne_bytes(ip.octets()))
}

/// And back.
pub fn read4(raw: u32) -> Option<Ipv4Addr> {
    (raw != 0).then(|| Ipv4Addr::from(raw.to_ne_bytes()))
}

/// An IPv6 address as a row holds it; zero: none.
pub fn raw6(ip: Option<Ipv6Addr>) -> Addr {
    ip.map_or(Addr::default(), |ip| IpAddr::V6(ip).into())
}

/// And back.
pub fn read6(raw: Addr) -> Option<Ipv6Addr> {
    match (raw.is_none(), raw.into()) {
        (false, IpAddr::V6(ip)) => Some(ip),
        _ => None,
    }
}

impl Store {
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

    /// Reads own place, endpoints and networks.
    pub(super) fn read_places(&mut self) -> Result<(), Error> {
        let t = &mut self.shadow;
        let Bytes(own) = self
            .config
            .get(&0, 0)
            .map_err(|source| Error::map(spec::CONFIG.name, "read", source))?;
        self.own = own;
        t.ingress_mac = Mac(own.ingress_mac);
        t.ingress_ip = read4(own.ingress_ip);
        t.ingress_mtu = own.ingress_mtu;
        t.ingress_dev = text(&own.ingress_dev);
        t.uplink = text(&own.uplink);
        for (index, Bytes(n)) in self.networks.rows()? {
            self.own_networks.insert(text(&n.name), index);
            t.networks.insert(text(&n.name), n.vni);
        }
        for (_, Bytes(l)) in self.locals.rows()? {
            self.own_locals.insert(text(&l.name), l);
            let local = lb::Local {
                slot: l.slot,
                ip4: read4(l.ip4),
                ip6: read6(l.ip6),
                mac: Mac(l.mac),
                gateway_mac: Mac(l.gateway_mac),
                network: l.network,
                vxlan: text(&l.vxlan),
                segment: is_segment(&l),
                queued: l.bits & rows::QUEUED != 0,
            };
            t.locals.insert(text(&l.name), local);
        }
        self.mend_addresses()
    }

    pub(super) fn put_config(
        &mut self,
        ingress_mac: Mac,
        ingress_ip: Option<Ipv4Addr>,
        ingress_dev: &str,
        uplink: &str,
        ingress_mtu: u32,
    ) -> Result<(), Error> {
        let index = |name: &str| if name.is_empty() { Ok(0) } else { index(name) };
        let row = rows::Config {
            ingress_mac: ingress_mac.0,
            epoch: self.own.epoch,
            ingress_ip: raw4(ingress_ip),
            ingress_ifindex: index(ingress_dev)?,
            uplink_ifindex: index(uplink)?,
            ingress_mtu,
            segment: self.own.segment,
            ingress_dev: filled(ingress_dev)?,
            uplink: filled(uplink)?,
        };
        // Its bytes are not written in one piece, so not without need.
        if row != self.own {
            self.write_config(row)?;
        }
        let t = &mut self.shadow;
        (t.ingress_mac, t.ingress_ip, t.ingress_mtu) = (ingress_mac, ingress_ip, ingress_mtu);
        (t.ingress_dev, t.uplink) = (ingress_dev.to_owned(), uplink.to_owned());
        Ok(())
    }

    fn write_config(&mut self, row: rows::Config) -> Result<(), Error> {
        self.config
            .set(0, Bytes(row), ANY)
            .map_err(|source| Error::map(spec::CONFIG.name, "write to", source))?;
        self.own = row;
        Ok(())
    }

    /// A row that flows are led by was changed or removed: the programs look at all rows again.
    pub(super) fn next_epoch(&mut self) -> Result<(), Error> {
        self.write_config(rows::Config {
            epoch: self.own.epoch.wrapping_add(1),
            ..self.own
        })
    }

    pub(super) fn put_network(&mut self, name: &str, vni: Option<u32>) -> Result<(), Error> {
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

    pub(super) fn put_local(&mut self, name: &str, value: Option<&lb::Local>) -> Result<(), Error> {
        let row = match value {
            None => None,
            Some(l) => Some(rows::Local {
                ip6: raw6(l.ip6),
                ip4: raw4(l.ip4),
                slot: l.slot,
                ifindex: index(name)?,
                mac: l.mac.0,
                gateway_mac: l.gateway_mac.0,
                name: filled(name)?,
                network: l.network,
                vxlan_ifindex: index(&l.vxlan)?,
                bits: if l.segment { rows::SEGMENT } else { 0 } | if l.queued { rows::QUEUED } else { 0 },
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
        self.put_addresses(name, row.as_ref(), former)?;
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
        self.note_segment()
    }

    /// Only where an endpoint is reached without encapsulation need the uplink's program look for any.
    fn note_segment(&mut self) -> Result<(), Error> {
        let segment = self.own_locals.values().any(is_segment).into();
        if segment != self.own.segment {
            self.write_config(rows::Config { segment, ..self.own })?;
        }
        Ok(())
    }

    /// Makes the addresses that lead to endpoints here what the endpoints' rows say: a loader that was killed may
    /// have written the one and not the other.
    fn mend_addresses(&mut self) -> Result<(), Error> {
        let locals = self.own_locals.values().filter(|l| is_segment(l));
        let of = |l: &rows::Local| {
            addresses(read4(l.ip4), read6(l.ip6))
                .into_iter()
                .map(|ip| (ip, l.ifindex))
                .collect::<Vec<_>>()
        };
        let mut missing: BTreeMap<IpAddr, u32> = locals.flat_map(of).collect();
        for (key, index) in self.local_by_addr.rows()? {
            let ip = key.0.into();
            if missing.get(&ip) == Some(&index) {
                missing.remove(&ip);
            } else {
                self.local_by_addr.remove(&key)?;
            }
        }
        for (ip, index) in missing {
            self.local_by_addr.put(Bytes(ip.into()), index)?;
        }
        self.note_segment()
    }

    /// Where an endpoint's addresses lead without encapsulation, as its `row` says; `former`: the index that its
    /// interface had before.
    fn put_addresses(&mut self, name: &str, row: Option<&rows::Local>, former: Option<u32>) -> Result<(), Error> {
        let mut new = Vec::new();
        if let Some(row) = row.filter(|row| is_segment(row)) {
            new = addresses(read4(row.ip4), read6(row.ip6));
            for ip in &new {
                self.local_by_addr.put(Bytes((*ip).into()), row.ifindex)?;
            }
        }
        let old = self.shadow.locals.get(name).filter(|l| l.segment);
        for ip in old.map(|l| addresses(l.ip4, l.ip6)).unwrap_or_default() {
            let key = Bytes(ip.into());
            // The address may be another endpoint's by now.
            if !new.contains(&ip) && self.local_by_addr.get(&key)? == former {
                self.local_by_addr.remove(&key)?;
            }
        }
        Ok(())
    }
}

/// See [`rows::SEGMENT`].
fn is_segment(row: &rows::Local) -> bool {
    row.bits & rows::SEGMENT != 0
}

fn addresses(ip4: Option<Ipv4Addr>, ip6: Option<Ipv6Addr>) -> Vec<IpAddr> {
    ip4.map(IpAddr::V4).into_iter().chain(ip6.map(IpAddr::V6)).collect()
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

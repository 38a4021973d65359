//! Facts about the host itself, which a node tells the control plane when it joins and when they
//! change: its uplink, the uplink's MTU, Ethernet and other addresses, and the routes that no subnet may overlap.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use mesh_core::{Mac, objects::HostRoute};

use crate::{error::Error, link::Device, route, survey::Survey};

/// What a host is, apart from meshd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Interface that has the data-path address.
    pub uplink: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Range of the segment that the data-path address is on, if it is one of Ethernet.
    pub segment: Option<IpNet>,
    /// All of its addresses of global scope.
    pub addrs: Vec<IpAddr>,
    /// Unicast routes of the main table that meshd did not make, but for default, loopback,
    /// link-local and multicast ones; sorted.
    pub routes: Vec<HostRoute>,
}

/// Finds them in what was read.
pub(crate) fn facts(survey: &Survey, data_path_addr: IpAddr) -> Result<HostFacts, Error> {
    let by_index: HashMap<u32, &Device> = survey.links.iter().map(|d| (d.index, d)).collect();
    let addrs = &survey.addrs;
    let held = addrs.iter().find(|a| a.addr.addr() == data_path_addr);
    let holder = held.and_then(|held| Some((held.addr, by_index.get(&held.index)?)));
    let (data_path, uplink) = holder.ok_or(Error::NoSuchAddress(data_path_addr))?;
    let on_uplink = addrs.iter().filter(|a| a.index == uplink.index && a.is_global);
    let mut routes: Vec<HostRoute> = survey.routes.iter().filter_map(|r| host_route(r, &by_index)).collect();
    routes.sort();
    routes.dedup();
    // Of the loopback device it is zero.
    let mac = uplink.mac.filter(|mac| *mac != Mac::default() && mac.0[0] & 1 == 0);
    Ok(HostFacts {
        uplink: uplink.name.clone(),
        mtu: uplink.mtu,
        mac,
        segment: mac.map(|_| data_path.trunc()),
        addrs: on_uplink.map(|a| a.addr.addr()).collect(),
        routes,
    })
}

fn host_route(seen: &route::Seen, links: &HashMap<u32, &Device>) -> Option<HostRoute> {
    let device = links.get(&seen.index)?;
    let is_taken = !seen.is_ours && !device.is_ours() && !is_special(seen.dst);
    is_taken.then(|| HostRoute {
        dst: seen.dst,
        dev: device.name.clone(),
    })
}

/// Loopback, link-local, multicast.
fn is_special(dst: IpNet) -> bool {
    match dst.addr() {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_multicast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_multicast(),
    }
}

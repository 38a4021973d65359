//! Reads what this host carries of meshd's, in the rows that [`mesh_core::plan`] compares.

use std::collections::{BTreeSet, HashMap};

use mesh_core::{
    Id,
    desired::{Fdb, Link},
    nft::Nft,
    observed::{SeenLink, SeenOverlay, SeenQueue, SeenVeth},
};
use netlink_packet_route::link::InfoKind;

use crate::{
    addr, bridge,
    error::Error,
    fdb,
    known::Known,
    link::{self, Device, Owner},
    neigh, port, route,
    socket::Socket,
    survey::Survey,
    tables::Tables,
    vxlan,
};

/// Reads entries; links, addresses and routes are those of `survey`, and the packet filter was read before.
/// `cluster` leaves out what carries another cluster's mark.
pub(crate) async fn read(
    (tables, known): (&Tables, &Known),
    survey: &Survey,
    cluster: Option<Id>,
    nft: Option<Nft>,
) -> Result<SeenOverlay, Error> {
    let ours = ours(&survey.links, cluster);
    let mut seen = few(survey, &ours, nft);
    // An event of what changes from here on is heard later, and does not agree then.
    seen.fdb = fdb::all(tables, &ours).await?;
    seen.neighs = neigh::all(tables, &ours).await?;
    known.learn(&ours, newest(&survey.links), &seen.fdb, &seen.neighs);
    Ok(seen)
}

/// As [`read`], but entries and neighbours as [`crate::known`] has them; `None` where it has none.
pub(crate) fn read_known(
    socket: &Socket,
    survey: &Survey,
    cluster: Option<Id>,
    nft: Option<Nft>,
    of: Option<[&BTreeSet<Fdb>; 2]>,
) -> Option<SeenOverlay> {
    let ours = ours(&survey.links, cluster);
    let (fdb, neighs) = socket.known.rows(&ours, newest(&survey.links), of)?;
    Some(SeenOverlay {
        fdb,
        neighs,
        ..few(survey, &ours, nft)
    })
}

fn newest(all: &[Device]) -> u32 {
    all.iter().map(|d| d.index).max().unwrap_or_default()
}

/// Meshd's devices by their index.
fn ours(all: &[Device], cluster: Option<Id>) -> HashMap<u32, &Device> {
    let is_wanted = |d: &&Device| match d.owner() {
        Owner::Mesh(of, _) => cluster.is_none_or(|c| c == of),
        // Seen, so that it is made anew or removed.
        Owner::HalfMade(object) => object.is_some(),
        Owner::Other => false,
    };
    all.iter().filter(is_wanted).map(|d| (d.index, d)).collect()
}

/// What there is little of: all but entries and neighbours.
fn few(survey: &Survey, ours: &HashMap<u32, &Device>, nft: Option<Nft>) -> SeenOverlay {
    let names: HashMap<u32, &str> = survey.links.iter().map(|d| (d.index, d.name.as_str())).collect();
    let mut seen = SeenOverlay {
        nft,
        ..SeenOverlay::default()
    };
    for device in ours.values() {
        read_link(&mut seen, device, &names, survey.queues.get(&device.index).copied());
    }
    let addrs = survey.addrs.iter().filter(|a| !is_kernels_own(a));
    seen.addrs = addrs.filter_map(|a| Some((ours.get(&a.index)?.name.clone(), a.addr))).collect();
    seen.routes = route::ours(&survey.routes, ours).collect();
    seen
}

/// An address that the kernel gives by itself.
fn is_kernels_own(a: &addr::Seen) -> bool {
    matches!(a.addr, ipnet::IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}

fn read_link(seen: &mut SeenOverlay, device: &Device, names: &HashMap<u32, &str>, queue: Option<SeenQueue>) {
    let (mark, whole) = match device.owner() {
        Owner::Mesh(cluster, object) => ((cluster, object), true),
        Owner::HalfMade(Some(object)) => ((Id::default(), object), false),
        Owner::HalfMade(None) | Owner::Other => return,
    };
    let master = device.master.and_then(|index| names.get(&index)).map(|name| (*name).to_owned());
    let name = device.name.clone();
    if name.starts_with(link::WAITING) {
        // It goes with its pair, and is nobody's port.
        seen.waiting.insert(mark.1);
        return;
    }
    match device.kind {
        Some(InfoKind::Veth) => {
            // Not up: a port that learns, or a pair that is not whole, has to be put right too.
            let up = device.up && whole && port::is_settled(device, port::CONTAINER);
            seen.veths.insert(
                name,
                SeenVeth {
                    endpoint: mark.1,
                    bridge: master,
                    mtu: device.mtu,
                    up,
                    returns: device.group == link::RETURNS,
                    queue,
                },
            );
        }
        Some(InfoKind::Bridge) => {
            let link = Link::Bridge {
                mac: device.mac.unwrap_or_default(),
                mtu: device.mtu,
                ipv6: device.ipv6,
            };
            let settled = whole && device.up && device.is_ipv6_settled() && bridge::is_settled(device);
            seen.links.insert(name, SeenLink { mark, link, settled });
        }
        Some(InfoKind::Vxlan) => {
            let Some((vni, local)) = vxlan::seen(device) else { return };
            // A port's own address matters to nobody: it is the kernel's choice.
            let mac = if master.is_none() { device.mac } else { None };
            let link = Link::Vxlan {
                vni,
                local,
                mtu: device.mtu,
                bridge: master,
                mac,
                ipv6: device.ipv6,
            };
            let settled = whole && device.up && device.is_ipv6_settled() && vxlan::is_settled(device);
            seen.links.insert(name, SeenLink { mark, link, settled });
        }
        _ => {}
    }
}

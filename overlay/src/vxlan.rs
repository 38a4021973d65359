//! VXLAN devices: one per network, a port of its bridge, and one for the ingress network that stands
//! alone. Nothing is learned and there is no default destination: what has no forwarding entry is
//! dropped here.

use std::net::IpAddr;

use mesh_core::{Mac, desired::VXLAN_PORT};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};

use crate::{
    error::Error,
    link::{self, Device},
    port,
    socket::Socket,
    sysctl::Sysctl,
};

/// Hops of an outer packet. The kernel's own choice for a device without a group is as large, but
/// follows a sysctl.
const TTL: u8 = 64;
/// Outer ToS is the inner one (BEHAVIOURS 19; drivers/net/vxlan: tos 1).
const TOS_INHERIT: u8 = 1;

/// What a VXLAN device must be.
#[derive(Clone, Debug)]
pub(crate) struct Vxlan<'a> {
    pub(crate) vni: u32,
    pub(crate) local: IpAddr,
    pub(crate) mtu: u32,
    pub(crate) bridge: Option<&'a str>,
    pub(crate) mac: Option<Mac>,
    pub(crate) ipv6: bool,
}

/// The properties that can not be changed in place.
fn identity(vni: u32, local: IpAddr) -> Vec<InfoVxlan> {
    // The inner packet has checksums of its own. Over IPv6 leaving out the outer one has to be asked
    // for at both ends (RFC 6935), which all devices of a host share.
    let family = match local {
        IpAddr::V4(a) => vec![InfoVxlan::Local(a), InfoVxlan::UDPCsum(false)],
        IpAddr::V6(a) => vec![InfoVxlan::Local6(a), InfoVxlan::UDPZeroCsumTX(true), InfoVxlan::UDPZeroCsumRX(true)],
    };
    let fixed = [
        InfoVxlan::Port(VXLAN_PORT),
        InfoVxlan::Learning(false),
        InfoVxlan::Ttl(TTL),
        InfoVxlan::Tos(TOS_INHERIT),
    ];
    [InfoVxlan::Id(vni)].into_iter().chain(family).chain(fixed).collect()
}

/// VNI and local address of a device as seen.
pub(crate) fn seen(device: &Device) -> Option<(u32, IpAddr)> {
    let vni = device
        .vxlan
        .iter()
        .find_map(|i| if let InfoVxlan::Id(v) = i { Some(*v) } else { None })?;
    let local = device.vxlan.iter().find_map(|i| match i {
        InfoVxlan::Local(a) => Some(IpAddr::V4(*a)),
        InfoVxlan::Local6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    })?;
    Some((vni, local))
}

/// Whether a device is as meshd makes it, but for VNI, local address, MTU and Ethernet address, which
/// are compared elsewhere.
pub(crate) fn is_settled(device: &Device) -> bool {
    let fixed = seen(device).is_some_and(|(vni, local)| is_same(device, vni, local));
    fixed && (device.master.is_none() || port::is_settled(device, port::TUNNEL))
}

fn is_same(device: &Device, vni: u32, local: IpAddr) -> bool {
    identity(vni, local).iter().all(|want| device.vxlan.contains(want))
}

/// Makes the device, or puts an existing one right. Another VNI or local address is a new device:
/// its forwarding entries come back with the next pass.
pub(crate) async fn put(socket: &Socket, sysctl: &Sysctl, name: &str, mark: String, want: &Vxlan<'_>) -> Result<(), Error> {
    let master = match want.bridge {
        Some(bridge) => Some(link::ours(socket, bridge, || format!("put {name} into its bridge")).await?.index),
        None => None,
    };
    let mut found = link::find_ours(socket, name).await?;
    let is_old = |d: &mut Device| d.alias != mark || d.kind != Some(InfoKind::Vxlan) || !is_same(d, want.vni, want.local);
    if let Some(old) = found.take_if(is_old) {
        link::remove(socket, &old).await?;
    }
    let device = match found {
        Some(device) => device,
        None => create(socket, name, want).await?,
    };
    link::adjust(socket, &device, want.mtu, master, want.mac).await?;
    sysctl.ipv6(name, want.ipv6).await?;
    match master {
        // A port starts out flooding and learning, whether this link was one before or not.
        Some(_) => {
            let fresh = if device.master == master {
                device.clone()
            } else {
                Device {
                    port: Vec::new(),
                    ..device.clone()
                }
            };
            port::settle(socket, &fresh, port::TUNNEL).await?;
        }
        // Replies to what this host sent may come from any node.
        None => sysctl.loose_source_check(name).await?,
    }
    link::set_up(socket, &device).await?;
    link::mark(socket, &device, mark).await
}

async fn create(socket: &Socket, name: &str, want: &Vxlan<'_>) -> Result<Device, Error> {
    let info = vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(identity(want.vni, want.local))),
    ];
    let mut attributes = vec![LinkAttribute::Mtu(want.mtu), LinkAttribute::LinkInfo(info)];
    attributes.extend(want.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    match link::create(socket, "vxlan", name, attributes).await {
        Err(e) if e.is(&[libc::EEXIST]) => return Err(in_the_way(socket, e, want.vni).await),
        done => done?,
    }
    link::ours(socket, name, || format!("configure vxlan {name}")).await
}

/// Names the device that has the VNI: the kernel says only that there is one.
async fn in_the_way(socket: &Socket, error: Error, vni: u32) -> Error {
    let has_vni = |d: &&Device| d.vxlan.contains(&InfoVxlan::Id(vni)) && d.vxlan.contains(&InfoVxlan::Port(VXLAN_PORT));
    match link::all(socket).await.unwrap_or_default().iter().find(has_vni) {
        Some(other) => error.with_hint(format!("a device with VNI {vni} exists already: {}", other.name)),
        None => error,
    }
}

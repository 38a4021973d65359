//! Carries out one step of a plan. Each step leads to the same end when it is done again.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use mesh_core::{
    action::NetAction,
    desired::{self, Link, Veth},
};

use crate::{Overlay, addr, bridge, error::Error, fdb, link, neigh, netns::Netns, route, sockets, veth, vxlan};

/// Does it.
pub(crate) async fn apply(overlay: &Overlay, action: &NetAction) -> Result<(), Error> {
    let (socket, sysctl) = (&overlay.socket, &overlay.sysctl);
    match action {
        NetAction::PutLink {
            name,
            mark: (cluster, network),
            link,
        } => {
            let mark = desired::mark(*cluster, *network);
            match &**link {
                Link::Bridge { mac, mtu, ipv6 } => {
                    let (mac, mtu, ipv6) = (*mac, *mtu, *ipv6);
                    bridge::put(socket, sysctl, name, mark, &bridge::Bridge { mac, mtu, ipv6 }).await
                }
                Link::Vxlan {
                    vni,
                    local,
                    mtu,
                    bridge,
                    mac,
                    ipv6,
                } => {
                    let want = vxlan::Vxlan {
                        vni: *vni,
                        local: *local,
                        mtu: *mtu,
                        bridge: bridge.as_deref(),
                        mac: *mac,
                        ipv6: *ipv6,
                    };
                    vxlan::put(socket, sysctl, name, mark, &want).await
                }
            }
        }
        NetAction::DelLink(name) => match link::find_ours(socket, name).await? {
            Some(device) => link::remove(socket, &device).await,
            None => Ok(()),
        },
        NetAction::PutVeth { name, cluster, veth } => {
            check(veth)?;
            veth::put(overlay, name, desired::mark(*cluster, veth.endpoint), veth).await
        }
        NetAction::AddReturns { name, peer } => veth::add_returns(overlay, name, peer).await,
        NetAction::AddAddr(name, addr) => {
            check_addr(*addr)?;
            let device = link::ours(socket, name, || format!("add address {addr}")).await?;
            addr::add(socket, &device, *addr).await
        }
        NetAction::DelAddr(name, addr) => match link::find_ours(socket, name).await? {
            Some(device) => addr::remove(socket, &device, *addr).await,
            None => Ok(()),
        },
        NetAction::AddRoute(route) => route::add(socket, route).await,
        NetAction::DelRoute(route) => route::remove(socket, route).await,
        NetAction::AddFdb(entry) => fdb::add(socket, entry).await,
        NetAction::DelFdb(entry) => fdb::remove(socket, entry).await,
        NetAction::AddNeigh(neigh) => neigh::add(socket, neigh).await,
        NetAction::DelNeigh(neigh) => neigh::remove(socket, neigh).await,
        NetAction::SetNft(nft) => overlay.filter.set(nft.as_deref()).await,
        NetAction::PassForward => overlay.filter.pass().await,
        NetAction::EndSockets { sandbox, peers } => end_sockets(sandbox.as_ref(), peers.clone()).await,
    }
}

/// A container that is gone has no sockets any more.
async fn end_sockets(sandbox: Option<&(String, u64)>, peers: BTreeSet<IpAddr>) -> Result<(), Error> {
    let netns = match sandbox {
        None => Netns::current()?,
        Some((path, inode)) => match Netns::open_sandbox(path, *inode) {
            Err(Error::SandboxGone { .. }) => return Ok(()),
            other => other?,
        },
    };
    let ended = netns.run(move || sockets::end(&peers)).await?;
    let ended = ended.map_err(Error::io(format!("end sockets in {}", netns.path())))?;
    if ended > 0 {
        tracing::info!(netns = netns.path(), ended, "ended sockets to endpoints that are gone");
    }
    Ok(())
}

/// What is known to be wrong before anything is made.
fn check(veth: &Veth) -> Result<(), Error> {
    link::check_name(&veth.peer.ifname)?;
    if !veth.peer.mac.is_usable() {
        return Err(Error::Invalid {
            what: "ethernet address",
            value: veth.peer.mac.to_string(),
            want: "a unicast one",
        });
    }
    veth.peer.addrs.iter().try_for_each(|a| check_addr(*a))
}

/// The kernel takes addresses that no host can have.
fn check_addr(addr: IpNet) -> Result<(), Error> {
    let ip = addr.addr();
    let taken = match ip {
        IpAddr::V4(v4) => {
            v4.is_broadcast() || v4.octets()[0] == 0 || (addr.prefix_len() < 31 && (ip == addr.network() || ip == addr.broadcast()))
        }
        IpAddr::V6(v6) => {
            let is_network = addr.prefix_len() < 127 && ip == addr.network();
            v6.is_unspecified() || v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some() || is_network
        }
    };
    if taken || ip.is_multicast() || ip.is_loopback() {
        return Err(Error::Invalid {
            what: "address",
            value: addr.to_string(),
            want: "a unicast address of its network",
        });
    }
    Ok(())
}

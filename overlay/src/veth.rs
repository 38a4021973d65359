//! Veth pairs: the host's end is a port of the network's bridge, the other end is the container's
//! interface.
//!
//! What does not depend on each other is asked of the kernel at once: a container's start waits for this. Requests
//! on one socket are carried out in the order in which they are sent.
//!
//! A pair is made whole or not at all. The far end is born in the container's namespace under its
//! final name, and the mark comes last, so that a pair whose making was cut short is never taken for
//! a good one.
//!
//! The far end of one that a container engine takes by itself is born in the host's namespace, and
//! left down and bare: the engine moves, names and configures it. Where it is afterwards is not
//! looked at, nor how it is set; the ways back are added to it once its container is known.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{try_join, try_join_all, try_join3};
use ipnet::IpNet;
use mesh_core::desired::{Peer, Veth};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use tokio::time::sleep;

use crate::{
    Overlay, addr,
    error::Error,
    link::{self, Device},
    netns::Netns,
    port, queue, route, rule,
    socket::Socket,
    sysctl::Sysctl,
};

/// How long the kernel may take to let packets through.
const CARRIER: Duration = Duration::from_secs(2);

/// Makes the pair, or puts MTU and bridge of an existing one right.
pub(crate) async fn put(overlay: &Overlay, name: &str, mark: String, veth: &Veth) -> Result<(), Error> {
    let socket = &overlay.socket;
    let bridge = link::ours(socket, &veth.bridge, || format!("put {name} into its bridge"));
    if veth.peer.waits {
        return put_waiting(overlay, name, mark, veth, bridge.await?.index).await;
    }
    let netns = Netns::open_sandbox(&veth.peer.netns, veth.peer.inode);
    let sandbox = async {
        match &netns {
            Ok(netns) => Socket::open_in(netns).await.map(Some),
            Err(_) => Ok(None),
        }
    };
    let (bridge, there, sandbox) = try_join3(bridge, link::find_ours(socket, name), sandbox).await?;
    if let Some(device) = there {
        if device.alias == mark && device.kind == Some(InfoKind::Veth) {
            // The container may have ended meanwhile; its end of the pair is going with it.
            if repair(overlay, sandbox.as_ref(), &device, bridge.index, veth).await? {
                return Ok(());
            }
        }
        link::remove(socket, &device).await?;
    }
    let netns = Arc::new(netns?);
    if netns.inode() == overlay.netns.inode() {
        let value = veth.peer.netns.clone();
        return Err(Error::Invalid {
            what: "network namespace",
            value,
            want: "a container's own, not the host's",
        });
    }
    let sandbox = match sandbox {
        Some(sandbox) => sandbox,
        None => Socket::open_in(&netns).await?,
    };
    if link::find(&sandbox, &veth.peer.ifname).await?.is_some() {
        return Err(Error::IfnameTaken {
            path: netns.path().into(),
            ifname: veth.peer.ifname.clone(),
        });
    }
    let place = [LinkAttribute::NetNsFd(netns.raw_fd()), LinkAttribute::Group(link::PLACED)];
    create(socket, name, veth, bridge.index, &place).await?;
    let device = link::ours(socket, name, || format!("configure veth {name}")).await?;
    let sysctl = Sysctl::new(netns);
    let made = finish(socket, &overlay.sysctl, &device, bridge.index, mark, veth, || {
        configure(&sandbox, &sysctl, &veth.peer)
    })
    .await;
    let made = match made {
        Ok(()) => carries(socket, &sandbox, name, veth).await,
        failed => failed,
    };
    keep_whole(socket, name, &device, made).await
}

/// Makes the pair with the far end in the host's namespace, or puts the near end of an existing one
/// right, wherever its far end has been taken.
async fn put_waiting(overlay: &Overlay, name: &str, mark: String, veth: &Veth, bridge: u32) -> Result<(), Error> {
    let socket = &overlay.socket;
    if let Some(device) = link::find_ours(socket, name).await? {
        if device.alias == mark && device.kind == Some(InfoKind::Veth) {
            return repair(overlay, None, &device, bridge, veth).await.map(drop);
        }
        link::remove(socket, &device).await?;
    }
    create(socket, name, veth, bridge, &[LinkAttribute::Group(link::GROUP)]).await?;
    let device = link::ours(socket, name, || format!("configure veth {name}")).await?;
    let far_mark = mark.clone();
    let made = finish(socket, &overlay.sysctl, &device, bridge, mark, veth, || async {
        let far = link::ours(socket, &veth.peer.ifname, || format!("mark the other end of {name}")).await?;
        link::mark(socket, &far, far_mark).await
    })
    .await;
    keep_whole(socket, name, &device, made).await
}

/// Removes a pair that could not be finished.
async fn keep_whole(socket: &Socket, name: &str, device: &Device, made: Result<(), Error>) -> Result<(), Error> {
    if made.is_err() {
        // The first failure is the one to tell; what is left is half-made and goes with the next try.
        if let Err(e) = link::remove(socket, device).await {
            tracing::warn!(link = name, error = %e, "a veth that could not be configured stays behind");
        }
    }
    made
}

async fn create(socket: &Socket, name: &str, veth: &Veth, bridge: u32, place: &[LinkAttribute]) -> Result<(), Error> {
    let mut far = vec![
        LinkAttribute::IfName(veth.peer.ifname.clone()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Address(veth.peer.mac.0.to_vec()),
    ];
    far.extend_from_slice(place);
    let peer = link::message(0, far);
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
    let what = match veth.peer.waits {
        true => format!("veth to {},", veth.peer.ifname),
        false => format!("veth to {} in {},", veth.peer.ifname, veth.peer.netns),
    };
    let near = vec![
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(info),
    ];
    link::create(socket, &what, name, near).await
}

/// Everything between the making of a pair and its mark. `far` does the other end's part.
async fn finish<F: Future<Output = Result<(), Error>>>(
    socket: &Socket,
    sysctl: &Sysctl,
    device: &Device,
    bridge: u32,
    mark: String,
    veth: &Veth,
    far: impl FnOnce() -> F,
) -> Result<(), Error> {
    let near = async {
        sysctl.ipv6(&device.name, false).await?;
        link::adjust(socket, device, veth.mtu, Some(bridge), None).await?;
        // Before it is up: the kernel stops a device for that until no packet is under way.
        if let Some(limit) = &veth.queue {
            queue::set(socket, device, limit).await?;
        }
        try_join(port::settle(socket, device, port::CONTAINER), link::set_up(socket, device)).await
    };
    try_join(near, far()).await?;
    link::mark(socket, device, mark).await
}

/// Waits until the kernel lets packets through at both ends, and at the bridge if this is its first port. It takes note
/// of a carrier in a work queue (net/core/link_watch.c), and drops what is sent before.
async fn carries(socket: &Socket, sandbox: &Socket, name: &str, veth: &Veth) -> Result<(), Error> {
    let end = Instant::now() + CARRIER;
    let one = async |socket, link| {
        while link::find(socket, link).await?.is_some_and(|d| !d.carries) {
            // Somebody who takes one of them down again is not waited for.
            if Instant::now() >= end {
                tracing::warn!(veth = name, link, "the kernel does not let packets through yet");
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    };
    let (near, far, bridge) = (one(socket, name), one(sandbox, &veth.peer.ifname), one(socket, &veth.bridge));
    try_join3(near, far, bridge).await.map(drop)
}

/// The container's side: loopback and interface up, addresses, default routes, ways back.
async fn configure(sandbox: &Socket, sysctl: &Sysctl, peer: &Peer) -> Result<(), Error> {
    let request = || format!("configure {} in {}", peer.ifname, peer.netns);
    let missing = |name: &str| Error::NoLink {
        request: request(),
        name: name.into(),
    };
    let (lo, device) = try_join(link::find(sandbox, "lo"), link::find(sandbox, &peer.ifname)).await?;
    let lo = lo.ok_or_else(|| missing("lo"))?;
    let device = device.ok_or_else(|| missing(&peer.ifname))?;
    if peer.addrs.iter().any(|a| a.addr().is_ipv6()) {
        sysctl.ipv6_in_container(&device.name).await?;
    }
    if let Some(limit) = &peer.queue {
        queue::set(sandbox, &device, limit).await?;
    }
    let addrs = peer.addrs.iter().map(|addr| addr::add_with_route(sandbox, &device, *addr));
    let up = [&lo, &device].map(|device| link::set_up(sandbox, device));
    try_join(try_join_all(addrs), try_join_all(up)).await?;
    for gateway in &peer.gateways {
        match route::add_default(sandbox, &device, *gateway).await {
            Err(e) if e.is(&[libc::EEXIST]) => return Err(Error::DefaultRouteTaken { path: peer.netns.clone() }),
            done => done?,
        }
    }
    returns(sandbox, &device, peer, |_| true).await
}

/// The ways back for those of its addresses.
async fn returns(sandbox: &Socket, device: &Device, peer: &Peer, is_there: impl Fn(&IpNet) -> bool) -> Result<(), Error> {
    for gateway in &peer.returns {
        let of_family = |a: &&IpNet| a.addr().is_ipv4() == gateway.is_ipv4();
        for addr in peer.addrs.iter().filter(of_family).filter(|a| is_there(a)) {
            rule::add(sandbox, device, *addr, *gateway).await?;
        }
    }
    Ok(())
}

/// The ways back of an interface that an engine has taken: it has one default route for all networks of a container,
/// and may move that. Which addresses it has given the interface is the engine's choice; a container that ended has none.
pub(crate) async fn add_returns(overlay: &Overlay, name: &str, peer: &Peer) -> Result<(), Error> {
    let Some(device) = link::find_ours(&overlay.socket, name).await? else {
        return Ok(());
    };
    let netns = match Netns::open_sandbox(&peer.netns, peer.inode) {
        Err(Error::SandboxGone { .. }) => return Ok(()),
        other => other?,
    };
    let sandbox = Socket::open_in(&netns).await?;
    // One after the other: of a second list on one socket the kernel says that it is busy (EBUSY).
    let inside = link::all(&sandbox).await?;
    let addrs = addr::all(&sandbox).await?;
    let is_far_end = |d: &&Device| d.peer == Some(device.index) && device.peer == Some(d.index);
    let Some(far) = inside.iter().find(is_far_end) else {
        return Ok(());
    };
    let is_there = |a: &IpNet| addrs.iter().any(|s| s.index == far.index && s.addr.addr() == a.addr());
    // The engine is still at it: the next pass finds them.
    if !peer.addrs.iter().any(is_there) {
        return Ok(());
    }
    returns(&sandbox, far, peer, is_there).await?;
    link::regroup(&overlay.socket, &device, link::RETURNS).await
}

/// Puts an existing pair right, with its far end if the container is there. False when the far end
/// is in some other namespace: the container was started anew and needs another pair.
async fn repair(overlay: &Overlay, sandbox: Option<&Socket>, device: &Device, bridge: u32, veth: &Veth) -> Result<bool, Error> {
    let socket = &overlay.socket;
    if let Some(sandbox) = sandbox {
        let is_far_end = |d: &&Device| d.peer == Some(device.index) && device.peer == Some(d.index);
        let inside = link::all(sandbox).await?;
        let Some(far) = inside.iter().find(is_far_end) else {
            return Ok(false);
        };
        link::adjust(sandbox, far, veth.mtu, far.master, None).await?;
        if let Some(limit) = &veth.peer.queue {
            queue::set(sandbox, far, limit).await?;
        }
    }
    link::adjust(socket, device, veth.mtu, Some(bridge), None).await?;
    // A port starts out learning.
    let moved = device.master != Some(bridge);
    let fresh = if moved {
        Device {
            port: Vec::new(),
            ..device.clone()
        }
    } else {
        device.clone()
    };
    port::settle(socket, &fresh, port::CONTAINER).await?;
    queue::put(socket, &overlay.tables, device, veth.queue.as_ref()).await?;
    link::set_up(socket, device).await?;
    Ok(true)
}

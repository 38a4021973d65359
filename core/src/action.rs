//! One step of a plan. The agent's executor carries steps out in order; overlay, the loader and the
//! DNS each know how to do theirs.
//!
//! Each step is idempotent: making what is there already as wanted, or removing what is gone, is
//! success.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;

use crate::{
    Id,
    desired::{Fdb, Link, Neigh, Peer, Route, Veth},
    intent::VETH,
    lb,
    names::NameTable,
    nft::Nft,
};

/// A step that overlay does.
#[derive(Clone, Debug, PartialEq)]
pub enum NetAction {
    /// Makes a bridge or VXLAN device with its mark, sets it up, or puts an existing one right. A
    /// property that can not be changed in place (VNI, local address) is changed by making it anew.
    PutLink {
        /// Name.
        name: String,
        /// Cluster and network, for the mark.
        mark: (Id, Id),
        /// What it must be.
        link: Box<Link>,
    },
    /// Removes a bridge, VXLAN device or veth.
    DelLink(String),
    /// Makes a veth pair, its far end in the container, configured and up; or puts the MTU and the
    /// bridge of an existing one right.
    PutVeth {
        /// Name of the host side.
        name: String,
        /// Cluster, for the mark.
        cluster: Id,
        /// What it must be.
        veth: Box<Veth>,
    },
    /// Adds the ways back of an interface that an engine has taken, where it is now.
    AddReturns {
        /// Name of the host side.
        name: String,
        /// The other end.
        peer: Box<Peer>,
    },
    /// Adds an address.
    AddAddr(String, IpNet),
    /// Removes an address.
    DelAddr(String, IpNet),
    /// Adds or replaces a route.
    AddRoute(Route),
    /// Removes a route.
    DelRoute(Route),
    /// Adds or replaces a forwarding entry.
    AddFdb(Fdb),
    /// Removes a forwarding entry.
    DelFdb(Fdb),
    /// Adds or replaces a neighbour.
    AddNeigh(Neigh),
    /// Removes a neighbour.
    DelNeigh(Neigh),
    /// Replaces the packet filter's table in one transaction; `None` removes it.
    SetNft(Option<Box<Nft>>),
    /// Has the chains that drop what they do not know let through what goes to or comes from our
    /// bridges.
    PassForward,
    /// Ends TCP and connected UDP sockets to endpoints that are gone: they were given them when they
    /// connected, and no packet of theirs would be answered.
    EndSockets {
        /// Path and inode of the container's namespace; `None`: the host's own.
        sandbox: Option<(String, u64)>,
        /// The endpoints' addresses.
        peers: BTreeSet<IpAddr>,
    },
}

/// A step that the loader does.
#[derive(Clone, Debug, PartialEq)]
pub enum BpfAction {
    /// Puts or removes one row.
    Row(lb::Row),
    /// Attaches a program, or replaces an older one in place.
    Attach(lb::Hook),
    /// Detaches a program.
    Detach(lb::Hook),
}

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Netlink or nftables.
    Net(NetAction),
    /// BPF.
    Bpf(BpfAction),
    /// Swaps the DNS's table and listeners.
    Names(Box<NameTable>),
}

/// Steps of a run at most.
const RUN: usize = 1024;

/// The steps in their order, in runs of those that can be carried out at once: additions of forwarding entries
/// and neighbours, but for entries of a container's device, which wait for it. Any other step is a run.
pub fn runs(steps: &[Action]) -> impl Iterator<Item = &[Action]> {
    let is_entry = |step: &Action| match step {
        Action::Net(NetAction::AddFdb(e)) => !e.dev.starts_with(VETH),
        Action::Net(NetAction::AddNeigh(_)) => true,
        _ => false,
    };
    let all = steps.chunk_by(move |a, b| is_entry(a) && is_entry(b));
    all.flat_map(|run| run.chunks(RUN))
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(a) => match a {
                NetAction::PutLink { name, link, .. } => match &**link {
                    Link::Bridge { mac, mtu, .. } => write!(f, "link put {name} bridge mac {mac} mtu {mtu}"),
                    Link::Vxlan { vni, local, mtu, .. } => write!(f, "link put {name} vxlan vni {vni} local {local} mtu {mtu}"),
                },
                NetAction::DelLink(name) => write!(f, "link del {name}"),
                NetAction::PutVeth { name, veth, .. } => write!(
                    f,
                    "veth put {name} bridge {} mtu {} peer {} in {}",
                    veth.bridge,
                    veth.mtu,
                    Words(&veth.peer.addrs),
                    veth.peer.netns
                ),
                NetAction::AddReturns { name, peer } => write!(f, "veth returns {name} peer {} in {}", Words(&peer.addrs), peer.netns),
                NetAction::AddAddr(dev, a) => write!(f, "addr add {a} dev {dev}"),
                NetAction::DelAddr(dev, a) => write!(f, "addr del {a} dev {dev}"),
                NetAction::AddRoute(r) => write!(f, "route add {} dev {} src {}", r.dst, r.dev, r.src),
                NetAction::DelRoute(r) => write!(f, "route del {} dev {}", r.dst, r.dev),
                NetAction::AddFdb(e) => write!(f, "fdb add {}", Entry(e)),
                NetAction::DelFdb(e) => write!(f, "fdb del {}", Entry(e)),
                NetAction::AddNeigh(n) => write!(f, "neigh add {} lladdr {} dev {}", n.ip, n.mac, n.dev),
                NetAction::DelNeigh(n) => write!(f, "neigh del {} dev {}", n.ip, n.dev),
                NetAction::SetNft(Some(n)) => write!(f, "nft set {} bridges {} peers", n.bridges.len(), n.peers.len()),
                NetAction::SetNft(None) => write!(f, "nft delete table"),
                NetAction::PassForward => write!(f, "nft pass forward"),
                NetAction::EndSockets { sandbox, peers } => match sandbox {
                    Some((netns, _)) => write!(f, "sockets end to {} in {netns}", Words(peers)),
                    None => write!(f, "sockets end to {}", Words(peers)),
                },
            },
            Self::Bpf(BpfAction::Row(row)) => write!(f, "map {row:?}"),
            Self::Bpf(BpfAction::Attach(h)) => write!(f, "attach {:?} dev {}", h.program, h.dev),
            Self::Bpf(BpfAction::Detach(h)) => write!(f, "detach {:?} dev {}", h.program, h.dev),
            Self::Names(t) => write!(f, "names swap {} zones {} listeners", t.zones.len(), t.listeners.len()),
        }
    }
}

struct Words<I>(I);

impl<I: IntoIterator<Item: fmt::Display> + Copy> fmt::Display for Words<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.0.into_iter().enumerate() {
            write!(f, "{}{word}", if i > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

struct Entry<'a>(&'a Fdb);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.0.mac, self.0.dev)?;
        match self.0.vtep {
            Some(vtep) => write!(f, " dst {vtep} self"),
            None => write!(f, " master"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mac;

    /// A host that is new to a cluster of 30,000 services has 300,000 steps to take.
    #[test]
    fn steps_are_small() {
        assert!(size_of::<Action>() <= 72, "{}", size_of::<Action>());
    }

    #[test]
    fn runs_are_all_steps_in_their_order() {
        let entry = |dev: &str| {
            Action::Net(NetAction::AddFdb(Fdb {
                dev: dev.to_owned(),
                mac: Mac::default(),
                vtep: None,
            }))
        };
        let other = || Action::Net(NetAction::PassForward);
        let mut steps = vec![
            other(),
            other(),
            entry("mx-a"),
            entry("mx-b"),
            entry("mv-a"),
            entry("mv-b"),
            other(),
        ];
        steps.extend((0..RUN + 1).map(|_| entry("mx-a")));
        let lengths: Vec<_> = runs(&steps).map(<[_]>::len).collect();
        assert_eq!(lengths, [1, 1, 2, 1, 1, 1, RUN, 1]);
        assert_eq!(runs(&steps).flatten().collect::<Vec<_>>(), steps.iter().collect::<Vec<_>>());
    }
}

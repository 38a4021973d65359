//! Endpoints: the interfaces of containers in networks.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{Deref, DerefMut},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Labels, Port, Seldom, both, v4, v6};
use crate::{Id, Mac};

/// Where an endpoint is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// Has an address, not yet an interface.
    Starting,
    /// Takes flows.
    Ready,
    /// Takes no new flow.
    Draining,
}

/// The network namespace of an endpoint, as its node knows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Told", into = "Told")]
pub struct Sandbox {
    /// The namespace's inode: tells it from a later one at the same path; 0 while it is not known
    /// which namespace an engine has taken the interface into.
    pub inode: u64,
    /// `None` is as the default. Most endpoints of a cluster are on other hosts.
    place: Option<Box<Place>>,
}

/// What only the node itself asks of a sandbox ([`Endpoint::seen_from`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What the user called it (`netns:web1`, a container's name).
    pub container: String,
    /// Path by which the node opens the namespace.
    pub netns: String,
    /// The namespace's cookie (SO_NETNS_COOKIE), by which the kernel programs tell it; 0 where the
    /// kernel has none.
    pub cookie: u64,
    /// It had a default route before it was attached, and keeps that one.
    pub routed: bool,
    /// The container engine that takes the interface into the namespace, and configures it there,
    /// by itself; `None`: meshd does both.
    pub handover: Option<Box<Handover>>,
}

/// A sandbox as it is written and read.
#[derive(Serialize, Deserialize)]
struct Told {
    container: String,
    netns: String,
    inode: u64,
    #[serde(default)]
    cookie: u64,
    #[serde(default)]
    routed: bool,
    #[serde(default)]
    handover: Option<Box<Handover>>,
}

impl From<Told> for Sandbox {
    fn from(told: Told) -> Self {
        let place = Place {
            container: told.container,
            netns: told.netns,
            cookie: told.cookie,
            routed: told.routed,
            handover: told.handover,
        };
        Self::new(told.inode, place)
    }
}

impl From<Sandbox> for Told {
    fn from(sandbox: Sandbox) -> Self {
        let place = sandbox.place.map(|place| *place).unwrap_or_default();
        Self {
            container: place.container,
            netns: place.netns,
            inode: sandbox.inode,
            cookie: place.cookie,
            routed: place.routed,
            handover: place.handover,
        }
    }
}

impl Sandbox {
    /// The namespace with this inode.
    pub fn new(inode: u64, place: Place) -> Self {
        let place = (place != Place::default()).then(|| Box::new(place));
        Self { inode, place }
    }

    /// Its namespace is known.
    pub fn is_known(&self) -> bool {
        self.inode != 0
    }

    /// Both are the same namespace of one node, as far as they are known.
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_known() && self.inode == other.inode
    }
}

impl PartialEq for Sandbox {
    fn eq(&self, other: &Self) -> bool {
        (self.inode, &**self) == (other.inode, &**other)
    }
}

impl Eq for Sandbox {}

impl Deref for Sandbox {
    type Target = Place;

    fn deref(&self) -> &Place {
        static NOWHERE: Place = Place {
            container: String::new(),
            netns: String::new(),
            cookie: 0,
            routed: false,
            handover: None,
        };
        self.place.as_deref().unwrap_or(&NOWHERE)
    }
}

impl DerefMut for Sandbox {
    fn deref_mut(&mut self) -> &mut Place {
        self.place.get_or_insert_default()
    }
}

/// An interface that is handed over to a container engine (libnetwork's remote drivers).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handover {
    /// The engine's own id of the endpoint.
    pub endpoint: String,
    /// Its addresses were reserved before ([`Network::reserved`]), and are so again after it, until
    /// the engine gives them back.
    #[serde(default)]
    pub leased: bool,
}

/// One interface of a container in one network.
///
/// As in libnetwork, an endpoint is one attachment: a container on two networks has two endpoints
/// with the same sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its name: a DNS label, unique in its network.
    pub name: Box<str>,
    /// Its labels.
    pub labels: Seldom<Labels>,
    /// The node that it is on.
    pub node: Id,
    /// Its network.
    pub network: Id,
    /// Its address: IPv4, or IPv6 in a network that has only that.
    pub ip: IpAddr,
    /// Its IPv6 address in a network that has both.
    #[serde(default)]
    pub ip6: Option<Box<Ipv6Addr>>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Further names in this network.
    pub aliases: Seldom<Vec<String>>,
    /// The service that it serves.
    pub service: Option<Id>,
    /// Its namespace.
    pub sandbox: Sandbox,
    /// Name of its interface inside the namespace.
    pub ifname: Box<str>,
    /// Where it is in its life.
    pub state: EndpointState,
    /// Data-plane number, unique in the cluster and never reused.
    pub slot: u32,
    /// How many new flows it takes, beside the others of its service; 0: none.
    #[serde(default = "one")]
    pub weight: u32,
    /// Ports of its own, published on its node only ([`PublishMode::Host`]).
    #[serde(default)]
    pub ports: Seldom<Vec<Port>>,
    /// Its container was asked to stop, and has ended by then; one that runs on does not mean to stop. Its
    /// node says so, whatever the operator says by `state`.
    #[serde(default)]
    pub stopping: Option<Box<Timestamp>>,
}

fn one() -> u32 {
    1
}

impl Endpoint {
    /// It takes new flows, as far as it is about itself.
    pub fn takes_new(&self) -> bool {
        self.state == EndpointState::Ready && self.stopping.is_none()
    }

    /// It takes no new flow any more: it was told to drain, or its container is stopping.
    pub fn is_leaving(&self) -> bool {
        self.state != EndpointState::Starting && !self.takes_new()
    }

    /// As a node keeps it: of endpoints of others, not what only their own node asks. The managers have that.
    pub fn seen_from(&mut self, node: Id) {
        if self.node != node {
            self.sandbox.place = None;
            self.ifname = Box::default();
        }
    }

    /// Its addresses, the one that it is known by first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        both(self.ip, self.ip6.as_deref().copied())
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Option<Ipv4Addr> {
        v4(self.ip)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        v6(self.ip).or(self.ip6.as_deref().copied())
    }
}

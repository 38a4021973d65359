//! Endpoints: the interfaces of containers in networks.

mod written;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{Deref, DerefMut},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Bandwidth, Labels, Port, Seldom, both, v4, v6};
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

/// What its engine's own check of a container says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It succeeds, or there is none.
    #[default]
    Well,
    /// It fails, or has not succeeded yet.
    Unwell,
    /// It does not succeed, and an operator has said that this does not count.
    Overruled,
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
    /// How much it may receive and send; `None`: as much as there is.
    pub bandwidth: Option<Box<Bandwidth>>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bandwidth: Option<Box<Bandwidth>>,
}

impl From<Told> for Sandbox {
    fn from(told: Told) -> Self {
        let place = Place {
            container: told.container,
            netns: told.netns,
            cookie: told.cookie,
            routed: told.routed,
            handover: told.handover,
            bandwidth: told.bandwidth,
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
            bandwidth: place.bandwidth,
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
            bandwidth: None,
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
///
/// Every host has all endpoints of the cluster, so what few of them have is kept apart, and reads as if it were
/// here ([`Rare`]).
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// Nanoseconds since 1970.
    created: i64,
    /// Its name: a DNS label, unique in its network.
    pub name: Box<str>,
    /// The node that it is on.
    pub node: Id,
    /// Its network.
    pub network: Id,
    /// Its address: IPv4, or IPv6 in a network that has only that.
    pub ip: IpAddr,
    /// The service that it serves.
    pub service: Option<Id>,
    /// Its namespace.
    pub sandbox: Sandbox,
    /// Where it is in its life.
    pub state: EndpointState,
    /// Data-plane number, unique in the cluster and never reused.
    pub slot: u32,
    /// `None` is as the default.
    rare: Option<Box<Rare>>,
}

/// What most endpoints have the default of, as other nodes know them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rare {
    /// Its labels.
    pub labels: Seldom<Labels>,
    /// Its IPv6 address in a network that has both.
    pub ip6: Option<Box<Ipv6Addr>>,
    /// Its Ethernet address, where that does not follow from its address.
    mac: Option<Mac>,
    /// Further names in this network.
    pub aliases: Seldom<Vec<String>>,
    /// Name of its interface inside the namespace.
    pub ifname: String,
    /// How many new flows it takes, beside the others of its service; 0: none.
    pub weight: u32,
    /// Ports of its own, published on its node only ([`PublishMode::Host`]).
    ///
    /// [`PublishMode::Host`]: super::PublishMode::Host
    pub ports: Seldom<Vec<Port>>,
    /// Its container was asked to stop, and has ended by then; one that runs on does not mean to stop. Its
    /// node says so, whatever the operator says by `state`.
    pub stopping: Option<Box<Timestamp>>,
    /// Whether its container is well. Its node says so.
    pub health: Health,
}

static USUAL: Rare = Rare {
    labels: Seldom::EMPTY,
    ip6: None,
    mac: None,
    aliases: Seldom::EMPTY,
    ifname: String::new(),
    weight: 1,
    ports: Seldom::EMPTY,
    stopping: None,
    health: Health::Well,
};

impl Default for Rare {
    fn default() -> Self {
        USUAL.clone()
    }
}

impl Deref for Endpoint {
    type Target = Rare;

    fn deref(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&USUAL)
    }
}

impl DerefMut for Endpoint {
    fn deref_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        let of = |e: &Self| (e.id, e.version, e.created, e.node, e.network, e.ip, e.service, e.state, e.slot);
        of(self) == of(other) && self.name == other.name && self.sandbox == other.sandbox && **self == **other
    }
}

impl Endpoint {
    /// One that is starting, with the Ethernet address that follows from its address, and otherwise nothing.
    /// `created_at` is kept as far as nanoseconds since 1970 fit 64 bits.
    pub fn new(id: Id, created_at: Timestamp, name: &str, (node, network): (Id, Id), ip: IpAddr) -> Self {
        let nanoseconds = created_at.as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into());
        Self {
            id,
            version: 0,
            created: i64::try_from(nanoseconds).unwrap_or_default(),
            name: name.into(),
            node,
            network,
            ip,
            service: None,
            sandbox: Sandbox::default(),
            state: EndpointState::Starting,
            slot: 0,
            rare: None,
        }
    }

    /// When it was made.
    pub fn created_at(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.created.into()).unwrap_or_default()
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> Mac {
        self.rare.as_ref().and_then(|r| r.mac).unwrap_or_else(|| Mac::for_ip(self.ip))
    }

    /// Gives it an Ethernet address.
    pub fn set_mac(&mut self, mac: Mac) {
        if mac != self.mac() {
            self.deref_mut().mac = Some(mac).filter(|mac| *mac != Mac::for_ip(self.ip));
        }
    }

    /// It takes no new flow any more: it was told to drain, or its container is stopping or not well.
    pub fn is_leaving(&self) -> bool {
        match self.state {
            EndpointState::Starting => false,
            EndpointState::Ready => self.stopping.is_some() || self.health == Health::Unwell,
            EndpointState::Draining => true,
        }
    }

    /// As a node keeps it: of endpoints of others, not what only their own node asks. The managers have that.
    pub fn seen_from(&mut self, node: Id) {
        if self.node != node {
            self.sandbox.place = None;
            if !self.ifname.is_empty() {
                self.ifname = String::new();
            }
            self.rare.take_if(|rare| **rare == USUAL);
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

//! Everything that meshd does to the kernel's network by netlink, and its one nftables table.
//!
//! The agent calls it: [`Overlay::dump`] says what this host carries, [`Overlay::apply`] carries out
//! one step of a plan, [`Overlay::monitor`] tells when to look again. Netlink's types stop here.
//! What it makes carries a mark, and what carries none is never touched.

mod addr;
mod apply;
mod batch;
mod bridge;
mod dump;
mod entries;
mod error;
mod fdb;
mod filter;
mod host;
mod inside;
mod known;
mod link;
mod monitor;
mod neigh;
pub mod netns;
pub mod occupied;
mod port;
mod queue;
mod route;
mod rule;
mod segment;
mod socket;
mod sockets;
mod survey;
mod sweep;
mod sysctl;
mod tables;
mod veth;
mod vxlan;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use futures::Stream;
use mesh_core::{Id, action::NetAction, desired::Fdb, observed::SeenOverlay};

pub use error::{Error, KernelError};
pub use host::HostFacts;
pub use inside::{Inside, inspect};
pub use netns::Netns;
pub use segment::Segment;
pub use sockets::Ports;
pub use survey::Survey;

use batch::Batches;
use filter::Filter;
use socket::Socket;
use sysctl::Sysctl;
use tables::Tables;

/// The network namespace of the thread that made this, as meshd uses it.
#[derive(Debug)]
pub struct Overlay {
    netns: Arc<Netns>,
    socket: Socket,
    tables: Tables,
    batches: Batches,
    sysctl: Sysctl,
    filter: Filter,
    cookie: u64,
}

impl Overlay {
    /// Opens the calling thread's network namespace. Whatever thread calls the other functions, they
    /// work in that one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When no netlink socket is to be had.
    pub fn new() -> Result<Self, Error> {
        let netns = Arc::new(Netns::current()?);
        let cookie = netns::own_cookie().map_err(Error::io("read this network namespace's cookie"))?;
        let (sysctl, filter) = (Sysctl::new(netns.clone()), Filter::new(netns.clone()));
        Ok(Self {
            netns,
            socket: Socket::open()?,
            tables: Tables::open()?,
            batches: Batches::open()?,
            sysctl,
            filter,
            cookie,
        })
    }

    /// Reads links, addresses and routes, for [`Survey::host_facts`], [`Self::read`] and [`Self::read_known`].
    ///
    /// # Errors
    /// When the kernel refuses, or when its tables would not hold still.
    pub async fn survey(&self) -> Result<Survey, Error> {
        Survey::take(&self.socket, &self.tables).await
    }

    /// As [`Self::read`], of the moment.
    ///
    /// # Errors
    /// As [`Self::survey`] and [`Self::read`].
    pub async fn dump(&self, cluster: Option<Id>) -> Result<SeenOverlay, Error> {
        self.read(&self.survey().await?, cluster).await
    }

    /// What this host carries. With `cluster`, links of another cluster's mark, and what is on them,
    /// are left out; links whose making was cut short are always there, and never settled or up.
    ///
    /// # Errors
    /// When the kernel refuses, when its tables would not hold still, or when nft is missing.
    pub async fn read(&self, survey: &Survey, cluster: Option<Id>) -> Result<SeenOverlay, Error> {
        let filter = self.filter.get().await?;
        let mut seen = dump::read((&self.tables, &self.socket.known), survey, cluster, filter.nft).await?;
        seen.blocked = filter.blocked;
        Ok(seen)
    }

    /// As [`Self::read_known`], of the moment.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub async fn dump_known(&self, cluster: Option<Id>, of: Option<[&BTreeSet<Fdb>; 2]>) -> Result<Option<SeenOverlay>, Error> {
        self.read_known(&self.survey().await?, cluster, of).await
    }

    /// As [`Self::read`], but forwarding entries and neighbours as they were read last and as this program has
    /// changed them since; of the entries only those for an address that one of `of` has too, where given.
    /// `None` where an event has told, or may have, that somebody else changed them. Relies on
    /// [`Self::monitor`]'s events being read.
    ///
    /// # Errors
    /// When nft is missing, or the kernel refuses.
    pub async fn read_known(
        &self,
        survey: &Survey,
        cluster: Option<Id>,
        of: Option<[&BTreeSet<Fdb>; 2]>,
    ) -> Result<Option<SeenOverlay>, Error> {
        let filter = self.filter.get().await?;
        let seen = dump::read_known(&self.socket, survey, cluster, filter.nft, of);
        Ok(seen.map(|seen| SeenOverlay {
            blocked: filter.blocked,
            ..seen
        }))
    }

    /// Carries out one step. Making what is there already, or removing what is gone, is success.
    ///
    /// # Errors
    /// When the kernel refuses; what was in the way is named. A veth that fails is removed again.
    pub async fn apply(&self, action: &NetAction) -> Result<(), Error> {
        apply::apply(self, action).await
    }

    /// As [`Self::apply`], of steps in their order; what came of each. Forwarding entries and neighbours that are
    /// to be added go to the kernel many at a time.
    pub async fn apply_all(&self, actions: &[&NetAction]) -> Vec<Result<(), Error>> {
        if actions.len() > 1
            && let Some(done) = entries::add(self, actions).await
        {
            return done;
        }
        let mut done = Vec::with_capacity(actions.len());
        for action in actions {
            done.push(self.apply(action).await);
        }
        done
    }

    /// The host as it is without meshd, seen from the address that VXLAN will be sent from.
    ///
    /// # Errors
    /// When no interface has the address, or the kernel refuses.
    pub async fn host_facts(&self, data_path_addr: IpAddr) -> Result<HostFacts, Error> {
        self.survey().await?.host_facts(data_path_addr)
    }

    /// Removes every link, route and table that meshd made here, of whatever cluster, and says which.
    ///
    /// # Errors
    /// All that went wrong; the rest was removed nevertheless.
    pub async fn sweep(&self) -> Result<Vec<String>, Vec<Error>> {
        sweep::sweep(self).await
    }

    /// Yields after each change of the host's links, addresses, routes, neighbours or nftables, this
    /// program's own included, but for those of forwarding entries and neighbours once they were read.
    /// Several changes may give one item; a lost event gives one too. Ends when the sockets fail: then start
    /// another.
    ///
    /// # Errors
    /// When the sockets can not be opened.
    pub fn monitor(&self) -> Result<impl Stream<Item = ()> + Send + Unpin + use<>, Error> {
        monitor::changes(&self.netns, self.socket.known.clone())
    }

    /// Gives back memory of this program's: for whoever has made very many changes.
    pub fn compact(&self) {
        self.socket.known.compact();
    }

    /// The cookie of the namespace that it works in; see [`netns::cookie`].
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The namespace that it works in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

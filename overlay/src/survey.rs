//! Links, addresses and routes of the namespace, read once for all that is asked of them in one pass: what
//! the host is like without meshd, and what it carries of meshd's.

use std::{collections::HashMap, net::IpAddr};

use mesh_core::observed::SeenQueue;

use crate::{
    addr,
    error::Error,
    host::{self, HostFacts},
    link::{self, Device},
    queue, route,
    socket::Socket,
    tables::Tables,
};

/// As it was at one moment, or within a few.
#[derive(Debug)]
pub struct Survey {
    pub(crate) links: Vec<Device>,
    pub(crate) addrs: Vec<addr::Seen>,
    pub(crate) routes: Vec<route::Seen>,
    /// See [`queue::all`].
    pub(crate) queues: HashMap<u32, SeenQueue>,
}

impl Survey {
    pub(crate) async fn take(socket: &Socket, tables: &Tables) -> Result<Self, Error> {
        let links = link::all(socket).await?;
        // Every device has some queue: they are read where one may be meshd's.
        let is_any = links.iter().any(|d| d.is_shaped && d.is_ours());
        let queues = if is_any { queue::all(tables).await? } else { HashMap::new() };
        Ok(Self {
            links,
            addrs: addr::all(socket).await?,
            routes: route::all(socket).await?,
            queues,
        })
    }

    /// The host as it is without meshd, seen from the address that VXLAN will be sent from.
    ///
    /// # Errors
    /// When no interface has the address.
    pub fn host_facts(&self, data_path_addr: IpAddr) -> Result<HostFacts, Error> {
        host::facts(self, data_path_addr)
    }
}

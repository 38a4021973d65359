//! Links, addresses and routes of the namespace, read once for all that is asked of them in one pass: what
//! the host is like without meshd, and what it carries of meshd's.

use std::net::IpAddr;

use crate::{
    addr,
    error::Error,
    host::{self, HostFacts},
    link::{self, Device},
    route,
    socket::Socket,
};

/// As it was at one moment, or within a few.
#[derive(Debug)]
pub struct Survey {
    pub(crate) links: Vec<Device>,
    pub(crate) addrs: Vec<addr::Seen>,
    pub(crate) routes: Vec<route::Seen>,
}

impl Survey {
    pub(crate) async fn take(socket: &Socket) -> Result<Self, Error> {
        Ok(Self {
            links: link::all(socket).await?,
            addrs: addr::all(socket).await?,
            routes: route::all(socket).await?,
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

//! Kernel settings under /proc/sys/net, which shows each thread those of its own network namespace
//! (net/sysctl_net.c): they are written by a thread within ours.

use std::{fs, io, sync::Arc};

use crate::{error::Error, netns::Netns};

const ROOT: &str = "/proc/sys/net";

/// The settings of one network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Sysctl(Arc<Netns>);

impl Sysctl {
    pub(crate) fn new(netns: Arc<Netns>) -> Self {
        Self(netns)
    }

    /// Lets the host forward IPv4 between its interfaces.
    pub(crate) async fn forwarding(&self) -> Result<(), Error> {
        self.write("ipv4/ip_forward".into(), "1").await
    }

    /// Keeps IPv6 off a link: the overlay is IPv4 only, and a bare link-local address would answer
    /// containers past every rule.
    pub(crate) async fn no_ipv6(&self, link: &str) -> Result<(), Error> {
        match self.write(format!("ipv6/conf/{link}/disable_ipv6"), "1").await {
            // A kernel without IPv6.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Accepts packets on a link whose source is routed elsewhere, if it is routed at all (RFC 3704,
    /// loose mode; the larger one of this and `all` counts, and 2 is the largest).
    pub(crate) async fn loose_source_check(&self, link: &str) -> Result<(), Error> {
        self.write(format!("ipv4/conf/{link}/rp_filter"), "2").await
    }

    async fn write(&self, key: String, value: &'static str) -> Result<(), Error> {
        let path = format!("{ROOT}/{key}");
        let request = format!("set {} to {value}", key.replace('/', "."));
        let work = move || {
            if fs::read_to_string(&path)?.trim_end() == value {
                return Ok(());
            }
            fs::write(&path, value)
        };
        self.0.run(work).await?.map_err(Error::io(request))
    }
}

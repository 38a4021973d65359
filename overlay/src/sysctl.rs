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

    /// Lets the host forward IPv6 between its interfaces. A host that forwards takes no router
    /// advertisements (accept_ra 1) any more, and loses the default route that it has from them:
    /// those that did go on doing so (accept_ra 2, Documentation/networking/ip-sysctl).
    async fn forwarding6(&self) -> Result<(), Error> {
        let work = || {
            let all = format!("{ROOT}/ipv6/conf/all/forwarding");
            if fs::read_to_string(&all)?.trim_end() == "1" {
                return Ok(());
            }
            for link in fs::read_dir(format!("{ROOT}/ipv6/conf"))? {
                let link = link?;
                let accept_ra = link.path().join("accept_ra");
                let is_link = !matches!(link.file_name().to_str(), Some("all" | "default" | "lo"));
                // A link may go meanwhile.
                if is_link && fs::read_to_string(&accept_ra).is_ok_and(|v| v.trim_end() == "1") {
                    fs::write(accept_ra, "2").or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
                }
            }
            fs::write(all, "1")
        };
        self.0.run(work).await?.map_err(Error::io("set net.ipv6.conf.all.forwarding to 1"))
    }

    /// Puts IPv6 on a link of the host, or keeps it off. Off, because a bare link-local address would
    /// answer containers past every rule; and for the same reason none is made when it is on.
    pub(crate) async fn ipv6(&self, link: &str, is_on: bool) -> Result<(), Error> {
        if is_on {
            self.write(format!("ipv6/conf/{link}/accept_ra"), "0").await?;
            self.write(format!("ipv6/conf/{link}/addr_gen_mode"), "1").await?;
            self.write(format!("ipv6/conf/{link}/disable_ipv6"), "0").await?;
            return self.forwarding6().await;
        }
        match self.write(format!("ipv6/conf/{link}/disable_ipv6"), "1").await {
            // A kernel without IPv6.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Readies a container's interface for the IPv6 addresses that it is given: it has IPv6, also where
    /// the container's engine turned it off, and takes nothing from router advertisements.
    pub(crate) async fn ipv6_in_container(&self, link: &str) -> Result<(), Error> {
        self.write(format!("ipv6/conf/{link}/accept_ra"), "0").await?;
        self.write(format!("ipv6/conf/{link}/autoconf"), "0").await?;
        self.write(format!("ipv6/conf/{link}/disable_ipv6"), "0").await
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

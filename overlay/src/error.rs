//! What can go wrong between meshd and the kernel. Every failed request is named with the object it
//! was about; the kernel's own words are the source.

use std::{fmt, io, net::IpAddr};

/// A failure of overlay.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("cannot {request}{}", Hint(.hint.as_deref()))]
    Kernel {
        /// What was asked, with the object: "create vxlan mx-…".
        request: String,
        /// What is in the way, if it could be found out.
        hint: Option<String>,
        /// What the kernel said.
        #[source]
        source: KernelError,
    },
    /// A system call or a file of /proc failed.
    #[error("cannot {request}")]
    Io {
        /// What was tried.
        request: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The tables changed while they were read, time after time.
    #[error("cannot {request}: the kernel's tables changed during each of {tries} readings")]
    Interrupted {
        /// What was asked.
        request: String,
        /// How often it was tried.
        tries: u32,
    },
    /// No answer.
    #[error("cannot {request}: no answer from the kernel within {seconds} s")]
    Timeout {
        /// What was asked.
        request: String,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// The netlink socket is gone.
    #[error("cannot {request}: the netlink socket was closed")]
    Closed {
        /// What was asked.
        request: String,
    },
    /// A name is taken by a link that carries no mark of meshd. It is left alone.
    #[error("link {name} was not made by meshd (its alias is {alias:?}, not \"mesh:…\"); rename or remove it")]
    NotOurs {
        /// The link.
        name: String,
        /// Its alias.
        alias: String,
    },
    /// A link that a step builds upon does not exist.
    #[error("cannot {request}: there is no link {name}")]
    NoLink {
        /// What was to be done.
        request: String,
        /// The link.
        name: String,
    },
    /// The container is gone: its network namespace is not there any more, or another one is.
    #[error("network namespace {path} is not the one that was attached: {why}")]
    SandboxGone {
        /// Path of the namespace.
        path: String,
        /// What is there instead.
        why: String,
    },
    /// The container has an interface of that name.
    #[error("network namespace {path} has an interface {ifname} already; choose another name")]
    IfnameTaken {
        /// Path of the namespace.
        path: String,
        /// The interface.
        ifname: String,
    },
    /// The container has a default route.
    #[error("network namespace {path} has a default route already; a gateway can be given for one network only")]
    DefaultRouteTaken {
        /// Path of the namespace.
        path: String,
    },
    /// Another program's route has the same destination. It is left alone.
    #[error("there is a route to {dst} over {dev} that meshd did not make")]
    RouteTaken {
        /// Destination.
        dst: ipnet::IpNet,
        /// Its device.
        dev: String,
    },
    /// A value that can not be carried out on any host.
    #[error("{what} {value:?} is not valid: {want}")]
    Invalid {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would be.
        want: &'static str,
    },
    /// No interface of this host has the address.
    #[error("no interface of this host has the address {0}; give one that `ip address` shows")]
    NoSuchAddress(IpAddr),
    /// The program `nft` is missing.
    #[error("nft is not installed: install the nftables package")]
    NftMissing,
    /// `nft` failed.
    #[error("cannot {request}: nft says: {stderr}")]
    Nft {
        /// What was asked.
        request: String,
        /// What it printed.
        stderr: String,
    },
}

impl Error {
    /// The kernel's error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => Some(source.errno),
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// It was for a link that is not there.
    pub fn is_link_gone(&self) -> bool {
        matches!(self, Self::NoLink { .. }) || self.is(&[libc::ENODEV])
    }

    /// True for one of these error numbers.
    pub(crate) fn is(&self, errnos: &[i32]) -> bool {
        self.errno().is_some_and(|e| errnos.contains(&e))
    }

    /// Adds what is in the way.
    pub(crate) fn with_hint(self, text: String) -> Self {
        match self {
            Self::Kernel { request, source, .. } => Self::Kernel {
                request,
                hint: Some(text),
                source,
            },
            other => other,
        }
    }

    /// Makes a closure for `map_err` that names what was tried.
    pub(crate) fn io(request: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            request: request.into(),
            source,
        }
    }
}

struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// An error number of the kernel with its extended acknowledgement (NLMSGERR_ATTR_MSG), if it gave
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// The number, positive.
    pub errno: i32,
    /// The kernel's explanation.
    pub message: Option<String>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(nix::errno::Errno::from_raw(self.errno).desc())?;
        self.message.as_ref().map_or(Ok(()), |m| write!(f, ": {m}"))
    }
}

impl std::error::Error for KernelError {}

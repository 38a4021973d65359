//! What can go wrong on this host before or around a command.

use std::io;

/// Why a command was not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// There is no unified hierarchy to put a cgroup into.
    #[error("no cgroup v2 hierarchy is mounted here: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoCgroups,
    /// A file that has to be covered by one of the command's own is not there.
    #[error("{0} does not exist, and so cannot be covered by one of the command's own: make an empty one (touch {0})")]
    NoFile(&'static str),
}

impl Error {
    /// Puts what was tried to what the kernel says.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        |source| Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// The whole chain in one line.
    pub fn one_line(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

//! Where a command runs in the lab.

/// A place in the lab.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In a host's namespace.
    Host(&'a str),
    /// In a container.
    In(&'a str),
    /// On the client machine, which is no node.
    Client,
}

impl Place<'_> {
    /// The arguments of `scripts/lab` that run a command there, up to the command.
    pub(crate) fn args(&self) -> Vec<&str> {
        match self {
            Self::Host(host) => vec!["exec", host, "--"],
            Self::In(container) => vec!["sh", container, "--"],
            Self::Client => vec!["client", "--"],
        }
    }
}

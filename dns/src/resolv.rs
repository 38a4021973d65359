//! The host's resolvers: resolv.conf(5), read again when the file changes. Used by [`crate::forward`].

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// What resolv.conf says, as far as forwarding needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolvers {
    /// In the file's order. (glibc stops at three; a forwarder has no reason to.)
    pub(crate) servers: Vec<SocketAddr>,
    /// How long to wait for a server before the next one is asked as well.
    pub(crate) timeout: Duration,
    /// How often to ask each server that does not answer.
    pub(crate) attempts: u32,
    /// Start with another server each time.
    pub(crate) rotate: bool,
}

/// The longest wait before the next server is asked: glibc's 5 s would use up the asker's own
/// patience (5 s as well) on the first dead server.
const LONGEST_STEP: Duration = Duration::from_millis(1250);

impl Default for Resolvers {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: LONGEST_STEP,
            attempts: 2,
            rotate: false,
        }
    }
}

impl Resolvers {
    /// Reads the text of a resolv.conf. Lines and options that are not understood are passed over,
    /// as every resolver does.
    pub(crate) fn parse(text: &str, port: u16) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|w| server(w, port));
                    if let Some(server) = server.filter(|s| !out.servers.contains(s)) {
                        out.servers.push(server);
                    }
                }
                Some("options") => words.for_each(|w| out.option(w)),
                _ => (),
            }
        }
        out
    }

    fn option(&mut self, word: &str) {
        match word.split_once(':').map(|(key, value)| (key, value.parse::<u32>())) {
            Some(("timeout", Ok(seconds))) => self.timeout = Duration::from_secs(seconds.max(1).into()).min(LONGEST_STEP),
            Some(("attempts", Ok(times))) => self.attempts = times.clamp(1, 5),
            _ => self.rotate |= word == "rotate",
        }
    }
}

/// `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0` or `fe80::1%2`.
fn server(word: &str, port: u16) -> Option<SocketAddr> {
    match word.split_once('%') {
        None => Some((word.parse::<IpAddr>().ok()?, port).into()),
        Some((address, scope)) => {
            let address: Ipv6Addr = address.parse().ok()?;
            let scope = scope.parse().or_else(|_| nix::net::if_::if_nametoindex(scope)).ok()?;
            Some(SocketAddrV6::new(address, port, 0, scope).into())
        }
    }
}

/// resolv.conf, watched.
pub(crate) struct ResolvConf {
    path: PathBuf,
    port: u16,
    last: Mutex<(Option<Stamp>, Arc<Resolvers>)>,
}

/// What tells one version of a file from another: device, inode, size, modification and change time.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl ResolvConf {
    pub(crate) fn new(path: PathBuf, port: u16) -> Self {
        Self {
            path,
            port,
            last: Mutex::default(),
        }
    }

    /// The resolvers of now. A file that is missing or unreadable (about to be replaced) changes
    /// nothing. One `stat` when nothing changed.
    pub(crate) fn current(&self) -> Arc<Resolvers> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(meta) = fs::metadata(&self.path) else {
            return last.1.clone();
        };
        let stamp = (
            meta.dev(),
            meta.ino(),
            meta.size(),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        );
        if last.0 != Some(stamp) {
            match fs::read(&self.path) {
                Ok(text) => {
                    let read = Resolvers::parse(&String::from_utf8_lossy(&text), self.port);
                    if read != *last.1 {
                        tracing::info!(path = %self.path.display(), servers = ?read.servers, "resolvers for names outside the mesh");
                    }
                    *last = (Some(stamp), Arc::new(read));
                }
                Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot read resolv.conf, keeping the resolvers known"),
            }
        }
        last.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_resolv_conf_allows() {
        let text = "# a comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # trailing\nnameserver fe80::1%7\n\
                    nameserver nonsense\nnameserver\nnameserver 192.0.2.1\noptions ndots:5 timeout:1 attempts:9 rotate\n";
        let read = Resolvers::parse(text, 53);
        let servers: Vec<String> = read.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]);
        assert_eq!((read.timeout, read.attempts, read.rotate), (Duration::from_secs(1), 5, true));
        assert_eq!(Resolvers::parse("options timeout:30\n", 53).timeout, LONGEST_STEP);
    }

    #[test]
    fn follows_edits_and_replacements() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let conf = ResolvConf::new(path.clone(), 53);
        let servers = || conf.current().servers.iter().map(|s| s.ip().to_string()).collect::<Vec<_>>();
        assert!(servers().is_empty());
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(servers(), ["192.0.2.1"]);
        fs::write(&path, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        assert_eq!(servers(), ["192.0.2.1", "192.0.2.2"]);
        fs::write(dir.path().join("new"), "nameserver 192.0.2.9\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(servers(), ["192.0.2.1", "192.0.2.2"], "kept while the file is away");
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(servers(), ["192.0.2.9"]);
    }
}

//! Network namespaces: opened by path, told apart by inode, entered by threads of their own.
//!
//! `setns` changes the calling thread, so it is never done on a thread that anybody else uses: a
//! thread is started, enters, does its work and ends. A netlink socket that was opened there keeps
//! to that namespace and is then used from anywhere.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::fs::MetadataExt,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use crate::{
    error::Error,
    sockets::{self, Ports},
};

/// An open network namespace. It lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: String,
    inode: u64,
}

impl Netns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When nothing is there, or something else than a network namespace.
    pub fn open(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
        if !is_network_namespace(file.as_fd()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        let inode = file.metadata()?.ino();
        Ok(Self {
            file,
            path: path.into(),
            inode,
        })
    }

    /// The calling thread's.
    pub(crate) fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net").map_err(Error::io("open this thread's network namespace"))
    }

    /// Opens a container's namespace and makes sure that it is still the one that was attached.
    pub(crate) fn open_sandbox(path: &str, inode: u64) -> Result<Self, Error> {
        let gone = |why: String| Error::SandboxGone { path: path.into(), why };
        let netns = match Self::open(path) {
            Ok(netns) => netns,
            Err(e) if is_gone(&e) => return Err(gone(e.to_string())),
            Err(e) => return Err(Error::io(format!("open network namespace {path}"))(e)),
        };
        if netns.inode != inode {
            return Err(gone(format!("inode {} is there, not {inode}", netns.inode)));
        }
        Ok(netns)
    }

    /// Its inode, unique among the namespaces that exist on this host.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Where it was opened.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own within the namespace.
    ///
    /// # Errors
    /// When the thread can not be started or can not enter; `work` was not run then.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let request = format!("enter network namespace {}", self.path);
        let file = self.file.try_clone().map_err(Error::io(&request))?;
        on_thread(request, move || setns(file, CloneFlags::CLONE_NEWNET), work).await
    }

    /// The TCP connections that others have made to one of these addresses of a container, at one of `ports`; none
    /// where it is gone. The ports that are listened at now are added to those.
    ///
    /// # Errors
    /// When the namespace can not be entered, or the kernel does not list sockets.
    pub async fn connections(path: &str, inode: u64, own: BTreeSet<IpAddr>, ports: &mut Ports) -> Result<u64, Error> {
        let netns = match Self::open_sandbox(path, inode) {
            Err(Error::SandboxGone { .. }) => return Ok(0),
            other => other?,
        };
        let mut known = ports.clone();
        let (counted, known) = netns.run(move || (sockets::inbound(&own, &mut known), known)).await?;
        *ports = known;
        counted.map_err(Error::io(format!("list connections in {path}")))
    }

    /// Like [`Netns::run`], for callers outside of async code: blocks until `work` is done.
    pub(crate) fn run_blocking<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let failed = || Error::io(format!("enter network namespace {}", self.path));
        let body = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, body)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
        .map_err(failed())
    }
}

/// Runs `work` in a network namespace that nobody else is in, and that ends with it.
pub(crate) async fn run_in_scratch<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    on_thread("make a network namespace".into(), || unshare(CloneFlags::CLONE_NEWNET), work).await
}

async fn on_thread<T: Send + 'static>(
    request: String,
    enter: impl FnOnce() -> nix::Result<()> + Send + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (tx, rx) = oneshot::channel();
    let body = move || {
        // Nobody waits any more when the receiver is gone, which is no failure.
        let _ = tx.send(enter().map(|()| work()).map_err(io::Error::from));
    };
    thread::Builder::new()
        .name("netns".into())
        .spawn(body)
        .map_err(Error::io(&request))?;
    rx.await
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        .map_err(Error::io(request))
}

/// The inode of the network namespace at `path`.
///
/// # Errors
/// When nothing is there, or something else than a network namespace.
pub fn inode(path: &str) -> io::Result<u64> {
    Netns::open(path).map(|n| n.inode)
}

/// Nothing is there any more, or what is there is no network namespace. A meshd that is out of file
/// descriptors, or not let in, knows nothing of it.
fn is_gone(e: &io::Error) -> bool {
    // `Netns::open` itself says InvalidInput without an errno; setns and open never do.
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR))
        || (e.raw_os_error().is_none() && e.kind() == io::ErrorKind::InvalidInput)
}

/// The cookie of the network namespace at `path`, by which BPF programs tell namespaces apart
/// (bpf_get_netns_cookie); 0 before Linux 5.14, which does not tell it.
///
/// # Errors
/// When nothing is there, something else than a network namespace, or it can not be entered.
pub fn cookie(path: &str) -> io::Result<u64> {
    Netns::open(path)?.run_blocking(own_cookie).map_err(io::Error::other)?
}

/// The cookie of the calling thread's network namespace.
pub(crate) fn own_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "no safe wrapper for this socket option")]
    // SAFETY: the option writes a u64 at most (net/core/sock.c, sk_getsockopt), and `len` says that
    // there is room for one; the descriptor is open.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    match done {
        0 => Ok(cookie),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(0),
            e => Err(e),
        },
    }
}

/// `NS_GET_NSTYPE` (include/uapi/linux/nsfs.h): only files of nsfs answer it.
fn is_network_namespace(fd: BorrowedFd<'_>) -> bool {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    #[expect(unsafe_code, reason = "no safe wrapper for this ioctl")]
    // SAFETY: the request takes no argument and writes no memory; the descriptor is open.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_gone() {
        let why = |path: &str| Netns::open_sandbox(path, 1).map(drop).unwrap_err();
        for gone in [
            "/run/netns/no-such",
            "/proc/4194304/ns/net",
            "/dev/null/x",
            "/dev/null",
            "/proc/self/ns/net",
        ] {
            assert!(matches!(why(gone), Error::SandboxGone { .. }), "{gone}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::EACCES, libc::EPERM, libc::ENOMEM, libc::EIO] {
            assert!(!is_gone(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        let long = format!("/{}", "x".repeat(300));
        assert!(matches!(why(&long), Error::Io { .. }), "ENAMETOOLONG says nothing of it");
    }

    #[test]
    fn only_network_namespaces_are_opened() {
        assert_eq!(inode("/proc/self/ns/net").ok(), inode("/proc/thread-self/ns/net").ok());
        for bad in ["/proc/self/ns/mnt", "/dev/null", "/", "/proc/self/ns/nothing"] {
            assert!(inode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_has_one_cookie() {
        let own = own_cookie().ok();
        assert!(own.is_some() && own == own_cookie().ok());
    }
}

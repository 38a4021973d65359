//! Ends sockets whose other end is gone: a connection that was given its backend when it was made has
//! no packet path that could reset it. Called by apply, for the host's namespace and the containers'. And counts
//! the connections that others have made to a container, for the same reason: no table of flows has them.
//!
//! sock_diag(7): a dump with inet_diag, then SOCK_DESTROY for each (kernel 4.5, CONFIG_INET_DIAG_DESTROY;
//! net/ipv4/inet_diag.c). A socket that is ended gets ECONNABORTED.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// SOCK_DIAG_BY_FAMILY and SOCK_DESTROY (include/uapi/linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
/// TCP_ESTABLISHED, TCP_SYN_SENT, TCP_FIN_WAIT1, TCP_CLOSE_WAIT; UDP sockets that are connected are
/// ESTABLISHED too (include/net/tcp_states.h).
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8;
/// TCP_ESTABLISHED and TCP_CLOSE_WAIT: a server's connections that can still be answered.
const SERVED: u32 = 1 << 1 | 1 << 8;
/// TCP_LISTEN.
const LISTENING: u32 = 1 << 10;
/// `struct inet_diag_sockid`, and where it begins in `struct inet_diag_req_v2` and `inet_diag_msg`.
const ID: usize = 48;
const ID_AT_REQUEST: usize = 8;
const ID_AT_ANSWER: usize = 4;
const HEADER: usize = 16;

/// Ends the calling thread's namespace's TCP and connected UDP sockets to `peers`; how many.
///
/// # Errors
/// The kernel does not list sockets, or cannot end them.
pub fn end(peers: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let fd = open()?;
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            let (family, protocol) = (family as u8, protocol as u8);
            let mut ids = sockets(&fd, family, protocol, STATES)?;
            ids.retain(|id| peers.contains(&destination(family, id)));
            for id in ids {
                ask(&fd, DESTROY, REQUEST | ACK, family, protocol, STATES, &id)?;
                match status(&fd)? {
                    None => ended += 1,
                    // It ended by itself meanwhile.
                    Some(libc::ENOENT) => {}
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }
    Ok(ended)
}

/// Ports that something listens at, or did at an earlier look: a server that ends in good order listens no more
/// while it answers what it has.
#[derive(Clone, Debug, Default)]
pub struct Ports(BTreeSet<[u8; 2]>);

/// The TCP connections of the calling thread's namespace that others have made to one of its addresses `own`, at
/// one of `ports`, to which those are added that are listened at now.
///
/// # Errors
/// The kernel does not list sockets.
pub fn inbound(own: &BTreeSet<IpAddr>, ports: &mut Ports) -> io::Result<u64> {
    let fd = open()?;
    let mut listed = [SERVED, LISTENING].map(|_| Vec::new());
    for (states, to) in [SERVED, LISTENING].into_iter().zip(&mut listed) {
        for family in [libc::AF_INET, libc::AF_INET6].map(|f| f as u8) {
            let ids = sockets(&fd, family, libc::IPPROTO_TCP as u8, states)?;
            to.extend(ids.into_iter().map(|id| (family, id)));
        }
    }
    let [served, listening] = listed;
    ports.0.extend(listening.iter().map(|(_, id)| [id[0], id[1]]));
    let is_inbound = |(family, id): &&(u8, [u8; ID])| {
        let (from, to) = (destination(*family, id), source(*family, id));
        ports.0.contains(&[id[0], id[1]]) && own.contains(&to) && from != to
    };
    Ok(served.iter().filter(is_inbound).count() as u64)
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?)
}

fn ask(fd: &OwnedFd, kind: u16, flags: u16, family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + ID_AT_REQUEST + ID);
    message.extend(((HEADER + ID_AT_REQUEST + ID) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and sender's port: the kernel fills in what it needs.
    message.extend([0; 8]);
    message.extend([family, protocol, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    Ok(())
}

/// The messages of one datagram: their type and what follows the header.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let body = rest.get(HEADER..len)?;
        // Aligned to four bytes.
        rest = rest.get((len + 3) & !3..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The error number of an acknowledgement; `None`: it went well.
fn errno(body: &[u8]) -> Option<i32> {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    (code != 0).then_some(-code)
}

fn status(fd: &OwnedFd) -> io::Result<Option<i32>> {
    let mut buffer = vec![0; 8192];
    let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = messages(&buffer[..len]).find(|(kind, _)| *kind == libc::NLMSG_ERROR as u16);
    answer
        .map(|(_, body)| errno(body))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no acknowledgement"))
}

/// The ids of sockets in one of these states.
fn sockets(fd: &OwnedFd, family: u8, protocol: u8, states: u32) -> io::Result<Vec<[u8; ID]>> {
    ask(fd, BY_FAMILY, REQUEST | DUMP, family, protocol, states, &[0; ID])?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..len]) {
            if kind == libc::NLMSG_DONE as u16 {
                return Ok(found);
            }
            if kind == libc::NLMSG_ERROR as u16 {
                return match errno(body) {
                    // A kernel without this family or protocol has no such sockets.
                    Some(libc::ENOENT) | None => Ok(found),
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                };
            }
            let id: Option<[u8; ID]> = body.get(ID_AT_ANSWER..ID_AT_ANSWER + ID).and_then(|b| b.try_into().ok());
            found.extend(id);
        }
    }
}

/// The own end in an id: after the two ports.
fn source(family: u8, id: &[u8; ID]) -> IpAddr {
    address(family, &id[4..20])
}

/// The other end in an id: after the source.
fn destination(family: u8, id: &[u8; ID]) -> IpAddr {
    address(family, &id[20..36])
}

fn address(family: u8, of: &[u8]) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(of);
    if i32::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = octets;
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(octets).to_canonical()
    }
}

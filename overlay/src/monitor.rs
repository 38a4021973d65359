//! Wakes the agent's loop when the host's network changes. An event says only that something did:
//! what is so is read from a dump.

use std::{
    io,
    task::{Context, Poll},
};

use futures::{Stream, stream};
use rtnetlink::sys::{
    AsyncSocket, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use crate::{error::Error, netns::Netns};

// include/uapi/linux/rtnetlink.h: links, neighbours and forwarding entries, addresses, routes.
const ROUTE_GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h): a firewall flushed or reloaded.
const NFTABLES_GROUP: u32 = 7;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
/// NUD_INCOMPLETE, _REACHABLE, _STALE, _DELAY, _PROBE and _FAILED: the life of a neighbour that was learned,
/// which goes on all the time and is nobody's business here.
const NUD_LEARNED: u16 = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20;
const AF_BRIDGE: u8 = 7;

/// Yields whenever links, addresses, routes, permanent neighbours, forwarding entries or nftables of
/// the namespace changed, or when so much did that the kernel could not tell (ENOBUFS). Ends when a
/// socket fails otherwise.
pub(crate) fn changes(netns: &Netns) -> Result<impl Stream<Item = ()> + Send + Unpin + use<>, Error> {
    let runtime = tokio::runtime::Handle::current();
    let opened = netns.run_blocking(move || {
        let _context = runtime.enter();
        Ok([open(NETLINK_ROUTE, &ROUTE_GROUPS)?, open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?])
    })?;
    let sockets = opened.map_err(Error::io("watch the kernel's network events"))?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    Ok(stream::poll_fn(move |cx| {
        let polled = [
            poll(&sockets[0], cx, &mut buffer, is_route_change),
            poll(&sockets[1], cx, &mut buffer, |_| true),
        ];
        if polled.iter().any(|p| matches!(p, Poll::Ready(Some(())))) {
            return Poll::Ready(Some(()));
        }
        if polled.iter().any(Poll::is_ready) {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }))
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
    Ok(socket)
}

/// Empties the socket; ready when something worth waking for was in it.
fn poll(socket: &TokioSocket, cx: &mut Context<'_>, buffer: &mut Vec<u8>, matters: fn(&[u8]) -> bool) -> Poll<Option<()>> {
    let mut wake = false;
    loop {
        buffer.clear();
        match socket.poll_recv(cx, buffer) {
            Poll::Ready(Ok(())) => wake |= matters(buffer),
            Poll::Ready(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => wake = true,
            Poll::Ready(Err(e)) => {
                tracing::warn!(error = %e, "the kernel's network events can not be read any more");
                return Poll::Ready(None);
            }
            Poll::Pending if wake => return Poll::Ready(Some(())),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Looks at each message's header (struct nlmsghdr) and, for neighbours, at what it says (struct
/// ndmsg: family, index, state).
fn is_route_change(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some(message) = next_message(&mut rest) {
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let is_life = match message.get(16..26) {
            Some(body) if matches!(kind, RTM_NEWNEIGH | RTM_DELNEIGH) => {
                body[0] != AF_BRIDGE && u16::from_ne_bytes([body[8], body[9]]) & NUD_LEARNED != 0
            }
            _ => false,
        };
        if !is_life {
            return true;
        }
    }
    false
}

/// Takes one whole message, at least a header long, off the front.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length: [u8; 4] = rest.get(..4)?.try_into().ok()?;
    let length = usize::try_from(u32::from_ne_bytes(length)).ok().filter(|l| *l >= 16)?;
    let message = rest.get(..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(family: u8, state: u16) -> Vec<u8> {
        let mut m = 28u32.to_ne_bytes().to_vec();
        m.extend(RTM_NEWNEIGH.to_ne_bytes());
        m.extend([0; 10]);
        m.extend([family, 0, 0, 0, 1, 0, 0, 0]);
        m.extend(state.to_ne_bytes());
        m.extend([0; 2]);
        m
    }

    #[test]
    fn the_life_of_learned_neighbours_does_not_wake() {
        let stale = neighbour(libc::AF_INET as u8, 0x04);
        assert!(!is_route_change(&stale));
        assert!(!is_route_change(&neighbour(libc::AF_INET as u8, 0x20)), "one that does not answer");
        assert!(is_route_change(&neighbour(libc::AF_INET as u8, 0x80)));
        assert!(is_route_change(&neighbour(AF_BRIDGE, 0x02)));
        assert!(is_route_change(&[stale.clone(), neighbour(libc::AF_INET as u8, 0x80)].concat()));
        for cut in 0..stale.len() {
            assert!(!is_route_change(&stale[..cut]), "{cut}");
        }
    }
}

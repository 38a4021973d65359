//! Wakes the agent's loop when the host's network changes. An event says only that something did:
//! what is so is read from a dump.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, stream};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{
    AsyncSocket, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use crate::{error::Error, known::Known, netns::Netns};

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
/// the namespace changed, or when so much did that the kernel could not tell (ENOBUFS). Of neighbours and
/// entries that are `known`, only what is new counts. Ends when a socket fails otherwise.
pub(crate) fn changes(netns: &Netns, known: Arc<Known>) -> Result<impl Stream<Item = ()> + Send + Unpin + use<>, Error> {
    let runtime = tokio::runtime::Handle::current();
    let opened = netns.run_blocking(move || {
        let _context = runtime.enter();
        Ok([open(NETLINK_ROUTE, &ROUTE_GROUPS)?, open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?])
    })?;
    let sockets = opened.map_err(Error::io("watch the kernel's network events"))?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    // What happened before this was not heard.
    known.doubt();
    Ok(stream::poll_fn(move |cx| {
        let route = |heard: Heard<'_>| match heard {
            Heard::Datagram(datagram) => is_route_change(datagram, &known),
            Heard::Lost => {
                known.doubt();
                true
            }
        };
        let polled = [
            poll(&sockets[0], cx, &mut buffer, route),
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

/// What a socket tells.
enum Heard<'a> {
    /// Whole messages.
    Datagram(&'a [u8]),
    /// There was more than it had room for.
    Lost,
}

/// Empties the socket; ready when something worth waking for was in it.
fn poll(socket: &TokioSocket, cx: &mut Context<'_>, buffer: &mut Vec<u8>, matters: impl Fn(Heard<'_>) -> bool) -> Poll<Option<()>> {
    let mut wake = false;
    loop {
        buffer.clear();
        match socket.poll_recv(cx, buffer) {
            Poll::Ready(Ok(())) => wake |= matters(Heard::Datagram(buffer)),
            Poll::Ready(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => wake |= matters(Heard::Lost),
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
fn is_route_change(datagram: &[u8], known: &Known) -> bool {
    let (mut rest, mut wake) = (datagram, false);
    while let Some(message) = next_message(&mut rest) {
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        wake |= match message.get(16..26) {
            Some(body) if matches!(kind, RTM_NEWNEIGH | RTM_DELNEIGH) => {
                let is_life = body[0] != AF_BRIDGE && u16::from_ne_bytes([body[8], body[9]]) & NUD_LEARNED != 0;
                // One of ours that lives like a learned one is ours no more.
                match agrees(message, known) {
                    Some(agrees) => !agrees,
                    None => !is_life,
                }
            }
            _ => true,
        };
    }
    wake
}

/// As [`Known::agrees`].
fn agrees(message: &[u8], known: &Known) -> Option<bool> {
    let Ok(read) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
        known.doubt();
        return None;
    };
    match read.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => known.agrees(&m, false),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(m)) => known.agrees(&m, true),
        _ => None,
    }
}

/// Takes one whole message, at least a header long, off the front.
pub(crate) fn next_message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
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

    fn wakes(datagram: &[u8]) -> bool {
        is_route_change(datagram, &Known::default())
    }

    #[test]
    fn the_life_of_learned_neighbours_does_not_wake() {
        let stale = neighbour(libc::AF_INET as u8, 0x04);
        assert!(!wakes(&stale));
        assert!(!wakes(&neighbour(libc::AF_INET as u8, 0x20)), "one that does not answer");
        assert!(wakes(&neighbour(libc::AF_INET as u8, 0x80)));
        assert!(wakes(&neighbour(AF_BRIDGE, 0x02)));
        assert!(wakes(&[stale.clone(), neighbour(libc::AF_INET as u8, 0x80)].concat()));
        for cut in 0..stale.len() {
            assert!(!wakes(&stale[..cut]), "{cut}");
        }
    }
}

//! Asks another node's kernel for a sign of life: an ICMP echo over the ingress network, which
//! passes the same VXLAN path as the flows that are sent there.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use async_trait::async_trait;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_millis(400);

/// And where nothing is lost by waiting.
const PATIENT: Duration = Duration::from_millis(900);

/// ICMP types (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;

/// Finds out whether a node's data plane works.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Whether `target` answers to `source`, both in the ingress network.
    async fn probe(&self, source: IpAddr, target: IpAddr) -> bool;
}

/// Probes with ICMP echo, for which it needs CAP_NET_RAW. IPv4, as the ingress network is.
#[derive(Clone, Copy, Debug, Default)]
pub struct IcmpProber;

#[async_trait]
impl Prober for IcmpProber {
    async fn probe(&self, source: IpAddr, target: IpAddr) -> bool {
        let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else {
            return false;
        };
        asked(source, target, None::<fn(&[u8]) -> io::Result<()>>, TIMEOUT).await
    }
}

/// Whether `target` answers to `source`, both in the ingress network, to an echo request that `send` sends: some other
/// way than the kernel would. Needs CAP_NET_RAW.
pub async fn answers(source: Ipv4Addr, target: Ipv4Addr, send: impl FnOnce(&[u8]) -> io::Result<()>) -> bool {
    asked(source, target, Some(send), PATIENT).await
}

async fn asked(source: Ipv4Addr, target: Ipv4Addr, send: Option<impl FnOnce(&[u8]) -> io::Result<()>>, limit: Duration) -> bool {
    match tokio::time::timeout(limit, echo(source, target, send)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%source, %target, %error, "can not probe");
            false
        }
        Err(_) => false,
    }
}

async fn echo(source: Ipv4Addr, target: Ipv4Addr, send: Option<impl FnOnce(&[u8]) -> io::Result<()>>) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking().cloexec(), Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    // Connected, the kernel passes on what comes from the target only.
    socket.connect(&SocketAddr::from((target, 0)).into())?;
    // To the runtime a connected datagram socket is one: what it calls is send(2) and recv(2).
    let socket = UdpSocket::from_std(OwnedFd::from(socket).into())?;
    let mark: [u8; 8] = rand::random();
    let request = echo_request(mark);
    match send {
        Some(send) => send(&request)?,
        None => drop(socket.send(&request).await?),
    }
    let mut buffer = [0u8; 256];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if is_reply(&buffer[..n], mark) {
            return Ok(());
        }
    }
}

/// An echo request whose identifier, sequence number and payload are the mark.
fn echo_request(mark: [u8; 8]) -> [u8; 16] {
    let mut packet = [0u8; 16];
    packet[0] = ECHO;
    packet[4..8].copy_from_slice(&mark[..4]);
    packet[8..16].copy_from_slice(&mark);
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Whether an IPv4 packet is the echo reply to [`echo_request`] of this mark.
fn is_reply(packet: &[u8], mark: [u8; 8]) -> bool {
    let header = packet.first().map_or(0, |b| usize::from(b & 15) * 4);
    match packet.get(header..) {
        Some(icmp) if icmp.len() >= 16 => icmp[0] == ECHO_REPLY && icmp[1] == 0 && icmp[4..8] == mark[..4] && icmp[8..16] == mark,
        _ => false,
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_told_from_all_else() {
        let mark = [1, 2, 3, 4, 5, 6, 7, 8];
        let request = echo_request(mark);
        assert_eq!(checksum(&request), 0, "a packet with its checksum sums up to nothing");
        let mut reply = vec![0x45; 20];
        reply.extend(request);
        assert!(!is_reply(&reply, mark), "that is our own request");
        reply[20] = ECHO_REPLY;
        assert!(is_reply(&reply, mark));
        assert!(!is_reply(&reply, [9; 8]));
        for n in 0..reply.len() {
            assert!(!is_reply(&reply[..n], mark));
        }
    }

    #[tokio::test]
    async fn the_own_kernel_answers_and_nobody_else() {
        let at = |last| IpAddr::from([127, 0, 0, last]);
        assert!(IcmpProber.probe(at(1), at(2)).await, "needs CAP_NET_RAW, as meshd does");
        assert!(!IcmpProber.probe(at(1), [255, 255, 255, 255].into()).await);
        assert!(!IcmpProber.probe(at(1), std::net::Ipv6Addr::LOCALHOST.into()).await);
    }
}

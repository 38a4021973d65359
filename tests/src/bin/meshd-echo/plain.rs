//! The TCP and UDP servers: a line of JSON for every line or datagram.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt::Ipv4PacketInfo},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{Failure, reply::Identity};

/// Answers every connection until accepting fails.
pub async fn serve_tcp(listener: TcpListener, me: Arc<Identity>) -> Result<(), Failure> {
    loop {
        let (stream, client) = listener.accept().await?;
        let local = stream.local_addr()?;
        let line = me.line(client, local);
        // A peer that goes away is its own affair.
        tokio::spawn(async move { lines(stream, line.as_bytes()).await.ok() });
    }
}

async fn lines(mut stream: TcpStream, line: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        for _ in buffer[..n].iter().filter(|b| **b == b'\n') {
            stream.write_all(line).await?;
        }
    }
}

/// Answers every datagram, from the address that it was sent to.
pub async fn serve_udp(socket: UdpSocket, addr: SocketAddr, me: Arc<Identity>) -> Result<(), Failure> {
    if addr.is_ipv6() {
        return serve_udp6(socket, addr, me).await;
    }
    setsockopt(&socket, Ipv4PacketInfo, &true)?;
    loop {
        let (client, to, size) = socket.async_io(Interest::READABLE, || receive(&socket)).await?;
        let line = padded(me.line(client.into(), SocketAddr::from((to, addr.port()))), size);
        // A client that cannot be reached is its own affair.
        let _ = socket
            .async_io(Interest::WRITABLE, || send(&socket, line.as_bytes(), client, to))
            .await;
    }
}

async fn serve_udp6(socket: UdpSocket, addr: SocketAddr, me: Arc<Identity>) -> Result<(), Failure> {
    let mut buffer = [0; 65536];
    loop {
        let (size, client) = socket.recv_from(&mut buffer).await?;
        let _ = socket.send_to(padded(me.line(client, addr), size).as_bytes(), client).await;
    }
}

/// Made as long as what it answers, if it is shorter, by spaces before its end.
fn padded(line: String, size: usize) -> String {
    format!("{:size$}\n", line.trim_end(), size = size.saturating_sub(1))
}

/// One datagram's sender, destination and length.
fn receive(socket: &UdpSocket) -> io::Result<(SocketAddrV4, Ipv4Addr, usize)> {
    let mut buffer = [0; 65536];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut control = cmsg_space!(libc::in_pktinfo);
    let got = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let from = got.address.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    let to = got.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))),
        _ => None,
    });
    let to = to.ok_or_else(|| io::Error::other("a datagram without IP_PKTINFO"))?;
    Ok((SocketAddrV4::new(from.ip(), from.port()), to, got.bytes))
}

fn send(socket: &UdpSocket, line: &[u8], to: SocketAddrV4, from: Ipv4Addr) -> io::Result<usize> {
    let source = libc::in_addr {
        s_addr: u32::from(from).to_be(),
    };
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: source,
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    Ok(sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(line)],
        &control,
        MsgFlags::MSG_DONTWAIT,
        Some(&SockaddrIn::from(to)),
    )?)
}

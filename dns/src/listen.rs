//! Sockets at one gateway address, and the tasks that serve them. [`crate::dns`] opens and closes
//! listeners as tables come and go.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    handler::{Gateway, Shared},
    limit::Limiter,
    tcp, udp,
};

/// What the host itself sends to its own addresses arrives on this device, whatever device has the
/// address.
const LOOPBACK: &str = "lo";

/// A transport that DNS is spoken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Queries and short answers.
    Udp,
    /// Long answers.
    Tcp,
}

/// A gateway address cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}/{} on {dev}{}", if *transport == Transport::Udp { "udp" } else { "tcp" }, hint(source))]
pub struct ListenError {
    /// The gateway address, with the port.
    pub address: SocketAddr,
    /// Over which transport.
    pub transport: Transport,
    /// The device that was to be listened on: the network's bridge, or `lo` for the host's own queries.
    pub dev: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// What the error means here, where the kernel's words do not tell.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(nix::errno::Errno::EADDRINUSE) => ": another program holds it",
        Some(nix::errno::Errno::ENODEV) => ": there is no such device",
        Some(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES) => ": CAP_NET_BIND_SERVICE and CAP_NET_RAW are needed",
        _ => "",
    }
}

/// An open gateway address.
pub(crate) struct Open {
    dev: String,
    /// The device's index when it was opened; a device made anew under the same name has another,
    /// and nothing arrives from it.
    index: u32,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Open {
    /// Binds UDP and TCP at `address` for what comes from `dev` and from the host itself, and serves
    /// them. Nothing stays open if one of them fails.
    pub(crate) fn new(address: SocketAddr, dev: &str, shared: &Arc<Shared>, connections: &Arc<Limiter>) -> Result<Self, ListenError> {
        let fail = |transport, dev: &str, source| ListenError {
            address,
            transport,
            dev: dev.into(),
            source,
        };
        let index = nix::net::if_::if_nametoindex(dev).map_err(|e| fail(Transport::Udp, dev, e.into()))?;
        let mut devices = vec![dev];
        if dev != LOOPBACK {
            devices.push(LOOPBACK);
        }
        let mut sockets = Vec::new();
        for dev in devices {
            let udp = udp_socket(address, dev).map_err(|e| fail(Transport::Udp, dev, e))?;
            let tcp = tcp_listener(address, dev).map_err(|e| fail(Transport::Tcp, dev, e))?;
            sockets.push((udp, tcp));
        }
        let stop = CancellationToken::new();
        let gateway = Arc::new(Gateway {
            shared: shared.clone(),
            address: address.ip(),
        });
        let tasks = sockets
            .into_iter()
            .flat_map(|(udp, tcp)| {
                [
                    tokio::spawn(udp::serve(Arc::new(udp), gateway.clone(), stop.clone())),
                    tokio::spawn(tcp::serve(tcp, gateway.clone(), connections.clone(), stop.clone())),
                ]
            })
            .collect();
        Ok(Self {
            dev: dev.into(),
            index,
            stop,
            tasks,
        })
    }

    /// True if it still hears what comes from `dev`.
    pub(crate) fn serves(&self, dev: &str) -> bool {
        self.dev == dev && nix::net::if_::if_nametoindex(dev) == Ok(self.index) && !self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Closes the sockets and waits until they are closed.
    pub(crate) async fn close(mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            if let Err(error) = task.await {
                tracing::error!(%error, dev = self.dev, "a listener of the service DNS ended badly");
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn socket(address: SocketAddr, dev: &str, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // The address may appear on the device a moment later.
    match address.ip() {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind_device(Some(dev.as_bytes()))?;
    Ok(socket)
}

/// Without SO_REUSEADDR, which on UDP lets two programs hold one address, and one of them starve.
fn udp_socket(address: SocketAddr, dev: &str) -> io::Result<UdpSocket> {
    let socket = socket(address, dev, Type::DGRAM, Protocol::UDP)?;
    // Bursts at container starts; the kernel's default holds about 250 queries.
    socket.set_recv_buffer_size(1 << 20)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// With SO_REUSEADDR, which on TCP only passes over closed connections that linger.
fn tcp_listener(address: SocketAddr, dev: &str) -> io::Result<TcpListener> {
    let socket = socket(address, dev, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

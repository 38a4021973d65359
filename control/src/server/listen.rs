//! Connections to a manager: accepted, shaken hands with, counted, and named.
//!
//! Nothing a peer does holds up the accept loop: every handshake is a task of its own with a time
//! limit, and connections beyond the limits are closed at once. A connection of a node stands as long as its
//! certificate would be let in: each looks at that anew when the trusted roots change.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream as _;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{identity::IdentityStore, pki::NodeName, tls};

/// How much a manager takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of nodes.
    pub connections: usize,
    /// Connections without a certificate: hosts that join.
    pub anonymous: usize,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// Time for a handshake, from accept on.
    pub handshake_timeout: Duration,
    /// How long a connection without a certificate may last.
    pub anonymous_lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // 10,000 nodes with a connection for calls and one for the watch, and room for returns.
            connections: 32_768,
            anonymous: 128,
            handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
            anonymous_lifetime: Duration::from_secs(30),
        }
    }
}

/// Who is at the other end; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// What its certificate says; `None`: it has none.
    pub name: Option<NodeName>,
    /// Its address.
    pub addr: SocketAddr,
}

/// A connection whose handshake is done.
pub struct PeerStream {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    /// When an anonymous connection ends.
    end: Option<Pin<Box<Sleep>>>,
    /// That of a node ends when its chain leads to none of the trusted roots any more.
    trust: Option<Trust>,
    _permit: OwnedSemaphorePermit,
}

/// What a connection of a node was let in by.
struct Trust {
    identity: Arc<IdentityStore>,
    /// Changes of the roots since the handshake began.
    changes: WatchStream<()>,
}

impl PeerStream {
    /// Whether the peer would be let in now, if that has changed.
    fn is_forgotten(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(trust) = &mut self.trust else { return false };
        let mut changed = false;
        while let Poll::Ready(Some(())) = Pin::new(&mut trust.changes).poll_next(cx) {
            changed = true;
        }
        let chain = self.tls.get_ref().1.peer_certificates().unwrap_or_default();
        changed && !tls::lets_in(&trust.identity, chain)
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.is_forgotten(cx) {
            tracing::debug!(addr = %self.peer.addr, "connection ended: its certificate is of a root that is not trusted any more");
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that is gone can not be told: the connection is over either way.
        let _ = ready!(Pin::new(&mut self.tls).poll_shutdown(cx));
        Poll::Ready(Ok(()))
    }
}

/// What each handshake needs.
struct Door {
    acceptor: TlsAcceptor,
    identity: Arc<IdentityStore>,
    limits: Limits,
    nodes: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    handshakes: Semaphore,
}

/// Accepts connections until `stop`; those that are ready come out of the receiver.
pub fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    identity: Arc<IdentityStore>,
    limits: Limits,
    stop: CancellationToken,
) -> mpsc::Receiver<io::Result<PeerStream>> {
    let (ready, out) = mpsc::channel(64);
    let door = Arc::new(Door {
        acceptor: tls.into(),
        identity,
        limits,
        nodes: Arc::new(Semaphore::new(limits.connections)),
        anonymous: Arc::new(Semaphore::new(limits.anonymous)),
        handshakes: Semaphore::new(limits.handshakes),
    });
    // Handshakes that have not begun wait in a task each; beyond this many, peers are turned away.
    let waiting = Arc::new(Semaphore::new(limits.handshakes.saturating_mul(16)));
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        loop {
            let (tcp, addr) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or memory, or a peer that went away: none of it is for good.
                    tracing::warn!(%error, "can not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(turn) = waiting.clone().try_acquire_owned() else {
                tracing::debug!(%addr, "too many handshakes: connection closed");
                continue;
            };
            let (door, ready, stop) = (door.clone(), ready.clone(), stop.clone());
            tokio::spawn(stop.run_until_cancelled_owned(async move {
                let shaken = timeout(door.limits.handshake_timeout, door.shake(tcp, addr)).await;
                drop(turn);
                match shaken {
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(why)) => tracing::debug!(%addr, why, "connection refused"),
                    Err(_) => tracing::debug!(%addr, "the handshake took too long"),
                }
            }));
        }
    }));
    out
}

impl Door {
    async fn shake(&self, tcp: TcpStream, addr: SocketAddr) -> Result<PeerStream, String> {
        let _turn = self.handshakes.acquire().await.map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let changes = self.identity.trust_changes();
        let tls = self.acceptor.accept(tcp).await.map_err(|e| e.to_string())?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let name = leaf
            .map(|leaf| NodeName::of_member(leaf, self.identity.file().cluster))
            .transpose()
            .map_err(|e| e.to_string())?;
        let room = if name.is_some() { &self.nodes } else { &self.anonymous };
        let permit = room.clone().try_acquire_owned().map_err(|_| "too many connections".to_owned())?;
        let end = name
            .is_none()
            .then(|| Box::pin(sleep_until(Instant::now() + self.limits.anonymous_lifetime)));
        let trust = name.is_some().then(|| Trust {
            identity: self.identity.clone(),
            changes: WatchStream::from_changes(changes),
        });
        Ok(PeerStream {
            tls,
            peer: Peer { name, addr },
            end,
            trust,
            _permit: permit,
        })
    }
}

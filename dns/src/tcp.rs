//! Serves one TCP listener. A connection is a task of its own with a bound on everything: how long
//! it may be idle, how long it may take over a message, how many queries it may have under way.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_server::{
    net::{runtime::TokioTime, xfer::Protocol},
    server::RequestHandler,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::Mutex,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    handler::Gateway,
    limit::{Limiter, Permit},
    query::{self, Incoming},
    reply::{Reply, Way},
    stats::count,
};

/// How long a connection may take until its next message is complete (RFC 7766 §6.2.3 leaves it to us).
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// Queries of one connection under way; more wait in the socket.
const PIPELINED: usize = 16;
/// After a failed accept (no file descriptors left), which would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then closes the listener and its connections.
pub(crate) async fn serve(listener: TcpListener, gateway: Arc<Gateway>, limiter: Arc<Limiter>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "serving a TCP connection ended badly");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, asker)) => match limiter.acquire(asker.ip()) {
                    Some(permit) => _ = connections.spawn(connection(stream, asker, gateway.clone(), permit)),
                    None => count(&gateway.shared.counters.connections_refused),
                },
                Err(error) => {
                    tracing::debug!(%error, "accepting a TCP connection failed");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

/// Answers one connection's queries as they come, each answer when it is there (RFC 7766 §6.2.1.1).
async fn connection(stream: TcpStream, asker: SocketAddr, gateway: Arc<Gateway>, _permit: Permit) {
    let (mut reader, writer) = stream.into_split();
    let way = Way::Tcp(Arc::new(Mutex::new(Some(writer))));
    // Each tells whether the connection is still good.
    let mut queries: JoinSet<bool> = JoinSet::new();
    loop {
        while queries.len() >= PIPELINED {
            if !matches!(queries.join_next().await, Some(Ok(true))) {
                return;
            }
        }
        // Not a branch of a select: a message half read must not be lost.
        let message = match timeout(IDLE, message(&mut reader)).await {
            Ok(Ok(message)) => message,
            // It wants to send no more, but may well wait for its answers.
            Ok(Err(_)) => break,
            Err(_) => {
                tracing::debug!(%asker, "closed an idle TCP connection");
                break;
            }
        };
        let way = way.clone();
        match query::read(message, asker, Protocol::Tcp) {
            Incoming::Drop => {
                count(&gateway.shared.counters.malformed);
                break;
            }
            Incoming::Reject(bytes) => {
                count(&gateway.shared.counters.malformed);
                queries.spawn(async move { way.send(&bytes).await.is_ok() });
            }
            Incoming::Query(request) => {
                let gateway = gateway.clone();
                let reply = Reply::new(way.clone(), &request, gateway.shared.counters.clone());
                queries.spawn(async move {
                    gateway.handle_request::<_, TokioTime>(&request, reply).await;
                    way.is_good().await
                });
            }
        }
        while let Some(ended) = queries.try_join_next() {
            if !matches!(ended, Ok(true)) {
                return;
            }
        }
    }
    while queries.join_next().await.is_some() {}
}

/// RFC 1035 §4.2.2: two bytes of length, then the message.
async fn message(reader: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = reader.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    reader.read_exact(&mut message).await?;
    Ok(message)
}

//! Serves one UDP socket: every datagram a task of its own, so that a slow resolver holds nobody up.

use std::{sync::Arc, time::Duration};

use hickory_server::{
    net::{runtime::TokioTime, xfer::Protocol},
    server::RequestHandler,
};
use tokio::{net::UdpSocket, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    handler::Gateway,
    query::{self, Incoming},
    reply::{Reply, Way},
    stats::count,
};

/// Queries are short; what is longer is cut by the kernel and refused as malformed.
const LONGEST_QUERY: usize = 4096;
/// After an error of the socket, so that one that stays does not take a whole CPU.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`. Queries under way then are dropped, and the socket is closed on return.
pub(crate) async fn serve(socket: Arc<UdpSocket>, gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut queries = JoinSet::new();
    let mut buffer = vec![0; LONGEST_QUERY];
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = queries.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "answering a query ended badly");
                }
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, asker)) => {
                    let way = Way::Udp(socket.clone(), asker);
                    match query::read(buffer[..length].to_vec(), asker, Protocol::Udp) {
                        Incoming::Drop => count(&gateway.shared.counters.malformed),
                        Incoming::Reject(bytes) => {
                            count(&gateway.shared.counters.malformed);
                            queries.spawn(async move { _ = way.send(&bytes).await });
                        }
                        Incoming::Query(request) => {
                            let gateway = gateway.clone();
                            let reply = Reply::new(way, &request, gateway.shared.counters.clone());
                            queries.spawn(async move { _ = gateway.handle_request::<_, TokioTime>(&request, reply).await });
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "receiving a query failed");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    queries.shutdown().await;
}

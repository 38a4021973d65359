//! HTTP on a TCP port, with bounds: what the metrics' and the catalog's listeners share.

use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A header of a request takes no longer: the port may be open to others.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// Serves `router` on at most `most` connections at a time, until `stop`.
pub async fn serve(router: Router, listener: TcpListener, most: usize, stop: CancellationToken) {
    let service = hyper_util::service::TowerToHyperService::new(router);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_TIME);
    let mut open = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                // Hanging up on one more is kinder than running out of descriptors.
                Ok((stream, _)) if open.len() >= most => drop(stream),
                Ok((stream, _)) => {
                    let connection = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service.clone());
                    // A client that hangs up is no news.
                    open.spawn(async move { drop(connection.await) });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "a connection was not taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

//! HTTP on a TCP port, with bounds: what the metrics' and the catalog's listeners share.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

/// A header of a request takes no longer: the port may be open to others.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Nor does taking an answer, which costs memory until then.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Bytes of a request's line and headers.
const HEADER_SIZE: usize = 64 << 10;

/// Serves `router` on at most `most` connections at a time, until `stop`.
pub async fn serve(router: Router, listener: TcpListener, most: usize, stop: CancellationToken) {
    let service = hyper_util::service::TowerToHyperService::new(router);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_TIME);
    http.max_buf_size(HEADER_SIZE);
    let mut open = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                // Hanging up on one more is kinder than running out of descriptors.
                Ok((stream, _)) if open.len() >= most => drop(stream),
                Ok((stream, _)) => {
                    let connection = http.serve_connection(hyper_util::rt::TokioIo::new(Timely::new(stream, ANSWER_TIME)), service.clone());
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

/// A stream that fails when what is written is not taken in time. The time of all that is written between two flushes is
/// one; hyper flushes when it has written what it has.
struct Timely<S> {
    stream: S,
    limit: Duration,
    /// Ends the time, which began with the first write that had to wait.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Timely<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, late: None }
    }

    /// What a write gives, in time.
    fn written(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let limit = self.limit;
        // Also when a little was taken: who takes a little at a time is late as well.
        if (wrote.is_pending() || self.late.is_some())
            && self.late.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        wrote
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timely<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, wrote)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.late = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timely<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn who_does_not_take_an_answer_in_time_is_left() {
        let (near, mut far) = duplex(4);
        let mut near = Timely::new(near, Duration::from_millis(50));
        near.write_all(b"1234").await.unwrap();
        assert_eq!(near.write_all(b"5").await.unwrap_err().kind(), ErrorKind::TimedOut);

        // One that takes a byte at a time is late, too.
        let slowly = async {
            while far.read_u8().await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let (near_end, _) = duplex(4);
        near = Timely::new(std::mem::replace(&mut near.stream, near_end), near.limit);
        let answer = near.write_all(&[0; 64]);
        tokio::select! {
            () = slowly => panic!("the connection ended"),
            wrote = answer => assert_eq!(wrote.unwrap_err().kind(), ErrorKind::TimedOut),
        }

        // Each answer has its time.
        let (near, mut far) = duplex(4);
        let mut near = Timely::new(near, Duration::from_millis(100));
        let taking = async { while far.read_u8().await.is_ok() {} };
        let giving = async {
            for _ in 0..3 {
                near.write_all(&[0; 64]).await.unwrap();
                near.flush().await.unwrap();
                sleep(Duration::from_millis(60)).await;
            }
        };
        tokio::select! {
            () = taking => panic!("the connection ended"),
            () = giving => {}
        }
    }
}

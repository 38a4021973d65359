//! The HTTP/1.1 server: who am I, big downloads, digests of uploads.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::{
    Failure,
    noise::{Noise, hex},
    reply::Identity,
};

/// Longest answer to /bytes/N.
const LARGEST: u64 = 1 << 32;

type Answer = Response<Either<Full<Bytes>, Noise>>;

/// Answers every connection until accepting fails.
pub async fn serve(listener: TcpListener, me: Arc<Identity>) -> Result<(), Failure> {
    loop {
        let (stream, client) = listener.accept().await?;
        let local = stream.local_addr()?;
        // Small answers must not wait for the peer's acknowledgement.
        stream.set_nodelay(true)?;
        let me = me.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &me, client, local));
            // A peer that goes away in the middle is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, me: &Identity, client: SocketAddr, local: SocketAddr) -> Result<Answer, Infallible> {
    let path = request.uri().path();
    Ok(match (request.method(), path.strip_prefix("/bytes/")) {
        (&Method::GET, Some(len)) => match len.parse() {
            Ok(len) if len <= LARGEST => noise(len).await,
            _ => text(
                StatusCode::BAD_REQUEST,
                format!("{len:?} is not a number of bytes up to {LARGEST}\n"),
            ),
        },
        (&Method::GET | &Method::HEAD, None) => json(me.line(client, local)),
        (&Method::POST | &Method::PUT, _) => digest(request).await,
        (method, _) => text(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{method} is not known here: use GET or POST\n"),
        ),
    })
}

async fn noise(len: u64) -> Answer {
    let Ok(digest) = tokio::task::spawn_blocking(move || Noise::digest(len)).await else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the digest could not be computed\n".to_owned());
    };
    let mut answer = Response::new(Either::Right(Noise::new(len)));
    answer
        .headers_mut()
        .insert("sha256", HeaderValue::from_str(&digest).expect("hex is a header value"));
    answer
}

async fn digest(request: Request<Incoming>) -> Answer {
    let mut body = request.into_body();
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.into_data().unwrap_or_default();
                bytes += data.len();
                hash.update(&data);
            }
            Err(e) => return text(StatusCode::BAD_REQUEST, format!("the body broke off after {bytes} bytes: {e}\n")),
        }
    }
    json(format!(
        "{}\n",
        serde_json::json!({ "bytes": bytes, "sha256": hex(&hash.finalize()) })
    ))
}

fn json(line: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::from(line)));
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(status: StatusCode, line: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::from(line)));
    *answer.status_mut() = status;
    answer
}

//! The catalog as Consul's HTTP API tells it, for programs that read Consul. Read-only, off unless
//! `--consul-http` says where, answered from the ledger.
//!
//! Paths and fields are those of <https://developer.hashicorp.com/consul/api-docs>. What is an instance of
//! what is [`catalog`]'s; here are requests, blocking queries and their indexes. An index belongs to one
//! question: it is the revision at which its answer changed last, as far as this meshd has looked, so a change of
//! one service answers nobody who waits for another, and has no answer made for whoever asked for one service, or for
//! nodes. After a restart every index is the present revision.
//!
//! Clients are not meshd's work: one answer is made at a time, off the threads that everything else runs on, with a
//! rest as long as it took, and answers take a bounded room until they are read.

mod catalog;
mod indexes;
mod question;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::HOST};
use mesh_core::Id;
use tokio::{
    net::TcpListener,
    sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    indexes::Indexes,
    question::{Question, Wrong},
};
use crate::{Exit, app::App, ledger::View, tcp};

/// Connections at a time: every blocking query holds one.
const CONNECTIONS: usize = 512;
/// Changes that come in quick succession are looked at once.
const QUICK: Duration = Duration::from_millis(50);
/// How long one who waits does not look again: at least and, where answers take their time, at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// KiB of answers that clients have not read yet.
const ROOM: u32 = 64 << 10;

/// Listens where the operator said.
///
/// # Errors
/// The address can not be listened at.
pub async fn listen(at: Option<SocketAddr>) -> Result<Option<TcpListener>, Exit> {
    let Some(addr) = at else { return Ok(None) };
    let listener = TcpListener::bind(addr).await;
    listener
        .map(Some)
        .map_err(|e| Exit::new(format!("cannot serve the catalog at {addr}: {e} (see --consul-http)")))
}

/// Serves until `stop`.
pub async fn serve(app: Arc<App>, listener: TcpListener, stop: CancellationToken) {
    let consul = Consul {
        app,
        indexes: Arc::default(),
        next: Arc::new(Mutex::new(Instant::now())),
        room: Arc::new(Semaphore::new(ROOM as usize)),
        is_local: listener.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback()),
        stop: stop.clone(),
    };
    let router = Router::new().fallback(answer).with_state(Arc::new(consul));
    tcp::serve(router, listener, CONNECTIONS, stop).await;
}

struct Consul {
    app: Arc<App>,
    indexes: Arc<Indexes>,
    /// Who has it makes an answer, not before this time.
    next: Arc<Mutex<Instant>>,
    /// In KiB; see [`Unread`].
    room: Arc<Semaphore>,
    /// Only programs of this host are to ask.
    is_local: bool,
    stop: CancellationToken,
}

async fn answer(State(consul): State<Arc<Consul>>, Query(params): Query<Vec<(String, String)>>, request: Request) -> Response {
    if consul.is_local && !is_for_here(request.headers()) {
        return Wrong::new(
            StatusCode::FORBIDDEN,
            "this catalog is for programs of its host: ask for it at an IP address or localhost",
        )
        .into_response();
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Wrong::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "meshd's catalog is read here and written by meshctl and container runtimes",
        )
        .into_response();
    }
    let asked = Question::read(request.uri().path(), &params);
    let answered = match asked {
        Ok(question) => consul.answer(question).await,
        Err(wrong) => Err(wrong),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// The host that is asked is given as an address or as localhost. A page that has its own name resolve to a loopback
/// address (DNS rebinding) would otherwise read the answers by the browser of somebody at this host.
fn is_for_here(headers: &HeaderMap) -> bool {
    headers.get_all(HOST).iter().all(|host| {
        let Ok(host) = host.to_str() else { return false };
        let named = host.split_once(':').map_or((host, "0"), |(name, port)| (name, port));
        host.parse::<SocketAddr>().is_ok()
            || host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
            || (named.0.eq_ignore_ascii_case("localhost") && named.1.parse::<u16>().is_ok())
    })
}

/// An answer, and the turn in which it was made.
struct Made {
    body: String,
    index: u64,
    /// What it was made of.
    read: Read,
    turn: OwnedMutexGuard<Instant>,
}

/// Tells what an answer was made of from what it would be made of now: cluster, node and [`catalog::read`]. `None`: everything.
type Read = Option<(Option<Id>, Id, u64)>;

fn read(view: &View, own: Id, question: &Question) -> Read {
    let digest = catalog::read(&view.objects, own, question)?;
    Some((view.head.cluster, own, digest))
}

/// An answer that has room until the connection has let go of it.
struct Unread {
    body: String,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        self.body.as_bytes()
    }
}

impl Consul {
    async fn answer(&self, question: Question) -> Result<Response, Wrong> {
        let stopping = || Wrong::new(StatusCode::SERVICE_UNAVAILABLE, "meshd is stopping");
        let question = Arc::new(question);
        let mut ledger = self.app.ledger.subscribe();
        let end = Instant::now() + question.wait.mul_f64(rand::random_range(1.0..1.0 + 1.0 / 16.0));
        loop {
            ledger.mark_unchanged();
            let asked = Instant::now();
            let made = tokio::select! {
                () = self.stop.cancelled() => return Err(stopping()),
                made = self.make(question.clone()) => made?,
            };
            if question.index != Some(made.index) || Instant::now() >= end {
                return self.response(made).await;
            }
            // Nothing of it is kept while it waits, but what it was made of: least of all the turn.
            let read = made.read;
            drop(made);
            let next = Instant::now() + pause(asked.elapsed());
            tokio::select! {
                () = self.stop.cancelled() => return Err(stopping()),
                () = sleep_until(end) => {}
                changed = self.changed(&mut ledger, next, &question, read) => changed.map_err(|_| stopping())?,
            }
        }
    }

    /// Waits, until `next` at least, for a change of something that the answer to `question` was made of. Those of
    /// other objects cost a look at what it is made of, and no answer.
    async fn changed(
        &self,
        ledger: &mut watch::Receiver<u64>,
        mut next: Instant,
        question: &Question,
        before: Read,
    ) -> Result<(), watch::error::RecvError> {
        loop {
            changed(ledger, next).await?;
            ledger.mark_unchanged();
            let own = self.app.membership.node().await;
            if before.is_none() || own.and_then(|own| read(&self.app.ledger.view(), own, question)) != before {
                return Ok(());
            }
            next = Instant::now() + PAUSE.0;
        }
    }

    /// Makes the answer when it is its turn.
    async fn make(&self, question: Arc<Question>) -> Result<Made, Wrong> {
        let mut turn = self.next.clone().lock_owned().await;
        sleep_until(*turn).await;
        let own = self.app.membership.node().await;
        let (app, indexes) = (self.app.clone(), self.indexes.clone());
        let work = move || {
            let begun = Instant::now();
            let view = app.ledger.view();
            // An empty list before there is a full one would have templates rendered empty.
            let Some(own) = own.filter(|_| view.head.revision > 0) else {
                return Err(Wrong::new(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader"));
            };
            let answer = catalog::answer(&view.objects, own, &question)?;
            let (revision, read) = (view.head.revision, read(&view, own, &question));
            // A change copies the maps as long as somebody has the view.
            drop(view);
            let body = answer.to_string();
            let index = indexes.of(&question.key, body.as_bytes(), revision);
            *turn = Instant::now() + begun.elapsed();
            Ok(Made { body, index, read, turn })
        };
        let made = tokio::task::spawn_blocking(work).await;
        made.unwrap_or_else(|e| Err(Wrong::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer was made: {e}"))))
    }

    /// An answer to be sent, once there is room for it; the next one is not made before that.
    async fn response(&self, made: Made) -> Result<Response, Wrong> {
        let Made { body, index, turn, .. } = made;
        let kib = u32::try_from(body.len().div_ceil(1 << 10)).unwrap_or(ROOM).min(ROOM);
        let room = self.room.clone().acquire_many_owned(kib).await;
        drop(turn);
        let room = room.map_err(|e| Wrong::new(StatusCode::SERVICE_UNAVAILABLE, e.to_string()))?;
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("x-consul-index", index.to_string()),
            ("x-consul-knownleader", "true".to_owned()),
            ("x-consul-lastcontact", "0".to_owned()),
        ];
        Ok((headers, Bytes::from_owner(Unread { body, _room: room })).into_response())
    }
}

/// Waits for a change, and then for those that come with it, until `next` at least.
async fn changed(ledger: &mut watch::Receiver<u64>, next: Instant) -> Result<(), watch::error::RecvError> {
    ledger.changed().await?;
    sleep_until(next.max(Instant::now() + QUICK)).await;
    Ok(())
}

/// How long one who waits does not look again, by how long it took to look.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(4).clamp(PAUSE.0, PAUSE.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_for_here() {
        let is_ok = |hosts: &[&str]| {
            let host = |h: &&str| (HOST, http::HeaderValue::from_str(h).unwrap());
            is_for_here(&hosts.iter().map(host).collect())
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:8500",
            "[::1]",
            "[::1]:8500",
            "192.0.2.1",
            "localhost",
            "LocalHost:8500",
        ] {
            assert!(is_ok(&[host]), "{host}");
        }
        for host in [
            "",
            "a.example",
            "a.example:8500",
            "localhost.a.example",
            "127.0.0.1.a.example",
            "localhost:a",
        ] {
            assert!(!is_ok(&[host]), "{host}");
        }
        assert!(is_ok(&[]), "HTTP/1.0");
        assert!(!is_ok(&["localhost", "a.example"]));
    }

    #[test]
    fn who_waits_looks_less_often_where_that_takes_long() {
        let millis = |took| pause(Duration::from_millis(took)).as_millis();
        assert_eq!([0, 100, 10_000].map(millis), [250, 400, 1000]);
    }
}

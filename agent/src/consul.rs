//! The catalog as Consul's HTTP API tells it, for programs that read Consul: consul-template, Prometheus,
//! Traefik and the like. Read-only, off unless `--consul-http` says where, answered from the ledger.
//!
//! Paths and fields are those of <https://developer.hashicorp.com/consul/api-docs>. What is an instance of
//! what is [`catalog`]'s; here are requests, blocking queries and their indexes. An index belongs to one
//! question: it is the revision at which its answer changed last, as far as this meshd has looked, so a change of
//! one service wakes nobody who waits for another. After a restart every index is the present revision.

mod catalog;
mod question;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::question::{Question, Wrong};
use crate::{Exit, app::App, tcp};

/// Connections at a time: every blocking query holds one.
const CONNECTIONS: usize = 512;
/// Questions whose answers are remembered: a hash and an index each.
const QUESTIONS: usize = 4096;
/// Changes that come in quick succession are looked at once.
const QUICK: Duration = Duration::from_millis(50);

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
        indexes: Indexes::default(),
        stop: stop.clone(),
    };
    let router = Router::new().fallback(answer).with_state(Arc::new(consul));
    tcp::serve(router, listener, CONNECTIONS, stop).await;
}

struct Consul {
    app: Arc<App>,
    indexes: Indexes,
    stop: CancellationToken,
}

/// At which revision each question's answer changed last.
#[derive(Default)]
struct Indexes(Mutex<HashMap<String, (u64, u64)>>);

impl Indexes {
    /// The index of an answer that is `body` at `revision`; never 0, which Consul's clients take for none.
    fn of(&self, key: &str, body: &[u8], revision: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let hash = hasher.finish();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(key) {
            // A ledger of another cluster begins anew.
            Some((same, index)) if *same == hash && *index <= revision.max(1) => *index,
            _ => {
                if known.len() >= QUESTIONS {
                    known.clear();
                }
                known.insert(key.to_owned(), (hash, revision.max(1)));
                revision.max(1)
            }
        }
    }
}

async fn answer(State(consul): State<Arc<Consul>>, Query(params): Query<Vec<(String, String)>>, request: Request) -> Response {
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

impl Consul {
    async fn answer(&self, question: Question) -> Result<Response, Wrong> {
        let mut ledger = self.app.ledger.subscribe();
        let end = Instant::now() + question.wait.mul_f64(rand::random_range(1.0..1.0 + 1.0 / 16.0));
        loop {
            ledger.mark_unchanged();
            let own = self.app.membership.node().await;
            let (body, revision) = {
                let view = self.app.ledger.view();
                // An empty list before there is a full one would have templates rendered empty.
                let Some(own) = own.filter(|_| view.head.revision > 0) else {
                    return Err(Wrong::new(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader"));
                };
                (catalog::answer(&view.objects, own, &question)?, view.head.revision)
            };
            let body = body.to_string();
            let index = self.indexes.of(&question.key, body.as_bytes(), revision);
            if question.index != Some(index) || Instant::now() >= end {
                let headers = [
                    ("content-type", "application/json".to_owned()),
                    ("x-consul-index", index.to_string()),
                    ("x-consul-knownleader", "true".to_owned()),
                    ("x-consul-lastcontact", "0".to_owned()),
                ];
                return Ok((headers, body).into_response());
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(Wrong::new(StatusCode::SERVICE_UNAVAILABLE, "meshd is stopping")),
                () = sleep_until(end) => {}
                changed = ledger.changed() => match changed {
                    Ok(()) => sleep(QUICK).await,
                    Err(_) => return Err(Wrong::new(StatusCode::SERVICE_UNAVAILABLE, "meshd is stopping")),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_the_revision_of_the_last_change_and_never_none() {
        let indexes = Indexes::default();
        assert_eq!(indexes.of("a", b"x", 0), 1);
        assert_eq!(indexes.of("a", b"x", 7), 1, "nothing has changed for this question");
        assert_eq!(indexes.of("a", b"y", 8), 8);
        assert_eq!(indexes.of("b", b"y", 9), 9);
        assert_eq!(indexes.of("a", b"y", 10), 8);
        assert_eq!(
            indexes.of("a", b"y", 3),
            3,
            "another cluster: the index goes back, and who waits is answered"
        );
        for n in 0..=QUESTIONS {
            indexes.of(&n.to_string(), b"", 11);
        }
        assert_eq!(indexes.of("a", b"y", 12), 12, "forgotten");
    }
}

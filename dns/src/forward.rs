//! Passes names outside the mesh on to the host's resolvers, and lives with their failures.
//!
//! A resolver that does not answer within a step is not given up: the next one is asked as well, and
//! the first good answer wins. What did not answer is asked last for a while. Called by
//! [`crate::handler`].

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hickory_proto::op::ResponseCode;
use tokio::time::{Instant, timeout_at};

use crate::{
    answer::Answer,
    limit::Limiter,
    resolv::{ResolvConf, Resolvers},
    upstream::{self, AskError, Question},
};

/// Shorter than the 5 s that askers wait (resolv.conf(5)), so that they get an answer at least.
const PATIENCE: Duration = Duration::from_millis(4500);
/// How long a resolver that did not answer is asked last.
const SHUNNED: Duration = Duration::from_secs(10);
/// Queries forwarded at the same time, in all and for one asker.
const AT_ONCE: usize = 1024;
const AT_ONCE_PER_ASKER: usize = 256;

/// The host's resolvers as seen from here.
pub(crate) struct Forwarder {
    conf: ResolvConf,
    limiter: Arc<Limiter>,
    /// Resolvers that did not answer, with the time until which they are asked last.
    shunned: Mutex<HashMap<SocketAddr, Instant>>,
    turn: AtomicUsize,
}

/// Why nothing came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ForwardError {
    /// Too many are being forwarded already.
    Busy,
    /// There is no resolver, or none that answers.
    Failed,
}

impl Forwarder {
    pub(crate) fn new(conf: ResolvConf) -> Self {
        Self {
            conf,
            limiter: Limiter::new(AT_ONCE, AT_ONCE_PER_ASKER),
            shunned: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Asks the resolvers `question` for `asker`; never those for which `is_ours` holds.
    ///
    /// NXDOMAIN is an answer. SERVFAIL, REFUSED and the like are passed back only if no other
    /// resolver knows better.
    pub(crate) async fn ask(&self, asker: IpAddr, question: &Question, is_ours: impl Fn(IpAddr) -> bool) -> Result<Answer, ForwardError> {
        let _permit = self.limiter.acquire(asker).ok_or(ForwardError::Busy)?;
        let resolvers = self.conf.current();
        let mut left = self.order(&resolvers, is_ours).into_iter();
        let deadline = Instant::now() + PATIENCE;
        let mut tries: FuturesUnordered<BoxFuture<'_, (SocketAddr, Result<Answer, AskError>)>> = FuturesUnordered::new();
        let mut second_best = None;
        // Those who answered, and know nothing.
        let mut heard = Vec::new();
        loop {
            let asked = left.find(|server| !heard.contains(server));
            if let Some(server) = asked {
                tries.push(upstream::ask(server, question).map(move |result| (server, result)).boxed());
            }
            // With nobody left to ask and nothing to pass back, only waiting for those asked remains.
            let wait = asked.is_some() || second_best.is_some();
            let until = if wait {
                deadline.min(Instant::now() + resolvers.timeout)
            } else {
                deadline
            };
            match timeout_at(until, tries.next()).await {
                Ok(Some((server, Ok(answer)))) => {
                    self.shunned().remove(&server);
                    if is_final(&answer) {
                        return Ok(answer);
                    }
                    heard.push(server);
                    second_best.get_or_insert(answer);
                }
                Ok(Some((server, Err(error)))) => {
                    tracing::debug!(%server, %error, "a resolver failed");
                    self.shun(server);
                }
                Ok(None) if asked.is_none() => break,
                Ok(None) => (),
                Err(_) => {
                    asked.into_iter().for_each(|server| self.shun(server));
                    if asked.is_none() || Instant::now() >= deadline {
                        break;
                    }
                }
            }
        }
        second_best.ok_or(ForwardError::Failed)
    }

    /// Whom to ask in turn: those who answered last time first, everyone as often as resolv.conf says.
    fn order(&self, resolvers: &Resolvers, is_ours: impl Fn(IpAddr) -> bool) -> Vec<SocketAddr> {
        let mut servers: Vec<SocketAddr> = resolvers.servers.iter().filter(|s| !is_ours(s.ip())).copied().collect();
        if resolvers.rotate && !servers.is_empty() {
            let first = self.turn.fetch_add(1, Relaxed) % servers.len();
            servers.rotate_left(first);
        }
        let now = Instant::now();
        let mut shunned = self.shunned();
        shunned.retain(|_, until| *until > now);
        servers.sort_by_key(|s| shunned.contains_key(s));
        servers.repeat(resolvers.attempts as usize)
    }

    fn shun(&self, server: SocketAddr) {
        self.shunned().insert(server, Instant::now() + SHUNNED);
    }

    fn shunned(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        // Every change is one call: a panic elsewhere leaves the map whole.
        self.shunned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// False for what another resolver may know better.
fn is_final(answer: &Answer) -> bool {
    matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

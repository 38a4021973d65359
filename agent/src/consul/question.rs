//! A request of Consul's API, read: what is asked, filtered by what, and how long the answer may wait.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::catalog::DATACENTER;

/// How long a blocking query waits unless it says so, and at most (Consul's own).
const WAIT: Duration = Duration::from_secs(300);
const LONGEST: Duration = Duration::from_secs(600);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `/v1/status/leader`
    Leader,
    /// `/v1/status/peers`
    Peers,
    /// `/v1/agent/self`
    AgentSelf,
    /// `/v1/agent/services`
    AgentServices,
    /// `/v1/catalog/datacenters`
    Datacenters,
    /// `/v1/catalog/nodes`
    Nodes,
    /// `/v1/catalog/services`
    Services,
    /// `/v1/catalog/service/NAME`
    Service(String),
    /// `/v1/health/service/NAME`
    Health(String),
    /// `/v1/health/state/STATE`
    State(String),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is asked.
    pub ask: Ask,
    /// Only instances with all these tags.
    pub tags: Vec<String>,
    /// Only nodes with all these labels.
    pub node_meta: Vec<(String, String)>,
    /// Only instances whose checks all pass.
    pub passing: bool,
    /// Blocks while the answer's index is this one.
    pub index: Option<u64>,
    /// For how long.
    pub wait: Duration,
    /// All of that but the last two: what an index belongs to.
    pub key: String,
}

/// Why there is no answer, as Consul says it: a status and a line of text.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    status: StatusCode,
    why: String,
}

impl Wrong {
    pub fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        (self.status, self.why + "\n").into_response()
    }
}

impl Question {
    /// Reads a path, as it came, and the parameters, decoded.
    ///
    /// # Errors
    /// What is not served, or can not be read.
    pub fn read(path: &str, params: &[(String, String)]) -> Result<Self, Wrong> {
        let bad = |why: String| Wrong::new(StatusCode::BAD_REQUEST, why);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let ask = match parts[..] {
            ["v1", "status", "leader"] => Ask::Leader,
            ["v1", "status", "peers"] => Ask::Peers,
            ["v1", "agent", "self"] => Ask::AgentSelf,
            ["v1", "agent", "services"] => Ask::AgentServices,
            ["v1", "catalog", "datacenters"] => Ask::Datacenters,
            ["v1", "catalog", "nodes"] => Ask::Nodes,
            ["v1", "catalog", "services"] => Ask::Services,
            // Names of services are DNS labels: nothing in them is ever percent-encoded.
            ["v1", "catalog", "service", name] => Ask::Service(name.to_ascii_lowercase()),
            ["v1", "health", "service", name] => Ask::Health(name.to_ascii_lowercase()),
            ["v1", "health", "state", state] if ["any", "passing", "warning", "critical"].contains(&state) => Ask::State(state.to_owned()),
            _ => {
                return Err(Wrong::new(
                    StatusCode::NOT_FOUND,
                    format!("{path} is not served: meshd has Consul's catalog, health and agent/self, for reading"),
                ));
            }
        };
        let mut question = Self {
            ask,
            tags: Vec::new(),
            node_meta: Vec::new(),
            passing: false,
            index: None,
            wait: WAIT,
            key: String::new(),
        };
        for (name, value) in params {
            match name.as_str() {
                "index" => {
                    let index = value.parse().map_err(|_| bad(format!("index {value:?} is not a number")))?;
                    // 0 asks for an answer at once.
                    question.index = Some(index).filter(|i| *i > 0);
                }
                "wait" => question.wait = wait(value).ok_or_else(|| bad(format!("wait {value:?} is not a time like 30s or 5m")))?,
                "passing" => question.passing = !["false", "0", "f"].contains(&value.as_str()),
                "tag" => question.tags.push(value.clone()),
                "node-meta" => {
                    let (key, value) = value.split_once(':').unwrap_or((value, ""));
                    question.node_meta.push((key.to_owned(), value.to_owned()));
                }
                "dc" if !value.is_empty() && value != DATACENTER => {
                    return Err(Wrong::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        format!("No path to datacenter: there is only {DATACENTER}"),
                    ));
                }
                "filter" if !value.is_empty() => {
                    return Err(bad("filter expressions are not served: use tag, node-meta and passing".into()));
                }
                // How to print, how fresh, with which token: nothing here depends on it.
                _ => {}
            }
        }
        question.key = format!(
            "{:?} {:?} {:?} {}",
            question.ask, question.tags, question.node_meta, question.passing
        );
        Ok(question)
    }
}

/// A duration as Go's clients write it: 10s, 500ms, 5m, 1h, 1m30s.
fn wait(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[letters..];
        whole = whole.saturating_add(Duration::try_from_secs_f64(number * unit).ok()?);
    }
    // None given: the default, as in Consul.
    Some(if whole.is_zero() { WAIT } else { whole.min(LONGEST) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str, query: &[(&str, &str)]) -> Result<Question, Wrong> {
        let params: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Question::read(path, &params)
    }

    #[test]
    fn requests_are_read() {
        let q = read(
            "/v1/health/service/Web",
            &[("passing", ""), ("index", "7"), ("wait", "10s"), ("tag", "a"), ("stale", "")],
        )
        .unwrap();
        assert_eq!(
            (q.ask.clone(), q.passing, q.index, q.wait),
            (Ask::Health("web".into()), true, Some(7), Duration::from_secs(10))
        );
        let later = read("/v1/health/service/web", &[("passing", "1"), ("index", "9"), ("tag", "a")]).unwrap();
        assert_eq!(q.key, later.key, "the same question again");
        assert_ne!(q.key, read("/v1/health/service/web", &[("tag", "a")]).unwrap().key);
        assert!(!read("/v1/health/service/web", &[("passing", "false")]).unwrap().passing);
        assert_eq!(read("/v1/catalog/services", &[("index", "0")]).unwrap().index, None);
        for (path, query, status) in [
            ("/v1/kv/a", &[][..], 404),
            ("/v1/catalog/service/", &[], 404),
            ("/", &[], 404),
            ("/v1/health/state/great", &[], 404),
            ("/v1/catalog/services", &[("index", "x")], 400),
            ("/v1/catalog/services", &[("wait", "10 minutes")], 400),
            ("/v1/catalog/services", &[("filter", "a == b")], 400),
            ("/v1/catalog/services", &[("dc", "elsewhere")], 500),
        ] {
            assert_eq!(read(path, query).unwrap_err().status.as_u16(), status, "{path} {query:?}");
        }
    }

    #[test]
    fn waits_are_gos() {
        let secs = |text: &str| wait(text).map(|d| d.as_secs_f64());
        assert_eq!(secs("1m30s"), Some(90.0));
        assert_eq!(secs("500ms"), Some(0.5));
        assert_eq!(secs("1.5s"), Some(1.5));
        assert_eq!(secs("2h"), Some(600.0), "ten minutes at most");
        assert_eq!(secs("0s"), Some(300.0));
        for bad in ["10", "s", "-1s", "1d", "1e400s", "1..5s", "ä"] {
            assert_eq!(secs(bad), None, "{bad}");
        }
    }
}

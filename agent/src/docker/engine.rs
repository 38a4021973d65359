//! Asks a container engine on this host, at its Docker-compatible API, about its containers. Called by
//! [`crate::sandbox`] for what users name, and by [`super::learn`] for what the engine attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer};
use tokio::{net::UnixStream, time::timeout};

const ANSWER_BYTES: usize = 16 << 20;
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(5);
/// What an engine gives a container that does not say, before it kills it.
const STOP_TIME: Duration = Duration::from_secs(10);
/// One that says that it wants to be waited for without end.
const STOP_TIME_MOST: Duration = Duration::from_secs(24 * 3600);

/// An engine that answers.
pub struct Engine {
    /// What people call it.
    pub name: &'static str,
    socket: PathBuf,
}

/// Why an engine did not say.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens at its socket.
    #[error("nobody answers at {}", .0.display())]
    Absent(PathBuf),
    /// No answer in time.
    #[error("no answer within {} s", ANSWER_TIME.as_secs())]
    Slow,
    /// The connection broke, or what came is no HTTP.
    #[error("the connection failed")]
    Http(#[source] hyper::Error),
    /// The answer is too large or was cut off.
    #[error("the answer could not be read: {0}")]
    Body(String),
    /// It could not do what was asked.
    #[error("it answered {0}")]
    Status(http::StatusCode),
    /// The answer is not what the API documents.
    #[error("the answer is not understood")]
    Json(#[from] serde_json::Error),
}

/// A container, as far as it matters here (Docker Engine API, "Inspect a container").
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Container {
    /// Its name, with a slash first.
    name: String,
    state: State,
    config: Settings,
    host_config: HostConfig,
    network_settings: NetworkSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    pid: u32,
    started_at: String,
    health: Option<Health>,
}

/// What its own check says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Health {
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Settings {
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    stop_signal: Option<String>,
    /// Seconds; below 0: without end.
    stop_timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(deserialize_with = "nullable")]
    networks: BTreeMap<String, Attachment>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attachment {
    #[serde(rename = "EndpointID")]
    endpoint: String,
    #[serde(rename = "Aliases", deserialize_with = "nullable")]
    aliases: Vec<String>,
}

/// A container in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Listed {
    id: String,
    network_settings: NetworkSettings,
}

impl Listed {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The engine's ids of its endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.network_settings.endpoints()
    }
}

impl NetworkSettings {
    fn endpoints(&self) -> impl Iterator<Item = &str> {
        let all = self.networks.values().map(|a| a.endpoint.as_str());
        all.filter(|id| !id.is_empty())
    }
}

/// A network (Docker Engine API, "Inspect a network"). A list of networks has no containers in it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Net {
    id: String,
    driver: String,
    #[serde(deserialize_with = "nullable")]
    containers: BTreeMap<String, Member>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    #[serde(rename = "EndpointID")]
    endpoint: String,
}

/// Go's nil lists and maps are written as null.
pub(super) fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    Option::deserialize(d).map(Option::unwrap_or_default)
}

impl Container {
    /// Its first process; `None` while it does not run.
    pub fn pid(&self) -> Option<u32> {
        Some(self.state.pid).filter(|pid| *pid > 0)
    }

    /// Its name, as a DNS label if that can be had by replacing what Docker allows beyond.
    pub fn name(&self) -> String {
        label(self.name.trim_start_matches('/'))
    }

    /// The engine's ids of its endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.network_settings.endpoints()
    }

    /// It does not share another's network.
    pub fn has_own_network(&self) -> bool {
        !self.host_config.network_mode.starts_with("container:")
    }

    /// Its own check does not fail, and has succeeded, as far as it has any.
    pub fn is_well(&self) -> bool {
        let status = self.state.health.as_ref().map_or("none", |h| h.status.as_str());
        !matches!(status, "starting" | "unhealthy")
    }

    /// Whether a signal asks it to stop: its own stop signal, or one that ends most programs but gives them
    /// time. SIGKILL is over before anybody hears of it. One that has another's network does not take
    /// that with it.
    pub fn stops_by(&self, number: i32) -> bool {
        let own = self.config.stop_signal.as_deref().and_then(signal);
        let asks = [own, Some(Signal::SIGTERM as i32), Some(Signal::SIGINT as i32)].contains(&Some(number));
        asks && number != Signal::SIGKILL as i32 && self.has_own_network()
    }

    /// Whether it has been running since before that time.
    pub fn ran_at(&self, at: Timestamp) -> bool {
        self.state.started_at.parse::<Timestamp>().is_ok_and(|started| started <= at)
    }

    /// What it is given between being asked to stop and being killed, unless it is stopped with another.
    pub fn stop_time(&self) -> Duration {
        match self.config.stop_timeout.map(u64::try_from) {
            None => STOP_TIME,
            Some(Ok(seconds)) => Duration::from_secs(seconds).clamp(STOP_TIME, STOP_TIME_MOST),
            Some(Err(_)) => STOP_TIME_MOST,
        }
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.config.labels
    }

    /// Its further names in the network of one of its endpoints.
    pub fn aliases(&self, endpoint: &str) -> Vec<String> {
        let of = self.network_settings.networks.values().find(|a| a.endpoint == endpoint);
        of.into_iter().flat_map(|a| &a.aliases).map(|a| label(a)).collect()
    }
}

/// The number of a signal as engines write it: a number, or a name with or without `SIG`, also a real-time one
/// (moby's pkg/signal).
pub(super) fn signal(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse::<i32>().ok().filter(|n| (0..=30).contains(n)),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(34 + offset(rest, '+')?);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return Some(64 - offset(rest, '-')?);
    }
    let number = name.parse().ok();
    number.or_else(|| format!("SIG{name}").parse::<Signal>().ok().map(|s| s as i32))
}

fn label(name: &str) -> String {
    name.replace(['_', '.'], "-")
}

impl Engine {
    /// The engine that listens at `socket`.
    pub fn at(name: &'static str, socket: &Path) -> Self {
        Self {
            name,
            socket: socket.to_owned(),
        }
    }

    /// A container by name or id; `None` when there is none.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn container(&self, container: &str) -> Result<Option<Container>, EngineError> {
        self.get(&format!("/containers/{container}/json")).await
    }

    /// Ids of running containers by the engine's ids of their endpoints.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn endpoints(&self) -> Result<BTreeMap<String, String>, EngineError> {
        let listed: Option<Vec<Listed>> = self.get("/containers/json").await?;
        let mut out = BTreeMap::new();
        for container in listed.unwrap_or_default() {
            out.extend(container.endpoints().map(|id| (id.to_owned(), container.id.clone())));
        }
        Ok(out)
    }

    /// The running containers whose own checks fail, or have not succeeded yet.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn unwell(&self) -> Result<Vec<Listed>, EngineError> {
        // {"health":["starting","unhealthy"]}
        let listed: Option<Vec<Listed>> = self
            .get("/containers/json?filters=%7B%22health%22%3A%5B%22starting%22%2C%22unhealthy%22%5D%7D")
            .await?;
        Ok(listed.unwrap_or_default())
    }

    /// Ids of all endpoints in its networks of that driver, also those of containers that do not run yet;
    /// `None` when it has no such network.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn endpoints_of(&self, driver: &str) -> Result<Option<BTreeSet<String>>, EngineError> {
        let listed: Option<Vec<Net>> = self.get("/networks").await?;
        let mut out = None;
        for net in listed.unwrap_or_default().into_iter().filter(|n| n.driver == driver) {
            // It may have been removed since.
            let net: Option<Net> = self.get(&format!("/networks/{}", net.id)).await?;
            let members = net.unwrap_or_default().containers.into_values();
            out.get_or_insert_with(BTreeSet::new).extend(members.map(|m| m.endpoint));
        }
        Ok(out)
    }

    pub(super) async fn connect(&self) -> Result<UnixStream, EngineError> {
        match timeout(ANSWER_TIME, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            _ => Err(EngineError::Absent(self.socket.clone())),
        }
    }

    async fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<Option<T>, EngineError> {
        let stream = self.connect().await?;
        let Some(body) = timeout(ANSWER_TIME, get(stream, path)).await.map_err(|_| EngineError::Slow)?? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&body)?))
    }
}

async fn get(stream: UnixStream, path: &str) -> Result<Option<Bytes>, EngineError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(EngineError::Http)?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|e| EngineError::Body(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(EngineError::Http)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
    connection.abort();
    match status {
        http::StatusCode::NOT_FOUND => Ok(None),
        s if !s.is_success() => Err(EngineError::Status(s)),
        _ => body.map(|b| Some(b.to_bytes())).map_err(|e| EngineError::Body(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_engine_says() {
        let told = r#"{"Name": "/web_1.a", "State": {"Pid": 7, "Paused": false}, "Config": {"Labels": null},
            "NetworkSettings": {"Networks": {"ov": {"EndpointID": "e1", "Aliases": ["web", "0123456789ab"]},
                                             "none": {"EndpointID": "", "Aliases": null}}}}"#;
        let c: Container = serde_json::from_str(told).unwrap();
        assert_eq!((c.name().as_str(), c.pid()), ("web-1-a", Some(7)));
        assert_eq!(c.aliases("e1"), ["web", "0123456789ab"]);
        assert!(c.aliases("e2").is_empty() && c.labels().is_empty());
        assert!(c.is_well() && c.has_own_network());
        for (status, is_well) in [("none", true), ("healthy", true), ("starting", false), ("unhealthy", false)] {
            let told = format!(r#"{{"State": {{"Health": {{"Status": "{status}", "FailingStreak": 0, "Log": null}}}}}}"#);
            assert_eq!(serde_json::from_str::<Container>(&told).unwrap().is_well(), is_well, "{status}");
        }
        let stopped: Container = serde_json::from_str(r#"{"Name": "/x", "State": {"Pid": 0}}"#).unwrap();
        assert_eq!(stopped.pid(), None);
    }

    #[test]
    fn reads_signals_as_engines_write_them() {
        for (text, number) in [
            ("15", 15),
            ("SIGTERM", 15),
            ("term", 15),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGRTMIN", 34),
        ] {
            assert_eq!(signal(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "SIGNONE", "RTMIN+99", "RTMIN3"] {
            assert_eq!(signal(text), None, "{text}");
        }
    }
}

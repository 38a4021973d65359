//! What is asked of meshd: its REST interface ([`mesh_api::rest`]), call by call.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_api::rest::{
    AttachRequest, AttachmentView, DetachReply, DetachRequest, EndpointView, NetworkView, StatusView,
    paths::{self, at, escape},
};
use mesh_core::objects::Labels;
use serde::{Serialize, de::DeserializeOwned};

use crate::http::{Error, ask};

/// The host's meshd, until a deadline.
#[derive(Debug)]
pub struct Meshd {
    socket: PathBuf,
    deadline: Instant,
}

impl Meshd {
    /// The one behind `socket`; whatever is asked ends within `limit` from now.
    pub fn new(socket: &Path, limit: Duration) -> Self {
        Self {
            socket: socket.to_owned(),
            deadline: Instant::now() + limit,
        }
    }

    /// When all waiting ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Attaches; returns once packets, names and balancing work.
    pub fn attach(&self, request: &AttachRequest) -> Result<AttachmentView, Error> {
        self.post(paths::ATTACHMENTS, request)
    }

    /// This host's endpoints that have all these labels; `inside` also looks into the containers.
    pub fn attachments(&self, labels: &Labels, inside: bool) -> Result<Vec<AttachmentView>, Error> {
        let labels = serde_json::to_string(labels).map_err(Error::Json)?;
        self.get(&format!("{}?labels={}&inside={inside}", paths::ATTACHMENTS, escape(&labels)))
    }

    /// Detaches what has all these labels, and waits until the interfaces are gone.
    pub fn detach(&self, labels: Labels) -> Result<DetachReply, Error> {
        let at_once = false;
        self.post(paths::ATTACHMENTS_DETACH, &DetachRequest { labels, at_once })
    }

    /// As [`Self::detach`], without waiting: the runtime removes the namespace next.
    pub fn let_go(&self, labels: Labels) -> Result<DetachReply, Error> {
        let at_once = true;
        self.post(paths::ATTACHMENTS_DETACH, &DetachRequest { labels, at_once })
    }

    /// How the host is.
    pub fn status(&self) -> Result<StatusView, Error> {
        self.get(paths::STATUS)
    }

    /// A network, by id or name.
    pub fn network(&self, name: &str) -> Result<NetworkView, Error> {
        self.get(&at(paths::NETWORK, name))
    }

    /// An endpoint of any host, by id.
    pub fn endpoint(&self, id: &str) -> Result<EndpointView, Error> {
        self.get(&at(paths::ENDPOINT, id))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        read(&ask(&self.socket, "GET", path, b"", self.deadline)?)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(Error::Json)?;
        read(&ask(&self.socket, "POST", path, &body, self.deadline)?)
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(Error::Json)
}

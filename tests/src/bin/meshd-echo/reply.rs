//! The line that every server answers with.

use std::net::SocketAddr;

use serde::Serialize;

/// Who this process is.
pub struct Identity {
    /// What gethostname(2) says; the container's own name.
    hostname: String,
    /// `MESH_ENDPOINT`, or else the host name.
    endpoint: String,
}

#[derive(Serialize)]
struct Reply<'a> {
    hostname: &'a str,
    /// The peer's address as this process sees it, without its port.
    client: String,
    client_port: u16,
    /// The connection's address and port on this side.
    local: String,
    endpoint: &'a str,
}

impl Identity {
    /// Reads host name and environment once.
    pub fn from_environment() -> Self {
        let hostname = nix::unistd::gethostname()
            .map(|h| h.to_string_lossy().into_owned())
            .unwrap_or_default();
        let endpoint = std::env::var("MESH_ENDPOINT").unwrap_or_else(|_| hostname.clone());
        Self { hostname, endpoint }
    }

    /// JSON and a newline.
    pub fn line(&self, client: SocketAddr, local: SocketAddr) -> String {
        let reply = Reply {
            hostname: &self.hostname,
            client: client.ip().to_string(),
            client_port: client.port(),
            local: local.to_string(),
            endpoint: &self.endpoint,
        };
        let mut line = serde_json::to_string(&reply).expect("strings and numbers always become JSON");
        line.push('\n');
        line
    }
}

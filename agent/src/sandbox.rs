//! From what a user calls a container to its network namespace.
//!
//! `netns:NAME-or-PATH`, `pid:N`, or a name or id that Docker's or Podman's engine on this host
//! knows. Called by the local API before an endpoint is asked for.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use mesh_core::{Refusal, objects::Sandbox};
use tokio::{net::UnixStream, time::timeout};

/// Sockets of the engines' Docker-compatible API, in the order in which they are asked.
const ENGINES: [(&str, &str); 2] = [("docker", "/var/run/docker.sock"), ("podman", "/run/podman/podman.sock")];
const ANSWER_BYTES: usize = 4 << 20;
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// A container as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its namespace.
    pub sandbox: Sandbox,
    /// A name for its endpoint when the user gives none.
    pub name: String,
}

/// Finds the namespace of `container`.
///
/// # Errors
/// Malformed for what can not be a container, not found for one that does not exist here.
pub async fn find(container: &str) -> Result<Found, Refusal> {
    if let Some(netns) = container.strip_prefix("netns:") {
        let path = netns_path(netns)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        return open(container, &path, name);
    }
    if let Some(pid) = container.strip_prefix("pid:") {
        let pid = pid.parse::<u32>().ok().filter(|p| *p > 0);
        let pid = pid.ok_or_else(|| Refusal::malformed(format!("container {container:?} is not a process: use pid:N, like pid:4711")))?;
        return open(container, &PathBuf::from(format!("/proc/{pid}/ns/net")), format!("pid-{pid}"));
    }
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if container.is_empty() || container.len() > 128 || !container.bytes().all(fine) {
        return Err(Refusal::malformed(format!(
            "container {container:?} is not a name: use a Docker or Podman name or id, netns:NAME-or-PATH, or pid:N"
        )));
    }
    engine(container).await
}

fn netns_path(netns: &str) -> Result<PathBuf, Refusal> {
    let path = if netns.starts_with('/') {
        PathBuf::from(netns)
    } else {
        Path::new("/run/netns").join(netns)
    };
    let plain = !netns.starts_with('/') && (netns.is_empty() || netns.contains('/') || matches!(netns, "." | ".."));
    if plain || netns.contains('\0') || netns.len() > 4096 {
        return Err(Refusal::malformed(format!(
            "network namespace {netns:?} is neither a name (as in ip netns) nor an absolute path"
        )));
    }
    Ok(path)
}

fn open(container: &str, path: &Path, name: String) -> Result<Found, Refusal> {
    let inode = mesh_overlay::netns::inode(&path.to_string_lossy()).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Refusal::not_found(format!(
            "no container {container:?} on this host: {} does not exist",
            path.display()
        )),
        _ => Refusal::other(format!("{} is not a network namespace that can be opened: {e}", path.display())),
    })?;
    let own = mesh_overlay::netns::inode("/proc/self/ns/net");
    if own.is_ok_and(|own| own == inode) {
        return Err(Refusal::other(format!(
            "container {container:?} has no network namespace of its own: it shares the host's"
        )));
    }
    let cookie = mesh_overlay::netns::cookie(&path.to_string_lossy())
        .map_err(|e| Refusal::other(format!("{} cannot be entered: {e}", path.display())))?;
    let sandbox = Sandbox {
        container: container.to_owned(),
        netns: path.display().to_string(),
        inode,
        cookie,
    };
    Ok(Found { sandbox, name })
}

async fn engine(container: &str) -> Result<Found, Refusal> {
    let mut asked = Vec::new();
    for (engine, socket) in ENGINES {
        let Ok(Ok(stream)) = timeout(ANSWER_TIME, UnixStream::connect(socket)).await else {
            continue;
        };
        asked.push(engine);
        match timeout(ANSWER_TIME, inspect(stream, container)).await {
            Ok(Ok(Some((pid, name)))) => {
                return open(container, &PathBuf::from(format!("/proc/{pid}/ns/net")), name);
            }
            Ok(Ok(None)) => {}
            Ok(Err(e)) => return Err(Refusal::other(format!("{engine} did not say what {container:?} is: {e}"))),
            Err(_) => {
                return Err(Refusal::other(format!(
                    "{engine} did not answer within {} s",
                    ANSWER_TIME.as_secs()
                )));
            }
        }
    }
    Err(Refusal::not_found(match asked.as_slice() {
        [] => format!("no container {container:?}: neither Docker nor Podman answers on this host; use netns:NAME-or-PATH or pid:N"),
        _ => format!(
            "no running container {container:?} on this host (asked {}); use its name or id, netns:NAME-or-PATH, or pid:N",
            asked.join(" and ")
        ),
    }))
}

/// Process id and name of a running container (Docker Engine API, "Inspect a container").
async fn inspect(stream: UnixStream, container: &str) -> Result<Option<(u32, String)>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("/containers/{container}/json"))
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
    connection.abort();
    if status == http::StatusCode::NOT_FOUND {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(format!("it answered {status}").into());
    }
    let value: serde_json::Value = serde_json::from_slice(&body)?;
    let pid = value["State"]["Pid"]
        .as_u64()
        .and_then(|p| u32::try_from(p).ok())
        .filter(|p| *p > 0);
    let name = value["Name"]
        .as_str()
        .unwrap_or(container)
        .trim_start_matches('/')
        .replace(['_', '.'], "-");
    Ok(pid.map(|pid| (pid, name)))
}

#[cfg(test)]
mod tests {
    use mesh_core::RefusalKind;

    use super::*;

    #[tokio::test]
    async fn says_what_is_wrong_with_a_container() {
        for bad in [
            "",
            "a b",
            "netns:",
            "netns:../etc",
            "netns:..",
            "netns:a/b",
            "pid:",
            "pid:0",
            "pid:-1",
            "pid:x",
            "../x",
        ] {
            let e = find(bad).await.unwrap_err();
            assert_eq!(e.kind, RefusalKind::Malformed, "{bad}: {e}");
        }
        for none in ["netns:no-such-namespace", "netns:/no/such/path", "pid:4194304"] {
            let e = find(none).await.unwrap_err();
            assert_eq!(e.kind, RefusalKind::NotFound, "{none}: {e}");
        }
        let own = find(&format!("pid:{}", std::process::id())).await.unwrap_err();
        assert!(own.message.contains("shares the host's"), "{own}");
        let file = find("netns:/etc/hostname").await.unwrap_err();
        assert_eq!(file.kind, RefusalKind::Other, "{file}");
    }
}

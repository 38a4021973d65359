//! From what a user calls a container to its network namespace.
//!
//! `netns:NAME-or-PATH`, `pid:N`, or a name or id that Docker's or Podman's engine on this host
//! knows. Called by the local API before an endpoint is asked for.

use std::path::{Path, PathBuf};

use mesh_core::{
    Refusal,
    objects::{Place, Sandbox},
};
use mesh_overlay::occupied::Occupied;

use crate::{
    docker::engine::{Container, Engine, EngineError},
    execute::chain,
};

/// A container as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its namespace.
    pub sandbox: Sandbox,
    /// A name for its endpoint when the user gives none.
    pub name: String,
    /// A name for its interface when the user gives none and other interfaces are there.
    pub ifname: Option<String>,
}

/// Finds the namespace of `container`. The first of `engines` that knows it counts.
///
/// # Errors
/// Malformed for what can not be a container, not found for one that does not exist here.
pub async fn find(container: &str, engines: &[Engine]) -> Result<Found, Refusal> {
    if let Some(netns) = container.strip_prefix("netns:") {
        let path = netns_path(netns)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        return with_routes(open(container, &path, name)?).await;
    }
    if let Some(pid) = container.strip_prefix("pid:") {
        let pid = pid.parse::<u32>().ok().filter(|p| *p > 0);
        let pid = pid.ok_or_else(|| Refusal::malformed(format!("container {container:?} is not a process: use pid:N, like pid:4711")))?;
        let found = open(container, &PathBuf::from(format!("/proc/{pid}/ns/net")), format!("pid-{pid}"))?;
        return with_routes(found).await;
    }
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if container.is_empty() || container.len() > 128 || !container.bytes().all(fine) {
        return Err(Refusal::malformed(format!(
            "container {container:?} is not a name: use a Docker or Podman name or id, netns:NAME-or-PATH, or pid:N"
        )));
    }
    engine(container, engines).await
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
    let place = Place {
        container: container.to_owned(),
        netns: path.display().to_string(),
        ..Place::default()
    };
    Ok(Found {
        sandbox: Sandbox::new(inode, place),
        name,
        ifname: None,
    })
}

/// Another program may have given it a default route, which stays.
async fn with_routes(mut found: Found) -> Result<Found, Refusal> {
    occupied(&mut found).await?;
    Ok(found)
}

/// Takes note of what only a look into the namespace tells.
async fn occupied(found: &mut Found) -> Result<Occupied, Refusal> {
    let Place { container, netns, .. } = &*found.sandbox;
    let inside = Occupied::of(netns).await;
    let inside = inside.map_err(|e| Refusal::other(format!("the network of {container:?} cannot be read: {}", chain(&e))))?;
    (found.sandbox.routed, found.sandbox.cookie) = (inside.routed, inside.cookie);
    Ok(inside)
}

async fn engine(container: &str, engines: &[Engine]) -> Result<Found, Refusal> {
    let mut asked = Vec::new();
    for engine in engines {
        let found = match engine.container(container).await {
            Err(EngineError::Absent(_)) => continue,
            found => found,
        };
        asked.push(engine.name);
        let found = found.map_err(|e| Refusal::other(format!("{} did not say what {container:?} is: {}", engine.name, chain(&e))))?;
        let Some(pid) = found.as_ref().and_then(Container::pid) else {
            continue;
        };
        let name = found.map_or_else(|| container.to_owned(), |c| c.name());
        let mut found = open(container, &PathBuf::from(format!("/proc/{pid}/ns/net")), name)?;
        // The engine has given it interfaces of its own.
        let inside = occupied(&mut found).await?;
        found.ifname = Some(inside.free_name());
        return Ok(found);
    }
    Err(Refusal::not_found(match asked.as_slice() {
        [] => format!("no container {container:?}: neither Docker nor Podman answers on this host; use netns:NAME-or-PATH or pid:N"),
        _ => format!(
            "no running container {container:?} on this host (asked {}); use its name or id, netns:NAME-or-PATH, or pid:N",
            asked.join(" and ")
        ),
    }))
}

#[cfg(test)]
mod tests {
    use mesh_core::RefusalKind;

    use super::*;

    #[tokio::test]
    async fn says_what_is_wrong_with_a_container() {
        let engines = [Engine::at("docker", Path::new("/nonexistent/docker.sock"))];
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
            let e = find(bad, &engines).await.unwrap_err();
            assert_eq!(e.kind, RefusalKind::Malformed, "{bad}: {e}");
        }
        for none in ["netns:no-such-namespace", "netns:/no/such/path", "pid:4194304"] {
            let e = find(none, &engines).await.unwrap_err();
            assert_eq!(e.kind, RefusalKind::NotFound, "{none}: {e}");
        }
        let own = find(&format!("pid:{}", std::process::id()), &engines).await.unwrap_err();
        assert!(own.message.contains("shares the host's"), "{own}");
        let file = find("netns:/etc/hostname", &engines).await.unwrap_err();
        assert_eq!(file.kind, RefusalKind::Other, "{file}");
    }
}

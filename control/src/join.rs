//! Joining a cluster: a token traded for an identity.
//!
//! Called by the agent for `meshctl join`. The joiner makes its key, speaks to the manager that it was
//! pointed to, and trusts it only if it shows the CA whose digest the token carries.

use std::{net::IpAddr, time::Duration};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use mesh_api::{
    CONTROL_PORT,
    proto::{EnrollReply, EnrollRequest, enrollment_client::EnrollmentClient},
};
use mesh_core::{
    Id, Refusal, RefusalKind,
    command::NewNode,
    objects::{HostRoute, Node, Role},
};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::client::TlsStream;
use tonic::{Status, transport::Channel};

use crate::{
    client::{describe, endpoint},
    identity::{Identity, NodeFile},
    pki,
    server::refusal_of,
    tls::{self, ConnectError, JoinCheck},
    token::Token,
};

/// Time for the whole of it.
const BUDGET: Duration = Duration::from_secs(15);
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for the manager's answer: it may have to wait for a leader first.
const ANSWER: Duration = Duration::from_secs(10);

/// What a host says of itself when it joins.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Its host name.
    pub hostname: String,
    /// Address of its control plane.
    pub addr: IpAddr,
    /// Port of its control plane.
    pub control_port: u16,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
    /// MTU in bytes of the link that carries the VTEP.
    pub underlay_mtu: u32,
    /// Routes that it has without meshd.
    pub host_routes: Vec<HostRoute>,
}

/// A host that is now a node.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// What [`crate::identity::IdentityStore::create`] keeps.
    pub identity: Identity,
    /// The node as the cluster has it.
    pub node: Node,
}

/// `HOST[:PORT]` with the port filled in.
///
/// # Errors
/// Malformed, when it is neither.
pub fn manager_addr(text: &str) -> Result<String, Refusal> {
    let wrong = || {
        Refusal::malformed(format!(
            "{text:?} is not the address of a manager: use HOST or HOST:PORT, like 192.168.77.11:{CONTROL_PORT}"
        ))
    };
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(std::net::SocketAddr::new(ip, CONTROL_PORT).to_string());
    }
    if text.parse::<std::net::SocketAddr>().is_ok_and(|a| a.port() != 0) {
        return Ok(text.to_owned());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?),
        None => (text, CONTROL_PORT),
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.is_empty() || !host.bytes().all(fits) {
        Err(wrong())
    } else {
        Ok(format!("{host}:{port}"))
    }
}

/// Joins the cluster of the manager at `addr` (`HOST[:PORT]`). Nothing is written here.
///
/// # Errors
/// One line that says whether the token is malformed, nobody or somebody else listens there, the
/// cluster is another one, the secret is wrong, or the cluster refuses the node.
pub fn enroll<'a>(token: &'a str, addr: &'a str, joining: Joining) -> BoxFuture<'a, Result<Enrolled, Refusal>> {
    Box::pin(async move {
        let token: Token = token.parse()?;
        let addr = manager_addr(addr)?;
        let made = |e: pki::PkiError| Refusal::other(e.to_string());
        let key = pki::new_key().map_err(made)?;
        let csr = pki::signing_request(&key).map_err(made)?;
        let new = NewNode {
            // Id and role are the manager's to fill in: from the key and from the secret.
            id: Id::default(),
            role: Role::Worker,
            hostname: joining.hostname.clone(),
            addr: joining.addr,
            control_port: joining.control_port,
            data_path_addr: joining.data_path_addr,
            underlay_mtu: joining.underlay_mtu,
            host_routes: joining.host_routes.clone(),
        };
        let node = serde_json::to_vec(&new).map_err(|e| Refusal::other(format!("can not encode the request: {e}")))?;
        let request = EnrollRequest {
            secret: token.secret.clone(),
            csr,
            node,
        };
        let end = Instant::now() + BUDGET;
        loop {
            // Repeated with the same key, it is the same node that joins.
            match attempt(&token, &addr, request.clone()).await {
                Ok(reply) => return finish(&token, &addr, &joining, key, reply),
                Err((refusal, again)) if !again || Instant::now() >= end => return Err(refusal),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    })
}

/// One try; the error says whether another may help.
async fn attempt(token: &Token, addr: &str, request: EnrollRequest) -> Result<EnrollReply, (Refusal, bool)> {
    let config = tls::joiner_config(token.digest).map_err(|e| (Refusal::other(e.to_string()), false))?;
    let (config, verifier) = config;
    // The name is not looked at: the verifier has the cluster's id from the certificate.
    let stream = match tls::connect(addr, config, tls::server_name(Id::default()), CONNECT).await {
        Ok(stream) => stream,
        Err(e) => return Err((unreached(addr, &e, verifier.seen()), false)),
    };
    let mut client = EnrollmentClient::new(over(stream).await.map_err(|s| (broken(addr, &s), true))?);
    match tokio::time::timeout(ANSWER, client.enroll(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(match refusal_of(&status) {
            Some(r) if r.kind == RefusalKind::Unavailable => (r, true),
            Some(r) => (r, false),
            None => (broken(addr, &status), true),
        }),
        Err(_) => Err((
            Refusal::unavailable(format!(
                "the manager at {addr} does not answer within {} s: try again",
                ANSWER.as_secs()
            )),
            true,
        )),
    }
}

/// A channel over one connection that is there already.
async fn over(stream: TlsStream<TcpStream>) -> Result<Channel, Status> {
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { stream }
    });
    endpoint()
        .connect_with_connector(once)
        .await
        .map_err(|e| Status::from_error(Box::new(e)))
}

fn broken(addr: &str, status: &Status) -> Refusal {
    Refusal::unavailable(format!("the connection to the manager at {addr} broke: {}", describe(status)))
}

fn unreached(addr: &str, e: &ConnectError, seen: Option<JoinCheck>) -> Refusal {
    match (e, seen) {
        (ConnectError::Tls(_), Some(JoinCheck::OtherCluster)) => Refusal::forbidden(format!(
            "the cluster at {addr} is not the one this token is for: see meshctl token on a manager of the right one"
        )),
        (ConnectError::Tls(_), Some(JoinCheck::Bad(why))) => Refusal::forbidden(format!(
            "the certificate of the manager at {addr} does not hold: {why}; are the clocks of both hosts right?"
        )),
        (ConnectError::Tls(_), Some(JoinCheck::NotMeshd)) | (ConnectError::NotTls, _) => {
            Refusal::other(format!("what listens at {addr} is not meshd: give the address of a manager"))
        }
        (ConnectError::Tls(_), _) => Refusal::other(format!("can not speak to {addr}: {e}; is it a manager of a mesh cluster?")),
        (ConnectError::Tcp(_) | ConnectError::Timeout(_) | ConnectError::Closed, _) => Refusal::unavailable(format!(
            "can not reach {addr}: {e}; is meshd running there, and is that node a manager?"
        )),
    }
}

fn finish(token: &Token, addr: &str, joining: &Joining, key_pem: String, reply: EnrollReply) -> Result<Enrolled, Refusal> {
    let bad = |e: &dyn std::fmt::Display| Refusal::other(format!("the answer of the manager at {addr} can not be used: {e}"));
    let node: Node = serde_json::from_slice(&reply.node).map_err(|e| bad(&e))?;
    let ca = pki::certificate(&reply.ca).map_err(|e| bad(&e))?;
    if pki::digest(&ca) != token.digest {
        return Err(bad(&"its CA is not the token's"));
    }
    let file = NodeFile {
        cluster: reply.cluster.parse().map_err(|e: mesh_core::ids::NotAnId| bad(&e))?,
        node: node.id,
        raft_id: node.raft_id,
        role: node.role,
        managers: reply.managers,
        addr: joining.addr,
        control_port: joining.control_port,
    };
    let identity = Identity {
        file,
        ca_pem: reply.ca,
        cert_pem: reply.cert,
        key_pem,
    };
    identity.certified_key().map_err(|e| bad(&e))?;
    Ok(Enrolled { identity, node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_port() {
        let cases = [
            ("192.168.77.11", "192.168.77.11:2377"),
            ("192.168.77.11:99", "192.168.77.11:99"),
            ("h1", "h1:2377"),
            ("h1.example.org:2378", "h1.example.org:2378"),
            ("fd00::1", "[fd00::1]:2377"),
            ("[fd00::1]", "[fd00::1]:2377"),
            ("[fd00::1]:5", "[fd00::1]:5"),
        ];
        for (text, addr) in cases {
            assert_eq!(manager_addr(text).unwrap(), addr);
        }
        for bad in ["", ":2377", "h1:", "h1:x", "h1:0", "h1:99999", "a b", "http://h1", "h1:1:2"] {
            assert_eq!(manager_addr(bad).unwrap_err().kind, RefusalKind::Malformed, "{bad}");
        }
    }
}

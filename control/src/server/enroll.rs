//! Join tokens traded for certificates; the only call without one.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use mesh_api::proto::{EnrollReply, EnrollRequest, enrollment_client::EnrollmentClient, enrollment_server::Enrollment};
use mesh_core::{
    Refusal,
    command::{Command, NewNode, Reply},
    objects::{Cluster, Objects},
};
use tonic::{Request, Response, Status};

use super::{Shared, json, manager_addrs, read_json, status_of};
use crate::{
    client::Purpose,
    pki::{self, Authority},
    roots, token,
};

/// Marks a request that came through another manager, so that it is not sent on again.
const FORWARDED: &str = "mesh-forwarded";
/// Time for the leader's answer to a forwarded request.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(6);

pub(super) struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl Enrollment for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        let forwarded = request.metadata().contains_key(FORWARDED);
        let request = request.into_inner();
        // The leader alone is sure of the secrets: a rotated one must not pass at a follower.
        let Some(leader) = self.0.elsewhere().await? else {
            return self.take_in(request).await;
        };
        if forwarded {
            return Err(status_of(&Refusal::unavailable("the managers are electing a leader: try again")));
        }
        let mut client = EnrollmentClient::new(self.0.channels.get(Purpose::Calls, &leader));
        let mut request = Request::new(request);
        request
            .metadata_mut()
            .insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
        request.set_timeout(FORWARD_TIMEOUT);
        match tokio::time::timeout(FORWARD_TIMEOUT, client.enroll(request)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) if super::refusal_of(&status).is_some() => Err(status),
            _ => Err(status_of(&Refusal::unavailable(format!(
                "the manager that leads ({leader}) does not answer: try again"
            )))),
        }
    }
}

impl Service {
    async fn take_in(&self, request: EnrollRequest) -> Result<Response<EnrollReply>, Status> {
        let refuse = |r: Refusal| status_of(&r);
        let mut new: NewNode = read_json("node", &request.node)?;
        let (cluster, role) = {
            let (_, all) = self.0.consensus.objects();
            let cluster: Arc<Cluster> = all
                .cluster
                .clone()
                .ok_or_else(|| refuse(Refusal::unavailable("this manager has no cluster yet")))?;
            let role = token::role_of(&request.secret, &cluster).ok_or_else(|| {
                let text = "the token's secret is not the cluster's: it may have been rotated; see meshctl token worker on a manager";
                refuse(Refusal::forbidden(text))
            })?;
            (cluster, role)
        };
        let malformed = |e: pki::PkiError| refuse(Refusal::malformed(e.to_string()));
        // Repeated with the same key after a lost answer, the request finds the node that it made.
        new.id = pki::id_of_request(&request.csr).map_err(malformed)?;
        new.role = role;
        let (id, hostname) = (new.id, new.hostname.clone());
        let applied = self
            .0
            .consensus
            .propose(Command::NodeJoin {
                node: new,
                at: Timestamp::now(),
            })
            .await;
        let node = match applied.map_err(|e| status_of(&e.into()))?.outcome {
            Ok(Reply::Node(node)) if node.role == role => node,
            Ok(Reply::Node(node)) => {
                let text = format!(
                    "node {hostname} joined as {} already: use that token, or remove the node first",
                    node.role.as_str()
                );
                return Err(refuse(Refusal::conflict(text)));
            }
            Ok(other) => return Err(Status::internal(format!("joining answered {other:?}"))),
            Err(refusal) => return Err(refuse(refusal)),
        };
        let ca = Authority::load(cluster.id, &cluster.ca_cert, &cluster.ca_key).map_err(|e| Status::internal(e.to_string()))?;
        let cert = ca.sign(&request.csr, id, role, node.raft_id).map_err(malformed)?;
        tracing::info!(node = %id, hostname, role = role.as_str(), "node joined");
        let all: Arc<Objects> = self.0.consensus.objects().1;
        Ok(Response::new(EnrollReply {
            node: json(&node)?,
            cluster: cluster.id.to_string(),
            cert: roots::chain(&cluster, &cert),
            ca: roots::bundle(&cluster),
            managers: manager_addrs(&all),
        }))
    }
}

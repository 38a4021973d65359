//! A container runtime's CRI socket: the labels of its pods' sandboxes. Called by [`super`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use mesh_api::cri::{PodSandboxStatusRequest, runtime_service_client::RuntimeServiceClient};
use mesh_core::objects::Labels;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Until a runtime is connected to, and for each of its answers.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Questions under way at once.
const AT_ONCE: usize = 8;

/// Why a runtime did not say.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody listens at its socket.
    #[error("nobody answers at {}", socket.display())]
    Absent {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("{} does not answer within {} s", .0.display(), ANSWER_TIME.as_secs())]
    Slow(PathBuf),
    /// What listens there does not speak gRPC.
    #[error("the connection to {} failed", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// It does not run pods: containerd without its CRI plugin, or one from before CRI v1.
    #[error("{} does not serve runtime.v1 of the container runtime interface", .0.display())]
    NoPods(PathBuf),
    /// It could not do what was asked.
    #[error("{} answered {code:?}: {message}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What kind of error.
        code: Code,
        /// Its words.
        message: String,
    },
}

/// A runtime, which may be there or not.
pub struct Runtime {
    socket: PathBuf,
}

impl Runtime {
    /// The runtime that listens at `socket`.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The labels of those of `sandboxes` that it knows, by their ids.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn labels(&self, sandboxes: &BTreeSet<String>) -> Result<BTreeMap<String, Labels>, CriError> {
        let client = RuntimeServiceClient::new(self.channel().await?);
        let asked = sandboxes.iter().cloned().map(|id| self.sandbox(client.clone(), id));
        let mut answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        let mut out = BTreeMap::new();
        while let Some(answer) = answers.next().await {
            out.extend(answer?);
        }
        Ok(out)
    }

    async fn channel(&self) -> Result<Channel, CriError> {
        let stream = match timeout(ANSWER_TIME, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => {
                let socket = self.socket.clone();
                return Err(CriError::Absent { socket, source });
            }
            Err(_) => return Err(self.slow()),
        };
        let mut stream = Some(TokioIo::new(stream));
        let once = tower::service_fn(move |_: http::Uri| {
            let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
            async move { stream }
        });
        // The name is not looked at: the connection is there.
        let connected = timeout(ANSWER_TIME, Endpoint::from_static("http://localhost").connect_with_connector(once)).await;
        connected.map_err(|_| self.slow())?.map_err(|source| CriError::Broken {
            socket: self.socket.clone(),
            source,
        })
    }

    /// A sandbox's id and labels; `None` when it does not know it.
    async fn sandbox(&self, mut client: RuntimeServiceClient<Channel>, id: String) -> Result<Option<(String, Labels)>, CriError> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
        };
        match timeout(ANSWER_TIME, client.pod_sandbox_status(request)).await {
            // A runtime may find a sandbox by the beginning of its id too.
            Ok(Ok(answer)) => Ok(answer
                .into_inner()
                .status
                .filter(|s| s.id == id)
                .map(|s| (s.id, s.labels.into_iter().collect()))),
            Ok(Err(status)) if status.code() == Code::NotFound => Ok(None),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(self.slow()),
        }
    }

    fn slow(&self) -> CriError {
        CriError::Slow(self.socket.clone())
    }

    fn refused(&self, status: &Status) -> CriError {
        let socket = self.socket.clone();
        match status.code() {
            Code::Unimplemented => CriError::NoPods(socket),
            code => CriError::Refused {
                socket,
                code,
                message: status.message().to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::cri::{
        PodSandboxStatus, PodSandboxStatusResponse,
        runtime_service_server::{RuntimeService, RuntimeServiceServer},
    };
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, transport::Server};

    use super::*;

    /// Knows the sandbox "known".
    struct Fake;

    #[tonic::async_trait]
    impl RuntimeService for Fake {
        async fn pod_sandbox_status(
            &self,
            request: Request<PodSandboxStatusRequest>,
        ) -> Result<Response<PodSandboxStatusResponse>, Status> {
            let id = request.into_inner().pod_sandbox_id;
            if !"known".starts_with(&id) {
                return Err(Status::not_found("an error occurred when try to find sandbox: not found"));
            }
            let status = PodSandboxStatus {
                id: "known".to_owned(),
                labels: [("app".to_owned(), "web".to_owned())].into(),
            };
            Ok(Response::new(PodSandboxStatusResponse { status: Some(status) }))
        }
    }

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[tokio::test]
    async fn tells_what_it_knows() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let runtime = Runtime::at(&socket);
        assert!(matches!(runtime.labels(&ids(&["known"])).await, Err(CriError::Absent { .. })));
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Server::builder().add_service(RuntimeServiceServer::new(Fake));
        let server = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let told = runtime.labels(&ids(&["kno", "known", "other"])).await.unwrap();
        let app = Labels::from([("app".to_owned(), "web".to_owned())]);
        assert_eq!(told, BTreeMap::from([("known".to_owned(), app)]));
        server.abort();
    }

    #[tokio::test]
    async fn one_without_pods_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(
            Server::builder()
                .add_routes(tonic::service::Routes::default())
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        let said = Runtime::at(&socket).labels(&ids(&["known"])).await;
        assert!(matches!(said, Err(CriError::NoPods(_))), "{said:?}");
        server.abort();
    }
}

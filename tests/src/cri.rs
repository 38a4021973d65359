//! A container runtime as the kubelet sees it: pods and their containers, through its CRI socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use self::wire::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    ListPodSandboxRequest, PodSandboxConfig, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest,
    StopPodSandboxRequest, runtime_service_client::RuntimeServiceClient,
};
use crate::Result;

/// Generated from proto/cri.proto.
#[expect(missing_docs, reason = "generated code")]
pub mod wire {
    tonic::include_proto!("runtime.v1");
}

/// For each call; RunPodSandbox includes the CNI plugin's, and ExecSync what is run.
const LIMIT: Duration = Duration::from_secs(240);

/// A container that runs `command`.
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec { image: image.to_owned() }),
        command: command.iter().map(|w| (*w).to_owned()).collect(),
        ..ContainerConfig::default()
    }
}

/// A runtime at its socket, connected to anew for each call.
pub struct Cri {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Cri {
    /// The runtime that listens at `socket`, or will.
    pub fn at(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
        })
    }

    fn call<T>(&self, ask: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>) -> Result<T> {
        let answer = async {
            let socket = self.socket.clone();
            let connect = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await?;
            let done: Result<_> = Ok(ask(RuntimeServiceClient::new(channel)).await?.into_inner());
            done
        };
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, answer).await })?
    }

    /// Whether it runs pods, and has a network for them.
    pub fn is_ready(&self) -> bool {
        let status = self.call(async |mut c| c.status(StatusRequest {}).await);
        let conditions = status.ok().and_then(|s| s.status).map(|s| s.conditions).unwrap_or_default();
        !conditions.is_empty() && conditions.iter().all(|c| c.status)
    }

    /// Runs a pod without containers; its sandbox's id.
    pub fn run_pod(&self, config: &PodSandboxConfig) -> Result<String> {
        let config = Some(config.clone());
        let request = RunPodSandboxRequest { config };
        Ok(self.call(async |mut c| c.run_pod_sandbox(request).await)?.pod_sandbox_id)
    }

    /// A container in a pod, started; its id.
    pub fn run_container(&self, pod: &str, sandbox: &PodSandboxConfig, config: &ContainerConfig) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        let id = self.call(async |mut c| c.create_container(request).await)?.container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.call(async |mut c| c.start_container(request).await)?;
        Ok(id)
    }

    /// With what a container ended; `None` while it runs.
    pub fn exit_code(&self, container: &str) -> Result<Option<i32>> {
        let container_id = container.to_owned();
        let answer = self.call(async |mut c| c.container_status(ContainerStatusRequest { container_id }).await)?;
        let status = answer.status.ok_or("a container without a status")?;
        Ok((status.state() == ContainerState::ContainerExited).then_some(status.exit_code))
    }

    /// What a command in a container prints; an error if it fails. Words are split at spaces.
    pub fn exec(&self, container: &str, command: &str) -> Result<String> {
        self.exec_words(container, command.split_whitespace().map(str::to_owned).collect())
    }

    /// As [`Self::exec`], word by word.
    pub fn exec_words(&self, container: &str, cmd: Vec<String>) -> Result<String> {
        let command = cmd.join(" ");
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd,
            // None but that of the call: a hook of Kubernetes has none either.
            timeout: 0,
        };
        let done = self.call(async |mut c| c.exec_sync(request).await)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.exit_code == 0 {
            Ok(text(&done.stdout))
        } else {
            Err(format!(
                "`{command}` exited with {}: {}{}",
                done.exit_code,
                text(&done.stdout),
                text(&done.stderr)
            )
            .into())
        }
    }

    /// Ids of all sandboxes, of those that were stopped too.
    pub fn pods(&self) -> Result<Vec<String>> {
        let all = self.call(async |mut c| c.list_pod_sandbox(ListPodSandboxRequest {}).await)?;
        Ok(all.items.into_iter().map(|p| p.id).collect())
    }

    /// Stops a pod and all in it: its network is taken down.
    pub fn stop_pod(&self, pod: &str) -> Result<()> {
        let pod_sandbox_id = pod.to_owned();
        self.call(async |mut c| c.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }).await)
            .map(drop)
    }

    /// Removes a pod that was stopped.
    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        let pod_sandbox_id = pod.to_owned();
        self.call(async |mut c| c.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await)
            .map(drop)
    }
}

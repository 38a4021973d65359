//! A pod of a manifest, run at a CRI socket as the kubelet runs it: as far as dist/kubernetes/meshd.yaml uses
//! what a pod can have.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    Host, Result,
    cri::{
        self, Cri,
        wire::{
            Capability, ContainerConfig, KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
            LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig,
            PodSandboxMetadata,
        },
    },
    until,
};

/// What the kubelet would have from Kubernetes and from its host.
pub struct Kubelet<'a> {
    /// The runtime.
    pub cri: &'a Cri,
    /// The secret that the pod reads.
    pub secret: BTreeMap<&'a str, String>,
    /// Directories of the host that are others here.
    pub places: BTreeMap<&'a str, String>,
    /// Directory for the containers' output.
    pub logs: String,
}

/// A pod that runs.
pub struct Running {
    /// Its sandbox.
    pub id: String,
    sandbox: PodSandboxConfig,
    spec: Value,
    attempt: u32,
    /// Its container.
    pub container: String,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    list(value).map(text).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn namespaces(spec: &Value) -> NamespaceOption {
    let mode = |key: &str, other: NamespaceMode| i32::from(if spec[key] == true { NamespaceMode::Node } else { other });
    NamespaceOption {
        network: mode("hostNetwork", NamespaceMode::Pod),
        pid: mode("hostPID", NamespaceMode::Container),
    }
}

impl Kubelet<'_> {
    /// Runs a pod of this specification: its containers one after the other until they have ended, those of
    /// initialization, and its one container, with its hook.
    pub fn run(&self, name: &str, spec: &Value) -> Result<Running> {
        let privileged = list(&spec["containers"]).any(|c| c["securityContext"]["privileged"] == true);
        let sandbox = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "meshd".to_owned(),
                attempt: 0,
            }),
            log_directory: self.logs.clone(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: Host::cgroup(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(spec)),
                    privileged,
                }),
            }),
            ..PodSandboxConfig::default()
        };
        let id = self.cri.run_pod(&sandbox)?;
        for container in list(&spec["initContainers"]) {
            let started = self.cri.run_container(&id, &sandbox, &self.container(spec, container, 0)?)?;
            until(60, "a container of initialization to end", || {
                match self.cri.exit_code(&started)? {
                    Some(0) => Ok(true),
                    Some(code) => Err(format!("{} exited with {code}: {}", container["name"], self.said()).into()),
                    None => Ok(false),
                }
            })?;
        }
        let mut running = Running {
            id,
            sandbox,
            spec: spec.clone(),
            attempt: 0,
            container: String::new(),
        };
        self.start(&mut running)?;
        Ok(running)
    }

    /// Starts the pod's container again, which has ended.
    pub fn restart(&self, pod: &mut Running) -> Result<()> {
        until(30, "the container to have ended", || {
            Ok(self.cri.exit_code(&pod.container)?.is_some())
        })?;
        pod.attempt += 1;
        self.start(pod)
    }

    fn start(&self, pod: &mut Running) -> Result<()> {
        let container = pod.spec["containers"][0].clone();
        let config = self.container(&pod.spec, &container, pod.attempt)?;
        pod.container = self.cri.run_container(&pod.id, &pod.sandbox, &config)?;
        let hook = texts(&container["lifecycle"]["postStart"]["exec"]["command"]);
        let said = |e| format!("{e}: {}", self.said());
        self.cri.exec_words(&pod.container, hook).map_err(said)?;
        let probe = texts(&container["readinessProbe"]["exec"]["command"]);
        until(60, "the pod to be ready", || {
            Ok(self.cri.exec_words(&pod.container, probe.clone()).is_ok())
        })
        .map_err(said)
        .map_err(Into::into)
    }

    /// What containers have said.
    fn said(&self) -> String {
        let files = std::fs::read_dir(&self.logs).into_iter().flatten().flatten();
        files.filter_map(|f| std::fs::read_to_string(f.path()).ok()).collect()
    }

    fn container(&self, spec: &Value, container: &Value, attempt: u32) -> Result<ContainerConfig> {
        let name = text(&container["name"]);
        let mut config = cri::container(&name, &text(&container["image"]), &[]);
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt = attempt;
        }
        config.command = texts(&container["command"]);
        config.log_path = format!("{name}-{attempt}.log");
        for variable in list(&container["env"]) {
            let key = text(&variable["valueFrom"]["secretKeyRef"]["key"]);
            let value = self.secret.get(key.as_str()).ok_or(format!("no secret {key:?}"))?;
            config.envs.push(KeyValue {
                key: text(&variable["name"]),
                value: value.clone(),
            });
        }
        for mount in list(&container["volumeMounts"]) {
            let volume = list(&spec["volumes"]).find(|v| v["name"] == mount["name"]);
            let path = text(&volume.ok_or(format!("no volume {}", mount["name"]))?["hostPath"]["path"]);
            let propagation = match mount["mountPropagation"].as_str() {
                Some("Bidirectional") => MountPropagation::PropagationBidirectional,
                Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
                _ => MountPropagation::PropagationPrivate,
            };
            config.mounts.push(Mount {
                container_path: text(&mount["mountPath"]),
                host_path: self.places.get(path.as_str()).cloned().unwrap_or(path),
                propagation: propagation.into(),
            });
        }
        let context = &container["securityContext"];
        let limit = text(&container["resources"]["limits"]["memory"]);
        let megabytes: Option<i64> = limit.strip_suffix("Mi").and_then(|n| n.parse().ok());
        config.linux = Some(LinuxContainerConfig {
            resources: megabytes.map(|n| LinuxContainerResources {
                memory_limit_in_bytes: n << 20,
            }),
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    drop_capabilities: texts(&context["capabilities"]["drop"]),
                }),
                privileged: context["privileged"] == true,
                namespace_options: Some(namespaces(spec)),
                readonly_rootfs: context["readOnlyRootFilesystem"] == true,
                no_new_privs: context["allowPrivilegeEscalation"] == false,
            }),
        });
        Ok(config)
    }
}

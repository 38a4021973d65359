//! Pods as Kubernetes runs them: containerd's CRI plugin, asked by the test in the kubelet's place, and
//! meshd-cni, on two hosts. Nothing is pulled: the image is made here.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mesh_tests::{
    Host, Lab, Place, Result, address, containerd,
    cri::{
        self, Cri,
        wire::{DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping},
    },
    lab_dir, until, within,
};
use serde_json::Value;

const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab");
const ECHO: [&str; 3] = ["/bin/meshd-echo", "--http", "80"];

/// containerd with its CRI plugin on a host of the lab.
struct Node<'a> {
    lab: &'a Lab,
    host: &'static str,
    dir: PathBuf,
    daemon: Child,
    cri: Cri,
}

impl<'a> Node<'a> {
    fn start(lab: &'a Lab, host: &'static str, image: &Path) -> Result<Self> {
        let dir = lab_dir().join(host).join("pods");
        fs::create_dir_all(&dir)?;
        let at = dir.display();
        let config = containerd::config(&at.to_string(), "netns_mounts_under_state_dir = true");
        fs::write(dir.join("config.toml"), config)?;
        let install = format!("meshd-cni install --bin-dir {at}/bin --conf-dir {at}/net.d --network ov");
        lab.at(Place::Host(host), &install)?.ok()?;
        // containerd takes every pod through it first.
        symlink("/usr/lib/cni/loopback", dir.join("bin/loopback"))?;
        let daemon = Self::daemon(host, &dir)?;
        let cri = Cri::at(&dir.join("sock"))?;
        let node = Self {
            lab,
            host,
            dir,
            daemon,
            cri,
        };
        let imported = node.import(image);
        until(20, "containerd to run pods", || Ok(node.cri.is_ready()))?;
        imported?;
        // Where the lab's meshd looks for it.
        symlink(node.dir.join("sock"), node.link())?;
        Ok(node)
    }

    fn link(&self) -> PathBuf {
        lab_dir().join(self.host).join("cri.sock")
    }

    fn daemon(host: &str, dir: &Path) -> Result<Child> {
        let script = r#"exec containerd -c "$0/config.toml" --root "$0/root" --state "$0/state" --address "$0/sock" >>"$0/log" 2>&1"#;
        let mut command = Command::new(LAB);
        command.args(["exec", host, "--", "sh", "-c", script]).arg(dir);
        Ok(command.stdin(Stdio::null()).process_group(0).spawn()?)
    }

    fn import(&self, image: &Path) -> Result<()> {
        let socket = self.dir.join("sock");
        let import = format!(
            "ctr -a {} -n k8s.io images import --snapshotter native {}",
            socket.display(),
            image.display()
        );
        until(20, "containerd to serve", || Ok(socket.exists()))?;
        self.lab.at(Place::Host(self.host), &import)?.ok().map(drop)
    }

    /// As a crash does it: the daemon only.
    fn kill_and_start(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.wait()?;
        self.daemon = Self::daemon(self.host, &self.dir)?;
        until(20, "containerd to run pods again", || Ok(self.cri.is_ready()))
    }

    fn run(&self, pod: &PodSandboxConfig) -> Result<Pod<'_>> {
        let id = self.cri.run_pod(pod)?;
        let container = self
            .cri
            .run_container(&id, pod, &cri::container("main", containerd::IMAGE, &ECHO))?;
        Ok(Pod {
            node: &self.cri,
            id,
            container,
        })
    }

    fn end_all(&self) -> Result<()> {
        for pod in self.cri.pods()? {
            self.cri.stop_pod(&pod)?;
            self.cri.remove_pod(&pod)?;
        }
        Ok(())
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // What can not be removed is for whoever reads why the test failed.
        if let Err(e) = self.end_all() {
            println!("{}: {e}", self.host);
        }
        if std::thread::panicking() {
            println!(
                "--- containerd of {}\n{}",
                self.host,
                fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let unmount = r#"awk -v at="$0/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l"#;
        let _ = Command::new("sh").args(["-c", unmount]).arg(&self.dir).status();
    }
}

/// A pod with one container.
struct Pod<'a> {
    node: &'a Cri,
    id: String,
    container: String,
}

impl Pod<'_> {
    /// The name of who answers at an address, asked from inside.
    fn ask(&self, to: &str) -> Result<String> {
        let said = self
            .node
            .exec(&self.container, &format!("/bin/meshd-echo client http {to} --timeout 5"))?;
        let said: Value = serde_json::from_str(&said)?;
        Ok(said["hostname"].as_str().unwrap_or_default().to_owned())
    }
}

/// What the kubelet would ask for.
fn pod(lab: &Lab, name: &str, labels: &[(&str, &str)]) -> Result<PodSandboxConfig> {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let gateway = lab.network("ov")?.subnets[0].gateway.clone();
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "shop".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        dns_config: Some(DnsConfig {
            servers: vec![gateway],
            options: vec!["ndots:0".to_owned()],
        }),
        labels: pairs(labels),
        linux: Some(LinuxPodSandboxConfig {
            // The group of which `scripts/lab down` ends all processes.
            cgroup_parent: Host::cgroup(),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    })
}

/// Pods that serve `web`, as h1 knows.
fn serving(lab: &Lab) -> Result<BTreeSet<String>> {
    let seen = lab.json("h1", "service inspect web")?;
    let list = seen["endpoints"].as_array().ok_or("service inspect has no endpoints")?;
    Ok(list.iter().filter_map(|e| e["name"].as_str().map(str::to_owned)).collect())
}

fn serve(lab: &Lab, names: &[&str]) -> Result<()> {
    until(15, &format!("web to be served by {names:?}"), || {
        Ok(serving(lab)?.iter().map(String::as_str).eq(names.iter().copied()))
    })
}

fn cluster() -> Result<Lab> {
    let setup = Path::new(LAB).with_file_name("setup");
    let done = Command::new(setup).arg("runtimes").status()?;
    assert!(done.success(), "scripts/setup runtimes: {done}");
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network ov --publish 8000:80 --selector app=web --selector tier=front",
    )?
    .ok()?;
    Ok(lab)
}

#[test]
fn pods_are_found_by_their_labels() -> Result<()> {
    let setup = Path::new(LAB).with_file_name("setup");
    let done = Command::new(setup).arg("runtimes").status()?;
    assert!(done.success(), "scripts/setup runtimes: {done}");
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network ov --publish 8000:80 --selector app=web --selector tier=front",
    )?
    .ok()?;
    let image = containerd::archive(&lab_dir().join("image"))?;
    let (mut one, two) = (Node::start(&lab, "h1", &image)?, Node::start(&lab, "h2", &image)?);

    // Name, namespace and labels; what is meshd-cni's own is left out, and an annotation goes before a label.
    let front = [("app", "web"), ("tier", "front"), ("color", "blue"), ("mesh.cni/ifname", "eth9")];
    let mut first = pod(&lab, "web-0", &front)?;
    first.annotations = [("mesh.label/color".to_owned(), "red".to_owned())].into();
    first.port_mappings = vec![PortMapping {
        container_port: 80,
        host_port: 8081,
    }];
    let mut second = pod(&lab, "web-1", &front)?;
    second.annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "1G".to_owned())].into();
    let (web_0, web_1) = (one.run(&first)?, two.run(&second)?);
    let back = two.run(&pod(&lab, "db-0", &[("app", "db"), ("tier", "front")])?)?;
    serve(&lab, &["web-0", "web-1"])?;
    let labels = lab.json("h2", "endpoint inspect web-0")?["labels"].clone();
    for (key, value) in [
        ("app", "web"),
        ("color", "red"),
        ("io.kubernetes.pod.name", "web-0"),
        ("io.kubernetes.pod.namespace", "shop"),
        ("mesh.cni/container", &web_0.id),
        ("mesh.cni/ifname", "eth0"),
    ] {
        assert_eq!(labels[key], value, "{key}: {labels}");
    }

    // Containerd reads the annotation, and gives any burst.
    let limits = lab.json("h1", "endpoint inspect web-1")?["bandwidth"].clone();
    assert_eq!(
        (&limits["ingress"]["rate"], &limits["egress"]),
        (&1_000_000_000.into(), &serde_json::Value::Null),
        "{limits}"
    );

    // By name, by the service's name and port on every node, and the pod's own port on its node only.
    for (from, to, name) in [
        (&web_0, "web-1:80", "web-1"),
        (&web_1, "web-0:80", "web-0"),
        (&back, "web-0:80", "web-0"),
    ] {
        assert_eq!(from.ask(to)?, name, "{to}");
    }
    let asked: BTreeSet<_> = (0..4).map(|_| back.ask("web:80")).collect::<Result<_>>()?;
    assert_eq!(asked.len(), 2, "{asked:?}");
    lab.balanced(&["h1", "h2"], 8000, &["web-0", "web-1"])?;
    assert_eq!(lab.http(Place::Client, &format!("{}:8081", address("h1")), 1)?[0].hostname, "web-0");
    assert!(lab.http(Place::Client, &format!("{}:8081", address("h2")), 1).is_err());

    // A meshd that was killed, and a runtime that was.
    lab.lab(&["kill", "h1"])?.ok()?;
    lab.balanced(&["h1", "h2"], 8000, &["web-0", "web-1"])?;
    lab.lab(&["restart", "h1"])?.ok()?;
    serve(&lab, &["web-0", "web-1"])?;
    let (id_0, id_1) = (web_0.id.clone(), web_1.id.clone());
    one.kill_and_start()?;
    assert_eq!(one.cri.pods()?, [id_0.as_str()]);
    lab.balanced(&["h1", "h2"], 8000, &["web-0", "web-1"])?;

    // A pod whose labels nobody told before meshd was killed: the next one asks for them.
    fs::remove_file(one.link())?;
    let late = one.run(&pod(&lab, "web-2", &front)?)?;
    assert_eq!(late.ask("web-1:80")?, "web-1");
    lab.lab(&["kill", "h1"])?.ok()?;
    lab.lab(&["restart", "h1"])?.ok()?;
    assert!(!serving(&lab)?.contains("web-2"), "nobody could know");
    symlink(one.dir.join("sock"), one.link())?;
    serve(&lab, &["web-0", "web-1", "web-2"])?;
    lab.balanced(&["h2"], 8000, &["web-0", "web-1", "web-2"])?;

    // What is stopped serves no more, and leaves nothing.
    two.cri.stop_pod(&id_1)?;
    serve(&lab, &["web-0", "web-2"])?;
    one.end_all()?;
    two.end_all()?;
    until(15, "every endpoint to be gone", || Ok(lab.network("ov")?.endpoints.is_empty()))?;
    for host in ["h1", "h2"] {
        until(10, "every interface to be gone", || {
            Ok(!lab.at(Place::Host(host), "ip -o link")?.ok()?.contains(" mv-"))
        })?;
    }
    assert!(lab.http(Place::Client, &format!("{}:8081", address("h1")), 1).is_err());
    Ok(())
}

/// Pods that are run at once.
const BURST: usize = 16;

#[test]
fn pods_of_a_burst_all_have_their_labels() -> Result<()> {
    let lab = cluster()?;
    let node = Node::start(&lab, "h2", &containerd::archive(&lab_dir().join("image"))?)?;
    let pods = (0..BURST).map(|n| pod(&lab, &format!("b-{n}"), &[("app", "web"), ("tier", "front")]));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    let socket = node.dir.join("sock");
    // The kubelet tries again what failed, as the next attempt.
    let run = |config: &PodSandboxConfig| -> Result<String, String> {
        let cri = Cri::at(&socket).map_err(|e| e.to_string())?;
        let (mut config, mut why) = (config.clone(), String::new());
        let came = within(30, "a pod to come up", || {
            let tried = cri.run_pod(&config);
            why = tried.as_ref().err().map(ToString::to_string).unwrap_or_default();
            if let Some(metadata) = &mut config.metadata {
                metadata.attempt += 1;
            }
            Ok(tried.ok())
        });
        came.map_err(|e| format!("{e}: {why}"))
    };
    let ids = std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|p| scope.spawn(|| run(p))).collect();
        until(20, "some to be attached", || Ok(lab.network("ov")?.endpoints.len() > BURST / 4))?;
        lab.lab(&["kill", "h2"])?.ok()?;
        lab.lab(&["restart", "h2"])?.ok()?;
        let ended = threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err("a thread failed".to_owned())));
        ended
            .collect::<Result<BTreeSet<String>, String>>()
            .map_err(Into::<Box<dyn std::error::Error>>::into)
    })?;
    assert_eq!(ids.len(), BURST);
    let names: BTreeSet<_> = (0..BURST).map(|n| format!("b-{n}")).collect();
    until(20, "every pod to serve", || Ok(serving(&lab)? == names))?;
    until(
        20,
        "nothing else to be attached",
        || Ok(lab.network("ov")?.endpoints.len() == BURST),
    )?;
    let addresses: BTreeSet<_> = lab.network("ov")?.endpoints.into_iter().map(|e| e.ip).collect();
    assert_eq!(addresses.len(), BURST, "an address was given twice: {addresses:?}");
    node.end_all()?;
    until(15, "every endpoint to be gone", || Ok(lab.network("ov")?.endpoints.is_empty()))
}

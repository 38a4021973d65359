//! meshd itself as a container: the image of dist/Containerfile, started by Docker as dist/docker/compose.yaml
//! says, on two hosts, and by containerd as dist/kubernetes/meshd.yaml says, on a third. Nothing is pulled: the
//! image's base is made of this machine's packages.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use mesh_tests::{
    Docker, Host, Lab, Place, Result, address, containerd,
    cri::{
        self, Cri,
        wire::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata},
    },
    image,
    kubelet::Kubelet,
    lab_dir, until,
};
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const HOSTS: [&str; 2] = ["h1", "h2"];
const ECHO: &str = "meshd-echo --http 80 --tcp 7";

/// What meshd needs of its host, beside its network, its processes and all privileges: directories, and
/// whether it must see what is mounted there later.
const NEEDS: [(&str, bool); 5] = [
    ("/run/meshd", false),
    ("/var/lib/meshd", false),
    ("/sys/fs/bpf", false),
    ("/sys/fs/cgroup", false),
    ("/run/netns", true),
];

fn at_root(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn succeeds(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr)).into())
}

/// The documents of a YAML file.
fn yaml(path: &str) -> Result<Vec<Value>> {
    let read = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let read = succeeds(Command::new("python3").args(["-c", read]).arg(at_root(path)))?;
    Ok(serde_json::from_str(&read)?)
}

// ---- the recipes ---------------------------------------------------------------------------------

#[test]
fn container_recipes_give_what_meshd_needs() -> Result<()> {
    succeeds(Command::new(at_root("scripts/setup")).arg("compose"))?;
    let compose = yaml("dist/docker/compose.yaml")?;
    let meshd = &compose[0]["services"]["meshd"];
    assert_eq!(meshd["privileged"], true);
    assert_eq!((&meshd["network_mode"], &meshd["pid"]), (&"host".into(), &"host".into()));
    assert_eq!(meshd["restart"], "always");
    let volumes: Vec<_> = meshd["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (dir, later) in NEEDS {
        let wanted = format!("{dir}:{dir}{}", if later { ":rslave" } else { "" });
        assert!(volumes.contains(&wanted.as_str()), "{wanted}: {volumes:?}");
    }

    let manifest = yaml("dist/kubernetes/meshd.yaml")?;
    let set = manifest.iter().find(|d| d["kind"] == "DaemonSet").ok_or("no DaemonSet")?;
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&true.into(), &true.into()));
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        set["spec"]["template"]["metadata"]["labels"]
    );
    let meshd = &pod["containers"][0];
    assert_eq!(meshd["securityContext"]["privileged"], true);
    let named = |list: &Value, key: &str, value: &str| {
        let found = list.as_array().into_iter().flatten().find(|v| v[key] == value);
        found.cloned().ok_or(format!("no {key} {value:?} in {list}"))
    };
    for (dir, later) in NEEDS {
        let mount = named(&meshd["volumeMounts"], "mountPath", dir)?;
        let volume = named(&pod["volumes"], "name", mount["name"].as_str().unwrap_or_default())?;
        assert_eq!(volume["hostPath"]["path"], dir);
        assert!(!later || mount["mountPropagation"] == "HostToContainer", "{mount}");
    }
    // Every mount has its volume, and the secret's keys are those that are asked for.
    for container in [meshd, &pod["initContainers"][0]] {
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            named(&pod["volumes"], "name", mount["name"].as_str().unwrap_or_default())?;
        }
    }
    let secret = manifest.iter().find(|d| d["kind"] == "Secret").ok_or("no Secret")?;
    for variable in meshd["env"].as_array().into_iter().flatten() {
        let from = &variable["valueFrom"]["secretKeyRef"];
        assert_eq!(from["name"], secret["metadata"]["name"]);
        assert!(
            secret["stringData"].get(from["key"].as_str().unwrap_or_default()).is_some(),
            "{from}"
        );
    }
    Ok(())
}

// ---- a container of Docker's ----------------------------------------------------------------------

/// runc for machines that have not every capability: Docker's `privileged` asks for all that the kernel knows,
/// and runc refuses what is not to be had. Containers get a cgroup namespace, as Docker gives them where cgroups
/// are of version 2.
const RUNC: &str = r#"#!/bin/sh -e
    for word do
        case $before in
        --bundle) file=$word/config.json ;;
        --process) file=$word ;;
        esac
        before=$word
    done
    if [ -f "$file" ]; then
        held=$(setpriv --dump | sed -n 's/^Capability bounding set: //p')
        jq --arg held "$held" '
            def had: map_values(map(select(. as $c | $held | split(",") | index($c | ltrimstr("CAP_") | ascii_downcase))));
            if .process then .process.capabilities |= had | .linux.namespaces += [{type: "cgroup"}] else .capabilities |= had end' "$file" >"$file.lab"
        mv "$file.lab" "$file"
    fi
    exec runc "$@"
"#;

/// dockerd on a host, from when it answers.
fn dockerd<'a>(lab: &'a Lab, host: &str) -> Result<Host<'a>> {
    let dir = Host::dir(host, "docker")?;
    let runc = dir.join("runc");
    fs::write(&runc, RUNC)?;
    fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
    let at = |name: &str| dir.join(name).display().to_string();
    // The second socket is where the lab looks for it.
    let (runtime, socket) = (format!("lab={}", at("runc")), format!("unix://{}", at("docker.sock")));
    let (data, pid, group) = (at("data"), at("dockerd.pid"), Host::cgroup());
    let words = [
        "dockerd",
        "--data-root",
        &data,
        "--exec-root",
        "/run/docker-exec",
        "-p",
        &pid,
        "--bridge",
        "none",
        "--add-runtime",
        &runtime,
        "--default-runtime",
        "lab",
        "-H",
        "unix:///run/docker.sock",
        "-H",
        &socket,
        "--cgroup-parent",
        &group,
    ];
    let started = Host::start(lab, host, dir.clone(), &words)?;
    let up = until(30, "dockerd to answer", || {
        Ok(lab.at(Place::Host(host), "docker version")?.status == 0)
    });
    up.map_err(|e| format!("{e}: {}", started.log()))?;
    Ok(started)
}

/// The package of the programs that the lab runs; made unless there is one that is newer than they are.
fn package() -> Result<PathBuf> {
    let age = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).ok_or("the test is nowhere")?;
    let dir = target.join("package");
    let newest = ["meshd", "meshctl", "meshd-cni"]
        .map(|p| age(&target.join("release").join(p)))
        .into_iter()
        .max();
    let is_deb = |p: &PathBuf| p.extension().is_some_and(|e| e == "deb");
    let made = fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()).find(is_deb);
    if made.is_none_or(|deb| Some(age(&deb)) < newest) {
        succeeds(Command::new(at_root("scripts/package")).args(["--no-build", "--fast"]))?;
    }
    Ok(dir)
}

/// meshd's image on each host with Docker, by its recipe, and `lab` for the containers that use the network.
/// Where the first is as an archive, under the manifest's name too.
fn images(lab: &Lab) -> Result<String> {
    let dir = lab_dir();
    let at = |name: &str| dir.join(name).display().to_string();
    let (base, built, containers) = (at("base.tar"), at("meshd.tar"), image()?);
    succeeds(Command::new(at_root("tests/fixtures/debian-base")).arg(&base))?;
    let docker = |host: &str, words: &[&str]| {
        let words = [&["env", "DOCKER_BUILDKIT=0", "docker"], words].concat();
        lab.argv(Place::Host(host), &words)?.ok()
    };
    docker("h1", &["import", &base, "debian:12-slim"])?;
    let (recipe, context) = (at_root("dist/Containerfile"), package()?);
    let (recipe, context) = (recipe.display().to_string(), context.display().to_string());
    docker("h1", &["build", "--network", "none", "-t", "meshd", "-f", &recipe, &context])?;
    docker("h1", &["tag", "meshd", "meshd:0.1.0"])?;
    docker("h1", &["save", "-o", &built, "meshd", "meshd:0.1.0"])?;
    docker("h2", &["load", "-i", &built])?;
    for host in HOSTS {
        docker(host, &["import", &containers.display().to_string(), "lab"])?;
    }
    for file in [Path::new(&base), &containers] {
        fs::remove_file(file)?;
    }
    Ok(built)
}

fn compose(lab: &Lab, host: &str, command: &str) -> Result<()> {
    let file = at_root("dist/docker/compose.yaml");
    lab.at(Place::Host(host), &format!("docker-compose -f {} {command}", file.display()))?
        .ok()
        .map(drop)
}

fn answers(lab: &Lab, host: &str) -> Result<()> {
    until(60, &format!("meshd on {host} to answer"), || {
        Ok(lab.at(Place::Host(host), "docker exec meshd meshctl status")?.status == 0)
    })
    .map_err(|e| {
        let said = lab.at(Place::Host(host), "docker exec meshd meshctl status");
        let logs = lab.at(Place::Host(host), "docker logs --tail 20 meshd");
        format!("{e}: {said:?} {logs:?}").into()
    })
}

#[test]
fn container_of_docker_or_kubernetes_runs_meshd() -> Result<()> {
    succeeds(Command::new(at_root("scripts/setup")).args(["runtimes", "docker", "compose"]))?;
    let lab = Lab::up("--nodes 3 --managers 0")?;
    let hosts = [dockerd(&lab, "h1")?, dockerd(&lab, "h2")?];
    let built = images(&lab)?;
    let docker = Docker::started(&lab);
    let meshctl = |host: &str, command: &str| docker.at(host, &format!("exec meshd meshctl {command}"))?.ok();
    for host in HOSTS {
        compose(&lab, host, "up -d")?;
        answers(&lab, host)?;
    }
    let init = format!("init --advertise-addr {}", address("h1"));
    docker.at("h1", &format!("exec meshd meshctl {init}"))?.joined()?;
    let token = meshctl("h1", "token worker -q")?;
    let join = format!("join --token {} --advertise-addr {} {}", token.trim(), address("h2"), address("h1"));
    docker.at("h2", &format!("exec meshd meshctl {join}"))?.joined()?;
    meshctl("h1", "network create ov")?;
    meshctl("h1", "service create --name web --network ov --publish 8000:80 --publish 8001:7")?;
    for (host, name) in [("h1", "one"), ("h2", "two")] {
        docker.network(host, "ov")?;
        docker.run(host, name, "--network ov --label mesh.service=web", ECHO)?;
    }
    lab.balanced(&HOSTS, 8000, &["one", "two"])?;
    docker.at("h1", "exec one meshd-echo client http two:80")?.ok()?;
    // A process of the host itself, which only a hook at the root of the host's cgroups sees.
    lab.http(Place::Host("h2"), "127.0.0.1:8000", 2)?;
    // A namespace by name, made after meshd was started.
    hosts[0].inside("ip netns add late")?;
    meshctl("h1", "network connect ov netns:late")?;
    hosts[0].inside("ip netns exec late ping -c 1 -W 2 192.168.77.12")?;
    meshctl("h1", "network disconnect ov netns:late")?;
    hosts[0].inside("ip netns del late")?;

    // Killed: Docker starts it again, and nobody notices.
    let to = HOSTS.map(|h| format!("{}:8001", address(h)));
    let mut held = lab.hold(Place::Client, &to.each_ref().map(String::as_str), 8)?;
    let state =
        |format: &str| Ok::<_, Box<dyn std::error::Error>>(docker.at("h1", &format!("inspect -f {format} meshd"))?.ok()?.trim().to_owned());
    let pid = state("{{.State.Pid}}")?;
    succeeds(Command::new("kill").args(["-KILL", &pid]))?;
    lab.balanced(&HOSTS, 8000, &["one", "two"])?;
    until(20, "Docker to start meshd again", || {
        Ok(state("{{.State.Running}}")? == "true" && state("{{.State.Pid}}")? != pid)
    })?;
    answers(&lab, "h1")?;
    docker.run("h1", "three", "--network ov --label mesh.service=web", ECHO)?;
    lab.balanced(&HOSTS, 8000, &["one", "three", "two"])?;

    // Replaced: what it has made and what it knows are the host's.
    compose(&lab, "h2", "down")?;
    lab.balanced(&HOSTS, 8000, &["one", "three", "two"])?;
    compose(&lab, "h2", "up -d")?;
    answers(&lab, "h2")?;
    assert!(held.lives()?);
    println!("connections that stayed: {}", held.end()?);
    docker.at("h2", "rm -f two")?.ok()?;
    lab.balanced(&HOSTS, 8000, &["one", "three"])?;
    docker.at("h1", "rm -f one three")?.ok()?;
    until(20, "every endpoint to be gone", || Ok(docker.addresses()?.is_empty()))?;

    meshctl("h1", "network create --subnet 10.244.0.0/16 pods")?;
    meshctl(
        "h1",
        "service create --name front --network pods --selector app=front --publish 8002:80",
    )?;
    node_of_kubernetes(&lab, &built, token.trim())?;
    until(20, "every pod to be gone", || Ok(docker.addresses()?.is_empty()))
}

// ---- a node of Kubernetes ------------------------------------------------------------------------

/// A pod with one container, that answers.
fn pod(cri: &Cri, name: &str) -> Result<()> {
    let sandbox = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "shop".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        labels: [("app".to_owned(), "front".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: Host::cgroup(),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    };
    let id = cri.run_pod(&sandbox)?;
    let echo = cri::container("main", containerd::IMAGE, &["/bin/meshd-echo", "--http", "80"]);
    cri.run_container(&id, &sandbox, &echo).map(drop)
}

/// The DaemonSet's pod on h3, which joins the cluster, and pods on its network.
fn node_of_kubernetes(lab: &Lab, image: &str, token: &str) -> Result<()> {
    let dir = Host::dir("h3", "containerd")?;
    let at = |name: &str| dir.join(name).display().to_string();
    for name in ["bin", "net.d", "logs"] {
        fs::create_dir_all(at(name))?;
    }
    symlink("/usr/lib/cni/loopback", at("bin/loopback"))?;
    fs::write(at("config.toml"), containerd::config(&dir.display().to_string(), ""))?;
    let sleeping = containerd::archive(&dir.join("image"))?.display().to_string();
    let (config, root) = (at("config.toml"), at("root"));
    let words = ["containerd", "-c", &config, "--root", &root, "--state", "/run/containerd"];
    let host = Host::start(lab, "h3", dir.clone(), &words)?;
    let cri = Cri::at(&host.path("/run/containerd/containerd.sock"))?;
    until(20, "containerd to serve", || Ok(cri.pods().is_ok())).map_err(|e| format!("{e}: {}", host.log()))?;
    for archive in [image, &sleeping] {
        host.inside(&format!("ctr -n k8s.io images import --snapshotter native {archive}"))?;
    }

    let manifest = yaml("dist/kubernetes/meshd.yaml")?;
    let set = manifest.iter().find(|d| d["kind"] == "DaemonSet").ok_or("no DaemonSet")?;
    let kubelet = Kubelet {
        cri: &cri,
        secret: BTreeMap::from([("manager", address("h1")), ("token", token.to_owned())]),
        places: BTreeMap::from([("/opt/cni/bin", at("bin")), ("/etc/cni/net.d", at("net.d"))]),
        logs: at("logs"),
    };
    let mut meshd = kubelet.run("meshd-0", &set["spec"]["template"]["spec"])?;
    until(20, "the network of pods to be there", || Ok(cri.is_ready()))?;
    pod(&cri, "front-0")?;
    lab.balanced(&["h1", "h2", "h3"], 8002, &["front-0"])?;
    lab.http(Place::Host("h3"), "127.0.0.1:8002", 1)?;

    let tasks = host.inside("ctr -n k8s.io tasks ls")?;
    let is_meshd = |words: &Vec<&str>| words.first() == Some(&meshd.container.as_str());
    let task = tasks.lines().map(|l| l.split_whitespace().collect()).find(is_meshd);
    let pid = task
        .and_then(|words| words.get(1).copied())
        .ok_or("meshd's container has no process")?;
    succeeds(Command::new("kill").args(["-KILL", pid]))?;
    lab.balanced(&["h1", "h3"], 8002, &["front-0"])?;
    kubelet.restart(&mut meshd)?;
    pod(&cri, "front-1")?;
    lab.balanced(&["h1", "h2", "h3"], 8002, &["front-0", "front-1"])?;

    let all = cri.pods()?;
    // meshd last: a pod's network is taken down by it.
    for id in all.iter().filter(|id| **id != meshd.id).chain([&meshd.id]) {
        cri.stop_pod(id)?;
        cri.remove_pod(id)?;
    }
    Ok(())
}

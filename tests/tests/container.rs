//! meshd itself as a container: the image of dist/Containerfile, started by Docker as dist/docker/compose.yaml
//! says, on two hosts; and that dist/kubernetes/meshd.yaml gives it the same. Nothing is pulled: the image's
//! base is made of this machine's packages.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::SystemTime,
};

use mesh_tests::{Docker, Lab, Place, Result, address, image, until};
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

// ---- a host --------------------------------------------------------------------------------------

fn lab_dir() -> String {
    std::env::var("MESH_LAB_DIR").unwrap_or_else(|_| "/run/mesh-lab".to_owned())
}

/// A host of the lab with a /run, a /var/lib, a name and a dockerd of its own.
struct Host {
    daemon: Child,
}

/// $0 is a directory for it, $1 its name, $2 the lab's directory. The lab finds meshd's socket and Docker's
/// where it expects them.
const SPACE: &str = r#"
    hostname "$1"
    mkdir -p "$0/run" "$2/$1/run"
    mount -t tmpfs host "$0/run"
    mkdir -p "$0/run/netns" "$0/run/meshd"
    mount --rbind /run/netns "$0/run/netns"
    mount --bind "$2/$1/run" "$0/run/meshd"
    case $2 in /run/*)
        mkdir -p "$0$2"
        mount --bind "$2" "$0$2"
    esac
    mount --rbind "$0/run" /run
    mount -t tmpfs host /var/lib
    mount -t bpf host /sys/fs/bpf
    # As systemd has it; the lab's own mounts are not among these.
    mount --make-rshared /
    exec dockerd --data-root "$0/data" --exec-root /run/docker-exec -p "$0/dockerd.pid" --bridge none \
        --add-runtime "lab=$0/runc" --default-runtime lab -H unix:///run/docker.sock -H "unix://$0/docker.sock" --cgroup-parent "$3" \
        >"$0/log" 2>&1"#;

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

impl Host {
    fn start(lab: &Lab, host: &str) -> Result<Self> {
        let lab_dir = lab_dir();
        let dir = format!("{lab_dir}/{host}/docker");
        fs::create_dir_all(&dir)?;
        let runc = Path::new(&dir).join("runc");
        fs::write(&runc, RUNC)?;
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
        let group = format!("/lab{}", lab_dir.replace('/', "-"));
        let words = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-ec", SPACE];
        let mut command = lab.command(Place::Host(host), &[&words[..], &[&dir, host, &lab_dir, &group]].concat());
        let daemon = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let host_up = Self { daemon };
        let up = until(30, "dockerd to answer", || {
            Ok(lab.at(Place::Host(host), "docker version")?.status == 0)
        });
        up.map_err(|e| format!("{e}: {}", fs::read_to_string(format!("{dir}/log")).unwrap_or_default()))?;
        Ok(host_up)
    }

    /// A command in its mount namespace.
    fn inside(&self, lab: &Lab, host: &str, command: &str) -> Result<String> {
        lab.at(Place::Host(host), &format!("nsenter -t {} -m -- {command}", self.daemon.id()))?
            .ok()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Containers are ended by `scripts/lab down`, by their cgroup.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
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

/// meshd's image on each host, by its recipe, and `lab` for the containers that use the network.
fn images(lab: &Lab) -> Result<()> {
    let dir = lab_dir();
    let (base, built, containers) = (format!("{dir}/base.tar"), format!("{dir}/meshd.tar"), image()?);
    succeeds(Command::new(at_root("tests/fixtures/debian-base")).arg(&base))?;
    let docker = |host: &str, words: &[&str]| {
        let words = [&["env", "DOCKER_BUILDKIT=0", "docker"], words].concat();
        lab.argv(Place::Host(host), &words)?.ok()
    };
    docker("h1", &["import", &base, "debian:12-slim"])?;
    let (recipe, context) = (at_root("dist/Containerfile"), package()?);
    let (recipe, context) = (recipe.display().to_string(), context.display().to_string());
    docker("h1", &["build", "--network", "none", "-t", "meshd", "-f", &recipe, &context])?;
    docker("h1", &["save", "-o", &built, "meshd"])?;
    docker("h2", &["load", "-i", &built])?;
    for host in HOSTS {
        docker(host, &["import", &containers.display().to_string(), "lab"])?;
    }
    for file in [Path::new(&base), Path::new(&built), &containers] {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn compose(lab: &Lab, host: &str, command: &str) -> Result<()> {
    let file = at_root("dist/docker/compose.yaml");
    lab.at(Place::Host(host), &format!("docker-compose -f {} {command}", file.display()))?
        .ok()
        .map(drop)
}

fn answers(lab: &Lab, host: &str) -> Result<()> {
    until(20, &format!("meshd on {host} to answer"), || {
        Ok(lab.at(Place::Host(host), "docker exec meshd meshctl status")?.status == 0)
    })
    .map_err(|e| {
        let said = lab.at(Place::Host(host), "docker exec meshd meshctl status");
        let logs = lab.at(Place::Host(host), "docker logs --tail 20 meshd");
        format!("{e}: {said:?} {logs:?}").into()
    })
}

#[test]
fn container_of_docker_runs_meshd() -> Result<()> {
    succeeds(Command::new(at_root("scripts/setup")).args(["docker", "compose"]))?;
    let lab = Lab::up("--nodes 2 --managers 0")?;
    let hosts = [Host::start(&lab, "h1")?, Host::start(&lab, "h2")?];
    images(&lab)?;
    let docker = Docker::started(&lab);
    let meshctl = |host: &str, command: &str| docker.at(host, &format!("exec meshd meshctl {command}"))?.ok();
    for host in HOSTS {
        compose(&lab, host, "up -d")?;
        answers(&lab, host)?;
    }
    meshctl("h1", &format!("init --advertise-addr {}", address("h1")))?;
    let token = meshctl("h1", "token worker -q")?;
    meshctl(
        "h2",
        &format!("join --token {} --advertise-addr {} {}", token.trim(), address("h2"), address("h1")),
    )?;
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
    hosts[0].inside(&lab, "h1", "ip netns add late")?;
    meshctl("h1", "network connect ov netns:late")?;
    hosts[0].inside(&lab, "h1", "ip netns exec late ping -c 1 -W 2 192.168.77.12")?;
    meshctl("h1", "network disconnect ov netns:late")?;
    hosts[0].inside(&lab, "h1", "ip netns del late")?;

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
    Ok(())
}

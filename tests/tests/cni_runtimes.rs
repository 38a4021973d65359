//! meshd-cni under real container runtimes: containerd (`ctr run --cni`) and Podman with its CNI backend,
//! Debian's, on two hosts. Nothing is pulled: the containers' file system is made here.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mesh_tests::{Host, Lab, Place, Result, address, lab_dir, until};

const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab");
const ECHO: &str = env!("CARGO_BIN_EXE_meshd-echo");

/// A container of the test: its name, its host.
const ALL: [(&str, &str); 3] = [("c1", "h1"), ("c2", "h1"), ("c3", "h2")];

/// A directory, removed when dropped, with what may still be mounted in it.
struct Work(PathBuf);

impl Work {
    fn new(name: &str) -> Result<Self> {
        let dir = PathBuf::from(format!("/run/mesh-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let work = Self(dir);
        work.rootfs()?;
        Ok(work)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// busybox and meshd-echo, with the libraries that they need.
    fn rootfs(&self) -> Result<()> {
        let script = r#"
            mkdir -p "$0"/bin "$0"/etc "$0"/proc "$0"/sys "$0"/dev "$0"/tmp "$0"/run
            cp "$(command -v busybox)" "$0/bin/busybox" && cp "$1" "$0/bin/meshd-echo"
            for name in sh sleep ip cat; do ln -s busybox "$0/bin/$name"; done
            for program in busybox meshd-echo; do
                ldd "$0/bin/$program" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do
                    mkdir -p "$0$(dirname "$lib")" && cp -L "$lib" "$0$lib"
                done
            done
            printf 'hosts: files dns\n' >"$0/etc/nsswitch.conf"
            [ -x "$0/bin/busybox" ]"#;
        let done = Command::new("sh").args(["-ec", script, &self.path("root"), ECHO]).status()?;
        if done.success() {
            Ok(())
        } else {
            Err(format!("no file system for containers: {done}").into())
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let clean = r#"
            awk -v at="$0/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l
            rm -rf --one-file-system "$0""#;
        // Nothing is left to do about it when a test fails.
        let _ = Command::new("sh")
            .args(["-c", clean, &self.path("")[..self.path("").len() - 1]])
            .status();
    }
}

/// One container asks another, which may just have been started, and on another host.
fn answered(exec: &dyn Fn(&str, &str) -> Result<String>, from: &str, to: &str) -> Result<()> {
    let mut said = Ok(String::new());
    let outcome = until(20, &format!("{to} to answer {from}"), || {
        said = exec(from, &format!("/bin/meshd-echo client http {to}:80 --timeout 5"));
        Ok(said.as_ref().is_ok_and(|said| said.contains("\"client\"")))
    });
    outcome.map_err(|e| format!("{e}: {said:?}").into())
}

/// What the containers of either runtime are asked.
fn reached(lab: &Lab, exec: &dyn Fn(&str, &str) -> Result<String>, names: &[&str]) -> Result<()> {
    for (from, _) in ALL {
        for to in names {
            // From inside, by the name that its own resolv.conf's server knows.
            answered(exec, from, to)?;
        }
        answered(exec, from, "web")?;
    }
    for host in ["h1", "h2"] {
        until(15, "the published port to be balanced over all", || {
            let seen = lab.http(Place::Client, &format!("{}:8000", address(host)), 6);
            let by: BTreeSet<_> = seen.iter().flatten().map(|r| r.local.clone()).collect();
            Ok(by.len() == ALL.len())
        })?;
    }
    Ok(())
}

fn endpoints(lab: &Lab) -> Result<Vec<String>> {
    Ok(lab.network("ov")?.endpoints.into_iter().map(|e| e.name).collect())
}

/// Neither objects nor interfaces nor namespaces.
fn nothing_left(lab: &Lab) -> Result<()> {
    until(15, "every endpoint to be gone", || Ok(endpoints(lab)?.is_empty()))?;
    for host in ["h1", "h2"] {
        until(10, "every interface to be gone", || {
            Ok(!lab.at(Place::Host(host), "ip -o link")?.ok()?.contains(" mv-"))
        })?;
    }
    Ok(())
}

fn cluster() -> Result<Lab> {
    let setup = Path::new(LAB).with_file_name("setup");
    let done = Command::new(setup).arg("runtimes").status()?;
    assert!(done.success(), "scripts/setup runtimes: {done}");
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --publish 8000:80")?.ok()?;
    Ok(lab)
}

// ---- containerd ----------------------------------------------------------------------------------

/// containerd on a host of the lab, in a mount namespace of its own with its own /etc/cni and /opt/cni.
struct Containerd<'a> {
    lab: &'a Lab,
    host: &'static str,
    dir: String,
    daemon: Child,
}

impl<'a> Containerd<'a> {
    fn start(lab: &'a Lab, work: &Work, host: &'static str) -> Result<Self> {
        let dir = work.path(host);
        fs::create_dir_all(&dir)?;
        let config = format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n"
        );
        fs::write(format!("{dir}/config.toml"), config)?;
        let daemon = Self::daemon(host, &dir)?;
        let it = Self { lab, host, dir, daemon };
        it.serving()?;
        Ok(it)
    }

    fn daemon(host: &str, dir: &str) -> Result<Child> {
        let script = r#"
            mkdir -p /etc/cni /opt/cni /var/lib/cni
            for at in /etc/cni /opt/cni /var/lib/cni; do mount -t tmpfs mesh-test "$at"; done
            meshd-cni install --network ov --service web
            exec containerd -c "$0/config.toml" --root "$0/root" --state "$0/state" --address "$0/sock" >>"$0/log" 2>&1"#;
        let mut command = Command::new(LAB);
        command.args([
            "exec",
            host,
            "--",
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-ec",
            script,
            dir,
        ]);
        Ok(command.stdin(Stdio::null()).process_group(0).spawn()?)
    }

    fn serving(&self) -> Result<()> {
        until(20, "containerd to serve", || Ok(self.ctr("version")?.status == 0))
    }

    fn ctr(&self, command: &str) -> Result<mesh_tests::Done> {
        let pid = self.daemon.id();
        self.lab.at(
            Place::Host(self.host),
            &format!("nsenter -t {pid} -m -- ctr -a {}/sock {command}", self.dir),
        )
    }

    fn run(&self, work: &Work, name: &str) -> Result<()> {
        let resolv = work.path("resolv.conf");
        let mount = format!("--mount type=bind,src={resolv},dst=/etc/resolv.conf,options=rbind:ro");
        let command = format!(
            "run -d --cni {mount} --rootfs {} {name} /bin/meshd-echo --http 80",
            work.path("root")
        );
        self.ctr(&command)?.ok().map(drop)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.ctr(&format!("tasks kill -s 9 {name}"))?.ok()?;
        until(10, "the task to end", || {
            Ok(self.ctr(&format!("tasks rm {name}"))?.status == 0 || !self.ctr("tasks ls -q")?.ok()?.contains(name))
        })?;
        self.ctr(&format!("containers rm {name}"))?.ok().map(drop)
    }

    /// As a power cut does it: the daemon only.
    fn kill_and_start(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.wait()?;
        self.daemon = Self::daemon(self.host, &self.dir)?;
        self.serving()
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let left = self.ctr("tasks ls -q").map(|d| d.out).unwrap_or_default();
        for name in left.split_whitespace() {
            // What can not be removed is for whoever reads why the test failed.
            let _ = self.remove(name);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn containerd() -> Result<()> {
    let lab = cluster()?;
    let work = Work::new("containerd")?;
    let gateway = lab.network("ov")?.subnets[0].gateway.clone();
    fs::write(work.path("resolv.conf"), format!("nameserver {gateway}\noptions ndots:0\n"))?;
    let mut hosts = [Containerd::start(&lab, &work, "h1")?, Containerd::start(&lab, &work, "h2")?];
    let on = |hosts: &[Containerd; 2], host: &str| usize::from(hosts[0].host != host);
    for (name, host) in ALL {
        hosts[on(&hosts, host)].run(&work, name)?;
    }
    let names = ["default-c1", "default-c2", "default-c3"];
    let exec = |hosts: &[Containerd; 2], name: &str, command: &str| {
        let host = ALL.iter().find(|(n, _)| *n == name).map_or("h1", |(_, h)| h);
        hosts[on(hosts, host)]
            .ctr(&format!("tasks exec --exec-id x {name} {command}"))?
            .ok()
    };
    reached(&lab, &|name, command| exec(&hosts, name, command), &names)?;
    // One that runs in the foreground: DEL comes with an empty CNI_NETNS.
    let foreground = format!("run --rm --cni --rootfs {} c4 /bin/ip -4 addr show dev eth0", work.path("root"));
    assert!(hosts[0].ctr(&foreground)?.ok()?.contains("inet 10."));
    assert_eq!(endpoints(&lab)?.len(), ALL.len());
    // The runtime killed, and started again: containers and their network go on.
    hosts[0].kill_and_start()?;
    reached(&lab, &|name, command| exec(&hosts, name, command), &names)?;
    // A container that is killed leaves nothing, though nobody calls DEL for it.
    hosts[0].remove("c1")?;
    until(15, "c1 to be gone", || Ok(endpoints(&lab)?.len() == 2))?;
    hosts[0].remove("c2")?;
    hosts[1].remove("c3")?;
    nothing_left(&lab)
}

/// Containers that are started at once.
const BURST: usize = 100;
/// For each NAME at once, in containerd's mount namespace; `RUN` or `END`. It prints the names that failed.
const EACH: &str = r#"
    RUN() {
        timeout 200 ctr run -d --cni --cgroup "$GROUP/$1" --rootfs "$ROOTFS" "$1" /bin/sleep 1000 >/dev/null 2>&1
    }
    # What a containerd that was killed has no record of has its cgroup all the same.
    END() {
        ctr tasks rm -f "$1" >/dev/null 2>&1
        cat /sys/fs/cgroup$GROUP/$1/cgroup.procs /sys/fs/cgroup/*$GROUP/$1/cgroup.procs 2>/dev/null | sort -u | xargs -r kill -KILL 2>/dev/null
        ! ctr containers ls -q | grep -qx "$1" || ctr containers rm "$1" >/dev/null 2>&1
    }
    verb=$1
    shift
    for name in "$@"; do ($verb "$name" || echo "$name") & done
    wait"#;

impl Containerd<'_> {
    /// The command on its host that runs [`EACH`].
    fn each(&self, work: &Work, verb: &str, names: &[String]) -> Vec<String> {
        let (pid, socket) = (self.daemon.id().to_string(), format!("CONTAINERD_ADDRESS={}/sock", self.dir));
        // The group of which `scripts/lab down` ends all processes.
        let group = format!("GROUP={}", Host::cgroup());
        let root = format!("ROOTFS={}", work.path("root"));
        let words = [
            "nsenter", "-t", &pid, "-m", "--", "env", &socket, &group, &root, "bash", "-c", EACH, "each", verb,
        ];
        words
            .into_iter()
            .chain(names.iter().map(String::as_str))
            .map(str::to_owned)
            .collect()
    }

    /// Its tasks that run, with the address that each has inside.
    fn running(&self) -> Result<BTreeSet<(String, String)>> {
        let tasks = self.ctr("tasks ls")?.ok()?;
        let mut out = BTreeSet::new();
        for task in tasks.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()) {
            let [name, pid, "RUNNING"] = task[..] else { continue };
            let seen = self
                .lab
                .at(Place::Host(self.host), &format!("nsenter -t {pid} -n ip -o -4 addr show dev eth0"))?;
            let inside = seen
                .ok()?
                .split_whitespace()
                .nth(3)
                .map(|a| a.split('/').next().unwrap_or_default().to_owned());
            out.insert((format!("default-{name}"), inside.unwrap_or_default()));
        }
        Ok(out)
    }
}

fn each(lab: &Lab, words: &[String]) -> Result<Vec<String>> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    Ok(lab.argv(Place::Host("h1"), &words)?.ok()?.lines().map(str::to_owned).collect())
}

/// The endpoints by name and address; no two have one address.
fn addresses(lab: &Lab) -> Result<BTreeSet<(String, String)>> {
    let all: BTreeSet<_> = lab.network("ov")?.endpoints.into_iter().map(|e| (e.name, e.ip)).collect();
    let unique: BTreeSet<_> = all.iter().map(|(_, ip)| ip).collect();
    assert_eq!(unique.len(), all.len(), "an address was given twice: {all:?}");
    Ok(all)
}

#[test]
fn containerd_is_killed_in_the_middle_of_a_burst() -> Result<()> {
    let lab = cluster()?;
    let work = Work::new("burst")?;
    let mut containerd = Containerd::start(&lab, &work, "h1")?;
    let names: Vec<_> = (0..BURST).map(|n| format!("b-{n}")).collect();
    let run = containerd.each(&work, "RUN", &names);
    let failed = std::thread::scope(|scope| {
        let running = scope.spawn(|| each(&lab, &run).map_err(|e| e.to_string()));
        let killed =
            until(120, "some to be attached", || Ok(endpoints(&lab)?.len() > BURST / 4)).and_then(|()| containerd.kill_and_start());
        let failed = running.join().unwrap_or_else(|_| Err("a thread failed".into()))?;
        killed.map(|()| failed)
    })?;
    println!("{} of {BURST} failed", failed.len());
    // What runs is attached, also where ctr was told that it failed; what ctr was told to run does.
    let (runs, are) = (containerd.running()?, addresses(&lab)?);
    assert!(runs.is_subset(&are), "{runs:?} run, {are:?} are attached");
    let is_up = |name: &&String| runs.iter().any(|(n, _)| *n == format!("default-{name}"));
    assert!(
        names.iter().filter(|name| !failed.contains(name)).all(|name| is_up(&name)),
        "{failed:?} {runs:?}"
    );
    // What came half way goes with its processes, and as many others can be run.
    each(&lab, &containerd.each(&work, "END", &failed))?;
    until(
        60,
        "what came half way to be gone",
        || Ok(addresses(&lab)? == containerd.running()?),
    )?;
    // Under names of their own: ctr cannot remove a task whose container containerd has not written down.
    let others: Vec<_> = failed.iter().map(|name| format!("again-{name}")).collect();
    let failed = each(&lab, &containerd.each(&work, "RUN", &others))?;
    assert!(failed.is_empty(), "{failed:?}");
    let (runs, are) = (containerd.running()?, addresses(&lab)?);
    assert_eq!(runs, are);
    assert_eq!(are.len(), BURST);
    lab.container("h2", "asker", "--network ov")?;
    for (name, _) in &are {
        until(15, &format!("{name} to be reached from another host"), || {
            Ok(lab.at(Place::In("asker"), &format!("ping -c1 -W2 {name}"))?.status == 0)
        })?;
    }
    lab.lab(&["stop", "asker"])?.ok()?;
    each(&lab, &containerd.each(&work, "END", &[names, others].concat()))?;
    nothing_left(&lab)
}

// ---- Podman --------------------------------------------------------------------------------------

/// Podman on a host of the lab, with storage and networks of its own.
struct Podman<'a> {
    lab: &'a Lab,
    host: &'static str,
    dir: String,
}

impl<'a> Podman<'a> {
    fn new(lab: &'a Lab, work: &Work, host: &'static str) -> Result<Self> {
        let dir = work.path(host);
        fs::create_dir_all(&dir)?;
        let containers = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{dir}/bin\", \"/usr/lib/cni\"]\nnetwork_config_dir = \"{dir}/net.d\"\n\
             default_network = \"ov\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n\
             tmp_dir = \"{dir}/tmp\"\n[containers]\nlog_driver = \"k8s-file\"\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n"
        );
        fs::write(format!("{dir}/containers.conf"), containers)?;
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/graph\"\nrunroot = \"{dir}/run\"\n");
        fs::write(format!("{dir}/storage.conf"), storage)?;
        let install = format!("meshd-cni install --bin-dir {dir}/bin --conf-dir {dir}/net.d --network ov --service web");
        lab.at(Place::Host(host), &install)?.ok()?;
        let podman = Self { lab, host, dir };
        let import = format!("tar -C {} -c . | {} import - echo", work.path("root"), podman.words().join(" "));
        lab.argv(Place::Host(host), &["sh", "-c", &import])?.ok()?;
        Ok(podman)
    }

    fn words(&self) -> [String; 4] {
        let d = &self.dir;
        [
            "env".into(),
            format!("CONTAINERS_CONF={d}/containers.conf"),
            format!("CONTAINERS_STORAGE_CONF={d}/storage.conf"),
            "podman".into(),
        ]
    }

    /// Podman's Docker-compatible API, at the socket where the host's meshd asks; ended when dropped.
    fn service(&self) -> Result<Service> {
        let dir = lab_dir().display().to_string();
        let socket = format!("{dir}/{}/podman.sock", self.host);
        let url = format!("unix://{socket}");
        let words = self.words();
        let mut words: Vec<_> = words.iter().map(String::as_str).collect();
        words.extend(["system", "service", "--time", "0", &url]);
        let mut command = self.lab.command(Place::Host(self.host), &words)?;
        let service = Service(command.stdin(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?);
        until(20, "podman's socket to answer", || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
        })?;
        Ok(service)
    }

    fn podman(&self, command: &str) -> Result<mesh_tests::Done> {
        let line = format!("{} {command}", self.words().join(" "));
        self.lab.at(Place::Host(self.host), &line)
    }
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // What can not be removed is for whoever reads why the test failed.
        let _ = self.podman("rm -f -t 0 --all");
    }
}

#[test]
fn podman() -> Result<()> {
    let lab = cluster()?;
    let work = Work::new("podman")?;
    let hosts = [Podman::new(&lab, &work, "h1")?, Podman::new(&lab, &work, "h2")?];
    let on = |name: &str| &hosts[usize::from(ALL.iter().any(|(n, h)| *n == name && *h == "h2"))];
    for (name, _) in ALL {
        let ports = if name == "c3" { "-p 8081:80" } else { "" };
        let run = format!("run -d --name {name} --network ov --network-alias also-{name} {ports} echo /bin/meshd-echo --http 80");
        on(name).podman(&run)?.ok()?;
    }
    let exec = |name: &str, command: &str| on(name).podman(&format!("exec {name} {command}"))?.ok();
    reached(&lab, &exec, &["c1", "c2", "c3", "also-c1", "also-c3"])?;
    // Its own port answers on its own host, and on no other.
    lab.http(Place::Client, &format!("{}:8081", address("h2")), 1)?;
    assert!(lab.http(Place::Client, &format!("{}:8081", address("h1")), 1).is_err());
    // Restarted, and with an address that was asked for.
    on("c1").podman("restart -t 0 c1")?.ok()?;
    until(15, "c1 to answer again", || {
        Ok(exec("c2", "/bin/meshd-echo client http c1:80 --timeout 1").is_ok())
    })?;
    let subnet = lab.network("ov")?.subnets[0].gateway.clone();
    let wanted = subnet.trim_end_matches(|c: char| c != '.').to_owned() + "77";
    let asked = format!("run --rm --network ov --ip {wanted} echo /bin/ip -4 addr show dev eth0");
    assert!(on("c1").podman(&asked)?.ok()?.contains(&wanted));
    several(&lab, on("c1"))?;
    for (name, _) in ALL {
        on(name).podman(&format!("rm -f -t 0 {name}"))?.ok()?;
    }
    nothing_left(&lab)?;
    let spaces = fs::read_dir("/run/netns")?.flatten();
    let left: Vec<_> = spaces
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with("netns-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Between two of the reference plugins.
const CHAIN: &str = r#"{"cniVersion": "0.4.0", "name": "chain", "plugins": [{"type": "bridge", "bridge": "chain0",
    "isGateway": true, "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
    "ranges": [[{"subnet": "10.89.0.0/24"}]]}}, {"type": "meshd-cni", "network": "ov"},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "511"}}]}"#;

/// One container on two networks, by a call for each, with wishes for one of them; and between other plugins.
fn several(lab: &Lab, podman: &Podman<'_>) -> Result<()> {
    lab.ctl("h1", "network create back")?.ok()?;
    let d = &podman.dir;
    let install = format!("meshd-cni install --bin-dir {d}/bin --conf-dir {d}/net.d --conf-file 20-back.conflist --network back");
    lab.at(Place::Host("h1"), &install)?.ok()?;
    let prefix = |network: &str| {
        let gateway = lab.network(network)?.subnets.remove(0).gateway;
        Ok::<_, Box<dyn std::error::Error>>(gateway.trim_end_matches(|c: char| c != '.').to_owned())
    };
    let (first, second) = (prefix("ov")?, prefix("back")?);
    let mac = "02:11:22:33:44:66";
    let run = format!("run --rm --network ov:ip={first}78 --network back:mac={mac} echo /bin/ip addr");
    let inside = podman.podman(&run)?.ok()?;
    for wanted in ["eth0", "eth1", mac, &format!("inet {first}78/"), &format!("inet {second}")] {
        assert!(inside.contains(wanted), "{wanted}: {inside}");
    }
    fs::write(format!("{d}/net.d/30-chain.conflist"), CHAIN)?;
    let inside = podman.podman("run --rm --network chain echo /bin/ip -o -4 addr")?.ok()?;
    assert!(
        inside.contains("eth0    inet 10.89.0.") && inside.contains(&format!("eth1    inet {first}")),
        "{inside}"
    );
    let tuned = podman
        .podman("run --rm --network chain echo /bin/cat /proc/sys/net/core/somaxconn")?
        .ok()?;
    assert_eq!(tuned.trim(), "511", "the plugin behind");
    Ok(())
}

/// A bridge of one host, with a default route, as Podman's own default network has it.
const PLAIN: &str = r#"{"cniVersion": "0.4.0", "name": "plain", "plugins": [{"type": "bridge", "bridge": "plain0",
    "isGateway": true, "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
    "ranges": [[{"subnet": "10.88.0.0/24"}]]}}]}"#;

/// `meshctl network connect` finds a container of Podman's by its API.
#[test]
fn a_podman_container_is_connected_by_name() -> Result<()> {
    let lab = cluster()?;
    let work = Work::new("podman-api")?;
    let podman = Podman::new(&lab, &work, "h1")?;
    fs::write(format!("{}/net.d/10-plain.conflist", podman.dir), PLAIN)?;
    let absent = lab.ctl("h1", "network connect ov plain_one")?;
    absent.refused(3, &["neither docker nor podman answers"])?;
    let _service = podman.service()?;
    lab.ctl("h1", "network connect ov plain_one")?
        .refused(3, &["plain_one", "asked podman"])?;
    lab.container("h2", "asker", "--network ov")?;
    // One with a default route of its own, one with nothing.
    for (name, network) in [("plain_one", "plain"), ("bare", "none")] {
        let run = format!("run -d --name {name} --network {network} echo /bin/meshd-echo --http 80");
        podman.podman(&run)?.ok()?;
    }
    lab.ctl("h1", "network connect --service web --alias first --publish 8081:80 ov plain_one")?
        .ok()?;
    let bare = podman.podman("inspect -f {{.Id}} bare")?.ok()?;
    lab.ctl("h1", &format!("network connect --hostname bare ov {}", bare.trim()))?
        .ok()?;
    let routes = podman.podman("exec plain_one /bin/ip route")?.ok()?;
    let way_out = routes.lines().find(|l| l.starts_with("default")).unwrap_or_default();
    assert!(way_out.contains("10.88.0.1 dev eth0") && routes.contains("dev eth1"), "{routes}");
    let routes = podman.podman("exec bare /bin/ip route")?.ok()?;
    assert!(routes.contains("default") && routes.contains("dev eth0"), "{routes}");

    // Names, the service from everywhere, and its own port: answered by the way that the question came.
    for name in ["plain-one", "first", "bare", "web"] {
        let ask = format!("meshd-echo client http {name}:80 --timeout 2");
        lab.at(Place::In("asker"), &ask)?.ok()?;
    }
    for to in [
        format!("{}:8000", address("h1")),
        format!("{}:8000", address("h2")),
        format!("{}:8081", address("h1")),
    ] {
        until(10, &format!("{to} to answer"), || Ok(lab.http(Place::Client, &to, 3).is_ok()))?;
    }
    // Again by the same name.
    lab.ctl("h1", "network connect ov plain_one")?.refused(4, &["plain-one"])?;
    lab.ctl("h1", "network disconnect ov plain_one")?.ok()?;
    lab.ctl("h1", "network connect --service web ov plain_one")?.ok()?;
    let rules = podman.podman("exec plain_one /bin/ip rule")?.ok()?;
    assert_eq!(rules.matches("from 10.1.").count(), 1, "{rules}");
    // A restart gives it another namespace. The former one is held open by Podman's service.
    podman.podman("restart -t 0 plain_one")?.ok()?;
    until(25, "the endpoint of the former namespace to go", || Ok(endpoints(&lab)?.len() == 2))?;
    lab.ctl("h1", "network connect --service web ov plain_one")?.ok()?;
    until(10, "the port to answer", || {
        Ok(lab.http(Place::Client, &format!("{}:8000", address("h2")), 3).is_ok())
    })?;

    podman.podman("stop -t 0 plain_one")?.ok()?;
    podman.podman("rm -f -t 0 bare")?.ok()?;
    until(25, "both endpoints to go", || Ok(endpoints(&lab)? == ["asker"]))?;
    lab.ctl("h1", "network connect ov plain_one")?
        .refused(3, &["no running container"])?;
    lab.lab(&["stop", "asker"])?.ok()?;
    nothing_left(&lab)
}

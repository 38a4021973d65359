//! Scenario 9: bad input is refused with one line and the right exit code, and changes nothing.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use mesh_tests::{Done, Lab, Place, Result, lab_dir, until};

/// A meshctl command, its exit code, and words of its error.
type Case = (&'static str, i32, &'static [&'static str]);

const NETWORKS: &[Case] = &[
    ("network create bad --subnet 10.99.0.0", 2, &["10.99.0.0"]),
    ("network create bad --subnet 10.99.0.0/33", 2, &["10.99.0.0/33"]),
    ("network create bad --subnet 10.99.0.1/24", 2, &["10.99.0.1/24", "10.99.0.0/24"]),
    ("network create bad --subnet 10.99.0.0/31", 2, &["10.99.0.0/31", "small"]),
    ("network create bad --subnet 10.50.1.0/24", 4, &["10.50.1.0/24", "good"]),
    (
        "network create bad --subnet 192.168.0.0/16",
        4,
        &["192.168.0.0/16", "192.168.77.0/24"],
    ),
    ("network create bad --subnet 10.99.0.0/24 --gateway 10.98.0.1", 2, &["10.98.0.1"]),
    (
        "network create bad --subnet 10.99.0.0/24 --gateway 10.99.0.255",
        2,
        &["10.99.0.255"],
    ),
    ("network create bad --subnet 10.99.0.0/24 --gateway ten", 2, &["ten"]),
    ("network create bad --driver bridge", 2, &["bridge", "overlay"]),
    ("network create good", 4, &["good"]),
    ("network create under_score", 2, &["under_score"]),
    ("network create -- -dash", 2, &["-dash"]),
    ("network create dots.in.it", 2, &["dots.in.it"]),
    (
        "network create aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggg",
        2,
        &["64"],
    ),
    ("network inspect nosuch", 3, &["nosuch"]),
    ("network rm nosuch", 3, &["nosuch"]),
    ("network rm good", 4, &["good", "one"]),
];

const CONTAINERS: &[Case] = &[
    ("network connect --ip 10.51.0.9 good netns:spare", 1, &["10.51.0.9"]),
    ("network connect --ip 10.50.0.1 good netns:spare", 4, &["10.50.0.1"]),
    ("network connect --ip 10.50.0.9 good netns:spare", 4, &["10.50.0.9", "one"]),
    ("network connect --ip 10.50.0.300 good netns:spare", 2, &["10.50.0.300"]),
    ("network connect --hostname one good netns:spare", 4, &["one"]),
    ("network connect --hostname no_label good netns:spare", 2, &["no_label"]),
    ("network connect nosuch netns:spare", 3, &["nosuch"]),
    ("network connect good netns:nosuch", 3, &["nosuch"]),
    ("network connect good pid:0", 2, &["pid"]),
    ("network connect --service nosuch good netns:spare", 3, &["nosuch"]),
    ("network connect --hostname fits full netns:spare", 1, &["full"]),
    ("network disconnect good netns:spare", 3, &["spare"]),
];

const SERVICES: &[Case] = &[
    ("service create --name web --network good", 4, &["web"]),
    ("service create --name bad --network nosuch", 3, &["nosuch"]),
    ("service create --name bad --network good --publish 8888:80", 4, &["8888", "web"]),
    ("service create --name bad --network good --publish 0:80", 2, &["0"]),
    ("service create --name bad --network good --publish 80:0", 2, &["0"]),
    ("service create --name bad --network good --publish 70000:80", 2, &["70000"]),
    ("service create --name bad --network good --publish 81:80/icmp", 2, &["icmp"]),
    ("service create --name no_label --network good", 2, &["no_label"]),
    (
        "service create --name aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggg --network good",
        2,
        &["64"],
    ),
    ("service inspect nosuch", 3, &["nosuch"]),
    ("service rm nosuch", 3, &["nosuch"]),
    ("init --advertise-addr 192.168.77.11", 4, &["cluster"]),
    ("frobnicate", 2, &["frobnicate"]),
];

#[test]
fn s9_objects() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create good --subnet 10.50.0.0/16")?.ok()?;
    // A /30 has room for a gateway and one endpoint.
    lab.ctl("h1", "network create full --subnet 10.52.0.0/30")?.ok()?;
    lab.ctl("h1", "service create --name web --network good --publish 8888:80")?.ok()?;
    lab.container("h1", "one", "--network good --ip 10.50.0.9")?;
    lab.container("h1", "last", "--network full")?;
    // A namespace that is attached to nothing, for those that must not be.
    let spare = Spare::new()?;
    let before = world(&lab)?;
    for (command, status, needles) in NETWORKS.iter().chain(CONTAINERS).chain(SERVICES) {
        lab.ctl("h1", command)?.refused(*status, needles)?;
        assert_eq!(world(&lab)?, before, "`meshctl {command}` changed something");
    }
    for (what, flag) in [
        ("network", &["network", "create", ""][..]),
        ("service", &["service", "create", "--network", "good", "--name", ""]),
    ] {
        lab.argv(Place::Host("h1"), &[&["meshctl"], flag].concat())?
            .refused(2, &[what, "empty"])?;
    }
    assert_eq!(world(&lab)?, before);
    assert_eq!(spare.links()?, ["lo"]);
    no_permission(&lab)
}

/// meshctl as somebody else.
fn no_permission(lab: &Lab) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("meshctl");
    let original = lab.at(Place::Host("h1"), "which meshctl")?.ok()?;
    fs::copy(original.trim(), &copy)?;
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    lab.at(Place::Host("h1"), &format!("{nobody} {} status", copy.display()))?
        .refused(1, &["permission", "meshd.sock"])?;
    let nowhere = directory.path().join("none.sock");
    lab.ctl("h1", &format!("--socket {} status", nowhere.display()))?
        .refused(1, &["none.sock"])
}

#[test]
fn s9_membership() -> Result<()> {
    let lab = Lab::up("--nodes 1")?;
    let stranger = Stranger::start(&lab)?;
    let token = lab.ctl("h1", "token worker -q")?.ok()?.trim().to_owned();
    let before = world(&lab)?;

    stranger.ctl("network ls")?.refused(1, &["cluster"])?;
    stranger.ctl("join --token MESH-1-rubbish 192.168.77.11")?.refused(2, &["token"])?;
    stranger.ctl("join --token rubbish 192.168.77.11")?.refused(2, &["token"])?;
    stranger
        .ctl(&format!("join --token {} 192.168.77.11", &token[..token.len() - 5]))?
        .refused(2, &["token"])?;
    stranger
        .ctl(&format!("join --token {} 192.168.77.11", mistyped(&token)))?
        .refused(2, &["token"])?;
    stranger
        .ctl(&format!("join --token {token} 192.168.77.11:70000"))?
        .refused(2, &["70000"])?;
    // The lab's outside world listens there, and speaks HTTP without TLS.
    elsewhere(&stranger, &token, "192.168.77.1:80")?;
    // Nobody listens there.
    elsewhere(&stranger, &token, "192.168.77.11:2378")?;

    lab.ctl("h1", "token worker --rotate")?.ok()?;
    stranger
        .ctl(&format!("join --token {token} 192.168.77.11"))?
        .refused(1, &["token"])?;
    assert_eq!(world(&lab)?, before);

    // A cluster of its own, whose pool has room for little.
    stranger
        .ctl("init --advertise-addr 192.168.77.200 --default-addr-pool 10.60.0.0/22 --subnet-size 24")?
        .ok()?;
    let foreign = stranger.ctl("token worker -q")?.ok()?.trim().to_owned();
    let mut made = 0;
    let refusal = loop {
        let tried = stranger.ctl(&format!("network create n{made}"))?;
        if tried.status != 0 || made > 4 {
            break tried;
        }
        made += 1;
    };
    assert!((2..=4).contains(&made), "{made} networks of a /24 out of a /22");
    refusal.refused(1, &["10.60.0.0/22"])?;
    stranger
        .ctl(&format!(
            "join --token {} 192.168.77.11",
            lab.ctl("h1", "token worker -q")?.ok()?.trim()
        ))?
        .refused(4, &["cluster"])?;
    let second = Stranger::start_named(&lab, "second", "192.168.77.201")?;
    second
        .ctl(&format!("join --token {foreign} 192.168.77.11"))?
        .refused(1, &["cluster"])?;
    assert_eq!(world(&lab)?, before);
    Ok(())
}

/// Joining by way of something that is no manager.
fn elsewhere(stranger: &Stranger, token: &str, addr: &str) -> Result<()> {
    let tried = stranger.ctl(&format!("join --token {token} {addr}"))?;
    let status = tried.status;
    assert!(status == 1 || status == 5, "{tried:?}");
    tried.refused(status, &[addr])
}

#[test]
fn s9_damage() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    let root = lab_dir();
    let before = world(&lab)?;
    // A copy is moved aside and fetched again; what the managers alone have is refused.
    for (host, what) in [("h2", "ledger"), ("h1", "ledger"), ("h1", "raft")] {
        lab.lab(&["kill", host])?.ok()?;
        let file = data_file(&root.join(host).join("data"), what)?;
        let whole = fs::read(&file)?;
        let damaged: Vec<u8> = whole.iter().enumerate().map(|(i, b)| if i % 512 < 64 { !b } else { *b }).collect();
        fs::write(&file, &damaged)?;
        if what == "raft" {
            let dir = root.join(host);
            let run = format!(
                "timeout 200 meshd --data-dir {0}/data --run-dir {0}/run --bpffs {1}/bpffs/{host} --hostname {host} --uplink eth0 --resolv-conf {0}/resolv.conf --log off",
                dir.display(),
                root.display()
            );
            lab.at(Place::Host(host), &run)?
                .refused(1, &["damaged", &file.display().to_string()])?;
            assert_eq!(fs::read(&file)?, damaged, "{} was written to", file.display());
            fs::write(&file, &whole)?;
        }
        lab.lab(&["restart", host])?.ok()?;
        until(20, "both nodes to be ready again", || {
            let Ok(nodes) = lab.json("h1", "node ls") else { return Ok(false) };
            Ok(nodes
                .as_array()
                .is_some_and(|list| list.len() == 2 && list.iter().all(|n| n["state"] == "ready")))
        })?;
        if what == "ledger" {
            let aside = file.with_extension("redb.damaged");
            assert_eq!(fs::read(&aside)?, damaged, "{} was written to", aside.display());
            until(20, "the ledger to be fetched again", || {
                let Ok(status) = lab.json(host, "status") else { return Ok(false) };
                Ok(status["applied_generation"].as_u64().is_some_and(|g| g > 0) && status["networks"] == 2)
            })?;
            fs::remove_file(&aside)?;
        }
    }
    assert_eq!(world(&lab)?, before);
    Ok(())
}

/// The largest file below `dir` whose path speaks of `what`.
fn data_file(dir: &std::path::Path, what: &str) -> Result<PathBuf> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.path().display().to_string().contains(what) {
                found.push((entry.metadata()?.len(), entry.path()));
            }
        }
    }
    found.sort();
    found
        .pop()
        .map(|(_, path)| path)
        .ok_or_else(|| format!("no {what} file below {}", dir.display()).into())
}

/// A token with one character of its secret changed.
fn mistyped(token: &str) -> String {
    let at = token.len() - 12;
    let other = if token.as_bytes()[at] == b'a' { "b" } else { "a" };
    format!("{}{other}{}", &token[..at], &token[at + 1..])
}

/// All that users can see of the cluster's objects.
fn world(lab: &Lab) -> Result<String> {
    let mut all = String::new();
    for command in ["network ls", "service ls", "endpoint ls"] {
        let mut list = lab.json("h1", command)?;
        if let Some(list) = list.as_array_mut() {
            list.sort_by_key(|o| o["id"].to_string());
        }
        all += &format!("{command}: {list}\n");
    }
    let nodes = lab.json("h1", "node ls")?;
    for node in nodes.as_array().into_iter().flatten() {
        all += &format!("node {} {}\n", node["id"], node["hostname"]);
    }
    Ok(all)
}

/// The network namespace `spare`.
struct Spare;

impl Spare {
    fn new() -> Result<Self> {
        ip(&["netns", "add", "spare"])?;
        Ok(Self)
    }

    fn links(&self) -> Result<Vec<String>> {
        Ok(ip(&["-n", "spare", "-o", "link"])?
            .lines()
            .filter_map(|l| Some(l.split(": ").nth(1)?.to_owned()))
            .collect())
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Err(e) = ip(&["netns", "del", "spare"]) {
            println!("{e}");
        }
    }
}

fn ip(args: &[&str]) -> Result<String> {
    let done = Command::new("ip").args(args).output()?;
    if !done.status.success() {
        return Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// A meshd on the client machine, which belongs to no cluster yet.
struct Stranger<'a> {
    lab: &'a Lab,
    meshd: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl<'a> Stranger<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        Self::start_named(lab, "stranger", "192.168.77.200")
    }

    fn start_named(lab: &'a Lab, name: &str, addr: &str) -> Result<Self> {
        if addr != "192.168.77.200" {
            lab.at(Place::Client, &format!("ip addr add {addr}/24 dev eth0"))?.ok()?;
        }
        let directory = tempfile::tempdir()?;
        let root = lab_dir().display().to_string();
        let bpffs = format!("{root}/bpffs/{name}");
        fs::create_dir_all(&bpffs)?;
        let dir = directory.path().display();
        // Two of them share the machine: each has a port of its own.
        let port = if name == "stranger" { 2377 } else { 2379 };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab");
        let meshd = Command::new(script)
            .args([
                "client",
                "--",
                "meshd",
                "--data-dir",
                &format!("{dir}/data"),
                "--run-dir",
                &format!("{dir}/run"),
                "--bpffs",
                &bpffs,
            ])
            .args(["--hostname", name, "--uplink", "eth0", "--control-port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let socket = directory.path().join("run/meshd.sock");
        let stranger = Self {
            lab,
            meshd,
            socket,
            _directory: directory,
        };
        until(60, "the stranger to answer", || {
            Ok(std::os::unix::net::UnixStream::connect(&stranger.socket).is_ok())
        })?;
        Ok(stranger)
    }

    fn ctl(&self, command: &str) -> Result<Done> {
        self.lab
            .at(Place::Client, &format!("meshctl --socket {} {command}", self.socket.display()))
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        // Its own child; the lab's end removes what it made in its namespace.
        let _ = self.meshd.kill();
        let _ = self.meshd.wait();
    }
}

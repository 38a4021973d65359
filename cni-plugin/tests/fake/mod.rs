//! A meshd for meshd-cni's tests: the few routes that it asks, over endpoints in memory. The real one is
//! tried in the lab (tests/tests/cni.rs).

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::MetadataExt,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What the fake has and does.
#[derive(Default)]
pub struct World {
    /// Endpoints as views, by id.
    pub endpoints: BTreeMap<u64, Value>,
    /// Every attach is refused so: kind and message.
    pub refuse: Option<(String, &'static str, &'static str)>,
    /// What GET /v1/status answers instead.
    pub status: Option<Value>,
    /// Free addresses of every network.
    pub full: bool,
    /// New endpoints stay in this state until looked at so many times.
    pub starting: usize,
    /// All endpoints end before they are listed.
    pub ending: bool,
    /// How long an attach takes.
    pub slow: Duration,
    last: u64,
}

/// A fake meshd and a directory for its socket.
pub struct Fake {
    dir: TempDir,
    pub world: Arc<Mutex<World>>,
}

impl Fake {
    pub fn new() -> Self {
        let fake = Self {
            dir: tempfile::tempdir().unwrap(),
            world: Arc::default(),
        };
        let listener = UnixListener::bind(fake.socket()).unwrap();
        let world = fake.world.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let world = world.clone();
                thread::spawn(move || serve(stream, &world));
            }
        });
        fake
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("meshd.sock")
    }

    /// Names of the endpoints.
    pub fn names(&self) -> Vec<String> {
        let world = self.world.lock().unwrap();
        world
            .endpoints
            .values()
            .map(|v| v["endpoint"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Changes the only endpoint.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        change(self.world.lock().unwrap().endpoints.values_mut().next().unwrap());
    }
}

/// One request and its answer.
fn serve(stream: UnixStream, world: &Mutex<World>) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() <= 2 {
            break;
        }
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap().to_owned());
    let (status, answer) = match answer(method, &target, &body, world) {
        Ok(answer) => (200, answer),
        Err((status, kind, message)) => (status, json!({"kind": kind, "message": message})),
    };
    let answer = answer.to_string();
    // A caller that was killed does not wait for it.
    let _ = write!(
        reader.get_mut(),
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    );
}

type Refused = (u16, &'static str, String);

fn answer(method: &str, target: &str, body: &Value, world: &Mutex<World>) -> Result<Value, Refused> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match (method, path) {
        ("GET", "/v1/status") => Ok(world.lock().unwrap().status.clone().unwrap_or_else(healthy)),
        ("POST", "/v1/attachments") => attach(body, world),
        ("GET", "/v1/attachments") => {
            let labels = query.strip_prefix("labels=").unwrap().split('&').next().unwrap();
            let labels: Value = serde_json::from_str(&unescape(labels)).unwrap();
            let mut world = world.lock().unwrap();
            if world.ending {
                world.endpoints.clear();
            }
            world.starting = world.starting.saturating_sub(1);
            let started = world.starting == 0;
            for view in world.endpoints.values_mut().filter(|_| started) {
                view["endpoint"]["state"] = json!("ready");
            }
            Ok(world.endpoints.values().filter(|v| has(v, &labels)).cloned().collect())
        }
        ("POST", "/v1/attachments/detach") => {
            let mut world = world.lock().unwrap();
            let before = world.endpoints.len();
            world.endpoints.retain(|_, v| !has(v, &body["labels"]));
            Ok(json!({"removed": vec!["x"; before - world.endpoints.len()], "pending": []}))
        }
        ("GET", path) => {
            let world = world.lock().unwrap();
            if let Some(id) = path.strip_prefix("/v1/endpoints/") {
                let found = world.endpoints.values().find(|v| v["endpoint"]["id"] == id);
                return Ok(found.unwrap()["endpoint"].clone());
            }
            match path.strip_prefix("/v1/networks/") {
                Some(name) if name != "none" => Ok(network(name, &world)),
                _ => Err((404, "not_found", format!("no network named {path}"))),
            }
        }
        _ => Err((404, "not_found", format!("no such path {path}"))),
    }
}

fn attach(body: &Value, world: &Mutex<World>) -> Result<Value, Refused> {
    let connect = &body["connect"];
    let netns = connect["container"].as_str().unwrap().strip_prefix("netns:").unwrap();
    let inode = std::fs::metadata(netns).unwrap().ino();
    let mut all = world.lock().unwrap();
    if let Some((network, kind, message)) = &all.refuse
        && body["network"] == *network
    {
        let status = match *kind {
            "conflict" => 409,
            "not_found" => 404,
            "malformed" => 400,
            "unavailable" => 503,
            _ => 422,
        };
        return Err((status, kind, (*message).to_owned()));
    }
    let taken = all.endpoints.values().any(|v| {
        let e = &v["endpoint"];
        let same_sandbox = v["inode"] == inode && (e["network"] == body["network"] || e["ifname"] == connect["ifname"]);
        same_sandbox || (e["network"] == body["network"] && e["name"] == connect["hostname"])
    });
    if taken {
        return Err((409, "conflict", "taken".to_owned()));
    }
    all.last += 1;
    let n = all.last;
    let id = format!("{n:012}");
    let ip = connect["ip"].as_str().map_or_else(|| format!("10.0.0.{}", n + 1), str::to_owned);
    let endpoint = json!({
        "id": id, "name": connect["hostname"], "node": "h1", "network": body["network"], "ip": ip, "prefix_len": 24,
        "ip6": "fd00::5", "prefix_len6": 64, "gateway6": "fd00::1",
        "gateway": "10.0.0.1", "mtu": 1450, "mac": format!("02:6d:0a:00:00:{:02x}", n + 1), "ifname": connect["ifname"],
        "container": connect["container"], "aliases": connect["aliases"], "service": connect["service"], "labels": connect["labels"],
        "state": if all.starting > 0 { "starting" } else { "ready" }, "weight": 1, "created_at": "2026-01-01T00:00:00Z", "version": 9,
    });
    let first = !all.endpoints.values().any(|v| v["inode"] == inode);
    let gateways = if first { json!(["10.0.0.1"]) } else { json!([]) };
    let inside = json!({
        "link": {"mac": endpoint["mac"], "mtu": 1450, "up": true, "limit_holds": true}, "addrs": [format!("{ip}/24"), "fd00::5/64"],
        "routes": [{"dst": "0.0.0.0/0", "gateway": "10.0.0.1"}],
    });
    let view = json!({
        "endpoint": endpoint, "host_ifname": format!("mv-{id}"), "netns": netns, "inode": inode, "default_gateways": gateways,
        "inside": inside, "error": null, "request": body,
    });
    all.endpoints.insert(n, view.clone());
    let slow = all.slow;
    drop(all);
    pause(slow);
    Ok(view)
}

fn has(view: &Value, labels: &Value) -> bool {
    let all = labels.as_object().unwrap();
    all.iter().all(|(k, v)| view["endpoint"]["labels"][k] == *v)
}

fn network(name: &str, world: &World) -> Value {
    let members = world.endpoints.values().map(|v| &v["endpoint"]).filter(|e| e["network"] == name);
    let members: Vec<_> = members
        .map(|e| {
            let mut member = e.clone();
            member
                .as_object_mut()
                .unwrap()
                .retain(|k, _| ["id", "name", "node", "network", "ip", "mac", "state"].contains(&k.as_str()));
            member
        })
        .collect();
    json!({
        "id": "00000000000a", "name": name, "driver": "overlay", "vni": 4097, "mtu": 1450, "internal": false, "attachable": true,
        "ingress": false, "options": {}, "labels": {}, "created_at": "2026-01-01T00:00:00Z", "version": 3, "endpoints": members,
        "subnets": [{"subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "ip_range": null, "aux": {}, "used": 1,
            "free": if world.full { 0 } else { 200 }}],
    })
}

pub fn healthy() -> Value {
    json!({
        "node": {"id": "000000000001", "hostname": "h1"}, "cluster": "000000000002", "role": "manager",
        "manager": {"leader": "h1", "revision": 9, "peers": []}, "applied_generation": 9, "networks": 1, "services": 0, "endpoints": 0,
        "dataplane": {"hooks": [], "kernel": "6", "degraded": []}, "version": "0.1.0", "errors": [],
    })
}

fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test's thread of its own")]
fn pause(time: Duration) {
    thread::sleep(time);
}

/// A process in a network namespace of its own, ended when this is dropped.
pub struct Container(Child);

impl Container {
    pub fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sleep", "600"]).stdin(Stdio::null());
        let container = Self(command.spawn().unwrap());
        let inode = |path: &str| std::fs::metadata(path).unwrap().ino();
        let end = Instant::now() + Duration::from_secs(10);
        while inode(&container.netns()) == inode("/proc/self/ns/net") {
            assert!(Instant::now() < end, "no network namespace: these tests run as root");
            pause(Duration::from_millis(2));
        }
        container
    }

    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A call of the plugin.
#[derive(Clone)]
pub struct Cni {
    env: BTreeMap<&'static str, String>,
    pub conf: Value,
}

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub out: Value,
    pub text: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        Self {
            status: output.status.code().unwrap_or(-1),
            out: if text.trim().is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&text).unwrap()
            },
            text,
        }
    }

    /// The error code; 0 for success. An error is JSON with a code, a message, and exit status 1.
    pub fn code(&self) -> u64 {
        if self.status == 0 {
            return 0;
        }
        assert_eq!(self.status, 1, "{self:?}");
        assert!(self.out["msg"].as_str().is_some_and(|m| !m.is_empty()), "{self:?}");
        assert!(self.out["cniVersion"].is_string(), "{self:?}");
        self.out["code"].as_u64().unwrap()
    }
}

impl Cni {
    /// ADD of container `id` as eth0 to network `ov`.
    pub fn new(fake: &Fake, container: &Container, id: &str) -> Self {
        let env = [
            ("CNI_COMMAND", "ADD".to_owned()),
            ("CNI_CONTAINERID", id.to_owned()),
            ("CNI_NETNS", container.netns()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("MESHD_SOCKET", fake.socket().display().to_string()),
        ];
        Self {
            env: env.into_iter().collect(),
            conf: json!({"cniVersion": "1.1.0", "name": "shop", "type": "meshd-cni", "network": "ov"}),
        }
    }

    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.conf[key] = value;
        self
    }

    pub fn run(&self) -> Answer {
        self.run_with(self.conf.to_string().as_bytes())
    }

    pub fn verb(&self, verb: &str) -> Answer {
        self.clone().env("CNI_COMMAND", verb).run()
    }

    pub fn run_with(&self, stdin: &[u8]) -> Answer {
        let mut child = self.spawn();
        // It may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Answer::of(&child.wait_with_output().unwrap())
    }

    /// Started, with its standard input open.
    pub fn spawn(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshd-cni"));
        command
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command.spawn().unwrap()
    }

    pub fn finish(child: Child) -> Answer {
        Answer::of(&child.wait_with_output().unwrap())
    }
}

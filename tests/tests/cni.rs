//! meshd-cni against the real meshd: attached when ADD returns, found damaged by CHECK, detached
//! whatever is missing, many at once, and with meshd killed in the middle.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
    time::Instant,
};

use mesh_tests::{Lab, Place, Result, address, until};
use serde_json::{Value, json};

const H1: Place = Place::Host("h1");
const H2: Place = Place::Host("h2");
/// Containers that are started at once.
const MANY: usize = 100;

/// A network namespace as a runtime makes it, removed when this is dropped.
struct Container(String);

impl Container {
    fn new(name: &str) -> Result<Self> {
        let done = Command::new("ip").args(["netns", "add", name]).status()?;
        if done.success() {
            Ok(Self(name.into()))
        } else {
            Err(format!("ip netns add {name}: {done}").into())
        }
    }

    /// A command in it, which has a minute.
    fn run(&self, command: &str) -> Result<String> {
        let net = format!("--net=/run/netns/{}", self.0);
        let words = ["60", "nsenter", &net, "--"].into_iter().chain(command.split_whitespace());
        let done = Command::new("timeout").args(words).stdin(Stdio::null()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() {
            Ok(text(&done.stdout))
        } else {
            Err(format!("`{command}` in {}: {}", self.0, text(&done.stderr)).into())
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let end = "ip netns pids \"$0\" | xargs -r kill -KILL; ip netns del \"$0\"";
        // Nothing is left to do about it when a test fails.
        let _ = Command::new("sh").args(["-c", end, &self.0]).stderr(Stdio::null()).status();
    }
}

fn conf(more: Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "k", "type": "meshd-cni", "network": "ov"});
    for (key, value) in more.as_object().into_iter().flatten() {
        conf[key] = value.clone();
    }
    conf
}

/// A call on a host: exit status and what it printed.
fn call(lab: &Lab, host: Place, verb: &str, id: &str, conf: &Value) -> Result<(i32, Value)> {
    let env = [
        format!("CNI_COMMAND={verb}"),
        format!("CNI_CONTAINERID={id}"),
        format!("CNI_NETNS=/run/netns/{id}"),
        format!("CONF={conf}"),
    ];
    let mut words = vec!["env", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"];
    words.extend(env.iter().map(String::as_str));
    words.extend(["sh", "-c", "printf %s \"$CONF\" | meshd-cni"]);
    let done = lab.argv(host, &words)?;
    let out = if done.out.trim().is_empty() {
        if done.status > 1 {
            return Err(format!("`{}`: {}", done.command, done.err).into());
        }
        Value::Null
    } else {
        serde_json::from_str(&done.out)?
    };
    Ok((done.status, out))
}

/// A call that must succeed.
fn ok(lab: &Lab, host: Place, verb: &str, id: &str, conf: &Value) -> Result<Value> {
    match call(lab, host, verb, id, conf)? {
        (0, out) => Ok(out),
        (status, out) => Err(format!("{verb} of {id} exited with {status}: {out}").into()),
    }
}

fn address_of(result: &Value) -> String {
    result["ips"][0]["address"]
        .as_str()
        .unwrap_or_default()
        .split('/')
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn endpoints(lab: &Lab) -> Result<Vec<String>> {
    Ok(lab.network("ov")?.endpoints.into_iter().map(|e| e.name).collect())
}

#[test]
fn a_container_that_a_runtime_attaches() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --selector app=web --publish 8000:80")?
        .ok()?;
    lab.echo("h2", "other", "--network ov")?;
    lab.container("h1", "beside", "--network ov")?;
    let c = Container::new("cni-a")?;
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let settings = conf(json!({"labels": {"app": "web"}, "aliases": ["also"], "runtimeConfig": ports}));
    assert_eq!(call(&lab, H1, "STATUS", "cni-a", &settings)?.0, 0);
    assert_eq!(call(&lab, H1, "DEL", "cni-a", &settings)?.0, 0, "before any ADD");
    let added = ok(&lab, H1, "ADD", "cni-a", &settings)?;
    // At once, without any wait: the data path works when ADD returns. Another host hears of it a moment later.
    let (beside, other) = (lab.endpoint("ov", "beside")?.ip, lab.endpoint("ov", "other")?.ip);
    c.run(&format!("ping -c1 -W5 {beside}"))?;
    until(10, "the other host to have heard of it", || {
        Ok(c.run(&format!("ping -c1 -W1 {other}")).is_ok())
    })?;
    lab.lab(&["stop", "beside"])?.ok()?;
    assert_eq!(added["interfaces"][1]["sandbox"], "/run/netns/cni-a");
    let inside: Value = serde_json::from_str(&c.run("ip -j link show dev eth0")?)?;
    assert_eq!(added["interfaces"][1]["mac"], inside[0]["address"]);
    let host = added["interfaces"][0]["name"].as_str().unwrap_or_default();
    lab.at(H1, &format!("ip link show dev {host}"))?.ok()?;
    assert!(
        c.run("ip route")?
            .contains(&format!("default via {}", added["ips"][0]["gateway"].as_str().unwrap_or_default()))
    );

    let listen = format!("nsenter --net=/run/netns/{} meshd-echo --http 80 >/dev/null 2>&1 & echo", c.0);
    lab.argv(H1, &["sh", "-c", &listen])?.ok()?;
    let ask = format!("nsenter --net=/run/netns/{} meshd-echo client http 127.0.0.1:80 --timeout 0.5", c.0);
    until(10, "meshd-echo to listen", || Ok(lab.at(H1, &ask)?.status == 0))?;
    lab.settled(&["h1", "h2"])?;
    for name in ["cni-a", "also", "web"] {
        lab.http(Place::In("other"), &format!("{name}:80"), 1)?;
    }
    for node in ["h1", "h2"] {
        lab.http(Place::Client, &format!("{}:8000", address(node)), 1)?;
    }
    lab.http(Place::Client, &format!("{}:8080", address("h1")), 1)?;

    check(&lab, &c, &settings, &added)?;
    let (status, again) = call(&lab, H1, "ADD", "cni-a", &settings)?;
    assert_eq!((status, &again["code"]), (1, &json!(101)), "{again}");
    for _ in 0..2 {
        ok(&lab, H1, "DEL", "cni-a", &settings)?;
        assert_eq!(endpoints(&lab)?, ["other"]);
        until(20, "the interfaces to go", || {
            Ok(c.run("ip link show dev eth0").is_err() && lab.at(H1, &format!("ip link show dev {host}"))?.status != 0)
        })?;
    }
    race(&lab)?;
    several(&lab, &c)?;
    beside_another_network(&lab)?;
    // Whatever was wrong with an ADD, nothing of it stays.
    for (more, code) in [
        (json!({"network": "none"}), 7),
        (json!({"service": "none"}), 7),
        (json!({"ips": ["192.0.2.1"]}), 100),
        (json!({"ips": [other]}), 100),
        (json!({"networks": ["k2", "none"], "network": null}), 7),
    ] {
        let (_, failed) = call(&lab, H1, "ADD", "cni-a", &conf(more))?;
        assert_eq!(failed["code"], code, "{failed}");
        assert!(c.run("ip link show dev eth0").is_err());
    }
    assert_eq!(endpoints(&lab)?, ["other"]);
    assert_eq!(call(&lab, H1, "STATUS", "x", &conf(json!({"network": "none"})))?.1["code"], 50);
    Ok(())
}

/// CHECK finds an address, a route and an interface that are gone.
fn check(lab: &Lab, c: &Container, settings: &Value, added: &Value) -> Result<()> {
    let mut with = settings.clone();
    with["prevResult"] = added.clone();
    let code = || Ok::<_, Box<dyn std::error::Error>>(call(lab, H1, "CHECK", "cni-a", &with)?.1["code"].clone());
    assert_eq!(code()?, Value::Null);
    let gateway = added["ips"][0]["gateway"].as_str().unwrap_or_default();
    c.run("ip route del default")?;
    assert_eq!(code()?, 102);
    c.run(&format!("ip route add default via {gateway}"))?;
    assert_eq!(code()?, Value::Null);
    let address = added["ips"][0]["address"].as_str().unwrap_or_default();
    c.run(&format!("ip addr del {address} dev eth0"))?;
    assert_eq!(code()?, 102);
    c.run(&format!("ip addr add {address} dev eth0"))?;
    c.run(&format!("ip route add default via {gateway}"))?;
    assert_eq!(code()?, Value::Null);
    // meshd makes a pair of interfaces that is gone anew, unless it is stopped: it may be quicker.
    c.run("ip link del eth0")?;
    let seen = code()?;
    assert!(seen == 102 || seen == Value::Null, "{seen}");
    until(10, "the pair to be made anew", || Ok(code()? == Value::Null))
}

/// Of several ADDs for one container one succeeds, and is what there is.
fn race(lab: &Lab) -> Result<()> {
    let all = std::thread::scope(|scope| {
        let add = || call(lab, H1, "ADD", "cni-a", &conf(json!({}))).map_err(|e| e.to_string());
        let all: Vec<_> = (0..4).map(|_| scope.spawn(add)).collect();
        all.into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err("a thread failed".into())))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let added: Vec<_> = all.iter().filter(|(status, _)| *status == 0).collect();
    assert_eq!(added.len(), 1, "{all:?}");
    assert!(all.iter().all(|(status, out)| *status == 0 || out["code"] == 101), "{all:?}");
    assert_eq!(lab.endpoint("ov", "cni-a")?.ip, address_of(&added[0].1));
    ok(lab, H1, "DEL", "cni-a", &conf(json!({}))).map(drop)
}

/// One container on two networks, by one call and by two.
fn several(lab: &Lab, c: &Container) -> Result<()> {
    lab.ctl("h1", "network create k2")?.ok()?;
    let both = conf(json!({"network": null, "networks": ["ov", "k2"]}));
    let added = ok(lab, H1, "ADD", "cni-a", &both)?;
    assert_eq!(added["interfaces"][3]["name"], "eth1");
    assert_eq!(added["routes"].as_array().map(Vec::len), Some(1), "one default route: {added}");
    c.run("ip link show dev eth1")?;
    let mut with = both.clone();
    with["prevResult"] = added;
    ok(lab, H1, "CHECK", "cni-a", &with)?;
    ok(lab, H1, "DEL", "cni-a", &both)?;
    // DEL does not wait for the kernel.
    until(20, "the interface to go", || Ok(c.run("ip link show dev eth1").is_err()))
}

/// A container whose default route is another plugin's keeps it: the mesh is its second network.
fn beside_another_network(lab: &Lab) -> Result<()> {
    let c = Container::new("cni-c")?;
    for command in [
        "ip link add eth0 type veth peer name far",
        "ip addr add 192.0.2.2/24 dev eth0",
        "ip link set far up",
        "ip link set eth0 up",
        "ip route add default via 192.0.2.1",
    ] {
        c.run(command)?;
    }
    let prev = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/cni-c"}],
        "ips": [{"address": "192.0.2.2/24", "interface": 0}], "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}]});
    let chained = conf(json!({"prevResult": prev}));
    let added = ok(lab, H1, "ADD", "cni-c", &chained)?;
    assert_eq!(added["interfaces"][2]["name"], "eth1", "behind the one that is there: {added}");
    assert_eq!(added["routes"], prev["routes"]);
    assert!(c.run("ip route")?.contains("default via 192.0.2.1 dev eth0"));
    c.run(&format!("ping -c1 -W1 {}", added["ips"][1]["gateway"].as_str().unwrap_or_default()))?;
    ok(lab, H1, "CHECK", "cni-c", &conf(json!({"prevResult": added})))?;
    ok(lab, H1, "DEL", "cni-c", &chained)?;
    // What is there already under the name that is asked for is an error.
    let (_, taken) = call(lab, H1, "ADD", "cni-c", &conf(json!({})))?;
    assert_eq!(taken["code"], 100, "{taken}");
    Ok(())
}

#[test]
fn what_meshd_is_not_told_it_finds_out() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    let settings = conf(json!({}));
    let c = Container::new("cni-b")?;
    ok(&lab, H2, "ADD", "cni-b", &settings)?;
    drop(c);
    until(10, "the endpoint to go with its namespace", || Ok(endpoints(&lab)?.is_empty()))?;
    ok(&lab, H2, "DEL", "cni-b", &settings)?;

    // DEL while meshd is down; and again while no manager answers.
    let c = Container::new("cni-b")?;
    ok(&lab, H2, "ADD", "cni-b", &settings)?;
    lab.lab(&["kill", "h2"])?.ok()?;
    ok(&lab, H2, "DEL", "cni-b", &settings)?;
    assert_eq!(call(&lab, H2, "ADD", "cni-b", &settings)?.1["code"], 11);
    assert_eq!(call(&lab, H2, "STATUS", "cni-b", &settings)?.1["code"], 51);
    drop(c);
    lab.lab(&["restart", "h2"])?.ok()?;
    until(20, "the endpoint to go after a restart", || Ok(endpoints(&lab)?.is_empty()))?;

    // As after a power cut: another namespace has the container's path, and nobody has called DEL.
    let c = Container::new("cni-b")?;
    let before = ok(&lab, H2, "ADD", "cni-b", &settings)?;
    lab.lab(&["kill", "h2"])?.ok()?;
    // Held a little longer, so that the next one has another number.
    let old = std::fs::File::open("/run/netns/cni-b")?;
    drop(c);
    let c = Container::new("cni-b")?;
    drop(old);
    lab.lab(&["restart", "h2"])?.ok()?;
    let added = ok(&lab, H2, "ADD", "cni-b", &settings)?;
    assert_ne!(address_of(&before), address_of(&added), "an address rests before it is given again");
    c.run(&format!("ping -c1 -W1 {}", added["ips"][0]["gateway"].as_str().unwrap_or_default()))?;
    assert_eq!(endpoints(&lab)?, ["cni-b"]);
    ok(&lab, H2, "DEL", "cni-b", &settings)?;
    drop(c);

    let c = Container::new("cni-b")?;
    ok(&lab, H2, "ADD", "cni-b", &settings)?;
    lab.lab(&["freeze", "h1"])?.ok()?;
    let deleted = call(&lab, H2, "DEL", "cni-b", &settings)?;
    let status = call(&lab, H2, "STATUS", "cni-b", &settings)?;
    lab.lab(&["thaw", "h1"])?.ok()?;
    assert_eq!(deleted.0, 0, "{}", deleted.1);
    assert_eq!(status.1["code"], 50);
    // Its namespace lives on: it goes because it was asked to.
    until(20, "the endpoint to go once a manager answers", || Ok(endpoints(&lab)?.is_empty()))?;
    until(10, "its interface to go too", || Ok(c.run("ip link show dev eth0").is_err()))
}

/// What a container receives and sends keeps to the limits that its runtime gave it, by whatever way it comes and goes.
#[test]
fn bandwidth_is_what_the_runtime_said() -> Result<()> {
    /// Bits per second.
    const LIMIT: u64 = 20_000_000;
    /// Of each transfer.
    const BYTES: u64 = 4_000_000;
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --selector app=web --publish 8000:80")?
        .ok()?;
    lab.echo("h1", "near", "--network ov")?;
    lab.echo("h2", "far", "--network ov")?;
    let c = Container::new("cni-l")?;
    let limits = json!({"ingressRate": LIMIT, "ingressBurst": 1_000_000, "egressRate": LIMIT, "egressBurst": 1_000_000});
    let settings = conf(json!({"labels": {"app": "web"}, "runtimeConfig": {"bandwidth": limits}}));
    let added = ok(&lab, H1, "ADD", "cni-l", &settings)?;
    let listen = format!("nsenter --net=/run/netns/{} meshd-echo --http 80 >/dev/null 2>&1 & echo", c.0);
    lab.argv(H1, &["sh", "-c", &listen])?.ok()?;
    let to = format!("{}:80", address_of(&added));
    until(10, "meshd-echo to listen", || {
        Ok(lab.at(H1, &format!("meshd-echo client http {to} --timeout 0.5"))?.status == 0)
    })?;
    let rate = |from, what: &str, to: &str| -> Result<f64> {
        let start = Instant::now();
        lab.at(from, &format!("meshd-echo client {what} {to} {BYTES}"))?.ok()?;
        Ok((BYTES * 8) as f64 / start.elapsed().as_secs_f64() / LIMIT as f64)
    };
    let (h1, h2) = (format!("{}:8000", address("h1")), format!("{}:8000", address("h2")));
    for (from, to) in [
        (Place::In("near"), to.as_str()),
        (Place::In("far"), &to),
        (H1, &to),
        (Place::Client, &h1),
        (Place::Client, &h2),
    ] {
        for what in ["upload", "download"] {
            let got = rate(from, what, to)?;
            println!("{what} from {from:?} by {to}: {got:.2} of the limit");
            // How much less is the machine's affair; a packet past the queue would not count at all.
            assert!((0.05..1.2).contains(&got), "{what} from {from:?} by {to}: {got:.2} of the limit");
        }
    }
    // The others are not limited.
    let near = lab.endpoint("ov", "near")?.ip;
    until(30, "a container without a limit to get twice as much", || {
        Ok(rate(Place::In("far"), "download", &format!("{near}:80"))? > 2.0)
    })?;

    // A limit is the endpoint's, whoever asked for it, and is told.
    let view = lab.json("h1", "endpoint inspect cni-l")?;
    let told = json!({"rate": LIMIT, "burst": 1_000_000});
    assert_eq!(view["bandwidth"], json!({"ingress": told, "egress": told}), "{view}");
    let b = Container::new("cni-m")?;
    let connect = |rate: &str| lab.ctl("h2", &format!("network connect --bandwidth-in {rate} ov netns:cni-m"));
    connect("7")?.refused(2, &["'7'", "bits per second", "20M"])?;
    connect("20M")?.ok()?;
    let view = lab.json("h1", "endpoint inspect cni-m")?;
    assert_eq!(view["bandwidth"], json!({"ingress": {"rate": LIMIT, "burst": 1_048_576}}), "{view}");
    assert!(!b.run("tc qdisc show dev eth0")?.contains("tbf"));
    // A meshd that starts anew finds it as it was, and one that finds it gone makes it anew.
    let host = added["interfaces"][0]["name"].as_str().unwrap_or_default();
    let queue = || lab.at(H1, &format!("tc qdisc show dev {host} root"))?.ok();
    let before = queue()?;
    assert!(before.contains("rate 20Mbit burst 125000b"), "{before}");
    lab.lab(&["restart", "h1"])?.ok()?;
    assert_eq!(queue()?, before);
    lab.at(H1, &format!("tc qdisc del dev {host} root"))?.ok()?;
    until(90, "the queue to be made anew", || Ok(queue()? == before))?;
    // CHECK looks at the container's own end, which its root may have changed.
    let mut with = settings.clone();
    with["prevResult"] = added.clone();
    ok(&lab, H1, "CHECK", "cni-l", &with)?;
    c.run("tc qdisc replace dev eth0 root tbf rate 1gbit burst 1mb latency 25ms")?;
    let refused = call(&lab, H1, "CHECK", "cni-l", &with)?.1;
    assert_eq!(refused["code"], 102, "{refused}");
    ok(&lab, H1, "DEL", "cni-l", &settings)?;
    Ok(())
}

/// All calls at once, by one shell on the host; the exit status and output of each.
fn at_once(lab: &Lab, verb: &str, ids: &[String], settings: &Value) -> Result<Vec<(i32, Value)>> {
    let dir = tempfile::tempdir()?;
    let script = r#"
        for id in "$@"; do
            (printf %s "$CONF" | CNI_CONTAINERID=$id CNI_NETNS=/run/netns/$id meshd-cni >"$DIR/$id" 2>/dev/null; echo $? >"$DIR/$id.rc") &
        done
        wait"#;
    let env = [
        format!("CNI_COMMAND={verb}"),
        format!("CONF={settings}"),
        format!("DIR={}", dir.path().display()),
    ];
    let mut words = vec!["env", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"];
    words.extend(env.iter().map(String::as_str));
    words.extend(["sh", "-c", script, "sh"]);
    words.extend(ids.iter().map(String::as_str));
    lab.argv(H1, &words)?.ok()?;
    let read = |name: String| std::fs::read_to_string(dir.path().join(name));
    ids.iter()
        .map(|id| {
            let out = read(id.clone())?;
            let out = if out.trim().is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&out)?
            };
            Ok((read(format!("{id}.rc"))?.trim().parse()?, out))
        })
        .collect()
}

/// Exactly `ids` are attached, no two with one address, each with what its ADD said.
fn attached(lab: &Lab, results: &[(String, Value)]) -> Result<()> {
    let said: BTreeSet<_> = results.iter().map(|(id, r)| (id.clone(), address_of(r))).collect();
    let are: BTreeSet<_> = lab.network("ov")?.endpoints.into_iter().map(|e| (e.name, e.ip)).collect();
    assert_eq!(said, are);
    let addresses: BTreeSet<_> = are.iter().map(|(_, ip)| ip).collect();
    assert_eq!(addresses.len(), results.len(), "an address was given twice");
    Ok(())
}

#[test]
fn many_at_once() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    let ids: Vec<String> = (0..MANY).map(|i| format!("cni-m{i}")).collect();
    let containers = ids.iter().map(|id| Container::new(id)).collect::<Result<Vec<_>>>()?;
    let settings = conf(json!({}));
    let added = at_once(&lab, "ADD", &ids, &settings)?;
    let mut results: Vec<_> = ids.iter().cloned().zip(added.into_iter().map(|(_, out)| out)).collect();
    // "Try again later" is what a machine may say that has no time.
    for (id, out) in &mut results {
        if out["code"] == 11 {
            println!("{id} has to be asked for again: {out}");
            ok(&lab, H1, "DEL", id, &settings)?;
            *out = ok(&lab, H1, "ADD", id, &settings)?;
        }
        assert_eq!(out["code"], Value::Null, "{id}: {out}");
    }
    attached(&lab, &results)?;
    containers[0].run(&format!("ping -c1 -W1 {}", address_of(&results[MANY - 1].1)))?;
    let gone = at_once(&lab, "DEL", &ids, &settings)?;
    assert!(gone.iter().all(|(status, _)| *status == 0), "{gone:?}");
    until(20, "the endpoints to go", || Ok(endpoints(&lab)?.is_empty()))?;
    until(20, "the interfaces to go", || Ok(!lab.at(H1, "ip -o link")?.ok()?.contains(" mv-")))?;

    // Once more, with meshd killed in the middle. What was told to have failed is asked for again.
    let mut todo = ids.clone();
    let mut results = Vec::new();
    let mut first = true;
    until(180, "all to be attached in spite of a killed meshd", || {
        let added = std::thread::scope(|scope| {
            let all = scope.spawn(|| at_once(&lab, "ADD", &todo, &settings).map_err(|e| e.to_string()));
            if first {
                until(60, "some to be attached", || Ok(endpoints(&lab)?.len() > MANY / 5))?;
                lab.lab(&["kill", "h1"])?.ok()?;
                lab.lab(&["restart", "h1"])?.ok()?;
            }
            all.join().unwrap_or_else(|_| Err("a thread failed".into())).map_err(Into::into)
        });
        let added: Vec<(i32, Value)> = match added {
            Ok(added) => added,
            Err(e) => return Err(e),
        };
        first = false;
        let mut failed = Vec::new();
        for (id, (status, out)) in todo.iter().zip(added) {
            if status == 0 {
                results.push((id.clone(), out))
            } else {
                failed.push(id.clone())
            }
        }
        // As runtimes do.
        at_once(&lab, "DEL", &failed, &settings)?;
        todo = failed;
        Ok(todo.is_empty())
    })?;
    until(20, "what was given up to be gone", || Ok(endpoints(&lab)?.len() == MANY))?;
    attached(&lab, &results)?;

    // GC removes all but what is listed.
    let keep = json!([{"containerID": ids[3], "ifname": "eth0"}, {"containerID": "unknown", "ifname": "eth0"}]);
    ok(&lab, H1, "GC", "x", &conf(json!({"cni.dev/valid-attachments": keep})))?;
    until(20, "one to be left", || Ok(endpoints(&lab)? == [ids[3].clone()]))?;
    ok(
        &lab,
        H1,
        "GC",
        "x",
        &conf(json!({"name": "another", "cni.dev/valid-attachments": null})),
    )?;
    assert_eq!(endpoints(&lab)?.len(), 1, "of another configuration");
    ok(&lab, H1, "GC", "x", &conf(json!({"cni.dev/valid-attachments": []})))?;
    until(20, "none to be left", || Ok(endpoints(&lab)?.is_empty()))
}

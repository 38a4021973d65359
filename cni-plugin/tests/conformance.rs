//! The conformance table: every call of the CNI specification with every error that it can give, as a
//! runtime sees them. Needs root, for containers' network namespaces.
#![expect(clippy::unwrap_used, reason = "test")]

mod fake;

use std::{
    fs,
    io::Write,
    os::unix::{fs::symlink, net::UnixListener},
    time::{Duration, Instant},
};

use fake::{Cni, Container, Fake, healthy};
use serde_json::{Value, json};

const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

#[test]
fn version_is_answered_whatever_is_asked() {
    let (fake, c) = (Fake::new(), Container::new());
    let version = Cni::new(&fake, &c, "c").env("CNI_COMMAND", "VERSION");
    let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, answered) in [
        (r#"{"cniVersion": "0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion": "1.0.0", "name": "x"}"#, "1.0.0"),
        // How a runtime of another version finds out.
        (r#"{"cniVersion": "9.9.9"}"#, "1.1.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
    ] {
        let answer = version.run_with(stdin.as_bytes());
        assert_eq!(answer.out, json!({"cniVersion": answered, "supportedVersions": all}), "{stdin}");
    }
    for bad in ["{", "[]", "1", r#"{"cniVersion": 1}"#, "\u{0}"] {
        assert_eq!(version.run_with(bad.as_bytes()).code(), 6, "{bad}");
    }
    let alone = version
        .without("CNI_PATH")
        .without("CNI_NETNS")
        .without("CNI_IFNAME")
        .without("CNI_CONTAINERID");
    assert_eq!(alone.run().code(), 0);
}

#[test]
fn what_the_environment_lacks_is_error_4() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    for (verb, needed) in [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
    ] {
        for name in needed {
            for lacking in [call.clone().without(name), call.clone().env(name, "")] {
                let answer = lacking.verb(verb);
                assert_eq!(answer.code(), 4, "{verb} without {name}");
                assert!(answer.out["msg"].as_str().unwrap().contains(name), "{answer:?}");
            }
        }
    }
    for verb in ["", "add", "UPDATE", "DELETE", "ADD "] {
        assert_eq!(call.verb(verb).code(), 4, "{verb:?}");
    }
    assert_eq!(call.clone().without("CNI_COMMAND").run().code(), 4);
    let long = "a".repeat(300);
    for (name, values) in [
        ("CNI_CONTAINERID", &["../../etc", "a\nb", "-x", "a b", long.as_str(), "ä"][..]),
        ("CNI_IFNAME", &["../x", "a/b", "eth0\n", "0123456789abcdef", "lo", long.as_str()]),
    ] {
        for value in values {
            for verb in ["ADD", "DEL", "CHECK"] {
                assert_eq!(call.clone().env(name, value).verb(verb).code(), 4, "{verb} {name}={value:?}");
            }
        }
    }
    for args in ["X", "FOO=BAR", "IP=999", "MAC=zz"] {
        assert_eq!(call.clone().env("CNI_ARGS", args).run().code(), 4, "{args}");
    }
    assert!(fake.names().is_empty(), "nothing was attached");
}

/// Standard input that is wrong in every way, with the code of each.
fn malformed() -> Vec<(Vec<u8>, u64)> {
    let texts = [
        ("", 6),
        (" \n", 6),
        ("{", 6),
        ("}", 6),
        ("null", 6),
        ("true", 6),
        ("42", 6),
        ("\"text\"", 6),
        ("[]", 6),
        ("[{}]", 6),
        ("{]", 6),
        ("{\"cniVersion\"}", 6),
        ("{\"cniVersion\":}", 6),
        ("{\"cniVersion\": \"1.1.0\",}", 6),
        ("{\"cniVersion\": \"1.1.0\"", 6),
        ("{'cniVersion': '1.1.0'}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\"} trailing", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\"}{}", 6),
        ("cniVersion: 1.1.0", 6),
        ("<xml/>", 6),
        ("{\"cniVersion\": \"\\x\"}", 6),
        ("{\"cniVersion\": \"\\ud800\"}", 6),
        ("{\"cniVersion\": 1.1, \"name\": \"x\"}", 6),
        ("{\"cniVersion\": [\"1.1.0\"], \"name\": \"x\"}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": 7}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": {}}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\", \"socket\": 5}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\", \"n\": 1e999}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\", \"n\": 0x1}", 6),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\", \"n\": NaN}", 6),
        ("{}", 1),
        ("{\"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"\", \"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"0.1.0\", \"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"0.2.0\", \"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"1.1\", \"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"2.0.0\", \"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"1.1.0-rc\", \"name\": \"x\"}", 1),
        ("{\"cniVersion\": \"1.1.0\"}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"\"}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": null}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"../x\"}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"a b\"}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"a\\nb\"}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"-x\"}", 7),
        ("{\"cniVersion\": \"1.1.0\", \"name\": \"x\", \"socket\": \"run/x\"}", 7),
    ];
    let mut all: Vec<_> = texts.iter().map(|(t, c)| (t.as_bytes().to_vec(), *c)).collect();
    let head = |rest: &str| format!("{{\"cniVersion\": \"1.1.0\", \"name\": \"x\", \"labels\": {rest}}}").into_bytes();
    all.push((head(&"[".repeat(100_000)), 6));
    all.push((head(&format!("\"{}\"", "x".repeat(2 << 20))), 6));
    all.push((
        format!("{{\"cniVersion\": \"1.1.0\", \"name\": \"{}\"}}", "x".repeat(300)).into_bytes(),
        7,
    ));
    all.push((b"\xef\xbb\xbf{}".to_vec(), 6));
    all.push((b"{\"cniVersion\": \"\xff\xfe\"}".to_vec(), 6));
    all.push((b"{\"cniVersion\": \"a\nb\"}".to_vec(), 6));
    all.push((b"\0\0\0\0".to_vec(), 6));
    all
}

#[test]
fn malformed_input_is_told_with_its_code() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    let all = malformed();
    assert!(all.len() >= 30);
    for verb in VERBS {
        let call = call.clone().env("CNI_COMMAND", verb);
        for (stdin, code) in &all {
            let shown = String::from_utf8_lossy(&stdin[..stdin.len().min(80)]);
            assert_eq!(call.run_with(stdin).code(), *code, "{verb} {shown:?}");
        }
    }
    assert!(fake.names().is_empty(), "nothing was attached");
}

/// Configurations that are JSON but can not be carried out.
#[test]
fn every_key_is_checked() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    for (key, value, code) in [
        ("network", json!(7), 6),
        ("networks", json!(["a"]), 7),
        ("aliases", json!("web"), 6),
        ("aliases", json!([1]), 6),
        ("labels", json!(["a"]), 6),
        ("labels", json!({"a": 1}), 6),
        ("labels", json!({"mesh.cni/container": "other"}), 7),
        ("service", json!(["a"]), 6),
        ("ips", json!("10.0.0.5"), 6),
        ("ips", json!(["10.0.0.500"]), 7),
        ("ips", json!(["10.0.0.5", "10.0.0.6"]), 7),
        ("mac", json!("zz"), 7),
        ("mac", json!(5), 6),
        ("dns", json!([]), 6),
        ("prevResult", json!("x"), 6),
        ("prevResult", json!({"ips": [{"address": "x"}]}), 6),
        ("runtimeConfig", json!([]), 6),
        ("runtimeConfig", json!({"portMappings": {}}), 6),
        (
            "runtimeConfig",
            json!({"portMappings": [{"hostPort": 70000, "containerPort": 80}]}),
            7,
        ),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": 80, "containerPort": 0}]}), 7),
        (
            "runtimeConfig",
            json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "sctp"}]}),
            7,
        ),
        (
            "runtimeConfig",
            json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "x"}]}),
            7,
        ),
        ("runtimeConfig", json!({"bandwidth": []}), 6),
        ("runtimeConfig", json!({"bandwidth": {"ingressRate": -1}}), 6),
        ("runtimeConfig", json!({"bandwidth": {"ingressRate": 1000, "rate": 1}}), 6),
        ("runtimeConfig", json!({"bandwidth": {"ingressRate": 1000}}), 7),
        ("runtimeConfig", json!({"bandwidth": {"egressBurst": 1000}}), 7),
        ("runtimeConfig", json!({"bandwidth": {"egressRate": 7, "egressBurst": 1000}}), 7),
        (
            "runtimeConfig",
            json!({"bandwidth": {"egressRate": 8, "egressBurst": 34_359_738_368u64}}),
            7,
        ),
        ("runtimeConfig", json!({"deviceID": "0000:04:00.5"}), 2),
        ("bandwidth", json!({"ingressRate": 1}), 7),
        ("ipam", json!({"type": "host-local"}), 2),
        ("netwrok", json!("ov"), 2),
        ("ipMasq", json!(true), 2),
    ] {
        let answer = call.clone().set(key, value.clone()).run();
        assert_eq!(answer.code(), code, "{key} = {value}: {}", answer.text);
        if code == 2 {
            let msg = answer.out["msg"].as_str().unwrap();
            let shown = if key == "runtimeConfig" {
                value.as_object().unwrap().values().next().unwrap().to_string()
            } else {
                value.to_string()
            };
            assert!(msg.contains(key) && msg.contains(&shown), "{msg}");
        }
    }
    let twice = call.clone().set("network", Value::Null).set("networks", json!(["a", "a"]));
    assert_eq!(twice.run().code(), 7);
    assert!(fake.names().is_empty(), "nothing was attached");
    let fine = call
        .set("ipam", json!({}))
        .set("cni.dev/x", json!(1))
        .set("capabilities", json!({"mac": true}));
    assert_eq!(fine.run().code(), 0);
}

#[test]
fn results_are_of_the_version_that_was_asked() {
    for (version, has_family, has_mtu) in [
        ("0.3.1", true, false),
        ("0.4.0", true, false),
        ("1.0.0", false, false),
        ("1.1.0", false, true),
    ] {
        let (fake, c) = (Fake::new(), Container::new());
        let answer = Cni::new(&fake, &c, "c").set("cniVersion", json!(version)).run();
        assert_eq!(answer.code(), 0, "{}", answer.text);
        let out = &answer.out;
        assert_eq!(out["cniVersion"], version);
        assert_eq!(out["interfaces"][0]["name"], "mv-000000000001");
        assert_eq!(out["interfaces"][0]["sandbox"], Value::Null);
        assert_eq!(out["interfaces"][1]["name"], "eth0");
        assert_eq!(out["interfaces"][1]["mac"], "02:6d:0a:00:00:02");
        assert_eq!(out["interfaces"][1]["sandbox"], c.netns());
        assert_eq!(out["interfaces"][1]["mtu"], if has_mtu { json!(1450) } else { Value::Null });
        assert_eq!(out["ips"][0]["address"], "10.0.0.2/24");
        assert_eq!(out["ips"][0]["gateway"], "10.0.0.1");
        assert_eq!(out["ips"][0]["interface"], 1);
        assert_eq!(out["ips"][0]["version"], if has_family { json!("4") } else { Value::Null });
        assert_eq!(out["ips"][1]["address"], "fd00::5/64");
        assert_eq!(out["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]));
        assert_eq!(out["dns"], json!({"nameservers": ["10.0.0.1", "fd00::1"], "options": ["ndots:0"]}));
    }
}

#[test]
fn everything_asked_for_reaches_meshd() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c")
        .set("service", json!("web"))
        .set("aliases", json!(["a1"]))
        .set("labels", json!({"app": "x"}))
        .set("bandwidth", json!({"ingressRate": 1_000_000, "ingressBurst": 2_000_000}))
        .set("ips", json!(["10.0.0.99"]))
        .set(
            "args",
            json!({"cni": {"labels": [{"key": "tier", "value": "front"}], "ips": ["10.0.0.98/24"]}, "other": {"x": 1}}),
        )
        .set(
            "runtimeConfig",
            json!({"ips": ["10.0.0.77/24", "fd00::7/64"], "mac": "02:00:00:00:00:07", "aliases": {"shop": ["a2"], "other": ["a3"]},
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "192.0.2.1"},
                    {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "0.0.0.0"}, {"hostPort": 0, "containerPort": 81},
                    {"HostPort": 443, "ContainerPort": 8443, "Protocol": "tcp", "HostIP": ""}],
                "bandwidth": {"IngressRate": 0, "IngressBurst": 0, "EgressRate": 20_000_000, "EgressBurst": 4_294_967_295u64},
                "dns": {"Servers": null, "Searches": ["corp.example"], "Options": null},
                "io.kubernetes.cri.pod-annotations": {"mesh.label/color": "red", "else": "x"}}),
        )
        .env(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=prod;K8S_POD_INFRA_CONTAINER_ID=c;Y=z;IP=10.0.0.55",
        );
    let answer = call.run();
    assert_eq!(answer.code(), 0, "{}", answer.text);
    let view = fake.world.lock().unwrap().endpoints[&1].clone();
    let connect = &view["request"]["connect"];
    assert_eq!(view["request"]["network"], "ov");
    assert_eq!(connect["service"], "web");
    assert_eq!(connect["aliases"], json!(["a1", "a2"]));
    assert_eq!(connect["ip"], "10.0.0.77");
    assert_eq!(connect["ip6"], "fd00::7");
    assert_eq!(connect["mac"], "02:00:00:00:00:07");
    assert_eq!(connect["hostname"], "web-0");
    let ports = json!([
        {"published": 8080, "target": 80, "protocol": "tcp", "mode": "host", "address": "192.0.2.1"},
        {"published": 53, "target": 5353, "protocol": "udp", "mode": "host", "address": null},
        {"published": 443, "target": 8443, "protocol": "tcp", "mode": "host", "address": null},
    ]);
    assert_eq!(connect["ports"], ports);
    assert_eq!(
        connect["bandwidth"],
        json!({"egress": {"rate": 20_000_000, "burst": 4_294_967_295u64}})
    );
    let labels = json!({
        "app": "x", "tier": "front", "color": "red", "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "prod",
        "mesh.cni/container": "c", "mesh.cni/ifname": "eth0", "mesh.cni/network": "shop",
    });
    assert_eq!(connect["labels"], labels);
    assert_eq!(answer.out["dns"]["search"], json!(["corp.example"]));
    // Without the first, the second counts, and so on.
    fake.world.lock().unwrap().endpoints.clear();
    let mut less = call.clone();
    less.conf["runtimeConfig"] = json!({});
    less.run();
    let connect = fake.world.lock().unwrap().endpoints[&2]["request"]["connect"].clone();
    assert_eq!(connect["ip"], "10.0.0.98");
    assert_eq!(connect["bandwidth"], json!({"ingress": {"rate": 1_000_000, "burst": 2_000_000}}));
}

#[test]
fn an_add_is_one_add() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    assert_eq!(call.run().code(), 0);
    let again = call.run();
    assert_eq!(again.code(), 101, "{}", again.text);
    assert_eq!(fake.names(), ["c"], "the first one is as it was");
    // As another interface it is another attachment.
    assert_eq!(
        call.clone().env("CNI_IFNAME", "eth1").set("network", json!("other")).run().code(),
        0
    );
    assert_eq!(call.verb("DEL").code(), 0);
    assert_eq!(fake.names().len(), 1, "the other interface stays");
    assert_eq!(call.run().code(), 0, "after a DEL it can be added again");
}

#[test]
fn of_two_adds_that_race_one_succeeds() {
    for networks in [json!(["ov"]), json!(["ov", "other"])] {
        let (fake, c) = (Fake::new(), Container::new());
        fake.world.lock().unwrap().slow = Duration::from_millis(100);
        let call = Cni::new(&fake, &c, "c")
            .set("network", Value::Null)
            .set("networks", networks.clone());
        let all: Vec<_> = (0..4).map(|_| call.spawn()).collect();
        let all: Vec<_> = all
            .into_iter()
            .map(|mut child| {
                child.stdin.take().unwrap().write_all(call.conf.to_string().as_bytes()).unwrap();
                child
            })
            .collect();
        let mut codes: Vec<_> = all.into_iter().map(|child| Cni::finish(child).code()).collect();
        codes.sort();
        assert_eq!(codes, [0, 101, 101, 101]);
        assert_eq!(fake.names().len(), networks.as_array().unwrap().len());
    }
}

#[test]
fn what_a_killed_add_left_is_taken_up() {
    let (fake, c) = (Fake::new(), Container::new());
    fake.world.lock().unwrap().slow = Duration::from_secs(60);
    fake.world.lock().unwrap().starting = 5;
    let call = Cni::new(&fake, &c, "c");
    let mut child = call.spawn();
    child.stdin.take().unwrap().write_all(call.conf.to_string().as_bytes()).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while fake.names().is_empty() {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // It becomes ready while the next one looks.
    let answer = call.run();
    assert_eq!(answer.code(), 0, "{}", answer.text);
    assert_eq!(fake.names(), ["c"]);
    // One network is there and one is not: as left by one that was killed between the two.
    let both = call.set("network", Value::Null).set("networks", json!(["ov", "other"]));
    fake.world.lock().unwrap().slow = Duration::ZERO;
    let answer = both.run();
    assert_eq!(answer.code(), 0, "{}", answer.text);
    assert_eq!(answer.out["interfaces"].as_array().unwrap().len(), 4);
    assert_eq!(both.run().code(), 101);
}

#[test]
fn what_ends_between_two_questions_is_in_nobodys_way() {
    let (fake, former, c) = (Fake::new(), Container::new(), Container::new());
    assert_eq!(Cni::new(&fake, &former, "c").run().code(), 0);
    fake.world.lock().unwrap().ending = true;
    let answer = Cni::new(&fake, &c, "c").run();
    assert_eq!(answer.code(), 0, "{}", answer.text);
    assert_eq!(fake.names(), ["c"]);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c")
        .set("network", Value::Null)
        .set("networks", json!(["ov", "other"]));
    for (kind, code) in [
        ("conflict", 100),
        ("not_found", 7),
        ("malformed", 7),
        ("unavailable", 11),
        ("other", 100),
        ("forbidden", 100),
    ] {
        fake.world.lock().unwrap().refuse = Some(("other".to_owned(), kind, "because"));
        let answer = call.run();
        assert_eq!(answer.code(), code, "{kind}: {}", answer.text);
        assert!(answer.out["msg"].as_str().unwrap().contains("because"));
        assert!(fake.names().is_empty(), "{kind}: the first network is taken back");
    }
}

#[test]
fn namespaces_of_every_sort() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    symlink(c.netns(), at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    fs::write(at("file"), "").unwrap();
    for (netns, code) in [
        (at("none"), 3),
        (at("dangling"), 3),
        (at("file"), 4),
        (at(""), 4),
        ("/proc/self/ns/net".to_owned(), 4),
        ("/proc/self/ns/mnt".to_owned(), 4),
        ("relative".to_owned(), 4),
    ] {
        if netns == "/proc/self/ns/mnt" {
            // It is of the same file system; meshd tells them apart.
            continue;
        }
        let answer = call.clone().env("CNI_NETNS", &netns).run();
        assert_eq!(answer.code(), code, "{netns}: {}", answer.text);
    }
    assert!(fake.names().is_empty());
    assert_eq!(call.clone().env("CNI_NETNS", &at("link")).run().code(), 0);
    // Gone, empty or never there: it is detached all the same, also twice.
    drop(c);
    for netns in [Some(at("link")), Some(String::new()), None, Some(at("none"))] {
        let del = netns.map_or_else(|| call.clone().without("CNI_NETNS"), |n| call.clone().env("CNI_NETNS", &n));
        assert_eq!(del.verb("DEL").code(), 0);
        assert!(fake.names().is_empty());
    }
}

#[test]
fn del_succeeds_without_anything() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    assert_eq!(call.verb("DEL").code(), 0, "before any ADD");
    let dead = fake.socket().with_file_name("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in ["/no/such/dir/meshd.sock", dead.to_str().unwrap()] {
        let call = call.clone().env("MESHD_SOCKET", socket);
        let del = call.verb("DEL");
        assert_eq!((del.code(), del.text.as_str()), (0, ""), "without a meshd at {socket}");
        for (verb, code) in [("ADD", 11), ("STATUS", 51), ("GC", 11), ("CHECK", 11)] {
            let prev = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
            let call = call.clone().set("prevResult", prev).set("cni.dev/valid-attachments", json!([]));
            assert_eq!(call.verb(verb).code(), code, "{verb} without a meshd");
        }
    }
    // What it no longer understands of its configuration is no reason to keep a container.
    assert_eq!(call.clone().set("netwrok", json!(1)).set("ips", json!(3)).verb("DEL").code(), 0);
    assert_eq!(call.env("CNI_ARGS", "FOO").verb("DEL").code(), 0);
}

#[test]
fn check_finds_what_is_missing() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    let added = call.run();
    let check = call.clone().set("prevResult", added.out.clone());
    assert_eq!(check.verb("CHECK").code(), 0);
    assert_eq!(call.verb("CHECK").code(), 7, "without prevResult");
    assert_eq!(check.clone().set("cniVersion", json!("0.3.1")).verb("CHECK").code(), 1);
    type Damage = fn(&mut Value);
    let damage: [(&str, Damage, u64); 9] = [
        ("address", |v| v["inside"]["addrs"] = json!(["10.0.0.2/24"]), 102),
        ("route", |v| v["inside"]["routes"] = json!([]), 102),
        ("interface", |v| v["inside"]["link"] = Value::Null, 102),
        ("down", |v| v["inside"]["link"]["up"] = json!(false), 102),
        ("limit", |v| v["inside"]["link"]["limit_holds"] = json!(false), 102),
        ("mac", |v| v["inside"]["link"]["mac"] = json!("02:00:00:00:00:09"), 102),
        ("gone", |v| (v["inside"], v["error"]) = (Value::Null, json!("no namespace")), 3),
        ("record", |v| v["endpoint"]["labels"] = json!({}), 102),
        ("ifname", |v| v["endpoint"]["ifname"] = json!("eth7"), 102),
    ];
    for (what, change, code) in damage {
        let before = fake.world.lock().unwrap().endpoints[&1].clone();
        fake.change(change);
        let answer = check.verb("CHECK");
        assert_eq!(answer.code(), code, "{what}: {}", answer.text);
        fake.change(|v| *v = before);
    }
    assert_eq!(check.verb("CHECK").code(), 0);
}

#[test]
fn gc_removes_what_is_not_listed_and_nothing_else() {
    let fake = Fake::new();
    let containers: Vec<_> = (0..5).map(|_| Container::new()).collect();
    for (i, c) in containers.iter().enumerate().take(4) {
        assert_eq!(Cni::new(&fake, c, &format!("c{i}")).run().code(), 0);
    }
    // Another configuration's.
    let other = Cni::new(&fake, &containers[4], "c4").set("name", json!("other"));
    assert_eq!(other.run().code(), 0);
    let gc = Cni::new(&fake, &containers[0], "c0")
        .env("CNI_COMMAND", "GC")
        .without("CNI_CONTAINERID")
        .without("CNI_IFNAME");
    assert_eq!(gc.run().code(), 7, "without a list nothing is stale");
    assert_eq!(gc.clone().set("cni.dev/valid-attachments", json!("x")).run().code(), 6);
    assert_eq!(gc.clone().set("cniVersion", json!("1.0.0")).run().code(), 1);
    assert_eq!(fake.names().len(), 5);
    let list = |ids: &[&str]| ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect::<Value>();
    let answer = gc.clone().set("cni.dev/valid-attachments", list(&["c1", "c3", "unknown"])).run();
    assert_eq!((answer.code(), answer.text.as_str()), (0, ""));
    assert_eq!(fake.names(), ["c1", "c3", "c4"]);
    let renamed = json!([{"containerID": "c1", "ifname": "eth9"}, {"containerID": "c3", "ifname": "eth0"}]);
    assert_eq!(gc.clone().set("cni.dev/valid-attachments", renamed).run().code(), 0);
    assert_eq!(fake.names(), ["c3", "c4"]);
    assert_eq!(gc.set("cni.dev/valid-attachments", Value::Null).run().code(), 0);
    assert_eq!(fake.names(), ["c4"]);
}

#[test]
fn status_tells_whether_an_add_would_work() {
    let (fake, c) = (Fake::new(), Container::new());
    let call = Cni::new(&fake, &c, "c");
    let status = call.verb("STATUS");
    assert_eq!((status.code(), status.text.as_str()), (0, ""));
    assert_eq!(call.clone().set("cniVersion", json!("1.0.0")).verb("STATUS").code(), 1);
    assert_eq!(call.clone().set("network", json!("none")).verb("STATUS").code(), 50);
    fake.world.lock().unwrap().full = true;
    assert_eq!(call.verb("STATUS").code(), 50, "no address is free");
    for (key, value) in [
        ("node", Value::Null),
        ("manager", Value::Null),
        ("manager", json!({"leader": null, "revision": 1, "peers": []})),
    ] {
        let mut status = healthy();
        status[key] = value;
        fake.world.lock().unwrap().status = Some(status);
        assert_eq!(call.verb("STATUS").code(), 50, "{key}");
    }
}

#[test]
fn pods_of_two_namespaces_may_have_one_name() {
    let fake = Fake::new();
    let containers = [Container::new(), Container::new(), Container::new()];
    let pod = |i: usize, namespace: &str| {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE={namespace}");
        Cni::new(&fake, &containers[i], &format!("c{i}"))
            .env("CNI_ARGS", &args)
            .run()
            .code()
    };
    assert_eq!((pod(0, "a"), pod(1, "b")), (0, 0));
    assert_eq!(fake.names(), ["web-0", "web-0-b"]);
    assert_eq!(pod(2, "a"), 100, "two pods of one namespace may not");
}

#[test]
fn hostile_pod_names_become_labels() {
    for name in ["../..", &"p".repeat(300), "a\nb", "ä ö", "-"] {
        let (fake, c) = (Fake::new(), Container::new());
        let answer = Cni::new(&fake, &c, "c").env("CNI_ARGS", &format!("K8S_POD_NAME={name}")).run();
        assert_eq!(answer.code(), 0, "{name:?}: {}", answer.text);
        let given = fake.names().remove(0);
        let fine = given.len() <= 63 && given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        assert!(fine && !given.starts_with('-') && !given.ends_with('-'), "{given:?}");
    }
}

#[test]
fn an_earlier_plugins_result_is_kept() {
    let (fake, c) = (Fake::new(), Container::new());
    let prev = json!({
        "cniVersion": "1.1.0", "x": {"kept": true},
        "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": "eth0", "sandbox": c.netns(), "pciID": "0000:04:00.5"}],
        "ips": [{"address": "10.9.0.5/16", "gateway": "10.9.0.1", "interface": 1}],
        "routes": [{"dst": "10.8.0.0/16", "priority": 7}], "dns": {"nameservers": ["10.9.0.1"], "domain": "d"},
    });
    let answer = Cni::new(&fake, &c, "c").set("prevResult", prev.clone()).run();
    assert_eq!(answer.code(), 0, "{}", answer.text);
    let out = &answer.out;
    assert_eq!(out["x"], prev["x"]);
    assert_eq!(out["interfaces"][0], prev["interfaces"][0]);
    assert_eq!(out["interfaces"][1], prev["interfaces"][1]);
    assert_eq!(out["interfaces"][3]["name"], "eth1", "eth0 is taken");
    assert_eq!(out["ips"][0], prev["ips"][0]);
    assert_eq!(out["ips"][1]["interface"], 3);
    assert_eq!(out["routes"][0], prev["routes"][0]);
    assert_eq!(
        out["dns"],
        json!({"nameservers": ["10.0.0.1", "fd00::1", "10.9.0.1"], "domain": "d"})
    );
    // A null where there is nothing is how Go writes it.
    let null = json!({"cniVersion": "1.1.0", "interfaces": null, "ips": null, "routes": null, "dns": {}});
    assert_eq!(
        Cni::new(&fake, &c, "d")
            .env("CNI_IFNAME", "net0")
            .set("network", json!("o"))
            .set("prevResult", null)
            .run()
            .code(),
        0
    );
}

#[test]
fn nothing_waits_for_ever() {
    let (fake, c) = (Fake::new(), Container::new());
    let begun = Instant::now();
    // One whose input never ends, and one whose meshd takes the connection and is silent.
    let mut open = Cni::new(&fake, &c, "c").spawn();
    let stdin = open.stdin.take();
    let silent = fake.socket().with_file_name("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let mute = Cni::new(&fake, &c, "c").env("MESHD_SOCKET", silent.to_str().unwrap());
    assert_eq!(mute.verb("STATUS").code(), 51);
    assert_eq!(Cni::finish(open).code(), 5);
    drop(stdin);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

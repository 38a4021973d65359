//! What goes over the socket, and what is printed of the answer.

#![expect(clippy::unwrap_used, reason = "test")]

mod common;
mod fixtures;
mod server;

use fixtures::{ID, endpoint, meshd, network, node, service, traffic};
use mesh_api::rest::{EndpointView, NetworkView, NodeView, ServiceView, TrafficView};
use serde_json::{Value, json};
use server::{Seen, Server};

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Runs `line`, wants it done, and gives what it printed and the last request.
fn done(server: &Server, line: &str) -> (String, Seen) {
    let run = server.run(&words(line));
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{line}: {run:?}");
    (run.out, server.seen().pop().unwrap())
}

#[test]
fn the_answers_here_are_of_the_real_shapes() {
    serde_json::from_value::<NodeView>(node()).unwrap();
    serde_json::from_value::<NetworkView>(network()).unwrap();
    serde_json::from_value::<EndpointView>(endpoint()).unwrap();
    serde_json::from_value::<ServiceView>(service()).unwrap();
    serde_json::from_value::<TrafficView>(traffic()).unwrap();
}

#[test]
fn requests() {
    let s = meshd();
    for (line, request, body) in [
        ("status", "GET /v1/status", Value::Null),
        ("leave --force", "POST /v1/cluster/leave", json!({"force": true})),
        (
            "join --token MESH-1-a-b h1:2377 --advertise-addr 192.168.77.12",
            "POST /v1/cluster/join",
            json!({"token": "MESH-1-a-b", "manager": "h1:2377", "advertise_addr": "192.168.77.12", "data_path_addr": null}),
        ),
        (
            "init --default-addr-pool 10.64.0.0/10 --subnet-size 22 --data-path-addr 10.0.0.1",
            "POST /v1/cluster/init",
            json!({"advertise_addr": null, "data_path_addr": "10.0.0.1", "default_addr_pools": ["10.64.0.0/10"], "subnet_size": 22}),
        ),
        ("token manager", "GET /v1/tokens/manager", Value::Null),
        ("token worker --rotate", "POST /v1/tokens/worker/rotate", Value::Null),
        ("ca show", "GET /v1/ca", Value::Null),
        ("ca rotate", "POST /v1/ca/rotate", Value::Null),
        ("node ls", "GET /v1/nodes", Value::Null),
        ("node inspect h1", "GET /v1/nodes/h1", Value::Null),
        ("node rm h1", "DELETE /v1/nodes/h1", Value::Null),
        ("node rm --force h1", "DELETE /v1/nodes/h1?force=true", Value::Null),
        (
            "node update h1 --availability drain --label-add rack=7 --label-rm old",
            "PATCH /v1/nodes/h1",
            json!({"availability": "drain", "label_add": {"rack": "7"}, "label_rm": ["old"]}),
        ),
        (
            "node promote h1",
            "PATCH /v1/nodes/h1",
            json!({"availability": null, "role": "manager", "label_add": {}, "label_rm": []}),
        ),
        (
            "node demote h1",
            "PATCH /v1/nodes/h1",
            json!({"availability": null, "role": "worker", "label_add": {}, "label_rm": []}),
        ),
        (
            "network create kafka --driver overlay --subnet 172.30.0.0/16 --gateway 172.30.0.254 --ip-range 172.30.8.0/24 --aux-address r=172.30.0.2 --internal --attachable --opt mtu=1400 --label a=b",
            "POST /v1/networks",
            json!({"name": "kafka", "driver": "overlay", "subnets": ["172.30.0.0/16"], "ipv6": false, "gateways": ["172.30.0.254"], "ip_ranges": ["172.30.8.0/24"],
                "aux_addresses": {"r": "172.30.0.2"}, "internal": true, "attachable": true, "options": {"mtu": "1400"}, "labels": {"a": "b"}}),
        ),
        ("network ls", "GET /v1/networks", Value::Null),
        ("network inspect a/b", "GET /v1/networks/a%2Fb", Value::Null),
        ("network rm kafka", "DELETE /v1/networks/kafka", Value::Null),
        ("network prune", "POST /v1/networks/prune", Value::Null),
        (
            "network connect --service web --ip 172.30.0.3 --mac 02:00:00:00:00:01 --alias x --alias y --label a=b --hostname w --ifname eth1 -p 8080:80 kafka netns:web1",
            "POST /v1/networks/kafka/connect",
            json!({"container": "netns:web1", "service": "web", "ip": "172.30.0.3", "ip6": null, "mac": "02:00:00:00:00:01", "aliases": ["x", "y"], "labels": {"a": "b"},
                "hostname": "w", "ifname": "eth1",
                "ports": [{"published": 8080, "target": 80, "protocol": "tcp", "mode": "host", "address": null}]}),
        ),
        (
            "network disconnect --force kafka netns:web1",
            "POST /v1/networks/kafka/disconnect",
            json!({"container": "netns:web1", "force": true}),
        ),
        (
            "service create --name web --network kafka --publish 8888:80 --publish 192.168.77.11:53:53/udp --endpoint-mode dnsrr --drain 2m --label a=b --lb source-hash --affinity 1m --source-range 10.0.0.0/8 --source-range !10.1.0.0/16 --lb-return direct --selector app=web",
            "POST /v1/services",
            json!({"name": "web", "networks": ["kafka"],
                "ports": [{"published": 8888, "target": 80, "protocol": "tcp", "mode": "ingress", "address": null},
                    {"published": 53, "target": 53, "protocol": "udp", "mode": "ingress", "address": "192.168.77.11"}],
                "endpoint_mode": "dnsrr", "algorithm": "source-hash", "drain_secs": 120, "affinity_secs": 60, "lb_return": "direct",
                "source_ranges": [{"net": "10.0.0.0/8", "allow": true}, {"net": "10.1.0.0/16", "allow": false}],
                "selector": {"app": "web"}, "labels": {"a": "b"}}),
        ),
        ("service ls", "GET /v1/services", Value::Null),
        ("service ps web", "GET /v1/services/web/endpoints", Value::Null),
        ("service rm web", "DELETE /v1/services/web", Value::Null),
        ("endpoint ls", "GET /v1/endpoints", Value::Null),
        ("endpoint inspect web1", "GET /v1/endpoints/web1", Value::Null),
        (
            "endpoint update web1 --state draining",
            "PATCH /v1/endpoints/web1",
            json!({"state": "draining", "weight": null}),
        ),
        (
            "endpoint update web1 --weight 3",
            "PATCH /v1/endpoints/web1",
            json!({"state": null, "weight": 3}),
        ),
    ] {
        assert_eq!(
            done(&s, line).1,
            Seen {
                line: request.to_owned(),
                body
            },
            "{line}"
        );
    }
}

#[test]
fn an_update_changes_only_what_is_named() {
    let s = meshd();
    let (_, put) = done(
        &s,
        "service update web --publish-rm 80 --publish-add 8443:443 --network-add shop --label-rm old --label-add new=1 --drain 1m",
    );
    assert_eq!(put.line, "PUT /v1/services/web");
    let spec = json!({"name": "web", "networks": ["kafka", "shop"], "ports": [{"published": 8443, "target": 443, "protocol": "tcp", "mode": "ingress", "address": null}],
        "endpoint_mode": "vip", "algorithm": "rr", "drain_secs": 60, "affinity_secs": 300, "lb_return": "tunnel",
        "source_ranges": [{"net": "10.1.0.0/16", "allow": false}], "selector": {"app": "web"}, "labels": {"new": "1"}});
    assert_eq!(put.body, json!({"version": 7, "spec": spec}));

    let (_, put) = done(&s, "service update web --publish-add 8888:80 --label-rm none");
    assert_eq!(
        put.body["spec"]["ports"].as_array().map(Vec::len),
        Some(1),
        "published already: as it was, and a label that is not there is no error"
    );

    let (_, put) = done(
        &s,
        "service update web --lb random --affinity 0s --lb-return direct --source-range-rm 10.1.0.0/16 --source-range-add 10.0.0.0/8 --selector-rm app --selector-add tier=front",
    );
    let spec = &put.body["spec"];
    assert_eq!(
        (&spec["algorithm"], &spec["affinity_secs"], &spec["lb_return"]),
        (&json!("random"), &json!(0), &json!("direct"))
    );
    assert_eq!(spec["source_ranges"], json!([{"net": "10.0.0.0/8", "allow": true}]));
    assert_eq!(spec["selector"], json!({"tier": "front"}));
    assert_eq!(spec["ports"][0]["published"], 8888, "what is not named stays");

    for (line, code) in [
        ("service update web --publish-rm 81", 3),
        ("service update web --network-rm shop", 3),
        ("service update web --source-range-rm 10.2.0.0/16", 3),
        ("service update web --selector-rm tier", 3),
        ("service update web --affinity 2d", 2),
        ("service update web --network-rm kafka", 2),
        ("service update web --publish-add 8888:81", 4),
    ] {
        let run = s.run(&words(line));
        assert_eq!(run.code, code, "{line}: {run:?}");
        run.line();
        assert!(s.seen().iter().all(|r| r.line.starts_with("GET")), "{line} must change nothing");
    }
}

#[test]
fn printed() {
    let s = meshd();
    for (line, text) in [
        ("network create kafka", format!("{ID}\n")),
        ("service create --name web --network kafka", format!("{ID}\n")),
        ("network connect kafka netns:web1", "172.30.0.3\n".to_owned()),
        ("network connect -q kafka netns:web1", format!("{ID}\n")),
        ("network disconnect kafka netns:web1", String::new()),
        ("network disconnect kafka netns:web1 -o json", "{}\n".to_owned()),
        ("network prune", "kafka\nshop\n".to_owned()),
        ("network prune -q", "kafka\nshop\n".to_owned()),
        ("network rm a b", "a\nb\n".to_owned()),
        ("endpoint ls -q", format!("{ID}\n")),
        ("node ls -q", format!("{ID}\n")),
        ("network ls -q", format!("{ID}\n")),
        ("service ls -q", format!("{ID}\n")),
        ("service ps web -q", format!("{ID}\n")),
        ("service inspect web -q", format!("{ID}\n")),
        ("token worker -q", "MESH-1-a-b\n".to_owned()),
        ("ca show -q", "ab12\n".to_owned()),
        (
            "ca show --pem",
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
        ),
        ("status -q", format!("{ID}\n")),
    ] {
        assert_eq!(done(&s, line).0, text, "{line}");
    }
    let join = "meshctl join --token MESH-1-a-b 192.168.77.11:2377\n";
    assert!(done(&s, "init").0.contains(join) && done(&s, "token worker").0.contains(join));
    let table = done(&s, "node ls").0;
    assert_eq!(
        words(table.lines().next().unwrap()),
        ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER", "ADDRESS"]
    );
    assert_eq!(
        words(table.lines().nth(1).unwrap()),
        [ID, "h1", "ready", "active", "Leader", "192.168.77.11"]
    );
    let rotated = done(&s, "ca rotate").0;
    assert!(rotated.contains("1 of 2 nodes") && rotated.contains("h2 (down)") && rotated.contains("join tokens are new"));
    assert!(done(&s, "service ls").0.contains("1/1") && done(&s, "service ls").0.contains("8888->80/tcp"));
    assert!(done(&s, "service inspect web").0.contains("published=8888  target=80"));
    assert!(!done(&s, "node ls").0.contains('\x1b'), "no colours into a pipe");
}

#[test]
fn json_is_what_meshd_said() {
    let s = meshd();
    for (line, want) in [
        ("node ls -o json", json!([node()])),
        ("network inspect kafka -o json", network()),
        ("-o json service inspect web", service()),
        ("service ps web -o json", json!([endpoint()])),
        ("network connect kafka netns:web1 -o json", endpoint()),
        ("network create kafka -o json", network()),
        ("network rm a b -o json", json!(["a", "b"])),
    ] {
        let out = done(&s, line).0;
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), want, "{line}");
    }
    // Fields that this release does not know come through, in the order in which they came.
    let later = Server::always(200, r#"{"zebra": 1, "id": "x", "aardvark": 2}"#);
    assert_eq!(
        later.run(&["network", "inspect", "x", "-o", "json"]).out,
        "{\n  \"zebra\": 1,\n  \"id\": \"x\",\n  \"aardvark\": 2\n}\n"
    );
}

#[test]
fn a_failed_check_is_told_by_the_exit_code() {
    let s = meshd();
    let run = s.run(&["doctor"]);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    assert!(run.out.contains("FAIL") && !run.out.contains("add bridge"), "{}", run.out);
    assert_eq!(s.seen()[0].line, "GET /v1/doctor");
    assert!(s.run(&["doctor", "--plan"]).out.contains("add bridge"));
    assert_eq!(s.seen()[0].line, "GET /v1/doctor?plan=true");
}

#[test]
fn counters_are_printed_once() {
    let s = meshd();
    let (out, seen) = done(&s, "flows --drops --totals");
    assert_eq!(seen.line, "GET /v1/traffic");
    assert_eq!(words(out.lines().next().unwrap()), ["REASON", "PACKETS", "MEANING"]);
    assert!(
        out.contains("drop_spoofed_ip   3         not its own") && !out.contains("new_flow"),
        "{out}"
    );
    let all = done(&s, "flows --totals -o json").0;
    assert_eq!(serde_json::from_str::<Value>(&all).unwrap(), traffic()["reasons"]);
}

#[test]
fn top_takes_two_samples() {
    let s = Server::new({
        let samples = std::sync::Mutex::new(0_u64);
        move |_| {
            let mut n = samples.lock().unwrap();
            let mut traffic = traffic();
            // The second sample: 2 s and 10 flows later.
            traffic["clock_ns"] = json!(5_000_000_000 + *n * 2_000_000_000);
            traffic["backends"][0]["flows"] = json!(7 + 10 * *n);
            *n += 1;
            (200, traffic.to_string())
        }
    });
    let run = s.run(&words("top --once -d 0.1 -o json"));
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let rates: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(rates["seconds"], json!(2.0));
    assert_eq!(rates["services"][0]["backends"][0]["flows"], json!(5.0));
    assert_eq!(s.seen().len(), 2);
    let table = s.run(&words("top --once -d 0.1")).out;
    assert!(
        table.contains("web1") && table.contains("(published)") && !table.contains('\x1b'),
        "{table}"
    );
}

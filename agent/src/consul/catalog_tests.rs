use mesh_core::objects::{Change, Health, Object};

use super::*;

const OWN: u64 = 1;

fn node(n: u64, dataplane: &str) -> Object {
    let node: Node = serde_json::from_value(json!({
        "id": Id::from_bits(n), "version": n, "created_at": "2026-01-01T00:00:00Z", "hostname": format!("h{n}"),
        "labels": {"rack": n.to_string()}, "role": if n == 1 { "manager" } else { "worker" }, "raft_id": 1, "availability": "active",
        "addr": format!("192.0.2.{n}"), "control_port": 2377, "data_path_addr": format!("192.0.2.{n}"), "underlay_mtu": 1500,
        "ingress_ip": format!("10.0.0.{n}"), "host_routes": [], "state": "ready", "dataplane": dataplane,
    }))
    .unwrap();
    Object::Node(Arc::new(node))
}

fn endpoint(n: u64, on: u64, state: &str, labels: Value) -> Object {
    let e: Endpoint = serde_json::from_value(json!({
        "id": Id::from_bits(100 + n), "version": 100 + n, "created_at": "2026-01-01T00:00:00Z", "name": format!("w{n}"), "labels": labels,
        "node": Id::from_bits(on), "network": Id::from_bits(50), "ip": format!("10.1.0.{n}"), "mac": "02:6d:00:00:00:01", "aliases": [],
        "service": Id::from_bits(60), "sandbox": {"container": "c", "netns": "/x", "inode": n}, "ifname": "eth0", "state": state, "slot": n,
    }))
    .unwrap();
    Object::Endpoint(Arc::new(e))
}

fn all() -> Objects {
    let service: Service = serde_json::from_value(json!({
        "id": Id::from_bits(60), "version": 9, "created_at": "2026-01-01T00:00:00Z", "name": "web", "labels": {"mesh.tags": "v1, http"},
        "networks": [Id::from_bits(50)], "endpoint_mode": "vip", "algorithm": "rr",
        "ports": [{"published": 8080, "target": 80, "protocol": "tcp", "mode": "ingress"}], "vips": [], "slot": 9, "drain_secs": 10,
    }))
    .unwrap();
    let objects = [
        node(1, "reachable"),
        node(2, "reachable"),
        node(3, "unreachable"),
        Object::Service(Arc::new(service)),
        endpoint(1, 2, "ready", json!({})),
        endpoint(2, 1, "ready", json!({"mesh.tags": "blue", "app": "web"})),
        endpoint(3, 3, "ready", json!({})),
        endpoint(4, 1, "draining", json!({})),
        endpoint(5, 1, "starting", json!({})),
    ];
    let mut all = Objects::default();
    for object in objects {
        let (kind, id) = object.key();
        all.apply(&Change {
            kind,
            id,
            object: Some(object),
        });
    }
    all
}

fn ask(path: &str, query: &[(&str, &str)]) -> Value {
    ask_of(&all(), path, query)
}

fn ask_of(all: &Objects, path: &str, query: &[(&str, &str)]) -> Value {
    let params: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let question = Question::read(path, &params).unwrap();
    answer(all, Id::from_bits(OWN), &question).unwrap()
}

fn addresses(list: &Value, at: &str) -> Vec<String> {
    let rows = list.as_array().unwrap().iter();
    rows.map(|r| r.pointer(at).unwrap().as_str().unwrap().to_owned()).collect()
}

#[test]
fn services_and_their_instances() {
    assert_eq!(ask("/v1/catalog/services", &[]), json!({"web": ["blue", "http", "v1"]}));
    let rows = ask("/v1/catalog/service/WEB", &[]);
    assert_eq!(
        addresses(&rows, "/ServiceAddress"),
        ["10.1.0.2", "10.1.0.4", "10.1.0.1", "10.1.0.3"]
    );
    let row = &rows[0];
    assert_eq!(
        (
            &row["Node"],
            &row["Address"],
            &row["ServicePort"],
            &row["Datacenter"],
            &row["ServiceMeta"]["app"]
        ),
        (&json!("h1"), &json!("192.0.2.1"), &json!(80), &json!("mesh"), &json!("web"))
    );
    let health = ask("/v1/health/service/web", &[]);
    assert_eq!(
        addresses(&health, "/Service/Address"),
        addresses(&rows, "/ServiceAddress"),
        "one order"
    );
    let ids: BTreeSet<_> = addresses(&health, "/Service/ID").into_iter().collect();
    assert_eq!(ids.len(), 4);
    assert_eq!(ask("/v1/catalog/service/none", &[]), json!([]));
    assert_eq!(ask("/v1/health/service/none", &[]), json!([]));
}

#[test]
fn what_gets_no_new_flow_does_not_pass() {
    let passing = |query: &[(&str, &str)]| addresses(&ask("/v1/health/service/web", query), "/Service/Address");
    assert_eq!(passing(&[("passing", "")]), ["10.1.0.2", "10.1.0.1"]);
    assert_eq!(passing(&[("passing", ""), ("tag", "blue"), ("tag", "v1")]), ["10.1.0.2"]);
    assert_eq!(passing(&[("node-meta", "rack:3")]), ["10.1.0.3"]);
    let critical = ask("/v1/health/state/critical", &[]);
    assert_eq!(
        addresses(&critical, "/Output"),
        [
            "neither its meshd nor its kernel answers",
            "it drains",
            "its node's data plane does not answer"
        ]
    );
    assert_eq!(ask("/v1/health/state/any", &[]).as_array().unwrap().len(), 3 + 4);
}

/// A container that is stopping gets new flows only where no other is left that takes them, in its network.
#[test]
fn the_last_ones_pass_until_they_end() {
    let mut all = all();
    let mut passing = |id: u64, change: fn(&mut Endpoint)| {
        let mut e = all.endpoints.get(&Id::from_bits(100 + id)).unwrap().as_ref().clone();
        change(&mut e);
        let object = Object::Endpoint(Arc::new(e));
        let (kind, id) = object.key();
        all.apply(&Change {
            kind,
            id,
            object: Some(object),
        });
        addresses(&ask_of(&all, "/v1/health/service/web", &[("passing", "")]), "/Service/Address")
    };
    let stop = |e: &mut Endpoint| e.stopping = Some(Box::new(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(passing(2, stop), ["10.1.0.1"]);
    assert_eq!(passing(1, stop), ["10.1.0.2", "10.1.0.1"], "that on h3 is not reached");
    assert_eq!(passing(1, |e| e.weight = 0), ["10.1.0.2"]);
    assert_eq!(passing(4, |e| e.state = EndpointState::Ready), ["10.1.0.4"]);
    assert_eq!(
        passing(4, |e| e.health = Health::Unwell),
        ["10.1.0.2"],
        "one that stops serves still"
    );
    assert_eq!(
        passing(2, |e| e.health = Health::Unwell),
        ["10.1.0.2", "10.1.0.4"],
        "none is better"
    );
    assert_eq!(passing(4, |e| e.health = Health::Well), ["10.1.0.4"]);
    let elsewhere = |e: &mut Endpoint| e.network = Id::from_bits(51);
    assert_eq!(passing(4, elsewhere), ["10.1.0.2", "10.1.0.4"]);
}

/// Whether a question is about the service.
fn web(path: &str) -> bool {
    path.ends_with("web")
}

/// An answer changes only when what it is made of does, and what others are made of is not among that.
#[test]
fn who_asks_for_a_service_is_not_woken_for_another() {
    let read_of = |all: &Objects, path: &str| {
        let question = Question::read(path, &[]).unwrap();
        (
            read(all, Id::from_bits(OWN), &question),
            answer(all, Id::from_bits(OWN), &question).unwrap(),
        )
    };
    let asks = [
        "/v1/health/service/web",
        "/v1/catalog/service/web",
        "/v1/catalog/nodes",
        "/v1/agent/self",
    ];
    let put = |all: &mut Objects, object: Object| {
        let (kind, id) = object.key();
        all.apply(&Change {
            kind,
            id,
            object: Some(object),
        });
    };
    let changed_endpoint = |n: u64, change: fn(&mut Endpoint)| {
        move |all: &mut Objects| {
            let mut e = all.endpoints.get(&Id::from_bits(100 + n)).unwrap().as_ref().clone();
            e.version += 1000;
            change(&mut e);
            put(all, Object::Endpoint(Arc::new(e)));
        }
    };
    let changed_node = |n: u64| {
        move |all: &mut Objects| {
            let mut node = all.nodes.get(&Id::from_bits(n)).unwrap().as_ref().clone();
            node.version += 1000;
            node.dataplane = Dataplane::Unreachable;
            put(all, Object::Node(Arc::new(node)));
        }
    };
    type Step<'a> = (Box<dyn Fn(&mut Objects) + 'a>, fn(&str) -> bool);
    let steps: [Step<'_>; 7] = [
        (Box::new(changed_endpoint(1, |e| e.weight = 0)), web),
        (Box::new(changed_endpoint(2, |e| e.service = None)), web),
        (Box::new(changed_node(2)), |path| web(path) || path.ends_with("nodes")),
        (Box::new(changed_node(1)), |_| true),
        (Box::new(|all: &mut Objects| drop(all.services.remove(Id::from_bits(60)))), web),
        // Another service comes, and an endpoint that was none of ours changes.
        (
            Box::new(|all: &mut Objects| {
                let mut other = all.services.get(&Id::from_bits(60)).unwrap().as_ref().clone();
                (other.id, other.name) = (Id::from_bits(61), "other".into());
                put(all, Object::Service(Arc::new(other)));
            }),
            |_| false,
        ),
        (
            Box::new(|all: &mut Objects| {
                let mut e = all.endpoints.get(&Id::from_bits(101)).unwrap().as_ref().clone();
                (e.id, e.service) = (Id::from_bits(110), Some(Id::from_bits(61)));
                put(all, Object::Endpoint(Arc::new(e)));
            }),
            |_| false,
        ),
    ];
    for (n, (step, concerns)) in steps.into_iter().enumerate() {
        let (before, mut after) = (all(), all());
        step(&mut after);
        for path in asks {
            let (was, is) = (read_of(&before, path), read_of(&after, path));
            assert_eq!(was.0 != is.0, concerns(path), "step {n}: {path}");
            assert!(
                was.0 != is.0 || was.1 == is.1,
                "step {n}: {path} answers another without having read another"
            );
        }
    }
    for path in ["/v1/catalog/services", "/v1/health/state/any", "/v1/agent/services"] {
        assert_eq!(read_of(&all(), path).0, None, "{path}: everything");
    }
}

#[test]
fn this_host_and_the_managers() {
    assert_eq!(ask("/v1/status/leader", &[]), "192.0.2.1:2377");
    assert_eq!(ask("/v1/status/peers", &[]), json!(["192.0.2.1:2377"]));
    assert_eq!(ask("/v1/catalog/datacenters", &[]), json!(["mesh"]));
    assert_eq!(ask("/v1/agent/self", &[])["Config"]["NodeName"], "h1");
    assert_eq!(ask("/v1/agent/services", &[]).as_object().unwrap().len(), 2);
    assert_eq!(addresses(&ask("/v1/catalog/nodes", &[("node-meta", "rack:2")]), "/Node"), ["h2"]);
    let id = ask("/v1/catalog/nodes", &[])[0]["ID"].as_str().unwrap().to_owned();
    assert_eq!(id.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
}

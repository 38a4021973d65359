//! Addresses that an engine is promised, and endpoints that it takes into its containers itself.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use std::net::IpAddr;

use common::{Lab, endpoint, id, node_id};
use jiff::Timestamp;
use mesh_core::{
    RefusalKind as K,
    action::{Action, NetAction},
    command::{Command as C, Learnt, NewEndpoint, Reply},
    desired::Desired,
    intent,
    objects::{Handover, Place, Sandbox},
    observed::{Observed, SeenVeth},
};

fn reserve(lab: &mut Lab, node: u64, ip: Option<&str>) -> IpAddr {
    let command = C::AddressReserve {
        network: "net".into(),
        node: node_id(node),
        ip: ip.map(|ip| ip.parse().unwrap()),
        six: false,
    };
    match lab.ok(command) {
        Reply::Address(net) => net.addr(),
        other => panic!("{other:?}"),
    }
}

fn release(node: u64, ip: IpAddr, with_endpoint: bool) -> C {
    C::AddressRelease {
        network: "net".into(),
        node: node_id(node),
        ip,
        with_endpoint,
    }
}

fn taken_over(n: u64, node: u64, ip: IpAddr) -> NewEndpoint {
    NewEndpoint {
        ip: Some(ip),
        sandbox: Sandbox::new(
            0,
            Place {
                container: "docker:x".into(),
                handover: Some(Box::new(Handover {
                    endpoint: format!("engine-{n}"),
                    leased: false,
                })),
                ..Place::default()
            },
        ),
        ..endpoint(n, node, "net", None)
    }
}

fn attach(endpoint: NewEndpoint) -> C {
    C::EndpointCreate {
        endpoint,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn desired(lab: &Lab, node: u64) -> Desired {
    intent::desired(lab.state.objects(), lab.index, id(1), node_id(node), &intent::Facts::default())
}

fn lab() -> Lab {
    let mut lab = Lab::new(2);
    lab.network(1, "net", None);
    lab
}

#[test]
fn a_reserved_address_is_its_nodes_alone() {
    let mut lab = lab();
    let ip = reserve(&mut lab, 1, None);
    assert_ne!(reserve(&mut lab, 2, None), ip);
    let text = ip.to_string();
    for node in [1, 2] {
        let again = C::AddressReserve {
            network: "net".into(),
            node: node_id(node),
            ip: Some(ip),
            six: false,
        };
        lab.refused(again, K::Conflict, &["taken", "h1"]);
    }
    lab.refused(attach(taken_over(1, 2, ip)), K::Conflict, &[&text]);
    lab.attach(taken_over(1, 1, ip));
    let network = lab.state.objects().network("net").unwrap().clone();
    assert!(!network.reserved.contains_key(&ip), "it is the endpoint's now");
    lab.refused(attach(taken_over(2, 1, ip)), K::Conflict, &["taken"]);
}

#[test]
fn an_address_rests_until_the_engine_gives_it_back() {
    let mut lab = lab();
    let ip = reserve(&mut lab, 1, None);
    lab.attach(taken_over(1, 1, ip));
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    lab.refused(attach(taken_over(2, 2, ip)), K::Conflict, &["taken"]);
    // Of another node it is none of the business.
    lab.ok(release(2, ip, true));
    lab.refused(attach(taken_over(2, 2, ip)), K::Conflict, &["taken"]);
    lab.ok(release(1, ip, true));
    lab.attach(taken_over(2, 2, ip));
    // That one's address was never reserved, so it is free at once.
    lab.ok(C::EndpointRemove { id: id(0x9002) });
    assert_eq!(reserve(&mut lab, 1, Some(&ip.to_string())), ip);
}

#[test]
fn an_engine_that_gives_back_a_living_address_gives_up_the_endpoint() {
    let mut lab = lab();
    let ip = reserve(&mut lab, 1, None);
    lab.attach(taken_over(1, 1, ip));
    lab.ok(release(1, ip, false));
    lab.ok(release(2, ip, true));
    assert!(lab.state.objects().endpoints.contains_key(&id(0x9001)));
    lab.ok(release(1, ip, true));
    assert!(lab.state.objects().endpoints.is_empty());
    assert!(lab.state.objects().network("net").unwrap().reserved.is_empty());
    // One that meshd attached is not the engine's to give up.
    let own = lab.attach(endpoint(2, 1, "net", None));
    lab.ok(release(1, own.ip, true));
    assert_eq!(lab.state.objects().endpoints.len(), 1);
}

#[test]
fn the_index_is_what_the_objects_say() {
    let mut lab = lab();
    let ip = reserve(&mut lab, 1, None);
    lab.attach(taken_over(1, 1, ip));
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    // A manager that starts from its store refuses the same.
    lab.state = mesh_core::state::State::from_objects(lab.state.objects().clone());
    lab.refused(attach(taken_over(2, 2, ip)), K::Conflict, &["taken"]);
    lab.ok(C::NodeRemove {
        node: "h2".into(),
        force: true,
    });
    lab.refused(
        C::AddressReserve {
            network: "net".into(),
            node: node_id(2),
            ip: None,
            six: false,
        },
        K::NotFound,
        &["node"],
    );
}

#[test]
fn what_a_removed_node_had_reserved_is_free() {
    let mut lab = lab();
    let ip = reserve(&mut lab, 2, None);
    lab.ok(C::NodeRemove {
        node: "h2".into(),
        force: true,
    });
    assert_eq!(reserve(&mut lab, 1, Some(&ip.to_string())), ip);
}

#[test]
fn names_are_learnt_and_never_taken_from_another() {
    let mut lab = lab();
    for n in 1..=2 {
        let ip = reserve(&mut lab, n, None);
        lab.attach(taken_over(n, n, ip));
        lab.ok(C::EndpointLearn {
            id: id(0x9000 + n),
            learnt: Learnt {
                sandbox: Some(Sandbox::new(
                    7,
                    Place {
                        container: "web".into(),
                        netns: "/proc/7/ns/net".into(),
                        cookie: 8,
                        ..Place::default()
                    },
                )),
                ifname: Some("eth1".into()),
                name: Some("web".into()),
                aliases: Some(vec!["www".into()]),
                ..Learnt::default()
            },
        });
    }
    let all = lab.state.objects();
    let (first, second) = (&all.endpoints[&id(0x9001)], &all.endpoints[&id(0x9002)]);
    assert_eq!((&*first.name, &first.aliases[..]), ("web", &["www".to_owned()][..]));
    assert_eq!(
        (&*second.name, &second.aliases[..]),
        ("c2", &["www".to_owned(), "web".to_owned()][..])
    );
    assert_eq!((&*first.ifname, first.sandbox.inode), ("eth1", 7));
    assert!(
        first.sandbox.handover.as_ref().is_some_and(|h| h.leased),
        "that is not the learner's to change"
    );
    let wrong = Learnt {
        aliases: Some(vec!["a b".into()]),
        ..Learnt::default()
    };
    lab.refused(
        C::EndpointLearn {
            id: id(0x9001),
            learnt: wrong,
        },
        K::Malformed,
        &["a b"],
    );
    let lost = Learnt {
        service: Some("none".into()),
        ..Learnt::default()
    };
    lab.refused(
        C::EndpointLearn {
            id: id(0x9001),
            learnt: lost,
        },
        K::NotFound,
        &["none"],
    );
}

#[test]
fn an_interface_waits_in_the_host_until_its_container_is_known() {
    let mut lab = lab();
    let ip = reserve(&mut lab, 1, None);
    for n in 1..=2 {
        let ip = if n == 1 { ip } else { reserve(&mut lab, 1, None) };
        lab.attach(taken_over(n, 1, ip));
    }
    let peers = |lab: &Lab| desired(lab, 1).veths.values().map(|v| v.peer.clone()).collect::<Vec<_>>();
    let waiting = peers(&lab);
    assert_eq!(waiting.len(), 2, "two unknown containers are two");
    assert!(waiting.iter().all(|p| p.waits && p.ifname.starts_with("mc-") && p.netns.is_empty()));
    let steps = mesh_core::plan::plan(&desired(&lab, 1), &Default::default());
    assert!(
        steps
            .iter()
            .any(|s| matches!(s, Action::Net(NetAction::PutVeth { veth, .. }) if veth.peer.waits))
    );
    lab.ok(C::EndpointLearn {
        id: id(0x9001),
        learnt: Learnt {
            sandbox: Some(Sandbox::new(
                7,
                Place {
                    netns: "/proc/7/ns/net".into(),
                    ..Place::default()
                },
            )),
            ..Learnt::default()
        },
    });
    let known = peers(&lab).into_iter().find(|p| !p.waits).unwrap();
    assert_eq!(known.returns, known.gateways, "docker may give another network the default route");
    assert!(known.taken && waiting.iter().all(|p| !p.taken));
    let returns = |s: &Action| matches!(s, Action::Net(NetAction::AddReturns { peer, .. }) if peer.inode == 7);
    let mut host = Observed::default();
    for there in [false, true] {
        let steps = mesh_core::plan::plan(&desired(&lab, 1), &host);
        assert_eq!(steps.iter().filter(|s| returns(s)).count(), usize::from(!there));
        for (name, veth) in desired(&lab, 1).veths {
            let (endpoint, bridge, mtu) = (veth.endpoint, Some(veth.bridge), veth.mtu);
            let returns = veth.peer.taken;
            host.overlay.veths.insert(
                name,
                SeenVeth {
                    endpoint,
                    bridge,
                    mtu,
                    up: true,
                    returns,
                    queue: None,
                },
            );
        }
    }
    assert_eq!((known.inode, known.netns.as_str()), (7, "/proc/7/ns/net"));
    assert!(
        !known.gateways.is_empty() && known.addrs.len() == 1,
        "a repair gives back what docker gave"
    );
}

#[test]
fn questions_to_the_hosts_resolvers_are_answered_where_docker_asks() {
    let mut lab = lab();
    lab.network(2, "other", None);
    lab.attach(endpoint(8, 1, "other", None));
    let ip = reserve(&mut lab, 1, None);
    lab.attach(taken_over(1, 1, ip));
    let facts = intent::Facts {
        resolvers: [[192, 0, 2, 53].into()].into(),
        ..Default::default()
    };
    let nft = |node| {
        intent::desired(lab.state.objects(), lab.index, id(1), node_id(node), &facts)
            .nft
            .unwrap()
    };
    assert_eq!(nft(1).resolvers, facts.resolvers);
    let bridge = |name: &str| intent::bridge_name(lab.state.objects().network(name).unwrap().id);
    let here = nft(1).bridges;
    assert!(
        here[&bridge("net")].names && !here[&bridge("other")].names,
        "containers of others ask whom they like"
    );
}

//! Each step of a plan is seen by a dump just as it was wanted, may be done twice, and is gone after
//! its opposite.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};

use lab::*;
use mesh_core::{
    Id, Mac,
    action::NetAction,
    desired::{Fdb, Link, Neigh, Route},
    nft::{BridgeRules, Nft},
    observed::{SeenLink, SeenOverlay, SeenVeth},
};
use mesh_overlay::Overlay;

async fn dump(overlay: &Overlay) -> SeenOverlay {
    overlay.dump(Some(cluster())).await.unwrap_or_else(|e| panic!("{}", chain(&e)))
}

/// Does it twice, which changes nothing more.
async fn twice(overlay: &Overlay, action: NetAction) -> SeenOverlay {
    apply(overlay, [action.clone()]).await;
    let known = overlay.dump_known(Some(cluster()), None).await.unwrap();
    let seen = dump(overlay).await;
    assert_eq!(known.as_ref(), Some(&seen), "what is kept up without reading it again");
    apply(overlay, [action]).await;
    assert_eq!(dump(overlay).await, seen);
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_and_its_opposite() {
    let (host, pod) = (Ns::new(), Ns::new());
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    let mut want = SeenOverlay::default();
    assert_eq!(dump(&overlay).await, want);

    let mark = (cluster(), net1.id);
    let link = Link::Bridge {
        mac: Mac::for_ip(net1.gateway),
        mtu: 1450,
        ipv6: false,
    };
    want.links.insert(net1.bridge(), SeenLink { mark, link, settled: true });
    assert_eq!(twice(&overlay, net1.put_bridge()).await, want);
    assert_eq!(host.ok("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert_eq!(
        host.ok(&format!("cat /proc/sys/net/ipv6/conf/{}/disable_ipv6", net1.bridge()))
            .trim(),
        "1"
    );

    let link = Link::Vxlan {
        vni: net1.vni,
        local: ip("192.0.2.1"),
        mtu: 1450,
        bridge: Some(net1.bridge()),
        mac: None,
        ipv6: false,
    };
    want.links.insert(net1.vxlan(), SeenLink { mark, link, settled: true });
    assert_eq!(twice(&overlay, net1.put_vxlan("192.0.2.1")).await, want);

    // The ingress network's device stands alone.
    let ingress = Link::Vxlan {
        vni: 4096,
        local: ip("192.0.2.1"),
        mtu: 1450,
        bridge: None,
        mac: Some(Mac::for_ip(ip("10.255.0.1"))),
        ipv6: false,
    };
    let name = "mx-000000000000".to_owned();
    want.links.insert(
        name.clone(),
        SeenLink {
            mark: (cluster(), Id::default()),
            link: ingress.clone(),
            settled: true,
        },
    );
    let put = NetAction::PutLink {
        name: name.clone(),
        mark: (cluster(), Id::default()),
        link: Box::new(ingress),
    };
    assert_eq!(twice(&overlay, put).await, want);
    assert_eq!(host.ok(&format!("cat /proc/sys/net/ipv4/conf/{name}/rp_filter")).trim(), "2");

    let (veth_name, veth) = net1.attach(&pod, 5, true);
    let seen = SeenVeth {
        returns: false,
        queue: None,
        endpoint: veth.endpoint,
        bridge: Some(net1.bridge()),
        mtu: 1450,
        up: true,
    };
    want.veths.insert(veth_name.clone(), seen);
    assert_eq!(
        twice(
            &overlay,
            NetAction::PutVeth {
                name: veth_name.clone(),
                cluster: cluster(),
                veth: Box::new(veth)
            }
        )
        .await,
        want
    );
    assert_eq!(pod.links(), ["eth0"]);

    let addr = (net1.bridge(), net("10.1.0.1/24"));
    want.addrs.insert(addr.clone());
    assert_eq!(twice(&overlay, NetAction::AddAddr(addr.0.clone(), addr.1)).await, want);
    assert_eq!(host.ok("ip route show"), "", "no route of the kernel's own");
    let own = (name.clone(), net("10.255.0.1/32"));
    want.addrs.insert(own.clone());
    assert_eq!(twice(&overlay, NetAction::AddAddr(own.0.clone(), own.1)).await, want);

    let route = Route {
        dst: net1.subnet,
        dev: net1.bridge(),
        src: ip("10.255.0.1"),
    };
    want.routes.insert(route.clone());
    assert_eq!(twice(&overlay, NetAction::AddRoute(route.clone())).await, want);

    let mac = Mac::for_ip(ip("10.1.0.9"));
    let rows = [
        (net1.vxlan(), Some(ip("192.0.2.2"))),
        (net1.vxlan(), None),
        (veth_name.clone(), None),
        (name.clone(), Some(ip("192.0.2.3"))),
    ];
    let macs = [mac, mac, Mac::for_ip(ip("10.1.0.5")), mac];
    let entries: Vec<Fdb> = rows
        .into_iter()
        .zip(macs)
        .map(|((dev, vtep), mac)| Fdb { dev, mac, vtep })
        .collect();
    for entry in &entries {
        want.fdb.insert(entry.clone());
        assert_eq!(twice(&overlay, NetAction::AddFdb(entry.clone())).await, want);
    }
    let neighs = [net1.bridge(), name.clone()].map(|dev| Neigh {
        dev,
        ip: ip("10.1.0.9"),
        mac,
    });
    for neigh in &neighs {
        want.neighs.insert(neigh.clone());
        assert_eq!(twice(&overlay, NetAction::AddNeigh(neigh.clone())).await, want);
    }
    let rules = BridgeRules {
        subnets: vec![net1.subnet],
        gateways: vec![net1.gateway],
        internal: false,
        names: false,
    };
    let nft = Nft {
        peers: BTreeSet::from([ip("192.0.2.2")]),
        bridges: BTreeMap::from([(net1.bridge(), rules)]),
        ingress: BTreeSet::from([net("10.255.0.0/16")]),
        ingress_dev: name.clone(),
        ..Nft::default()
    };
    want.nft = Some(nft.clone());
    assert_eq!(twice(&overlay, NetAction::SetNft(Some(Box::new(nft)))).await, want);

    // Another overlay, as after a restart, sees the same.
    assert_eq!(dump(&host.overlay().await).await, want);

    want.nft = None;
    assert_eq!(twice(&overlay, NetAction::SetNft(None)).await, want);
    for neigh in neighs {
        want.neighs.remove(&neigh);
        assert_eq!(twice(&overlay, NetAction::DelNeigh(neigh)).await, want);
    }
    for entry in entries {
        want.fdb.remove(&entry);
        assert_eq!(twice(&overlay, NetAction::DelFdb(entry)).await, want);
    }
    want.routes.remove(&route);
    assert_eq!(twice(&overlay, NetAction::DelRoute(route)).await, want);
    for addr in [addr, own] {
        want.addrs.remove(&addr);
        assert_eq!(twice(&overlay, NetAction::DelAddr(addr.0, addr.1)).await, want);
    }
    want.veths.remove(&veth_name);
    assert_eq!(twice(&overlay, NetAction::DelLink(veth_name)).await, want);
    assert!(pod.links().is_empty());
    for name in [name, net1.vxlan(), net1.bridge()] {
        want.links.remove(&name);
        assert_eq!(twice(&overlay, NetAction::DelLink(name)).await, want);
    }
    assert!(host.links().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_put_right_in_place_or_made_anew() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    let mut net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1")]).await;
    let (bridge, vxlan) = (net1.bridge(), net1.vxlan());
    let index = |name: &str| host.ok(&format!("cat /sys/class/net/{name}/ifindex"));
    let (old_bridge, old_vxlan) = (index(&bridge), index(&vxlan));
    let want = dump(&overlay).await;

    // What an admin may have changed is seen, and put right.
    for tampering in [
        format!("ip link set {bridge} down"),
        format!("ip link set {bridge} mtu 1400"),
        format!("ip link set {bridge} address 02:00:00:00:00:01"),
        format!("ip link set {bridge} type bridge stp_state 1"),
        format!("ip link set {bridge} type bridge mcast_snooping 1"),
        format!("ip link set {vxlan} down"),
        format!("ip link set {vxlan} nomaster"),
        format!("bridge link set dev {vxlan} flood on"),
        format!("bridge link set dev {vxlan} learning on"),
        format!("bridge link set dev {vxlan} neigh_suppress off"),
        format!("ip link set {vxlan} mtu 1300"),
    ] {
        host.ok(&tampering);
        assert_ne!(dump(&overlay).await, want, "{tampering}");
        apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1")]).await;
        assert_eq!(dump(&overlay).await, want, "{tampering}");
    }
    assert_eq!((index(&bridge), index(&vxlan)), (old_bridge.clone(), old_vxlan.clone()));

    // VNI and local address can not be changed in place.
    apply(&overlay, [net1.put_vxlan("192.0.2.7")]).await;
    assert_ne!(index(&vxlan), old_vxlan);
    net1.vni = 5000;
    net1.mtu = 1400;
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.7")]).await;
    let seen = dump(&overlay).await;
    let Link::Vxlan { vni, local, mtu, .. } = &seen.links[&vxlan].link else {
        panic!("no vxlan")
    };
    assert_eq!((*vni, *local, *mtu), (5000, ip("192.0.2.7"), 1400));
    assert!(seen.links.values().all(|l| l.settled));
    assert_eq!(index(&bridge), old_bridge);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_moves() {
    let (host, pod) = (Ns::new(), Ns::new());
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1"), net1.put_veth(&pod, 5)]).await;
    apply(&overlay, net1.remote(9, "192.0.2.2")).await;
    let mac = Mac::for_ip(ip("10.1.0.9"));
    // To another host, then to this one: new entries may come before old ones go.
    let at = |vtep: &str| Fdb {
        dev: net1.vxlan(),
        mac,
        vtep: Some(ip(vtep)),
    };
    apply(&overlay, [NetAction::AddFdb(at("192.0.2.3")), NetAction::DelFdb(at("192.0.2.2"))]).await;
    assert!(dump(&overlay).await.fdb.contains(&at("192.0.2.3")));
    let (name, _) = net1.attach(&pod, 5, true);
    let [here, there] = [name, net1.vxlan()].map(|dev| Fdb { dev, mac, vtep: None });
    apply(
        &overlay,
        [
            NetAction::AddFdb(here.clone()),
            NetAction::DelFdb(there),
            NetAction::DelFdb(at("192.0.2.3")),
        ],
    )
    .await;
    assert_eq!(dump(&overlay).await.fdb, BTreeSet::from([here]));
}

/// More than are sent at once, with some that the kernel refuses: what comes of each is its own.
#[tokio::test(flavor = "multi_thread")]
async fn entries_go_many_at_once() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1")]).await;
    assert!(dump(&overlay).await.fdb.is_empty());
    let mut steps: Vec<NetAction> = (2..200).flat_map(|n| net1.remote(n, "192.0.2.2")).collect();
    let is_wrong = |step: &NetAction| matches!(step, NetAction::AddFdb(Fdb { vtep: Some(vtep), .. }) if vtep.is_ipv6());
    for at in [0, 127, 300, 594] {
        let (dev, mac, vtep) = (net1.vxlan(), Mac([2, 0, 0, 0, 0, 9]), Some(ip("2001:db8::1")));
        steps.insert(at, NetAction::AddFdb(Fdb { dev, mac, vtep }));
    }
    for _ in 0..2 {
        let done = overlay.apply_all(&steps.iter().collect::<Vec<_>>()).await;
        assert_eq!(done.len(), steps.len());
        for (step, done) in steps.iter().zip(done) {
            let error = done.err().map(|e| (e.errno(), e.to_string()));
            let wrong = (
                Some(97),
                format!("cannot add forwarding entry 02:00:00:00:00:09 on {}", net1.vxlan()),
            );
            assert_eq!(error, is_wrong(step).then_some(wrong), "{step:?}");
        }
        let known = overlay.dump_known(Some(cluster()), None).await.unwrap();
        let seen = dump(&overlay).await;
        assert_eq!((seen.fdb.len(), seen.neighs.len()), (2 * 198, 198));
        assert_eq!(known, Some(seen), "what is kept up without reading it again");
    }
    // Where not all devices are ours and there, and with steps of other kinds, each is done by itself.
    steps.truncate(4);
    steps.push(NetAction::DelLink(net1.bridge()));
    steps.push(Network::new(2).remote(2, "192.0.2.2").remove(0));
    let done = overlay.apply_all(&steps.iter().collect::<Vec<_>>()).await;
    assert_eq!(
        done.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [false, true, true, true, true, false]
    );
    assert!(done[5].as_ref().is_err_and(mesh_overlay::Error::is_link_gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_links_and_routes_are_left_alone_and_named() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    let (net1, net2) = (Network::new(1), Network::new(2));
    host.ok(&format!("ip link add {} type bridge", net1.bridge()));
    host.ok("ip link add other type vxlan id 4098 dstport 4789 local 192.0.2.1");
    host.ok("ip link set other up");
    let alien = overlay.apply(&net1.put_bridge()).await.unwrap_err();
    assert!(alien.to_string().contains(&net1.bridge()), "{alien}");
    for action in [
        NetAction::DelLink(net1.bridge()),
        NetAction::DelLink("other".into()),
        NetAction::AddAddr("other".into(), net("10.1.0.1/24")),
        NetAction::AddNeigh(Neigh {
            dev: "other".into(),
            ip: ip("10.1.0.9"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
        }),
        NetAction::AddFdb(Fdb {
            dev: "other".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            vtep: Some(ip("192.0.2.2")),
        }),
        NetAction::AddRoute(Route {
            dst: net1.subnet,
            dev: "other".into(),
            src: ip("192.0.2.1"),
        }),
    ] {
        assert!(
            matches!(overlay.apply(&action).await, Err(mesh_overlay::Error::NotOurs { .. })),
            "{action:?}"
        );
    }
    // A VNI that is taken names who has it.
    apply(&overlay, [net2.put_bridge()]).await;
    let taken = chain(&overlay.apply(&net2.put_vxlan("192.0.2.1")).await.unwrap_err());
    assert!(
        taken.contains(&net2.vxlan()) && taken.contains("VNI 4098") && taken.contains("other") && taken.contains("File exists"),
        "{taken}"
    );
    // So does a route.
    host.ok("ip addr add 192.0.2.1/24 dev other");
    host.ok("ip route add 10.2.0.0/24 dev other");
    let route = NetAction::AddRoute(Route {
        dst: net2.subnet,
        dev: net2.bridge(),
        src: ip("192.0.2.1"),
    });
    let taken = overlay.apply(&route).await.unwrap_err().to_string();
    assert!(taken.contains("10.2.0.0/24") && taken.contains("other"), "{taken}");
    assert_eq!(host.ok("ip route show 10.2.0.0/24").trim(), "10.2.0.0/24 dev other scope link");
    assert!(dump(&overlay).await.links.keys().eq([&net2.bridge()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_links_can_be_left_out() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge()]).await;
    let other = Id::from_bits(0xbeef);
    assert!(overlay.dump(Some(other)).await.unwrap().links.is_empty());
    assert_eq!(overlay.dump(None).await.unwrap().links.len(), 1);
    // Taken over by name, it is made anew.
    let NetAction::PutLink { name, link, .. } = net1.put_bridge() else {
        panic!("no link")
    };
    apply(
        &overlay,
        [NetAction::PutLink {
            name: name.clone(),
            mark: (other, net1.id),
            link,
        }],
    )
    .await;
    assert_eq!(overlay.dump(None).await.unwrap().links[&name].mark, (other, net1.id));
}

//! IPv6 inside the networks and under them, by links, entries and the packet filter alone.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};

use lab::*;
use mesh_core::{
    Id, Mac,
    action::NetAction,
    desired::{Fdb, Link, Neigh, Route},
    nft::{BridgeRules, Nft},
    observed::SeenOverlay,
};
use mesh_overlay::Overlay;

const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const V6: [&str; 2] = ["fd77::1", "fd77::2"];
const INGRESS: [&str; 2] = ["fd00::a", "fd00::b"];
const INGRESS_DEV: &str = "mx-000000000000";

struct Two {
    hosts: [Ns; 2],
    pods: [Ns; 2],
    overlays: [Overlay; 2],
    net: Network,
}

/// Two hosts whose VTEPs are `underlay`, with fd01:0:0:1::11 on the first and ::12 on the second.
async fn two(underlay: [&str; 2]) -> Two {
    let (hosts, pods) = ([Ns::new(), Ns::new()], [Ns::new(), Ns::new()]);
    let length = if underlay == V4 { 24 } else { 64 };
    let [a, b] = underlay.map(|ip| format!("{ip}/{length}"));
    wire((&hosts[0], "up0", &a), (&hosts[1], "up0", &b));
    // A fresh link makes sure of its own link-local address first.
    until("the underlay", || hosts[0].pings(underlay[1]) && hosts[1].pings(underlay[0]));
    let overlays = [hosts[0].overlay().await, hosts[1].overlay().await];
    let net = Network::six(1);
    for (i, overlay) in overlays.iter().enumerate() {
        let (here, there) = (i, 1 - i);
        apply(overlay, ingress(underlay, here)).await;
        apply(overlay, net.actions(underlay[here], ip(INGRESS[here]))).await;
        apply(overlay, [net.put_veth(&pods[here], 0x11 + here as u8)]).await;
        apply(overlay, net.remote(0x11 + there as u8, underlay[there])).await;
        apply(overlay, [local(&net, 0x11 + here as u8), nft(&net, &[underlay[there]], false)]).await;
    }
    Two {
        hosts,
        pods,
        overlays,
        net,
    }
}

fn ingress(underlay: [&str; 2], here: usize) -> Vec<NetAction> {
    let there = 1 - here;
    let dev = INGRESS_DEV.to_owned();
    let mac = |n: usize| Mac([2, 0, 0, 0, 0, n as u8]);
    vec![
        NetAction::PutLink {
            name: dev.clone(),
            mark: (cluster(), Id::default()),
            link: Box::new(Link::Vxlan {
                vni: 4096,
                local: ip(underlay[here]),
                mtu: 1430,
                bridge: None,
                mac: Some(mac(here)),
                ipv6: true,
            }),
        },
        NetAction::AddAddr(dev.clone(), net(&format!("{}/64", INGRESS[here]))),
        NetAction::AddRoute(Route {
            dst: net("fd00::/64"),
            dev: dev.clone(),
            src: ip(INGRESS[here]),
        }),
        NetAction::AddFdb(Fdb {
            dev: dev.clone(),
            mac: mac(there),
            vtep: Some(ip(underlay[there])),
        }),
        NetAction::AddNeigh(Neigh {
            dev,
            ip: ip(INGRESS[there]),
            mac: mac(there),
        }),
    ]
}

/// The neighbour of a container of this host.
fn local(net1: &Network, host: u8) -> NetAction {
    let ip = net1.addr(host).addr();
    NetAction::AddNeigh(Neigh {
        dev: net1.bridge(),
        ip,
        mac: Mac::for_ip(ip),
    })
}

fn nft(net1: &Network, peers: &[&str], internal: bool) -> NetAction {
    let rules = BridgeRules {
        subnets: vec![net1.subnet],
        gateways: vec![net1.gateway],
        internal,
        names: false,
    };
    NetAction::SetNft(Some(Box::new(Nft {
        peers: peers.iter().map(|p| ip(p)).collect(),
        bridges: BTreeMap::from([(net1.bridge(), rules)]),
        ingress: BTreeSet::from([net("fd00::/64")]),
        ingress_dev: INGRESS_DEV.into(),
        ..Nft::default()
    })))
}

async fn dump(overlay: &Overlay) -> SeenOverlay {
    overlay.dump(Some(cluster())).await.unwrap_or_else(|e| panic!("{}", chain(&e)))
}

async fn they_reach_each_other(lab: &Two) {
    until("the containers to reach each other", || {
        lab.pods[0].pings("fd01:0:0:1::12") && lab.pods[1].pings("fd01:0:0:1::11")
    });
    lab.pods[1].serve("[fd01:0:0:1::12]:80").await;
    assert_eq!(lab.pods[0].fetch("[fd01:0:0:1::12]:80").await.as_deref(), Some("fd01:0:0:1::11"));
    assert!(lab.pods[0].pings("fd01:0:0:1::1"), "the gateway is the own host's");
    assert!(
        lab.pods[0].succeeds("ping -n -c 1 -W 3 -M do -s 1382 fd01:0:0:1::12"),
        "1430 bytes fit"
    );
    // From its own address the host reaches containers here and there, and the other host.
    for (host, pod) in [(0, 0), (0, 1), (1, 0)] {
        let at = format!("[fd01:0:0:1::{}]:{}", 11 + pod, 8000 + host);
        lab.pods[pod].serve(&at).await;
        let seen = lab.hosts[host].fetch(&at).await;
        assert_eq!(seen.as_deref(), Some(INGRESS[host]), "host {host} to container {pod}");
    }
    assert!(lab.hosts[0].pings(INGRESS[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_reach_each_other_over_ipv4() {
    let lab = two(V4).await;
    they_reach_each_other(&lab).await;
    // Neighbours are asked for and answered here, also when an old entry is looked at again.
    let vxlan = lab.net.vxlan();
    lab.pods[0].ok("ip -6 neigh flush dev eth0");
    let before = lab.hosts[0].sent(&vxlan);
    assert!(lab.pods[0].pings("fd01:0:0:1::12"));
    assert_eq!(lab.hosts[0].sent(&vxlan), before + 1, "one echo request and no solicitation");
    let mac = Mac::for_ip(ip("fd01:0:0:1::12")).to_string();
    assert!(lab.pods[0].ok("ip neigh show fd01:0:0:1::12").contains(&mac));
    assert!(!lab.pods[0].pings("fd01:0:0:1::99"));
    lab.pods[0].sh("ping -n -c 1 -W 1 -I eth0 ff02::1");
    assert_eq!(lab.hosts[0].sent(&vxlan), before + 1, "neither for nobody's address nor to a group");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_reach_each_other_over_ipv6() {
    let lab = two(V6).await;
    they_reach_each_other(&lab).await;
    // VXLAN of a peer, to the address that it knows, is let in without a look at whether that is the host's.
    let NetAction::SetNft(Some(rules)) = nft(&lab.net, &[V6[0]], false) else {
        panic!("no rules")
    };
    let vtep = Some(ip(V6[1]));
    apply(&lab.overlays[1], [NetAction::SetNft(Some(Nft { vtep, ..*rules }.into()))]).await;
    lab.hosts[1].ok("nft insert rule inet meshd from_peer drop");
    assert!(lab.pods[0].pings("fd01:0:0:1::12"));
    // VXLAN of a stranger is dropped.
    apply(&lab.overlays[1], [nft(&lab.net, &["fd77::99"], false)]).await;
    assert!(!lab.pods[0].pings("fd01:0:0:1::12"));
    apply(&lab.overlays[1], [nft(&lab.net, &[V6[0]], false)]).await;
    assert!(lab.pods[0].pings("fd01:0:0:1::12"));
    // What was made is seen as it was wanted: done once more, nothing changes.
    for (i, overlay) in lab.overlays.iter().enumerate() {
        let seen = dump(overlay).await;
        assert!(seen.links.values().all(|l| l.settled), "{:?}", seen.links);
        let Link::Vxlan { local, ipv6, .. } = seen.links[INGRESS_DEV].link else {
            panic!("no vxlan")
        };
        assert_eq!((local, ipv6), (ip(V6[i]), true));
        let index = || lab.hosts[i].ok(&format!("cat /sys/class/net/{}/ifindex", lab.net.vxlan()));
        let before = index();
        apply(overlay, ingress(V6, i)).await;
        apply(overlay, lab.net.actions(V6[i], ip(INGRESS[i]))).await;
        assert_eq!(index(), before, "not made anew");
        assert_eq!(dump(overlay).await, seen);
        let there = lab.net.addr(0x11 + (1 - i) as u8).addr();
        assert!(seen.neighs.iter().any(|n| n.ip == there));
        let to = |e: &&Fdb| e.vtep == Some(ip(V6[1 - i]));
        assert_eq!(seen.fdb.iter().filter(to).count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn egress_is_masqueraded_and_networks_are_kept_apart() {
    let lab = two(V4).await;
    let outside = Ns::new();
    wire((&lab.hosts[0], "out0", "2001:db8::1/64"), (&outside, "eth0", "2001:db8::2/64"));
    outside.serve("[2001:db8::2]:80").await;
    lab.pods[0].serve("[fd01:0:0:1::11]:80").await;
    assert_eq!(
        lab.pods[0].fetch("[2001:db8::2]:80").await.as_deref(),
        Some("2001:db8::1"),
        "the host's address"
    );
    outside.ok("ip route add fd01::/48 via 2001:db8::1");
    apply(&lab.overlays[0], [NetAction::SetNft(None)]).await;
    assert!(outside.fetch("[fd01:0:0:1::11]:80").await.is_some(), "without rules it gets in");
    apply(&lab.overlays[0], [nft(&lab.net, &[V4[1]], false)]).await;
    assert_eq!(outside.fetch("[fd01:0:0:1::11]:80").await, None);

    // Internal: no way out, but to the gateway, within, and for the host.
    apply(&lab.overlays[0], [nft(&lab.net, &[V4[1]], true)]).await;
    lab.pods[0].ok("ip -6 neigh flush dev eth0");
    assert_eq!(lab.pods[0].fetch("[2001:db8::2]:80").await, None);
    assert!(!lab.pods[0].pings("2001:db8::1"));
    assert!(lab.pods[0].pings("fd01:0:0:1::1") && lab.pods[0].pings("fd01:0:0:1::12"));
    assert!(lab.hosts[0].pings("fd01:0:0:1::11"));

    // Another network on the same host.
    let (other, pod) = (Network::six(2), Ns::new());
    apply(&lab.overlays[0], other.actions(V4[0], ip(INGRESS[0]))).await;
    apply(&lab.overlays[0], [other.put_veth(&pod, 0x11), local(&other, 0x11)]).await;
    pod.serve("[fd01:0:0:2::11]:80").await;
    apply(&lab.overlays[0], [NetAction::SetNft(None)]).await;
    assert!(
        lab.pods[0].fetch("[fd01:0:0:2::11]:80").await.is_some(),
        "without rules the host routes between them"
    );
    let NetAction::SetNft(Some(mut rules)) = nft(&lab.net, &[], false) else {
        panic!("no rules")
    };
    let second = BridgeRules {
        subnets: vec![other.subnet],
        gateways: vec![other.gateway],
        internal: false,
        names: false,
    };
    rules.bridges.insert(other.bridge(), second);
    apply(&lab.overlays[0], [NetAction::SetNft(Some(rules.clone()))]).await;
    assert_eq!(dump(&lab.overlays[0]).await.nft, Some(*rules));
    assert_eq!(lab.pods[0].fetch("[fd01:0:0:2::11]:80").await, None);
    assert!(!lab.pods[0].pings("fd01:0:0:2::1"), "another network's gateway");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_and_a_container_take_no_addresses_by_themselves() {
    let (host, pod, peer) = (Ns::new(), Ns::new(), Ns::new());
    wire((&host, "up0", "fd77::1/64"), (&peer, "up0", "fd77::2/64"));
    host.ok("sysctl -w net.ipv6.conf.up0.accept_ra=1");
    // As Docker leaves a container without IPv6.
    pod.ok("sysctl -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let overlay = host.overlay().await;
    let net1 = Network::six(1);
    let setting = |ns: &Ns, key: &str| ns.ok(&format!("cat /proc/sys/net/ipv6/conf/{key}")).trim().to_owned();
    assert_eq!(setting(&host, "all/forwarding"), "0");
    host.ok("ip addr add fd00::a/128 dev lo nodad");
    apply(&overlay, net1.actions("fd77::1", ip("fd00::a"))).await;
    assert_eq!(setting(&host, "all/forwarding"), "1");
    assert_eq!(
        setting(&host, "up0/accept_ra"),
        "2",
        "a host that forwards takes advertisements still"
    );
    let bridge = net1.bridge();
    assert_eq!(
        host.ok(&format!("ip -6 -o addr show dev {bridge}")).lines().count(),
        1,
        "no link-local address"
    );
    assert_eq!(
        host.ok("ip -6 route show fd01:0:0:1::/64").lines().count(),
        1,
        "no route of the kernel's own"
    );

    // Both families for one container.
    let (name, mut veth) = net1.attach(&pod, 5, true);
    veth.peer.addrs.insert(0, net("10.1.0.5/24"));
    veth.peer.gateways.insert(0, ip("10.1.0.1"));
    let put = NetAction::PutVeth {
        name,
        cluster: cluster(),
        veth: Box::new(veth),
    };
    apply(&overlay, [put, local(&net1, 5)]).await;
    let eth0 = pod.ok("ip addr show eth0");
    assert!(eth0.contains("10.1.0.5/24") && eth0.contains("fd01:0:0:1::5/64"), "{eth0}");
    assert!(
        !eth0.contains("tentative") || !eth0.contains("fd01:0:0:1::5/64 scope global tentative"),
        "{eth0}"
    );
    assert!(pod.ok("ip -6 route show default").contains("via fd01:0:0:1::1 dev eth0"));
    assert!(pod.ok("ip route show default").contains("via 10.1.0.1 dev eth0"));
    assert_eq!(
        (setting(&pod, "eth0/accept_ra"), setting(&pod, "eth0/autoconf")),
        ("0".into(), "0".into())
    );
    assert!(host.pings("fd01:0:0:1::5"));

    // What an admin may have changed is seen, and put right.
    let want = dump(&overlay).await;
    for tampering in ["accept_ra=1", "disable_ipv6=1"] {
        host.ok(&format!("sysctl -w net.ipv6.conf.{bridge}.{tampering}"));
        assert_ne!(dump(&overlay).await, want, "{tampering}");
        apply(&overlay, net1.actions("fd77::1", ip("fd00::a"))).await;
        apply(&overlay, [local(&net1, 5)]).await;
        assert_eq!(dump(&overlay).await, want, "{tampering}");
    }
    // And off again.
    let NetAction::PutLink { name, mark, .. } = net1.put_bridge() else {
        panic!("no link")
    };
    let link = Box::new(Link::Bridge {
        mac: Mac::for_ip(net1.gateway),
        mtu: net1.mtu,
        ipv6: false,
    });
    apply(&overlay, [NetAction::PutLink { name, mark, link }]).await;
    let seen = dump(&overlay).await;
    assert!(seen.addrs.is_empty() && seen.neighs.is_empty() && seen.links[&bridge].settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_as_they_came() {
    let lab = two(V6).await;
    let (overlay, before) = (&lab.overlays[0], dump(&lab.overlays[0]).await);
    let addr = (lab.net.bridge(), net("fd01:0:0:9::1/64"));
    let route = Route {
        dst: net("fd01:0:0:9::/64"),
        dev: lab.net.bridge(),
        src: ip(INGRESS[0]),
    };
    let neigh = Neigh {
        dev: lab.net.bridge(),
        ip: ip("fd01:0:0:9::7"),
        mac: Mac([2, 0, 0, 0, 0, 7]),
    };
    let fdb = Fdb {
        dev: lab.net.vxlan(),
        mac: neigh.mac,
        vtep: Some(ip(V6[1])),
    };
    for _ in 0..2 {
        apply(
            overlay,
            [
                NetAction::AddAddr(addr.0.clone(), addr.1),
                NetAction::AddRoute(route.clone()),
                NetAction::AddNeigh(neigh.clone()),
                NetAction::AddFdb(fdb.clone()),
            ],
        )
        .await;
    }
    let mut want = before.clone();
    want.addrs.insert(addr.clone());
    want.routes.insert(route.clone());
    want.neighs.insert(neigh.clone());
    want.fdb.insert(fdb.clone());
    assert_eq!(dump(overlay).await, want);
    for _ in 0..2 {
        apply(
            overlay,
            [
                NetAction::DelFdb(fdb.clone()),
                NetAction::DelNeigh(neigh.clone()),
                NetAction::DelRoute(route.clone()),
                NetAction::DelAddr(addr.0.clone(), addr.1),
            ],
        )
        .await;
    }
    assert_eq!(dump(overlay).await, before);
}

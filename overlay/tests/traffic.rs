//! Two hosts on one underlay, each with a container: what a plan's steps alone make of them.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};

use lab::*;
use mesh_core::{
    Id, Mac,
    action::NetAction,
    desired::{Fdb, Link, Neigh, Route},
    nft::{BridgeRules, Nft},
};
use mesh_overlay::Overlay;

const UNDERLAY: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const INGRESS: [&str; 2] = ["10.255.0.1", "10.255.0.2"];
const INGRESS_DEV: &str = "mx-000000000000";

struct Two {
    hosts: [Ns; 2],
    pods: [Ns; 2],
    overlays: [Overlay; 2],
    net: Network,
}

/// Container 10.1.0.11 is on the first host, 10.1.0.12 on the second.
async fn two() -> Two {
    let (hosts, pods) = ([Ns::new(), Ns::new()], [Ns::new(), Ns::new()]);
    wire((&hosts[0], "up0", "192.0.2.1/24"), (&hosts[1], "up0", "192.0.2.2/24"));
    let overlays = [hosts[0].overlay().await, hosts[1].overlay().await];
    let net = Network::new(1);
    for (i, overlay) in overlays.iter().enumerate() {
        let (here, there) = (i, 1 - i);
        apply(overlay, ingress(here)).await;
        apply(overlay, net.actions(UNDERLAY[here], ip(INGRESS[here]))).await;
        apply(overlay, [net.put_veth(&pods[here], 11 + here as u8)]).await;
        apply(overlay, net.remote(11 + there as u8, UNDERLAY[there])).await;
        apply(overlay, [NetAction::SetNft(Some(Box::new(nft(&net, &[UNDERLAY[there]], false))))]).await;
    }
    Two {
        hosts,
        pods,
        overlays,
        net,
    }
}

/// The ingress network: each node's own address and the other one's.
fn ingress(here: usize) -> Vec<NetAction> {
    let there = 1 - here;
    let (own, other) = (ip(INGRESS[here]), ip(INGRESS[there]));
    let dev = INGRESS_DEV.to_owned();
    let link = Link::Vxlan {
        vni: 4096,
        local: ip(UNDERLAY[here]),
        mtu: 1450,
        bridge: None,
        mac: Some(Mac::for_ip(own)),
        ipv6: false,
    };
    vec![
        NetAction::PutLink {
            name: dev.clone(),
            mark: (cluster(), Id::default()),
            link: Box::new(link),
        },
        NetAction::AddAddr(dev.clone(), net(&format!("{own}/32"))),
        NetAction::AddRoute(Route {
            dst: net("10.255.0.0/16"),
            dev: dev.clone(),
            src: own,
        }),
        NetAction::AddFdb(Fdb {
            dev: dev.clone(),
            mac: Mac::for_ip(other),
            vtep: Some(ip(UNDERLAY[there])),
        }),
        NetAction::AddNeigh(Neigh {
            dev,
            ip: other,
            mac: Mac::for_ip(other),
        }),
    ]
}

fn nft(net1: &Network, peers: &[&str], internal: bool) -> Nft {
    let rules = BridgeRules {
        subnets: vec![net1.subnet],
        gateways: vec![net1.gateway],
        internal,
        names: false,
    };
    Nft {
        peers: peers.iter().map(|p| ip(p)).collect(),
        bridges: BTreeMap::from([(net1.bridge(), rules)]),
        ingress: BTreeSet::from([net("10.255.0.0/16")]),
        ingress_dev: INGRESS_DEV.into(),
        ..Nft::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_reach_each_other_over_vxlan() {
    let lab = two().await;
    assert!(lab.pods[0].pings("10.1.0.12"));
    lab.pods[1].serve("10.1.0.12:80").await;
    assert_eq!(lab.pods[0].fetch("10.1.0.12:80").await.as_deref(), Some("10.1.0.11"));
    // The gateway is the own host's.
    assert!(lab.pods[0].pings("10.1.0.1") && lab.pods[1].pings("10.1.0.1"));
    // Other traffic is tracked, for the way out; what carries the flows is not.
    for host in &lab.hosts {
        host.ok("ping -n -c 1 -W 1 127.0.0.1");
        let tracked = host.ok("cat /proc/thread-self/net/nf_conntrack");
        assert!(tracked.contains("dst=127.0.0.1") && !tracked.contains("dport=4789"), "{tracked}");
    }
    assert!(lab.pods[0].succeeds("ping -n -c 1 -W 3 -M do -s 1422 10.1.0.12"), "1450 bytes fit");
    assert!(!lab.pods[0].succeeds("ping -n -c 1 -W 1 -M do -s 1423 10.1.0.12"), "1451 do not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_reaches_containers_from_its_own_address() {
    let lab = two().await;
    for (host, pod) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let at = format!("10.1.0.{}:{}", 11 + pod, 8000 + host);
        lab.pods[pod].serve(&at).await;
        assert_eq!(
            lab.hosts[host].fetch(&at).await.as_deref(),
            Some(INGRESS[host]),
            "host {host} to container {pod}"
        );
    }
    assert!(lab.hosts[0].pings("10.255.0.2"));
    // What is not the ingress network may start nothing from its device.
    lab.hosts[1].ok("ip addr add 203.0.113.1/32 dev lo");
    lab.hosts[1].ok(&format!("ip route replace 10.1.0.11 via 10.255.0.1 dev {INGRESS_DEV} onlink"));
    assert!(lab.hosts[1].pings("-I 10.255.0.2 10.1.0.11"));
    assert!(!lab.hosts[1].pings("-I 203.0.113.1 10.1.0.11"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_flooded_and_arp_is_answered_here() {
    let lab = two().await;
    let vxlan = lab.net.vxlan();
    let before = lab.hosts[0].sent(&vxlan);
    assert!(lab.pods[0].pings("10.1.0.12"));
    assert_eq!(lab.hosts[0].sent(&vxlan), before + 1, "one echo request and no ARP");
    assert!(
        lab.pods[0]
            .ok("ip neigh show 10.1.0.12")
            .contains(&Mac::for_ip(ip("10.1.0.12")).to_string())
    );
    // Nobody has these.
    assert!(!lab.pods[0].pings("10.1.0.99"));
    lab.pods[0].sh("ping -n -c 1 -W 1 -b 10.1.0.255");
    lab.pods[0].ok("ip neigh replace 10.1.0.98 lladdr 02:00:00:00:00:98 dev eth0");
    assert!(!lab.pods[0].pings("10.1.0.98"));
    assert_eq!(lab.hosts[0].sent(&vxlan), before + 1, "neither broadcast nor unknown unicast");
}

#[tokio::test(flavor = "multi_thread")]
async fn vxlan_of_a_stranger_is_dropped() {
    let lab = two().await;
    assert!(lab.pods[0].pings("10.1.0.12"));
    apply(
        &lab.overlays[1],
        [NetAction::SetNft(Some(Box::new(nft(&lab.net, &["192.0.2.77"], false))))],
    )
    .await;
    assert!(!lab.pods[0].pings("10.1.0.12"));
    let listing = lab.hosts[1].ok("nft list chain inet meshd from_peer");
    assert!(
        listing.contains("counter packets") && !listing.contains("counter packets 0 "),
        "{listing}"
    );
    apply(
        &lab.overlays[1],
        [NetAction::SetNft(Some(Box::new(nft(&lab.net, &[UNDERLAY[0]], false))))],
    )
    .await;
    assert!(lab.pods[0].pings("10.1.0.12"));
}

#[tokio::test(flavor = "multi_thread")]
async fn vxlan_of_a_peer_takes_the_short_way() {
    let lab = two().await;
    let host = &lab.hosts[1];
    let set = async |peer: &str, vtep: &str| {
        let want = Nft {
            vtep: Some(ip(vtep)),
            ..nft(&lab.net, &[peer], false)
        };
        apply(&lab.overlays[1], [NetAction::SetNft(Some(want.into()))]).await;
    };
    set(UNDERLAY[0], UNDERLAY[1]).await;
    // Past the look at whether the address is the host's, and past what comes later in `input`.
    host.ok("nft insert rule inet meshd from_peer drop");
    host.ok("nft add rule inet meshd input udp dport 4789 drop");
    assert!(lab.pods[0].pings("10.1.0.12"));
    set("192.0.2.77", UNDERLAY[1]).await;
    assert!(!lab.pods[0].pings("10.1.0.12"), "a stranger's");
    set(UNDERLAY[0], "192.0.2.99").await;
    assert!(lab.pods[0].pings("10.1.0.12"), "to another address of the host");
    host.ok("nft insert rule inet meshd from_peer drop");
    assert!(!lab.pods[0].pings("10.1.0.12"), "which is the long way");
}

#[tokio::test(flavor = "multi_thread")]
async fn egress_is_masqueraded_unless_internal() {
    let lab = two().await;
    let outside = Ns::new();
    wire((&lab.hosts[0], "out0", "198.51.100.1/24"), (&outside, "eth0", "198.51.100.2/24"));
    outside.serve("198.51.100.2:80").await;
    lab.pods[0].serve("10.1.0.11:80").await;
    assert_eq!(
        lab.pods[0].fetch("198.51.100.2:80").await.as_deref(),
        Some("198.51.100.1"),
        "the host's address"
    );
    // From outside nothing gets in, whatever route it takes.
    outside.ok("ip route add 10.1.0.0/24 via 198.51.100.1");
    apply(&lab.overlays[0], [NetAction::SetNft(None)]).await;
    assert!(outside.fetch("10.1.0.11:80").await.is_some(), "without rules it does");
    apply(
        &lab.overlays[0],
        [NetAction::SetNft(Some(Box::new(nft(&lab.net, &[UNDERLAY[1]], false))))],
    )
    .await;
    assert_eq!(outside.fetch("10.1.0.11:80").await, None);
    assert!(!outside.pings("10.1.0.11"));

    apply(
        &lab.overlays[0],
        [NetAction::SetNft(Some(Box::new(nft(&lab.net, &[UNDERLAY[1]], true))))],
    )
    .await;
    assert_eq!(lab.pods[0].fetch("198.51.100.2:80").await, None, "internal: no way out");
    assert!(!lab.pods[0].pings("198.51.100.1"), "nor to the host's other addresses");
    assert!(
        lab.pods[0].pings("10.1.0.1") && lab.pods[0].pings("10.1.0.12"),
        "but to the gateway and within"
    );
    assert!(lab.hosts[0].pings("10.1.0.11"), "and the host may ask");
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_kept_apart() {
    let (host, pods) = (Ns::new(), [Ns::new(), Ns::new(), Ns::new()]);
    let overlay = host.overlay().await;
    let nets = [Network::new(1), Network::new(2)];
    host.ok("ip addr add 10.255.0.1/32 dev lo");
    for net in &nets {
        apply(&overlay, net.actions("192.0.2.1", ip("10.255.0.1"))).await;
    }
    apply(
        &overlay,
        [
            nets[0].put_veth(&pods[0], 11),
            nets[1].put_veth(&pods[1], 11),
            nets[0].put_veth(&pods[2], 12),
        ],
    )
    .await;
    pods[1].serve("10.2.0.11:80").await;
    pods[2].serve("10.1.0.12:80").await;
    assert!(
        pods[0].fetch("10.2.0.11:80").await.is_some(),
        "without rules the host routes between them"
    );

    let rules = |net: &Network| BridgeRules {
        subnets: vec![net.subnet],
        gateways: vec![net.gateway],
        internal: false,
        names: false,
    };
    let bridges = nets.iter().map(|n| (n.bridge(), rules(n))).collect();
    let want = Nft {
        peers: BTreeSet::new(),
        bridges,
        ingress: BTreeSet::new(),
        ingress_dev: INGRESS_DEV.into(),
        ..Nft::default()
    };
    apply(&overlay, [NetAction::SetNft(Some(Box::new(want)))]).await;
    assert_eq!(pods[0].fetch("10.2.0.11:80").await, None);
    assert!(!pods[0].pings("10.2.0.11"));
    assert_eq!(pods[0].fetch("10.1.0.12:80").await.as_deref(), Some("10.1.0.11"));

    // Gateways answer echo and DNS, and to their own network only.
    host.serve("10.1.0.1:53").await;
    host.serve("10.1.0.1:22").await;
    host.serve("10.255.0.1:22").await;
    assert!(pods[0].pings("10.1.0.1") && !pods[0].pings("10.2.0.1"));
    assert!(pods[0].fetch("10.1.0.1:53").await.is_some());
    assert_eq!(pods[0].fetch("10.1.0.1:22").await, None);
    assert_eq!(pods[1].fetch("10.1.0.1:53").await, None);
    assert!(
        pods[0].fetch("10.255.0.1:22").await.is_some(),
        "the host's other addresses are its own affair"
    );
}

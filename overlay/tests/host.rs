//! The packet filter's table read back, the host's facts, its events, the sweep, and a large table.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt;
use lab::*;
use mesh_core::{
    Mac,
    action::NetAction,
    desired::{Fdb, Neigh, Route},
    nft::{BridgeRules, Nft},
};

/// Two of each kind, in an order that is not sorted.
fn value() -> Nft {
    let shop = BridgeRules {
        subnets: vec![net("10.9.0.0/24"), net("10.1.0.0/24"), net("fd00:1::/64")],
        gateways: vec![ip("10.9.0.1"), ip("10.1.0.1"), ip("fd00:1::1")],
        internal: false,
        names: false,
    };
    let back = BridgeRules {
        subnets: vec![net("10.2.0.0/16"), net("10.3.3.3/32")],
        gateways: vec![ip("10.2.0.1")],
        internal: true,
        names: true,
    };
    Nft {
        peers: [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")].into(),
        vtep: Some(ip("192.0.2.3")),
        bridges: BTreeMap::from([("mb-shop".into(), shop), ("mb-back".into(), back)]),
        ingress: BTreeSet::from([net("10.255.0.0/16")]),
        ingress_dev: "mx-ingress".into(),
        resolvers: BTreeSet::from([[192, 0, 2, 53].into(), [192, 0, 2, 54].into()]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_drops_what_it_does_not_know_is_passed() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    // As Docker leaves it.
    host.ok("nft add table ip filter");
    host.ok("nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
    host.ok("nft add rule ip filter FORWARD iifname docker0 accept");
    let seen = async || overlay.dump(None).await.unwrap();
    assert!(seen().await.blocked);
    let rules = || host.ok("nft list chain ip filter FORWARD").matches("comment \"meshd\"").count();
    for _ in 0..2 {
        apply(&overlay, [NetAction::PassForward]).await;
        assert!(!seen().await.blocked);
        assert_eq!(rules(), 2);
    }
    host.ok("nft flush chain ip filter FORWARD");
    assert!(seen().await.blocked, "it is put back");
    apply(&overlay, [NetAction::PassForward]).await;
    overlay.sweep().await.unwrap();
    assert_eq!(rules(), 0);
    assert!(
        host.ok("nft list chain ip filter FORWARD").contains("policy drop"),
        "the rest is theirs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_is_read_back_and_any_edit_is_seen() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    host.ok("nft add table inet other");
    apply(&overlay, [NetAction::SetNft(Some(Box::new(value())))]).await;
    assert_eq!(overlay.dump(None).await.unwrap().nft, Some(value()));
    // After a restart the lists come sorted; writing the value once more settles it.
    let restarted = host.overlay().await;
    let mut sorted = value();
    sorted.bridges.values_mut().for_each(|b| {
        b.subnets.sort();
        b.gateways.sort();
    });
    assert_eq!(restarted.dump(None).await.unwrap().nft, Some(sorted));
    apply(&restarted, [NetAction::SetNft(Some(Box::new(value())))]).await;
    assert_eq!(restarted.dump(None).await.unwrap().nft, Some(value()));

    for edit in [
        "nft add rule inet meshd forward counter accept",
        "nft insert rule inet meshd from_peer accept",
        "nft insert rule inet meshd to_vtep accept",
        "nft add element inet meshd vtep4 { 192.0.2.4 }",
        "nft flush chain inet meshd to_bridge",
        "nft flush table inet meshd",
        "nft add chain inet meshd mine",
        "nft add element inet meshd way_out4 { 172.16.0.0/12 }",
        "nft add element inet meshd internal { eth0 }",
        "nft delete element inet meshd same { mb-shop . mb-shop }",
        "nft flush set inet meshd ours",
    ] {
        host.ok(edit);
        assert_eq!(overlay.dump(None).await.unwrap().nft, Some(Nft::default()), "{edit}");
        apply(&overlay, [NetAction::SetNft(Some(Box::new(value())))]).await;
        assert_eq!(overlay.dump(None).await.unwrap().nft, Some(value()), "{edit}");
    }
    // An edit that makes another value of it is seen as that value.
    host.ok("nft delete element inet meshd peers4 { 192.0.2.1 }");
    let seen = overlay.dump(None).await.unwrap().nft.unwrap();
    assert!(seen != value() && seen.peers.len() == 2);
    host.ok("nft flush ruleset");
    assert_eq!(overlay.dump(None).await.unwrap().nft, None);

    for bad in ["a b", "x\"; }", "", "0123456789abcdef"] {
        let mut wrong = value();
        let rules = wrong.bridges["mb-back"].clone();
        wrong.bridges.insert(bad.into(), rules);
        assert!(overlay.apply(&NetAction::SetNft(Some(Box::new(wrong)))).await.is_err(), "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_about_the_host() {
    let (host, other) = (Ns::new(), Ns::new());
    let overlay = host.overlay().await;
    wire((&host, "up0", "192.0.2.1/24"), (&other, "up0", "192.0.2.2/24"));
    for command in [
        "ip addr add 192.0.2.9/24 dev up0",
        "ip addr add 198.51.100.1/32 dev up0",
        "ip link set up0 mtu 1480",
        "ip link add docker0 type bridge",
        "ip addr add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
        "ip route add default via 192.0.2.2",
        "ip route add 203.0.113.0/24 via 192.0.2.2",
        "ip route add 169.254.0.0/16 dev up0",
        "ip route add blackhole 10.66.0.0/16",
        "ip route add 10.67.0.0/16 nexthop via 192.0.2.2 nexthop via 192.0.2.3",
        "ip route add 10.68.0.0/16 dev up0 table 99",
    ] {
        host.ok(command);
    }
    let net1 = Network::new(1);
    apply(&overlay, net1.actions("192.0.2.1", ip("192.0.2.1"))).await;
    let facts = overlay.host_facts(ip("192.0.2.9")).await.unwrap();
    assert_eq!((facts.uplink.as_str(), facts.mtu), ("up0", 1480));
    let addrs: BTreeSet<_> = facts.addrs.iter().map(|a| a.to_string()).filter(|a| !a.contains(':')).collect();
    assert_eq!(addrs.into_iter().collect::<Vec<_>>(), ["192.0.2.1", "192.0.2.9", "198.51.100.1"]);
    let routes: Vec<String> = facts.routes.iter().map(|r| format!("{} {}", r.dst, r.dev)).collect();
    assert_eq!(
        routes,
        [
            "10.67.0.0/16 up0",
            "172.17.0.0/16 docker0",
            "192.0.2.0/24 up0",
            "203.0.113.0/24 up0"
        ]
    );
    let missing = overlay.host_facts(ip("192.0.2.77")).await.unwrap_err();
    assert!(missing.to_string().contains("192.0.2.77"));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_wake() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    host.ok("ip link add br0 type bridge");
    let mut events = overlay.monitor().unwrap();
    for change in [
        "ip link set br0 up",
        "ip addr add 192.0.2.1/24 dev br0",
        "ip route add 203.0.113.0/24 via 192.0.2.2",
        "ip neigh add 192.0.2.3 lladdr 02:00:00:00:00:03 dev br0 nud permanent",
        "ip link set br0 mtu 1400",
        "nft add table inet other",
        "nft flush ruleset",
        "ip link del br0",
    ] {
        // Whatever went before has been told when it is quiet.
        while tokio::time::timeout(Duration::from_millis(300), events.next()).await.is_ok() {}
        host.ok(change);
        let woken = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
        assert!(matches!(woken, Ok(Some(()))), "{change}");
    }
    // More than the socket holds: still one wake-up, and no end.
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1")]).await;
    let rows: String = (0..4000)
        .map(|i| {
            format!(
                "fdb add 02:00:00:00:{:02x}:{:02x} dev {} dst 192.0.2.2 self\n",
                i / 256,
                i % 256,
                net1.vxlan()
            )
        })
        .collect();
    let file = std::env::temp_dir().join(format!("{}-fdb", host.name));
    std::fs::write(&file, rows).unwrap();
    let loaded = host.sh(&format!("bridge -batch {}", file.display()));
    std::fs::remove_file(&file).unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    assert_eq!(events.next().await, Some(()));
    while let Ok(item) = tokio::time::timeout(Duration::from_millis(300), events.next()).await {
        assert_eq!(item, Some(()));
    }
    host.ok("ip link add br1 type bridge");
    assert!(tokio::time::timeout(Duration::from_secs(1), events.next()).await.is_ok());
    assert_eq!(overlay.dump(None).await.unwrap().fdb.len(), 4000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_all_of_ours_and_nothing_else() {
    let (host, pod) = (Ns::new(), Ns::new());
    let overlay = host.overlay().await;
    for command in [
        "ip link add docker0 type bridge",
        "ip link add mb-mine type bridge",
        "ip link add alias0 type bridge",
        "ip link set alias0 alias mesh:000000000001:000000000002",
        "ip addr add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
        "nft add table inet other",
    ] {
        host.ok(command);
    }
    let (links, routes, tables) = (host.links(), host.ok("ip route"), host.ok("nft list ruleset"));
    let net1 = Network::new(1);
    apply(&overlay, net1.actions("192.0.2.1", ip("172.17.0.1"))).await;
    apply(&overlay, [net1.put_veth(&pod, 5), NetAction::SetNft(Some(Box::new(value())))]).await;
    apply(&overlay, net1.remote(9, "192.0.2.2")).await;
    host.ok("ip link add mb-000000000009 group 1835365224 type bridge");
    let removed = overlay.sweep().await.unwrap();
    assert_eq!(removed.len(), 6, "{removed:?}");
    assert_eq!(
        (host.links(), host.ok("ip route"), host.ok("nft list ruleset")),
        (links, routes, tables)
    );
    assert!(pod.links().is_empty());
    assert_eq!(overlay.sweep().await.unwrap(), Vec::<String>::new());
    assert_eq!(overlay.dump(None).await.unwrap(), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_remote_endpoints() {
    let host = Ns::new();
    let overlay = std::sync::Arc::new(host.overlay().await);
    let net1 = Network::new(1);
    host.ok("ip addr add 192.0.2.1/32 dev lo");
    apply(&overlay, net1.actions("192.0.2.1", ip("192.0.2.1"))).await;
    let rows: Vec<NetAction> = (20..220).flat_map(|h| net1.remote(h, "192.0.2.2")).collect();
    // On another task: the futures must be Send.
    let (applied, overlay_there) = (rows.clone(), overlay.clone());
    tokio::spawn(async move { apply(&overlay_there, applied).await }).await.unwrap();
    let seen = overlay.dump(Some(cluster())).await.unwrap();
    let fdb: BTreeSet<Fdb> = rows
        .iter()
        .filter_map(|a| if let NetAction::AddFdb(e) = a { Some(e.clone()) } else { None })
        .collect();
    let neighs: BTreeSet<Neigh> = rows
        .iter()
        .filter_map(|a| if let NetAction::AddNeigh(n) = a { Some(n.clone()) } else { None })
        .collect();
    assert_eq!((&seen.fdb, &seen.neighs, seen.fdb.len()), (&fdb, &neighs, 400));
    assert_eq!(
        seen.routes,
        BTreeSet::from([Route {
            dst: net1.subnet,
            dev: net1.bridge(),
            src: ip("192.0.2.1")
        }])
    );
    apply(
        &overlay,
        fdb.into_iter()
            .map(NetAction::DelFdb)
            .chain(neighs.into_iter().map(NetAction::DelNeigh)),
    )
    .await;
    let seen = overlay.dump(Some(cluster())).await.unwrap();
    assert!(seen.fdb.is_empty() && seen.neighs.is_empty());
    assert!(seen.links[&net1.vxlan()].settled && Mac::for_ip(net1.gateway).is_usable());
}

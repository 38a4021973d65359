//! Entries and neighbours that are not read again: kept up with what meshd does, and given up as soon as the
//! kernel tells of anything else.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use std::{collections::BTreeSet, time::Duration};

use futures::{Stream, StreamExt};
use lab::*;
use mesh_core::{
    Mac,
    action::NetAction,
    desired::{Fdb, Neigh},
};
use mesh_overlay::Overlay;
use tokio::time::timeout;

/// Until nothing has come for a while; true if something did.
async fn drain(events: &mut (impl Stream<Item = ()> + Unpin)) -> bool {
    let mut any = false;
    while timeout(Duration::from_millis(300), events.next()).await.is_ok() {
        any = true;
    }
    any
}

async fn is_known(overlay: &Overlay) -> bool {
    overlay.dump_known(Some(cluster()), None).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn own_changes_are_no_news() {
    let (host, pod) = (Ns::new(), Ns::new());
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1"), net1.put_veth(&pod, 5)]).await;
    assert!(!is_known(&overlay).await, "nothing was read yet");
    let mut events = overlay.monitor().unwrap();
    // The kernel tells of carriers up to a second later.
    until("bridge and veth to be up", || {
        host.ok("ip -o link show").matches("state UP").count() == 2
    });
    drain(&mut events).await;
    overlay.dump(Some(cluster())).await.unwrap();
    let mac = Mac::for_ip(ip("10.1.0.9"));
    let (veth, _) = net1.attach(&pod, 5, true);
    let fdb = |dev: &str, vtep: Option<&str>| Fdb {
        dev: dev.to_owned(),
        mac,
        vtep: vtep.map(ip),
    };
    let neigh = |mac| Neigh {
        dev: net1.bridge(),
        ip: ip("10.1.0.9"),
        mac,
    };
    let vxlan = net1.vxlan();
    for step in [
        NetAction::AddFdb(fdb(&vxlan, Some("192.0.2.2"))),
        NetAction::AddFdb(fdb(&vxlan, None)),
        NetAction::AddNeigh(neigh(mac)),
        // Moved, in place.
        NetAction::AddFdb(fdb(&vxlan, Some("192.0.2.3"))),
        NetAction::AddNeigh(neigh(Mac::for_ip(ip("10.1.0.8")))),
        NetAction::DelFdb(fdb(&vxlan, Some("192.0.2.3"))),
        NetAction::DelNeigh(neigh(mac)),
        NetAction::DelFdb(fdb(&vxlan, None)),
        NetAction::AddFdb(fdb(&veth, None)),
    ] {
        apply(&overlay, [step.clone()]).await;
        assert!(!drain(&mut events).await, "{step:?} wakes");
        let known = overlay.dump_known(Some(cluster()), None).await.unwrap();
        // A look at everything would know it all anew.
        let other = host.overlay().await;
        assert_eq!(known, Some(other.dump(Some(cluster())).await.unwrap()), "{step:?}");
    }
    // A device takes its entries along: the kernel tells of each, and of the device.
    apply(&overlay, [NetAction::DelLink(veth)]).await;
    assert!(drain(&mut events).await);
    assert!(is_known(&overlay).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_is_read_again() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1")]).await;
    let mut want: Vec<NetAction> = net1.remote(9, "192.0.2.2");
    want.extend(net1.remote(8, "192.0.2.2"));
    apply(&overlay, want.clone()).await;
    let mut events = overlay.monitor().unwrap();
    let (bridge, vxlan) = (net1.bridge(), net1.vxlan());
    let mac = Mac::for_ip(ip("10.1.0.9"));
    for change in [
        format!("bridge fdb del {mac} dev {vxlan} dst 192.0.2.2 self"),
        format!("bridge fdb replace {mac} dev {vxlan} dst 192.0.2.7 self"),
        format!("bridge fdb del {mac} dev {vxlan} master"),
        format!("bridge fdb add 02:00:00:00:00:77 dev {vxlan} dst 192.0.2.7 self"),
        format!("bridge fdb add 02:00:00:00:00:77 dev {vxlan} master static"),
        format!("ip neigh del 10.1.0.9 dev {bridge}"),
        format!("ip neigh change 10.1.0.9 lladdr 02:00:00:00:00:77 dev {bridge} nud permanent"),
        format!("ip neigh change 10.1.0.9 lladdr {mac} dev {bridge} nud stale"),
        format!("ip neigh add 10.1.0.77 lladdr 02:00:00:00:00:77 dev {bridge} nud permanent"),
        format!("ip link set {vxlan} down"),
        format!("ip link set {bridge} down"),
    ] {
        host.ok(&format!("ip link set {vxlan} up"));
        host.ok(&format!("ip link set {bridge} up"));
        apply(&overlay, want.clone()).await;
        drain(&mut events).await;
        let before = overlay.dump(Some(cluster())).await.unwrap();
        assert!(is_known(&overlay).await, "{change}");
        host.ok(&change);
        assert!(
            timeout(Duration::from_secs(1), events.next()).await.is_ok(),
            "{change} does not wake"
        );
        drain(&mut events).await;
        let known = overlay.dump_known(Some(cluster()), None).await.unwrap();
        let now = overlay.dump(Some(cluster())).await.unwrap();
        assert_ne!(before, now, "{change} changes something");
        // What is known is the truth, or nothing.
        assert!(known.is_none() || known == Some(now), "{change} is not noticed");
        host.sh(&format!("bridge fdb del 02:00:00:00:00:77 dev {vxlan} self"));
        host.sh(&format!("bridge fdb del 02:00:00:00:00:77 dev {vxlan} master"));
        host.sh(&format!("bridge fdb del {mac} dev {vxlan} dst 192.0.2.7 self"));
        host.sh(&format!("ip neigh del 10.1.0.77 dev {bridge}"));
    }
    // Others' devices are others' business.
    host.ok("ip link add vx0 type vxlan id 99 dstport 4790");
    drain(&mut events).await;
    overlay.dump(Some(cluster())).await.unwrap();
    host.ok("bridge fdb add 02:00:00:00:00:77 dev vx0 dst 192.0.2.7 self");
    assert!(!drain(&mut events).await);
    assert!(is_known(&overlay).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_part() {
    let host = Ns::new();
    let overlay = host.overlay().await;
    let net1 = Network::new(1);
    apply(&overlay, [net1.put_bridge(), net1.put_vxlan("192.0.2.1")]).await;
    apply(&overlay, (5..9).flat_map(|n| net1.remote(n, "192.0.2.2"))).await;
    let all = overlay.dump(Some(cluster())).await.unwrap();
    let mac = Mac::for_ip(ip("10.1.0.7"));
    let asked = BTreeSet::from([Fdb {
        dev: net1.vxlan(),
        mac,
        vtep: Some(ip("192.0.2.3")),
    }]);
    let part = overlay
        .dump_known(Some(cluster()), Some([&asked, &BTreeSet::new()]))
        .await
        .unwrap()
        .unwrap();
    let found: Vec<_> = part.fdb.iter().map(|e| (e.mac, e.vtep)).collect();
    assert_eq!(found, [(mac, Some(ip("192.0.2.2")))]);
    assert_eq!((part.neighs, part.links), (all.neighs, all.links));
}

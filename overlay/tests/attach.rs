//! An attachment is made whole or not at all.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use lab::*;
use mesh_core::{
    Mac,
    action::NetAction,
    desired::{Queue, Veth},
    objects::Rate,
    observed::SeenQueue,
};
use mesh_overlay::{Error, Overlay};

struct Lab {
    host: Ns,
    pod: Ns,
    overlay: Overlay,
    net: Network,
}

async fn start() -> Lab {
    let (host, pod) = (Ns::new(), Ns::new());
    let overlay = host.overlay().await;
    let net = Network::new(1);
    apply(&overlay, [net.put_bridge(), net.put_vxlan("192.0.2.1")]).await;
    Lab { host, pod, overlay, net }
}

impl Lab {
    /// Tries to attach the container after `spoil`, which must fail and leave nothing.
    async fn refused(&self, spoil: impl FnOnce(&mut Veth)) -> Error {
        let (name, mut veth) = self.net.attach(&self.pod, 5, true);
        spoil(&mut veth);
        // An address of IPv6 that is new is tentative for a while (RFC 4862 5.4).
        let addresses = || self.pod.ok("ip addr show").replace(" tentative", "");
        let (before, in_pod) = (self.overlay.dump(None).await.unwrap(), addresses());
        let links = self.host.links();
        let error = self
            .overlay
            .apply(&NetAction::PutVeth {
                name,
                cluster: cluster(),
                veth: Box::new(veth),
            })
            .await
            .unwrap_err();
        assert_eq!(self.host.links(), links, "{error}");
        assert_eq!(self.overlay.dump(None).await.unwrap(), before);
        if self.pod.succeeds("true") {
            assert_eq!(addresses(), in_pod, "{error}");
        }
        error
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attach_leaves_nothing() {
    let lab = start().await;
    let gone = lab.refused(|v| v.peer.inode += 1).await;
    assert!(matches!(gone, Error::SandboxGone { .. }), "{gone}");
    let gone = lab.refused(|v| v.peer.netns = "/run/netns/mtov-nothing".into()).await;
    assert!(matches!(gone, Error::SandboxGone { .. }), "{gone}");
    for bad in ["", "0123456789abcdef", "a/b"] {
        let e = lab.refused(|v| v.peer.ifname = bad.into()).await;
        assert!(matches!(e, Error::Invalid { .. }), "{e}");
    }
    for bad in [
        "10.1.0.0/24",
        "10.1.0.255/24",
        "224.0.0.1/24",
        "0.0.0.0/0",
        "127.0.0.1/8",
        "255.255.255.255/32",
    ] {
        let e = lab.refused(|v| v.peer.addrs = vec![net(bad)]).await;
        assert!(e.to_string().contains(bad), "{e}");
    }
    let e = lab.refused(|v| v.peer.mac = Mac([1, 0, 0, 0, 0, 1])).await;
    assert!(e.to_string().contains("01:00:00:00:00:01"), "{e}");
    let (own, inode) = (lab.host.path(), lab.host.open().inode());
    let e = lab.refused(|v| (v.peer.netns, v.peer.inode) = (own, inode)).await;
    assert!(e.to_string().contains("not the host's"), "{e}");
    // These fail only when half of it is done.
    let e = lab.refused(|v| v.peer.gateways = vec![ip("10.99.0.1")]).await;
    assert!(
        chain(&e).contains("10.99.0.1") && chain(&e).contains("unreachable"),
        "{}",
        chain(&e)
    );
    let e = lab.refused(|v| v.bridge = "mb-missing".into()).await;
    assert!(matches!(e, Error::NoLink { .. }), "{e}");
    let e = lab.refused(|v| v.mtu = 10).await;
    assert!(e.errno().is_some(), "{e}");

    lab.pod.ok("ip link add eth0 type bridge");
    let e = lab.refused(|_| {}).await;
    assert!(matches!(&e, Error::IfnameTaken { ifname, .. } if ifname == "eth0"), "{e}");
    lab.pod.ok("ip link del eth0");
    lab.pod.ok("ip link add br0 type bridge");
    lab.pod.ok("ip addr add 172.31.0.2/24 dev br0");
    lab.pod.ok("ip link set br0 up");
    lab.pod.ok("ip route add default via 172.31.0.1");
    let e = lab.refused(|_| {}).await;
    assert!(matches!(e, Error::DefaultRouteTaken { .. }), "{e}");
    // Nothing of it is in the way of a good one, which asks for no gateway.
    let (name, veth) = lab.net.attach(&lab.pod, 5, false);
    apply(
        &lab.overlay,
        [NetAction::PutVeth {
            name,
            cluster: cluster(),
            veth: Box::new(veth),
        }],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_lets_packets_through_at_once() {
    let lab = start().await;
    let state = |ns: &Ns, dev: &str| ns.ok(&format!("cat /sys/class/net/{dev}/operstate"));
    for host in 5..25 {
        let pod = Ns::new();
        apply(&lab.overlay, [lab.net.put_veth(&pod, host)]).await;
        let (name, _) = lab.net.attach(&pod, host, true);
        let seen = [state(&pod, "eth0"), state(&lab.host, &name), state(&lab.host, &lab.net.bridge())];
        assert_eq!(seen, ["up\n"; 3], "container {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_at_both_ends() {
    let lab = start().await;
    let (name, mut veth) = lab.net.attach(&lab.pod, 5, true);
    let put = |veth: &Veth| NetAction::PutVeth {
        name: name.clone(),
        cluster: cluster(),
        veth: Box::new(veth.clone()),
    };
    let queue = |rate| Some(Queue::new(Rate { rate, burst: 1_600_000 }, 1450));
    let at = |ns: &Ns, dev: &str| ns.ok(&format!("tc qdisc show dev {dev} root"));
    let seen = async || lab.overlay.dump(None).await.unwrap().veths[&name].queue;
    let marked = |queue: Option<Queue>| queue.map(SeenQueue::from);
    (veth.queue, veth.peer.queue) = (queue(20_000_000), queue(8_000_000_000_000));
    apply(&lab.overlay, [put(&veth)]).await;
    assert!(
        at(&lab.host, &name).contains("rate 20Mbit burst 200000b lat 25ms"),
        "{}",
        at(&lab.host, &name)
    );
    // More than 32 bits of bytes.
    assert!(at(&lab.pod, "eth0").contains("rate 8Tbit"), "{}", at(&lab.pod, "eth0"));
    let peer = &veth.peer;
    let inside = mesh_overlay::inspect(&peer.netns, peer.inode, &peer.ifname).await.unwrap().unwrap();
    assert_eq!(inside.queue, marked(peer.queue));
    assert_eq!(seen().await, marked(veth.queue));
    // Somebody has taken it away, or put another in its place.
    for spoil in [
        format!("tc qdisc del dev {name} root"),
        format!("tc qdisc replace dev {name} root handle 7: pfifo limit 9"),
    ] {
        lab.host.ok(&spoil);
        assert_eq!(seen().await, None, "{spoil}");
        apply(&lab.overlay, [put(&veth)]).await;
        assert_eq!(seen().await, marked(veth.queue), "{spoil}");
    }
    // It is another one also where only its rate was changed, which leaves the handle alone.
    lab.host
        .ok(&format!("tc qdisc change dev {name} root tbf rate 1gbit burst 200000 latency 25ms"));
    assert_eq!(
        seen().await.map(|q| (q.mark, q.rate)),
        marked(veth.queue).map(|q| (q.mark, 125_000_000))
    );
    apply(&lab.overlay, [put(&veth)]).await;
    assert_eq!(seen().await, marked(veth.queue));
    // Other parameters are another queue.
    (veth.queue, veth.peer.queue) = (queue(1_000_000), queue(2_000_000));
    apply(&lab.overlay, [put(&veth)]).await;
    assert!(at(&lab.host, &name).contains("rate 1Mbit"), "{}", at(&lab.host, &name));
    assert!(at(&lab.pod, "eth0").contains("rate 2Mbit"), "{}", at(&lab.pod, "eth0"));
    assert_eq!(seen().await, marked(veth.queue));
    veth.queue = None;
    apply(&lab.overlay, [put(&veth)]).await;
    assert_eq!((seen().await, at(&lab.host, &name).contains("tbf")), (None, false));
    // What another has put there stays.
    lab.host.ok(&format!(
        "tc qdisc replace dev {name} root handle 7: tbf rate 1mbit burst 10kb latency 1s"
    ));
    apply(&lab.overlay, [put(&veth)]).await;
    assert!(at(&lab.host, &name).contains("tbf 7:"), "{}", at(&lab.host, &name));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_gets_what_was_asked_for() {
    let lab = start().await;
    lab.pod.ok("ip link set lo down");
    let (name, mut veth) = lab.net.attach(&lab.pod, 5, true);
    apply(&lab.overlay, [lab.net.put_veth(&lab.pod, 5)]).await;
    let eth0 = lab.pod.ok("ip addr show eth0");
    for part in ["10.1.0.5/24", "mtu 1450", "02:6d:0a:01:00:05", "state UP"] {
        assert!(eth0.contains(part), "{part}: {eth0}");
    }
    assert!(lab.pod.ok("ip route show default").contains("via 10.1.0.1 dev eth0"));
    // That route goes with the endpoint: to the next one it is no other program's.
    let routed = async || mesh_overlay::occupied::Occupied::of(&lab.pod.path()).await.unwrap().routed;
    assert!(!routed().await);
    for command in [
        "ip link add br0 type bridge",
        "ip link set br0 up",
        "ip route add default dev br0 metric 500",
    ] {
        lab.pod.ok(command);
    }
    assert!(routed().await);
    lab.pod.ok("ip link del br0");
    assert!(lab.pod.ok("ip link show lo").contains("UP"));
    assert_eq!(lab.host.links().len(), 3, "nothing of the container's side is left on the host");

    // Another MTU reaches both ends, another bridge the port.
    let other = Network::new(2);
    apply(&lab.overlay, [other.put_bridge()]).await;
    (veth.mtu, veth.bridge) = (1400, other.bridge());
    lab.host.ok(&format!("ip link set {name} down"));
    apply(
        &lab.overlay,
        [NetAction::PutVeth {
            name: name.clone(),
            cluster: cluster(),
            veth: Box::new(veth.clone()),
        }],
    )
    .await;
    let seen = lab.overlay.dump(None).await.unwrap().veths.remove(&name).unwrap();
    assert_eq!((seen.mtu, seen.bridge, seen.up), (1400, Some(other.bridge()), true));
    assert!(lab.pod.ok("ip link show eth0").contains("mtu 1400"));
    // A learning port is seen as not settled.
    lab.host.ok(&format!("bridge link set dev {name} learning on"));
    assert!(!lab.overlay.dump(None).await.unwrap().veths[&name].up);
    apply(
        &lab.overlay,
        [NetAction::PutVeth {
            name: name.clone(),
            cluster: cluster(),
            veth: Box::new(veth),
        }],
    )
    .await;
    assert!(lab.overlay.dump(None).await.unwrap().veths[&name].up);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_that_was_cut_short_is_seen_and_made_whole() {
    let lab = start().await;
    let (name, veth) = lab.net.attach(&lab.pod, 5, true);
    // As after a crash right behind the pair's making: group 0x6d657368, no alias yet.
    lab.host.ok(&format!(
        "ip link add {name} group 1835365224 type veth peer name eth0 netns {}",
        lab.pod.name
    ));
    let seen = lab.overlay.dump(Some(cluster())).await.unwrap();
    assert!(!seen.veths[&name].up && seen.veths[&name].endpoint == veth.endpoint);
    apply(&lab.overlay, [lab.net.put_veth(&lab.pod, 5)]).await;
    assert!(lab.overlay.dump(Some(cluster())).await.unwrap().veths[&name].up);
    assert!(lab.pod.ok("ip addr show eth0").contains("10.1.0.5/24"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_takes_waits_and_is_left_alone_then() {
    let lab = start().await;
    let (name, mut veth) = lab.net.attach(&lab.pod, 5, true);
    let far = format!("mc-{}", veth.endpoint);
    veth.peer.waits = true;
    (veth.peer.ifname, veth.peer.netns, veth.peer.inode) = (far.clone(), String::new(), 0);
    let put = || NetAction::PutVeth {
        name: name.clone(),
        cluster: cluster(),
        veth: Box::new(veth.clone()),
    };
    let seen = async || lab.overlay.dump(Some(cluster())).await.unwrap();
    apply(&lab.overlay, [put()]).await;
    let waiting = seen().await;
    assert!(waiting.veths[&name].up && waiting.waiting.contains(&veth.endpoint) && !waiting.veths.contains_key(&far));
    assert!(lab.host.ok(&format!("ip link show {far}")).contains("state DOWN"), "down and bare");
    apply(&lab.overlay, [put()]).await;
    // As libnetwork does (osl/interface_linux.go): moved, named, addressed, up.
    lab.host.ok(&format!("ip link set {far} netns {}", lab.pod.name));
    lab.pod.ok(&format!("ip link set {far} name eth3"));
    lab.pod.ok("ip addr add 10.9.9.9/24 dev eth3");
    lab.pod.ok("ip link set eth3 up");
    apply(&lab.overlay, [put()]).await;
    let taken = seen().await;
    assert!(taken.veths[&name].up && taken.waiting.is_empty());
    assert!(lab.pod.ok("ip addr show eth3").contains("10.9.9.9/24"));
    let inside = mesh_overlay::occupied::Occupied::of(&lab.pod.path()).await.unwrap();
    assert_eq!((inside.with_mac(veth.peer.mac), inside.routed), (Some("eth3"), false));
    assert_eq!(inside.free_name(), "eth0");
    // Its container is known: the ways back, for the addresses that the engine gave it, once.
    let addr = veth.peer.addrs[0];
    assert!(!taken.veths[&name].returns);
    let mut known = veth.peer.clone();
    (known.waits, known.taken, known.netns, known.inode) = (false, true, lab.pod.path(), lab.pod.open().inode());
    known.addrs.push("10.9.9.10/24".parse().unwrap());
    known.returns = vec![lab.net.gateway];
    let returns = NetAction::AddReturns {
        name: name.clone(),
        peer: Box::new(known),
    };
    apply(&lab.overlay, [returns.clone()]).await;
    assert!(!seen().await.veths[&name].returns, "the engine has given it no address yet");
    lab.pod.ok(&format!("ip addr add {addr} dev eth3"));
    apply(&lab.overlay, [returns.clone()]).await;
    apply(&lab.overlay, [returns.clone()]).await;
    assert!(seen().await.veths[&name].returns);
    let rules = lab.pod.ok("ip rule");
    assert!(
        rules.contains(&format!("from {} lookup", addr.addr())) && !rules.contains("10.9.9.10"),
        "{rules}"
    );
    let way = lab.pod.ok(&format!("ip route get 203.0.113.9 from {}", addr.addr()));
    assert!(way.contains(&format!("via {} dev eth3", lab.net.gateway)), "{way}");
    // Given back, it waits again; and a sweep finds it.
    lab.pod.ok("ip link set eth3 down");
    lab.pod.ok(&format!("ip link set eth3 name {far}"));
    lab.pod.ok(&format!("ip link set {far} netns {}", lab.host.name));
    assert!(seen().await.waiting.contains(&veth.endpoint));
    lab.overlay.sweep().await.unwrap();
    assert_eq!(seen().await, Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_started_anew_gets_a_pair_of_its_own() {
    let lab = start().await;
    let (name, mut veth) = lab.net.attach(&lab.pod, 5, true);
    apply(&lab.overlay, [lab.net.put_veth(&lab.pod, 5)]).await;
    let index = || lab.host.ok(&format!("cat /sys/class/net/{name}/ifindex"));
    let first = index();
    // Renamed inside, it is still the same.
    lab.pod.ok("ip link set eth0 down");
    lab.pod.ok("ip link set eth0 name lan0");
    apply(&lab.overlay, [lab.net.put_veth(&lab.pod, 5)]).await;
    assert_eq!(index(), first);
    let anew = Ns::new();
    (veth.peer.netns, veth.peer.inode) = (anew.path(), anew.open().inode());
    apply(
        &lab.overlay,
        [NetAction::PutVeth {
            name: name.clone(),
            cluster: cluster(),
            veth: Box::new(veth),
        }],
    )
    .await;
    assert_ne!(index(), first);
    assert_eq!(
        (anew.links().as_slice(), lab.pod.links().len()),
        (["eth0".to_owned()].as_slice(), 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ended_takes_its_veth_along() {
    let lab = start().await;
    let (name, veth) = lab.net.attach(&lab.pod, 5, true);
    apply(&lab.overlay, [lab.net.put_veth(&lab.pod, 5)]).await;
    drop(lab.pod);
    until("the veth's end", || !lab.host.links().contains(&name));
    let gone = lab
        .overlay
        .apply(&NetAction::PutVeth {
            name: name.clone(),
            cluster: cluster(),
            veth: Box::new(veth),
        })
        .await
        .unwrap_err();
    assert!(matches!(gone, Error::SandboxGone { .. }), "{gone}");
    apply(&lab.overlay, [NetAction::DelLink(name)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_has_of_its_interface() {
    let lab = start().await;
    let (_, veth) = lab.net.attach(&lab.pod, 5, true);
    let peer = veth.peer;
    let look = || mesh_overlay::inspect(&peer.netns, peer.inode, "eth0");
    assert_eq!(look().await.unwrap(), None);
    apply(&lab.overlay, [lab.net.put_veth(&lab.pod, 5)]).await;
    let seen = look().await.unwrap().unwrap();
    assert_eq!((seen.mac, seen.mtu, seen.up), (Some(peer.mac), veth.mtu, true));
    assert!(seen.addrs.contains(&peer.addrs[0]), "{seen:?}");
    let default = ("0.0.0.0/0".parse().unwrap(), Some(peer.gateways[0]));
    assert!(seen.routes.contains(&default), "{seen:?}");
    assert!(seen.routes.contains(&(peer.addrs[0].trunc(), None)), "{seen:?}");
    // A route is as good in another table.
    lab.pod.ok("ip route del default");
    assert!(!look().await.unwrap().unwrap().routes.contains(&default));
    lab.pod.ok(&format!("ip route add default via {} table 100", peer.gateways[0]));
    assert!(look().await.unwrap().unwrap().routes.contains(&default));
    let other = mesh_overlay::inspect(&peer.netns, peer.inode + 1, "eth0").await.unwrap_err();
    assert!(matches!(other, Error::SandboxGone { .. }), "{other}");
}

//! A network whose packets are not encapsulated between hosts of one segment.

use mesh_tests::{BACKENDS, Lab, Place, Result, address, until, within};
use serde_json::Value;

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// One container on each host, in the service `web`; a network of both families.
fn up() -> Result<Lab> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --ipv6 --opt encapsulation=cross-subnet")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish 8888:80 --publish 8888:7/udp",
    )?
    .ok()?;
    lab.backends("demo", "web")?;
    Ok(lab)
}

/// The addresses of an endpoint, as they are written before a port.
fn ips(lab: &Lab, name: &str) -> Result<[String; 2]> {
    let e = lab.endpoint("demo", name)?;
    Ok([e.ip, format!("[{}]", e.ip6.unwrap_or_default())])
}

/// How many packets a host's VXLAN device of the network has sent.
fn encapsulated(lab: &Lab, host: &str) -> Result<u64> {
    let links = lab.at(Place::Host(host), "ip -s -j link show type vxlan")?.ok()?;
    let links: Value = serde_json::from_str(&links)?;
    // The ingress network's is no port of a bridge.
    let own = links.as_array().and_then(|l| l.iter().find(|l| l.get("master").is_some()));
    let sent = own.and_then(|l| l["stats64"]["tx"]["packets"].as_u64());
    sent.ok_or_else(|| format!("no counters in {links}").into())
}

/// All hosts send without encapsulation to so many others.
fn settled(lab: &Lab, others: usize) -> Result<()> {
    let all = format!("{others} nodes of this segment are sent to without encapsulation");
    for host in HOSTS {
        until(20, &format!("{host} to have found the others"), || {
            let said = lab.ctl(host, "doctor")?.out;
            Ok(said.contains("nothing to do") && said.contains(&all))
        })?;
    }
    Ok(())
}

/// `from` asks `to` by both families and protocols, and is seen with its own address.
fn asks(lab: &Lab, from: &str, to: &str) -> Result<()> {
    for (own, ip) in ips(lab, from)?.iter().zip(ips(lab, to)?) {
        let own = own.trim_matches(['[', ']']);
        let mut connection = lab.connect(Place::In(from), &format!("{ip}:7"))?;
        for reply in [connection.ask()?, lab.udp(Place::In(from), &format!("{ip}:7"), 1)?.remove(0)] {
            assert_eq!((reply.hostname.as_str(), reply.client.as_str()), (to, own), "{from} to {to}");
        }
        let big = format!("ping -n -c 2 -i 0.01 -W 2 -s 4000 {}", ip.trim_matches(['[', ']']));
        lab.at(Place::In(from), &big)?.ok()?;
    }
    Ok(())
}

#[test]
fn hosts_of_a_segment_send_as_it_is() -> Result<()> {
    let lab = up()?;
    settled(&lab, 2)?;
    let before = HOSTS.map(|h| encapsulated(&lab, h));
    for from in BACKENDS {
        for to in BACKENDS.iter().filter(|to| **to != from) {
            asks(&lab, from, to)?;
        }
        // By the service's name: sockets, and packet by packet for UDP.
        lab.http(Place::In(from), "web:80", 6)?;
        lab.udp(Place::In(from), "web:7", 6)?;
    }
    for (host, before) in HOSTS.iter().zip(before) {
        assert_eq!(encapsulated(&lab, host)?, before?, "{host} has encapsulated");
    }
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    Ok(())
}

#[test]
fn a_host_that_is_elsewhere_is_reached_by_vxlan() -> Result<()> {
    let lab = up()?;
    // Its address is not of the others' range any more, as far as it knows.
    let alone = "ip route add 192.168.77.0/24 dev eth0 src 192.168.77.13 metric 5; ip addr add 192.168.77.13/32 dev eth0; \
                 ip addr del 192.168.77.13/24 dev eth0";
    lab.argv(Place::Host("h3"), &["sh", "-c", alone])?.ok()?;
    let by_vxlan = |host: &str, from: &str, to: &str| -> Result<bool> {
        let before = encapsulated(&lab, host)?;
        asks(&lab, from, to)?;
        Ok(encapsulated(&lab, host)? > before)
    };
    until(10, "h3 to encapsulate", || by_vxlan("h3", "w3", "w1"))?;
    until(20, "h1 to send as it is", || Ok(!by_vxlan("h1", "w1", "w2")?))?;
    for from in BACKENDS {
        for to in BACKENDS.iter().filter(|to| **to != from) {
            asks(&lab, from, to)?;
        }
    }
    Ok(())
}

#[test]
fn connections_live_through_restarts_and_endpoints_move() -> Result<()> {
    let lab = up()?;
    settled(&lab, 2)?;
    let [w2, _] = ips(&lab, "w2")?;
    let mut held = lab.hold(Place::In("w1"), &[&format!("{w2}:7")], 20)?;
    for host in ["h1", "h2"] {
        lab.lab(&["kill", host])?.ok()?;
        assert!(held.lives()?);
        lab.lab(&["restart", host])?.ok()?;
        assert!(held.lives()?);
    }
    held.end()?;
    lab.lab(&["stop", "w2"])?.ok()?;
    lab.echo("h3", "w2", &format!("--network demo --service web --ip {w2}"))?;
    within(10, "w2 to answer from its new host", || {
        let asked = lab.at(Place::In("w1"), &format!("meshd-echo client http {w2}:80"))?;
        Ok((asked.status == 0).then_some(()))
    })?;
    asks(&lab, "w1", "w2")?;
    Ok(())
}

/// A switch, or a cloud, that drops packets whose address it does not know.
#[test]
fn a_segment_that_judges_addresses_is_found_out() -> Result<()> {
    let lab = up()?;
    settled(&lab, 2)?;
    let [w3, _] = ips(&lab, "w3")?;
    let mut held = lab.hold(Place::In("w2"), &[&format!("{w3}:7")], 4)?;
    let judge = "add table netdev judge; add chain netdev judge out { type filter hook egress device eth0 priority 0; }; \
                 add rule netdev judge out ip saddr 10.0.0.0/8 drop";
    lab.argv(Place::Host("h2"), &["nft", judge])?.ok()?;
    until(20, "h2 to say that h1 and h3 do not hear it", || {
        let said = lab.ctl("h2", "doctor")?;
        Ok(said.status == 1 && said.out.contains("2 of 2 nodes of this segment are sent to by VXLAN"))
    })?;
    // They are reached, and what was there goes on.
    assert!(held.lives()?);
    asks(&lab, "w2", "w3")?;
    asks(&lab, "w3", "w2")?;
    // A meshd that starts finds the same out.
    lab.lab(&["kill", "h2"])?.ok()?;
    lab.lab(&["restart", "h2"])?.ok()?;
    assert!(held.lives()?);
    lab.at(Place::Host("h2"), "nft delete table netdev judge")?.ok()?;
    settled(&lab, 2)?;
    assert!(held.lives()?);
    held.end()?;
    Ok(())
}

/// Whoever is on the segment but no node is not let in, nor does it help to know the way.
#[test]
fn strangers_of_the_segment_stay_out() -> Result<()> {
    let lab = up()?;
    settled(&lab, 2)?;
    let [w1, _] = ips(&lab, "w1")?;
    let route = format!("ip route add {w1}/32 via {}", address("h1"));
    lab.argv(Place::Client, &["sh", "-c", &route])?.ok()?;
    let asked = lab.at(Place::Client, &format!("timeout 3 meshd-echo client http {w1}:80"))?;
    assert_ne!(asked.status, 0, "{asked:?}");
    Ok(())
}

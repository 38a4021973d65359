//! Scenario 5: networks apart, and the way out.

use mesh_tests::{Lab, Place, Result, address, until};

/// An address of the lab's outside world, where a meshd-echo says who asks.
const OUTSIDE: &str = "198.51.100.1";

#[test]
fn s5_isolation() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create red --driver overlay")?.ok()?;
    lab.ctl("h1", "network create blue --driver overlay")?.ok()?;
    lab.ctl("h1", "network create closed --driver overlay --internal")?.ok()?;
    lab.echo("h1", "red1", "--network red")?;
    lab.echo("h2", "red2", "--network red")?;
    lab.echo("h1", "blue1", "--network blue")?;
    lab.echo("h2", "blue2", "--network blue")?;
    lab.echo("h1", "closed1", "--network closed")?;
    lab.echo("h2", "closed2", "--network closed")?;
    let ip = |network: &str, name: &str| lab.endpoint(network, name).map(|e| e.ip);

    // Through the gateway, as the default route goes; on the same host, and on another.
    for (from, network, to) in [
        ("red1", "blue", "blue1"),
        ("red1", "blue", "blue2"),
        ("blue2", "red", "red1"),
        ("red1", "closed", "closed1"),
    ] {
        apart(&lab, from, &ip(network, to)?)?;
    }
    // Directly: as if the other subnet were on the link.
    for (to, name) in [("blue", "blue1"), ("blue", "blue2")] {
        let target = ip(to, name)?;
        lab.at(Place::In("red1"), &format!("ip route add {target}/32 dev eth0"))?.ok()?;
        apart(&lab, "red1", &target)?;
    }
    // From the internal network, with a default route that it was not given.
    let gateway = lab.network("closed")?.subnets[0].gateway.clone();
    lab.at(Place::In("closed1"), &format!("ip route replace default via {gateway}"))?
        .ok()?;
    apart(&lab, "closed1", &ip("red", "red1")?)?;
    apart(&lab, "closed1", OUTSIDE)?;

    // Nobody gets in either: clients are told so, and do not wait.
    lab.ctl("h1", "service create --name shut --network closed --publish 8888:80")?
        .ok()?;
    lab.echo("h3", "closed3", "--network closed --service shut")?;
    until(10, "closed3 to serve", || {
        Ok(lab
            .http(Place::In("closed2"), "shut:80", 1)
            .is_ok_and(|seen| seen[0].hostname == "closed3"))
    })?;
    for host in ["h1", "h3"] {
        let asked = lab.at(Place::Client, &format!("meshd-echo client http {}:8888", address(host)))?;
        assert!(asked.err.contains("refused"), "{host}: {asked:?}");
    }

    // What is not forbidden works.
    for (from, network, to) in [
        ("red1", "red", "red2"),
        ("blue1", "blue", "blue2"),
        ("closed1", "closed", "closed2"),
    ] {
        let reply = lab.http(Place::In(from), &format!("{}:80", ip(network, to)?), 1)?.remove(0);
        assert_eq!(reply.hostname, to);
    }
    for (from, host) in [("red1", "192.168.77.11"), ("red2", "192.168.77.12"), ("blue2", "192.168.77.12")] {
        lab.at(Place::In(from), &format!("ping -n -c 1 -W 2 {OUTSIDE}"))?.ok()?;
        for reply in [
            lab.http(Place::In(from), &format!("{OUTSIDE}:80"), 1)?,
            lab.udp(Place::In(from), &format!("{OUTSIDE}:7"), 1)?,
        ] {
            assert_eq!(reply[0].client, host, "{from} should leave as its host");
        }
    }
    Ok(())
}

/// Neither ICMP nor TCP nor UDP arrives.
fn apart(lab: &Lab, from: &str, to: &str) -> Result<()> {
    for command in [
        format!("ping -n -c 1 -W 1 {to}"),
        format!("meshd-echo client http {to}:80 --timeout 1"),
        format!("meshd-echo client udp {to}:7 --timeout 1"),
    ] {
        let tried = lab.at(Place::In(from), &command)?;
        assert_ne!(tried.status, 0, "{from} should not reach {to}: {tried:?}");
    }
    Ok(())
}

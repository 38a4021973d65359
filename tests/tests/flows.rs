//! Ten thousand connections that are busy while every meshd is killed and replaced.

use mesh_tests::{BACKENDS, Lab, Place, Result, until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const CONNECTIONS: usize = 10_000;

#[test]
fn ten_thousand_connections_outlive_every_agent() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name lines --network demo --publish 7777:7 --publish 8888:80",
    )?
    .ok()?;
    lab.backends("demo", "lines")?;
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    let dropped = drops(&lab)?;
    let resets = tcp(&lab, "EstabResets")?;
    let mut held = lab.hold(Place::Client, &["192.168.77.11:7777", "192.168.77.13:7777"], CONNECTIONS)?;
    // Every agent is an entry node's, a backend's, or both; the first is the manager.
    for host in HOSTS {
        lab.lab(&["kill", host])?.ok()?;
        assert!(held.lives()?, "a connection ended when {host}'s agent was killed");
        lab.lab(&["restart", host])?.ok()?;
        until(20, &format!("{host} to have applied its ledger"), || {
            let Ok(status) = lab.json(host, "status") else { return Ok(false) };
            Ok(status["applied_generation"].as_u64() > Some(0))
        })?;
        assert!(held.lives()?, "a connection ended when {host}'s agent came back");
    }
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    let went = held.end()?;
    // Everyone has asked once more at the end.
    assert!(went["answers"].as_u64() >= Some(CONNECTIONS as u64), "{went}");
    assert_eq!(tcp(&lab, "EstabResets")?, resets, "{went}");
    assert_eq!(drops(&lab)?, dropped, "{went}");
    Ok(())
}

/// How many packets the programs of all hosts have dropped; what containers say by themselves in
/// IPv6, which this network has not, does not count.
fn drops(lab: &Lab) -> Result<u64> {
    let mut all = 0;
    for host in HOSTS {
        let totals = lab.json(host, "flows --drops --totals")?;
        let reasons = totals.as_array().ok_or("the totals are no list")?.iter();
        let counted = reasons.filter(|r| r["reason"] != "drop_ipv6");
        all += counted.filter_map(|r| r["packets"].as_u64()).sum::<u64>();
    }
    Ok(all)
}

/// A counter of the client machine's TCP (/proc/net/snmp).
fn tcp(lab: &Lab, counter: &str) -> Result<u64> {
    let text = lab.at(Place::Client, "cat /proc/net/snmp")?.ok()?;
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == counter);
    Ok(found.ok_or_else(|| format!("no {counter} in {text}"))?.1.parse()?)
}

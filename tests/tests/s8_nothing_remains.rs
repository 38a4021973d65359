//! Scenario 8: what is used stays; what is removed is gone.

use mesh_tests::{Done, Lab, Place, Result, lab_dir, runtime, until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

#[test]
fn s8_nothing_remains() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --driver overlay")?.ok()?;
    lab.ctl("h1", "service create --name hostname --network demo --publish 8888:80")?
        .ok()?;
    lab.ctl("h1", "network rm demo")?.refused(4, &["demo", "hostname"])?;
    for (name, host) in ["w1", "w2", "w3"].iter().zip(HOSTS) {
        lab.echo(host, name, "--network demo --service hostname")?;
    }
    lab.balanced(&HOSTS, 8888, &["w1", "w2", "w3"])?;
    lab.ctl("h1", "network rm demo")?.refused(4, &["demo", "w1"])?;

    for name in ["w1", "w2", "w3"] {
        lab.lab(&["stop", name])?.ok()?;
    }
    lab.ctl("h1", "service rm hostname")?.ok()?;
    lab.ctl("h1", "network rm demo")?.ok()?;
    lab.ctl("h1", "network inspect demo")?.refused(3, &["demo"])?;
    // The ingress network stays as long as the cluster.
    for host in HOSTS {
        until(10, &format!("{host} to carry no more than the ingress network"), || {
            let links = lab.at(Place::Host(host), "ip -o link")?.ok()?;
            Ok(!links.contains(": mv-") && links.matches(": mb-").count() <= 1 && links.matches(": mx-").count() <= 1)
        })?;
    }

    lab.ctl("h2", "leave")?.ok()?;
    lab.ctl("h3", "leave")?.ok()?;
    lab.ctl("h1", "leave --force")?.ok()?;
    for host in HOSTS {
        lab.lab(&["kill", host])?.ok()?;
        cleanup(&lab, host)?.ok()?;
        bare(&lab, host)?;
        // Once more changes nothing and is no error.
        cleanup(&lab, host)?.ok()?;
    }
    Ok(())
}

fn directory(host: &str) -> String {
    let lab = lab_dir().display().to_string();
    format!("{lab}/{host}")
}

fn cleanup(lab: &Lab, host: &str) -> Result<Done> {
    let dir = directory(host);
    let bpffs = dir.replace(&format!("/{host}"), &format!("/bpffs/{host}"));
    lab.at(
        Place::Host(host),
        &format!("meshd --data-dir {dir}/data --run-dir {dir}/run --bpffs {bpffs} --hostname {host} --uplink eth0 cleanup"),
    )
}

/// The host has what `scripts/lab` gave it before meshd was started.
fn bare(lab: &Lab, host: &str) -> Result<()> {
    let at = |command: &str| lab.at(Place::Host(host), command)?.ok();
    let links: Vec<String> = at("ip -o link")?
        .lines()
        .filter_map(|l| Some(l.split(": ").nth(1)?.split('@').next()?.to_owned()))
        .collect();
    assert_eq!(links, ["lo", "eth0"], "{host}");
    let routes: Vec<String> = at("ip -o -4 route")?
        .lines()
        .filter_map(|l| Some(l.split_whitespace().next()?.to_owned()))
        .collect();
    assert_eq!(routes, ["default", "192.168.77.0/24"], "{host}");
    assert_eq!(at("ip -o -4 rule")?.lines().count(), 3, "{host}: policy rules");
    let ruleset = at("nft list ruleset")?;
    if runtime() == "docker" {
        // Its own chains are Docker's to keep; what meshd adds to them bears its name.
        assert!(ruleset.contains("chain DOCKER") && !ruleset.contains("mesh"), "{host}: {ruleset}");
    } else {
        assert_eq!(ruleset, "", "{host}");
    }
    // eth0's own multicast entries are the kernel's.
    let entries = at("bridge fdb")?;
    assert!(
        entries.lines().all(|l| l.contains("dev eth0") && l.contains("permanent")),
        "{host}: {entries}"
    );
    let filters = at("tc filter show dev eth0 ingress")? + &at("tc qdisc show dev eth0")?;
    assert!(!filters.contains("bpf") && !filters.contains("clsact"), "{host}: {filters}");
    let dir = directory(host);
    let bpffs = dir.replace(&format!("/{host}"), &format!("/bpffs/{host}"));
    for made in [format!("{dir}/data"), format!("{dir}/run"), bpffs] {
        let found = lab
            .argv(
                Place::Host(host),
                &["sh", "-c", &format!("! test -e {made} || find {made} -mindepth 1")],
            )?
            .ok()?;
        assert_eq!(found, "", "{host}");
    }
    Ok(())
}

//! `node promote` and `node demote`: managers come and go while everything runs on.

use mesh_tests::{Lab, Place, Result, lab_dir, until, within};

const ALL: [&str; 3] = ["w1", "w2", "w3"];

#[test]
fn nodes_are_promoted_and_demoted() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    for (host, name) in ["h1", "h2", "h3"].iter().zip(ALL) {
        lab.echo(host, name, "--network demo --service web")?;
    }
    // Connections that live through everything below.
    let inside = lab.network("demo")?;
    let w2 = inside
        .endpoints
        .iter()
        .find(|e| e.name == "w2")
        .ok_or("w2 has no endpoint")?
        .ip
        .clone();
    let mut within = lab.connect(Place::In("w3"), &format!("{w2}:7"))?;
    within.ask()?;

    // What is refused, and why.
    lab.ctl("h1", "node demote h1")?.refused(4, &["h1", "only manager", "promote"])?;
    lab.ctl("h1", "node demote h2")?.refused(4, &["h2", "worker already"])?;
    lab.ctl("h1", "node promote h1")?.refused(4, &["h1", "manager already"])?;
    lab.ctl("h1", "node promote h9")?.refused(3, &["h9"])?;
    lab.ctl("h2", "node promote h2")?.refused(1, &["worker", "h1"])?;

    // Two workers become managers, and vote when the command returns. Nothing in the lab would start a meshd again.
    let said = lab.ctl("h1", "node promote h2 h3")?.ok()?;
    assert_eq!(said, "Node h2 is a manager now.\nNode h3 is a manager now.\n");
    assert_eq!(voters(&lab, "h1")?, ["h1", "h2", "h3"]);
    for host in ["h2", "h3"] {
        assert_eq!(lab.json(host, "status")?["role"], "manager");
        // A manager's certificate: what only managers may ask.
        lab.ctl(host, "token worker -q")?.ok()?;
    }

    // The first manager's host loses its meshd: the two that were workers go on.
    lab.lab(&["kill", "h1"])?.ok()?;
    lab.takes_a_change("h2", "after")?;
    lab.balanced(&["h2", "h3"], 8080, &ALL)?;
    within.ask()?;
    // Without h1 they are two of three: neither can be spared, h1 can.
    until(10, "h1 to be down", || Ok(state(&lab, "h1")? == "down"))?;
    lab.ctl("h2", "node demote h3")?.refused(4, &["h3", "quorum", "h1"])?;
    lab.ctl("h2", "node demote h1")?.ok()?;
    assert_eq!(voters(&lab, "h2")?, ["h2", "h3"]);

    // It comes back, finds out, and is a worker.
    lab.lab(&["restart", "h1"])?.ok()?;
    until(20, "h1 to be a worker", || Ok(lab.json("h1", "status")?["role"] == "worker"))?;
    until(20, "h1 to be ready", || Ok(state(&lab, "h1")? == "ready"))?;
    lab.ctl("h1", "network create nope")?.refused(1, &["worker"])?;
    assert!(!keeps_state(&lab, "h1")?, "a worker keeps no copy of the cluster's state");

    // The leader is demoted: it hands over. Then it is promoted again, with a new vote.
    let leader = leader(&lab)?;
    let other = if leader == "h2" { "h3" } else { "h2" };
    lab.ctl(&leader, &format!("node demote {leader}"))?.ok()?;
    assert_eq!(voters(&lab, other)?, [other]);
    until(20, "the one that led to be a worker", || {
        Ok(lab.json(&leader, "status")?["role"] == "worker")
    })?;
    lab.ctl(&leader, "network create nope")?.refused(1, &["worker"])?;
    assert!(!keeps_state(&lab, &leader)?);
    lab.ctl(other, "network create alone")?.ok()?;
    lab.ctl(other, &format!("node promote {leader} h1"))?.ok()?;
    assert_eq!(voters(&lab, "h1")?, ["h1", "h2", "h3"]);

    // What they were made is kept over a restart.
    for host in ["h1", "h2", "h3"] {
        lab.lab(&["kill", host])?.ok()?;
    }
    within.ask()?;
    for host in ["h1", "h2", "h3"] {
        lab.lab(&["restart", host])?.ok()?;
    }
    lab.takes_a_change("h1", "restarted")?;
    assert_eq!(voters(&lab, "h3")?, ["h1", "h2", "h3"]);
    lab.balanced(&["h1", "h2", "h3"], 8080, &ALL)?;

    // Promoted again at once, while it still runs as the manager that it was: what it acknowledged as that one
    // counts for nothing. Another manager dies, and all is there.
    for n in 0..4 {
        lab.ctl("h1", "node demote h3")?.ok()?;
        lab.ctl("h1", "node promote h3")?.ok()?;
        lab.ctl("h1", &format!("network create again{n}"))?.ok()?;
    }
    lab.lab(&["kill", "h2"])?.ok()?;
    lab.takes_a_change("h3", "last")?;
    let networks = lab.json("h3", "network ls")?.to_string();
    for n in 0..4 {
        assert!(networks.contains(&format!("\"again{n}\"")), "{networks}");
    }
    within.ask()?;
    Ok(())
}

/// Host names of the managers that vote.
fn voters(lab: &Lab, host: &str) -> Result<Vec<String>> {
    let peers = within(15, "a manager to answer", || {
        Ok(lab.json(host, "status")?["manager"]["peers"].as_array().cloned())
    })?;
    let mut names: Vec<_> = peers
        .iter()
        .filter(|p| p["voter"] == true)
        .filter_map(|p| p["hostname"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn leader(lab: &Lab) -> Result<String> {
    within(15, "somebody to lead", || {
        Ok(lab.json("h1", "status")?["manager"]["leader"].as_str().map(str::to_owned))
    })
}

fn state(lab: &Lab, node: &str) -> Result<String> {
    let Ok(nodes) = lab.json("h2", "node ls") else {
        return Ok(String::new());
    };
    let found = nodes.as_array().into_iter().flatten().find(|n| n["hostname"] == node);
    Ok(found.and_then(|n| n["state"].as_str()).unwrap_or_default().to_owned())
}

/// Whether a host has a manager's files.
fn keeps_state(lab: &Lab, host: &str) -> Result<bool> {
    let dir = lab_dir().display().to_string();
    Ok(lab
        .argv(Place::Host(host), &["find", &format!("{dir}/{host}"), "-name", "log.redb"])?
        .ok()?
        .contains("redb"))
}

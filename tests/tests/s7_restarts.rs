//! Scenario 7: connections outlive meshd, and a host without managers goes on from its ledger.

use mesh_tests::{BACKENDS, Lab, Place, Result, until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

#[test]
fn s7_restarts() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --driver overlay")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name hostname --network demo --publish 8888:80 --publish 7777:7",
    )?
    .ok()?;
    lab.backends("demo", "hostname")?;
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    connections_live(&lab)?;
    no_manager(&lab)
}

/// Three connections through h3, so one to each backend: every meshd is an entry node's or a backend's.
fn connections_live(lab: &Lab) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..BACKENDS.len() {
        let mut connection = lab.connect(Place::Client, "192.168.77.13:7777")?;
        let backend = connection.ask()?.hostname;
        connections.push((connection, backend));
    }
    let mut reached: Vec<_> = connections.iter().map(|(_, b)| b.as_str()).collect();
    reached.sort_unstable();
    assert_eq!(reached, BACKENDS);
    for host in HOSTS.iter().rev() {
        for step in ["kill", "restart"] {
            lab.lab(&[step, host])?.ok()?;
            for (connection, backend) in &mut connections {
                let answer = connection
                    .ask()
                    .map_err(|e| format!("{step} {host} ended the connection to {backend}: {e}"))?;
                assert_eq!(answer.hostname, *backend);
            }
        }
        applied(lab, host)?;
        for (connection, backend) in &mut connections {
            let answer = connection
                .ask()
                .map_err(|e| format!("the new meshd on {host} ended the connection to {backend}: {e}"))?;
            assert_eq!(answer.hostname, *backend);
        }
    }
    lab.balanced(&HOSTS, 8888, &BACKENDS)
}

/// The only manager is dead; the others are restarted all the same.
fn no_manager(lab: &Lab) -> Result<()> {
    lab.container("h3", "user", "--network demo")?;
    // A ledger holds what its host heard of: h2 must have heard of the new endpoint before the manager goes.
    let newest = generation(lab, "h3")?;
    until(15, "h2 to know the new endpoint", || Ok(generation(lab, "h2")? >= newest))?;
    lab.lab(&["kill", "h1"])?.ok()?;
    for host in ["h2", "h3"] {
        lab.lab(&["kill", host])?.ok()?;
        lab.lab(&["restart", host])?.ok()?;
        applied(lab, host)?;
    }
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    lab.http(Place::In("user"), "hostname:80", 3)?;
    lab.at(Place::In("user"), "meshd-echo client resolve w1")?.ok()?;
    // Changes need a manager, and say so.
    lab.ctl("h2", "network create late --driver overlay")?.refused(5, &["manager"])?;
    lab.lab(&["restart", "h1"])?.ok()?;
    until(15, "every node to be ready again", || {
        let Ok(nodes) = lab.json("h1", "node ls") else { return Ok(false) };
        Ok(nodes
            .as_array()
            .is_some_and(|list| list.len() == 3 && list.iter().all(|n| n["state"] == "ready")))
    })?;
    lab.balanced(&HOSTS, 8888, &BACKENDS)
}

/// A meshd that was restarted has taken over what its host carries.
fn applied(lab: &Lab, host: &str) -> Result<()> {
    until(15, &format!("{host} to have applied its ledger"), || Ok(generation(lab, host)? > 0))
}

/// The revision that a host has applied; 0 before there is one, or before its meshd answers.
fn generation(lab: &Lab, host: &str) -> Result<u64> {
    let Ok(status) = lab.json(host, "status") else { return Ok(0) };
    Ok(status["applied_generation"].as_u64().unwrap_or(0))
}

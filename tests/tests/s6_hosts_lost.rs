//! Scenario 6: a dead meshd harms nobody; a dead host is left out within 5 seconds, and comes back.

use std::time::{Duration, Instant};

use mesh_tests::{BACKENDS, Lab, Place, Reply, Result, tally, until};

/// Where requests go while h2 is in trouble.
const ENTRIES: [&str; 2] = ["192.168.77.11:8888", "192.168.77.13:8888"];
/// How long a lost host may still be sent requests.
const NOTICED: Duration = Duration::from_secs(5);

#[test]
fn s6_hosts_lost() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --driver overlay")?.ok()?;
    lab.ctl("h1", "service create --name hostname --network demo --publish 8888:80")?
        .ok()?;
    lab.backends("demo", "hostname")?;
    lab.balanced(&["h1", "h2", "h3"], 8888, &BACKENDS)?;

    // Well past the moment when its manager takes the node for down, every request is answered, and
    // a third of them by the endpoint whose meshd is dead.
    lab.lab(&["kill", "h2"])?.ok()?;
    let killed = Instant::now();
    until(5, "the node of the dead meshd to be down", || Ok(state(&lab, "h2")? == "down"))?;
    while killed.elapsed() < 2 * NOTICED {
        for entry in ENTRIES {
            let seen = lab.http(Place::Client, entry, 3)?;
            assert_eq!(
                tally(&seen).len(),
                3,
                "{:?} after the kill, through {entry}: {seen:?}",
                killed.elapsed()
            );
        }
    }
    let seen = lab.http(Place::Client, "192.168.77.12:8888", 3)?;
    assert_eq!(tally(&seen).len(), 3, "through the node of the dead meshd: {seen:?}");
    lab.lab(&["restart", "h2"])?.ok()?;
    until(15, "h2 to be ready again", || Ok(state(&lab, "h2")? == "ready"))?;

    // The host itself.
    lab.lab(&["cut", "h2"])?.ok()?;
    let cut = Instant::now();
    while cut.elapsed() < 2 * NOTICED {
        let begun = cut.elapsed();
        for entry in ENTRIES {
            let seen = one(&lab, entry)?;
            if begun > NOTICED {
                let seen = seen.ok_or_else(|| format!("no answer {begun:?} after the cut, through {entry}"))?;
                assert_ne!(seen.hostname, "w2");
            }
        }
    }
    assert_eq!(state(&lab, "h2")?, "down");
    lab.lab(&["heal"])?.ok()?;
    lab.balanced(&["h1", "h2", "h3"], 8888, &BACKENDS)?;
    until(15, "h2 to be ready after the cut", || Ok(state(&lab, "h2")? == "ready"))
}

/// One request, which may fail.
fn one(lab: &Lab, entry: &str) -> Result<Option<Reply>> {
    let asked = lab.at(Place::Client, &format!("meshd-echo client http {entry} --timeout 1"))?;
    Ok((asked.status == 0).then(|| serde_json::from_str(&asked.out)).transpose()?)
}

fn state(lab: &Lab, node: &str) -> Result<String> {
    let nodes = lab.json("h1", "node ls")?;
    let found = nodes.as_array().into_iter().flatten().find(|n| n["hostname"] == node);
    let found = found.ok_or_else(|| format!("no node {node} in {nodes}"))?;
    Ok(found["state"].as_str().unwrap_or_default().to_owned())
}

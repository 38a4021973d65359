//! Scenario 6: a dead meshd harms nobody; a dead host is left out within 5 seconds, and comes back.

use std::time::{Duration, Instant};

use mesh_tests::{BACKENDS, Lab, Place, Result, tally, until};

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
    until(15, "the node of the dead meshd to be down", || Ok(state(&lab, "h2")? == "down"))?;
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
    // Twice the time that an idle machine needs at most.
    until(2 * NOTICED.as_secs(), "h2 to be left out", || {
        for entry in ENTRIES {
            // All three would have their turn.
            let asked = lab.at(Place::Client, &format!("meshd-echo client http {entry} --count 3 --timeout 1"))?;
            if asked.status != 0 || asked.out.contains("\"w2\"") {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    println!("left out {:?} after the cut", cut.elapsed());
    let left_out = Instant::now();
    while left_out.elapsed() < NOTICED {
        for entry in ENTRIES {
            let seen = tally(&lab.http(Place::Client, entry, 3)?);
            assert!(!seen.contains_key("w2"), "through {entry}: {seen:?}");
        }
    }
    assert_eq!(state(&lab, "h2")?, "down");
    lab.lab(&["heal"])?.ok()?;
    lab.balanced(&["h1", "h2", "h3"], 8888, &BACKENDS)?;
    until(15, "h2 to be ready after the cut", || Ok(state(&lab, "h2")? == "ready"))
}

fn state(lab: &Lab, node: &str) -> Result<String> {
    let nodes = lab.json("h1", "node ls")?;
    let found = nodes.as_array().into_iter().flatten().find(|n| n["hostname"] == node);
    let found = found.ok_or_else(|| format!("no node {node} in {nodes}"))?;
    Ok(found["state"].as_str().unwrap_or_default().to_owned())
}

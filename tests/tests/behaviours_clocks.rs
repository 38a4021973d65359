//! BEHAVIOURS.md, those of certificates and clocks: a test each, on the lab. `scripts/lab clock` sets the time of day
//! that a host's meshd sees.

use mesh_tests::{Lab, Place, Result, until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Whether a check of `meshctl doctor` is well, and what it says; `None` where it has nothing to say.
fn asked(lab: &Lab, host: &str, name: &str) -> Result<Option<(bool, String)>> {
    // It exits with 1 when any check is not well.
    let done = lab.ctl(host, "doctor -o json")?;
    let seen: serde_json::Value = serde_json::from_str(&done.out).map_err(|e| format!("{e}: {done:?}"))?;
    let checks = seen["checks"].as_array().ok_or("no checks")?;
    let found = checks.iter().find(|c| c["name"] == name);
    Ok(found.map(|c| (c["ok"] == true, c["detail"].as_str().unwrap_or_default().to_owned())))
}

/// As [`asked`], of one that is always there.
fn check(lab: &Lab, host: &str, name: &str) -> Result<(bool, String)> {
    asked(lab, host, name)?.ok_or_else(|| format!("no check {name:?} on {host}").into())
}

fn set(lab: &Lab, host: &str, offset: &str) -> Result<()> {
    lab.lab(&["clock", host, offset])?.ok().map(drop)
}

/// What `node ls` says of h2.
fn state_of_h2(lab: &Lab) -> Result<String> {
    let nodes = lab.json("h1", "node ls")?;
    let found = nodes.as_array().and_then(|n| n.iter().find(|n| n["hostname"] == "h2"));
    Ok(found.and_then(|n| n["state"].as_str()).unwrap_or_default().to_owned())
}

#[test]
fn b32_a_clock_an_hour_off_is_tolerated_and_named() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h2", "far", "--network demo")?;
    lab.settled(&["h1", "h2"])?;
    for (offset, word) in [("+1h", "ahead of the leader's"), ("-59m", "behind the leader's")] {
        set(&lab, "h2", offset)?;
        // Every connection is made anew, by certificates.
        lab.lab(&["restart", "h2"])?.ok()?;
        // A manager that answers late has no clock to compare with.
        until(20, "doctor on h2 to name the clock, and nothing else", || {
            let is_named = |(ok, said): (bool, String)| !ok && said.contains(word) && said.contains("timedatectl");
            Ok(asked(&lab, "h2", "clock")?.is_some_and(is_named) && check(&lab, "h2", "managers")?.0)
        })
        .map_err(|e| format!("{offset}: {e}: {:?}", asked(&lab, "h2", "clock")))?;
        until(20, "h2 to be ready", || Ok(state_of_h2(&lab)? == "ready"))?;
        // And it can have things changed.
        lab.container("h2", "other", "--network demo")?;
        lab.lab(&["stop", "other"])?.ok()?;
    }
    // Before everything: no certificate holds, the data plane goes on, and whoever looks is told why.
    set(&lab, "h2", "-1d")?;
    lab.lab(&["restart", "h2"])?.ok()?;
    until(15, "h2 to be down for the managers", || Ok(state_of_h2(&lab)? == "down"))?;
    let (ok, said) = check(&lab, "h2", "certificate")?;
    assert!(!ok && said.contains("this host's clock") && said.contains("timedatectl"), "{said}");
    lab.ctl("h2", "node ls")?.refused(5, &["not valid yet", "clock"])?;
    let there = lab.endpoint("demo", "far")?.ip;
    lab.http(Place::In("user"), &format!("{there}:80"), 3)?;
    // Nothing has to be done but to set it right.
    set(&lab, "h2", "+0")?;
    until(15, "h2 to be back", || Ok(state_of_h2(&lab)? == "ready"))?;
    assert!(check(&lab, "h2", "certificate")?.0);
    Ok(())
}

#[test]
fn b35_a_certificate_near_its_end_is_renewed_as_soon_as_a_manager_is_back() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.container("h3", "user", "--network demo")?;
    lab.echo("h2", "w", "--network demo --service web")?;
    lab.settled(&HOSTS)?;
    let served = || -> Result<()> {
        lab.http(Place::In("user"), "web:80", 2)?;
        lab.http(Place::Client, &format!("{}:8080", mesh_tests::address("h3")), 2)?;
        Ok(())
    };
    served()?;
    lab.lab(&["kill", "h1"])?.ok()?;
    for host in HOSTS {
        set(&lab, host, "+85d")?;
    }
    // Such as after an upgrade: nothing of before is in memory.
    lab.lab(&["restart", "h2"])?.ok()?;
    let (ok, said) = check(&lab, "h2", "certificate")?;
    assert!(
        !ok && said.contains("(4 days left)") && said.contains("no manager has done so"),
        "{said}"
    );
    served()?;
    until(15, "h2 to have asked for another in vain", || {
        Ok(lab.lab(&["logs", "h2"])?.ok()?.contains("can not renew the certificate"))
    })?;
    lab.lab(&["restart", "h1"])?.ok()?;
    // At the first chance: not when the minute is over that it waits otherwise.
    for host in HOSTS {
        until(20, &format!("{host} to have another certificate"), || {
            Ok(check(&lab, host, "certificate")?.0)
        })?;
    }
    served()?;

    // All were off for longer than certificates last: the manager finds its way back by itself, workers are told theirs.
    for host in ["h1", "h2"] {
        lab.lab(&["kill", host])?.ok()?;
    }
    for host in HOSTS {
        set(&lab, host, "+300d")?;
    }
    lab.lab(&["restart", "h2"])?.ok()?;
    lab.lab(&["restart", "h1"])?.ok()?;
    until(15, "h1 to lead again", || Ok(check(&lab, "h1", "managers")?.0))?;
    assert!(check(&lab, "h1", "certificate")?.0);
    for host in ["h2", "h3"] {
        let (ok, said) = check(&lab, host, "certificate")?;
        assert!(
            !ok && said.contains("expired at") && said.contains("meshctl join"),
            "{host}: {said}"
        );
    }
    served()?;
    // As they are told.
    until(15, "h1 to see that h2 is gone", || Ok(state_of_h2(&lab)? == "down"))?;
    lab.ctl("h1", "node rm --force h2")?.ok()?;
    lab.ctl("h2", "leave --force")?.ok()?;
    let token = lab.ctl("h1", "token worker -q")?.ok()?;
    lab.ctl("h2", &format!("join --token {} {}:2377", token.trim(), mesh_tests::address("h1")))?
        .joined()?;
    until(30, "h2 to be a node again", || Ok(state_of_h2(&lab)? == "ready"))?;
    assert!(check(&lab, "h2", "certificate")?.0);
    Ok(())
}

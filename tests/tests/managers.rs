//! Three managers: the leader's death, a lost majority, and what a worker may not.

use mesh_tests::{Lab, Result, until, within};

const MANAGERS: [&str; 3] = ["h1", "h2", "h3"];

#[test]
fn managers_survive_one_of_them() -> Result<()> {
    let lab = Lab::up("--nodes 4 --managers 3")?;
    until(15, "three voters", || Ok(voters(&lab, "h1")? == 3))?;
    lab.ctl("h4", "network create nope")?.refused(1, &["manager", "h1"])?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    for (host, name) in ["h1", "h2", "h3", "h4"].iter().zip(["w1", "w2", "w3", "w4"]) {
        lab.echo(host, name, "--network demo --service web")?;
    }
    let all = ["w1", "w2", "w3", "w4"];
    lab.balanced(&["h1", "h4"], 8080, &all)?;

    let first = within(15, "h4 to name who leads", || leader(&lab, "h4"))?;
    lab.lab(&["kill", &first])?.ok()?;
    let rest: Vec<_> = MANAGERS.into_iter().filter(|m| *m != first).collect();
    lab.takes_a_change(rest[0], "after")?;
    assert_ne!(leader(&lab, rest[1])?.as_deref(), Some(first.as_str()));
    lab.balanced(&["h4"], 8080, &all)?;
    // What a worker attaches goes to whoever leads.
    lab.container("h4", "late", "--network after")?;

    // No majority: nothing can be changed, everything goes on.
    lab.lab(&["kill", rest[1]])?.ok()?;
    lab.ctl(rest[0], "network create never")?.refused(5, &["manager"])?;
    lab.balanced(&["h4"], 8080, &all)?;

    lab.lab(&["restart", rest[1]])?.ok()?;
    lab.lab(&["restart", &first])?.ok()?;
    until(15, "the managers to agree again", || {
        let seen: Vec<_> = MANAGERS.iter().map(|m| names(&lab, m)).collect::<Result<_>>()?;
        // What was asked while nobody could say yes may have been carried out since, or not; but
        // on all of them alike.
        Ok(seen.iter().all(|n| *n == seen[0]) && ["after", "demo", "ingress"].iter().all(|n| seen[0].iter().any(|s| s == n)))
    })?;
    lab.balanced(&["h1", "h4"], 8080, &all)
}

fn status(lab: &Lab, host: &str) -> Result<serde_json::Value> {
    lab.json(host, "status")
}

fn voters(lab: &Lab, host: &str) -> Result<usize> {
    let status = status(lab, host)?;
    Ok(status["manager"]["peers"]
        .as_array()
        .map_or(0, |p| p.iter().filter(|m| m["voter"] == true).count()))
}

fn leader(lab: &Lab, host: &str) -> Result<Option<String>> {
    Ok(status(lab, host)?["manager"]["leader"].as_str().map(str::to_owned))
}

/// Names of the networks; none while no manager answers.
fn names(lab: &Lab, host: &str) -> Result<Vec<String>> {
    let Ok(list) = lab.json(host, "network ls") else {
        return Ok(Vec::new());
    };
    let mut names: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|n| n["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

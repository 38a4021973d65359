//! `ca rotate`: a new root of trust under running traffic, with a node that is away meanwhile.

use mesh_tests::{Lab, Place, Result, lab_dir, tally, until, within};

const ALL: [&str; 3] = ["w1", "w2", "w3"];

#[test]
fn the_root_is_replaced_while_everything_runs() -> Result<()> {
    let lab = Lab::up("--managers 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80 --publish 7007:7")?
        .ok()?;
    for (host, name) in ["h1", "h2", "h3"].iter().zip(ALL) {
        lab.echo(host, name, "--network demo --service web")?;
    }
    lab.balanced(&["h1", "h2", "h3"], 8080, &ALL)?;
    let token = lab.ctl("h1", "token worker -q")?.ok()?;
    let first = lab.json("h3", "ca show")?;
    assert_eq!(first["former"], serde_json::json!([]));
    until(10, "all nodes to have said that they know the root", || {
        Ok(renewed(&lab)? == ["h1", "h2", "h3"])
    })?;
    for host in ["h1", "h2", "h3"] {
        assert!(verifies(&lab, host)?);
    }
    lab.ctl("h3", "ca rotate")?.refused(1, &["worker", "manager"])?;

    // All nodes are there: the command returns when all have a certificate of the new root, and the old one is
    // forgotten. A client holds connections that must all live.
    let held = lab.hold(Place::Client, &["192.168.77.11:7007", "192.168.77.12:7007"], 50)?;
    // A node that a busy machine does not let speak is away for the moment.
    let said = within(120, "a rotation that finds all nodes", || {
        let said = lab.ctl("h2", "ca rotate")?.ok()?;
        Ok((said.contains("3 of 3 nodes") && said.contains("trusted no more")).then_some(said))
    })?;
    assert!(said.contains("meshctl token worker"), "{said}");
    let second = lab.json("h1", "ca show")?;
    assert_ne!(second["fingerprint"], first["fingerprint"]);
    settled(&lab, &second["fingerprint"])?;
    held.end()?;
    for host in ["h1", "h2"] {
        let token = token.trim();
        lab.ctl("h3", &format!("join --token {token} {host}"))?.refused(4, &["already"])?;
        let new = lab.ctl(host, "token worker -q")?.ok()?;
        assert_ne!(digest_and_secret(&new).0, digest_and_secret(token).0, "the tokens name the root");
        assert_ne!(
            digest_and_secret(&new).1,
            digest_and_secret(token).1,
            "who has an old secret joins nobody"
        );
    }

    // A node is away: the new root is in use at once, the old one waits for the node, which finds its way back.
    lab.lab(&["kill", "h3"])?.ok()?;
    until(10, "h3 to be down", || {
        Ok(lab.json("h1", "node ls")?.to_string().contains("\"down\""))
    })?;
    let said = lab.ctl("h1", "ca rotate")?.ok()?;
    assert!(said.contains(" of 3 nodes") && said.contains("h3 (down)"), "{said}");
    let third = lab.json("h1", "ca show")?;
    assert_eq!(third["former"][0]["fingerprint"], second["fingerprint"]);
    assert_eq!(
        tally(&lab.http(Place::Client, "192.168.77.13:8080", 9)?).len(),
        3,
        "its data plane goes on"
    );
    // Once more, before it is back.
    lab.ctl("h2", "ca rotate")?.ok()?;
    let fourth = lab.json("h1", "ca show")?;
    assert_eq!(fourth["former"].as_array().map(Vec::len), Some(2));
    // Managers that are started anew trust each other by what they have.
    for host in ["h1", "h2"] {
        lab.lab(&["kill", host])?.ok()?;
        lab.lab(&["restart", host])?.ok()?;
        lab.takes_a_change("h1", &format!("after-{host}"))?;
    }
    lab.lab(&["restart", "h3"])?.ok()?;
    settled(&lab, &fourth["fingerprint"])?;
    lab.container("h3", "late", "--network demo")?;
    lab.balanced(&["h1", "h2", "h3"], 8080, &ALL)?;

    // A host that is no member joins with a token of the new root, and not with one of before.
    let old = token;
    let token = lab.ctl("h1", "token worker -q")?.ok()?;
    for name in ["w3", "late"] {
        lab.lab(&["stop", name])?.ok()?;
    }
    lab.ctl("h3", "leave")?.ok()?;
    let refused = lab.ctl("h3", &format!("join --token {} 192.168.77.11", old.trim()))?;
    assert_ne!(refused.status, 0, "an old token joined a host");
    assert_eq!(renewed(&lab)?, ["h1", "h2"]);
    lab.ctl("h3", &format!("join --token {} 192.168.77.11", token.trim()))?.joined()?;
    settled(&lab, &fourth["fingerprint"])
}

/// The parts of a join token: the root's digest, and the secret (with its check).
fn digest_and_secret(token: &str) -> (&str, &str) {
    token.trim().rsplit_once('-').unwrap_or_default()
}

/// Waits until every node has a certificate of the root with this fingerprint, and there is no other any more.
fn settled(lab: &Lab, fingerprint: &serde_json::Value) -> Result<()> {
    until(60, "the former roots to be forgotten", || {
        let Ok(ca) = lab.json("h1", "ca show") else { return Ok(false) };
        assert_eq!(ca["fingerprint"], *fingerprint);
        Ok(ca["former"] == serde_json::json!([]) && renewed(lab)? == ["h1", "h2", "h3"])
    })?;
    for host in ["h1", "h2", "h3"] {
        assert!(verifies(lab, host)?, "{host}'s certificate is of another root");
    }
    Ok(())
}

/// Host names of the nodes that are known to have a certificate of the root.
fn renewed(lab: &Lab) -> Result<Vec<String>> {
    let ca = lab.json("h1", "ca show")?;
    let nodes = ca["nodes"].as_array().into_iter().flatten();
    Ok(nodes
        .filter(|n| n["renewed"] == true)
        .filter_map(|n| n["hostname"].as_str().map(str::to_owned))
        .collect())
}

/// Whether what a host keeps on disk is a certificate of the cluster's root, by openssl's judgement.
fn verifies(lab: &Lab, host: &str) -> Result<bool> {
    let dir = lab_dir().display().to_string();
    let cert = format!("{dir}/{host}/data/identity/cert.pem");
    let check =
        format!("root=$(mktemp); meshctl ca show --pem > $root; openssl verify -CAfile $root {cert}; code=$?; rm $root; exit $code");
    Ok(lab.argv(Place::Host(host), &["sh", "-c", &check])?.status == 0)
}

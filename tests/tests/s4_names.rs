//! Scenario 4: names, as containers see them, through two C libraries.

use std::{path::Path, process::Command};

use mesh_tests::{Lab, Place, Result, tally, until};
use serde_json::Value;

#[test]
fn s4_names() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let musl = musl_client(directory.path())?;
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --driver overlay")?.ok()?;
    lab.ctl("h1", "network create other --driver overlay")?.ok()?;
    lab.ctl("h1", "service create --name hostname --network demo")?.ok()?;
    lab.ctl("h1", "service create --name secret --network other")?.ok()?;
    lab.echo("h1", "w1", "--network demo --service hostname")?;
    lab.echo("h2", "w2", "--network demo --service hostname --alias second")?;
    lab.echo("h2", "hidden", "--network other --service secret")?;
    lab.container("h3", "user", "--network demo")?;

    let service = lab.json("h1", "service inspect hostname")?;
    let vip = text(&service["vips"][0]["ip"])?;
    let mut tasks = vec![ip(&lab, "w1")?, ip(&lab, "w2")?];
    tasks.sort();
    let gateway = lab.network("demo")?.subnets[0].gateway.clone();

    // What a program in a container asks, through glibc and through musl.
    for client in ["meshd-echo client resolve".to_owned(), musl] {
        let resolve = |name: &str| -> Result<Vec<String>> {
            let mut found: Vec<_> = lab
                .at(Place::In("user"), &format!("{client} {name}"))?
                .ok()?
                .lines()
                .map(str::to_owned)
                .collect();
            found.sort();
            found.dedup();
            Ok(found)
        };
        until(5, "tasks.hostname to have both endpoints", || {
            Ok(resolve("tasks.hostname").is_ok_and(|found| found == tasks))
        })?;
        assert_eq!(resolve("hostname")?, [vip.as_str()], "{client}");
        assert_eq!(resolve("HostName.Demo")?, [vip.as_str()], "{client}");
        assert_eq!(resolve("w1")?, [ip(&lab, "w1")?], "{client}");
        assert_eq!(resolve("second")?, [ip(&lab, "w2")?], "{client}");
        assert_eq!(resolve("outside.example")?, ["198.51.100.1"], "{client}");
        for unknown in ["secret", "hidden", "nosuch", "nosuch.outside.example"] {
            assert!(resolve(unknown).is_err(), "{client} resolves {unknown}");
        }
    }

    // What is on the wire.
    let ask = |name: &str, kind: &str| -> Result<(String, usize, bool)> {
        let out = lab
            .at(Place::In("user"), &format!("meshd-echo client dns {gateway} {name} {kind}"))?
            .ok()?;
        let answer: Value = serde_json::from_str(&out)?;
        let count = answer["answers"].as_array().map_or(0, Vec::len);
        Ok((text(&answer["rcode"])?, count, answer["soa"] == true))
    };
    assert_eq!(ask("hostname", "A")?, ("NoError".into(), 1, false));
    assert_eq!(ask("hostname", "AAAA")?, ("NoError".into(), 0, true));
    assert_eq!(ask("secret", "A")?, ("NXDomain".into(), 0, true));
    assert_eq!(ask("secret", "AAAA")?, ("NXDomain".into(), 0, true));
    assert_eq!(ask("outside.example", "A")?, ("NoError".into(), 1, false));

    // The VIP by its name reaches both.
    until(10, "the VIP to reach both endpoints", || {
        let Ok(seen) = lab.http(Place::In("user"), "hostname:80", 10) else {
            return Ok(false);
        };
        Ok(tally(&seen).values().eq([5, 5].iter()))
    })?;
    assert_eq!(lab.http(Place::In("user"), "second:80", 1)?[0].hostname, "w2");
    Ok(())
}

fn text(value: &Value) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("{value} is no text").into())
}

fn ip(lab: &Lab, name: &str) -> Result<String> {
    let networks = [lab.network("demo")?, lab.network("other")?];
    let found = networks.iter().flat_map(|n| &n.endpoints).find(|e| e.name == name);
    found.map(|e| e.ip.clone()).ok_or_else(|| format!("no endpoint {name}").into())
}

/// Builds the client with Debian's musl-gcc.
fn musl_client(directory: &Path) -> Result<String> {
    let program = directory.join("resolve-musl");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/resolve.c");
    let built = Command::new("musl-gcc").args(["-static", "-o"]).arg(&program).arg(source).output();
    let built = built.map_err(|e| format!("cannot run musl-gcc ({e}): install musl-tools"))?;
    if !built.status.success() {
        return Err(format!("musl-gcc: {}", String::from_utf8_lossy(&built.stderr)).into());
    }
    Ok(program.display().to_string())
}

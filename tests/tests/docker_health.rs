//! A container with a health check takes no flow before it serves, and none while it is not well (issue "Runtimes").

use mesh_tests::{Docker, Lab, Place, Result, address, tally, until};

/// Listens some time after it has started: once it is told to.
const SLOW: &str = "while [ ! -e /go ]; do sleep 0.1; done; exec meshd-echo --http 80";
/// It serves, and nobody says that it is sick.
const CHECK: &str = "test ! -e /sick && meshd-echo client http 127.0.0.1:80 --timeout 5";

/// A container that Docker checks, not serving yet.
fn run(lab: &Lab, docker: &Docker<'_>, name: &str, network: &[&str]) -> Result<()> {
    let check = ["--health-cmd", CHECK, "--health-interval", "1s", "--health-retries", "1"];
    let named = ["--name", name, "--hostname", name];
    let words = [&["docker", "run", "-d"][..], &named, &check, network, &["lab", "sh", "-c", SLOW]];
    lab.argv(Place::Host("h1"), &words.concat())?.ok()?;
    assert_ne!(health(docker, name)?, "healthy");
    Ok(())
}

/// What Docker says.
fn health(docker: &Docker<'_>, name: &str) -> Result<String> {
    let told = docker.at("h1", &format!("inspect -f {{{{.State.Health.Status}}}} {name}"))?.ok()?;
    Ok(told.trim().to_owned())
}

fn served_by(lab: &Lab) -> Result<Vec<String>> {
    let seen = lab.http(Place::Client, &format!("{}:8080", address("h2")), 6)?;
    Ok(tally(&seen).into_keys().collect())
}

#[test]
fn a_container_takes_flows_while_it_is_well() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --publish 8080:80")?.ok()?;
    let docker = Docker::up(&lab, &["h1"])?;
    docker.network("h1", "ov")?;
    lab.echo("h2", "old", "--network ov --service web")?;
    lab.balanced(&["h1", "h2"], 8080, &["old"])?;

    // An update: another comes, serves after a while, and has the service for itself. No request is lost.
    let labelled = ["--network", "ov", "--label", "mesh.service=web"];
    let count = lab.asked_meanwhile(&["h1", "h2"], 8080, || {
        run(&lab, &docker, "new", &labelled)?;
        lab.becomes("new", "unhealthy")?;
        assert_eq!(served_by(&lab)?, ["old"]);
        docker.at("h1", "exec new touch /go")?.ok()?;
        lab.becomes("new", "ready")?;
        lab.balanced(&["h1", "h2"], 8080, &["new", "old"])?;
        lab.ctl("h1", "endpoint update old --state draining")?.ok()?;
        lab.balanced(&["h1", "h2"], 8080, &["new"])
    })?;
    println!("{count} requests");
    lab.ctl("h1", "endpoint update old --state ready")?.ok()?;

    // Sick for a while: it serves on, and nobody notices.
    lab.asked_meanwhile(&["h1", "h2"], 8080, || {
        docker.at("h1", "exec new touch /sick")?.ok()?;
        lab.becomes("new", "unhealthy")?;
        lab.balanced(&["h1", "h2"], 8080, &["old"])?;
        // Where none is well, all are asked; and one that drains is asked by nobody.
        lab.ctl("h1", "endpoint update old --state draining")?.ok()?;
        lab.balanced(&["h1", "h2"], 8080, &["new"])?;
        lab.ctl("h1", "endpoint update old --state ready")?.ok()?;
        lab.balanced(&["h1", "h2"], 8080, &["old"])
    })?;

    // Well again while nobody listened.
    lab.lab(&["kill", "h1"])?.ok()?;
    docker.at("h1", "exec new rm /sick")?.ok()?;
    until(20, "docker to find it well", || Ok(health(&docker, "new")? == "healthy"))?;
    lab.lab(&["restart", "h1"])?.ok()?;
    lab.balanced(&["h1", "h2"], 8080, &["new", "old"])?;

    // Docker is gone for a while: what it said last holds.
    docker.at("h1", "exec new touch /sick")?.ok()?;
    lab.becomes("new", "unhealthy")?;
    lab.balanced(&["h1", "h2"], 8080, &["old"])?;
    docker.end("h1", "-KILL")?;
    lab.takes_a_change("h1", "ov")?;
    assert_eq!(
        (lab.state("new")?.as_str(), served_by(&lab)?),
        ("unhealthy", vec!["old".to_owned()])
    );
    docker.start("h1", &["--live-restore"])?;
    // One that is started anew beneath its containers checks them no more (20.10): an operator knows better.
    lab.ctl("h1", "endpoint update new --state ready")?.ok()?;
    lab.balanced(&["h1", "h2"], 8080, &["new", "old"])?;
    lab.lab(&["restart", "h1"])?.ok()?;
    docker.at("h1", "run --rm --network ov lab true")?.ok()?;
    assert_eq!(lab.state("new")?, "ready");

    // One that is not the driver's is checked too.
    run(&lab, &docker, "apart", &["--network", "none"])?;
    lab.ctl("h1", "network connect --service web ov apart")?.ok()?;
    lab.becomes("apart", "unhealthy")?;
    lab.balanced(&["h1", "h2"], 8080, &["new", "old"])?;
    docker.at("h1", "exec apart touch /go")?.ok()?;
    lab.balanced(&["h1", "h2"], 8080, &["apart", "new", "old"])
}

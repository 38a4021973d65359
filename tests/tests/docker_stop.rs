//! `docker stop` loses no request: a container that is asked to stop gets no new flow, whatever it still
//! serves by itself (issue "Runtimes").

use mesh_tests::{Docker, Lab, Place, Process, Result, address, tally, until};

/// Serves after a while, and after SIGTERM, until it is sent SIGUSR1: then it closes its port, and ends.
const GRACEFUL: &str = r#"sleep 1; meshd-echo --http 80 & e=$!; trap : TERM; trap "kill $e; exit" USR1; while :; do wait; done"#;
/// For those: meshd takes one that runs on a minute after its time for one that means to.
const PATIENT: [&str; 2] = ["--stop-timeout", "300"];
/// For those whose first listening is waited for.
const CHECKED: [&str; 2] = [
    "--health-interval=1s",
    "--health-cmd=meshd-echo client http 127.0.0.1:80 --timeout 5",
];
/// Does not care about SIGTERM.
const DEAF: &str = r#"trap "" TERM; meshd-echo --http 80"#;

/// A container of service `web` that runs a script.
fn run(lab: &Lab, docker: &Docker<'_>, host: &str, name: &str, options: &[&str], script: &str) -> Result<()> {
    let words = [
        &["docker", "run", "-d", "--name", name, "--hostname", name][..],
        options,
        &["--network", "ov", "--label", "mesh.service=web", "lab", "sh", "-c", script],
    ];
    lab.argv(Place::Host(host), &words.concat())?.ok()?;
    docker.listed(name)?;
    docker.serves(host, name)
}

/// `docker VERB` of a container that serves until nobody sends it anything any more. `others` are left.
fn drained(lab: &Lab, docker: &Docker<'_>, verb: &str, host: &str, name: &str, others: &[&str]) -> Result<()> {
    let stopping = Process::start(lab.command(Place::Host(host), &["docker", verb, name])?)?;
    lab.becomes(name, "draining")?;
    if others.is_empty() {
        // The last one is sent what comes until it ends.
        lab.http(Place::Client, &format!("{}:8080", address("h1")), 20)?;
    } else {
        lab.balanced(&["h1", "h2"], 8080, others)?;
    }
    docker.at(host, &format!("kill -s USR1 {name}"))?.ok()?;
    let ended = stopping.end()?;
    assert!(ended.success(), "docker {verb} {name}: {ended}");
    Ok(())
}

#[test]
fn docker_stop_loses_no_request() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --publish 8080:80")?.ok()?;
    let docker = Docker::up(&lab, &["h1", "h2"])?;
    for host in ["h1", "h2"] {
        docker.network(host, "ov")?;
    }
    run(&lab, &docker, "h2", "two", &PATIENT, GRACEFUL)?;

    // Stopped, and then restarted, while requests go on. Between its start and its first listening a container is
    // asked in vain, since Docker says of it that it runs, not that it serves: but for one that Docker checks.
    for (verb, options) in [("stop", PATIENT.to_vec()), ("restart", [PATIENT, CHECKED].concat())] {
        run(&lab, &docker, "h1", "one", &options, GRACEFUL)?;
        lab.balanced(&["h1", "h2"], 8080, &["one", "two"])?;
        let count = lab.asked_meanwhile(&["h1", "h2"], 8080, || {
            drained(&lab, &docker, verb, "h1", "one", &["two"])?;
            if verb == "stop" {
                return docker.at("h1", "rm one")?.ok().map(drop);
            }
            docker.listed("one")?;
            lab.balanced(&["h1", "h2"], 8080, &["one", "two"])
        })?;
        println!("docker {verb}: {count} requests");
    }

    survivors(&lab, &docker)?;

    docker.at("h1", "rm -f one deaf")?.ok()?;
    lab.balanced(&["h1", "h2"], 8080, &["two"])?;
    drained(&lab, &docker, "stop", "h2", "two", &[])?;
    until(10, "the last endpoint to go", || Ok(docker.addresses()?.is_empty()))
}

/// A container that was asked to stop and runs on: it drains until its time is over, or somebody says so,
/// also when nobody listened at the time. What an operator drains stays.
fn survivors(lab: &Lab, docker: &Docker<'_>) -> Result<()> {
    run(lab, docker, "h1", "deaf", &["--stop-signal", "USR1"], DEAF)?;
    docker.at("h1", "kill -s HUP one")?.ok()?;
    docker.at("h1", "kill -s TERM deaf")?.ok()?;
    lab.becomes("deaf", "draining")?;
    assert_eq!(lab.state("one")?, "ready", "that signal was no request to stop");
    lab.balanced(&["h1", "h2"], 8080, &["one", "two"])?;
    lab.ctl("h1", "endpoint update deaf --state ready")?.ok()?;
    lab.balanced(&["h1", "h2"], 8080, &["deaf", "one", "two"])?;
    // That was the last word also for a meshd that is started later, which hears of what came since.
    run(lab, docker, "h1", "later", &["--stop-signal", "USR1"], DEAF)?;
    lab.lab(&["kill", "h1"])?.ok()?;
    docker.at("h1", "kill -s TERM later")?.ok()?;
    lab.lab(&["restart", "h1"])?.ok()?;
    lab.becomes("later", "draining")?;
    assert_eq!(lab.state("deaf")?, "ready");
    docker.at("h1", "rm -f later")?.ok()?;

    lab.ctl("h1", "endpoint update one --state draining")?.ok()?;
    lab.lab(&["kill", "h1"])?.ok()?;
    docker.at("h1", "kill -s TERM deaf")?.ok()?;
    lab.lab(&["restart", "h1"])?.ok()?;
    lab.becomes("deaf", "draining")?;
    until(75, "the survivor to take flows again", || Ok(lab.state("deaf")? == "ready"))?;
    assert_eq!(lab.state("one")?, "draining", "an operator drained it");
    lab.ctl("h1", "endpoint update one --state ready")?.ok()?;
    lab.balanced(&["h1", "h2"], 8080, &["deaf", "one", "two"])
}

/// So does one that is not the driver's.
#[test]
fn a_connected_container_drains_too() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --publish 8080:80")?.ok()?;
    let docker = Docker::up(&lab, &["h1"])?;
    lab.echo("h2", "two", "--network ov --service web")?;
    let named = ["--network", "none", "--name", "one", "--hostname", "one"];
    let words = [&["docker", "run", "-d"][..], &named, &PATIENT, &["lab", "sh", "-c", GRACEFUL]];
    lab.argv(Place::Host("h1"), &words.concat())?.ok()?;
    lab.ctl("h1", "network connect --service web ov one")?.ok()?;
    docker.serves("h1", "one")?;
    lab.balanced(&["h1", "h2"], 8080, &["one", "two"])?;
    lab.asked_meanwhile(&["h1", "h2"], 8080, || drained(&lab, &docker, "stop", "h1", "one", &["two"]))?;
    let seen = lab.http(Place::Client, &format!("{}:8080", address("h1")), 4)?;
    assert_eq!(tally(&seen).keys().collect::<Vec<_>>(), ["two"]);
    until(10, "its endpoint to go", || Ok(docker.addresses()?.len() == 1))
}

//! Docker's containers by the dozen, while meshd or dockerd is killed, and after a host's power was cut:
//! every container that Docker has is attached, each with an address of its own, and
//! of what Docker has forgotten nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    process::Stdio,
    time::Instant,
};

use mesh_tests::{Docker, Lab, Place, Result, until};

/// Containers that are started at once while meshd is killed.
const MANY: usize = 100;
/// Containers that are started at once while dockerd is killed.
const COUNT: usize = 100;
/// Seconds within which all is settled after a kill.
const SETTLED: u64 = 120;

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// `docker VERB… NAME…`, one process for each name, all at once; the names of those that failed.
fn at_once(lab: &Lab, host: &str, names: &[String], verb: &str) -> Result<Vec<String>> {
    let dir = tempfile::tempdir()?;
    // So many can take longer than the minute that a command of the lab has.
    let script = format!(r#"for name in "$@"; do (timeout 300 docker {verb} >"$0/$name" 2>&1 || echo $name >>"$0/failed") & done; wait"#);
    let to = dir.path().display().to_string();
    let mut words = vec!["sh", "-c", &script, &to];
    words.extend(names.iter().map(String::as_str));
    let done = lab.command(Place::Host(host), &words)?.stdin(Stdio::null()).status()?;
    assert!(done.success(), "{verb} of {names:?}: {done}");
    let failed = std::fs::read_to_string(dir.path().join("failed")).unwrap_or_default();
    for name in failed.lines() {
        println!("{name}: {}", std::fs::read_to_string(dir.path().join(name))?.trim());
    }
    Ok(failed.lines().map(str::to_owned).collect())
}

fn start(lab: &Lab, host: &str, names: &[String], options: &str) -> Result<Vec<String>> {
    let run = format!("run -d --stop-signal KILL --name $name --hostname $name --network ov {options} lab sleep 1000");
    at_once(lab, host, names, &run)
}

/// Starts all, with `kill` in the middle, and what was told to have failed once more until nothing is; how many
/// failed at first.
fn start_in_spite(lab: &Lab, docker: &Docker<'_>, all: &[String], options: &str, kill: impl FnOnce() -> Result<()>) -> Result<usize> {
    let before = lab.network("ov")?.endpoints.len();
    let begun = Instant::now();
    let mut failed = std::thread::scope(|scope| {
        let starting = scope.spawn(|| start(lab, "h1", all, options).map_err(|e| e.to_string()));
        let killed = until(120, "some to be attached", || {
            Ok(lab.network("ov")?.endpoints.len() > before + all.len() / 4)
        })
        .and_then(|()| kill());
        let failed = starting.join().unwrap_or_else(|_| Err("a thread failed".into()))?;
        killed.map(|()| failed)
    })?;
    let at_first = failed.len();
    println!(
        "{at_first} of {} failed, {:?} after the first was started",
        all.len(),
        begun.elapsed()
    );
    let left = settled(lab, docker, &["h1", "h2"])?;
    println!("{} endpoints after {:?}", left.len(), begun.elapsed());
    until(180, "all to start in the end", || {
        if failed.is_empty() {
            return Ok(true);
        }
        // Those that came half way have a name already.
        at_once(lab, "h1", &failed, "rm -f $name")?;
        failed = start(lab, "h1", &failed, options)?;
        Ok(failed.is_empty())
    })?;
    Ok(at_first)
}

/// The endpoints are what Docker runs: exactly those, with the same addresses, no two alike.
fn settled(lab: &Lab, docker: &Docker<'_>, hosts: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut seen = (BTreeMap::new(), Vec::new());
    let outcome = until(SETTLED, "the endpoints to be those of docker's containers", || {
        let mut theirs = Vec::new();
        for host in hosts {
            theirs.extend(docker.running(host)?);
        }
        let ours: Vec<_> = lab.network("ov")?.endpoints.into_iter().map(|e| (e.name, e.ip)).collect();
        let unique: BTreeSet<_> = ours.iter().map(|(_, ip)| ip).collect();
        assert_eq!(unique.len(), ours.len(), "an address was given twice: {ours:?}");
        theirs.sort();
        seen = (ours.into_iter().collect(), theirs);
        Ok(seen.0.clone().into_iter().collect::<Vec<_>>() == seen.1)
    });
    outcome.map_err(|e| format!("{e}: meshd has {:?}, docker has {:?}", seen.0, seen.1))?;
    Ok(seen.0)
}

/// A container of the other host reaches each by its name.
fn reached(docker: &Docker<'_>, names: &[String]) -> Result<()> {
    for some in names.chunks(8) {
        let each: Vec<_> = some.iter().map(|name| format!("ping -c1 -W2 {name}")).collect();
        // One word for the shell in the container; `Lab::at` splits at spaces.
        let script = each.join("&&").replace(' ', "${IFS}");
        let mut said = String::new();
        let all = until(15, "a container of another host to reach these", || {
            let done = docker.at("h2", &format!("exec asker sh -c {script}"))?;
            said = done.out + &done.err;
            Ok(done.status == 0)
        });
        all.map_err(|e| format!("{e}: {some:?}: {said}"))?;
    }
    Ok(())
}

fn cluster() -> Result<Lab> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    Ok(lab)
}

fn docker(lab: &Lab) -> Result<Docker<'_>> {
    let docker = Docker::up(lab, &["h1", "h2"])?;
    for host in ["h1", "h2"] {
        docker.network(host, "ov")?;
    }
    docker.run("h2", "asker", "--network ov", "sleep 1000")?;
    Ok(docker)
}

#[test]
fn meshd_and_dockerd_are_killed_in_the_middle_of_a_burst() -> Result<()> {
    let lab = cluster()?;
    let docker = docker(&lab)?;
    let first = names("m", MANY);
    // Every second one has an address of its own wish.
    let subnet = lab.network("ov")?.subnets.remove(0).subnet;
    let [a, b, c, _] = subnet.trim_end_matches("/20").parse::<Ipv4Addr>()?.octets();
    let wish = format!("$(n=${{name#*-}}; [ $((n % 2)) = 1 ] || echo --ip {a}.{b}.{}.$((n + 1)))", c + 8);
    let failed = start_in_spite(&lab, &docker, &first, &wish, || {
        lab.lab(&["kill", "h1"])?.ok()?;
        lab.lab(&["restart", "h1"])?.ok().map(drop)
    })?;
    // What meshd was asked when it was killed, Docker asks once more, without the words; the next meshd knows them.
    assert_eq!(failed, 0);
    let all = settled(&lab, &docker, &["h1", "h2"])?;
    assert_eq!(all.len(), MANY + 1, "{all:?}");
    reached(&docker, &first)?;
    // A few stay, which are not to be restarted.
    at_once(&lab, "h1", &first[4..], "rm -f $name")?;
    assert_eq!(settled(&lab, &docker, &["h1", "h2"])?.len(), 5);

    // A second burst. dockerd ends what it ran when it comes back, and starts what is to be restarted.
    let second = names("d", COUNT);
    start_in_spite(&lab, &docker, &second, "--restart=always", || {
        docker.end("h1", "-KILL")?;
        docker.start("h1", &[])
    })?;
    let all = settled(&lab, &docker, &["h1", "h2"])?;
    let missing: Vec<_> = second.iter().filter(|name| !all.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    reached(&docker, &second)?;
    at_once(&lab, "h1", &[&first[..4], &second].concat(), "rm -f $name")?;
    assert_eq!(settled(&lab, &docker, &["h1", "h2"])?.len(), 1);
    Ok(())
}

#[test]
fn containers_that_are_restarted_always_survive_a_power_cut() -> Result<()> {
    let lab = cluster()?;
    let docker = docker(&lab)?;
    for n in ["0", "1", "2", "3"] {
        docker.run("h1", &format!("kept-{n}"), "--network ov --restart=always", "sleep 1000")?;
        docker.run("h1", &format!("lost-{n}"), "--network ov", "sleep 1000")?;
    }
    lab.lab(&["reboot", "h1"])?.ok()?;
    docker.start("h1", &[])?;
    until(60, "the containers to be started again", || {
        Ok(docker.running("h1")?.iter().filter(|(name, _)| name.starts_with("kept-")).count() == 4)
    })?;
    let all = settled(&lab, &docker, &["h1", "h2"])?;
    assert_eq!(all.len(), 5, "{all:?}");
    reached(&docker, &(0..4).map(|n| format!("kept-{n}")).collect::<Vec<_>>())?;
    // What was not restarted can be.
    docker.at("h1", "start lost-0")?.ok()?;
    docker.listed("lost-0")?;
    reached(&docker, &["lost-0".to_owned()])
}

//! What breaks half way leaves nothing behind: a join after the host was taken in, a cluster's
//! beginning, an attachment. And a host whose disk was copied loses nothing to the copy.

use std::{fs, os::unix::net::UnixStream, path::PathBuf, process::Command};

use mesh_tests::{Lab, Place, Process, Result, lab_dir, until, within};

fn data(host: &str) -> PathBuf {
    lab_dir().join(host).join("data")
}

fn nodes(lab: &Lab) -> Result<usize> {
    Ok(lab.json("h1", "node ls")?.as_array().map_or(0, Vec::len))
}

#[test]
fn what_breaks_half_way_leaves_nothing() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h2", "leave")?.ok()?;
    until(10, "h2 to be off the list", || Ok(nodes(&lab)? == 1))?;
    join(&lab)?;
    lab.ctl("h2", "leave")?.ok()?;
    init(&lab)?;
    lab.ctl("h2", "leave --force")?.ok()?;
    let token = lab.ctl("h1", "token worker -q")?.ok()?;
    lab.ctl("h2", &format!("join --token {} 192.168.77.11", token.trim()))?.joined()?;
    attachment(&lab)?;
    copied(&lab)
}

/// A manager that cannot listen: it is taken off the list again, and may try again.
fn join(lab: &Lab) -> Result<()> {
    let listen = "meshd-echo --tcp 2377 >/dev/null 2>&1 & echo $!";
    let pid = lab.argv(Place::Host("h2"), &["sh", "-c", listen])?.ok()?;
    until(5, "the port to be taken", || {
        Ok(lab.at(Place::Host("h2"), "ss -Hltn sport = 2377")?.ok()?.contains("2377"))
    })?;
    let token = lab.ctl("h1", "token manager -q")?.ok()?;
    let join = format!("join --token {} 192.168.77.11", token.trim());
    lab.ctl("h2", &join)?.refused(1, &["2377"])?;
    assert_eq!(nodes(lab)?, 1, "taken off the list again");
    lab.at(Place::Host("h2"), &format!("kill {}", pid.trim()))?.ok()?;
    lab.ctl("h1", "network create still-led")?.ok()?;
    lab.ctl("h2", &join)?.joined()?;
    assert_eq!(nodes(lab)?, 2);
    Ok(())
}

/// A meshd that is killed before the cluster exists has no part in one afterwards.
fn init(lab: &Lab) -> Result<()> {
    lab.ctl("h2", "init")?.joined()?;
    lab.lab(&["kill", "h2"])?.ok()?;
    // As it is on disk until the first commit.
    fs::write(data("h2").join("founding.json"), "{\"beg")?;
    lab.lab(&["restart", "h2"])?.ok()?;
    lab.ctl("h2", "network ls")?.refused(1, &["cluster"])?;
    assert!(!data("h2").join("identity").exists() && !data("h2").join("founding.json").exists());
    // What the first one left in the kernel is in nobody's way.
    lab.ctl("h2", "init")?.joined()?;
    let links = lab.at(Place::Host("h2"), "ip -o link")?.ok()?;
    assert_eq!(links.matches(": mx-").count(), 1, "{links}");
    Ok(())
}

/// An attachment whose outcome its caller never learns is not there later.
fn attachment(lab: &Lab) -> Result<()> {
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.container("h2", "seen", "--network demo")?;
    lab.at(Place::Host("h2"), "ip netns add unseen")?.ok()?;
    // The manager takes the command in when it wakes up again; by then nobody waits.
    lab.lab(&["freeze", "h1"])?.ok()?;
    let tried = lab.ctl("h2", "network connect --hostname unseen demo netns:unseen")?;
    lab.lab(&["thaw", "h1"])?.ok()?;
    let gone = until(20, "the endpoint that nobody waits for to be removed", || {
        let on = lab.network("demo")?.endpoints;
        Ok(on.len() == 1 && on[0].name == "seen")
    });
    // The manager may take it in only now, and then it has to go first.
    let again = within(20, "the name to be free", || {
        let again = lab.ctl("h2", "network connect --hostname unseen demo netns:unseen")?;
        Ok((again.status != 4).then_some(again))
    });
    lab.ctl("h2", "network disconnect --force demo netns:unseen")?;
    lab.at(Place::Host("h2"), "ip netns del unseen")?.ok()?;
    tried.refused(5, &["manager"])?;
    gone?;
    again?.ok().map(drop)
}

/// A machine that was made from h2's disk, data directory included, has none of its containers, and removes none.
fn copied(lab: &Lab) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let dir = directory.path().display();
    let root = lab_dir().display().to_string();
    let bpffs = format!("{root}/bpffs/copy");
    fs::create_dir_all(&bpffs)?;
    let original = data("h2").display().to_string();
    if !Command::new("cp")
        .args(["-a", &original, &format!("{dir}/data")])
        .status()?
        .success()
    {
        return Err(format!("can not copy {original}").into());
    }
    // It sees no namespace of the original's.
    let run = format!("mount -t tmpfs t /run/netns && exec meshd --data-dir {dir}/data --run-dir {dir}/run --bpffs {bpffs} --uplink eth0");
    let words = ["unshare", "-m", "--propagation", "private", "sh", "-c", &run];
    let _meshd = Process::start(lab.command(Place::Client, &words)?)?;
    let socket = directory.path().join("run/meshd.sock");
    until(60, "the copy to answer", || Ok(UnixStream::connect(&socket).is_ok()))?;
    let ctl = |command: &str| lab.at(Place::Client, &format!("meshctl --socket {} {command}", socket.display()));
    until(30, "the copy to know that it is one", || {
        Ok(ctl("doctor")?.out.contains("has this node's identity too"))
    })?;
    // What it would do, it does by then.
    lab.ctl("h1", "network create later")?.ok()?;
    let latest = lab.json("h1", "network inspect later")?["version"].as_u64();
    until(10, "the copy to have caught up", || {
        let status: serde_json::Value = serde_json::from_str(&ctl("status -o json")?.ok()?)?;
        Ok(status["applied_generation"].as_u64() >= latest)
    })?;
    ctl("leave")?.refused(4, &["seen"])?;
    ctl("leave --force")?.ok()?;
    let h2 = lab.json("h1", "node inspect h2")?;
    assert_eq!((&h2["addr"], &h2["state"]), (&"192.168.77.12".into(), &"ready".into()));
    assert_eq!(lab.network("demo")?.endpoints.len(), 1);
    assert!(lab.at(Place::In("seen"), "ip -br addr")?.ok()?.contains("eth0"));
    Ok(())
}

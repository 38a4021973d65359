//! `meshctl run`: processes in a network without a container runtime.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{Child, Stdio},
};

use mesh_tests::{Done, Lab, Place, Result, tally, until, within};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const ECHO: &[&str] = &["meshd-echo", "--http", "80", "--tcp", "7", "--udp", "7"];

/// A `meshctl run` in the background; killed when dropped.
struct Running(Child);

impl Running {
    fn start(lab: &Lab, host: &str, options: &str, command: &[&str]) -> Result<Self> {
        let child = lab
            .command(Place::Host(host), &words(options, command))?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }

    /// The next line that the command prints; it is waited for half a minute.
    fn line(&mut self) -> Result<String> {
        let output = self.0.stdout.as_mut().ok_or("no output")?;
        if poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], 30_000u16)? == 0 {
            return Err("the command has printed nothing for 30 s".into());
        }
        let mut line = String::new();
        BufReader::with_capacity(1, output).read_line(&mut line)?;
        Ok(line)
    }

    /// How it ended, and what it said on standard error.
    fn ended(mut self) -> Result<(i32, String)> {
        let status = within(30, "meshctl run to end", || Ok(self.0.try_wait()?))?;
        let mut said = String::new();
        self.0.stderr.take().ok_or("no standard error")?.read_to_string(&mut said)?;
        Ok((status.code().or(status.signal().map(|s| -s)).unwrap_or_default(), said))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn words<'a>(options: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    // Whoever started the tests in the background may have had them ignore SIGINT, which is passed down.
    let mut words = vec!["env", "--default-signal", "meshctl", "run", "--network", "demo"];
    words.extend(options.split_whitespace());
    words.push("--");
    words.extend(command);
    words
}

/// In the foreground.
fn run(lab: &Lab, host: &str, options: &str, command: &[&str]) -> Result<Done> {
    lab.argv(Place::Host(host), &words(options, command))
}

fn names(lab: &Lab) -> Result<Vec<String>> {
    let mut names: Vec<_> = lab.network("demo")?.endpoints.into_iter().map(|e| e.name).collect();
    names.sort();
    Ok(names)
}

/// The cgroups of commands that this test has started, wherever the hierarchy is mounted.
fn cgroups() -> Result<Vec<String>> {
    let list = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = list.lines().find(|l| l.contains(" - cgroup2 ")).and_then(|l| l.split(' ').nth(4));
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|l| l.strip_prefix("0::")).ok_or("in no cgroup")?;
    let below = format!("{}{own}", mounted.ok_or("no cgroup2 is mounted")?);
    let found = std::process::Command::new("find")
        .args([&below, "-maxdepth", "6", "-name", "mesh-run-*"])
        .output()?;
    Ok(String::from_utf8(found.stdout)?.lines().map(str::to_owned).collect())
}

#[test]
fn run_without_a_runtime() -> Result<()> {
    let before = fs::read_to_string("/etc/resolv.conf")?;
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8888:80")?.ok()?;
    let w1 = Running::start(&lab, "h1", "--service web --name w1 --alias first", ECHO)?;
    let w2 = Running::start(&lab, "h2", "--service web --name w2 --label a=b", ECHO)?;
    lab.balanced(&["h1", "h2"], 8888, &["w1", "w2"])?;

    reach_each_other(&lab)?;
    own_view(&lab)?;
    streams(&lab)?;
    ends(&lab)?;
    refusals(&lab)?;
    two_networks(&lab)?;
    signals(&lab)?;
    assert_eq!(names(&lab)?, ["w1", "w2"], "what has ended is detached when meshctl ends");
    assert_eq!(cgroups()?.len(), 2, "{:?}", cgroups()?);

    // Killed: the kernel, its janitor and meshd do what meshctl cannot do any more.
    w1.signal(Signal::SIGKILL)?;
    assert_eq!(w1.ended()?.0, -9);
    until(10, "w1 to be gone", || Ok(names(&lab)? == ["w2"]))?;
    until(10, "its cgroup to be gone", || Ok(cgroups()?.len() == 1))?;
    lab.balanced(&["h1", "h2"], 8888, &["w2"])?;

    // A meshd that restarts finds it; one that is dead when the command ends detaches it later.
    lab.lab(&["kill", "h2"])?.ok()?;
    lab.lab(&["restart", "h2"])?.ok()?;
    lab.balanced(&["h1", "h2"], 8888, &["w2"])?;
    lab.lab(&["kill", "h2"])?.ok()?;
    w2.signal(Signal::SIGTERM)?;
    let (code, said) = w2.ended()?;
    assert_eq!(code, 143);
    assert!(
        said.lines().count() == 1 && said.contains("detaches the endpoint later"),
        "{said:?}"
    );
    assert_eq!(cgroups()?, [""; 0]);
    lab.lab(&["restart", "h2"])?.ok()?;
    until(15, "w2 to be gone", || Ok(names(&lab)?.is_empty()))?;

    for host in ["h1", "h2"] {
        until(10, &format!("{host} to have no interface of a container"), || {
            Ok(!lab.at(Place::Host(host), "ip -o link")?.ok()?.contains(": mv-"))
        })?;
    }
    assert!(
        !fs::read_to_string("/proc/self/mounts")?.contains("mesh-run"),
        "mounts stay in their namespace"
    );
    assert_eq!(fs::read_to_string("/etc/resolv.conf")?, before);
    Ok(())
}

fn reach_each_other(lab: &Lab) -> Result<()> {
    let ask = |host: &str, to: &str, count: &str| -> Result<Vec<String>> {
        let out = run(lab, host, "", &["meshd-echo", "client", "http", to, "--count", count])?.ok()?;
        let replies: Vec<mesh_tests::Reply> = out.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
        Ok(tally(&replies).into_keys().collect())
    };
    // The very first thing that the command does.
    for _ in 0..5 {
        assert_eq!(ask("h1", "w2:80", "1")?, ["w2"]);
        assert_eq!(ask("h2", "first:80", "1")?, ["w1"]);
    }
    assert_eq!(ask("h1", "web:80", "4")?, ["w1", "w2"]);
    assert_eq!(ask("h2", "web.demo:80", "4")?, ["w1", "w2"]);
    Ok(())
}

/// What the command sees of itself.
fn own_view(lab: &Lab) -> Result<()> {
    let gateway = lab.network("demo")?.subnets[0].gateway.clone();
    let out = run(
        lab,
        "h1",
        "--hostname db.example --ip 10.1.0.77 --ifname mesh0 --env A=x=y --user nobody --workdir /usr",
        &[
            "sh",
            "-c",
            "hostname; echo $A $USER; id -un; pwd; ls -m /sys/class/net; grep -c nobody /etc/passwd; cat /etc/resolv.conf /etc/hosts; grep hosts: /etc/nsswitch.conf",
        ],
    )?
    .ok()?;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines[..6],
        ["db.example", "x=y nobody", "nobody", "/usr", "lo, mesh0", "1"],
        "{out}"
    );
    assert!(out.contains(&format!("\nnameserver {gateway}\n")), "{out}");
    assert!(out.contains("\n10.1.0.77 db.example db\n"), "{out}");
    assert!(out.ends_with("hosts: files dns\n") || !fs::exists("/etc/nsswitch.conf")?, "{out}");
    Ok(())
}

/// An interface in each of two networks, and names of both.
fn two_networks(lab: &Lab) -> Result<()> {
    lab.ctl("h1", "network create back")?.ok()?;
    lab.start("h2", "store", "--network back", "meshd-echo --http 80")?;
    let both = Running::start(
        lab,
        "h1",
        "--network back --name both --alias alike",
        &["meshd-echo", "--http", "80"],
    )?;
    let asked = |network: &str| {
        let ask = format!("meshctl run --network {network} -- meshd-echo client http alike:80 --timeout 2");
        let seen = until(10, &format!("a command in {network} to reach one in both"), || {
            Ok(lab.at(Place::Host("h2"), &ask)?.status == 0)
        });
        seen.map_err(|e| e.to_string())
    };
    asked("demo")?;
    asked("back")?;
    both.signal(Signal::SIGTERM)?;
    assert_eq!(both.ended()?, (143, String::new()));
    let script = "ls -m /sys/class/net; ip route; meshd-echo client http store:80 && meshd-echo client http w2:80";
    let out = run(lab, "h1", "--network back", &["sh", "-c", script])?.ok()?;
    let gateway = lab.network("demo")?.subnets[0].gateway.clone();
    assert!(
        out.starts_with("eth0, eth1, lo\n") && out.contains(&format!("default via {gateway} dev eth0")),
        "{out}"
    );
    assert!(out.contains("\"store\"") && out.contains("\"w2\""), "{out}");
    lab.lab(&["stop", "store"])?.ok()?;
    assert!(lab.network("back")?.endpoints.is_empty(), "what has ended is detached");
    lab.ctl("h1", "network rm back")?.ok().map(drop)
}

fn streams(lab: &Lab) -> Result<()> {
    let out = run(lab, "h1", "", &["seq", "1", "20000"])?.ok()?;
    assert!(
        out.lines().map(str::parse::<u32>).eq((1..=20000).map(Ok)),
        "{} lines",
        out.lines().count()
    );
    let mut cat = Running::start(lab, "h1", "", &["sh", "-c", "cat; echo to stderr >&2"])?;
    cat.0.stdin.take().ok_or("no input")?.write_all(b"in and out\n")?;
    assert_eq!(cat.line()?, "in and out\n");
    assert_eq!(cat.ended()?, (0, "to stderr\n".to_owned()));
    Ok(())
}

/// Exit codes, and what the command leaves behind.
fn ends(lab: &Lab) -> Result<()> {
    for (command, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("sleep 1000 & setsid sleep 1000 & exit 3", 3),
    ] {
        let done = run(lab, "h1", "", &["sh", "-c", command])?;
        assert_eq!((done.status, done.err.as_str()), (code, ""), "{command}");
        assert_eq!(cgroups()?.len(), 2, "{command}: {:?}", cgroups()?);
    }
    run(lab, "h1", "", &["no-such-command"])?.refused(127, &["no-such-command", "No such file"])?;
    run(lab, "h1", "", &["/etc/passwd"])?.refused(126, &["/etc/passwd", "denied"])
}

fn refusals(lab: &Lab) -> Result<()> {
    let held: Vec<_> = names(lab)?;
    for (options, code, said) in [
        ("--name w1", 4, "w1"),
        ("--ip 192.0.2.1", 1, "192.0.2.1"),
        ("--service none", 3, "none"),
        ("--network none", 3, "none"),
        ("--network demo", 4, "demo"),
        ("--name a_b", 2, "a_b"),
        ("--hostname a..b", 2, "empty"),
        ("--ifname way-too-long-name", 2, "interface name"),
        ("--ifname lo", 2, "lo"),
        ("--env x", 2, "NAME=VALUE"),
        ("--user no-such-user", 3, "no-such-user"),
        ("--user 4294900000", 2, "4294900000"),
        ("--workdir /no/such/dir", 3, "/no/such/dir"),
    ] {
        run(lab, "h1", options, &["true"])?.refused(code, &[said])?;
    }
    lab.at(Place::Host("h1"), "meshctl run --network none true")?
        .refused(3, &["none"])?;
    lab.at(Place::Host("h1"), "meshctl run --network demo")?.refused(2, &["cmd"])?;
    lab.at(Place::Host("h1"), "meshctl run --network demo --socket /nonexistent true")?
        .refused(1, &["/nonexistent"])?;
    assert_eq!(names(lab)?, held);
    Ok(())
}

fn signals(lab: &Lab) -> Result<()> {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH] {
        let trap = format!(
            "trap 'echo got; exit 5' {}; echo up; sleep 1000 & while :; do wait; done",
            signal.as_str()
        );
        // A shell cannot trap what was ignored when it began, as nohup has it.
        let mut running = Running::start(lab, "h1", "", &["env", "--default-signal", "bash", "-c", &trap])?;
        assert_eq!(running.line()?, "up\n");
        running.signal(signal)?;
        assert_eq!(running.line()?, "got\n", "{signal}");
        assert_eq!(running.ended()?, (5, String::new()), "{signal}");
    }
    // One that the command does not handle ends it, and is told as a shell tells it.
    let mut running = Running::start(lab, "h1", "", &["sh", "-c", "echo up; exec sleep 1000"])?;
    assert_eq!(running.line()?, "up\n");
    running.signal(SIGINT)?;
    assert_eq!(running.ended()?, (130, String::new()));
    Ok(())
}

//! The lab as a value: up when made, down when dropped, one at a time on a machine.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::{self, File},
    process::{Command, Output},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    Connection, Held, Place, bounded,
    place::{lab_dir, script},
    until,
    wait::patience,
};

/// What helpers and scenarios give.
pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Seconds after which a command is ended and counts as failed.
const LIMIT: u64 = 240;
/// Whose holder has the machine's lab.
const TURNS: &str = "/run/lock";
/// Lines of every host's log that a failing scenario shows.
const TAIL: usize = 60;

/// The hosts, from when they are up until this is dropped.
pub struct Lab {
    /// Held for the lab's life: other scenarios wait for it.
    _turn: File,
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    /// The command line.
    pub command: String,
    /// Exit status; -1 after a signal.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// The answer of a meshd-echo.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reply {
    /// The container that answered.
    pub hostname: String,
    /// The peer's address as it saw it.
    pub client: String,
    /// The peer's port as it saw it.
    pub client_port: u16,
    /// Its own address and port.
    pub local: String,
}

/// The containers of [`Lab::backends`].
pub const BACKENDS: [&str; 3] = ["w1", "w2", "w3"];

/// What `network inspect` says, as far as scenarios read it.
#[derive(Clone, Debug, Deserialize)]
pub struct Network {
    /// Bytes.
    pub mtu: u32,
    /// Its ranges.
    pub subnets: Vec<Subnet>,
    /// What is attached.
    pub endpoints: Vec<Endpoint>,
}

/// A range of a network.
#[derive(Clone, Debug, Deserialize)]
pub struct Subnet {
    /// In CIDR notation.
    pub subnet: String,
    /// Every host's address in it.
    pub gateway: String,
}

/// An endpoint of a network.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoint {
    /// Its name: the container's.
    pub name: String,
    /// Host name of its node.
    pub node: String,
    /// Its address, without a prefix length.
    pub ip: String,
    /// Its IPv6 address in a network that has both.
    pub ip6: Option<String>,
}

impl Done {
    fn from(command: String, output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            command,
            status: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The standard output of a command that succeeded.
    pub fn ok(self) -> Result<String> {
        if self.status == 0 {
            Ok(self.out)
        } else {
            Err(format!("`{}` exited with {}: {}{}", self.command, self.status, self.out, self.err).into())
        }
    }

    /// That a host is in a cluster, by `init` or `join`. On a busy machine these may end before its network is up, and
    /// say so; it is tried again by itself.
    pub fn joined(self) -> Result<()> {
        if self.err.contains("in the cluster, but its network is not up yet") {
            return Ok(());
        }
        self.ok().map(drop)
    }

    /// A refusal as CONTRACT.md wants it: this exit status and one line on standard error, with every needle.
    pub fn refused(self, status: i32, needles: &[&str]) -> Result<()> {
        let wrong = |why: String| {
            Err(format!(
                "`{}` {why}; exit {}, stdout {:?}, stderr {:?}",
                self.command, self.status, self.out, self.err
            )
            .into())
        };
        if self.status != status {
            return wrong(format!("should exit with {status}"));
        }
        if self.err.trim_end().lines().count() != 1 {
            return wrong("should say one line".into());
        }
        let said = self.err.to_lowercase();
        match needles.iter().find(|n| !said.contains(&n.to_lowercase())) {
            Some(needle) => wrong(format!("should mention {needle:?}")),
            None => Ok(()),
        }
    }
}

impl Lab {
    /// Three hosts, or what `options` of `scripts/lab up` say. Clears a lab that was left up.
    pub fn up(options: &str) -> Result<Self> {
        // In a directory that what has namespaces of its own has for itself, and that `scripts/lab` does not lock.
        fs::create_dir_all(TURNS)?;
        let turn = File::open(TURNS)?;
        turn.lock()?;
        let lab = Self { _turn: turn };
        lab.lab(&["down"])?.ok()?;
        let mut args = vec!["up"];
        args.extend(options.split_whitespace());
        // It may have to build first.
        lab.lab_within(1800, &args)?.ok()?;
        Ok(lab)
    }

    /// `scripts/lab ARGS…`
    pub fn lab(&self, args: &[&str]) -> Result<Done> {
        self.lab_within(LIMIT, args)
    }

    /// `scripts/lab ARGS…` that may take so many seconds.
    pub fn lab_within(&self, seconds: u64, args: &[&str]) -> Result<Done> {
        run(seconds, Command::new(script()).args(args), args.join(" "))
    }

    /// A command somewhere. Its words are split at spaces.
    pub fn at(&self, place: Place, command: &str) -> Result<Done> {
        self.argv(place, &command.split_whitespace().collect::<Vec<_>>())
    }

    /// A command somewhere, word by word.
    pub fn argv(&self, place: Place, command: &[&str]) -> Result<Done> {
        run(
            LIMIT,
            &mut place.command(command)?,
            format!("{} {}", place.name(), command.join(" ")),
        )
    }

    /// A command somewhere, for the caller to start: the process becomes the command itself, so that what it
    /// is sent arrives there.
    pub fn command(&self, place: Place, command: &[&str]) -> Result<Command> {
        place.command(command)
    }

    /// `meshctl COMMAND` on a host; words are split at spaces.
    pub fn ctl(&self, host: &str, command: &str) -> Result<Done> {
        self.at(Place::Host(host), &format!("meshctl {command}"))
    }

    /// `meshctl COMMAND -o json` on a host, read.
    pub fn json(&self, host: &str, command: &str) -> Result<Value> {
        let out = self.ctl(host, &format!("{command} -o json"))?.ok()?;
        serde_json::from_str(&out).map_err(|e| format!("`meshctl {command} -o json` does not print JSON ({e}): {out}").into())
    }

    /// `network inspect`.
    pub fn network(&self, name: &str) -> Result<Network> {
        let mut seen = self.json("h1", &format!("network inspect {name}"))?;
        if let Value::Array(list) = &mut seen {
            seen = list.pop().ok_or("network inspect printed an empty list")?;
        }
        serde_json::from_value(seen.clone()).map_err(|e| format!("network inspect {name}: {e}: {seen}").into())
    }

    /// An endpoint of a network, by its name.
    pub fn endpoint(&self, network: &str, name: &str) -> Result<Endpoint> {
        let found = self.network(network)?.endpoints.into_iter().find(|e| e.name == name);
        found.ok_or_else(|| format!("no endpoint {name} in {network}").into())
    }

    /// [`BACKENDS`], each on a host of its own from h1 on, behind a service of a network; known to all three.
    pub fn backends(&self, network: &str, service: &str) -> Result<()> {
        let hosts = ["h1", "h2", "h3"];
        for (name, host) in BACKENDS.iter().zip(hosts) {
            self.echo(host, name, &format!("--network {network} --service {service}"))?;
        }
        self.settled(&hosts)
    }

    /// Waits until each of `hosts` has brought its kernel to what the first of them says that there is: an endpoint
    /// works on its own host when it is attached, and the others hear of it a moment later.
    pub fn settled(&self, hosts: &[&str]) -> Result<()> {
        let first = hosts.first().ok_or("no hosts")?;
        let mut latest = 0;
        for list in ["network ls", "service ls", "endpoint ls"] {
            let objects = self.json(first, list)?;
            let versions = objects.as_array().into_iter().flatten().filter_map(|o| o["version"].as_u64());
            latest = versions.fold(latest, u64::max);
        }
        for host in hosts {
            until(30, &format!("{host} to have come to revision {latest}"), || {
                Ok(self.json(host, "status")?["applied_generation"].as_u64() >= Some(latest))
            })?;
        }
        Ok(())
    }

    /// Waits until a manager takes a change that `host` asks for: a network of that name. One that nobody answered for
    /// may have been made all the same.
    pub fn takes_a_change(&self, host: &str, network: &str) -> Result<()> {
        until(30, &format!("a manager to make {network} for {host}"), || {
            let made = self.ctl(host, &format!("network create {network}"))?.status == 0;
            Ok(made || self.ctl(host, &format!("network inspect {network}"))?.status == 0)
        })
    }

    /// A container that runs nothing.
    pub fn container(&self, host: &str, name: &str, options: &str) -> Result<()> {
        self.start(host, name, options, "-")
    }

    /// A container that runs `command`.
    pub fn start(&self, host: &str, name: &str, options: &str, command: &str) -> Result<()> {
        let words = [&["run", host, name], &*words(options), &["--"], &*words(command)].concat();
        self.lab(&words)?.ok().map(drop)
    }

    /// A container with meshd-echo on HTTP 80, TCP 7 and UDP 7, from when it answers.
    pub fn echo(&self, host: &str, name: &str, options: &str) -> Result<()> {
        self.start(host, name, options, "meshd-echo --http 80 --tcp 7 --udp 7")?;
        // The UDP port is the last that it opens.
        until(10, "meshd-echo to listen", || {
            let asked = self.at(Place::In(name), "meshd-echo client udp 127.0.0.1:7 --timeout 0.5")?;
            Ok(asked.status == 0)
        })
    }

    /// `count` requests over HTTP, each on a connection of its own.
    pub fn http(&self, from: Place, to: &str, count: usize) -> Result<Vec<Reply>> {
        replies(self.at(from, &format!("meshd-echo client http {to} --count {count}"))?)
    }

    /// `count` datagrams, each from a socket of its own.
    pub fn udp(&self, from: Place, to: &str, count: usize) -> Result<Vec<Reply>> {
        replies(self.at(from, &format!("meshd-echo client udp {to} --count {count}"))?)
    }

    /// A TCP connection that stays open.
    pub fn connect(&self, from: Place, to: &str) -> Result<Connection> {
        Connection::open(from.command(&["meshd-echo", "client", "tcp", to])?)
    }

    /// As [`Self::connect`]; every answer has so many seconds.
    pub fn connect_for(&self, seconds: u32, from: Place, to: &str) -> Result<Connection> {
        Connection::open(from.command(&["meshd-echo", "client", "tcp", to, "--timeout", &seconds.to_string()])?)
    }

    /// `connections` TCP connections, to each of `to` in turn, that all stay busy.
    pub fn hold(&self, from: Place, to: &[&str], connections: usize) -> Result<Held> {
        let connections = connections.to_string();
        let words = [&["meshd-echo", "client", "hold", "--connections", &connections][..], to].concat();
        Held::open(from.command(&words)?)
    }

    /// What `endpoint ls` says of an endpoint's state; nothing of one that is not there.
    pub fn state(&self, name: &str) -> Result<String> {
        let all = self.json("h1", "endpoint ls")?;
        let list = all.as_array().ok_or("endpoint ls printed no list")?;
        let found = list.iter().find(|e| e["name"] == name);
        Ok(found.and_then(|e| e["state"].as_str()).unwrap_or_default().to_owned())
    }

    /// Waits until an endpoint is in a state.
    pub fn becomes(&self, name: &str, wanted: &str) -> Result<()> {
        until(15, &format!("{name} to be {wanted}"), || Ok(self.state(name)? == wanted))
    }

    /// Waits until every one of `hosts` sends new flows for `port` to exactly `backends`.
    pub fn balanced(&self, hosts: &[&str], port: u16, backends: &[&str]) -> Result<()> {
        for host in hosts {
            until(15, &format!("{host} to balance port {port} over {backends:?}"), || {
                let Ok(seen) = self.http(Place::Client, &format!("{}:{port}", address(host)), 2 * backends.len()) else {
                    return Ok(false);
                };
                Ok(tally(&seen).keys().map(String::as_str).eq(backends.iter().copied()))
            })?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    /// Shows the logs (the test harness drops them if the scenario passed), and takes everything down.
    fn drop(&mut self) {
        for host in ["h1", "h2", "h3", "h4"] {
            if let Ok(log) = fs::read(lab_dir().join(host).join("log")) {
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<_> = log.lines().collect();
                println!("--- end of {host}'s log\n{}", lines[lines.len().saturating_sub(TAIL)..].join("\n"));
            }
        }
        if std::env::var_os("MESH_LAB_KEEP").is_some() {
            println!("MESH_LAB_KEEP: the lab stays up");
        } else if let Err(e) = self.lab(&["down"]).and_then(Done::ok) {
            println!("{e}");
        }
    }
}

/// Whose containers the lab's are: `netns` (plain network namespaces), `docker` or `containerd`.
pub fn runtime() -> String {
    std::env::var("MESH_LAB_RUNTIME").unwrap_or_else(|_| "netns".into())
}

/// The underlay address of a host of the lab.
pub fn address(host: &str) -> String {
    let n: u8 = host.trim_start_matches('h').parse().unwrap_or(0);
    format!("192.168.77.{}", 10 + n)
}

/// The IPv6 underlay address of a host of the lab.
pub fn address6(host: &str) -> String {
    let n: u8 = host.trim_start_matches('h').parse().unwrap_or(0);
    format!("fd77::{}", 10 + n)
}

/// How many answers each container gave, by name.
pub fn tally(replies: &[Reply]) -> BTreeMap<String, usize> {
    let mut by_name = BTreeMap::new();
    for reply in replies {
        *by_name.entry(reply.hostname.clone()).or_default() += 1;
    }
    by_name
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn run(limit: u64, command: &mut Command, name: String) -> Result<Done> {
    let output = bounded::output(limit * patience()?, command)?;
    Ok(Done::from(format!("scripts/lab {name}"), output))
}

fn replies(done: Done) -> Result<Vec<Reply>> {
    let out = done.ok()?;
    out.lines()
        .map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}").into()))
        .collect()
}

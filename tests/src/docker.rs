//! Real dockerds, one per lab host.

use std::{fs, path::Path, process::Command};

use crate::{Done, Lab, Place, Result, image, lab_dir, until};

/// Seconds that a container may take to be listed by meshctl after docker has started it.
const NOTICED: u64 = 30;

/// Seconds that a dockerd may take to answer; `scripts/lab dockerd` gives up before.
const STARTED: u64 = 120;

/// Docker on the lab's hosts. `scripts/lab down` ends it, with its containers.
pub struct Docker<'a> {
    lab: &'a Lab,
}

impl<'a> Docker<'a> {
    /// Starts one on each of `hosts`, with the image `lab`.
    pub fn up(lab: &'a Lab, hosts: &[&str]) -> Result<Self> {
        let docker = Self { lab };
        let image = image()?;
        for host in hosts {
            docker.start(host, &[])?;
            let image = image.to_str().ok_or("the image's path is no text")?;
            docker.at(host, &format!("import {image} lab"))?.ok()?;
        }
        fs::remove_file(image)?;
        Ok(docker)
    }

    /// Dockers that somebody else has started, where `scripts/lab exec` looks for them.
    pub fn started(lab: &'a Lab) -> Self {
        Self { lab }
    }

    /// Starts the daemon of a host (again).
    pub fn start(&self, host: &str, args: &[&str]) -> Result<()> {
        self.lab.lab_within(STARTED, &[&["dockerd", host], args].concat())?.ok().map(drop)
    }

    /// Ends the daemon of a host with that signal, and waits until it is gone.
    pub fn end(&self, host: &str, signal: &str) -> Result<()> {
        let pid = fs::read_to_string(lab_dir().join(host).join("docker/dockerd.pid"))?;
        let pid = pid.trim();
        Command::new("kill").args([signal, pid]).status()?;
        until(
            20,
            "dockerd to end",
            || Ok(!Path::new("/proc").join(pid).exists() || is_zombie(pid)),
        )
    }

    /// `docker ARGS` on a host; words are split at spaces.
    pub fn at(&self, host: &str, args: &str) -> Result<Done> {
        self.lab.at(Place::Host(host), &format!("docker {args}"))
    }

    /// A container of the image, in the background, from when meshctl lists it as ready under its name, and it answers
    /// if it is one that does.
    pub fn run(&self, host: &str, name: &str, options: &str, command: &str) -> Result<()> {
        self.at(host, &format!("run -d --name {name} --hostname {name} {options} lab {command}"))?
            .ok()?;
        self.listed(name)?;
        if command.contains("--http 80") {
            self.serves(host, name)?;
        }
        Ok(())
    }

    /// Waits until a container answers itself over HTTP: it runs before it listens.
    pub fn serves(&self, host: &str, name: &str) -> Result<()> {
        until(20, &format!("{name} to listen"), || {
            let asked = self.at(host, &format!("exec {name} meshd-echo client http 127.0.0.1:80 --timeout 1"))?;
            Ok(asked.status == 0)
        })
    }

    /// Waits until an endpoint of that name is ready.
    pub fn listed(&self, name: &str) -> Result<()> {
        until(NOTICED, &format!("{name} to be listed as ready"), || {
            let all = self.lab.json("h1", "endpoint ls")?;
            let list = all.as_array().ok_or("endpoint ls printed no list")?;
            Ok(list.iter().any(|e| e["name"] == name && e["state"] == "ready"))
        })
    }

    /// Addresses of the endpoints of all networks by name.
    pub fn addresses(&self) -> Result<Vec<(String, String)>> {
        let all = self.lab.json("h1", "endpoint ls")?;
        let list = all.as_array().ok_or("endpoint ls printed no list")?;
        let text = |e: &serde_json::Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
        Ok(list.iter().map(|e| (text(e, "name"), text(e, "ip"))).collect())
    }

    /// Containers of a host that run and are attached, by name, with the address that docker knows.
    pub fn running(&self, host: &str) -> Result<Vec<(String, String)>> {
        let ids = self.at(host, "ps -q --no-trunc")?.ok()?;
        if ids.trim().is_empty() {
            return Ok(Vec::new());
        }
        let format = "{{.Name}}{{range.NetworkSettings.Networks}}={{.IPAddress}}{{end}}";
        let ids = ids.split_whitespace().collect::<Vec<_>>().join(" ");
        let told = self.at(host, &format!("inspect -f {format} {ids}"))?.ok()?;
        let pair = |line: &str| {
            // One that a killed dockerd had not written down runs on without a network, as far as Docker knows.
            let (name, ip) = line.trim_start_matches('/').split_once('=').filter(|(_, ip)| !ip.is_empty())?;
            Some((name.to_owned(), ip.to_owned()))
        };
        Ok(told.lines().filter_map(pair).collect())
    }

    /// Makes docker's network for the mesh network of that name.
    pub fn network(&self, host: &str, name: &str) -> Result<()> {
        let subnet = self.lab.network(name)?.subnets.remove(0).subnet;
        let options = format!("-d mesh --ipam-driver mesh --ipam-opt mesh.network={name} --subnet {subnet}");
        self.at(host, &format!("network create {options} {name}"))?.ok().map(drop)
    }
}

/// Dead, and nobody has asked how it ended. One whose other threads are still ending holds its files.
fn is_zombie(pid: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads <= 1
        && fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

//! Runs the program `nft`, within the right network namespace.

use std::{
    io::{ErrorKind, Write},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use super::ruleset;
use crate::{error::Error, netns, netns::Netns};

/// `nft` in one network namespace.
#[derive(Debug)]
pub(super) struct Program(Arc<Netns>);

impl Program {
    pub(super) fn new(netns: Arc<Netns>) -> Self {
        Self(netns)
    }

    /// Loads a file of commands, all of it or nothing.
    pub(super) async fn load(&self, request: &'static str, text: String) -> Result<(), Error> {
        self.0.run(move || load(request, &text)).await?
    }

    /// The table as JSON; `None` when there is none.
    pub(super) async fn list(&self) -> Result<Option<String>, Error> {
        self.0.run(list).await?
    }

    /// The chain FORWARD of a family of iptables as JSON; `None` when there is none.
    pub(super) async fn list_forward(&self, family: &'static str) -> Result<Option<String>, Error> {
        let request = "list the chain FORWARD";
        self.0
            .run(move || listed(request, &["-j", "list", "chain", family, "filter", "FORWARD"]))
            .await?
    }

    /// Loads the commands in a namespace that nobody uses, and lists the table there.
    pub(super) async fn try_out(text: String) -> Result<String, Error> {
        let request = "try out the table inet meshd";
        let tried = netns::run_in_scratch(move || {
            load(request, &text)?;
            list()
        });
        tried.await??.ok_or_else(|| Error::Nft {
            request: request.into(),
            stderr: "the table was not made".into(),
        })
    }
}

fn load(request: &str, text: &str) -> Result<(), Error> {
    let output = run(request, &["-f", "-"], text)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(request, &output))
    }
}

fn list() -> Result<Option<String>, Error> {
    listed("list the table inet meshd", &["-j", "list", "table", "inet", ruleset::TABLE])
}

fn listed(request: &str, args: &[&str]) -> Result<Option<String>, Error> {
    let output = run(request, args, "")?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let error = failed(request, &output);
    match &error {
        // The locale is C, and this the text of ENOENT in it.
        Error::Nft { stderr, .. } if stderr.contains("No such file or directory") => Ok(None),
        _ => Err(error),
    }
}

/// The first lines that it printed: it repeats its input after each.
fn failed(request: &str, output: &Output) -> Error {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = stderr.lines().filter(|l| l.contains("rror")).take(3).collect::<Vec<_>>().join("; ");
    Error::Nft {
        request: request.into(),
        stderr: if stderr.is_empty() { output.status.to_string() } else { stderr },
    }
}

fn run(request: &str, args: &[&str], input: &str) -> Result<Output, Error> {
    let io = || Error::io(format!("{request} with nft"));
    // A service's PATH may lack the directory where distributions put it.
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            child => child.map_err(io())?,
        };
        // It reads all of its input before it prints anything. Should it end early, its status tells.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().map_err(io())?;
        return match written {
            Err(e) if output.status.success() => Err(io()(e)),
            _ => Ok(output),
        };
    }
    Err(Error::NftMissing)
}

//! `meshctl run`: a command in a network, without a container runtime.
//!
//! Three processes work together. This one asks meshd for the endpoint, passes signals on, and ends
//! with the command's exit code. It starts meshctl twice more ([`entered`]): [`init`] makes the
//! namespaces, waits for the endpoint, and becomes the command; [`janitor`] ends what the command
//! leaves in its cgroup, also when this process was killed.

mod cgroup;
mod child;
mod error;
mod files;
mod init;
mod janitor;
mod setup;
mod signals;

use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, RandomState},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use mesh_api::rest::{DisconnectRequest, EndpointView, paths};
use mesh_core::{Refusal, spec::check_name};
use serde::Deserialize;
use serde_json::Value;

pub use error::Error;

use self::{
    child::Child,
    janitor::Janitor,
    setup::{Identity, Setup},
    signals::Signals,
};
use crate::{
    args::run::Run,
    failure::{Failure, say},
    session::Session,
};

/// First argument of the processes that this one starts.
const REENTRY: &str = "run-init";
/// How long meshd may take to detach, and leftovers to end, before that is only told.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// The parts of other processes than meshctl's own; `None` for an ordinary command line.
pub fn entered(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if args.next()? != REENTRY {
        return None;
    }
    Some(match args.next()?.to_str()? {
        "init" => init::main(args),
        "janitor" => janitor::main(args),
        _ => return None,
    })
}

/// Carries `meshctl run` out; returns when the command has ended, and nothing of it is left.
pub async fn run(session: &Session, args: Run) -> Result<(), Failure> {
    let wish = Wish::of(&args)?;
    let mut signals = Signals::take()?;
    let janitor = Janitor::start()?;
    let mut attached = Vec::new();
    let outcome = carry_out(session, &args, &wish, &mut signals, &janitor, &mut attached).await;
    if !janitor.finish(&mut signals, LAST_STEPS).await {
        say("processes that the command left behind do not end: they are killed, and their cgroup removed, when they can be");
    }
    detach(session, attached).await;
    match outcome {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::Reported(code)),
        Err(failure) => Err(failure),
    }
}

/// What follows from the arguments, checked before anything is made.
struct Wish {
    name: String,
    hostname: String,
    identity: Option<Identity>,
}

impl Wish {
    fn of(args: &Run) -> Result<Self, Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Refusal::other("meshctl run makes namespaces and a cgroup: run it as root").into());
        }
        args.attach.check()?;
        let first = |hostname: &String| hostname.split('.').next().unwrap_or_default().to_owned();
        let name = (args.name.clone())
            .or_else(|| args.hostname.as_ref().map(first))
            .unwrap_or_else(|| made_up(args.command.first().map(OsString::as_os_str).unwrap_or_default()));
        check_name("endpoint", &name)?;
        if let Some(dir) = args.workdir.as_deref().filter(|d| !d.is_dir()) {
            return Err(Refusal::not_found(format!("no directory {}: give --workdir one that exists", dir.display())).into());
        }
        Ok(Self {
            hostname: args.hostname.clone().unwrap_or_else(|| name.clone()),
            name,
            identity: args.user.as_deref().map(Identity::find).transpose()?,
        })
    }
}

/// A name for what has none: the program's, and a number that tells it from others of the same program.
fn made_up(program: &OsStr) -> String {
    let base = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let plain: String = (base.chars().take(40))
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let plain = plain.trim_matches('-');
    // Keys are random in each process.
    let number = RandomState::new().hash_one(std::process::id()) & 0xff_ffff;
    format!("{}-{number:06x}", if plain.is_empty() { "run" } else { plain })
}

/// From the new process to the command's exit code. `attached` tells what is to be detached again: network and
/// container.
async fn carry_out(
    session: &Session,
    args: &Run,
    wish: &Wish,
    signals: &mut Signals,
    janitor: &Janitor,
    attached: &mut Vec<(String, String)>,
) -> Result<u8, Failure> {
    let mut child = Child::start(args, wish.identity.as_ref(), janitor.cgroup())?;
    let ready = child.ready();
    match child.until(signals, ready).await? {
        Ok(ready) => ready.map_err(Error::io("hear from the new process"))?,
        Err(code) => return Ok(code),
    }
    let container = format!("pid:{}", child.pid());
    let mut endpoints = Vec::new();
    for network in &args.networks {
        let request = match endpoints.is_empty() {
            true => (args.attach.clone()).request(container.clone(), Some(wish.name.clone()), Some(args.ifname.clone())),
            false => (args.attach.elsewhere()).request(container.clone(), Some(wish.name.clone()), None),
        };
        // Known before it is asked for: an answer that nobody waits for may still come true.
        attached.push((network.clone(), container.clone()));
        let path = paths::at(paths::NETWORK_CONNECT, network);
        let value: Value = match child.until(signals, session.post(&path, &request)).await? {
            Ok(answer) => answer.inspect_err(|_| drop(attached.pop()))?,
            Err(code) => return Ok(code),
        };
        endpoints.push(EndpointView::deserialize(&value)?);
    }
    let setup = Setup::of(&wish.hostname, wish.identity.clone(), &endpoints)
        .ok_or_else(|| Refusal::other("meshd did not say the network's gateway: are meshd and this program of the same release?"))?;
    Ok(child.begin(&setup)?.ended(signals).await?)
}

/// Detaches at once: the command has ended. meshd would notice by itself that the namespace is gone.
async fn detach(session: &Session, attached: Vec<(String, String)>) {
    for (network, container) in attached {
        let request = DisconnectRequest { container, force: true };
        let path = paths::at(paths::NETWORK_DISCONNECT, &network);
        match tokio::time::timeout(LAST_STEPS, session.post(&path, &request)).await {
            Ok(Ok(_)) => {}
            // meshd was first.
            Ok(Err(failure)) if failure.code() == 3 => {}
            Ok(Err(failure)) => say(&format!(
                "meshd detaches the endpoint later, by itself: {}",
                failure.line().unwrap_or_default()
            )),
            Err(_) => say("meshd detaches the endpoint later, by itself: it did not answer in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_name_is_a_label() {
        for program in ["nginx", "/usr/bin/node.js", "", "/", "..", "Ünicode", &"x".repeat(300), "-a-"] {
            let name = made_up(OsStr::new(program));
            assert!(check_name("endpoint", &name).is_ok(), "{program:?} gives {name:?}");
        }
        assert!(made_up(OsStr::new("/bin/Web_1")).starts_with("web-1-"));
        assert_ne!(made_up(OsStr::new("a")), made_up(OsStr::new("a")));
    }

    #[test]
    fn ordinary_command_lines_are_not_taken() {
        for line in [&[][..], &["status"], &["run", "init"], &["run-init"], &["run-init", "x"]] {
            assert!(entered(line.iter().map(OsString::from)).is_none(), "{line:?}");
        }
    }
}

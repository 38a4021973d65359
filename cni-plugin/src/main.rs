//! meshd-cni: what container runtimes run to attach a container to meshd's networks (CNI 0.3.1 to 1.1.0).
//!
//! A runtime says in the environment what to do ([`call`]) and on standard input with which settings
//! ([`config`]); [`verbs`] does it by asking the host's meshd ([`meshd`]), and what comes of it, or
//! why nothing does ([`failure`]), is JSON on standard output. Started by hand it installs itself
//! ([`install`]). Reference: CNI specification 1.1.0 (SPEC.md of containernetworking/cni).
//!
//! There is no state but that of the cluster: an endpoint's labels say whose it is. Nothing waits
//! without a bound.

mod call;
mod config;
mod failure;
mod http;
mod install;
mod meshd;
mod naming;
mod result;
mod turn;
mod verbs;
mod version;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde_json::Value;

use crate::version::Version;

fn main() -> ExitCode {
    // Runtimes give no arguments, people always do.
    if std::env::args_os().len() > 1 {
        return install::run();
    }
    let (version, outcome) = verbs::run();
    let (document, code) = match &outcome {
        Ok(document) => (document.clone(), ExitCode::SUCCESS),
        Err(failure) => {
            note(&failure.one_line());
            (Some(failure.document(version.unwrap_or(Version::NEWEST))), ExitCode::FAILURE)
        }
    };
    match document.map_or(Ok(()), |d| print(&d)) {
        Ok(()) => code,
        Err(e) => {
            note(&format!("cannot write the result: {e}"));
            ExitCode::FAILURE
        }
    }
}

fn print(document: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{document:#}")?;
    out.flush()
}

/// One line on stderr, which runtimes log. Nothing can be done about one that takes no more.
pub fn note(text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = writeln!(io::stderr().lock(), "meshd-cni: {text}");
}

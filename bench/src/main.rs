//! `meshd-scale`, a part of `scripts/bench`: makes a large cluster by the real state machine, and measures
//! what one host does with it.

mod cluster;
mod kernel;
mod ledger;
mod maps;
mod space;
mod times;

use std::process::ExitCode;

use clap::Parser;

/// Whatever went wrong, for whoever runs the bench.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures one host of a large cluster.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Brings a host's kernel to all of a cluster, then to some changes of it, in namespaces of its own.
    Kernel(kernel::Args),
    /// Adds a large cluster to the ledger of a meshd that does not run: with no manager to be had it goes on
    /// from there.
    Ledger(ledger::Args),
    /// The memory of the BPF maps that a process has open, in bytes, by their names.
    Maps {
        /// The process.
        pid: u32,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Kernel(args) => kernel::run(&args),
        Command::Ledger(args) => ledger::grow(&args),
        Command::Maps { pid } => maps::of(pid).map(|m| m.json()),
    };
    match done {
        Ok(out) => {
            println!("{out}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("meshd-scale: {}", chain(&*e));
            ExitCode::FAILURE
        }
    }
}

/// An error with its sources.
fn chain(e: &dyn std::error::Error) -> String {
    std::iter::successors(e.source(), |e| e.source()).fold(e.to_string(), |text, e| format!("{text}: {e}"))
}

//! meshctl: what people and scripts tell a host's meshd.
//!
//! [`args`] says what can be typed, [`run`] does it over the local socket, [`render`] prints it.
//! Nothing is decided here that meshd does not decide again.

mod args;
mod failure;
mod ports;
mod render;
mod run;
mod session;
mod times;
mod values;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything that starts a thread.
    if let Some(code) = run::container::entered(std::env::args_os().skip(1)) {
        return code;
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return failure::usage(&e),
    };
    // One thread is plenty: one request at a time.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            failure::say(&format!("cannot start: {e}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

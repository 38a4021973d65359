//! meshd: the network agent of a host. Arguments, logging, exit code; the wiring is in [`run`].

mod app;
mod attachments;
mod ca;
mod config;
mod consul;
mod cri;
mod detach;
mod docker;
mod doctor;
mod drain;
mod events;
mod execute;
mod founding;
mod ledger;
mod local_api;
mod membership;
mod metrics;
mod promote;
mod reasons;
mod reconcile;
mod run;
mod sandbox;
mod segment;
mod session;
mod tcp;
mod traffic;

use std::{path::Path, process::ExitCode};

use clap::{CommandFactory, Parser};
use config::{Cli, Command, Config, LogFormat, Logging};

/// A pass over a large cluster needs for moments several times what stays. The C library's allocator keeps
/// most of that, in pieces between what is in use; this one gives it back to the kernel, by a thread of its
/// own, as `.cargo/config.toml` has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => {
            // Help and version: a closed pipe is the reader's choice.
            drop(e.print());
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default();
            eprintln!("meshd: {} (see meshd --help)", first.trim_start_matches("error: "));
            return ExitCode::from(2);
        }
    };
    let Cli { command, flags } = cli;
    let load = |flags| Config::load(flags).map_err(|e| Exit::from(e).with_code(2));
    let result = match command {
        Some(Command::Man { dir }) => man(&dir).map_err(|e| Exit::new(format!("cannot write to {}: {e}", dir.display()))),
        // It has none of the other settings: its meshd may have them from anywhere.
        Some(Command::DockerFront { plugin, to }) => log(&Logging::of(&flags, &config::Flags::default()))
            .and_then(|()| front_runtime())
            .and_then(|rt| rt.block_on(docker::front::process::run(plugin, to))),
        Some(Command::Cleanup { force }) => {
            load(flags).and_then(|config| runtime().and_then(|rt| rt.block_on(run::cleanup(&config, force))))
        }
        None => load(flags).and_then(|config| {
            log(&config.logging)?;
            runtime()?.block_on(run::agent(config))
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("meshd: {}", e.text);
            ExitCode::from(e.code)
        }
    }
}

/// Writes meshd's manual pages, in the section of daemons.
fn man(dir: &Path) -> std::io::Result<()> {
    fn page(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let man = clap_mangen::Man::new(command.clone())
            .section("8")
            .source(concat!("meshd ", env!("CARGO_PKG_VERSION")))
            .manual("meshd");
        let mut out = Vec::new();
        man.render(&mut out)?;
        std::fs::write(dir.join(format!("{name}.8")), out)
    }
    std::fs::create_dir_all(dir)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    page(&command, dir)?;
    command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .try_for_each(|sub| page(sub, dir))
}

/// Why meshd ends, for the person who started it.
pub struct Exit {
    /// One line.
    text: String,
    code: u8,
}

impl Exit {
    /// Exit code 1.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into().replace('\n', " "),
            code: 1,
        }
    }

    /// Another exit code.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

impl<E: std::error::Error> From<E> for Exit {
    fn from(e: E) -> Self {
        Self::new(execute::chain(&e))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Of the process that only hands requests on.
fn front_runtime() -> Result<tokio::runtime::Runtime, Exit> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn log(logging: &Logging) -> Result<(), Exit> {
    // Openraft's info is for those who work on it; naming it in --log brings it back.
    let filter = tracing_subscriber::EnvFilter::try_new(format!("openraft=warn,{}", logging.filter))
        .map_err(|e| Exit::new(format!("--log {:?} is not a filter: {e}", logging.filter)).with_code(2))?;
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let out = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that standard error does not take would be told there, which panics.
        .log_internal_errors(false)
        .with_ansi(colour);
    match logging.format {
        LogFormat::Text => out.init(),
        LogFormat::Json => out.json().init(),
    }
    Ok(())
}

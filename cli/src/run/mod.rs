//! Carries a command out. One file per noun.

mod ca;
mod cluster;
pub mod container;
mod endpoint;
mod flows;
mod man;
mod network;
mod node;
mod service;
mod top;

use clap::CommandFactory;
use serde_json::Value;

use crate::{
    args::{Cli, Command},
    failure::Failure,
    render,
    session::Session,
};

/// Carries `cli` out.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let session = Session::new(&cli.global);
    match cli.command {
        Command::Init(args) => cluster::init(&session, args).await,
        Command::Join(args) => cluster::join(&session, args).await,
        Command::Leave(args) => cluster::leave(&session, &args).await,
        Command::Token(args) => cluster::token(&session, &args).await,
        Command::Ca(command) => ca::run(&session, &command).await,
        Command::Status => cluster::status(&session).await,
        Command::Doctor { plan } => cluster::doctor(&session, plan).await,
        Command::Events { since } => cluster::events(&session, since).await,
        Command::Flows(args) => flows::run(&session, &args).await,
        Command::Top(args) => top::run(&session, &args).await,
        Command::Run(args) => container::run(&session, *args).await,
        Command::Node(command) => node::run(&session, command).await,
        Command::Network(command) => network::run(&session, command).await,
        Command::Service(command) => service::run(&session, command).await,
        Command::Endpoint(command) => endpoint::run(&session, command).await,
        Command::Man { dir } => man::run(&dir),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
            session.print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Reads one object and prints it.
async fn inspect(session: &Session, path: &str) -> Result<(), Failure> {
    let value = session.get(path).await?;
    session.answer(&value, |paint| Ok(render::describe(&value, *paint)))
}

/// Prints the id of what was made, as Docker does.
fn made(session: &Session, value: &Value) -> Result<(), Failure> {
    session.answer(value, |_| Ok(render::ids(value)))
}

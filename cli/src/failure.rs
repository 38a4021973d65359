//! How meshctl fails: one line on stderr, and an exit code that scripts can tell apart (2 a command
//! line that cannot be read, 3 not found, 4 conflict, 5 no manager or quorum, 1 anything else).

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::CommandFactory;
use mesh_api::local;
use mesh_core::Refusal;

use crate::{args::Cli, run::container};

/// Why a command did not do all of what it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No answer, or a refusal by meshd.
    #[error(transparent)]
    Client(#[from] local::Error),
    /// Refused before anything was sent.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer is not of the shape that this release knows.
    #[error("meshd and this program do not understand each other: are they of the same release?")]
    Shape(#[from] serde_json::Error),
    /// A command could not be run on this host.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// Standard output takes no more.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// A file cannot be written.
    #[error("cannot write to {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// Whoever read standard output has gone, which is no fault of anybody.
    #[error("")]
    ReaderGone,
    /// All has been said already.
    #[error("")]
    Reported(u8),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Client(e) => e.exit_code(),
            Self::Refused(r) => r.kind.exit_code(),
            Self::Container(_) | Self::Shape(_) | Self::Output(_) | Self::File(..) => 1,
            Self::ReaderGone => 0,
            Self::Reported(code) => *code,
        }
    }

    /// Its line; `None` when there is nothing to say.
    pub fn line(&self) -> Option<String> {
        match self {
            Self::Client(e) => Some(e.one_line()),
            Self::Refused(r) => Some(r.to_string()),
            Self::Container(e) => Some(e.one_line()),
            Self::Shape(e) => Some(format!("{self}: {e}")),
            Self::Output(e) | Self::File(_, e) => Some(format!("{self}: {e}")),
            Self::ReaderGone | Self::Reported(_) => None,
        }
    }

    /// Says it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if let Some(line) = self.line() {
            say(&line);
        }
        ExitCode::from(self.code())
    }
}

/// One line on stderr, in meshctl's name.
pub fn say(message: &str) {
    line(&format!("meshctl: {message}"));
}

/// What a user typed may come back in a message, so control characters are made harmless. Nothing
/// can be done about a stderr that takes no more.
fn line(text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The end of a command line that clap did not take: help and version go to stdout, an error
/// becomes one line.
pub fn usage(e: &clap::Error) -> ExitCode {
    if e.exit_code() == 0 {
        // A reader that has gone (`meshctl --help | head -1`) is no error.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let command = command_path(std::env::args().skip(1));
    let text = e.render().to_string();
    line(&format!("{}{} (see {command} --help)", first_paragraph(&text), similar(&text)));
    ExitCode::from(2)
}

/// What clap knows that the user may have meant; nothing when that is nothing.
fn similar(text: &str) -> String {
    let tips = text.lines().filter_map(|l| l.trim().strip_prefix("tip: "));
    tips.filter(|tip| tip.contains(" similar ")).map(|tip| format!("; {tip}")).collect()
}

/// Clap's message up to the first empty line, in one line.
fn first_paragraph(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|l| !l.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// The subcommands that lead the command line, so that the hint names the right help.
fn command_path(args: impl Iterator<Item = String>) -> String {
    let mut command = Cli::command();
    let mut path = vec![command.get_name().to_owned()];
    for arg in args {
        let Some(sub) = command.find_subcommand(&arg).cloned() else {
            continue;
        };
        path.push(sub.get_name().to_owned());
        command = sub;
    }
    path.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_names_the_subcommand() {
        let path = |s: &str| command_path(s.split(' ').map(str::to_owned));
        assert_eq!(path("-o json network create --nope x"), "meshctl network create");
        assert_eq!(path("node list"), "meshctl node ls");
        assert_eq!(path("nonsense"), "meshctl");
    }

    #[test]
    fn what_may_have_been_meant_is_named() {
        use clap::Parser;
        let said = |line: &[&str]| similar(&Cli::try_parse_from(line).unwrap_err().render().to_string());
        assert!(said(&["meshctl", "nework", "ls"]).contains("'network'"));
        assert!(said(&["meshctl", "network", "create", "--subnt", "x", "y"]).contains("'--subnet'"));
        assert_eq!(said(&["meshctl", "network", "create"]), "");
    }

    #[test]
    fn message_becomes_one_line() {
        let text = "error: the following required arguments were not provided:\n  <NAME>\n\nUsage: meshctl …\n";
        assert_eq!(
            first_paragraph(text),
            "error: the following required arguments were not provided: <NAME>"
        );
    }
}

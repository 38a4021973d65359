//! The built meshctl, and what it leaves behind.

#![expect(clippy::unwrap_used, reason = "test")]

use std::process::{Command, Output};

/// The built meshctl, in an environment that says nothing.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(args).env_clear();
    command
}

/// A finished run.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

impl Run {
    /// Out of what the process left.
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The one line on stderr; fails when it is not one.
    pub fn line(&self) -> &str {
        assert_eq!(self.err.matches('\n').count(), 1, "not one line on stderr: {self:?}");
        self.err.trim_end()
    }
}

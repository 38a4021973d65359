//! A command that runs beside a scenario.

use std::process::{Child, Command, ExitStatus, Stdio};

use crate::Result;

/// A process, killed when this is dropped. It reads nothing, and nobody reads what it says.
pub struct Process(Child);

impl Process {
    /// Starts it.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// It runs.
    pub fn lives(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// How it ends, when it does by itself.
    pub fn end(mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The scenario's own child, which may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

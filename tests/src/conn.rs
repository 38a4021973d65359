//! TCP connections from inside the lab that a scenario holds open while it breaks things.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::{Reply, Result};

/// `meshd-echo client tcp`, one line at a time. Its own timeout bounds every answer.
pub struct Connection {
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Connection {
    pub(crate) fn open(mut command: Command) -> Result<Self> {
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = client.stdin.take().ok_or("no standard input")?;
        let output = BufReader::new(client.stdout.take().ok_or("no standard output")?);
        Ok(Self { client, input, output })
    }

    /// Sends a line and reads the answer to it.
    pub fn ask(&mut self) -> Result<Reply> {
        self.input.write_all(b"hello\n")?;
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the connection has ended".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The client is this process's own child and may have ended by itself.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// `meshd-echo client hold`: very many connections that stay busy.
pub struct Held {
    client: Child,
    output: BufReader<ChildStdout>,
}

impl Held {
    /// Returns once all are open.
    pub(crate) fn open(mut command: Command) -> Result<Self> {
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(client.stdout.take().ok_or("no standard output")?);
        let mut held = Self { client, output };
        held.line()?;
        Ok(held)
    }

    /// Whether none of them has failed so far.
    pub fn lives(&mut self) -> Result<bool> {
        Ok(self.client.try_wait()?.is_none())
    }

    /// Ends them: how many answers came (`answers`), and the longest wait for one (`slowest_ms`). An
    /// error if any connection failed meanwhile.
    pub fn end(mut self) -> Result<Value> {
        drop(self.client.stdin.take());
        let said = self.line()?;
        Ok(serde_json::from_str(&said)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("the connections ended: {} (the reason is above)", self.client.wait()?).into());
        }
        Ok(line)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // As a connection's.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

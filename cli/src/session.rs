//! One run of meshctl: the connection to meshd, how to print, and the sign that something is moving
//! while it takes longer than a second.

use std::{
    future::{self, Future},
    io::{self, Write},
    os::fd::AsFd,
    pin::pin,
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use mesh_api::local::{Error, Lines, LocalClient};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    args::{Global, Output},
    failure::{Failure, say},
    render::{self, Paint},
};

/// Longer than any drain time that is of use; meshd itself ends the wait.
const PATIENCE: Duration = Duration::from_secs(7 * 86400);

/// What every command works with.
pub struct Session {
    client: LocalClient,
    /// How to print.
    pub output: Output,
    /// Ids only.
    pub quiet: bool,
    /// Colours, where they are wanted.
    pub paint: Paint,
}

impl Session {
    /// As the options say.
    pub fn new(global: &Global) -> Self {
        Self {
            client: LocalClient::new(&global.socket),
            output: global.output,
            quiet: global.quiet,
            paint: Paint::detect(),
        }
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        Ok(moving(self.client.get(path)).await?)
    }

    /// Makes or does something.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        Ok(moving(self.client.post(path, body)).await?)
    }

    /// Does something that may take as long as a service lets its endpoints drain.
    pub async fn post_patiently(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let client = self.client.clone().with_limit(PATIENCE);
        Ok(moving(client.post(path, body)).await?)
    }

    /// Replaces something.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        Ok(moving(self.client.put(path, body)).await?)
    }

    /// Changes something.
    pub async fn patch(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        Ok(moving(self.client.patch(path, body)).await?)
    }

    /// Begins to read lines.
    pub async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        Ok(moving(self.client.stream_lines(path)).await?)
    }

    /// Removes what has these names, each at `path(name)`: goes on after an error, and ends with the first
    /// error's code. Prints the names of those that are gone.
    pub async fn remove(&self, names: &[String], path: impl Fn(&str) -> String) -> Result<(), Failure> {
        let (mut gone, mut first) = (Vec::new(), None);
        for name in names {
            match moving(self.client.delete::<Value>(&path(name))).await {
                Ok(_) => gone.push(name.as_str()),
                Err(e) => {
                    say(&e.one_line());
                    first.get_or_insert(e.exit_code());
                }
            }
        }
        match self.output {
            Output::Json => self.print(&format!("{}\n", serde_json::to_string(&gone)?))?,
            Output::Table => self.print(&gone.iter().map(|n| format!("{n}\n")).collect::<String>())?,
        }
        first.map_or(Ok(()), |code| Err(Failure::Reported(code)))
    }

    /// Prints an answer: as it came with `-o json`, its ids with `-q`, else what `text` makes of it.
    pub fn answer(&self, value: &Value, text: impl FnOnce(&Paint) -> Result<String, Failure>) -> Result<(), Failure> {
        match self.output {
            _ if self.quiet => self.print(&render::ids(value)),
            Output::Json => self.print(&render::json(value)?),
            Output::Table => self.print(&text(&self.paint)?),
        }
    }

    /// Prints what has been made up already.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|e| match e.kind() {
                io::ErrorKind::BrokenPipe => Failure::ReaderGone,
                _ => Failure::Output(e),
            })
    }
}

/// Returns when nobody reads standard output any more, as in `meshctl events | head -1`: what follows a
/// stream would otherwise notice only with the next line, which may never come.
pub async fn reader_gone() {
    let (tell, told) = oneshot::channel::<()>();
    // It blocks until then, and ends with the process.
    let watch = move || {
        let out = io::stdout();
        // No event is asked for: what is told regardless is that the other end has gone (poll(2)).
        while poll(&mut [PollFd::new(out.as_fd(), PollFlags::empty())], PollTimeout::NONE) == Err(Errno::EINTR) {}
        drop(tell);
    };
    match thread::Builder::new().name("reader".into()).spawn(watch) {
        Ok(_) => drop(told.await),
        Err(_) => future::pending().await,
    }
}

/// Waits for `request`; after a second a spinner turns on stderr, if that is a terminal.
async fn moving<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut request = pin!(request);
    tokio::select! {
        done = &mut request => return done,
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    // Draws nothing where stderr is no terminal.
    let bar = ProgressBar::new_spinner().with_message("waiting for meshd").with_style(style());
    bar.enable_steady_tick(Duration::from_millis(120));
    let done = request.await;
    bar.finish_and_clear();
    done
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} ({elapsed})").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

//! Very many connections that all stay busy: what tests hold open while they kill and replace agents.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use crate::Failure;

/// Connections are opened so many at a time: fewer than a listener's queue holds.
const AT_ONCE: usize = 256;
/// For an answer. Longer than TCP needs to send something a few times over.
const LIMIT: Duration = Duration::from_secs(20);

/// What to hold.
#[derive(Args)]
pub struct Hold {
    /// ADDRESS:PORT of a server of lines (repeatable): connections go to them in turn.
    #[arg(required = true)]
    addrs: Vec<SocketAddr>,
    /// How many connections in all.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Seconds from one question of a connection to its next.
    #[arg(long, default_value_t = 2.0)]
    every: f64,
}

/// Of all connections.
#[derive(Default)]
struct Seen {
    answers: AtomicU64,
    slowest_us: AtomicU64,
}

impl Hold {
    /// Prints a line of JSON once all are open, and one at the end; an error if any connection
    /// ended or was not answered.
    #[tokio::main]
    pub async fn run(&self) -> Result<(), Failure> {
        let every = Duration::try_from_secs_f64(self.every).map_err(|e| format!("--every {}: {e}", self.every))?;
        crate::many_files()?;
        let mut open = Vec::with_capacity(self.connections);
        while open.len() < self.connections {
            let mut some = JoinSet::new();
            for n in open.len()..self.connections.min(open.len() + AT_ONCE) {
                let addr = self.addrs[n % self.addrs.len()];
                some.spawn(async move { (addr, timeout(LIMIT, TcpStream::connect(addr)).await) });
            }
            while let Some(opened) = some.join_next().await {
                let (addr, stream) = opened?;
                let cannot = |e: &dyn std::fmt::Display| format!("cannot open connection {} to {addr}: {e}", open.len());
                let stream = stream.map_err(|e| cannot(&e))?.map_err(|e| cannot(&e))?;
                stream.set_nodelay(true)?;
                open.push(stream);
            }
        }
        say(&json!({ "open": open.len() }))?;
        let seen = Arc::new(Seen::default());
        let (end, ended) = watch::channel(());
        let mut tasks = JoinSet::new();
        let count = u32::try_from(open.len()).unwrap_or(u32::MAX).max(1);
        for (n, stream) in (0..).zip(open) {
            // They ask one after the other, not all at once.
            tasks.spawn(ask(stream, every * n / count, every, seen.clone(), ended.clone()));
        }
        let (said, mut input) = oneshot::channel();
        // A thread of its own: a runtime would wait for its end.
        thread::spawn(move || said.send(io::copy(&mut io::stdin().lock(), &mut io::sink())));
        loop {
            tokio::select! {
                read = &mut input => {
                    read??;
                    break;
                }
                Some(failed) = tasks.join_next() => failed??,
            }
        }
        // Tells every connection that it may end.
        drop(end);
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        say(&json!({
            "answers": seen.answers.load(Relaxed),
            "slowest_ms": seen.slowest_us.load(Relaxed) / 1000,
        }))?;
        Ok(())
    }
}

/// Asks and asks until `ended`'s sender is gone, and once after that.
async fn ask(stream: TcpStream, first: Duration, every: Duration, seen: Arc<Seen>, mut ended: watch::Receiver<()>) -> Result<(), Failure> {
    let (own, to) = (stream.local_addr()?, stream.peer_addr()?);
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(512, reader);
    let mut line = String::new();
    let mut wait = first;
    let mut last = false;
    while !last {
        last = tokio::select! {
            _ = ended.changed() => true,
            () = tokio::time::sleep(wait) => false,
        };
        wait = every;
        let asked = Instant::now();
        line.clear();
        let answered = async {
            writer.write_all(b"hello\n").await?;
            reader.read_line(&mut line).await
        };
        match timeout(LIMIT, answered).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Ok(_)) => return Err(format!("the connection from {own} to {to} was closed").into()),
            Ok(Err(e)) => return Err(format!("the connection from {own} to {to} failed: {e}").into()),
            Err(_) => return Err(format!("no answer on the connection from {own} to {to}").into()),
        }
        seen.answers.fetch_add(1, Relaxed);
        let took = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.slowest_us.fetch_max(took, Relaxed);
    }
    Ok(())
}

fn say(line: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

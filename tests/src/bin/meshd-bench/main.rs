//! The load generator of `scripts/bench`: TCP round trips, connections per second, and who gets them.
//! Throughput is iperf3's business.
//!
//! One message is [`MESSAGE`] bytes each way. The server closes a connection whose message begins
//! with [`LAST`] or [`WHO`], so that TIME_WAIT is the server's and the client never runs out of ports.

use std::{
    collections::BTreeMap,
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Bytes.
const MESSAGE: usize = 64;
/// First byte of a connection's last message.
const LAST: u8 = b'c';
/// As [`LAST`], and the answer is the address that the server has of its own, with blanks behind it.
const WHO: u8 = b'w';

/// Generates load and measures what comes back.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Answers the other subcommands.
    Serve {
        /// Where to listen.
        addr: SocketAddr,
    },
    #[command(flatten)]
    Measure(Measure),
}

#[derive(Subcommand)]
enum Measure {
    /// Round trips on one connection: p50 and p99 in microseconds.
    Rr {
        /// The server.
        addr: SocketAddr,
        /// How long.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Connections per second, each with one message each way.
    Connect {
        /// The server.
        addr: SocketAddr,
        /// How long.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Connections open at a time.
        #[arg(long, default_value_t = 4)]
        threads: usize,
    },
    /// How many of so many connections each server gets.
    Tally {
        /// The servers' common address.
        addr: SocketAddr,
        /// How many, all told.
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
        /// Connections open at a time.
        #[arg(long, default_value_t = 4)]
        threads: usize,
    },
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Serve { addr } => serve(addr),
        Command::Measure(Measure::Rr { addr, seconds }) => span(seconds).and_then(|s| rr(addr, s)).map(|v| println!("{v}")),
        Command::Measure(Measure::Connect { addr, seconds, threads }) => {
            span(seconds).and_then(|s| connect(addr, s, threads)).map(|v| println!("{v}"))
        }
        Command::Measure(Measure::Tally {
            addr,
            connections,
            threads,
        }) => tally(addr, connections, threads).map(|v| println!("{v}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("meshd-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn span(seconds: f64) -> Result<Duration, Failure> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(s) if !s.is_zero() => Ok(s),
        _ => Err(format!("{seconds} is not a number of seconds above 0").into()),
    }
}

#[tokio::main]
async fn serve(addr: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(addr).await.map_err(|e| format!("cannot listen on {addr}: {e}"))?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut message = [0; MESSAGE];
            while stream.set_nodelay(true).is_ok() && stream.read_exact(&mut message).await.is_ok() {
                let last = matches!(message[0], LAST | WHO);
                if message[0] == WHO {
                    let own = stream.local_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                    message = [b' '; MESSAGE];
                    message[..own.len()].copy_from_slice(own.as_bytes());
                }
                if stream.write_all(&message).await.is_err() || last {
                    return;
                }
            }
        });
    }
}

fn open(addr: SocketAddr) -> Result<TcpStream, Failure> {
    let limit = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&addr, limit).map_err(|e| format!("cannot connect to {addr}: {e}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    Ok(stream)
}

fn exchange(mut stream: &TcpStream, message: &mut [u8; MESSAGE]) -> Result<(), Failure> {
    stream.write_all(message)?;
    Ok(stream.read_exact(message)?)
}

fn rr(addr: SocketAddr, span: Duration) -> Result<Value, Failure> {
    let stream = open(addr)?;
    let mut message = [b'r'; MESSAGE];
    let mut took = Vec::with_capacity(1 << 20);
    let start = Instant::now();
    while start.elapsed() < span {
        let sent = Instant::now();
        exchange(&stream, &mut message)?;
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    let at = |q: f64| took[((took.len() - 1) as f64 * q).round() as usize].as_nanos() as f64 / 1000.0;
    Ok(json!({ "count": took.len(), "p50_us": at(0.5), "p99_us": at(0.99) }))
}

fn connect(addr: SocketAddr, span: Duration, threads: usize) -> Result<Value, Failure> {
    let start = Instant::now();
    let counts = at_once(threads, || {
        let mut count = 0u64;
        while start.elapsed() < span {
            once(addr, LAST)?;
            count += 1;
        }
        Ok(count)
    })?;
    let count: u64 = counts.iter().sum();
    Ok(json!({ "count": count, "per_second": count as f64 / start.elapsed().as_secs_f64() }))
}

fn tally(addr: SocketAddr, connections: usize, threads: usize) -> Result<Value, Failure> {
    let left = AtomicUsize::new(connections);
    let parts = at_once(threads, || {
        let mut by_server: BTreeMap<String, u64> = BTreeMap::new();
        while left.try_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            let server = String::from_utf8_lossy(&once(addr, WHO)?).trim().to_owned();
            *by_server.entry(server).or_default() += 1;
        }
        Ok(by_server)
    })?;
    let mut servers: BTreeMap<String, u64> = BTreeMap::new();
    for (server, count) in parts.into_iter().flatten() {
        *servers.entry(server).or_default() += count;
    }
    Ok(json!(servers))
}

/// One connection with one message each way; the answer.
fn once(addr: SocketAddr, first: u8) -> Result<[u8; MESSAGE], Failure> {
    let stream = open(addr)?;
    let mut message = [first; MESSAGE];
    exchange(&stream, &mut message)?;
    // The server closes first.
    if (&stream).read(&mut [0; MESSAGE])? != 0 {
        return Err(format!("{addr} sent more than one message").into());
    }
    Ok(message)
}

/// Does the work in so many threads; what each of them has got.
fn at_once<T: Send>(threads: usize, work: impl Fn() -> Result<T, Failure> + Sync) -> Result<Vec<T>, Failure> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        running
            .into_iter()
            .map(|t| t.join().map_err(|_| "a worker panicked".into()).flatten())
            .collect()
    })
}

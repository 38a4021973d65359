//! The load generator of `scripts/bench`: TCP round trips, and connections per second. Throughput
//! is iperf3's business.
//!
//! One message is [`MESSAGE`] bytes each way. The server closes a connection whose message begins
//! with [`LAST`], so that TIME_WAIT is the server's and the client never runs out of ports.

use std::{
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
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
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Serve { addr } => serve(addr),
        Command::Measure(Measure::Rr { addr, seconds }) => span(seconds).and_then(|s| rr(addr, s)).map(|v| println!("{v}")),
        Command::Measure(Measure::Connect { addr, seconds, threads }) => {
            span(seconds).and_then(|s| connect(addr, s, threads)).map(|v| println!("{v}"))
        }
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
                if stream.write_all(&message).await.is_err() || message[0] == LAST {
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
    let work = || -> Result<u64, Failure> {
        let mut count = 0;
        while start.elapsed() < span {
            let stream = open(addr)?;
            let mut message = [LAST; MESSAGE];
            exchange(&stream, &mut message)?;
            // The server closes first.
            if (&stream).read(&mut message)? != 0 {
                return Err(format!("{addr} sent more than one message").into());
            }
            count += 1;
        }
        Ok(count)
    };
    let counts = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        running
            .into_iter()
            .map(|t| t.join().map_err(|_| "a worker panicked".into()).flatten())
            .collect::<Result<Vec<_>, Failure>>()
    })?;
    let count: u64 = counts.iter().sum();
    Ok(json!({ "count": count, "per_second": count as f64 / start.elapsed().as_secs_f64() }))
}

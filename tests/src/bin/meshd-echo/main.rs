//! What demos and tests run in containers: a server that says who it is and whom it sees, over
//! HTTP, TCP and UDP; a small DNS server, which stands for the outside world's; and a client that
//! needs nothing from the container's file system.
//!
//! Run by `scripts/lab`, `scripts/demo` and the scenarios of `tests/tests`.

mod client;
mod dns;
mod hold;
mod http;
mod noise;
mod plain;
mod reply;

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use crate::{dns::Record, reply::Identity};

/// Says who it is and whom it sees.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Asks a server.
    #[command(subcommand)]
    Client(client::Client),
}

#[derive(Args)]
struct Serve {
    /// Answers HTTP/1.1 on this port (repeatable): JSON, /bytes/N, and a digest of what is posted.
    #[arg(long, value_name = "PORT")]
    http: Vec<u16>,
    /// Answers each line of TCP connections on this port with a line of JSON (repeatable).
    #[arg(long, value_name = "PORT")]
    tcp: Vec<u16>,
    /// Answers each datagram on this port with a line of JSON (repeatable).
    #[arg(long, value_name = "PORT")]
    udp: Vec<u16>,
    /// Answers DNS queries for --record names on this UDP and TCP port (repeatable).
    #[arg(long, value_name = "PORT")]
    dns: Vec<u16>,
    /// A name and its IPv4 address, for --dns (repeatable).
    #[arg(long, value_name = "NAME=ADDR")]
    record: Vec<Record>,
    /// Address to listen on; without it, every one of both families.
    #[arg(long, value_name = "ADDR")]
    bind: Option<IpAddr>,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Client(client)) => client.run(),
        None => serve(&cli.serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("meshd-echo: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Lets this process have tens of thousands of sockets; no privilege to raise the limit leaves it
/// with what it may have.
fn many_files() -> nix::Result<()> {
    const WANTED: u64 = 65_536;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = most.max(WANTED);
    setrlimit(Resource::RLIMIT_NOFILE, raised, raised).or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, most, most))
}

#[tokio::main]
async fn serve(args: &Serve) -> Result<(), Failure> {
    many_files()?;
    let me = Arc::new(Identity::from_environment());
    let mut tasks = JoinSet::new();
    for addr in addresses(args.bind, &args.http) {
        if let Some(socket) = optional(addr, args.bind, tcp(addr))? {
            tasks.spawn(http::serve(socket, me.clone()));
        }
    }
    for addr in addresses(args.bind, &args.tcp) {
        if let Some(socket) = optional(addr, args.bind, tcp(addr))? {
            tasks.spawn(plain::serve_tcp(socket, me.clone()));
        }
    }
    for addr in addresses(args.bind, &args.udp) {
        if let Some(socket) = optional(addr, args.bind, udp(addr))? {
            tasks.spawn(plain::serve_udp(socket, addr, me.clone()));
        }
    }
    let records: Arc<[Record]> = args.record.clone().into();
    for addr in addresses(args.bind, &args.dns) {
        if let Some(socket) = optional(addr, args.bind, udp(addr))? {
            tasks.spawn(dns::serve_udp(socket, records.clone()));
        }
        if let Some(socket) = optional(addr, args.bind, tcp(addr))? {
            tasks.spawn(dns::serve_tcp(socket, records.clone()));
        }
    }
    if tasks.is_empty() {
        return Err("nothing to do: give --http, --tcp, --udp or --dns, or the client subcommand".into());
    }
    // The servers end only by failing.
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Where to listen: on `bind`, or on the wildcard of each family.
fn addresses(bind: Option<IpAddr>, ports: &[u16]) -> Vec<SocketAddr> {
    let any = [IpAddr::from([0u8; 4]), IpAddr::from([0u8; 16])];
    let ips = bind.map_or_else(|| any.to_vec(), |ip| vec![ip]);
    ports
        .iter()
        .flat_map(|port| ips.iter().map(|ip| SocketAddr::new(*ip, *port)))
        .collect()
}

/// A kernel without IPv6 is no failure unless IPv6 was asked for.
fn optional<T>(addr: SocketAddr, bind: Option<IpAddr>, made: std::io::Result<T>) -> Result<Option<T>, Failure> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(_) if addr.is_ipv6() && bind.is_none() => Ok(None),
        Err(e) => Err(format!("cannot listen on {addr}: {e}").into()),
    }
}

/// A socket of one family only, so that peers never show as IPv4-mapped addresses.
fn socket(addr: SocketAddr, kind: Type, protocol: Protocol) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tcp(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket(addr, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

fn udp(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = socket(addr, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

//! The client: what tests ask for from inside containers and from the lab's client machine.
//! Blocking, one thing at a time but for `hold`; prints what the server answered, one line each.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    Failure,
    hold::Hold,
    noise::{Noise, hex},
};

/// What to ask.
#[derive(Subcommand)]
pub enum Client {
    /// Prints the addresses of a name, as the C library's getaddrinfo(3) gives them.
    Resolve {
        /// The name.
        name: String,
    },
    /// Asks a DNS server over UDP, and prints the answer's code and records as JSON.
    Dns {
        /// Address of the server.
        server: IpAddr,
        /// The name.
        name: String,
        /// A, AAAA, SRV, PTR, …
        #[arg(default_value = "A")]
        kind: String,
        /// Port of the server.
        #[arg(long, default_value_t = 53)]
        port: u16,
    },
    /// Gets / once per connection, and prints each answer.
    Http(Many),
    /// Sends a datagram per socket, and prints each answer.
    Udp {
        #[command(flatten)]
        many: Many,
        /// Sends them all from one socket.
        #[arg(long)]
        same_socket: bool,
        /// Address and port to send from, ADDRESS:PORT; the next socket has the next port. Port 0: any.
        #[arg(long)]
        from: Option<SocketAddr>,
        /// How long each datagram is, in bytes; the answer is not shorter.
        #[arg(long, default_value_t = 6)]
        size: usize,
    },
    /// Sends each line of the standard input over one connection, and prints each answer.
    Tcp(To),
    /// Keeps very many connections busy until the standard input ends, and prints how that went.
    Hold(Hold),
    /// Gets this many bytes and checks their digest.
    Download {
        #[command(flatten)]
        to: To,
        /// How many.
        bytes: u64,
    },
    /// Posts this many bytes and checks the digest in the answer.
    Upload {
        #[command(flatten)]
        to: To,
        /// How many.
        bytes: u64,
    },
}

/// One server.
#[derive(Args)]
pub struct To {
    /// HOST:PORT
    addr: String,
    /// Seconds to wait for a connection or for an answer.
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
}

/// Several requests.
#[derive(Args)]
pub struct Many {
    #[command(flatten)]
    to: To,
    /// How many requests.
    #[arg(long, default_value_t = 1)]
    count: u32,
}

impl Client {
    /// Carries it out; an error if any answer is missing or wrong.
    pub fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Resolve { name } => resolve(name),
            Self::Dns { server, name, kind, port } => print(&crate::dns::ask(SocketAddr::new(*server, *port), name, kind)?),
            Self::Http(many) => (0..many.count).try_for_each(|_| print(&get(&many.to)?)),
            Self::Udp {
                many,
                same_socket,
                from,
                size,
            } => udp(many, *same_socket, *from, *size),
            Self::Tcp(to) => tcp(to),
            Self::Hold(hold) => hold.run(),
            Self::Download { to, bytes } => download(to, *bytes),
            Self::Upload { to, bytes } => upload(to, *bytes),
        }
    }
}

impl To {
    fn timeout(&self) -> Result<Duration, Failure> {
        match Duration::try_from_secs_f64(self.timeout) {
            Ok(t) if !t.is_zero() => Ok(t),
            _ => Err(format!("timeout {} is not a number of seconds above 0", self.timeout).into()),
        }
    }

    fn resolve(&self) -> Result<SocketAddr, Failure> {
        let found = self
            .addr
            .to_socket_addrs()
            .map_err(|e| format!("cannot resolve {:?}: {e}", self.addr))?
            .next();
        found.ok_or_else(|| format!("{:?} has no address", self.addr).into())
    }

    fn connect(&self) -> Result<TcpStream, Failure> {
        let (addr, timeout) = (self.resolve()?, self.timeout()?);
        let stream = TcpStream::connect_timeout(&addr, timeout).map_err(|e| format!("cannot connect to {addr}: {e}"))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn print(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    if !line.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn resolve(name: &str) -> Result<(), Failure> {
    let mut ips: Vec<_> = (name, 0)
        .to_socket_addrs()
        .map_err(|e| format!("cannot resolve {name:?}: {e}"))?
        .map(|a| a.ip())
        .collect();
    ips.dedup();
    ips.iter().try_for_each(|ip| print(&ip.to_string()))
}

/// An answer's header block and the reader that its body follows in.
fn head(stream: TcpStream) -> Result<(Vec<String>, BufReader<TcpStream>), Failure> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err("the server closed before it answered".into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    match lines.first() {
        Some(status) if status.contains(" 200 ") => Ok((lines, reader)),
        status => Err(format!("the server answered {:?}, not 200", status.map_or("", |s| s)).into()),
    }
}

fn request(to: &To, method: &str, path: &str, length: u64) -> Result<TcpStream, Failure> {
    let mut stream = to.connect()?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        to.addr
    )?;
    Ok(stream)
}

fn get(to: &To) -> Result<String, Failure> {
    let (_, mut reader) = head(request(to, "GET", "/", 0)?)?;
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(body)
}

fn download(to: &To, bytes: u64) -> Result<(), Failure> {
    let (headers, mut reader) = head(request(to, "GET", &format!("/bytes/{bytes}"), 0)?)?;
    let promised = headers
        .iter()
        .filter_map(|h| h.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("sha256"));
    let promised = promised.ok_or("the answer has no sha256 header")?.1;
    let (mut hash, mut got, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        got += n as u64;
        hash.update(&buffer[..n]);
    }
    check(bytes, got, promised, &hex(&hash.finalize()))
}

fn upload(to: &To, bytes: u64) -> Result<(), Failure> {
    let mut stream = request(to, "POST", "/", bytes)?;
    Noise::new(bytes).try_for_each(|piece| stream.write_all(&piece))?;
    let mut body = String::new();
    head(stream)?.1.read_to_string(&mut body)?;
    let answer: serde_json::Value = serde_json::from_str(&body)?;
    check(
        bytes,
        answer["bytes"].as_u64().unwrap_or(0),
        &Noise::digest(bytes),
        answer["sha256"].as_str().unwrap_or(""),
    )
}

fn check(bytes: u64, got: u64, want: &str, digest: &str) -> Result<(), Failure> {
    if (bytes, want) != (got, digest) {
        return Err(format!("{got} bytes with digest {digest} arrived, not {bytes} with {want}").into());
    }
    print(&json!({ "bytes": got, "sha256": digest }).to_string())
}

fn tcp(to: &To) -> Result<(), Failure> {
    let stream = to.connect()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    for line in std::io::stdin().lines() {
        let mut stream = &stream;
        stream.write_all(format!("{}\n", line?).as_bytes())?;
        let mut answer = String::new();
        if reader
            .read_line(&mut answer)
            .map_err(|e| format!("no answer from {}: {e}", to.addr))?
            == 0
        {
            return Err(format!("{} closed the connection", to.addr).into());
        }
        print(&answer)?;
    }
    Ok(())
}

fn udp(many: &Many, same_socket: bool, from: Option<SocketAddr>, size: usize) -> Result<(), Failure> {
    let (addr, timeout) = (many.to.resolve()?, many.to.timeout()?);
    let any: SocketAddr = if addr.is_ipv4() {
        ([0u8; 4], 0).into()
    } else {
        ([0u8; 16], 0).into()
    };
    let open = |nth: u32| -> Result<UdpSocket, Failure> {
        let mut own = from.unwrap_or(any);
        if own.port() != 0 {
            let port = u32::from(own.port()) + nth;
            own.set_port(port.try_into().map_err(|_| format!("port {port} is not one: begin lower"))?);
        }
        let socket = UdpSocket::bind(own).map_err(|e| format!("cannot send from {own}: {e}"))?;
        socket.set_read_timeout(Some(timeout))?;
        socket.connect(addr)?;
        Ok(socket)
    };
    // Open to the end: a port that the kernel draws twice would be the former datagram's flow.
    let mut sockets = vec![open(0)?];
    let mut buffer = [0; 65536];
    for i in 0..many.count {
        if i > 0 && !same_socket {
            sockets.push(open(i)?);
        }
        let socket = &sockets[sockets.len() - 1];
        socket.send(format!("{:<width$}\n", "hello", width = size.saturating_sub(1)).as_bytes())?;
        let n = socket.recv(&mut buffer).map_err(|e| format!("no answer from {addr}: {e}"))?;
        if n < size {
            return Err(format!("an answer of {n} bytes to {size}").into());
        }
        print(&String::from_utf8_lossy(&buffer[..n]))?;
    }
    Ok(())
}

//! Asks one resolver one question: UDP from a fresh port with a fresh id, TCP when the answer was
//! cut. [`crate::forward`] decides whom to ask, and when to give up.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hickory_proto::{
    ProtoError,
    op::{Message, MessageType, OpCode, Query},
};
use hickory_server::server::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::answer::{self, Answer, NotTheAnswer};

/// Why a resolver gave no answer. How long to wait is the caller's business.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Not even sent, or nobody there.
    #[error("cannot talk to the resolver {0}")]
    Io(SocketAddr, #[source] io::Error),
    /// It answered nonsense.
    #[error("the resolver {0} answered with something else")]
    Answer(SocketAddr, #[source] NotTheAnswer),
    /// The question has no wire form.
    #[error("cannot encode the question")]
    Encode(#[from] ProtoError),
}

/// What is asked on an asker's behalf: its question and flags; the id is drawn anew each time.
#[derive(Clone)]
pub(crate) struct Question {
    query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    authentic_data: bool,
    /// The DO bit, when the asker speaks EDNS at all.
    dnssec_ok: Option<bool>,
}

impl Question {
    pub(crate) fn of(request: &Request, query: &Query) -> Self {
        let flags = &request.metadata;
        Self {
            query: query.clone(),
            recursion_desired: flags.recursion_desired,
            checking_disabled: flags.checking_disabled,
            authentic_data: flags.authentic_data,
            dnssec_ok: request.edns.as_ref().map(|e| e.flags().dnssec_ok),
        }
    }

    fn encode(&self, id: u16) -> Result<Vec<u8>, ProtoError> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = self.authentic_data;
        message.add_query(self.query.clone());
        if let Some(dnssec_ok) = self.dnssec_ok {
            message.set_edns(answer::edns_towards(dnssec_ok));
        }
        message.to_vec()
    }
}

/// Asks `server`. May wait for ever: the caller drops it. A cut answer is fetched again over TCP; if
/// that fails, the cut one counts.
pub(crate) async fn ask(server: SocketAddr, question: &Question) -> Result<Answer, AskError> {
    let cut = ask_udp(server, question).await?;
    if !cut.metadata.truncation {
        return Ok(cut);
    }
    ask_tcp(server, question).await.or_else(|error| {
        tracing::debug!(%server, %error, "no complete answer over TCP, using the cut one");
        Ok(cut)
    })
}

async fn ask_udp(server: SocketAddr, question: &Question) -> Result<Answer, AskError> {
    let id = rand::random();
    let bytes = question.encode(id)?;
    let io = |error| AskError::Io(server, error);
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // Port 0: the kernel draws a random one. Connected: it passes on only what that server sent, and
    // tells when nobody listens there.
    let socket = UdpSocket::bind(any).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    socket.send(&bytes).await.map_err(io)?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(io)?;
        match answer::read(&buffer[..length], id, &question.query) {
            Ok(answer) => return Ok(answer),
            Err(NotTheAnswer::Stray) => tracing::debug!(%server, "passed over a message that answers another question"),
            Err(error) => return Err(AskError::Answer(server, error)),
        }
    }
}

/// The longest that fetching a cut answer may take.
const TCP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

async fn ask_tcp(server: SocketAddr, question: &Question) -> Result<Answer, AskError> {
    let id = rand::random();
    let bytes = question.encode(id)?;
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let timed = tokio::time::timeout(TCP_TIMEOUT, exchange).await;
    let bytes = timed
        .map_err(io::Error::from)
        .flatten()
        .map_err(|error| AskError::Io(server, error))?;
    answer::read(&bytes, id, &question.query).map_err(|error| AskError::Answer(server, error))
}

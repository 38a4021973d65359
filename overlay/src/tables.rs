//! Reads tables that a large cluster fills, row by row: the connection of [`crate::socket`] holds a whole dump
//! before anybody sees a row of it, which is many times what is kept, and keeps the room for the next.
//!
//! Used by [`crate::dump`] for forwarding entries and neighbours.

use std::{future::poll_fn, time::Duration};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::sync::Mutex;

use crate::{
    error::{Error, KernelError},
    monitor::next_message,
};

/// Bytes that one datagram of a dump can have, and more (NETLINK_DUMP in net/netlink/af_netlink.c: 32 KiB).
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers at once; this bounds the wait for an answer that was lost.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a dump is made again that was interrupted by a change.
const TRIES: u32 = 8;
// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A netlink socket that only dumps are asked of, one after the other.
pub(crate) struct Tables(Mutex<Reader>);

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables")
    }
}

struct Reader {
    socket: TokioSocket,
    /// Number of the last dump.
    sequence: u32,
    /// The kernel has not told its end.
    is_running: bool,
}

/// What a message says.
enum Told {
    Row(RouteNetlinkMessage),
    End,
    Refused(i32),
    Nothing,
}

impl Tables {
    /// Opens it in the calling thread's network namespace. Must be called within a tokio runtime.
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = TokioSocket::new(NETLINK_ROUTE).map_err(Error::io("open a netlink socket"))?;
        Ok(Self(Mutex::new(Reader {
            socket,
            sequence: 0,
            is_running: false,
        })))
    }

    /// Asks for a whole table; what `read` makes of its rows. A dump that the kernel reports as inconsistent is
    /// made again.
    pub(crate) async fn rows<T, C: Default + Extend<T>>(
        &self,
        request: &str,
        message: &RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<C, Error> {
        let mut reader = self.0.lock().await;
        for _ in 0..TRIES {
            if let Some(rows) = reader.dump(request, message.clone(), &read).await? {
                return Ok(rows);
            }
        }
        let request = request.to_owned();
        Err(Error::Interrupted { request, tries: TRIES })
    }
}

impl Reader {
    /// One dump; `None` when a change interrupted it.
    async fn dump<T, C: Default + Extend<T>>(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<C>, Error> {
        // One that its caller gave up has to come to its end: the kernel makes one at a time for a socket.
        while self.is_running {
            self.receive(request, |_| {}).await?;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = SocketAddr::new(0, 0);
        let sent = poll_fn(|cx| self.socket.poll_send_to(cx, &bytes, &kernel)).await;
        sent.map_err(Error::io(request))?;
        self.is_running = true;
        let (mut rows, mut refused) = (C::default(), 0);
        let mut interrupted = false;
        while self.is_running {
            interrupted |= self
                .receive(request, |told| match told {
                    Told::Row(row) => rows.extend(read(row)),
                    Told::Refused(errno) => refused = errno,
                    Told::End | Told::Nothing => {}
                })
                .await?;
        }
        if refused != 0 {
            return Err(Error::Kernel {
                request: request.to_owned(),
                hint: None,
                source: KernelError {
                    errno: refused,
                    message: None,
                },
            });
        }
        Ok((!interrupted).then_some(rows))
    }

    /// Takes one datagram; whether it tells of an interruption.
    async fn receive(&mut self, request: &str, mut take: impl FnMut(Told)) -> Result<bool, Error> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let received = tokio::time::timeout(ANSWER, poll_fn(|cx| self.socket.poll_recv(cx, &mut buffer))).await;
        let Ok(received) = received else {
            // Nothing is to come of it any more.
            self.is_running = false;
            let (request, seconds) = (request.to_owned(), ANSWER.as_secs());
            return Err(Error::Timeout { request, seconds });
        };
        received.map_err(Error::io(request))?;
        let (mut rest, mut interrupted) = (buffer.as_slice(), false);
        while let Some(message) = next_message(&mut rest) {
            let Some((flags, told)) = read(message, self.sequence) else {
                continue;
            };
            interrupted |= flags & NLM_F_DUMP_INTR != 0;
            self.is_running &= !matches!(told, Told::End | Told::Refused(_));
            take(told);
        }
        Ok(interrupted)
    }
}

/// Reads a message (struct nlmsghdr, and the number behind it in those that end a dump): its flags, and what it
/// says. `None` where it is of another dump.
fn read(message: &[u8], sequence: u32) -> Option<(u16, Told)> {
    let half = |at: usize| Some(u16::from_ne_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    if word(8)? != sequence {
        return None;
    }
    let told = match half(4)? {
        kind @ (NLMSG_DONE | NLMSG_ERROR) => match word(16).map_or(0, |code| code as i32) {
            code if code < 0 => Told::Refused(-code),
            // An acknowledgement is not the end.
            _ if kind == NLMSG_ERROR => Told::Nothing,
            _ => Told::End,
        },
        _ => match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
            Ok(NetlinkPayload::InnerMessage(row)) => Told::Row(row),
            // A row that cannot be read is none of ours: ours are of known form.
            _ => Told::Nothing,
        },
    };
    Some((half(6)?, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = 16 + body.len() as u32;
        let head = [kind.to_ne_bytes(), flags.to_ne_bytes()].concat();
        [&length.to_ne_bytes()[..], &head, &sequence.to_ne_bytes(), &[0; 4], body].concat()
    }

    #[test]
    fn the_end_of_a_dump_is_its_own() {
        let ends = |m: &[u8]| read(m, 7).map(|(flags, told)| (flags, matches!(told, Told::End)));
        assert_eq!(ends(&message(NLMSG_DONE, 2, 7, &[0; 4])), Some((2, true)));
        assert_eq!(ends(&message(NLMSG_DONE, NLM_F_DUMP_INTR, 7, &[])), Some((NLM_F_DUMP_INTR, true)));
        assert_eq!(ends(&message(NLMSG_DONE, 2, 6, &[0; 4])), None, "of a former one");
        assert_eq!(ends(&message(NLMSG_ERROR, 0, 7, &[0; 4])), Some((0, false)));
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            let refused = message(kind, 0, 7, &(-16i32).to_ne_bytes());
            assert!(matches!(read(&refused, 7), Some((0, Told::Refused(16)))), "{kind}");
        }
        for cut in 0..16 {
            assert!(read(&message(NLMSG_DONE, 2, 7, &[0; 4])[..cut], 7).is_none() || cut >= 12, "{cut}");
        }
    }
}

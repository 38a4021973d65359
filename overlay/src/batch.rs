//! Sends many requests to the kernel in one system call. A large cluster has more forwarding entries than can be
//! waited for one after the other.
//!
//! Used by [`crate::entries`].

use std::{collections::BTreeMap, future::poll_fn, time::Duration};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::sync::Mutex;

use crate::{
    error::{Error, KernelError},
    monitor::next_message,
    socket::explanation,
};

/// Requests that are sent at once. The refusals of all of them fit in a socket's buffer: 212,992 bytes as the
/// kernel has it (net.core.rmem_default), and it counts 768 for one.
pub(crate) const AT_ONCE: usize = 128;
/// Bytes of a datagram of answers, and more: each comes in one of its own.
const DATAGRAM: usize = 8 * 1024;
/// The kernel answers at once; this bounds the wait for an answer that was lost.
const ANSWER: Duration = Duration::from_secs(10);

/// A netlink socket for requests that come in numbers, one lot after the other.
pub(crate) struct Batches(Mutex<Writer>);

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Batches")
    }
}

struct Writer {
    socket: TokioSocket,
    /// Number of the next request.
    next: u32,
}

impl Batches {
    /// Opens it in the calling thread's network namespace. Must be called within a tokio runtime.
    pub(crate) fn open() -> Result<Self, Error> {
        let failed = || Error::io("open a netlink socket");
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed())?;
        socket.socket_mut().set_ext_ack(true).map_err(failed())?;
        socket.socket_mut().set_cap_ack(true).map_err(failed())?;
        Ok(Self(Mutex::new(Writer { socket, next: 1 })))
    }

    /// Has the kernel carry out requests in their order, [`AT_ONCE`] at most, with these flags and
    /// `NLM_F_REQUEST`. What it refused, by the request's place; the others were carried out.
    ///
    /// # Errors
    /// When that is not known.
    pub(crate) async fn send(&self, messages: Vec<RouteNetlinkMessage>, flags: u16) -> Result<BTreeMap<usize, KernelError>, Error> {
        let mut writer = self.0.lock().await;
        let request = || format!("send {} requests at once", messages.len());
        let (first, count) = (writer.next, u32::try_from(messages.len()).unwrap_or(u32::MAX));
        writer.next = first.wrapping_add(count);
        let mut bytes = Vec::new();
        for (at, message) in (0..count).zip(messages.iter().cloned()) {
            let mut message = NetlinkMessage::from(message);
            // It tells of a refusal anyway, and goes from one to the next: an answer to the last is one to all.
            let ack = if at + 1 == count { NLM_F_ACK } else { 0 };
            message.header.flags = NLM_F_REQUEST | flags | ack;
            message.header.sequence_number = first.wrapping_add(at);
            message.finalize();
            let from = bytes.len();
            bytes.resize(from + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[from..]);
        }
        let kernel = SocketAddr::new(0, 0);
        let sent = poll_fn(|cx| writer.socket.poll_send_to(cx, &bytes, &kernel)).await;
        sent.map_err(Error::io(request()))?;
        let mut refused = BTreeMap::new();
        let mut is_over = count == 0;
        while !is_over {
            let mut buffer = Vec::with_capacity(DATAGRAM);
            let received = tokio::time::timeout(ANSWER, poll_fn(|cx| writer.socket.poll_recv(cx, &mut buffer))).await;
            received
                .map_err(|_| Error::Timeout {
                    request: request(),
                    seconds: ANSWER.as_secs(),
                })?
                .map_err(Error::io(request()))?;
            let mut rest = buffer.as_slice();
            while let Some(message) = next_message(&mut rest) {
                // Others are of requests whose answers nobody waited for.
                let Some((at, refusal)) = answer(message, first).filter(|(at, _)| *at < count) else {
                    continue;
                };
                is_over |= at + 1 == count;
                refused.extend(refusal.map(|refusal| (at as usize, refusal)));
            }
        }
        Ok(refused)
    }
}

/// Reads an answer: to which request after the `first`, and the refusal if it is one.
fn answer(message: &[u8], first: u32) -> Option<(u32, Option<KernelError>)> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::Error(e) = message.payload else { return None };
    let refusal = e.code.map(|code| KernelError {
        errno: code.get().abs(),
        message: explanation(&e),
    });
    Some((message.header.sequence_number.wrapping_sub(first), refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct nlmsghdr and struct nlmsgerr with NETLINK_CAP_ACK.
    fn told(sequence: u32, code: i32) -> Vec<u8> {
        let words = [36, 2, sequence, 0, code as u32, 16, 0, 0, 0];
        words.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect()
    }

    #[test]
    fn answers_are_those_of_their_requests() {
        let refusal = |errno| Some(KernelError { errno, message: None });
        assert_eq!(answer(&told(7, 0), 5), Some((2, None)));
        assert_eq!(answer(&told(u32::MAX, -17), u32::MAX), Some((0, refusal(17))));
        assert_eq!(answer(&told(1, -17), u32::MAX), Some((2, refusal(17))), "numbers begin anew");
        assert!(
            answer(&told(4, 0), 5).is_some_and(|(at, _)| at as usize > AT_ONCE),
            "of a former lot"
        );
        for cut in 0..36 {
            assert_eq!(answer(&told(7, 0)[..cut], 5), None, "{cut}");
        }
    }
}

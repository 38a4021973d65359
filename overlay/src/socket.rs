//! One rtnetlink connection: requests that are acknowledged, and dumps that are complete or an
//! error. The other rooms build messages and hand them over here.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, sys::AsyncSocket};
use tokio::task::JoinHandle;

use crate::{
    error::{Error, KernelError},
    known::Known,
    netns::{self, Netns},
};

/// The kernel answers at once; this bounds the wait for an answer that was lost.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a dump is made again that was interrupted by a change.
const TRIES: u32 = 8;
/// Length of a netlink header (struct nlmsghdr).
const HEADER: usize = 16;
/// The kernel's explanation, a text (include/uapi/linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A connection to the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Socket {
    handle: Handle,
    task: JoinHandle<()>,
    /// What is known of that namespace's entries.
    pub(crate) known: Arc<Known>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace. Must be called within a tokio runtime.
    pub(crate) fn open() -> Result<Self, Error> {
        let failed = || Error::io("open a netlink socket");
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(failed())?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true).map_err(failed())?;
        socket.set_cap_ack(true).map_err(failed())?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
            known: Arc::default(),
        })
    }

    /// Opens one in another network namespace.
    pub(crate) async fn open_in(netns: &Netns) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        netns
            .run(move || {
                let _context = runtime.enter();
                Self::open()
            })
            .await?
    }

    /// As [`Self::open_in`], with the namespace's cookie ([`netns::cookie`]), which can only be read there.
    pub(crate) async fn open_with_cookie(netns: &Netns) -> Result<(Self, u64), Error> {
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let _context = runtime.enter();
            (Self::open(), netns::own_cookie())
        };
        let (socket, cookie) = netns.run(work).await?;
        let cookie = cookie.map_err(Error::io(format!("read the cookie of {}", netns.path())))?;
        Ok((socket?, cookie))
    }

    /// Sends a request that changes something, and waits until it is done. `flags` adds to
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(crate) async fn change(&self, request: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.exchange(request.into(), message, flags | NLM_F_ACK).await.map(drop)
    }

    /// Asks for one object.
    pub(crate) async fn get(&self, request: impl Into<String>, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(request.into(), message, NLM_F_ACK).await
    }

    /// Asks for a whole table. A dump that the kernel reports as inconsistent is made again.
    pub(crate) async fn dump(&self, request: impl Into<String>, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let request = request.into();
        for _ in 0..TRIES {
            match self.exchange(request.clone(), message.clone(), NLM_F_DUMP).await {
                Err(Error::Interrupted { .. }) => {}
                answer => return answer,
            }
        }
        Err(Error::Interrupted { request, tries: TRIES })
    }

    async fn exchange(&self, request: String, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        let Ok(answers) = self.handle.clone().request(message) else {
            return Err(Error::Closed { request });
        };
        let mut answers = std::pin::pin!(answers);
        let (mut rows, mut interrupted) = (Vec::new(), false);
        let deadline = tokio::time::Instant::now() + ANSWER;
        loop {
            let answer = match tokio::time::timeout_at(deadline, answers.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(Error::Closed { request }),
                Err(_) => {
                    return Err(Error::Timeout {
                        request,
                        seconds: ANSWER.as_secs(),
                    });
                }
            };
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            let refused = match answer.payload {
                NetlinkPayload::InnerMessage(row) => {
                    rows.push(row);
                    continue;
                }
                NetlinkPayload::Error(e) => e.code.map(|code| KernelError {
                    errno: code.get().abs(),
                    message: explanation(&e),
                }),
                NetlinkPayload::Done(d) => (d.code < 0).then_some(KernelError {
                    errno: -d.code,
                    message: None,
                }),
                NetlinkPayload::Overrun(_) => return Err(Error::Interrupted { request, tries: 1 }),
                _ => continue,
            };
            return match refused {
                Some(source) => Err(Error::Kernel {
                    request,
                    hint: None,
                    source,
                }),
                None if interrupted => Err(Error::Interrupted { request, tries: 1 }),
                None => Ok(rows),
            };
        }
    }
}

/// The text of an extended acknowledgement. With NETLINK_CAP_ACK the attributes follow the header of
/// the refused request.
pub(crate) fn explanation(error: &ErrorMessage) -> Option<String> {
    let attributes = error.header.get(HEADER..)?;
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .map(|nla| {
            let text = nla.value();
            String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
        })
}

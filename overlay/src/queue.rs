//! Queues that limit how much leaves by an end of a veth: token buckets (net/sched/sch_tbf.c) at its root. Called by
//! [`crate::veth`], which puts them there, and [`crate::survey`] and [`crate::inside`], which find them.
//!
//! The upper half of a queue's handle says that it is meshd's, and of which parameters: the kernel tells what rate a
//! bucket has and how much waits for it, but not how much it holds.

use std::collections::HashMap;

use mesh_core::{desired::Queue, observed::SeenQueue};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE, Nla, NlasIterator};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use crate::{error::Error, link::Device, socket::Socket, tables::Tables};

/// What a token bucket is called.
pub(crate) const KIND: &str = "tbf";
/// Of handles that are not the kernel's choice (which are 0x8000 and up), those whose lower 14 bits are a
/// [`Queue::mark`].
const MARKED: u16 = 0x4000;

// include/uapi/linux/pkt_sched.h
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// Where struct tc_tbf_qopt has the rate in bytes per second, and the bytes that may wait.
const RATE: usize = 8;
const LIMIT: usize = 24;

/// Gives a device that queue, in place of what it has; `None` takes away the one that meshd gave it.
pub(crate) async fn put(socket: &Socket, tables: &Tables, device: &Device, queue: Option<&Queue>) -> Result<(), Error> {
    match queue {
        Some(queue) => set(socket, device, queue).await,
        None if device.is_shaped => match all(tables).await?.get(&device.index) {
            Some(_) => {
                let del = RouteNetlinkMessage::DelQueueDiscipline(message(device));
                socket.change(format!("remove the queue of {}", device.name), del, 0).await
            }
            None => Ok(()),
        },
        None => Ok(()),
    }
}

/// Gives a device that queue, in place of what it has.
pub(crate) async fn set(socket: &Socket, device: &Device, queue: &Queue) -> Result<(), Error> {
    let mut new = message(device);
    new.header.handle = TcHandle {
        major: MARKED | queue.mark(),
        minor: 0,
    };
    let option = |kind, value: &[u8]| TcOption::Other(DefaultNla::new(kind, value.to_vec()));
    new.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Options(vec![
            option(TCA_TBF_PARMS, &parameters(queue)),
            option(TCA_TBF_RATE64, &queue.rate.to_ne_bytes()),
            option(TCA_TBF_BURST, &queue.burst.to_ne_bytes()),
        ]),
    ];
    let request = format!("limit what leaves by {} to {} bytes/s", device.name, queue.rate);
    let done = socket.change(request, RouteNetlinkMessage::NewQueueDiscipline(new), NLM_F_CREATE | NLM_F_REPLACE);
    done.await.map_err(|e| match e.is(&[libc::ENOENT]) {
        true => e.with_hint("bandwidth needs a kernel with sch_tbf, CONFIG_NET_SCH_TBF, and this one has none".to_owned()),
        false => e,
    })
}

/// struct tc_tbf_qopt: the rate, no peak rate, and the limit. The bucket's size is told by TCA_TBF_BURST, in bytes,
/// instead of here, in ticks.
fn parameters(queue: &Queue) -> [u8; 36] {
    let mut out = [0; 36];
    // struct tc_ratespec. With a link layer the kernel asks for no table of transmission times.
    out[1] = TC_LINKLAYER_ETHERNET;
    out[RATE..RATE + 4].copy_from_slice(&u32::try_from(queue.rate).unwrap_or(u32::MAX).to_ne_bytes());
    out[LIMIT..LIMIT + 4].copy_from_slice(&queue.limit.to_ne_bytes());
    out
}

/// A number of struct tc_tbf_qopt.
fn word(parameters: &[u8], at: usize) -> Option<u32> {
    let bytes = parameters.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// The root of a device.
fn message(device: &Device) -> TcMessage {
    let mut m = TcMessage::with_index(device.index as i32);
    m.header.parent = TcHandle::ROOT;
    m
}

/// The queues that meshd has given, by the index of their device.
pub(crate) async fn all(tables: &Tables) -> Result<HashMap<u32, SeenQueue>, Error> {
    let read = |row| match row {
        RouteNetlinkMessage::NewQueueDiscipline(m) => read(&m),
        _ => None,
    };
    let ask = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    tables.rows("list queues", &ask, read).await
}

/// The queue of a device, if meshd has given it.
pub(crate) async fn at(socket: &Socket, device: &Device) -> Result<Option<SeenQueue>, Error> {
    if !device.is_shaped {
        return Ok(None);
    }
    let ask = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(device.index as i32));
    let rows = socket.dump(format!("list the queues of {}", device.name), ask).await?;
    let all = rows.iter().filter_map(|row| match row {
        RouteNetlinkMessage::NewQueueDiscipline(m) => read(m),
        _ => None,
    });
    Ok(all.filter(|(index, _)| *index == device.index).map(|(_, seen)| seen).next())
}

fn read(m: &TcMessage) -> Option<(u32, SeenQueue)> {
    let is_bucket = m.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == KIND));
    let TcHandle { major, minor } = m.header.handle;
    let is_ours = is_bucket && m.header.parent == TcHandle::ROOT && minor == 0 && major & !0x3fff == MARKED;
    if !is_ours {
        return None;
    }
    let options = m.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    });
    // Of a kind that the library does not know it keeps all options as one, unread.
    let Some(TcOption::Other(nla)) = options else { return None };
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    let mut parameters = None;
    let mut above = None;
    for option in NlasIterator::new(&bytes[..]).filter_map(Result::ok) {
        match option.kind() {
            TCA_TBF_PARMS => parameters = Some((word(option.value(), RATE)?, word(option.value(), LIMIT)?)),
            // Where 32 bits do not hold it.
            TCA_TBF_RATE64 => above = option.value().first_chunk().map(|b| u64::from_ne_bytes(*b)),
            _ => {}
        }
    }
    let (rate, limit) = parameters?;
    let seen = SeenQueue {
        mark: major & 0x3fff,
        rate: above.unwrap_or(u64::from(rate)),
        limit,
    };
    Some((m.header.index as u32, seen))
}

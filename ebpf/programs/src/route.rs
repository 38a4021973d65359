//! Where a client's packet goes: the flow's backend, or one that is chosen now.
//!
//! Called by from_uplink, from_overlay, from_container and sockets.

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

use mesh_ebpf_common::{
    Reason,
    flow::{self, Judgement},
    list,
    rows::{Affinity, AffinityKey, Backend, Flow, FlowKey, Service, TCP, method},
};

use crate::{
    event,
    maps::{AFFINITY, BACKENDS, FLOWS, FLOWS_KEPT, MEMBERS, SERVICES, admitted, count, count_flow, count_packet, stat_row},
    skb::random,
    work::Work,
};

/// BPF_ANY and BPF_NOEXIST.
pub const ANY: u64 = 0;
const NOEXIST: u64 = 1;
/// How many members are looked at for one choice: a list may name a backend that is just going.
const TRIES: u32 = 4;
/// How many members are looked at to find a client's former one whose place has changed.
const SEARCH: u32 = 64;

/// Where to.
pub enum Route {
    /// To this backend.
    To(*mut Flow, &'static Backend),
    /// The service has none.
    Empty,
    /// The connection's backend is gone.
    Gone,
    /// A reset of no flow.
    Stray,
    /// No room for the flow.
    Full,
    /// The client is not admitted.
    Denied,
}

/// What a new flow is given.
#[derive(Clone, Copy)]
pub struct New {
    /// The set that chooses, with its flags.
    pub service: u32,
    pub kind: u8,
    /// Its replies do not come by here.
    pub direct: bool,
    pub target: u16,
    pub entry: [u8; 6],
    /// See [`Flow::client`].
    pub client: u32,
    /// Nobody asks whether the client is admitted: it is a process of a node.
    pub admitted: bool,
}

/// Marks a flow's or a reply's row by a packet. `last_seen` and `bits` belong to one row.
#[inline(always)]
pub fn touch(last_seen: *mut u64, bits: *mut u32, flags: u8, forward: bool, now: u64) {
    let add = flow::advance(flags, forward);
    // SAFETY: both point into a row looked up in this run. A row that the LRU has just given to
    // another flow gets a newer time at worst.
    unsafe {
        let news = add & !*bits != 0;
        if news {
            atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(bits, add);
        }
        if news || now.saturating_sub(*last_seen) > flow::TOUCH_NS {
            *last_seen = now;
        }
    }
}

/// The row of a flow, and whether it is one that is kept.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<(*mut Flow, bool)> {
    match FLOWS_KEPT.get_ptr_mut(key) {
        Some(f) => Some((f, true)),
        None => FLOWS.get_ptr_mut(key).map(|f| (f, false)),
    }
}

/// Puts the row in `w`, where one is kept in its place, so that it is never in two tables; returns
/// where it is.
#[inline(always)]
pub fn put(w: &Work, kept: bool, flags: u64) -> Option<*mut Flow> {
    if kept {
        let _ = FLOWS_KEPT.insert(&w.key, &w.flow, ANY);
        FLOWS_KEPT.get_ptr_mut(&w.key)
    } else {
        let _ = FLOWS.insert(&w.key, &w.flow, flags);
        FLOWS.get_ptr_mut(&w.key)
    }
}

/// Keeps the flow of the packet in `w` from now on, if both its ends have been heard; returns where
/// its row is.
#[inline(always)]
pub fn keep(w: &mut Work, f: *mut Flow, kept: bool) -> *mut Flow {
    // SAFETY: a row looked up in this run; so below.
    let proven = !kept && unsafe { flow::proven(w.key.proto, w.flags, (*f).bits) };
    if !proven {
        return f;
    }
    // SAFETY: as above.
    w.flow = unsafe { *f };
    // Another CPU may do the same: the row is the same too.
    let there = FLOWS_KEPT.insert(&w.key, &w.flow, NOEXIST).is_ok();
    match FLOWS_KEPT.get_ptr_mut(&w.key) {
        Some(row) => {
            if there {
                let _ = FLOWS.remove(&w.key);
                count(Reason::Kept);
            }
            row
        }
        None => {
            count(Reason::NotKept);
            f
        }
    }
}

/// Routes the packet in `w`. `inside`: the client may be a backend itself.
#[inline(always)]
pub fn route(w: &mut Work, new: New, inside: bool, now: u64) -> Route {
    let old = find(&w.key);
    // SAFETY: rows looked up in this run, copied out or read at once; so below.
    let seen = old.map(|(f, _)| unsafe { ((*f).bits, (*f).last_seen) });
    let backend = old.and_then(|(f, _)| unsafe { BACKENDS.get(&(*f).backend) });
    // A port or VIP that has become another service's keeps its connections, and nothing else.
    let ours = w.key.proto == TCP && !flow::opens(w.key.proto, w.flags)
        || old.is_some_and(|(f, _)| unsafe { (*f).service == new.service && (*f).target == new.target });
    match (
        flow::judge(w.key.proto, w.flags, seen, ours && backend.is_some(), now),
        old,
        backend,
    ) {
        (Judgement::Keep, Some((f, kept)), Some(backend)) => {
            // SAFETY: as above.
            unsafe { touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, true, now) };
            let f = keep(w, f, kept);
            // SAFETY: as above.
            count_packet(unsafe { (*f).stat }, w.len, true);
            return Route::To(f, backend);
        }
        (Judgement::Reset, ..) => return Route::Gone,
        _ => {}
    }
    if w.flags & flow::RST != 0 {
        return Route::Stray;
    }
    w.service = new.service;
    let chosen = match choose(new.service, &w.key, inside, new.admitted, now) {
        Choice::Backend(chosen) => chosen,
        Choice::Empty => return Route::Empty,
        Choice::Denied => return Route::Denied,
    };
    w.backend = chosen;
    let stat = stat_row(new.service, chosen);
    w.flow = Flow {
        last_seen: now,
        backend: chosen,
        bits: flow::advance(w.flags, true) | if new.direct { flow::DIRECT } else { 0 },
        service: new.service,
        client: new.client,
        stat,
        cport: 0,
        target: new.target,
        entry: new.entry,
        kind: new.kind,
        zero: 0,
    };
    let kept = old.is_some_and(|(_, kept)| kept);
    // Another CPU may have chosen for the same flow meanwhile: the first one counts.
    let Some(f) = put(w, kept, if old.is_some() { ANY } else { NOEXIST }) else {
        return Route::Full;
    };
    // SAFETY: as above.
    let Some(backend) = (unsafe { BACKENDS.get(&(*f).backend) }) else {
        return Route::Empty;
    };
    count(Reason::NewFlow);
    count_flow(stat);
    count_packet(stat, w.len, true);
    event::flow();
    Route::To(f, backend)
}

/// A backend for a new flow.
pub enum Choice {
    /// This one, by its number.
    Backend(u32),
    /// There is none.
    Empty,
    /// The client is not admitted.
    Denied,
}

/// Chooses from the set `service` for the flow `key`. If the client may be a backend itself (`inside`) and
/// the choice falls on it, the one after it is taken, if there is another.
#[inline(always)]
pub fn choose(service: u32, key: &FlowKey, inside: bool, is_admitted: bool, now: u64) -> Choice {
    let asked = u32::from(inside) * INSIDE | u32::from(is_admitted) * ADMITTED;
    match chosen(service, key, asked, now) {
        EMPTY => Choice::Empty,
        DENIED => Choice::Denied,
        backend => Choice::Backend(backend as u32),
    }
}

/// Of [`chosen`]: the client may be a backend itself; it is admitted already.
const INSIDE: u32 = 1;
const ADMITTED: u32 = 2;
/// No backends, in numbers that none has.
const EMPTY: u64 = 0;
const DENIED: u64 = u64::MAX;

/// As [`choose`], in numbers. Not inlined: its callers' stacks, and those that they call, have 512 bytes
/// together (Linux 6.1 counts each in steps of 32).
#[inline(never)]
fn chosen(service: u32, key: &FlowKey, asked: u32, now: u64) -> u64 {
    // SAFETY: rows are replaced as a whole, and these maps keep a removed row until no program that
    // may have it runs; so below.
    let Some(list) = (unsafe { SERVICES.get(&service) }).copied() else {
        return EMPTY;
    };
    if list.ranged != 0 && asked & ADMITTED == 0 && !admitted(service, &key.src) {
        return DENIED;
    }
    if list.count == 0 {
        return EMPTY;
    }
    let client = AffinityKey { service, addr: key.src };
    if list.affinity != 0
        && let Some(backend) = former(&client, &list, now)
    {
        return backend.into();
    }
    let start = match list.method {
        method::RANDOM => random().into(),
        method::SOURCE => flow::hash_source(key).into(),
        method::FLOW => flow::hash_flow(key).into(),
        _ => MEMBERS.get_ptr_mut(list.first).map_or(0, |turns| {
            // Not relaxed: LLVM 22 then takes the instruction that returns nothing, and 1 for its result.
            // SAFETY: eight aligned bytes of a row looked up in this run.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(turns, 1) }
        }),
    };
    let mut fallback = 0u32;
    for i in 0..TRIES {
        let at = start + u64::from(i);
        let place = place(&list, (at % u64::from(list.count)) as u32);
        let found = member(&list, place);
        // SAFETY: as above.
        let Some(backend) = (unsafe { BACKENDS.get(&found) }) else {
            continue;
        };
        if asked & INSIDE != 0 && key.src.same(&backend.addr(&key.src)) {
            fallback = found;
            continue;
        }
        if list.affinity != 0 {
            let row = Affinity {
                last_seen: now,
                backend: found,
                index: place,
            };
            // A failure costs the client its backend, no more.
            let _ = AFFINITY.insert(&client, &row, ANY);
        }
        return found.into();
    }
    fallback.into()
}

/// The client's former backend, if that was not too long ago and it still takes new flows.
#[inline(always)]
fn former(client: &AffinityKey, list: &Service, now: u64) -> Option<u32> {
    let row = AFFINITY.get_ptr_mut(client)?;
    // SAFETY: a row looked up in this run.
    let row = unsafe { &mut *row };
    if now.saturating_sub(row.last_seen) > u64::from(list.affinity) * 1_000_000_000 {
        return None;
    }
    let members = if list.members != 0 { list.members.into() } else { list.count };
    let mut found = row.index < members && member(list, row.index) == row.backend;
    if !found {
        for i in 0..SEARCH {
            if i >= members {
                break;
            }
            if member(list, i) == row.backend {
                row.index = i;
                found = true;
                break;
            }
        }
    }
    if !found {
        // Who is not in the list takes no new flows.
        return None;
    }
    row.last_seen = now;
    Some(row.backend)
}

/// A word of the list. The words of one that is replaced stay what they are until no program that may
/// read them runs.
#[inline(always)]
fn word(list: &Service, at: u32) -> u64 {
    MEMBERS.get(list.first + at).copied().unwrap_or(0)
}

/// The backend at `place` among those of the list; 0, which is nobody's number, if there is none.
#[inline(always)]
fn member(list: &Service, place: u32) -> u32 {
    let (at, shift) = list::member(place);
    (word(list, at) >> shift) as u32
}

/// The place of the backend of the entry `index`.
#[inline(always)]
fn place(list: &Service, index: u32) -> u32 {
    if list.members == 0 {
        return index;
    }
    let (at, shift, mask) = list::entry(list.members.into(), index);
    (word(list, at) >> shift & mask) as u32
}

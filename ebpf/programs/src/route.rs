//! Where a client's packet goes: the flow's backend, or one that is chosen now.
//!
//! Called by from_uplink, from_overlay, from_container and sockets.

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

use mesh_ebpf_common::{
    Reason,
    flow::{self, Judgement},
    rows::{Addr, Affinity, AffinityKey, Backend, FEW, Flow, FlowKey, MemberKey, PART, Service, TCP, kind, method},
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

/// Routes the packet in `w`. `own`: the address of the client if it may be a backend itself.
#[inline(always)]
pub fn route(w: &mut Work, new: New, own: Option<Addr>, now: u64) -> Route {
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
    let (slot, chosen) = match choose(new.service, &w.key, own, new.admitted, now, &mut w.list) {
        Choice::Backend(slot, backend) => (slot, backend),
        Choice::Empty => return Route::Empty,
        Choice::Denied => return Route::Denied,
    };
    w.backend = slot;
    let stat = stat_row(new.service, slot);
    let carried = new.kind == kind::INGRESS && new.client == 0 && chosen.local == 0;
    w.flow = Flow {
        last_seen: now,
        backend: slot,
        bits: flow::advance(w.flags, true) | if new.direct { flow::DIRECT } else { 0 },
        service: new.service,
        client: new.client,
        stat,
        cport: 0,
        target: new.target,
        entry: if carried { chosen.mac } else { new.entry },
        kind: if carried { kind::CARRIED } else { new.kind },
        zero: 0,
    };
    let kept = old.is_some_and(|(_, kept)| kept);
    // Another CPU may have chosen for the same flow meanwhile: the first one counts.
    let Some(f) = put(w, kept, if old.is_some() { ANY } else { NOEXIST }) else {
        return Route::Full;
    };
    // SAFETY: as above.
    let first = unsafe { (*f).backend };
    let backend = if first == slot {
        chosen
    } else {
        // SAFETY: as above.
        match unsafe { BACKENDS.get(&first) } {
            Some(backend) => backend,
            None => return Route::Empty,
        }
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
    Backend(u32, &'static Backend),
    /// There is none.
    Empty,
    /// The client is not admitted.
    Denied,
}

/// Chooses from the set `service` for the flow `key`. If the choice falls on the client itself, whose
/// address is `own`, the one after it is taken, if there is another. `list`: room for the set's row.
#[inline(always)]
pub fn choose(service: u32, key: &FlowKey, own: Option<Addr>, is_admitted: bool, now: u64, list: &mut Service) -> Choice {
    let Some(row) = SERVICES.get_ptr_mut(&service) else {
        return Choice::Empty;
    };
    // At once: a row that is replaced may be another set's as soon as it is (bpf_mem_free in kernel/bpf/hashtab.c,
    // since Linux 6.1). It is a row of this map for as long as this run may read it.
    // SAFETY: a row of a map, which is valid whatever it holds; so below.
    *list = unsafe { *row };
    if list.ranged != 0 && !is_admitted && !admitted(service, &key.src) {
        return Choice::Denied;
    }
    let mut count = list.count;
    if count == 0 {
        return Choice::Empty;
    }
    let client = AffinityKey { service, addr: key.src };
    if list.affinity != 0
        && let Some(slot) = former(&client, list, now)
        // SAFETY: as above.
        && let Some(backend) = unsafe { BACKENDS.get(&slot) }
    {
        return Choice::Backend(slot, backend);
    }
    let start = match list.method {
        method::RANDOM => random().into(),
        method::SOURCE => flow::hash_source(key).into(),
        method::FLOW => flow::hash_flow(key).into(),
        // Not relaxed: LLVM 22 then takes the instruction that returns nothing, and 1 for its result.
        // SAFETY: eight aligned bytes of a row looked up in this run.
        _ => unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(&raw mut (*row).turn, 1) },
    };
    // No backend has this number.
    let mut fallback = 0;
    for i in 0..TRIES {
        let at = start + u64::from(i);
        let place = (at % u64::from(count)) as u32;
        let Some(found) = member(service, list, place) else {
            // The list was replaced between the two look-ups.
            // SAFETY: as above.
            let Some(newer) = (unsafe { SERVICES.get(&service) }) else {
                return Choice::Empty;
            };
            *list = *newer;
            count = list.count;
            if count == 0 {
                return Choice::Empty;
            }
            continue;
        };
        // SAFETY: as above.
        let Some(backend) = (unsafe { BACKENDS.get(&found) }) else {
            continue;
        };
        match own {
            Some(own) if own.same(&backend.addr(&own)) => fallback = found,
            _ => {
                if list.affinity != 0 {
                    remember(&client, found, place, now);
                }
                return Choice::Backend(found, backend);
            }
        }
    }
    // SAFETY: as above.
    match unsafe { BACKENDS.get(&fallback) } {
        Some(backend) => Choice::Backend(fallback, backend),
        None => Choice::Empty,
    }
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
    let former = row.backend;
    let mut found = row.index < list.count && member(client.service, list, row.index).is_some_and(|member| member == former);
    // What is behind the list's last member is 0.
    if list.count <= FEW {
        found = found || search(&list.members, former, 0, &mut row.index);
    } else {
        for number in 0..SEARCH / PART {
            if found || number * PART >= list.count {
                break;
            }
            let Some(part) = part(client.service, list, number) else { break };
            found = search(part, former, number * PART, &mut row.index);
        }
    }
    // Who is not in the list takes no new flows.
    if !found {
        return None;
    }
    row.last_seen = now;
    Some(former)
}

/// Whether `former` is among these members, and where, from the place `first` of the first of them on.
#[inline(always)]
fn search(members: &[u32], former: u32, first: u32, place: &mut u32) -> bool {
    let mut found = false;
    for (i, member) in (first..).zip(members) {
        if *member == former {
            *place = i;
            found = true;
        }
    }
    found
}

#[inline(always)]
fn remember(client: &AffinityKey, found: u32, place: u32, now: u64) {
    let row = Affinity {
        last_seen: now,
        backend: found,
        index: place,
    };
    // A failure costs the client its backend, no more.
    let _ = AFFINITY.insert(client, &row, ANY);
}

#[inline(always)]
fn member(service: u32, list: &Service, index: u32) -> Option<u32> {
    if list.count <= FEW {
        return Some(list.members[(index % FEW) as usize]);
    }
    Some(part(service, list, index / PART)?[(index % PART) as usize])
}

/// A row of a list that is not in its service's row.
#[inline(always)]
fn part(service: u32, list: &Service, number: u32) -> Option<&'static [u32; PART as usize]> {
    let key = MemberKey {
        service,
        bank: list.bank,
        part: number,
    };
    // SAFETY: as in `choose`.
    unsafe { MEMBERS.get(&key) }.map(|row| &row.0)
}

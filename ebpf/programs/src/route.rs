//! Where a client's packet goes: the flow's backend, or one that is chosen now.
//!
//! Called by from_uplink and from_container.

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

use mesh_ebpf_common::{
    Reason,
    flow::{self, Judgement},
    rows::{Addr, Backend, Flow, MemberKey, Service, TCP},
};

use crate::{
    maps::{BACKENDS, FLOWS, MEMBERS, SERVICES, TURNS, count},
    work::Work,
};

/// BPF_ANY and BPF_NOEXIST.
const ANY: u64 = 0;
const NOEXIST: u64 = 1;
/// How many members are looked at for one choice: a list may name a backend that is just going.
const TRIES: u32 = 4;

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
}

/// What a new flow is given.
#[derive(Clone, Copy)]
pub struct New {
    pub service: u32,
    pub kind: u8,
    pub target: u16,
    pub entry: [u8; 6],
}

/// Marks a flow's or a reply's row by a packet. `last_seen` and `bits` belong to one row.
#[inline(always)]
pub fn touch(last_seen: *mut u64, bits: *mut u32, flags: u8, forward: bool, now: u64) {
    let add = flow::advance(flags, forward);
    // SAFETY: both point into a row looked up in this run. A row that the LRU has just given to
    // another flow gets a newer time at worst.
    unsafe {
        if add != 0 {
            atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(bits, add);
        }
        if add != 0 || now.saturating_sub(*last_seen) > flow::TOUCH_NS {
            *last_seen = now;
        }
    }
}

/// Routes the packet in `w`. `own`: the address of the client if it may be a backend itself.
#[inline(always)]
pub fn route(w: &mut Work, new: New, own: Option<Addr>, now: u64) -> Route {
    let old = FLOWS.get_ptr_mut(&w.key);
    // SAFETY: rows looked up in this run, copied out or read at once; so below.
    let seen = old.map(|f| unsafe { ((*f).bits, (*f).last_seen) });
    let backend = old.and_then(|f| unsafe { BACKENDS.get(&(*f).backend) });
    // A port or VIP that has become another service's keeps its connections, and nothing else.
    let ours = w.key.proto == TCP && !flow::opens(w.key.proto, w.flags)
        || old.is_some_and(|f| unsafe { (*f).service == new.service && (*f).target == new.target });
    match (
        flow::judge(w.key.proto, w.flags, seen, ours && backend.is_some(), now),
        old,
        backend,
    ) {
        (Judgement::Keep, Some(f), Some(backend)) => {
            // SAFETY: as above.
            unsafe { touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, true, now) };
            return Route::To(f, backend);
        }
        (Judgement::Reset, ..) => return Route::Gone,
        _ => {}
    }
    if w.flags & flow::RST != 0 {
        return Route::Stray;
    }
    let Some(slot) = choose(new.service, own) else {
        return Route::Empty;
    };
    w.flow = Flow {
        last_seen: now,
        backend: slot,
        bits: flow::advance(w.flags, true),
        service: new.service,
        cport: 0,
        target: new.target,
        entry: new.entry,
        kind: new.kind,
        zero: 0,
    };
    // Another CPU may have chosen for the same flow meanwhile: the first one counts.
    let _ = FLOWS.insert(&w.key, &w.flow, if old.is_some() { ANY } else { NOEXIST });
    let Some(f) = FLOWS.get_ptr_mut(&w.key) else { return Route::Full };
    // SAFETY: as above.
    let Some(backend) = (unsafe { BACKENDS.get(&(*f).backend) }) else {
        return Route::Empty;
    };
    count(Reason::NewFlow);
    Route::To(f, backend)
}

/// The next backend in turn; the one after it, if that is the client itself and there is another.
#[inline(always)]
fn choose(service: u32, own: Option<Addr>) -> Option<u32> {
    // SAFETY: rows are replaced as a whole, and these maps keep a removed row until no program that
    // may have it runs.
    let mut list = unsafe { *SERVICES.get(&service)? };
    if list.count == 0 {
        return None;
    }
    let turn = TURNS.get_ptr_mut(&service).map_or(0, |t| {
        // Not relaxed: LLVM 22 then takes the instruction that returns nothing, and 1 for its result.
        // SAFETY: eight aligned bytes of a row looked up in this run.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(t, 1) }
    });
    let mut fallback = None;
    for i in 0..TRIES {
        let slot = match member(service, &list, turn + u64::from(i)) {
            Some(slot) => slot,
            None => {
                // The list was replaced between the two look-ups.
                // SAFETY: as above.
                list = unsafe { *SERVICES.get(&service)? };
                if list.count == 0 {
                    return None;
                }
                let Some(slot) = member(service, &list, turn + u64::from(i)) else {
                    continue;
                };
                slot
            }
        };
        // SAFETY: as above.
        let Some(backend) = (unsafe { BACKENDS.get(&slot) }) else {
            continue;
        };
        match own {
            Some(own) if own.same(&backend.ip) => fallback = Some(slot),
            _ => return Some(slot),
        }
    }
    fallback
}

#[inline(always)]
fn member(service: u32, list: &Service, turn: u64) -> Option<u32> {
    let index = (turn % u64::from(list.count)) as u32;
    let key = MemberKey {
        service,
        bank: list.bank,
        index,
    };
    // SAFETY: as in `choose`.
    unsafe { MEMBERS.get(&key) }.copied()
}

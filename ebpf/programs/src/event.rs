//! Telling who watches. Costs one look at a flag while nobody does.

use mesh_ebpf_common::{
    Reason,
    rows::{Event, told},
    spec::{WATCH_DROPS, WATCH_FLOWS},
};

use crate::{
    maps::{EVENTS, WATCH, count, scratch},
    skb::now,
};

#[inline(always)]
fn watched(what: u32) -> bool {
    WATCH.get(0).is_some_and(|w| w & what != 0)
}

/// Tells of a packet that is dropped.
#[inline(always)]
pub fn dropped(reason: Reason) {
    if watched(WATCH_DROPS) {
        tell(reason, told::DROP);
    }
}

/// Tells of a flow whose backend, in `Work`, was chosen.
#[inline(always)]
pub fn flow() {
    if watched(WATCH_FLOWS) {
        tell(Reason::NewFlow, told::FLOW);
    }
}

#[inline(always)]
fn tell(reason: Reason, told: u16) {
    let Some(w) = scratch() else { return };
    // SAFETY: this CPU's own slot, of which nobody holds a part across this call that is written here.
    let w = unsafe { &mut *w };
    w.event = Event {
        at: now(),
        key: w.key,
        service: w.service,
        backend: w.backend,
        len: w.len,
        ifindex: w.ifindex,
        reason: reason as u16,
        told,
        zero: 0,
    };
    if EVENTS.output::<Event>(&w.event, 0).is_err() {
        count(Reason::EventsLost);
    }
}

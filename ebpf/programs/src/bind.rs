//! The way back: a backend sees client address and port, and must see different flows as different.
//!
//! Two flows collide when one client uses the same port towards two addresses or published ports
//! whose backend is the same. The second one then gets another client port at the backend. The
//! client's address always stays.

use mesh_ebpf_common::{
    Reason,
    flow::{self, closed, opens, stale},
    rows::{Addr, Flow, FlowKey, Reply},
};

use crate::{
    maps::{REPLIES, count},
    route::touch,
    skb::random,
    work::Work,
};

/// BPF_ANY and BPF_NOEXIST.
const ANY: u64 = 0;
const NOEXIST: u64 = 1;
/// Ports that are tried for a flow whose own is taken.
const TRIES: u32 = 16;

/// Makes sure that the reverse of the flow `f` at the backend `ip:target` is this flow's, and returns
/// the client's port as the backend sees it; `None` if no port was free.
#[inline(always)]
pub fn bind(w: &mut Work, f: *mut Flow, ip: Addr, target: u16, kind: u8, now: u64) -> Option<u16> {
    // SAFETY: a row looked up in this run; so below.
    let (cport, entry, bits) = unsafe { ((*f).cport, (*f).entry, (*f).bits) };
    let cport = if cport == 0 { w.key.sport } else { cport };
    w.reply_key = FlowKey {
        src: ip,
        dst: w.key.src,
        sport: target,
        dport: cport,
        proto: w.key.proto,
        zero: [0; 3],
    };
    w.reply = Reply {
        last_seen: now,
        bits,
        dport: w.key.dport,
        cport: w.key.sport,
        dst: w.key.dst,
        entry,
        kind,
        zero: 0,
    };
    // Twice: another CPU may make the row of this very flow between look-up and insert.
    for _ in 0..2 {
        if let Some(r) = REPLIES.get_ptr_mut(&w.reply_key) {
            // SAFETY: as above.
            let row = unsafe { &mut *r };
            if row.cport == w.key.sport && row.dport == w.key.dport && row.kind == kind && row.dst.same(&w.key.dst) {
                if opens(w.key.proto, w.flags) && closed(row.bits) {
                    row.bits = 0;
                }
                row.entry = entry;
                touch(&raw mut row.last_seen, &raw mut row.bits, w.flags, true, now);
                return Some(keep(f, cport));
            }
            if !stale(w.key.proto, row.bits, row.last_seen, now) {
                break;
            }
            return REPLIES.insert(&w.reply_key, &w.reply, ANY).ok().map(|()| keep(f, cport));
        }
        if REPLIES.insert(&w.reply_key, &w.reply, NOEXIST).is_ok() {
            return Some(keep(f, cport));
        }
    }
    for _ in 0..TRIES {
        let port = flow::port(random());
        w.reply_key.dport = port;
        if REPLIES.insert(&w.reply_key, &w.reply, NOEXIST).is_ok() {
            count(Reason::PortTranslated);
            return Some(keep(f, port));
        }
    }
    // Nearly every port of this client is in TIME_WAIT at the backend. A SYN on one of them costs the
    // client a round trip, if its clock is behind; none costs it the connection.
    w.reply_key.dport = cport;
    // SAFETY: as above.
    let over = REPLIES.get_ptr(&w.reply_key).is_some_and(|r| unsafe { closed((*r).bits) });
    (over && REPLIES.insert(&w.reply_key, &w.reply, ANY).is_ok()).then(|| keep(f, cport))
}

#[inline(always)]
fn keep(f: *mut Flow, cport: u16) -> u16 {
    // SAFETY: as in `bind`.
    unsafe {
        if (*f).cport != cport {
            (*f).cport = cport;
        }
    }
    cport
}

/// Marks the rows of a flow by a packet that its backend sent. `w.key` is the packet's 5-tuple, `r`
/// the row that it names; `client` and `asked` are the two ends as the client knows them.
#[inline(always)]
pub fn touch_reverse(w: &mut Work, r: *mut Reply, client: Addr, asked: Addr, now: u64) {
    // SAFETY: a row looked up in this run; so below.
    let row = unsafe { &mut *r };
    // The flow's own row is written when this one is, which is seldom: it costs a look-up.
    let due = flow::advance(w.flags, false) != 0 || now.saturating_sub(row.last_seen) > flow::TOUCH_NS;
    if !due {
        return;
    }
    touch(&raw mut row.last_seen, &raw mut row.bits, w.flags, false, now);
    w.reply_key = FlowKey {
        src: client,
        dst: asked,
        sport: row.cport,
        dport: row.dport,
        proto: w.key.proto,
        zero: [0; 3],
    };
    if let Some(f) = crate::maps::FLOWS.get_ptr_mut(&w.reply_key) {
        // SAFETY: as above.
        unsafe { touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, false, now) };
    }
}

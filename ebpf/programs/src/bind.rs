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
    maps::{REPLIES, REPLIES_KEPT, count, count_packet},
    quick,
    route::{self, touch},
    skb::{jiffies, now, random},
    work::Work,
};

/// BPF_ANY and BPF_NOEXIST.
const ANY: u64 = 0;
const NOEXIST: u64 = 1;
/// Ports that are tried for a flow whose own is taken.
const TRIES: u32 = 16;

/// The row of a way back, and whether it is one that is kept.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<(*mut Reply, bool)> {
    match REPLIES_KEPT.get_ptr_mut(key) {
        Some(r) => Some((r, true)),
        None => REPLIES.get_ptr_mut(key).map(|r| (r, false)),
    }
}

/// Puts the way back in `w` in the place of another's. False: there is no room.
#[inline(always)]
fn replace(w: &Work, kept: bool) -> bool {
    let put = if kept {
        REPLIES_KEPT.insert(&w.reply_key, &w.reply, ANY)
    } else {
        REPLIES.insert(&w.reply_key, &w.reply, ANY)
    };
    put.is_ok()
}

/// Puts the way back of the flow `f` into `w`, for the packet that the backend sends.
#[inline(always)]
fn prepare(w: &mut Work, f: *mut Flow, back: FlowKey, kind: u8, now: u64) {
    // SAFETY: a row looked up in this run.
    let f = unsafe { &*f };
    w.kept = false;
    w.reply_key = back;
    w.reply = Reply {
        last_seen: now,
        bits: f.bits,
        client: f.client,
        stat: f.stat,
        dport: w.key.dport,
        cport: w.key.sport,
        dst: w.key.dst,
        entry: f.entry,
        kind,
        zero: 0,
    };
}

/// What is there already of the way back in `w`.
enum There {
    /// This flow's own.
    Own,
    /// Another's, of the past: it was replaced.
    Replaced,
    /// Another's.
    Taken,
    /// Nothing.
    Nothing,
}

#[inline(always)]
fn there(w: &mut Work, now: u64) -> There {
    let Some((r, kept)) = find(&w.reply_key) else {
        return There::Nothing;
    };
    // SAFETY: a row looked up in this run.
    let row = unsafe { &mut *r };
    let want = &w.reply;
    if row.cport == want.cport && row.dport == want.dport && row.kind == want.kind && row.dst.same(&want.dst) {
        if opens(w.key.proto, w.flags) && closed(row.bits) {
            row.bits = 0;
        }
        row.entry = want.entry;
        touch(&raw mut row.last_seen, &raw mut row.bits, w.flags, true, now);
        w.kept = kept;
        if !kept && flow::proven(w.key.proto, w.flags, row.bits) {
            w.reply = *row;
            if REPLIES_KEPT.insert(&w.reply_key, &w.reply, NOEXIST).is_ok() {
                w.kept = true;
                let _ = REPLIES.remove(&w.reply_key);
            } else {
                count(Reason::NotKept);
            }
        }
        return There::Own;
    }
    if !stale(w.key.proto, row.bits, row.last_seen, now) {
        return There::Taken;
    }
    if replace(w, kept) { There::Replaced } else { There::Taken }
}

/// Makes sure that the reverse of the flow `f` at the backend `ip:target` is this flow's, and returns
/// the client's port as the backend sees it; `None` if no port was free.
#[inline(always)]
pub fn bind(w: &mut Work, f: *mut Flow, ip: Addr, target: u16, kind: u8, now: u64) -> Option<u16> {
    // SAFETY: a row looked up in this run; so below.
    let cport = unsafe { (*f).cport };
    let cport = if cport == 0 { w.key.sport } else { cport };
    let back = FlowKey {
        src: ip,
        dst: w.key.src,
        sport: target,
        dport: cport,
        proto: w.key.proto,
        zero: [0; 3],
    };
    prepare(w, f, back, kind, now);
    // Twice: another CPU may make the row of this very flow between look-up and insert.
    for _ in 0..2 {
        match there(w, now) {
            There::Own | There::Replaced => return Some(note(f, cport)),
            There::Taken => break,
            There::Nothing => {
                if REPLIES.insert(&w.reply_key, &w.reply, NOEXIST).is_ok() {
                    return Some(note(f, cport));
                }
            }
        }
    }
    for _ in 0..TRIES {
        let port = flow::port(random());
        w.reply_key.dport = port;
        if REPLIES_KEPT.get_ptr(&w.reply_key).is_none() && REPLIES.insert(&w.reply_key, &w.reply, NOEXIST).is_ok() {
            count(Reason::PortTranslated);
            return Some(note(f, port));
        }
    }
    // Nearly every port of this client is in TIME_WAIT at the backend. A SYN on one of them costs the
    // client a round trip, if its clock is behind; none costs it the connection.
    w.reply_key.dport = cport;
    let (r, kept) = find(&w.reply_key)?;
    // SAFETY: as above.
    let over = unsafe { closed((*r).bits) };
    (over && replace(w, kept)).then(|| note(f, cport))
}

/// Makes sure of the way back of a flow whose backend is its client: the backend's packets go to the
/// address that was asked. Its ends can not collide with others'. False: there is no room.
#[inline(always)]
pub fn bind_hairpin(w: &mut Work, f: *mut Flow, own: Addr, target: u16, kind: u8, now: u64) -> bool {
    let back = FlowKey {
        src: own,
        dst: w.key.dst,
        sport: target,
        dport: w.key.sport,
        proto: w.key.proto,
        zero: [0; 3],
    };
    prepare(w, f, back, kind, now);
    match there(w, now) {
        There::Own | There::Replaced => true,
        There::Taken => false,
        There::Nothing => REPLIES.insert(&w.reply_key, &w.reply, ANY).is_ok(),
    }
}

#[inline(always)]
fn note(f: *mut Flow, cport: u16) -> u16 {
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
pub fn touch_reverse(w: &mut Work, r: *mut Reply, client: Addr, asked: Addr) {
    // SAFETY: a row looked up in this run; so below.
    let row = unsafe { &mut *r };
    count_packet(row.stat, w.len, false);
    // Only the moment counts here, whatever the tables.
    if flow::advance(w.flags, false) & !row.bits == 0 && quick::marked(row.bits, flow::stamp(jiffies(), 0)) {
        return;
    }
    w.reply_key = FlowKey {
        src: client,
        dst: asked,
        sport: row.cport,
        dport: row.dport,
        proto: w.key.proto,
        zero: [0; 3],
    };
    touch_both(w, row);
}

/// Marks the way back, and the flow whose key is in [`Work::reply_key`]. A call of its own, seldom made: inlined
/// it takes more of the stack than there is.
#[inline(never)]
fn touch_both(w: &Work, row: &mut Reply) {
    quick::put(&raw mut row.bits, flow::stamp(jiffies(), 0));
    let now = now();
    // The flow's own row is written when this one is.
    if flow::advance(w.flags, false) & !row.bits == 0 && now.saturating_sub(row.last_seen) <= flow::TOUCH_NS {
        return;
    }
    touch(&raw mut row.last_seen, &raw mut row.bits, w.flags, false, now);
    if let Some((f, _)) = route::find(&w.reply_key) {
        // SAFETY: a row looked up in this run.
        unsafe { touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, false, now) };
    }
}

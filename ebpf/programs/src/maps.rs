//! The maps, defined by the table in `mesh_ebpf_common::spec`.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf, lpm_trie::Key},
};
use mesh_ebpf_common::{
    Reason,
    rows::{self, Addr, PortKey, Published},
    spec,
};

use crate::{skb::Skb, work::Work};

macro_rules! hash {
    ($($name:ident: $k:ty => $v:ty),+ $(,)?) => {$(
        #[map]
        pub static $name: HashMap<$k, $v> = HashMap::with_max_entries(spec::$name.max_entries, spec::$name.flags);
    )+};
}
macro_rules! lru {
    ($($name:ident: $k:ty => $v:ty),+ $(,)?) => {$(
        #[map]
        pub static $name: LruHashMap<$k, $v> = LruHashMap::with_max_entries(spec::$name.max_entries, spec::$name.flags);
    )+};
}

hash! {
    NODE_ADDRS: rows::Addr => u32,
    BOUND: rows::BoundKey => rows::Published,
    VIPS: rows::Addr => rows::Vip,
    SERVICES: u32 => rows::Service,
    MEMBERS: rows::MemberKey => rows::Members,
    BACKENDS: u32 => rows::Backend,
    LOCALS: u32 => rows::Local,
    LOCAL_BY_MAC: rows::MacKey => rows::Local,
    LOCAL_BY_ADDR: rows::Addr => u32,
    REMOTES: rows::Addr => rows::Remote,
    NEIGHBORS: rows::MacKey => u32,
    NETWORKS: u32 => rows::Network,
    PEERS: rows::MacKey => u32,
    NODES: u32 => rows::Addr,
    FLOWS_KEPT: rows::FlowKey => rows::Flow,
    REPLIES_KEPT: rows::FlowKey => rows::Reply,
    NAMESPACES: u64 => rows::Namespace,
    STAT_ROWS: rows::Pair => u32,
}
lru! {
    FLOWS: rows::FlowKey => rows::Flow,
    REPLIES: rows::FlowKey => rows::Reply,
    FRAGMENTS: rows::FragmentKey => rows::FragmentPorts,
    AFFINITY: rows::AffinityKey => rows::Affinity,
    SOCKETS: rows::SocketKey => rows::Socket,
}

#[map]
pub static CONFIG: Array<rows::Config> = Array::with_max_entries(spec::CONFIG.max_entries, spec::CONFIG.flags);

#[map]
static PUBLISHED: Array<rows::Published> = Array::with_max_entries(spec::PUBLISHED.max_entries, spec::PUBLISHED.flags);

#[map]
static RANGES: LpmTrie<Addr, u32> = LpmTrie::with_max_entries(spec::RANGES.max_entries, spec::RANGES.flags);

#[map]
static SOURCES: LpmTrie<rows::Source, u32> = LpmTrie::with_max_entries(spec::SOURCES.max_entries, spec::SOURCES.flags);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(spec::COUNTERS.max_entries, spec::COUNTERS.flags);

#[map]
static STATS: PerCpuArray<rows::Stat> = PerCpuArray::with_max_entries(spec::STATS.max_entries, spec::STATS.flags);

#[map]
static STAT_FREE: Queue<u32> = Queue::with_max_entries(spec::STAT_FREE.max_entries, spec::STAT_FREE.flags);

/// One [`Work`] per CPU; not pinned, it holds nothing between packets.
#[map]
static SCRATCH: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// What is told of; not pinned, so that a loader that ends stops it.
#[map]
pub static WATCH: Array<u32> = Array::with_max_entries(1, 0);

/// To whom it is told.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(spec::EVENTS_BYTES, 0);

/// Counts one packet.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(n) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; programs do not nest.
        unsafe { *n += 1 }
    }
}

/// BPF_NOEXIST.
const NOEXIST: u64 = 1;

/// The row of `STATS` of a backend of a set: its own from the first flow that it is given; 0 if there is
/// no room.
#[inline(always)]
pub fn stat_row(set: u32, backend: u32) -> u32 {
    let pair = rows::Pair {
        service: set & !(rows::V6 | rows::LOCAL),
        backend,
    };
    // SAFETY: a copy of a row looked up in this run; so below.
    if let Some(row) = unsafe { STAT_ROWS.get(&pair) } {
        return *row;
    }
    let Ok(Some(row)) = STAT_FREE.pop() else { return 0 };
    if STAT_ROWS.insert(&pair, &row, NOEXIST).is_ok() {
        return row;
    }
    // Another CPU was first.
    let _ = STAT_FREE.push(&row, 0);
    unsafe { STAT_ROWS.get(&pair) }.copied().unwrap_or(0)
}

/// Counts a new flow of a backend of a service.
#[inline(always)]
pub fn count_flow(stat: u32) {
    if let Some(s) = STATS.get_ptr_mut(stat) {
        // SAFETY: as in `count`.
        unsafe { (*s).flows += 1 }
    }
}

/// Counts a packet of a flow.
#[inline(always)]
pub fn count_packet(stat: u32, len: u32, forward: bool) {
    if let Some(s) = STATS.get_ptr_mut(stat) {
        // SAFETY: as in `count`.
        let s = unsafe { &mut *s };
        if forward {
            s.packets += 1;
            s.bytes += u64::from(len);
        } else {
            s.reply_packets += 1;
            s.reply_bytes += u64::from(len);
        }
    }
}

/// This CPU's working memory, for a program that begins.
#[inline(always)]
pub fn begin(skb: Skb) -> Option<&'static mut Work> {
    // SAFETY: this CPU's own slot, taken once per program run; programs do not nest.
    let w = SCRATCH.get_ptr_mut(0).map(|w| unsafe { &mut *w })?;
    (w.len, w.ifindex) = (skb.len(), skb.ifindex());
    (w.key.src, w.key.dst) = (Addr([0; 4]), Addr([0; 4]));
    (w.key.proto, w.key.sport, w.key.dport) = (0, 0, 0);
    (w.service, w.backend) = (0, 0);
    Some(w)
}

/// This CPU's working memory, to tell of what is in it.
#[inline(always)]
pub fn scratch() -> Option<*mut Work> {
    SCRATCH.get_ptr_mut(0)
}

/// Own place. `None` never happens: the map is an array of one.
#[inline(always)]
pub fn config() -> Option<&'static rows::Config> {
    CONFIG.get(0)
}

/// What is published at `port` of `addr`.
#[inline(always)]
pub fn published(addr: &Addr, port: u16, proto: u8) -> Option<&'static Published> {
    let found = PUBLISHED.get(rows::port_row(port, proto))?;
    if found.there == 0 {
        return None;
    }
    if found.service != 0 {
        return Some(found);
    }
    let port = PortKey { port, proto, zero: 0 };
    let key = rows::BoundKey { addr: *addr, port };
    // SAFETY: rows of this map are replaced as a whole and outlive this run.
    unsafe { BOUND.get(&key) }
}

/// Services may have `port` each at an address of their own: nobody has it at all.
#[inline(always)]
pub fn is_bound(port: u16, proto: u8) -> bool {
    PUBLISHED
        .get(rows::port_row(port, proto))
        .is_some_and(|p| p.there == 1 && p.service == 0)
}

/// The client is admitted to the service of this set.
#[inline(always)]
pub fn admitted(set: u32, client: &Addr) -> bool {
    let key = Key::new(
        32 + 128,
        rows::Source {
            service: set & !(rows::V6 | rows::LOCAL) | if client.is_v4() { 0 } else { rows::V6 },
            addr: *client,
        },
    );
    matches!(SOURCES.get(&key), Some(1))
}

/// The network without encapsulation whose address this is.
#[inline(always)]
pub fn range(addr: &Addr) -> Option<u32> {
    RANGES.get(&Key::new(128, *addr)).copied()
}

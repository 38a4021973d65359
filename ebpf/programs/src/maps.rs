//! The maps, defined by the table in `mesh_ebpf_common::spec`.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use mesh_ebpf_common::{Reason, rows, spec};

use crate::work::Work;

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
    PUBLISHED: rows::PortKey => rows::Published,
    VIPS: rows::Addr => rows::Vip,
    SERVICES: u32 => rows::Service,
    MEMBERS: rows::MemberKey => u32,
    TURNS: u32 => u64,
    BACKENDS: u32 => rows::Backend,
    LOCALS: u32 => rows::Local,
    LOCAL_BY_MAC: rows::MacKey => rows::Local,
    NETWORKS: u32 => rows::Network,
    PEERS: rows::MacKey => u32,
}
lru! {
    FLOWS: rows::FlowKey => rows::Flow,
    REPLIES: rows::FlowKey => rows::Reply,
    FRAGMENTS: rows::FragmentKey => rows::FragmentPorts,
}

#[map]
pub static CONFIG: Array<rows::Config> = Array::with_max_entries(spec::CONFIG.max_entries, spec::CONFIG.flags);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(spec::COUNTERS.max_entries, spec::COUNTERS.flags);

/// One [`Work`] per CPU; not pinned, it holds nothing between packets.
#[map]
static SCRATCH: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Counts one packet.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(n) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; programs do not nest.
        unsafe { *n += 1 }
    }
}

/// This CPU's working memory.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: this CPU's own slot, taken once per program run; programs do not nest.
    SCRATCH.get_ptr_mut(0).map(|w| unsafe { &mut *w })
}

/// Own place. `None` never happens: the map is an array of one.
#[inline(always)]
pub fn config() -> Option<&'static rows::Config> {
    CONFIG.get(0)
}

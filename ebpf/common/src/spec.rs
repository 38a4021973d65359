//! The maps: name, type, sizes, flags. The programs define them by this table, the loader checks
//! pinned ones against it.
//!
//! Hash maps that follow the cluster's size are not preallocated, so that memory follows use; LRU maps must
//! be. A row of a hash map costs some 60 bytes beside its own, and 16 for each that there is room for.

use crate::rows;

/// Map types that are used (`enum bpf_map_type`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// BPF_MAP_TYPE_HASH.
    Hash = 1,
    /// BPF_MAP_TYPE_ARRAY.
    Array = 2,
    /// BPF_MAP_TYPE_PERCPU_ARRAY.
    PerCpuArray = 6,
    /// BPF_MAP_TYPE_LRU_HASH.
    LruHash = 9,
    /// BPF_MAP_TYPE_LPM_TRIE.
    LpmTrie = 11,
    /// BPF_MAP_TYPE_QUEUE.
    Queue = 22,
}

/// One map.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Name in the object and of the pin.
    pub name: &'static str,
    /// Type.
    pub kind: MapKind,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// Capacity in rows; the default, where it follows the host's CPUs or the option for flows.
    pub max_entries: u32,
    /// Creation flags.
    pub flags: u32,
}

/// BPF_F_NO_PREALLOC.
const NO_PREALLOC: u32 = 1;

const fn spec<K, V>(name: &'static str, kind: MapKind, max_entries: u32, flags: u32) -> MapSpec {
    MapSpec {
        name,
        kind,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
        flags,
    }
}

const fn hash<K, V>(name: &'static str, max_entries: u32) -> MapSpec {
    spec::<K, V>(name, MapKind::Hash, max_entries, NO_PREALLOC)
}

const fn lru<K, V>(name: &'static str, max_entries: u32) -> MapSpec {
    spec::<K, V>(name, MapKind::LruHash, max_entries, 0)
}

/// Own place.
pub const CONFIG: MapSpec = spec::<u32, rows::Config>("CONFIG", MapKind::Array, 1, 0);
/// Addresses at which published ports are answered.
pub const NODE_ADDRS: MapSpec = hash::<rows::Addr, u32>("NODE_ADDRS", 1024);
/// Published ports, by [`rows::port_row`].
pub const PUBLISHED: MapSpec = spec::<u32, rows::Published>("PUBLISHED", MapKind::Array, 131_072, 0);
/// Ports that are published at one address only.
pub const BOUND: MapSpec = hash::<rows::BoundKey, rows::Published>("BOUND", 65_536);
/// Virtual addresses.
pub const VIPS: MapSpec = hash::<rows::Addr, rows::Vip>("VIPS", 131_072);
/// Sets of backends, with those of them that have few.
pub const SERVICES: MapSpec = hash::<u32, rows::Service>("SERVICES", 131_072);
/// Members of the others, [`rows::PART`] to a row.
pub const MEMBERS: MapSpec = hash::<rows::MemberKey, rows::Members>("MEMBERS", 65_536);
/// Clients of services that are admitted (1) or not (0).
pub const SOURCES: MapSpec = spec::<(u32, rows::Source), u32>("SOURCES", MapKind::LpmTrie, 262_144, NO_PREALLOC);
/// Backends.
pub const BACKENDS: MapSpec = hash::<u32, rows::Backend>("BACKENDS", 262_144);
/// Endpoints here, by the index of their interface.
pub const LOCALS: MapSpec = hash::<u32, rows::Local>("LOCALS", 8192);
/// Endpoints here, by their Ethernet address.
pub const LOCAL_BY_MAC: MapSpec = hash::<rows::MacKey, rows::Local>("LOCAL_BY_MAC", 8192);
/// Interfaces of endpoints here that are reached without encapsulation, by their addresses.
pub const LOCAL_BY_ADDR: MapSpec = hash::<rows::Addr, u32>("LOCAL_BY_ADDR", 16_384);
/// Endpoints on other nodes of the segment that are reached without encapsulation. What has no room is
/// encapsulated.
pub const REMOTES: MapSpec = hash::<rows::Addr, rows::Remote>("REMOTES", 32_768);
/// Other nodes, by the Ethernet address that they have in the underlay.
pub const NEIGHBORS: MapSpec = hash::<rows::MacKey, u32>("NEIGHBORS", 16_384);
/// Networks here that go without encapsulation, by their ranges.
pub const RANGES: MapSpec = spec::<(u32, rows::Addr), u32>("RANGES", MapKind::LpmTrie, 8192, NO_PREALLOC);
/// Networks here, by the index of their VXLAN device.
pub const NETWORKS: MapSpec = hash::<u32, rows::Network>("NETWORKS", 8192);
/// Other nodes.
pub const PEERS: MapSpec = hash::<rows::MacKey, u32>("PEERS", 32_768);
/// Nodes' IPv6 addresses in the ingress network, this one's too, by their IPv4 ones there.
pub const NODES: MapSpec = hash::<u32, rows::Addr>("NODES", 16_384);
/// Flows of which only the client has been heard: a flood of them displaces each other.
pub const FLOWS: MapSpec = lru::<rows::FlowKey, rows::Flow>("FLOWS", 32_768);
/// Flows that both ends have been heard of: nothing displaces them, the loader reclaims them.
pub const FLOWS_KEPT: MapSpec = hash::<rows::FlowKey, rows::Flow>("FLOWS_KEPT", 262_144);
/// Ways back, as [`FLOWS`].
pub const REPLIES: MapSpec = lru::<rows::FlowKey, rows::Reply>("REPLIES", 32_768);
/// Ways back, as [`FLOWS_KEPT`].
pub const REPLIES_KEPT: MapSpec = hash::<rows::FlowKey, rows::Reply>("REPLIES_KEPT", 262_144);
/// Ports of fragmented packets.
pub const FRAGMENTS: MapSpec = lru::<rows::FragmentKey, rows::FragmentPorts>("FRAGMENTS", 8192);
/// Clients' backends, for services with affinity.
pub const AFFINITY: MapSpec = lru::<rows::AffinityKey, rows::Affinity>("AFFINITY", 32_768);
/// Network namespaces whose sockets are balanced, by cookie.
pub const NAMESPACES: MapSpec = hash::<u64, rows::Namespace>("NAMESPACES", 16_384);
/// What balanced sockets asked for, and were given.
pub const SOCKETS: MapSpec = lru::<rows::SocketKey, rows::Socket>("SOCKETS", 32_768);
/// Counters by [`crate::Reason`].
pub const COUNTERS: MapSpec = spec::<u32, u64>("COUNTERS", MapKind::PerCpuArray, 128, 0);
/// Counters of each backend of each service that was given a flow here. Row 0: those that had no room.
pub const STATS: MapSpec = spec::<u32, rows::Stat>("STATS", MapKind::PerCpuArray, 32_768, 0);
/// Their rows of [`STATS`].
pub const STAT_ROWS: MapSpec = hash::<rows::Pair, u32>("STAT_ROWS", 32_768);
/// Rows of [`STATS`] that are nobody's.
pub const STAT_FREE: MapSpec = spec::<(), u32>("STAT_FREE", MapKind::Queue, 32_768, 0);

/// All maps that are pinned.
pub const ALL: [MapSpec; 30] = [
    CONFIG,
    NODE_ADDRS,
    PUBLISHED,
    BOUND,
    VIPS,
    SERVICES,
    MEMBERS,
    SOURCES,
    BACKENDS,
    LOCALS,
    LOCAL_BY_MAC,
    LOCAL_BY_ADDR,
    REMOTES,
    NEIGHBORS,
    RANGES,
    NETWORKS,
    PEERS,
    NODES,
    FLOWS,
    FLOWS_KEPT,
    REPLIES,
    REPLIES_KEPT,
    FRAGMENTS,
    AFFINITY,
    NAMESPACES,
    SOCKETS,
    COUNTERS,
    STATS,
    STAT_ROWS,
    STAT_FREE,
];

/// The ring buffer of [`rows::Event`]s, in bytes; not pinned, it is of use while somebody reads it.
pub const EVENTS_BYTES: u32 = 512 * 1024;
/// The one row of `WATCH`: tell of dropped packets.
pub const WATCH_DROPS: u32 = 1;
/// And of new flows.
pub const WATCH_FLOWS: u32 = 2;

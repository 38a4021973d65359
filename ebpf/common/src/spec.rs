//! The maps: name, type, sizes, flags. The programs define them by this table, the loader checks
//! pinned ones against it.
//!
//! What follows the cluster's size is not preallocated, so that memory follows use; the tables of
//! flows are, as LRU maps must be.

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
    /// Capacity in rows; for [`FLOWS`] and [`REPLIES`] the default.
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

/// Own place.
pub const CONFIG: MapSpec = spec::<u32, rows::Config>("CONFIG", MapKind::Array, 1, 0);
/// Addresses at which published ports are answered.
pub const NODE_ADDRS: MapSpec = hash::<rows::Addr, u32>("NODE_ADDRS", 1024);
/// Published ports.
pub const PUBLISHED: MapSpec = hash::<rows::PortKey, rows::Published>("PUBLISHED", 131_072);
/// Virtual addresses.
pub const VIPS: MapSpec = hash::<rows::Addr, rows::Vip>("VIPS", 65_536);
/// Services.
pub const SERVICES: MapSpec = hash::<u32, rows::Service>("SERVICES", 65_536);
/// Members of services; the value is a backend.
pub const MEMBERS: MapSpec = hash::<rows::MemberKey, u32>("MEMBERS", 1_048_576);
/// How many choices a service has made.
pub const TURNS: MapSpec = hash::<u32, u64>("TURNS", 65_536);
/// Backends.
pub const BACKENDS: MapSpec = hash::<u32, rows::Backend>("BACKENDS", 262_144);
/// Endpoints here, by the index of their interface.
pub const LOCALS: MapSpec = hash::<u32, rows::Local>("LOCALS", 8192);
/// Endpoints here, by their Ethernet address.
pub const LOCAL_BY_MAC: MapSpec = hash::<rows::MacKey, rows::Local>("LOCAL_BY_MAC", 8192);
/// Networks here, by the index of their VXLAN device.
pub const NETWORKS: MapSpec = hash::<u32, rows::Network>("NETWORKS", 8192);
/// Other nodes.
pub const PEERS: MapSpec = hash::<rows::MacKey, u32>("PEERS", 32_768);
/// Flows.
pub const FLOWS: MapSpec = spec::<rows::FlowKey, rows::Flow>("FLOWS", MapKind::LruHash, 262_144, 0);
/// Ways back.
pub const REPLIES: MapSpec = spec::<rows::FlowKey, rows::Reply>("REPLIES", MapKind::LruHash, 262_144, 0);
/// Ports of fragmented packets.
pub const FRAGMENTS: MapSpec = spec::<rows::FragmentKey, rows::FragmentPorts>("FRAGMENTS", MapKind::LruHash, 8192, 0);
/// Counters by [`crate::Reason`].
pub const COUNTERS: MapSpec = spec::<u32, u64>("COUNTERS", MapKind::PerCpuArray, 64, 0);

/// All maps that are pinned.
pub const ALL: [MapSpec; 16] = [
    CONFIG,
    NODE_ADDRS,
    PUBLISHED,
    VIPS,
    SERVICES,
    MEMBERS,
    TURNS,
    BACKENDS,
    LOCALS,
    LOCAL_BY_MAC,
    NETWORKS,
    PEERS,
    FLOWS,
    REPLIES,
    FRAGMENTS,
    COUNTERS,
];

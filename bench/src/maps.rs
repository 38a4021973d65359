//! The memory of BPF maps, as the kernel counts it: `memlock` in /proc/PID/fdinfo, which for a map without
//! preallocation is that of the rows that there are.

use std::{collections::BTreeMap, fs};

use mesh_ebpf_common::spec::{self, MapSpec};
use serde_json::{Value, json};

use crate::Failure;

/// BPF_MAP_TYPE_RINGBUF.
const RINGBUF: u64 = 27;

/// Bytes by map.
pub struct Memory(BTreeMap<String, u64>);

impl Memory {
    /// All of it in bytes, and each map's.
    pub fn json(&self) -> Value {
        json!({ "total": self.0.values().sum::<u64>(), "maps": self.0 })
    }
}

/// The maps that a process has open, each once.
pub fn of(pid: u32) -> Result<Memory, Failure> {
    let dir = format!("/proc/{pid}/fdinfo");
    let files = fs::read_dir(&dir).map_err(|e| format!("cannot read {dir}: {e}"))?;
    let mut by_id = BTreeMap::new();
    for file in files {
        // One that was closed meanwhile is none.
        let Ok(text) = fs::read_to_string(file?.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().parse().ok()
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            by_id.insert(id, (name(&field), bytes));
        }
    }
    let mut out = BTreeMap::new();
    for (name, bytes) in by_id.into_values() {
        *out.entry(name).or_default() += bytes;
    }
    Ok(Memory(out))
}

/// The name of the map with these properties: fdinfo does not tell it.
fn name(field: &impl Fn(&str) -> Option<u64>) -> String {
    let is = |spec: &&MapSpec| {
        let (kind, key, value) = (spec.kind as u64, spec.key_size.into(), spec.value_size.into());
        (field("map_type"), field("key_size"), field("value_size")) == (Some(kind), Some(key), Some(value))
    };
    let alike: Vec<_> = spec::ALL.iter().filter(is).collect();
    // The capacity tells apart those whose rows have one size; some follow the host's size, though.
    let exact = alike.iter().find(|s| field("max_entries") == Some(s.max_entries.into()));
    match exact.or(alike.first()) {
        Some(spec) => spec.name.to_owned(),
        None if field("map_type") == Some(RINGBUF) => "EVENTS".to_owned(),
        None => "other".to_owned(),
    }
}

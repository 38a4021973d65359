//! What the programs tell while somebody watches.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
};

use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
};
use mesh_ebpf_common::{
    reason,
    rows::{self, told},
    spec,
};

use crate::Error;

/// What the programs tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// New flows.
    pub flows: bool,
    /// Dropped packets.
    pub drops: bool,
}

/// The switch.
pub struct Switch(Array<MapData, u32>);

impl Switch {
    /// Takes it out of the object; it is off.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let name = "WATCH";
        let map = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        Ok(Self(map.try_into().map_err(|source| Error::map(name, "open", source))?))
    }

    /// Sets what is told of.
    pub fn set(&mut self, what: Watch) -> Result<(), Error> {
        let bits = if what.drops { spec::WATCH_DROPS } else { 0 } | if what.flows { spec::WATCH_FLOWS } else { 0 };
        self.0.set(0, bits, 0).map_err(|source| Error::map("WATCH", "write to", source))
    }
}

/// One thing told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since boot (CLOCK_MONOTONIC).
    pub at_ns: u64,
    /// Name of the counter that counted it.
    pub reason: &'static str,
    /// The packet was dropped; else it opened a flow.
    pub dropped: bool,
    /// The packet's source; unspecified if it was no IP packet.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Its source port; 0: none.
    pub sport: u16,
    /// Its destination port; 0: none.
    pub dport: u16,
    /// IANA protocol number; 0: not known.
    pub proto: u8,
    /// The set of backends that chose, without flags; 0: none did.
    pub service: u32,
    /// The backend; 0: none.
    pub backend: u32,
    /// Length of the frame in bytes.
    pub len: u32,
    /// Index of the device that it came in at.
    pub ifindex: u32,
}

/// The ring buffer of events. Its descriptor is readable when there are some.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Takes it out of the object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let name = "EVENTS";
        let map = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        Ok(Self(map.try_into().map_err(|source| Error::map(name, "open", source))?))
    }

    /// The next event, if there is one.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end where this only waits")]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.0.next()?;
            // A record of another size is of no program of ours.
            if let Some(event) = rows::Event::read(&item) {
                return Some(event.into());
            }
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<rows::Event> for Event {
    fn from(e: rows::Event) -> Self {
        Self {
            at_ns: e.at,
            reason: reason::NAMES.get(usize::from(e.reason)).copied().unwrap_or("unknown"),
            dropped: e.told == told::DROP,
            src: e.key.src.into(),
            dst: e.key.dst.into(),
            sport: e.key.sport,
            dport: e.key.dport,
            proto: e.key.proto,
            service: e.service & !(rows::V6 | rows::LOCAL),
            backend: e.backend,
            len: e.len,
            ifindex: e.ifindex,
        }
    }
}

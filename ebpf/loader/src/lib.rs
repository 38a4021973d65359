//! The only user of aya: loads the kernel programs, attaches them, and keeps the balancer's tables.
//!
//! The agent's executor calls [`Loader::apply`] for each [`BpfAction`], its reconcile loop
//! [`Loader::observe`], its metrics [`Loader::counters`]. Everything is pinned, so that the data path
//! goes on without a loader and the next one takes it over: flows, tables and attachments survive,
//! and newer programs replace older ones in place.
//!
//! All calls must be made from a thread in the host's network namespace, always the same one: devices
//! are found by name.

mod counting;
mod error;
mod events;
mod hooks;
mod migrate;
mod patient;
mod pins;
mod reclaim;
mod sockets;
mod store;
mod sys;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, include_bytes_aligned, maps::PerCpuArray, programs::SchedClassifier};
use mesh_core::{
    action::BpfAction,
    lb::{self, Program},
};
use mesh_ebpf_common::{reason, spec};

pub use error::Error;
pub use events::{Event, Events, Watch};
pub use hooks::AttachKind;
pub use store::Stat;

use counting::Counting;
use events::Switch;
use hooks::Hooks;
use reclaim::Reclaim;
use sockets::Sockets;
use store::Store;

/// The compiled programs; made by scripts/build-ebpf from ebpf/programs.
static BYTECODE: &[u8] = include_bytes_aligned!("../bytecode/meshd.bpf.o");

/// All programs that sit at devices.
const PROGRAMS: [Program; 5] = [
    Program::FromUplink,
    Program::FromOverlay,
    Program::FromNetwork,
    Program::FromContainer,
    Program::ToContainer,
];

/// The hooks of sockets sit at no device.
const SOCKETS: lb::Hook = lb::Hook {
    program: Program::Sockets,
    dev: String::new(),
};

/// What a loader needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of this host's pins, on a bpffs or to be made one.
    pub bpffs: PathBuf,
    /// How many flows are kept, per table.
    pub flow_table_size: u32,
    /// How programs are attached; `None`: the best that the kernel has.
    pub attach: Option<AttachKind>,
}

impl Options {
    /// The defaults with the pins at `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            flow_table_size: spec::FLOWS_KEPT.max_entries,
            attach: None,
        }
    }
}

/// The data path of one host.
pub struct Loader {
    ebpf: Ebpf,
    store: Store,
    hooks: Hooks,
    sockets: Sockets,
    reclaim: Reclaim,
    counting: Counting,
    switch: Switch,
    flow_table_size: u32,
    /// Pins of other versions, until all hooks are this one's.
    former: Vec<PathBuf>,
    /// Where the maps are pinned.
    maps: PathBuf,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The map.
    pub map: &'static str,
    /// Rows in it.
    pub rows: u64,
    /// Rows that it has room for.
    pub capacity: u64,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Loader {
    /// Loads the programs, taking over what a former loader left: its maps with their rows, its
    /// attachments, which run this loader's programs from then on. What a meshd with maps of another
    /// shape left goes on until its hooks are attached by this one, and takes its flows along then.
    ///
    /// # Errors
    ///
    /// No bpffs and none can be mounted, a pinned map of another shape, a program that the kernel
    /// refuses.
    pub fn open(opts: &Options) -> Result<Self, Error> {
        sys::raise_memlock();
        pins::prepare(&opts.bpffs)?;
        let maps = pins::maps(&opts.bpffs);
        let mut loader = EbpfLoader::new();
        for spec in spec::ALL {
            let spec = pins::sized(spec, opts.flow_table_size);
            pins::check(&maps, &spec)?;
            loader.map_max_entries(spec.name, spec.max_entries);
            loader.map_pin_path(spec.name, maps.join(spec.name));
        }
        let mut ebpf = loader.load(BYTECODE).map_err(Error::object)?;
        for program in PROGRAMS {
            let classifier = classifier(&mut ebpf, program)?;
            patient::load(|| classifier.load()).map_err(|source| Error::Program {
                program,
                doing: "load",
                source: Box::new(source),
            })?;
        }
        sockets::load(&mut ebpf)?;
        let former = pins::former(&opts.bpffs)?;
        let store = Store::open(&mut ebpf)?;
        let switch = Switch::take(&mut ebpf)?;
        let hooks = Hooks::adopt(&mut ebpf, pins::links(&opts.bpffs), opts.attach)?;
        let sockets = Sockets::adopt(&mut ebpf, pins::sockets(&opts.bpffs))?;
        let reclaim = Reclaim::open(&maps)?;
        Ok(Self {
            ebpf,
            store,
            hooks,
            sockets,
            reclaim,
            counting: Counting::open(&maps)?,
            switch,
            flow_table_size: opts.flow_table_size,
            former,
            maps,
        })
    }

    /// The tables as the kernel holds them, and the programs that are attached. A row that names a
    /// device by an index that is no longer the device's is left out (of the configuration, and of an
    /// endpoint's VXLAN device: the device's name), so that a plan puts it again.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn observe(&mut self) -> Result<(lb::Tables, BTreeSet<lb::Hook>), Error> {
        let hooks = self.look()?;
        Ok((self.store.tables().clone(), hooks))
    }

    /// As [`Self::observe`]; of the tables that grow with the cluster only the rows that either of `of` has too.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn observe_part(&mut self, of: [&lb::Tables; 2]) -> Result<(lb::Tables, BTreeSet<lb::Hook>), Error> {
        let hooks = self.look()?;
        Ok((self.store.tables().those_of(of), hooks))
    }

    /// Sees which rows name what is gone, and which programs are attached.
    fn look(&mut self) -> Result<BTreeSet<lb::Hook>, Error> {
        self.store.refresh()?;
        let mut hooks = self.hooks.observe()?;
        // Whoever asks again has carried out a plan, whose hooks came after its rows.
        if !hooks.is_empty() && !self.former.is_empty() {
            let rows = migrate::flows(&self.former, &self.maps, &mut self.store)?;
            tracing::debug!(rows, "flows of another version that came while its hooks were taken over");
            pins::retire(&std::mem::take(&mut self.former))?;
        }
        // Where they are not possible none is missing.
        if self.sockets.attached() || !self.sockets.possible() {
            hooks.insert(SOCKETS);
        }
        Ok(hooks)
    }

    /// Carries out one step. What is so already is left as it is.
    ///
    /// # Errors
    ///
    /// A device that does not exist, a full map, a refusal of the kernel.
    pub fn apply(&mut self, action: &BpfAction) -> Result<(), Error> {
        match action {
            BpfAction::Row(row) => self.store.put(row),
            BpfAction::Attach(hook) if *hook == SOCKETS => self.sockets.attach(&mut self.ebpf),
            BpfAction::Detach(hook) if *hook == SOCKETS => self.sockets.detach(),
            BpfAction::Attach(hook) => {
                if !self.former.is_empty() {
                    let rows = migrate::flows(&self.former, &self.maps, &mut self.store)?;
                    tracing::debug!(rows, "flows of another version");
                }
                self.hooks.attach(&mut self.ebpf, hook, &self.former)
            }
            BpfAction::Detach(hook) => self.hooks.detach(hook),
        }
    }

    /// Gives back memory of this program's: for whoever has made very many changes.
    pub fn compact(&mut self) {
        self.store.compact();
    }

    /// How many packets went which way since the maps were made, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let name = spec::COUNTERS.name;
        let map = self.ebpf.map(name).ok_or(Error::NotInObject { name })?;
        let map: PerCpuArray<_, u64> = map.try_into().map_err(|source| Error::map(name, "open", source))?;
        (0u32..)
            .zip(reason::NAMES)
            .map(|(i, name)| {
                let values = map.get(&i, 0).map_err(|source| Error::map(spec::COUNTERS.name, "read", source))?;
                Ok((*name, values.iter().sum()))
            })
            .collect()
    }

    /// What went through each backend of each service, by their numbers; first those that had no room.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn stats(&self) -> Result<Vec<Stat>, Error> {
        self.store.stats()
    }

    /// How full the maps are.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn usage(&mut self) -> Result<Vec<Usage>, Error> {
        let t = self.store.tables();
        let flows = self.reclaim.counts()?;
        let kept = pins::sized(spec::FLOWS_KEPT, self.flow_table_size).max_entries;
        let of = |map: spec::MapSpec, rows: usize| Usage {
            map: map.name,
            rows: rows as u64,
            capacity: map.max_entries.into(),
        };
        let tables = [
            of(spec::PUBLISHED, t.published.len()),
            of(spec::BOUND, t.bound.len()),
            of(spec::VIPS, t.vips.len()),
            of(spec::SERVICES, t.services.len()),
            of(spec::MEMBERS, self.store.members()),
            of(spec::SOURCES, t.sources.len()),
            of(spec::BACKENDS, t.backends.len()),
            of(spec::LOCALS, t.locals.len()),
            of(spec::REMOTES, t.remotes.len()),
            of(spec::PEERS, t.peers.len()),
            of(spec::NODES, t.nodes.len()),
            of(spec::NAMESPACES, t.namespaces.len()),
        ];
        let young = pins::sized(spec::FLOWS, self.flow_table_size).max_entries;
        let flows = flows.into_iter().map(|(map, rows)| Usage {
            map,
            rows,
            capacity: if map.ends_with("KEPT") { kept.into() } else { young.into() },
        });
        Ok(tables.into_iter().chain(flows).collect())
    }

    /// Ethernet addresses of the nodes that are sent to without encapsulation.
    pub fn neighbors(&self) -> BTreeSet<mesh_core::Mac> {
        self.store.tables().remotes.values().map(|r| r.node).collect()
    }

    /// Removes flows that are over from a part of the tables; how many. Gives out the counters of backends
    /// that are gone when no flow is left that counts in them. To be called every few seconds.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn reclaim(&mut self) -> Result<u64, Error> {
        let removed = self.reclaim.run()?;
        self.counting.run(&mut self.store)?;
        Ok(removed)
    }

    /// Flows to the backend `slot` that this host remembers and that are not over: TCP connections that
    /// are open, UDP flows of the last seconds.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn live_flows(&mut self, slot: u32) -> Result<u64, Error> {
        self.reclaim.live(slot)
    }

    /// Sets what the programs tell of; nothing, at first.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn watch(&mut self, what: Watch) -> Result<(), Error> {
        self.switch.set(what)
    }

    /// What they tell. Can be taken once.
    ///
    /// # Errors
    ///
    /// It was taken before.
    pub fn events(&mut self) -> Result<Events, Error> {
        Events::take(&mut self.ebpf)
    }

    /// How programs are attached on this kernel.
    pub fn attach_kind(&self) -> AttachKind {
        self.hooks.kind()
    }

    /// What is less good here than it could be, for people; empty on a current kernel.
    pub fn degraded(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.hooks.kind() == AttachKind::Clsact {
            missing.push("no tcx links (kernel 6.6): programs are attached through clsact".to_owned());
        }
        if !self.sockets.possible() {
            missing.push("no cgroup v2: sockets are not balanced when they connect, each packet is".to_owned());
        }
        missing
    }

    /// Detaches all programs and removes all pins under `bpffs`; then unmounts it if it is a mount
    /// point itself. Goes on after a failure. Returns what was removed.
    ///
    /// # Errors
    ///
    /// The first failure, after all has been tried.
    pub fn cleanup(bpffs: &Path) -> Result<Vec<String>, Error> {
        pins::cleanup(bpffs)
    }
}

/// The program in the object.
fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, Error> {
    let name = hooks::name(program);
    ebpf.program_mut(name)
        .ok_or(Error::NotInObject { name })?
        .try_into()
        .map_err(|source| Error::Program {
            program,
            doing: "find",
            source: Box::new(source),
        })
}

#[cfg(test)]
mod tests {
    use super::BYTECODE;

    // Extra bytes behind the 12 of a type, by its kind, with `n` members: Documentation/bpf/btf.rst, section 2.2.
    fn extra(kind: u32, n: usize) -> usize {
        match kind {
            2 | 7..=12 | 16 | 18 => 0,
            1 | 14 | 17 => 4,
            3 => 12,
            6 | 13 => 8 * n,
            4 | 5 | 15 | 19 => 12 * n,
            _ => panic!("kind {kind} is none of btf.rst"),
        }
    }

    // LLVM writes the names of types that are not described (BTF_KIND_FWD) in the order of their addresses in the
    // linker, so that two of them give another object every few times: see `Skb` of ebpf/programs.
    #[test]
    fn names_one_type_only() {
        let btf = aya_obj::Object::parse(BYTECODE).unwrap().btf.unwrap().to_bytes();
        let word = |at: usize| u32::from_le_bytes(btf[at..at + 4].try_into().unwrap());
        let (header, types, len) = (word(4) as usize, word(8) as usize, word(12) as usize);
        let (mut at, end) = (header + types, header + types + len);
        let (mut all, mut named) = (0, 0);
        while at < end {
            let (kind, n) = (word(at + 4) >> 24 & 31, word(at + 4) & 0xffff);
            all += 1;
            named += u32::from(kind == 7);
            at += 12 + extra(kind, n as usize);
        }
        assert_eq!(at, end, "types end elsewhere");
        assert!(all > 100, "{all} types");
        assert!(named <= 1, "{named} types are only named");
    }
}

//! The only user of aya: loads the kernel programs, attaches them, and keeps the balancer's tables.
//!
//! The agent's executor calls [`Loader::apply`] for each [`BpfAction`], its reconcile loop
//! [`Loader::observe`], its metrics [`Loader::counters`]. Everything is pinned, so that the data path
//! goes on without a loader and the next one takes it over: flows, tables and attachments survive,
//! and newer programs replace older ones in place.
//!
//! All calls must be made from a thread in the host's network namespace, always the same one: devices
//! are found by name.

mod error;
mod hooks;
mod pins;
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
pub use hooks::AttachKind;

use hooks::Hooks;
use store::Store;

/// The compiled programs; made by scripts/build-ebpf from ebpf/programs.
static BYTECODE: &[u8] = include_bytes_aligned!("../bytecode/meshd.bpf.o");

/// All programs.
const PROGRAMS: [Program; 5] = [
    Program::FromUplink,
    Program::FromOverlay,
    Program::FromNetwork,
    Program::FromContainer,
    Program::ToContainer,
];

/// What a loader needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of this host's pins, on a bpffs or to be made one.
    pub bpffs: PathBuf,
    /// How many flows are remembered, per table.
    pub flow_table_size: u32,
    /// How programs are attached; `None`: the best that the kernel has.
    pub attach: Option<AttachKind>,
}

impl Options {
    /// The defaults with the pins at `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            flow_table_size: spec::FLOWS.max_entries,
            attach: None,
        }
    }
}

/// The data path of one host.
pub struct Loader {
    ebpf: Ebpf,
    store: Store,
    hooks: Hooks,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Loader {
    /// Loads the programs, taking over what a former loader left: its maps with their rows, its
    /// attachments, which run this loader's programs from then on. What a meshd with maps of another
    /// shape left is removed.
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
            classifier(&mut ebpf, program)?.load().map_err(|source| Error::Program {
                program,
                doing: "load",
                source: Box::new(source),
            })?;
        }
        // The programs of another version would see the packets first.
        pins::retire(&opts.bpffs)?;
        let store = Store::open(&mut ebpf)?;
        let hooks = Hooks::adopt(&mut ebpf, pins::links(&opts.bpffs), opts.attach)?;
        Ok(Self { ebpf, store, hooks })
    }

    /// The tables as the kernel holds them, and the programs that are attached. A row that names a
    /// device by an index that is no longer the device's is left out (of the configuration, and of an
    /// endpoint's VXLAN device: the device's name), so that a plan puts it again.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub fn observe(&mut self) -> Result<(lb::Tables, BTreeSet<lb::Hook>), Error> {
        self.store.refresh()?;
        Ok((self.store.tables().clone(), self.hooks.observe()?))
    }

    /// Carries out one step. What is so already is left as it is.
    ///
    /// # Errors
    ///
    /// A device that does not exist, a full map, a refusal of the kernel.
    pub fn apply(&mut self, action: &BpfAction) -> Result<(), Error> {
        match action {
            BpfAction::Row(row) => self.store.put(row),
            BpfAction::Attach(hook) => self.hooks.attach(&mut self.ebpf, hook),
            BpfAction::Detach(hook) => self.hooks.detach(hook),
        }
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

    /// How programs are attached on this kernel.
    pub fn attach_kind(&self) -> AttachKind {
        self.hooks.kind()
    }

    /// What is less good here than it could be, for people; empty on a current kernel.
    pub fn degraded(&self) -> Vec<String> {
        match self.hooks.kind() {
            AttachKind::Tcx => Vec::new(),
            AttachKind::Clsact => vec!["no tcx links (kernel 6.6): programs are attached through clsact".to_owned()],
        }
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

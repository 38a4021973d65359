//! What can go wrong between the loader and the kernel.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use mesh_core::lb::Program;

/// A failure of the loader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation below the pin directory.
    #[error("can not {doing} {}", path.display())]
    Path {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A pinned map of another shape than the programs want: made by another version, or with
    /// another flow table size.
    #[error("pinned map {name} has {what} {found}, the programs want {wanted}: keep the former flow table size, or run meshd cleanup")]
    MapShape {
        /// The map.
        name: &'static str,
        /// Which of its properties.
        what: &'static str,
        /// As pinned.
        found: u32,
        /// As wanted.
        wanted: u32,
    },
    /// The object can not be loaded.
    #[error("can not load the bpf object")]
    Object {
        /// Why not.
        #[source]
        source: Box<EbpfError>,
    },
    /// The object lacks something: it was not built from this source.
    #[error("the bpf object has no {name}: run scripts/build-ebpf")]
    NotInObject {
        /// Map or program.
        name: &'static str,
    },
    /// A program.
    #[error("can not {doing} program {program:?}")]
    Program {
        /// The program.
        program: Program,
        /// What was tried.
        doing: &'static str,
        /// Why not; the verifier's log if it refused.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map.
    #[error("can not {doing} map {name}")]
    Map {
        /// The map.
        name: &'static str,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<MapError>,
    },
    /// A row or hook names a device that does not exist.
    #[error("device {name:?} does not exist")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// A device name that no device can have.
    #[error("device name {name:?} is longer than 15 bytes")]
    DeviceName {
        /// The name.
        name: String,
    },
    /// A question to the kernel about a link or filter.
    #[error("can not {doing}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn object(source: EbpfError) -> Self {
        Self::Object { source: Box::new(source) }
    }

    pub(crate) fn map(name: &'static str, doing: &'static str, source: MapError) -> Self {
        Self::Map {
            name,
            doing,
            source: Box::new(source),
        }
    }

    pub(crate) fn program(program: Program, doing: &'static str, source: ProgramError) -> Self {
        Self::Program {
            program,
            doing,
            source: Box::new(source),
        }
    }
}

//! The hooks of sockets: eight programs at the root of the cgroup hierarchy, whose links are pinned at
//! `<bpffs>/vN/sockets/<hook>`. They are one [`mesh_core::lb::Program::Sockets`]: all or none.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};
use mesh_core::lb::Program;

use crate::{Error, patient, sys};

/// The programs' names in the object.
const HOOKS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

const PROGRAM: Program = Program::Sockets;

fn boxed(doing: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |source| Error::Program {
        program: PROGRAM,
        doing,
        source,
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::NotInObject { name })?;
    program.try_into().map_err(|e| boxed("find")(Box::new(e)))
}

/// Loads the programs.
pub fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    for name in HOOKS {
        let program = program(ebpf, name)?;
        patient::load(|| program.load()).map_err(|e| boxed("load")(Box::new(e)))?;
    }
    Ok(())
}

/// The attachments of this host.
#[derive(Debug)]
pub struct Sockets {
    dir: PathBuf,
    /// The root of the hierarchy; none: the kernel has no cgroup v2.
    root: Option<OwnedFd>,
}

impl Sockets {
    /// Takes over what is attached: each link gets the program that has just been loaded.
    pub fn adopt(ebpf: &mut Ebpf, dir: PathBuf) -> Result<Self, Error> {
        let root = sys::cgroup_root()
            .inspect_err(|e| tracing::warn!(error = %e, "no cgroup v2: sockets are not balanced, packets are"))
            .ok();
        let sockets = Self { dir, root };
        if sockets.attached() {
            for name in HOOKS {
                sockets.replace(ebpf, name)?;
            }
        } else {
            sockets.detach()?;
        }
        Ok(sockets)
    }

    /// The kernel can do it.
    pub fn possible(&self) -> bool {
        self.root.is_some()
    }

    /// All are attached.
    pub fn attached(&self) -> bool {
        HOOKS.iter().all(|name| self.dir.join(name).exists())
    }

    fn replace(&self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
        let program = program(ebpf, name)?;
        let fd = program.fd().map_err(|e| boxed("replace")(Box::new(e)))?;
        sys::update_link(&self.dir.join(name), fd.as_fd().as_raw_fd()).map_err(|e| boxed("replace")(Box::new(e)))
    }

    /// Attaches all, or puts the loaded ones in the place of those that are attached.
    pub fn attach(&self, ebpf: &mut Ebpf) -> Result<(), Error> {
        let Some(root) = &self.root else {
            return Err(Error::Kernel {
                doing: "attach to sockets: there is no cgroup v2",
                source: io::ErrorKind::Unsupported.into(),
            });
        };
        for name in HOOKS {
            let pin = self.dir.join(name);
            if pin.exists() {
                self.replace(ebpf, name)?;
                continue;
            }
            let program = program(ebpf, name)?;
            // Links always share a hook with others'; the kernel refuses to be told so.
            let id = program
                .attach(root, CgroupAttachMode::Single)
                .map_err(|e| boxed("attach")(Box::new(e)))?;
            let link = program.take_link(id).map_err(|e| boxed("attach")(Box::new(e)))?;
            let link: FdLink = link.try_into().map_err(|e| boxed("attach")(Box::new(e)))?;
            // The pin keeps it; our descriptor may go.
            link.pin(&pin).map_err(|e| boxed("pin the link of")(Box::new(e)))?;
        }
        Ok(())
    }

    /// Detaches all.
    pub fn detach(&self) -> Result<(), Error> {
        for name in HOOKS {
            let path = self.dir.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Path {
                        doing: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

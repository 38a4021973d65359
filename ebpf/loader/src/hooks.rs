//! Programs at devices. Each attachment has a pin named `<program>-<ifindex>`.
//!
//! With TCX (kernel 6.6) the pin is the link itself: it lives as long as the pin and the device do,
//! and gets a newer program without a gap. With clsact the filter belongs to the device; the pin is
//! of the program and only notes that the filter is ours.
//!
//! Containers' devices have clsact filters on every kernel. Attaching to TCX waits for an RCU grace
//! period with the routing lock held (tcx_entry_sync in include/net/tcx.h), 8 to 16 ms for each of a
//! container's two programs, where a filter takes 0.1 ms; a hundred containers that start at once would
//! wait for seconds.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, Link, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
};
use mesh_core::lb::{Hook, Program};

use crate::{Error, PROGRAMS, classifier, migrate, sys};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachKind {
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// Priority and handle of our clsact filters.
pub(crate) const PRIORITY: u16 = 77;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// The program's name in the object.
pub fn name(program: Program) -> &'static str {
    match program {
        Program::FromUplink => "from_uplink",
        Program::FromOverlay => "from_overlay",
        Program::FromNetwork => "from_network",
        Program::FromContainer => "from_container",
        Program::ToContainer => "to_container",
        Program::Sockets => "sockets",
    }
}

fn direction(program: Program) -> TcAttachType {
    match program {
        Program::ToContainer => TcAttachType::Egress,
        Program::FromUplink | Program::FromOverlay | Program::FromNetwork | Program::FromContainer | Program::Sockets => {
            TcAttachType::Ingress
        }
    }
}

fn boxed(program: Program, doing: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |source| Error::Program { program, doing, source }
}

/// The attachments of this host.
#[derive(Debug)]
pub struct Hooks {
    dir: PathBuf,
    /// How programs are attached where they stay for long.
    kind: AttachKind,
    /// How they are attached to containers' devices.
    containers: AttachKind,
}

/// A pin's name read back.
fn parse(pin: &Path) -> Option<(Program, u32)> {
    let (program, index) = pin.file_name()?.to_str()?.rsplit_once('-')?;
    Some((PROGRAMS.into_iter().find(|p| name(*p) == program)?, index.parse().ok()?))
}

impl Hooks {
    /// Takes over what is attached: each gets the program that has just been loaded.
    pub fn adopt(ebpf: &mut Ebpf, dir: PathBuf, wanted: Option<AttachKind>) -> Result<Self, Error> {
        let kind = wanted.unwrap_or_else(|| match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Ok(_) => AttachKind::Tcx,
            Err(_) => AttachKind::Clsact,
        });
        let containers = wanted.unwrap_or(AttachKind::Clsact);
        let hooks = Self { dir, kind, containers };
        for pin in hooks.pins()? {
            match parse(&pin).and_then(|(program, index)| Some((program, index, sys::ifname(index)?))) {
                Some((program, index, dev)) => match hooks.live(&pin, program, index)? {
                    Some(kind) => hooks.replace(ebpf, &pin, program, &dev, kind)?,
                    None => remove(&pin)?,
                },
                None => remove(&pin)?,
            }
        }
        Ok(hooks)
    }

    /// How programs are attached.
    pub fn kind(&self) -> AttachKind {
        self.kind
    }

    fn pins(&self) -> Result<Vec<PathBuf>, Error> {
        let failed = |source| Error::Path {
            doing: "list",
            path: self.dir.clone(),
            source,
        };
        fs::read_dir(&self.dir)
            .map_err(failed)?
            .map(|e| e.map(|e| e.path()).map_err(failed))
            .collect()
    }

    fn pin(&self, program: Program, index: u32) -> PathBuf {
        self.dir.join(format!("{}-{index}", name(program)))
    }

    /// How the attachment that `pin` stands for is made, if it works on the device that has that index
    /// now. A filter of ours counts without its pin too: a meshd may have ended between the two.
    fn live(&self, pin: &Path, program: Program, index: u32) -> Result<Option<AttachKind>, Error> {
        let failed = |doing| move |source| Error::Kernel { doing, source };
        match sys::tcx_ifindex(pin) {
            Ok(Some(at)) if at == index => return Ok(Some(AttachKind::Tcx)),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("read a pinned tcx link")(e)),
            _ => {}
        }
        let egress = matches!(direction(program), TcAttachType::Egress);
        let there = sys::has_filter(index, egress, PRIORITY, HANDLE.into()).map_err(failed("look for a tc filter"))?;
        Ok(there.then_some(AttachKind::Clsact))
    }

    /// What is attached and works. Pins of what does not are removed.
    pub fn observe(&self) -> Result<BTreeSet<Hook>, Error> {
        let mut hooks = BTreeSet::new();
        for pin in self.pins()? {
            match parse(&pin).and_then(|(program, index)| Some((program, index, sys::ifname(index)?))) {
                Some((program, index, dev)) if self.live(&pin, program, index)?.is_some() => drop(hooks.insert(Hook { program, dev })),
                _ => remove(&pin)?,
            }
        }
        Ok(hooks)
    }

    /// Attaches a program, or puts the loaded one in the place of what is attached, if only by a former
    /// version.
    pub fn attach(&self, ebpf: &mut Ebpf, hook: &Hook, former: &[PathBuf]) -> Result<(), Error> {
        let index = sys::ifindex(&hook.dev).ok_or_else(|| Error::NoDevice { name: hook.dev.clone() })?;
        let pin = self.pin(hook.program, index);
        if !pin.exists()
            && let Some(name) = pin.file_name().and_then(|n| n.to_str())
            && migrate::take_link(former, &self.dir, name)?
        {
            tracing::info!(hook = name, "taken over from another version");
        }
        if let Some(kind) = self.live(&pin, hook.program, index)? {
            return self.replace(ebpf, &pin, hook.program, &hook.dev, kind);
        }
        if pin.exists() {
            remove(&pin)?;
        }
        let kind = match hook.program {
            Program::FromContainer | Program::ToContainer => self.containers,
            Program::FromUplink | Program::FromOverlay | Program::FromNetwork | Program::Sockets => self.kind,
        };
        let program = classifier(ebpf, hook.program)?;
        match put(program, hook, &pin, kind) {
            Err(e) if kind != self.kind => {
                tracing::warn!(
                    dev = hook.dev,
                    error = &e as &dyn std::error::Error,
                    "no clsact filter: attaching through tcx"
                );
                put(program, hook, &pin, self.kind)
            }
            done => done,
        }
    }

    fn replace(&self, ebpf: &mut Ebpf, pin: &Path, which: Program, dev: &str, kind: AttachKind) -> Result<(), Error> {
        let program = classifier(ebpf, which)?;
        let error = |source| Error::program(which, "replace", source);
        let boxed = boxed(which, "replace");
        match kind {
            AttachKind::Tcx => {
                let link = PinnedLink::from_pin(pin).map_err(|e| boxed(Box::new(e)))?;
                let link: SchedClassifierLink = FdLink::from(link).try_into().map_err(|e| boxed(Box::new(e)))?;
                let id = program.attach_to_link(link).map_err(error)?;
                drop(program.take_link(id).map_err(error)?);
            }
            AttachKind::Clsact => {
                let link = SchedClassifierLink::attached(dev, direction(which), PRIORITY, HANDLE, None).map_err(|e| boxed(Box::new(e)))?;
                let id = program.attach_to_link(link).map_err(error)?;
                std::mem::forget(program.take_link(id).map_err(error)?);
                unlink(pin)?;
                program.pin(pin).map_err(|e| boxed(Box::new(e)))?;
            }
        }
        Ok(())
    }

    /// Detaches a program; a device that is gone has none.
    pub fn detach(&self, hook: &Hook) -> Result<(), Error> {
        match sys::ifindex(&hook.dev) {
            Some(index) => remove(&self.pin(hook.program, index)),
            None => Ok(()),
        }
    }
}

/// Attaches a program where it is not attached yet.
fn put(program: &mut SchedClassifier, hook: &Hook, pin: &Path, kind: AttachKind) -> Result<(), Error> {
    let error = |source| Error::program(hook.program, "attach", source);
    match kind {
        AttachKind::Tcx => {
            // After whatever others have put there.
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program
                .attach_with_options(&hook.dev, direction(hook.program), options)
                .map_err(error)?;
            let link = program.take_link(id).map_err(error)?;
            let link: FdLink = link.try_into().map_err(|e| boxed(hook.program, "attach")(Box::new(e)))?;
            // The pin keeps it; our descriptor may go.
            link.pin(pin).map_err(|e| boxed(hook.program, "pin the link of")(Box::new(e)))?;
        }
        AttachKind::Clsact => {
            // There may be one already, ours or another's: attaching tells.
            if let Err(e) = qdisc_add_clsact(&hook.dev) {
                tracing::debug!(dev = hook.dev, error = %e, "clsact qdisc not added");
            }
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            });
            let id = program
                .attach_with_options(&hook.dev, direction(hook.program), options)
                .map_err(error)?;
            // Dropped, the link would take the filter along.
            std::mem::forget(program.take_link(id).map_err(error)?);
            program.pin(pin).map_err(|e| boxed(hook.program, "pin")(Box::new(e)))?;
        }
    }
    Ok(())
}

/// Removes an attachment and its pin, of either kind.
pub fn remove(pin: &Path) -> Result<(), Error> {
    if let Some((program, index)) = parse(pin)
        && let Some(dev) = sys::ifname(index)
        && sys::has_filter(index, matches!(direction(program), TcAttachType::Egress), PRIORITY, HANDLE.into()).unwrap_or(false)
    {
        let error = |source| Error::program(program, "detach", source);
        let link = SchedClassifierLink::attached(&dev, direction(program), PRIORITY, HANDLE, None)
            .map_err(|e| boxed(program, "detach")(Box::new(e)))?;
        link.detach().map_err(error)?;
    }
    unlink(pin)
}

fn unlink(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Path {
            doing: "remove",
            path: pin.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

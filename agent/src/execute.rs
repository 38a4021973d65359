//! The only writer to the kernel: reads what is there and carries out the steps of a plan.
//!
//! Held by the reconcile loop alone. It makes no choices: which step, and in which order, is the
//! plan's.

use std::{path::PathBuf, sync::Arc};

use mesh_core::{
    Id,
    action::{Action, BpfAction, NetAction},
    desired::Desired,
    intent::VETH,
    lb::Row,
    names::NameTable,
    observed::Observed,
};
use mesh_dns::Dns;
use mesh_loader::Loader;
use mesh_overlay::{Overlay, Survey};

use crate::traffic::flows::Hub;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Netlink or nftables.
    #[error(transparent)]
    Overlay(#[from] mesh_overlay::Error),
    /// BPF.
    #[error(transparent)]
    Loader(#[from] mesh_loader::Error),
    /// The DNS.
    #[error(transparent)]
    Names(#[from] mesh_dns::SwapError),
}

impl StepError {
    /// The container that the step was for does not exist any more.
    pub fn is_sandbox_gone(&self) -> bool {
        matches!(self, Self::Overlay(mesh_overlay::Error::SandboxGone { .. }))
    }

    /// The link that the step was for does not exist.
    pub fn is_link_gone(&self) -> bool {
        matches!(self, Self::Overlay(e) if e.is_link_gone())
    }
}

/// The three hands on the kernel.
pub struct Executor {
    /// Links, routes, packet filter.
    pub overlay: Overlay,
    /// Programs and maps.
    pub loader: Loader,
    /// Names.
    pub dns: Arc<Dns>,
    flows: Arc<Hub>,
    bpffs: PathBuf,
    flow_table_size: u32,
    /// The loader's pins were removed, and it has to be opened again.
    stale: bool,
}

impl Executor {
    /// Takes over what is pinned at `bpffs`, or begins anew.
    pub fn open(bpffs: PathBuf, flow_table_size: u32, dns: Arc<Dns>, flows: Arc<Hub>) -> Result<Self, StepError> {
        let overlay = Overlay::new()?;
        let loader = open_loader(&bpffs, flow_table_size, &flows)?;
        Ok(Self {
            overlay,
            loader,
            dns,
            flows,
            bpffs,
            flow_table_size,
            stale: false,
        })
    }

    /// What the kernel and the DNS hold now, of which `survey` was just read. A dump that can not be trusted is an error.
    pub async fn observe(&mut self, survey: &Survey, cluster: Option<Id>) -> Result<Observed, StepError> {
        if self.stale {
            self.reopen()?;
        }
        let overlay = self.overlay.read(survey, cluster).await?;
        let (tables, hooks) = self.loader.observe()?;
        let names = NameTable::clone(&self.dns.current());
        Ok(Observed {
            overlay,
            tables,
            hooks,
            names,
        })
    }

    /// As [`Self::observe`], but forwarding entries and neighbours as they were read last and changed here
    /// since; of what grows with the cluster only the rows that either of `of` has too, where given. `None`
    /// where all of it has to be read.
    pub async fn observe_known(&mut self, survey: &Survey, cluster: Id, of: Option<[&Desired; 2]>) -> Result<Option<Observed>, StepError> {
        if self.stale {
            return Ok(None);
        }
        let fdb = of.map(|of| of.map(|d| &d.fdb));
        let Some(overlay) = self.overlay.read_known(survey, Some(cluster), fdb).await? else {
            return Ok(None);
        };
        let (tables, hooks) = match of {
            Some(of) => self.loader.observe_part(of.map(|d| &d.tables))?,
            None => self.loader.observe()?,
        };
        let names = NameTable::clone(&self.dns.current());
        Ok(Some(Observed {
            overlay,
            tables,
            hooks,
            names,
        }))
    }

    /// Removes flows that are over from a part of the tables.
    pub fn reclaim(&mut self) -> Result<u64, StepError> {
        Ok(self.loader.reclaim()?)
    }

    /// Carries out one step.
    async fn execute(&mut self, action: &Action) -> Result<(), StepError> {
        match action {
            Action::Net(step) => Ok(self.overlay.apply(step).await?),
            Action::Bpf(step) => Ok(self.loader.apply(step)?),
            Action::Names(table) => Ok(self.dns.swap(Arc::new(NameTable::clone(table))).await?),
        }
    }

    /// Carries out the steps of a run ([`mesh_core::action::runs`]); what came of each.
    pub async fn execute_run(&mut self, run: &[Action]) -> Vec<Result<(), StepError>> {
        if let [step] = run {
            return vec![self.execute(step).await];
        }
        let steps = run.iter().filter_map(|step| match step {
            Action::Net(step) => Some(step),
            _ => None,
        });
        let done = self.overlay.apply_all(&steps.collect::<Vec<_>>()).await;
        done.into_iter().map(|done| done.map_err(StepError::from)).collect()
    }

    /// Has the programs tell of what is read at the moment.
    pub fn watch(&mut self) -> Result<(), mesh_loader::Error> {
        self.loader.watch(self.flows.wanted())
    }

    /// Removes everything from the kernel, for a host that has left its cluster; collects all
    /// errors.
    pub async fn teardown(&mut self) -> Vec<String> {
        let mut errors = Vec::new();
        if let Err(e) = self.dns.swap(Arc::default()).await {
            errors.push(chain(&e));
        }
        if let Err(all) = self.overlay.sweep().await {
            errors.extend(all.iter().map(|e| chain(e)));
        }
        // Whatever could not be removed: the maps of this loader are not those that are pinned now.
        errors.extend(Loader::cleanup(&self.bpffs).err().map(|e| chain(&e)));
        self.stale = true;
        errors.extend(self.reopen().err().map(|e| chain(&e)));
        errors
    }

    /// Removes what an earlier cluster left in the kernel, if there is anything.
    pub async fn clear(&mut self) -> Vec<String> {
        let survey = match self.overlay.survey().await {
            Ok(survey) => survey,
            Err(e) => return vec![chain(&e)],
        };
        let seen = self.observe(&survey, None).await.map(|mut seen| {
            // What is in our way is not ours.
            seen.overlay.blocked = false;
            seen
        });
        match seen {
            Ok(seen) if seen == Observed::default() => Vec::new(),
            Ok(_) => {
                tracing::info!("removing what an earlier cluster left on this host");
                self.teardown().await
            }
            Err(e) => vec![chain(&e)],
        }
    }

    fn reopen(&mut self) -> Result<(), mesh_loader::Error> {
        self.loader = open_loader(&self.bpffs, self.flow_table_size, &self.flows)?;
        self.stale = false;
        Ok(())
    }
}

fn open_loader(bpffs: &std::path::Path, flow_table_size: u32, flows: &Hub) -> Result<Loader, mesh_loader::Error> {
    let mut loader = Loader::open(&mesh_loader::Options {
        flow_table_size,
        ..mesh_loader::Options::new(bpffs)
    })?;
    flows.attach(loader.events()?);
    loader.watch(flows.wanted())?;
    Ok(loader)
}

/// An error with its sources, on one line.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text.replace('\n', " ")
}

/// The name of the veth that a step is about.
pub fn veth_of(action: &Action) -> Option<&str> {
    let name = match action {
        Action::Net(NetAction::PutVeth { name, .. }) => name,
        Action::Net(NetAction::AddFdb(e)) => &e.dev,
        Action::Bpf(BpfAction::Row(Row::Local(name, Some(_)))) => name,
        Action::Bpf(BpfAction::Attach(h)) => &h.dev,
        _ => return None,
    };
    Some(name.as_str()).filter(|name| name.starts_with(VETH))
}

/// The device that a step makes, or puts something on.
pub fn device_of(step: &NetAction) -> Option<&str> {
    Some(match step {
        NetAction::PutLink { name, .. } => name,
        NetAction::AddAddr(dev, _) => dev,
        NetAction::AddRoute(r) => &r.dev,
        NetAction::AddFdb(e) => &e.dev,
        NetAction::AddNeigh(n) => &n.dev,
        _ => return None,
    })
}

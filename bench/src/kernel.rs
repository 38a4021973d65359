//! One host of a large cluster: its kernel is brought to what the cluster wants, then to changes of that, by
//! the code that the agent does it with, but for the DNS.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use mesh_core::{
    action::{Action, BpfAction, NetAction, runs},
    command::Command,
    desired::Desired,
    intent::{self, Facts},
    lb::Row,
    names::NameTable,
    objects::{EndpointState, Objects, Sandbox},
    observed::Observed,
    part::{Touched, part},
    plan::plan,
};
use mesh_loader::{Loader, Options};
use mesh_overlay::Overlay;
use serde_json::{Value, json};

use crate::{
    Failure,
    cluster::{self, Maker, Size},
    maps, space,
    times::{Times, ms},
};

/// What `meshd-scale kernel` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    size: Size,
    /// Containers on the host that is measured, each in a network of its own.
    #[arg(long, default_value_t = 10)]
    containers: usize,
    /// Changes that are measured: an endpoint of another host goes to draining or comes back.
    #[arg(long, default_value_t = 11)]
    changes: u64,
}

/// Does it; what came of it.
pub fn run(args: &Args) -> Result<Value, Failure> {
    space::enter()?;
    space::sh("ip link set lo up")?;
    space::sh("ip link add up0 type veth peer name far0 && ip link set far0 up && ip link set up0 up")?;
    space::sh(&format!("ip addr add {}/15 dev up0", cluster::vtep(0)))?;
    let dir = tempfile::tempdir()?;
    let bpffs = dir.path().join("bpf");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(measure(args, &bpffs));
    // Also takes the mount away, without which the directory goes.
    let cleaned = Loader::cleanup(&bpffs);
    let done = done?;
    cleaned?;
    Ok(done)
}

async fn measure(args: &Args, bpffs: &Path) -> Result<Value, Failure> {
    let begun = Instant::now();
    let here: Vec<Sandbox> = (0..args.containers).map(space::sandbox).collect::<Result<_, _>>()?;
    let mut maker = Maker::new()?;
    maker.grow(&args.size, 1, &here)?;
    let made = begun.elapsed();
    let mut host = Host::open(bpffs)?;
    let objects_rss = space::rss()?;

    let mut load = Times::default();
    let steps = host.pass(&maker, None, &mut load).await?;
    let left = host.pass(&maker, None, &mut Times::default()).await?;
    if left != 0 {
        return Err(format!("{left} of {steps} steps were to be done again").into());
    }
    let tables = host.seen.tables.clone();
    let rows = json!({
        "services": tables.services.len(), "members": tables.services.values().map(|p| p.list.len()).sum::<usize>(),
        "backends": tables.backends.len(), "published": tables.published.len(), "vips": tables.vips.len(),
        "fdb": host.seen.overlay.fdb.len(), "neighbours": host.seen.overlay.neighs.len(),
    });
    drop(tables);

    let mut changes = Times::default();
    let mut change_steps = Vec::new();
    for n in 0..args.changes {
        let id = cluster::endpoint(n * 37 % args.size.services.max(1), args.size.endpoints.saturating_sub(1));
        let is_ready = maker.objects().endpoints.get(&id).is_some_and(|e| e.state == EndpointState::Ready);
        let state = if is_ready { EndpointState::Draining } else { EndpointState::Ready };
        let before = maker.objects().clone();
        let mut touched = Touched::default();
        let news = maker.apply(Command::EndpointSet { id, state })?;
        news.iter().for_each(|change| touched.note(&before, change));
        let begun = Instant::now();
        let mut times = Times::default();
        change_steps.push(host.pass(&maker, Some(&touched), &mut times).await?);
        changes.add("pass", begun.elapsed());
        for stage in STAGES {
            changes.add(stage, times.sum(stage));
        }
        changes.add("kernel", times.total(&KERNEL));
    }
    let (begun, mut everything) = (Instant::now(), Times::default());
    let left = host.pass(&maker, None, &mut everything).await?;
    everything.add("pass", begun.elapsed());
    if left != 0 {
        return Err(format!("{left} steps were left after {} changes", args.changes).into());
    }
    Ok(json!({
        "services": args.size.services, "endpoints": args.size.services * args.size.endpoints, "nodes": args.size.nodes,
        "containers": args.containers, "rows": rows, "cluster_made_ms": ms(made),
        "load": { "steps": steps, "kernel_ms": ms(load.total(&KERNEL)), "bpf_ms": ms(load.total(&BPF)), "each": load.sums() },
        "change": { "steps": change_steps, "each": changes.medians() },
        "everything": everything.sums(),
        "maps": maps::of(std::process::id())?.json(),
        "rss": { "objects": objects_rss, "end": space::rss()? },
    }))
}

/// Parts of a pass.
const STAGES: [&str; 5] = ["intent", "dump", "observe", "plan", "execute"];
/// Kinds of steps that write to BPF maps or attach programs.
const BPF: [&str; 5] = ["bpf backends", "bpf services", "bpf published", "bpf other rows", "bpf attach"];
/// Kinds of steps that write to the kernel.
const KERNEL: [&str; 8] = [BPF[0], BPF[1], BPF[2], BPF[3], BPF[4], "net fdb", "net neighbours", "net other"];

fn kind(step: &Action) -> &'static str {
    match step {
        Action::Bpf(BpfAction::Row(Row::Backend(..))) => "bpf backends",
        Action::Bpf(BpfAction::Row(Row::Service(..))) => "bpf services",
        Action::Bpf(BpfAction::Row(Row::Published(..))) => "bpf published",
        Action::Bpf(BpfAction::Row(_)) => "bpf other rows",
        Action::Bpf(_) => "bpf attach",
        Action::Net(NetAction::AddFdb(_) | NetAction::DelFdb(_)) => "net fdb",
        Action::Net(NetAction::AddNeigh(_) | NetAction::DelNeigh(_)) => "net neighbours",
        Action::Net(_) => "net other",
        Action::Names(_) => "names",
    }
}

struct Host {
    overlay: Overlay,
    loader: Loader,
    facts: Facts,
    /// What the DNS would answer from.
    names: NameTable,
    /// As the last pass found it.
    seen: Observed,
}

impl Host {
    fn open(bpffs: &Path) -> Result<Self, Failure> {
        let overlay = Overlay::new()?;
        let facts = Facts {
            uplink: "up0".to_owned(),
            addrs: [cluster::vtep(0)].into(),
            resolvers: Default::default(),
            cookie: overlay.cookie(),
            segment: None,
            neighbors: Default::default(),
        };
        Ok(Self {
            overlay,
            loader: Loader::open(&Options::new(PathBuf::from(bpffs)))?,
            facts,
            names: NameTable::default(),
            seen: Observed::default(),
        })
    }

    /// As the agent's: look at everything, or at the part that is `touched`, plan, carry out. How many steps
    /// there were.
    async fn pass(&mut self, maker: &Maker, touched: Option<&Touched>, times: &mut Times) -> Result<usize, Failure> {
        let (objects, me) = (maker.objects(), cluster::node(0));
        let cluster = objects.cluster.as_ref().ok_or("no cluster")?.id;
        let of = |objects: &Objects| intent::desired(objects, maker.index(), cluster, me, &self.facts);
        let (former, desired): (Option<Desired>, Desired) =
            times.of("intent", || match touched.and_then(|touched| part(touched, objects, me)) {
                Some(part) => (Some(of(&part.before)), of(&part.after)),
                None => (None, of(objects)),
            });
        let rows = former.as_ref().map(|former| [former, &desired]);
        let begun = Instant::now();
        let overlay = match touched {
            Some(_) => {
                let known = self.overlay.dump_known(Some(cluster), rows.map(|of| of.map(|d| &d.fdb)));
                known.await?.ok_or("somebody else changes this host's entries")?
            }
            None => self.overlay.dump(Some(cluster)).await?,
        };
        times.add("dump", begun.elapsed());
        let (tables, hooks) = times.of("observe", || match rows {
            Some(of) => self.loader.observe_part(of.map(|d| &d.tables)),
            None => self.loader.observe(),
        })?;
        self.seen = Observed {
            overlay,
            tables,
            hooks,
            names: self.names.clone(),
        };
        let steps = times.of("plan", || plan(&desired, &self.seen));
        let begun = Instant::now();
        for run in runs(&steps) {
            let begun = Instant::now();
            match run {
                [Action::Bpf(step)] => self.loader.apply(step)?,
                [Action::Names(table)] => self.names = NameTable::clone(table),
                _ => {
                    let steps = run.iter().filter_map(|step| match step {
                        Action::Net(step) => Some(step),
                        _ => None,
                    });
                    let done = self.overlay.apply_all(&steps.collect::<Vec<_>>()).await;
                    done.into_iter().collect::<Result<(), _>>()?;
                }
            }
            // What a run of several kinds took is shared out by how many there were of each.
            let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
            run.iter().for_each(|step| *kinds.entry(kind(step)).or_default() += 1);
            let (took, all) = (begun.elapsed(), u32::try_from(run.len()).unwrap_or(u32::MAX).max(1));
            for (kind, count) in kinds {
                times.add(kind, took.mul_f64(f64::from(count) / f64::from(all)));
            }
        }
        times.add("execute", begun.elapsed());
        Ok(steps.len())
    }
}

//! Opening, restarting, rows there and back, cleaning up.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use std::{
    collections::BTreeSet,
    sync::mpsc,
    time::{Duration, Instant},
};

use mesh_core::{
    action::BpfAction,
    lb::{Hook, Program, Row},
};
use mesh_ebpf_common::rows::{Addr, FlowKey};
use mesh_loader::{AttachKind, Error, Loader, Options};
use support::{
    Ns,
    frame::{Frame, SYN},
    world::{self, CLIENT, NODE, REDIRECT, World, tables, tables_rows, turn},
};

fn hooks() -> BTreeSet<Hook> {
    let hook = |program, dev: &str| Hook { program, dev: dev.into() };
    [
        hook(Program::FromUplink, "up0"),
        hook(Program::FromOverlay, "mx-1"),
        hook(Program::FromNetwork, "mx-n"),
        hook(Program::FromContainer, "mv-a"),
        hook(Program::ToContainer, "mv-a"),
    ]
    .into()
}

#[test]
fn what_is_put_is_observed_also_after_a_restart() {
    let mut world = World::new();
    assert_eq!(world.loader.observe().unwrap(), (tables(), hooks()));
    let mut world = world.reopen();
    assert_eq!(world.loader.observe().unwrap(), (tables(), hooks()));
    for row in tables_rows(&tables()) {
        world.put(row);
    }
    assert_eq!(world.loader.observe().unwrap().0, tables());
}

/// The verifier ends a look at a program with EAGAIN when its thread is sent a signal.
#[test]
fn signals_do_not_keep_programs_from_loading() {
    extern "C" fn nothing(_: libc::c_int) {}
    #[expect(unsafe_code, reason = "nix has this behind a feature of its own")]
    // SAFETY: the handler does nothing; threads end only after they were joined.
    let (me, signal) = unsafe {
        libc::signal(libc::SIGURG, nothing as *const () as libc::sighandler_t);
        (libc::pthread_self(), |thread| {
            assert_eq!(libc::pthread_kill(thread, libc::SIGURG), 0)
        })
    };
    let world = World::new();
    let (done, over) = mpsc::channel();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut sent = 0;
            while sent < 30 && over.recv_timeout(Duration::from_millis(4)) == Err(mpsc::RecvTimeoutError::Timeout) {
                signal(me);
                sent += 1;
            }
            sent
        });
        world.reopen();
        done.send(()).unwrap_or_default();
        assert!(sender.join().unwrap() > 1, "loaded too fast to be interrupted");
    });
}

#[test]
fn rows_change_and_go() {
    let mut world = World::new();
    let mut want = tables();
    for list in [vec![4], vec![], vec![3, 4, 3], vec![4, 3]] {
        world.put(Row::Service(1, Some(turn(&list))));
        want.services.insert(1, turn(&list));
        assert_eq!(world.loader.observe().unwrap().0, want);
    }
    world = world.reopen();
    assert_eq!(world.loader.observe().unwrap().0, want);
    let t = tables();
    for _ in 0..2 {
        t.services.keys().for_each(|k| world.put(Row::Service(*k, None)));
        t.backends.keys().for_each(|k| world.put(Row::Backend(*k, None)));
        t.locals.keys().for_each(|k| world.put(Row::Local(k.clone(), None)));
        t.networks.keys().for_each(|k| world.put(Row::Network(k.clone(), None)));
        t.published.keys().for_each(|k| world.put(Row::Published(*k, None)));
        t.vips.keys().for_each(|k| world.put(Row::Vip(*k, None)));
        t.peers.iter().for_each(|k| world.put(Row::Peer(*k, false)));
        t.nodes.keys().for_each(|k| world.put(Row::Node(*k, None)));
        t.node_addrs.iter().for_each(|k| world.put(Row::NodeAddr(*k, false)));
    }
    world.put(Row::Config {
        ingress_ip: None,
        ingress_mac: Default::default(),
        ingress_dev: String::new(),
        uplink: String::new(),
        ingress_mtu: 0,
    });
    assert_eq!(world.loader.observe().unwrap().0, Default::default());
    world = world.reopen();
    assert_eq!(world.loader.observe().unwrap().0, Default::default());
}

fn sh(line: &str) {
    assert!(
        std::process::Command::new("sh").args(["-c", line]).status().unwrap().success(),
        "{line}"
    );
}

#[test]
fn a_device_made_anew_is_another_one() {
    let mut world = World::new();
    sh("ip link del mv-a && ip link add mv-a type veth peer name ca && ip link del up0 && ip link add up0 type veth peer name far0");
    let (seen, hooked) = world.loader.observe().unwrap();
    let mut want = tables();
    want.locals.remove("mv-a");
    want.uplink.clear();
    assert_eq!(seen, want);
    assert_eq!(hooked.into_iter().map(|h| h.dev).collect::<Vec<_>>(), ["mx-1", "mx-n"]);
    for row in tables_rows(&tables()) {
        world.put(row);
    }
    for hook in hooks() {
        world.loader.apply(&BpfAction::Attach(hook)).unwrap();
    }
    assert_eq!(world.loader.observe().unwrap(), (tables(), hooks()));
}

#[test]
fn a_vxlan_device_made_anew_is_another_one() {
    let mut world = World::new();
    sh("ip link del mx-n && ip link add mx-n type vxlan id 4097 dstport 4789 local 127.0.0.1 nolearning");
    let mut want = tables();
    want.networks.remove("mx-n");
    for name in ["mv-a", "mv-b"] {
        want.locals.get_mut(name).unwrap().vxlan.clear();
    }
    for _ in 0..2 {
        let (seen, hooked) = world.loader.observe().unwrap();
        assert_eq!(seen, want);
        assert!(hooked.iter().all(|h| h.program != Program::FromNetwork));
    }
    for (name, local) in tables().locals {
        world.put(Row::Local(name, Some(Box::new(local))));
    }
    world.put(Row::Network("mx-n".into(), Some(4097)));
    world
        .loader
        .apply(&BpfAction::Attach(
            hooks().into_iter().find(|h| h.program == Program::FromNetwork).unwrap(),
        ))
        .unwrap();
    assert_eq!(world.loader.observe().unwrap(), (tables(), hooks()));
    assert_eq!(world.reopen().loader.observe().unwrap(), (tables(), hooks()));
}

#[test]
fn what_another_version_pinned_is_taken_over() {
    let ns = Ns::new();
    ns.ip("link add up0 type veth peer name far0 && ip link add up1 type veth peer name far1");
    let dir = tempfile::tempdir().unwrap();
    let pins = support::pins(dir.path());
    ns.run(move || {
        let opts = Options {
            flow_table_size: 1024,
            ..Options::new(&pins)
        };
        let hook = |dev: &str| Hook {
            program: Program::FromUplink,
            dev: dev.into(),
        };
        let mut loader = Loader::open(&opts).unwrap();
        for dev in ["up0", "up1"] {
            loader.apply(&BpfAction::Attach(hook(dev))).unwrap();
        }
        drop(loader);
        let current = std::fs::read_dir(&pins).unwrap().map(|e| e.unwrap().path());
        let current = current.filter(|p| p.join("maps").exists()).collect::<Vec<_>>();
        let [current] = &current[..] else { panic!("{current:?}") };
        let former = pins.join("v2");
        std::fs::rename(current, &former).unwrap();
        for map in ["FLOWS", "REPLIES"] {
            std::fs::remove_file(former.join("maps").join(map)).unwrap();
        }
        // As version 2 had them: one flow that lives, one that is over, and the way back of the first.
        let now = support::boot_ns();
        let key = |sport: u16| FlowKey {
            src: Addr::v4(1),
            dst: Addr::v4(2),
            sport,
            dport: 80,
            proto: 6,
            zero: [0; 3],
        };
        let flow = |bits: u32, seconds_ago: u64| {
            let mut b = (now - seconds_ago * 1_000_000_000).to_ne_bytes().to_vec();
            b.extend([7u32, bits, 3].map(u32::to_ne_bytes).concat());
            b.extend([1000u16, 8000].map(u16::to_ne_bytes).concat());
            b.extend([2, 0x6d, 10, 1, 0, 9, 1, 0]);
            b
        };
        let mut reply = now.to_ne_bytes().to_vec();
        reply.extend(0u32.to_ne_bytes());
        reply.extend([80u16, 1000].map(u16::to_ne_bytes).concat());
        reply.extend([0; 10].iter().chain(&[0xff, 0xff, 2, 0, 0, 0]));
        reply.extend([2, 0x6d, 10, 1, 0, 9, 1, 0]);
        support::old_map(&former.join("maps/FLOWS"), &[(key(1), flow(0, 0)), (key(2), flow(4, 9))]);
        support::old_map(&former.join("maps/REPLIES"), &[(key(1).reversed(), reply)]);

        let attached = |dev: &str| {
            let way = aya::programs::TcAttachType::Ingress;
            world::attached(dev, way).iter().map(|p| p.id()).collect::<Vec<_>>()
        };
        let before = attached("up0");
        let mut loader = Loader::open(&opts).unwrap();
        assert_eq!(loader.observe().unwrap().1, BTreeSet::new());
        assert_eq!(attached("up0"), before, "nothing is without a program");
        loader.apply(&BpfAction::Attach(hook("up0"))).unwrap();
        let after = attached("up0");
        assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
        assert_eq!(loader.observe().unwrap().1, [hook("up0")].into());
        assert!(!former.exists());
        // The kernel detaches what has lost its pin in its own time.
        let end = Instant::now() + Duration::from_secs(10);
        while !attached("up1").is_empty() {
            assert!(Instant::now() < end, "what nobody wants goes");
            std::thread::yield_now();
        }
        assert!(current.join("maps/FLOWS_KEPT").exists());
        let rows = |loader: &mut Loader| {
            let usage = loader.usage().unwrap().into_iter();
            usage.filter(|u| u.map.ends_with("KEPT")).map(|u| u.rows).collect::<Vec<_>>()
        };
        assert_eq!(rows(&mut loader), [1, 1]);
        assert_eq!(loader.live_flows(7).unwrap(), 1);
        loader.reclaim().unwrap();
        assert_eq!(rows(&mut loader), [1, 1], "it goes on");
    });
}

#[test]
fn an_index_that_another_device_has_taken_over() {
    let mut world = World::new();
    sh("ip link set mv-a name mv-z");
    let local = tables().locals["mv-a"].clone();
    world.put(Row::Local("mv-z".into(), Some(Box::new(local.clone()))));
    world.put(Row::Local("mv-a".into(), None));
    let mut want = tables();
    want.locals.remove("mv-a");
    want.locals.insert("mv-z".into(), local);
    assert_eq!(world.loader.observe().unwrap().0, want);
    let sent = Frame::tcp((CLIENT, 1), (NODE, 8080), SYN, b"");
    world.client(&sent).is(REDIRECT, &["delivered", "new_flow"]);
    world = world.reopen();
    assert_eq!(world.loader.observe().unwrap().0, want);
}

#[test]
fn devices_that_do_not_exist_are_named() {
    let mut world = World::new();
    let local = tables().locals["mv-a"].clone();
    let failed = world
        .loader
        .apply(&BpfAction::Row(Row::Local("mv-none".into(), Some(Box::new(local)))));
    assert!(matches!(failed, Err(Error::NoDevice { name }) if name == "mv-none"));
    let hook = Hook {
        program: Program::FromUplink,
        dev: "mv-none".into(),
    };
    assert!(matches!(
        world.loader.apply(&BpfAction::Attach(hook.clone())),
        Err(Error::NoDevice { .. })
    ));
    world.loader.apply(&BpfAction::Detach(hook)).unwrap();
}

/// Rows are read many at a time, those of a bucket of the hash together.
#[test]
fn more_rows_than_are_read_at_once() {
    let mut world = World::new();
    let mut want = tables();
    let model = *want.backends.values().next().unwrap();
    for slot in 100..12_100 {
        world.put(Row::Backend(slot, Some(model)));
        want.backends.insert(slot, model);
    }
    for set in 100..3_100 {
        let pool = turn(&[set, set + 3_000, set + 6_000]);
        world.put(Row::Service(set, Some(pool.clone())));
        want.services.insert(set, pool);
    }
    let mut world = world.reopen();
    assert_eq!(world.loader.observe().unwrap().0, want);
}

#[test]
fn attached_and_detached_twice() {
    let mut world = World::new();
    for hook in hooks() {
        world.loader.apply(&BpfAction::Attach(hook)).unwrap();
    }
    assert_eq!(world.loader.observe().unwrap().1, hooks());
    for hook in hooks().into_iter().chain(hooks()) {
        world.loader.apply(&BpfAction::Detach(hook)).unwrap();
    }
    assert_eq!(world.loader.observe().unwrap().1, BTreeSet::new());
}

#[test]
fn a_map_of_another_size_is_named() {
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let pins = support::pins(dir.path());
    ns.run(move || {
        let opts = |size| Options {
            flow_table_size: size,
            ..Options::new(&pins)
        };
        drop(Loader::open(&opts(1024)).unwrap());
        let failed = Loader::open(&opts(2048)).unwrap_err();
        assert!(
            matches!(
                failed,
                Error::MapShape {
                    name: "FLOWS_KEPT",
                    what: "capacity",
                    found: 1024,
                    wanted: 2048
                }
            ),
            "{failed}"
        );
        drop(Loader::open(&opts(1024)).unwrap());
        let removed = Loader::cleanup(&pins).unwrap();
        assert!(
            removed.iter().any(|r| r.ends_with("maps/FLOWS_KEPT")) && removed.iter().any(|r| r.starts_with("mount ")),
            "{removed:?}"
        );
        assert_eq!(Loader::cleanup(&pins).unwrap(), Vec::<String>::new());
        drop(Loader::open(&opts(2048)).unwrap());
    });
}

#[test]
fn clsact_where_there_is_no_tcx() {
    let ns = Ns::new();
    ns.ip("link add up0 type veth peer name far0");
    let dir = tempfile::tempdir().unwrap();
    let pins = support::pins(dir.path());
    ns.run(move || {
        let filters = || {
            let out = std::process::Command::new("sh")
                .args(["-c", "tc filter show dev up0 ingress; tc filter show dev up0 egress"])
                .output();
            String::from_utf8(out.unwrap().stdout).unwrap()
        };
        let opts = Options {
            flow_table_size: 1024,
            attach: Some(AttachKind::Clsact),
            ..Options::new(&pins)
        };
        let all: BTreeSet<_> = [Program::FromUplink, Program::ToContainer]
            .map(|program| Hook {
                program,
                dev: "up0".into(),
            })
            .into();
        let mut loader = Loader::open(&opts).unwrap();
        assert_eq!(loader.attach_kind(), AttachKind::Clsact);
        assert_eq!(loader.degraded().len(), 1);
        for hook in all.iter().chain(&all) {
            loader.apply(&BpfAction::Attach(hook.clone())).unwrap();
        }
        assert_eq!(loader.observe().unwrap().1, all);
        drop(loader);
        let before = filters();
        assert!(before.contains("from_uplink") && before.contains("to_container"), "{before}");
        let mut loader = Loader::open(&opts).unwrap();
        assert_eq!(loader.observe().unwrap().1, all);
        assert_ne!(filters(), before, "other programs in the same places");
        sh("tc filter del dev up0 ingress");
        assert_eq!(
            loader.observe().unwrap().1.len(),
            1,
            "a filter that somebody removed is not observed"
        );
        loader
            .apply(&BpfAction::Attach(Hook {
                program: Program::FromUplink,
                dev: "up0".into(),
            }))
            .unwrap();
        assert_eq!(loader.observe().unwrap().1, all);
        drop(loader);
        Loader::cleanup(&pins).unwrap();
        assert_eq!(filters(), "");
    });
}

/// Filters at containers' devices are attached without waiting; links of a former release stay links, and
/// a filter that a meshd which was killed had not pinned yet is taken over.
#[test]
fn containers_have_filters() {
    let ns = Ns::new();
    ns.ip("link add mv-a type veth peer name far0");
    let dir = tempfile::tempdir().unwrap();
    let pins = support::pins(dir.path());
    ns.run(move || {
        let filters = || {
            let out = std::process::Command::new("sh")
                .args(["-c", "tc filter show dev mv-a ingress"])
                .output();
            let out = String::from_utf8(out.unwrap().stdout).unwrap();
            out.lines().filter(|l| l.contains("handle") && l.contains("from_container")).count()
        };
        let opts = |attach| Options {
            flow_table_size: 1024,
            attach,
            ..Options::new(&pins)
        };
        let hook = Hook {
            program: Program::FromContainer,
            dev: "mv-a".into(),
        };
        let has = |loader: &mut Loader| loader.observe().unwrap().1 == BTreeSet::from([hook.clone()]);
        let mut loader = Loader::open(&opts(None)).unwrap();
        loader.apply(&BpfAction::Attach(hook.clone())).unwrap();
        assert!(has(&mut loader) && filters() == 1);
        let pin = std::fs::read_dir(pins.join("v5/links")).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(&pin).unwrap();
        assert!(!has(&mut loader));
        loader.apply(&BpfAction::Attach(hook.clone())).unwrap();
        assert!(has(&mut loader) && filters() == 1, "taken over, not added");
        loader.apply(&BpfAction::Detach(hook.clone())).unwrap();
        assert!(!has(&mut loader) && filters() == 0);
        if loader.attach_kind() == AttachKind::Clsact {
            return;
        }
        drop(loader);
        let mut loader = Loader::open(&opts(Some(AttachKind::Tcx))).unwrap();
        loader.apply(&BpfAction::Attach(hook.clone())).unwrap();
        assert!(has(&mut loader) && filters() == 0);
        drop(loader);
        let mut loader = Loader::open(&opts(None)).unwrap();
        loader.apply(&BpfAction::Attach(hook.clone())).unwrap();
        assert!(has(&mut loader) && filters() == 0, "a link is replaced as a link");
        assert_eq!(world::attached("mv-a", aya::programs::TcAttachType::Ingress).len(), 1);
        loader.apply(&BpfAction::Detach(hook.clone())).unwrap();
        assert!(!has(&mut loader));
    });
}

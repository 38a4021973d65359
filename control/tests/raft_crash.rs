//! A manager that is killed, that can not write, whose files are damaged or not its own.
//!
//! Tests named `child_…` are the other process of the tests that start it; by themselves they do
//! nothing.
#![expect(clippy::unwrap_used, reason = "test")]

#[expect(dead_code, reason = "shared with raft_cluster")]
mod raft_lab;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use mesh_control::{
    consensus::{Consensus, ConsensusError},
    raft::{RaftHost, StartError},
};
use raft_lab::{Net, PATIENCE, addr, init, rotate, rotated, start};
use tempfile::TempDir;

const DIR: &str = "MESH_RAFT_CRASH_DIR";

/// Ends the child whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test of this file as a process of its own, by way of `sh -c prepare`.
fn child(test: &str, dir: &Path, prepare: &str) -> (Reaped, impl Iterator<Item = String> + use<>) {
    let exe = std::env::current_exe().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{prepare} exec \"$0\" {test} --exact --nocapture")])
        .arg(exe)
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (Reaped(child), lines)
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

async fn leading(dir: &Path) -> Arc<RaftHost> {
    let host = start(&Arc::<Net>::default(), dir, 1).await;
    match host.bootstrap(&addr(1)).await {
        Ok(()) => drop(host.propose(init()).await.unwrap()),
        Err(_) => drop(
            tokio::time::timeout(PATIENCE, host.leadership().wait_for(|l| l.is_leader))
                .await
                .unwrap()
                .unwrap(),
        ),
    }
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_proposes() {
    let Some(dir) = child_dir() else { return };
    let host = leading(&dir).await;
    let mut n = host.objects().1.cluster.as_ref().map_or(0, |_| rotated(&host.objects().1));
    loop {
        n += 1;
        match host.propose(long_rotate(n)).await {
            Ok(applied) => println!("\nack {n} {}", applied.revision),
            Err(e) => {
                println!("\nerror {e}");
                let fatal = host.fatal().wait_for(Option::is_some).await.map(|f| f.clone());
                println!("\nfatal {}", fatal.unwrap().unwrap());
                return;
            }
        }
    }
}

/// [`rotate`] with a secret of several pages, which fills the files faster.
fn long_rotate(n: u64) -> mesh_core::command::Command {
    let secret = format!("{n:10000}");
    mesh_core::command::Command::TokenRotate {
        role: mesh_core::objects::Role::Worker,
        secret,
    }
}

/// SIGKILL in the middle of writing, again and again: whatever was acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    for round in 0..6 {
        let (killed, lines) = child("child_proposes", dir.path(), "");
        let acks = lines.filter_map(|l| {
            l.strip_prefix("ack ")?
                .split_once(' ')
                .map(|(n, r)| (n.parse().unwrap(), r.parse().unwrap()))
        });
        let (n, revision): (u64, u64) = acks.take(3 + round * 7).last().unwrap();
        drop(killed);
        let host = leading(dir.path()).await;
        let (now, objects) = host.objects();
        assert!(
            rotated(&objects) >= n && now >= revision,
            "lost {n} at {revision}: {} at {now}",
            rotated(&objects)
        );
        host.shutdown().await;
    }
}

/// A disk that takes no more (here: a limit on the size of files) ends consensus, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_is_fatal() {
    let dir = TempDir::new().unwrap();
    // `ulimit -f` counts blocks of 512 bytes in sh; without XFSZ the write itself fails.
    let (_child, lines) = child("child_proposes", dir.path(), "trap '' XFSZ; ulimit -f 8000;");
    let lines: Vec<String> = lines.collect();
    let acked: u64 = lines
        .iter()
        .filter_map(|l| l.strip_prefix("ack ")?.split(' ').next()?.parse().ok())
        .max()
        .unwrap();
    assert!(lines.iter().any(|l| l.starts_with("error ")), "{:?}", lines.last());
    assert!(lines.iter().any(|l| l.starts_with("fatal ")), "{:?}", lines.last());
    // With room again, nothing that was acknowledged is missing.
    let host = leading(dir.path()).await;
    assert!(rotated(&host.objects().1) >= acked);
    host.propose(rotate(acked + 2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_and_foreign_files_are_refused() {
    let dir = TempDir::new().unwrap();
    let mine = dir.path().join("1");
    assert!(!RaftHost::exists(&mine));
    assert_eq!(RaftHost::owner(&mine).unwrap(), None);
    let host = leading(dir.path()).await;
    for n in 1..50 {
        host.propose(rotate(n)).await.unwrap();
    }
    let wire = || raft_lab::wire(&Arc::default(), 1);
    assert!(
        matches!(RaftHost::start(&mine, 1, wire()).await, Err(StartError::Disk(_))),
        "in use"
    );
    host.shutdown().await;
    drop(host);
    assert!(RaftHost::exists(&mine));
    assert_eq!(RaftHost::owner(&mine).unwrap(), Some(1));
    let Err(e) = RaftHost::start(&mine, 2, wire()).await else {
        panic!("took another's log")
    };
    assert!(matches!(e, StartError::NotOurs { owner: 1, raft_id: 2, .. }), "{e}");
    for file in ["log.redb", "state.redb"] {
        let path = mine.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let at = bad.windows(5).position(|w| w == b"token" || w == b"clust").unwrap();
        bad[at] ^= 1;
        for bytes in [&bad[..], &good[..good.len() / 2], b"", b"garbage"] {
            fs::write(&path, bytes).unwrap();
            let Err(e) = RaftHost::start(&mine, 1, wire()).await else {
                continue;
            };
            let text = e.to_string();
            assert!(text.contains(file) && text.contains("is damaged") && !text.contains('\n'), "{text}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        fs::write(&path, good).unwrap();
    }
    fs::rename(mine.join("log.redb"), mine.join("away")).unwrap();
    let Err(e) = RaftHost::start(&mine, 1, wire()).await else {
        panic!("started without the log")
    };
    assert!(e.to_string().contains("is missing"), "{e}");
    fs::rename(mine.join("away"), mine.join("log.redb")).unwrap();
    let host = leading(dir.path()).await;
    assert_eq!(rotated(&host.objects().1), 49);
    assert!(matches!(host.bootstrap(&addr(1)).await, Err(ConsensusError::Invalid(_))));
}

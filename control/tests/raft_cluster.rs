//! Clusters of one and three managers: elections, partitions, catching up, changes of membership.
#![expect(clippy::unwrap_used, reason = "test")]

mod raft_lab;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use mesh_control::{
    consensus::{Consensus, ConsensusError},
    raft::{RaftHost, StartError},
};
use mesh_core::{Refusal, RefusalKind, objects::Objects};
use raft_lab::{Lab, PATIENCE, addr, init, members, rotate, rotated, undisturbed, until};

/// An operation that a manager without a majority may not carry out.
fn refused<T: std::fmt::Debug>(result: Result<T, ConsensusError>) {
    let e = result.unwrap_err();
    assert!(matches!(e, ConsensusError::NoQuorum(_) | ConsensusError::NotLeader { .. }), "{e:?}");
    assert_eq!(Refusal::from(e).kind, RefusalKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_manager_goes_on_after_a_restart() {
    let mut lab = Lab::new(1).await;
    let mut batches = lab.hosts[&1].subscribe();
    for n in 1..=20 {
        let applied = lab.hosts[&1].propose(rotate(n)).await.unwrap();
        applied.outcome.unwrap();
        let batch = batches.recv().await.unwrap();
        assert_eq!((batch.revision, batch.changes.len()), (applied.revision, 1));
    }
    let refused = lab.hosts[&1].propose(init()).await.unwrap();
    assert_eq!(refused.outcome.unwrap_err().kind, RefusalKind::Conflict);
    assert!(
        batches.recv().await.unwrap().changes.is_empty(),
        "a refused command changes nothing"
    );
    assert!(matches!(lab.hosts[&1].bootstrap(&addr(1)).await, Err(ConsensusError::Invalid(_))));
    let before = lab.hosts[&1].objects();
    for _ in 0..3 {
        lab.restart(1).await;
        let after = lab.hosts[&1].objects();
        assert_eq!(after.1, before.1);
        assert!(after.0 >= before.0);
        lab.leader(&[1]).await;
        assert!(lab.hosts[&1].read_barrier().await.unwrap() >= before.0);
    }
    assert!(lab.hosts[&1].propose(rotate(21)).await.unwrap().revision > before.0);
    assert_eq!(rotated(&lab.hosts[&1].objects().1), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_agree_and_hand_over() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        assert_eq!(lab.leader(&[1, 2, 3]).await, 1);
        lab.hosts[&1].propose(rotate(1)).await.unwrap();
        lab.hosts[&1].set_members(members(&[1, 2, 3])).await.unwrap();
        let leads = |leader: u64| ConsensusError::NotLeader {
            leader: Some(addr(leader)),
        };
        assert_eq!(lab.hosts[&2].propose(rotate(2)).await.unwrap_err(), leads(1));
        assert_eq!(lab.hosts[&2].read_barrier().await.unwrap_err(), leads(1));
        assert_eq!(lab.hosts[&2].set_members(members(&[2])).await.unwrap_err(), leads(1));
        let seen = lab.hosts[&3].leadership().borrow().clone();
        assert_eq!(
            (seen.leader_addr, seen.is_leader, seen.voters),
            (Some(addr(1)), false, members(&[1, 2, 3]))
        );

        assert!(matches!(lab.hosts[&1].transfer_leader(9).await, Err(ConsensusError::Invalid(_))));
        lab.hosts[&1].transfer_leader(3).await.unwrap();
        assert_eq!(lab.leader(&[1, 2, 3]).await, 3);
        lab.hosts[&3].propose(rotate(3)).await.unwrap();
        let (revision, objects) = lab.agree(&[1, 2, 3]).await;
        assert_eq!(rotated(&objects), 3);
        assert!(lab.hosts[&3].read_barrier().await.unwrap() >= revision);
    })
    .await;
}

/// A leader that nothing is asked of keeps its followers, and they keep it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_steady() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        lab.leader(&[1, 2, 3]).await;
        let mut followers: Vec<_> = [1, 2, 3].iter().map(|id| lab.hosts[id].leadership()).collect();
        let changes = futures::future::select_all(followers.iter_mut().map(|l| Box::pin(l.wait_for(|l| l.leader != Some(1)))));
        assert!(
            tokio::time::timeout(Duration::from_secs(4), changes).await.is_err(),
            "leadership changed without a reason"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_proves_nothing() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        lab.hosts[&1].propose(rotate(1)).await.unwrap();
        let before = lab.agree(&[1, 2, 3]).await;
        lab.cut(1);
        // Both at once, while it still believes that it leads.
        let (read, write) = tokio::join!(lab.hosts[&1].read_barrier(), lab.hosts[&1].propose(rotate(100)));
        refused(read);
        refused(write);
        let leader = lab.leader(&[2, 3]).await;
        lab.hosts[&leader].propose(rotate(2)).await.unwrap();
        assert!(lab.hosts[&leader].read_barrier().await.unwrap() > before.0);
        // It does not even call itself the leader any more.
        until("the old leader to see it", || !lab.hosts[&1].leadership().borrow().is_leader).await;
        refused(lab.hosts[&1].read_barrier().await);
        refused(lab.hosts[&1].propose(rotate(101)).await);
        assert_eq!(lab.hosts[&1].objects(), before);

        lab.heal();
        lab.leader(&[1, 2, 3]).await;
        let (_, objects) = lab.agree(&[1, 2, 3]).await;
        assert_eq!(rotated(&objects), 2, "what the old leader wrote down alone is gone");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_done() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        lab.leader(&[1, 2, 3]).await;
        lab.cut(2);
        lab.cut(3);
        until("the leader to notice", || !lab.hosts[&1].leadership().borrow().is_leader).await;
        for id in [1, 2, 3] {
            until("everybody to notice", || lab.hosts[&id].leadership().borrow().leader.is_none()).await;
            refused(lab.hosts[&id].propose(rotate(9)).await);
            refused(lab.hosts[&id].read_barrier().await);
            refused(lab.hosts[&id].set_members(members(&[id])).await);
        }
        lab.heal();
        let leader = lab.leader(&[1, 2, 3]).await;
        lab.hosts[&leader].propose(rotate(10)).await.unwrap();
        assert_eq!(rotated(&lab.agree(&[1, 2, 3]).await.1), 10);
    })
    .await;
}

/// PreVote: a follower that comes back does not unseat the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_returns_disturbs_nobody() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        let term = lab.hosts[&1].leadership().borrow().term;
        lab.cut(3);
        until("the follower to miss the leader", || {
            lab.hosts[&3].leadership().borrow().leader.is_none()
        })
        .await;
        lab.hosts[&1].propose(rotate(1)).await.unwrap();
        lab.heal();
        lab.agree(&[1, 2, 3]).await;
        assert_eq!(lab.leader(&[1, 2, 3]).await, 1);
        assert_eq!(lab.hosts[&1].leadership().borrow().term, term);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_that_are_down_come_back() {
    undisturbed(|| async {
        let mut lab = Lab::new(3).await;
        lab.hosts.remove(&2).unwrap().shutdown().await;
        for n in 1..=50 {
            lab.hosts[&1].propose(rotate(n)).await.unwrap();
        }
        lab.add(2).await;
        assert_eq!(rotated(&lab.agree(&[1, 2, 3]).await.1), 50);
        // The leader itself: the others elect another, and it follows.
        lab.hosts.remove(&1).unwrap().shutdown().await;
        let leader = lab.leader(&[2, 3]).await;
        lab.hosts[&leader].propose(rotate(51)).await.unwrap();
        lab.add(1).await;
        lab.leader(&[1, 2, 3]).await;
        assert_eq!(rotated(&lab.agree(&[1, 2, 3]).await.1), 51);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_manager_catches_up_by_snapshot() {
    undisturbed(|| async {
        let mut lab = Lab::new(1).await;
        let (state, old) = (lab.dir.path().join("1/state.redb"), lab.dir.path().join("old"));
        std::fs::copy(&state, &old).unwrap();
        // More than the log keeps (5000 entries to a snapshot, 1000 kept behind it).
        let host = lab.hosts[&1].clone();
        let proposals = stream::iter(1..=7000).map(|n| {
            let host = host.clone();
            async move { host.propose(rotate(n)).await.unwrap() }
        });
        proposals.buffered(500).for_each(async |_| {}).await;
        drop(host);
        lab.add(2).await;
        let mut batches = lab.hosts[&2].subscribe();
        lab.hosts[&1].set_members(members(&[1, 2])).await.unwrap();
        assert!(lab.net.snapshots.load(Ordering::Relaxed) > 0, "the log alone would not have done");
        let (revision, objects) = lab.agree(&[1, 2]).await;
        // Who follows the new manager sees the same, whichever way it came.
        let mut followed = Objects::default();
        loop {
            let batch = tokio::time::timeout(PATIENCE, batches.recv()).await.unwrap().unwrap();
            batch.changes.iter().for_each(|c| followed.apply(c));
            if batch.revision == revision {
                break;
            }
        }
        assert_eq!(followed, *objects);
        lab.restart(2).await;
        assert_eq!(lab.hosts[&2].objects().1, objects);
        lab.leader(&[1, 2]).await;
        lab.hosts[&1].propose(rotate(7001)).await.unwrap();
        assert_eq!(rotated(&lab.agree(&[1, 2]).await.1), 7001);
        // The one with the purged log, too.
        lab.restart(1).await;
        let leader = lab.leader(&[1, 2]).await;
        lab.hosts[&leader].propose(rotate(7002)).await.unwrap();
        assert_eq!(rotated(&lab.agree(&[1, 2]).await.1), 7002);
        // A state older than what the log still has is found at start.
        lab.hosts.remove(&1).unwrap().shutdown().await;
        std::fs::copy(&old, &state).unwrap();
        let started = RaftHost::start(&lab.dir.path().join("1"), 1, raft_lab::wire(&lab.net, 1)).await;
        assert!(matches!(started, Err(StartError::Gap { .. })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_leave_in_every_role() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        lab.leader(&[1, 2, 3]).await;
        // One that is down.
        lab.cut(3);
        lab.hosts[&1].set_members(members(&[1, 2])).await.unwrap();
        assert_eq!(
            lab.hosts[&1].leadership().borrow().voters.keys().copied().collect::<BTreeSet<_>>(),
            BTreeSet::from([1, 2])
        );
        lab.hosts[&1].propose(rotate(1)).await.unwrap();
        // The leader itself: it hands over.
        lab.hosts[&1].set_members(members(&[2])).await.unwrap();
        assert_eq!(lab.leader(&[2]).await, 2);
        lab.hosts[&2].propose(rotate(2)).await.unwrap();
        assert_eq!(rotated(&lab.hosts[&2].objects().1), 2);
        refused(lab.hosts[&1].propose(rotate(3)).await);
        assert!(matches!(
            lab.hosts[&2].set_members(members(&[])).await,
            Err(ConsensusError::Invalid(_))
        ));
    })
    .await;
}

/// Members without a majority that is up are refused before anything is written down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_need_a_majority() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        lab.leader(&[1, 2, 3]).await;
        lab.cut(3);
        until("the leader to miss it", || lab.hosts[&3].leadership().borrow().leader.is_none()).await;
        let e = lab.hosts[&1].set_members(members(&[1, 3])).await.unwrap_err();
        assert!(matches!(&e, ConsensusError::NoQuorum(why) if why.contains(&addr(3))), "{e:?}");
        assert_eq!(lab.hosts[&1].leadership().borrow().voters, members(&[1, 2, 3]));
        lab.hosts[&1].propose(rotate(1)).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_can_not_be_read_are_refused() {
    use mesh_control::consensus::RaftRpc;
    let lab = Lab::new(1).await;
    for rpc in [RaftRpc::Append, RaftRpc::Vote, RaftRpc::TransferLeader] {
        let e = lab.hosts[&1].handle(1, rpc, "{\"x\":1}".into()).await.unwrap_err();
        assert!(matches!(e, ConsensusError::Invalid(_)), "{e:?}");
    }
    for chunks in [vec![], vec![Ok("{}\n".into())], vec![Err("reset".to_string())]] {
        let e = lab.hosts[&1].handle_snapshot(1, stream::iter(chunks).boxed()).await.unwrap_err();
        assert!(matches!(e, ConsensusError::Invalid(_)), "{e:?}");
    }
    lab.hosts[&1].propose(rotate(1)).await.unwrap();
    let host: Arc<dyn Consensus> = lab.hosts[&1].clone();
    assert!(host.fatal().borrow().is_none());
}

/// One that raft has not heard of yet when the next one begins.
#[tokio::test]
async fn a_change_that_was_given_up_is_in_nobodys_way() {
    undisturbed(|| async {
        let lab = Lab::new(3).await;
        lab.leader(&[1, 2, 3]).await;
        let leader = &lab.hosts[&1];
        for polls in 1..=8 {
            {
                let mut given_up = std::pin::pin!(leader.set_members(members(&[1, 2])));
                for poll in 1..=polls {
                    if futures::poll!(given_up.as_mut()).is_ready() {
                        break;
                    }
                    if poll < polls {
                        tokio::task::yield_now().await;
                    }
                }
            }
            leader.set_members(members(&[1, 2])).await.unwrap();
            assert_eq!(leader.leadership().borrow().voters, members(&[1, 2]));
            leader.set_members(members(&[1, 2, 3])).await.unwrap();
            assert_eq!(leader.leadership().borrow().voters, members(&[1, 2, 3]));
        }
    })
    .await;
}

/// A host that was demoted and is promoted again at once still runs under its old raft id when the leader
/// takes the new one in: nothing that the old one writes or promises counts for the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_answers_for_no_other_raft_id() {
    undisturbed(|| async {
        use mesh_control::consensus::RaftRpc;
        let mut lab = Lab::new(3).await;
        for rpc in [RaftRpc::Append, RaftRpc::Vote, RaftRpc::TransferLeader] {
            let e = lab.hosts[&3].handle(9, rpc, "{}".into()).await.unwrap_err();
            assert!(
                matches!(&e, ConsensusError::Invalid(why) if why.contains("raft id 9") && why.contains("raft id 3")),
                "{e:?}"
            );
        }
        let e = lab.hosts[&3].handle_snapshot(9, stream::empty().boxed()).await.unwrap_err();
        assert!(matches!(&e, ConsensusError::Invalid(why) if why.contains("raft id 9")), "{e:?}");

        let leader = lab.hosts[&1].clone();
        leader.set_members(members(&[1, 2])).await.unwrap();
        let wanted = BTreeMap::from([(1, addr(1)), (2, addr(2)), (9, addr(3))]);
        let promote = tokio::spawn({
            let leader = leader.clone();
            async move { leader.set_members(wanted).await }
        });
        until("the new raft id to be a learner", || {
            leader.leadership().borrow().learners.contains_key(&9)
        })
        .await;
        // Written while the old instance is all that is there.
        for n in 1..=20 {
            leader.propose(rotate(n)).await.unwrap();
        }
        assert!(
            !leader.leadership().borrow().voters.contains_key(&9),
            "a vote for one that is not there"
        );
        assert_eq!(rotated(&lab.hosts[&3].objects().1), 0);
        // It ends, and the host begins under the new one.
        lab.hosts.remove(&3).unwrap().shutdown().await;
        let host = raft_lab::start_at(&lab.net, lab.dir.path(), 9, &addr(3)).await;
        lab.hosts.insert(9, host);
        promote.await.unwrap().unwrap();
        lab.agree(&[1, 2, 9]).await;
        // Without the first two's help it knows what was acknowledged before it came.
        assert_eq!(rotated(&lab.hosts[&9].objects().1), 20);
    })
    .await;
}

/// Cuts, restarts and changes of leader at random while somebody writes and somebody reads: no
/// read misses a write that was acknowledged before it began, and none is lost in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_linearizable_whatever_happens() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut lab = Lab::new(3).await;
    let acked = Arc::new(AtomicU64::new(0));
    let reads = Arc::new(AtomicU64::new(0));
    let hosts = Arc::new(RwLock::new(lab.hosts.clone()));
    let writer = tokio::spawn({
        let (hosts, acked) = (hosts.clone(), acked.clone());
        async move {
            for n in 1.. {
                let all: Vec<_> = hosts.read().unwrap().values().cloned().collect();
                for host in all {
                    // A write that was given up may still happen, but not after a later one.
                    if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), host.propose(rotate(n))).await {
                        acked.store(n, Ordering::SeqCst);
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let reader = tokio::spawn({
        let (hosts, acked, reads) = (hosts.clone(), acked.clone(), reads.clone());
        async move {
            loop {
                let all: Vec<_> = hosts.read().unwrap().values().cloned().collect();
                for host in all {
                    let before = acked.load(Ordering::SeqCst);
                    if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), host.read_barrier()).await {
                        let seen = rotated(&host.objects().1);
                        assert!(seen >= before, "read {seen} after {before} was acknowledged");
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    for _ in 0..12 {
        let id = rng.random_range(1..=3);
        match rng.random_range(0..4) {
            0 => lab.cut(id),
            1 => lab.heal(),
            2 => {
                hosts.write().unwrap().remove(&id);
                lab.restart(id).await;
                hosts.write().unwrap().insert(id, lab.hosts[&id].clone());
            }
            _ => drop(tokio::time::timeout(Duration::from_millis(500), lab.hosts[&id].transfer_leader(id % 3 + 1)).await),
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..1500))).await;
        assert!(!reader.is_finished() && !writer.is_finished());
    }
    lab.heal();
    lab.leader(&[1, 2, 3]).await;
    let enough = acked.load(Ordering::SeqCst) + 10;
    until("writes to go on", || acked.load(Ordering::SeqCst) >= enough).await;
    writer.abort();
    assert!(writer.await.unwrap_err().is_cancelled());
    reader.abort();
    assert!(reader.await.unwrap_err().is_cancelled());
    let (_, objects) = lab.agree(&[1, 2, 3]).await;
    assert!(rotated(&objects) >= acked.load(Ordering::SeqCst));
    println!("{} writes, {} reads", acked.load(Ordering::SeqCst), reads.load(Ordering::SeqCst));
}

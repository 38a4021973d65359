//! Tables of what is heard when, and what is recorded of it.

use mesh_core::objects::{Availability, Role};

use super::*;

const OWN: u64 = 1;
const OTHER: u64 = 2;

fn node(n: u64, state: NodeState, dataplane: Dataplane) -> Arc<Node> {
    Arc::new(Node {
        id: Id::from_bits(n),
        version: 1,
        created_at: Default::default(),
        hostname: format!("h{n}"),
        labels: Default::default(),
        role: Role::Worker,
        raft_id: 0,
        availability: Availability::Active,
        addr: [10, 0, 0, n as u8].into(),
        control_port: 2377,
        data_path_addr: [10, 0, 0, n as u8].into(),
        underlay_mtu: 1500,
        underlay_mac: None,
        ingress_ip: [10, 1, 0, n as u8].into(),
        host_routes: Vec::new(),
        state,
        dataplane,
    })
}

enum On {
    Beat,
    Answer,
}
use Dataplane::{Reachable, Unreachable};
use NodeState::{Down, Ready, Unknown};
use On::{Answer, Beat};

/// Runs steps every 250 ms; events and what is recorded of node 2 afterwards, at milliseconds.
fn run(start: (NodeState, Dataplane), events: &[(u64, On)], expected: &[(u64, (NodeState, Dataplane))]) {
    let zero = Instant::now();
    let own = Id::from_bits(OWN);
    let other = Id::from_bits(OTHER);
    let mut nodes: BTreeMap<Id, Arc<Node>> = [(own, node(OWN, Ready, Reachable)), (other, node(OTHER, start.0, start.1))].into();
    let mut health = Health::default();
    let end = expected.last().unwrap().0;
    for ms in (0..=end).step_by(50) {
        let now = zero + Duration::from_millis(ms);
        for (_, event) in events.iter().filter(|(at, _)| *at == ms) {
            match event {
                Beat => health.beat(other, now, 7),
                Answer => health.answered(other, now),
            }
        }
        if ms % 250 == 0 {
            for v in health.step(now, own, &nodes) {
                assert_eq!(v.id, other, "the own node is always well");
                nodes.insert(other, node(OTHER, v.state, v.dataplane));
            }
            assert!(health.step(now, own, &nodes).is_empty(), "said once only");
        }
        for (_, want) in expected.iter().filter(|(at, _)| *at == ms) {
            assert_eq!((nodes[&other].state, nodes[&other].dataplane), *want, "at {ms} ms");
        }
    }
}

#[test]
fn a_node_that_beats_is_ready() {
    run(
        (Unknown, Reachable),
        &[(100, Beat), (1100, Beat), (2100, Beat)],
        &[(0, (Unknown, Reachable)), (250, (Ready, Reachable)), (5000, (Ready, Reachable))],
    );
}

#[test]
fn silence_makes_it_down_and_unreachable() {
    run(
        (Ready, Reachable),
        &[(0, Beat)],
        &[(3000, (Ready, Reachable)), (3250, (Down, Unreachable))],
    );
}

#[test]
fn a_probe_that_answers_keeps_the_data_plane() {
    run(
        (Ready, Reachable),
        &[(0, Beat), (1250, Answer), (2750, Answer), (4000, Answer)],
        &[(3250, (Down, Reachable)), (5500, (Down, Reachable)), (5750, (Down, Unreachable))],
    );
}

#[test]
fn a_beat_brings_it_back_at_once() {
    run(
        (Down, Unreachable),
        &[(4000, Beat)],
        &[(3750, (Down, Unreachable)), (4000, (Ready, Reachable))],
    );
}

#[test]
fn a_new_leader_waits_before_it_judges() {
    // Recorded as ready by the last leader, silent since this one leads.
    run((Ready, Reachable), &[], &[(3000, (Ready, Reachable)), (3250, (Down, Unreachable))]);
    // Recorded as down: not ready before it is heard.
    run((Down, Unreachable), &[], &[(0, (Down, Unreachable)), (6000, (Down, Unreachable))]);
    run(
        (Down, Unreachable),
        &[(1500, Answer)],
        &[(1500, (Down, Reachable)), (3000, (Down, Reachable)), (3250, (Down, Unreachable))],
    );
}

#[test]
fn a_node_that_joins_has_more_time() {
    run(
        (Unknown, Reachable),
        &[],
        &[(10_000, (Unknown, Reachable)), (10_250, (Down, Unreachable))],
    );
}

#[test]
fn a_manager_that_was_frozen_blames_nobody() {
    let zero = Instant::now();
    let nodes: BTreeMap<Id, Arc<Node>> = [(Id::from_bits(OTHER), node(OTHER, Ready, Reachable))].into();
    let own = Id::from_bits(OWN);
    let mut health = Health::default();
    health.beat(Id::from_bits(OTHER), zero, 7);
    assert!(health.step(zero, own, &nodes).is_empty());
    let thawed = zero + Duration::from_secs(60);
    assert!(health.step(thawed, own, &nodes).is_empty(), "sixty seconds of silence are its own");
    let mut now = thawed;
    while now < thawed + SILENCE {
        now += STEP;
        assert!(health.step(now, own, &nodes).is_empty());
    }
    assert_eq!(health.step(now + STEP, own, &nodes).len(), 1, "and then they count again");
}

#[test]
fn only_silent_others_are_probed() {
    let zero = Instant::now();
    let (own, other) = (Id::from_bits(OWN), Id::from_bits(OTHER));
    let nodes: BTreeMap<Id, Arc<Node>> = [(own, node(OWN, Ready, Reachable)), (other, node(OTHER, Ready, Reachable))].into();
    let mut health = Health::default();
    health.step(zero, own, &nodes);
    assert!(health.suspects(zero + SUSPICION, own, &nodes).is_empty());
    let later = zero + SUSPICION + Duration::from_millis(1);
    assert_eq!(health.suspects(later, own, &nodes), [(other, [10, 1, 0, 2].into())]);
    health.beat(other, later, 7);
    assert!(health.suspects(later + SUSPICION, own, &nodes).is_empty());
}

#[test]
fn a_removed_node_is_forgotten() {
    let zero = Instant::now();
    let mut health = Health::default();
    health.beat(Id::from_bits(OTHER), zero, 7);
    health.step(zero, Id::from_bits(OWN), &BTreeMap::new());
    assert!(health.tracks.is_empty());
}

#[test]
fn a_node_of_a_release_without_roots_is_known() {
    let (zero, mut health) = (Instant::now(), Health::default());
    health.answered(Id::from_bits(OWN), zero);
    assert!(health.rootless().is_empty(), "nothing is known of who was not heard");
    health.beat(Id::from_bits(OTHER), zero, 7);
    health.certified(Id::from_bits(OTHER), zero, "");
    assert_eq!(health.rootless(), [Id::from_bits(OTHER)]);
    health.certified(Id::from_bits(OTHER), zero, "ab12");
    assert!(health.rootless().is_empty());
}

#[test]
fn of_two_hosts_with_one_identity_the_first_is_the_node() {
    use Standing::{New, Refused, Taken};
    let (zero, id) = (Instant::now(), Id::from_bits(OTHER));
    // Milliseconds, host, what it was told before, whether it is admitted.
    let run = |beats: &[(u64, u64, Standing, bool)]| {
        let mut health = Health::default();
        for (at, host, standing, admitted) in beats {
            let now = zero + Duration::from_millis(*at);
            assert_eq!(health.admit(id, now, *host, *standing), *admitted, "host {host} at {at} ms");
        }
    };
    // A copy, for as long as the first is heard; then it is the first that was moved.
    run(&[
        (0, 7, New, true),
        (100, 8, New, false),
        (1000, 7, Taken, true),
        (1100, 8, Refused, false),
    ]);
    run(&[
        (0, 7, New, true),
        (3000, 8, New, false),
        (3001, 8, Refused, true),
        (4000, 7, Taken, true),
        (4100, 8, Taken, false),
    ]);
    // A leader that is new to both: whoever was the node stays it, in whatever order they speak.
    run(&[(0, 8, Refused, false), (900, 7, Taken, true), (1000, 8, Refused, false)]);
    run(&[(0, 8, New, true), (900, 7, Taken, true), (1000, 8, Taken, false)]);
    // Nobody else: it was refused by a leader that has gone with the other host.
    run(&[(0, 8, Refused, false), (3001, 8, Refused, true)]);
    // A release that does not say.
    run(&[(0, 7, New, true), (100, 0, New, true)]);
}

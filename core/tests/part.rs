//! The part of a cluster that changes concern, and that a plan of it is enough.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;
mod host;

use common::*;
use host::*;
use mesh_core::{
    command::Command as C,
    intent,
    objects::*,
    observed::Observed,
    part::{Touched, part},
    plan::plan,
};
use proptest::prelude::*;

/// Many services, networks and endpoints, some served by labels, so that most are no host's business.
fn crowd() -> Lab {
    let mut lab = Lab::new(3);
    for n in 1..=6 {
        let (name, subnet) = (format!("n{n}"), format!("172.{}.0.0/24", 20 + n));
        match n % 3 {
            0 => lab.segment_network(n, &name, Some(&subnet)),
            _ => drop(lab.network(n, &name, Some(&subnet))),
        }
    }
    for n in 1..=12u64 {
        let mut spec = service_spec(&format!("s{n}"), &[&format!("n{}", n % 6 + 1)], &[(8000 + n as u16, 80)]);
        if n % 4 == 0 {
            spec.networks.push(format!("n{}", (n + 1) % 6 + 1));
        }
        if n % 3 == 0 {
            spec.selector = Labels::from([("app".into(), format!("a{}", n % 2))]);
        }
        lab.service(n, spec);
    }
    lab
}

/// What a random number does to the crowd; refusals are part of life.
fn crowd_command(lab: &Lab, what: u8, n: u64, h: u64) -> C {
    let at = jiff::Timestamp::UNIX_EPOCH;
    let new = |n: u64| {
        // Of each network: without a service, of the service that has it, by label.
        let mut e = endpoint(
            n,
            h,
            &format!("n{}", n % 6 + 1),
            n.is_multiple_of(2)
                .then(|| format!("s{}", if n.is_multiple_of(12) { 12 } else { n % 12 }))
                .as_deref(),
        );
        if n % 5 < 2 {
            e.labels.insert("app".into(), format!("a{}", n % 5));
        }
        if n.is_multiple_of(7) {
            e.ports.push(Port {
                published: 9000 + n as u16,
                target: 80,
                protocol: Protocol::Tcp,
                mode: PublishMode::Host,
                address: None,
            });
        }
        e
    };
    match what {
        0..=2 => C::EndpointCreate { endpoint: new(n), at },
        3 | 4 => C::EndpointSet {
            id: id(0x9000 + n),
            state: EndpointState::Ready,
        },
        5 => C::EndpointRemove { id: id(0x9000 + n) },
        6 => C::EndpointSet {
            id: id(0x9000 + n),
            state: EndpointState::Draining,
        },
        7 => C::NodeLiveness {
            id: node_id(h),
            state: NodeState::Down,
            dataplane: if n.is_multiple_of(2) {
                Dataplane::Unreachable
            } else {
                Dataplane::Reachable
            },
        },
        8 => C::ServiceRemove {
            service: format!("s{}", n % 12 + 1),
        },
        9 | 10 => {
            let name = format!("s{}", n % 12 + 1);
            let mut spec = service_spec(&name, &[&format!("n{}", n % 6 + 1)], &[(8000 + (n % 5) as u16, 81)]);
            if n.is_multiple_of(2) {
                spec.selector = Labels::from([("app".into(), "a1".into())]);
            }
            match lab.state.objects().service(&name) {
                Some(_) => C::ServiceUpdate {
                    service: name,
                    version: 0,
                    spec,
                },
                None => C::ServiceCreate {
                    id: id(0x300 + lab.index),
                    at,
                    spec,
                },
            }
        }
        11 if h == 1 => C::NetworkRemove {
            network: format!("n{}", n % 6 + 1),
        },
        11 => create_network(
            0x1000 + lab.index,
            network_spec(&format!("n{}", n % 6 + 1), Some(&format!("172.{}.0.0/24", 40 + n))),
        ),
        12 if n == 1 => C::EndpointHealth {
            id: id(0x9000 + h),
            healthy: false,
        },
        12 => C::EndpointStopping {
            id: id(0x9000 + n),
            until: (!h.is_multiple_of(3)).then_some(at),
        },
        _ => C::NodeUpdate {
            node: format!("h{h}"),
            availability: n.is_multiple_of(2).then_some(Availability::Active),
            label_add: Labels::from([("n".into(), n.to_string())]),
            label_rm: vec![],
        },
    }
}

proptest! {
    /// A host that was as it must be becomes so again by a plan of the part that changes concern, as by
    /// a plan of everything: that finds nothing left to do.
    #[test]
    fn a_part_leads_where_everything_does(changes in proptest::collection::vec((0..14u8, 0..40u64, 1..4u64, 0..4u8), 1..80)) {
        let mut lab = crowd();
        let mut hosts = vec![(Observed::default(), Touched::everything()); 4];
        for (what, n, h, who) in changes {
            let command = crowd_command(&lab, what, n, h);
            lab.index += 1;
            let before = lab.state.objects().clone();
            let (_, changes) = lab.state.apply(lab.index, &command);
            let mut news = Touched::default();
            changes.iter().for_each(|change| news.note(&before, change));
            for (_, touched) in &mut hosts {
                *touched = std::mem::take(touched).then(news.clone());
            }
            for (at, (seen, touched)) in hosts.iter_mut().enumerate().skip(1).filter(|(at, _)| *at != usize::from(who)) {
                let me = node_id(at as u64);
                let all = desired(&lab, at as u64);
                match part(touched, lab.state.objects(), me) {
                    Some(part) => {
                        let of = |objects| intent::desired(objects, lab.index, id(1), me, &facts(at as u64));
                        let (old, new) = (of(&part.before), of(&part.after));
                        if old == new {
                            // The host is not looked at then.
                            prop_assert_eq!(plan(&all, seen), vec![]);
                            *touched = Touched::default();
                            continue;
                        }
                        let mut rows = seen.clone();
                        rows.tables = seen.tables.those_of([&old.tables, &new.tables]);
                        rows.overlay.fdb.retain(|e| [&old, &new].iter().any(|d| d.fdb.iter().any(|w| (&w.dev, w.mac, w.vtep.is_some()) == (&e.dev, e.mac, e.vtep.is_some()))));
                        let steps = plan(&new, &rows);
                        carry_out(seen, &steps);
                    }
                    None => {
                        let steps = plan(&all, seen);
                        carry_out(seen, &steps);
                    }
                }
                prop_assert_eq!(plan(&all, seen), vec![]);
                *touched = Touched::default();
            }
        }
    }
}

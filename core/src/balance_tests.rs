use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn counts(list: &[u32]) -> BTreeMap<u32, usize> {
    let mut out = BTreeMap::new();
    for slot in list {
        *out.entry(*slot).or_default() += 1;
    }
    out
}

/// Every member's part of the list is its part of the weights, within `tolerance` of the whole.
fn fair(list: &[u32], members: &[(u32, u32)], tolerance: f64) {
    let total: f64 = members.iter().map(|m| f64::from(m.1)).sum();
    let counts = counts(list);
    for (slot, weight) in members {
        let is = counts.get(slot).copied().unwrap_or(0);
        let part = is as f64 / list.len() as f64;
        assert!(
            (part - f64::from(*weight) / total).abs() <= tolerance,
            "{slot} of weight {weight} has {part} of {} entries",
            list.len()
        );
        assert_eq!(is > 0, *weight > 0, "{slot} of weight {weight}");
    }
}

fn equal(n: u32) -> Vec<(u32, u32)> {
    (0..n).map(|i| (100 + 7 * i, 1)).collect()
}

#[test]
fn turns_are_interleaved_and_exact() {
    let rr = |members: &[(u32, u32)]| list(Algorithm::Rr, members);
    assert_eq!(rr(&[]), (Method::Turn, vec![]));
    assert_eq!(rr(&[(9, 1), (7, 1), (8, 1)]).1, [7, 8, 9]);
    assert_eq!(rr(&[(1, 300), (2, 100)]).1, [1, 1, 2, 1]);
    assert_eq!(rr(&[(1, 5), (2, 1), (3, 1)]).1, [1, 1, 1, 2, 3, 1, 1]);
    assert_eq!(rr(&[(1, 2), (2, 0), (3, 2)]).1, [1, 3]);
    assert_eq!(list(Algorithm::Random, &[(1, 3), (2, 1)]), (Method::Random, vec![1, 1, 2, 1]));
}

#[test]
fn a_long_list_of_turns_is_shortened_in_proportion() {
    let members: Vec<_> = (0..40).map(|i| (i, 961 + i)).collect();
    let list = list(Algorithm::Rr, &members).1;
    assert!(list.len() <= 4096 && list.len() > 3000, "{}", list.len());
    fair(&list, &members, 0.001);
    let uneven: Vec<_> = (0..1000).map(|i| (i, if i < 10 { 1000 } else { 1 })).collect();
    let list = super::list(Algorithm::Rr, &uneven).1;
    assert!(list.len() <= 16 * 1000, "{}", list.len());
    fair(&list, &uneven, 0.01);
    assert_eq!(super::list(Algorithm::Rr, &equal(100_000)).1.len(), 100_000, "nobody is left out");
}

#[test]
fn tables_are_fair() {
    for n in [2, 3, 5, 10, 16, 17, 40, 100] {
        let members = equal(n);
        let (method, table) = list(Algorithm::Maglev, &members);
        assert_eq!(method, Method::Flow);
        let counts = counts(&table);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == n as usize && most - least <= 1, "{n}: {least} to {most}");
    }
    assert_eq!(list(Algorithm::SourceHash, &equal(1)), (Method::Source, vec![100]));
    assert_eq!(list(Algorithm::Maglev, &[(1, 0)]).1, Vec::<u32>::new());
    let weighted = [(1, 1000), (2, 500), (3, 10), (4, 1), (5, 0)];
    fair(&list(Algorithm::Maglev, &weighted).1, &weighted, 0.01);
}

/// Losing a member leaves nearly everything of the others where it is, also when it still counts
/// with weight 0.
#[test]
fn a_loss_moves_little_else() {
    for n in [3, 4, 5, 8, 12, 16, 30] {
        let members = equal(n);
        let whole = list(Algorithm::Maglev, &members).1;
        for lost in [0, n as usize / 2, n as usize - 1] {
            let (mut gone, mut idle) = (members.clone(), members.clone());
            let (slot, _) = gone.remove(lost);
            idle[lost].1 = 0;
            let after = list(Algorithm::Maglev, &gone).1;
            assert_eq!(after, list(Algorithm::Maglev, &idle).1);
            let others = whole.iter().filter(|s| **s != slot).count();
            let moved = whole.iter().zip(&after).filter(|(a, b)| **a != slot && a != b).count();
            assert!(moved * 100 <= others, "{n} lose {slot}: {moved} of {others} move");
        }
    }
}

/// The same in every release: a cluster is upgraded node by node.
#[test]
fn tables_do_not_change_over_releases() {
    let table = list(Algorithm::Maglev, &[(1, 2), (2, 1), (3, 1)]).1;
    let sum = table
        .iter()
        .enumerate()
        .fold(0u64, |sum, (i, s)| mix(sum ^ (i as u64) << 32 ^ u64::from(*s)));
    assert_eq!((table.len(), sum), (16381, 5_320_087_789_058_871_298));
}

proptest! {
    #[test]
    fn alike_everywhere_and_by_weight(
        mut members in proptest::collection::btree_map(any::<u32>(), 0..=1000u32, 0..20),
        which in 0..4usize,
        at in any::<prop::sample::Index>(),
    ) {
        let algorithm = [Algorithm::Rr, Algorithm::Random, Algorithm::Maglev, Algorithm::SourceHash][which];
        let given: Vec<_> = members.clone().into_iter().collect();
        let mut turned = given.clone();
        turned.rotate_left(if given.is_empty() { 0 } else { at.index(given.len()) });
        let (method, entries) = list(algorithm, &given);
        prop_assert_eq!(&(method, entries.clone()), &list(algorithm, &turned));
        members.retain(|_, weight| *weight > 0);
        if members.is_empty() {
            prop_assert!(entries.is_empty());
        } else {
            fair(&entries, &given, 0.01);
        }
    }
}

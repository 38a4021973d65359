//! The list that backends are taken from, for each way of choosing one.
//!
//! Pure, and the same on every node for the same members, in whatever order they are given.
//! [`crate::intent`] calls it for every set of backends; the kernel programs take an entry of the list
//! in turn, at random, or by a hash.

use crate::{lb::Method, objects::Algorithm};

/// The least that a list of turns may be shortened to; shorter ones are exact.
const TURNS: u64 = 4096;
/// Entries of a Maglev table: primes. The paper asks for 100 entries per backend; with 1000 and
/// more, losing a backend moves less than 1 % of what the others have. The smaller size is for up
/// to [`FEW`] members.
const TABLES: [usize; 2] = [16381, 65521];
/// Members that a table of the smaller size serves. It must not be small: the tables of two sizes
/// have nothing in common, so crossing it moves nearly every flow.
const FEW: usize = 16;

/// How to take a backend for a new flow, and the list to take it from. A member is a backend's
/// number and its weight; one of weight 0 takes nothing, but counts for the size of a table, so that
/// losing it for a while does not change the others' places.
pub fn list(algorithm: Algorithm, members: &[(u32, u32)]) -> (Method, Vec<u32>) {
    let mut members = members.to_vec();
    members.sort_unstable();
    members.dedup_by_key(|m| m.0);
    let known = members.len();
    members.retain(|(_, weight)| *weight > 0);
    let divisor = members.iter().fold(0, |d, (_, weight)| gcd(d, *weight)).max(1);
    for (_, weight) in &mut members {
        *weight /= divisor;
    }
    match algorithm {
        Algorithm::Rr => (Method::Turn, turns(&members)),
        Algorithm::Random => (Method::Random, turns(&members)),
        Algorithm::Maglev => (Method::Flow, table(&members, known)),
        Algorithm::SourceHash => (Method::Source, table(&members, known)),
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Each member as often as its weight, spread evenly over the list: the k-th of n entries belongs
/// at (2k + 1) / 2n of the way.
fn turns(members: &[(u32, u32)]) -> Vec<u32> {
    let counts = shortened(members);
    let mut entries: Vec<_> = members
        .iter()
        .zip(counts)
        .flat_map(|((slot, _), n)| (0..n).map(move |k| (2 * k + 1, n, *slot)))
        .collect();
    entries.sort_unstable_by(|(k, n, slot), (l, m, other)| (k * m).cmp(&(l * n)).then(slot.cmp(other)));
    entries.into_iter().map(|(_, _, slot)| slot).collect()
}

/// Entries of each member: its weight, or less in proportion where the list would be too long, but
/// at least one.
fn shortened(members: &[(u32, u32)]) -> Vec<u64> {
    let many = members.len() as u64;
    let room = (16 * many).clamp(TURNS, TABLES[1] as u64).max(many);
    // In thousandths, so that the list comes close to the room there is.
    let scaled = |by: u64| members.iter().map(move |(_, w)| ((u64::from(*w) * 1000 + by / 2) / by).max(1));
    let (mut fits, mut short) = (1000 * u64::from(u32::MAX), 1000);
    if scaled(short).sum::<u64>() <= room {
        return scaled(short).collect();
    }
    while fits - short > 1 {
        let by = short + (fits - short) / 2;
        match scaled(by).sum::<u64>() <= room {
            true => fits = by,
            false => short = by,
        }
    }
    scaled(fits).collect()
}

/// A member that fills its part of a table.
struct Filler {
    slot: u32,
    weight: u64,
    /// Part of a turn that it has, in units of the greatest weight.
    credit: u64,
    /// Next entry that it prefers.
    at: usize,
    step: usize,
}

/// A Maglev table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
/// NSDI 2016, section 3.4): the members take turns, as often as their weights say, and each takes
/// the first free entry of its own permutation of them.
fn table(members: &[(u32, u32)], known: usize) -> Vec<u32> {
    if let [] | [_] = members {
        return members.iter().map(|m| m.0).collect();
    }
    let size = if known <= FEW { TABLES[0] } else { TABLES[1] };
    let most = members.iter().map(|m| u64::from(m.1)).max().unwrap_or(1);
    let mut fillers: Vec<_> = members
        .iter()
        .map(|&(slot, weight)| Filler {
            slot,
            weight: weight.into(),
            // Everybody's first turn is in the first round: the lightest has an entry too.
            credit: most - u64::from(weight),
            at: (mix(slot.into()) % size as u64) as usize,
            step: (mix(u64::from(slot) | 1 << 32) % (size as u64 - 1)) as usize + 1,
        })
        .collect();
    let mut table = vec![None; size];
    let mut free = size;
    loop {
        for filler in &mut fillers {
            filler.credit += filler.weight;
            if filler.credit < most {
                continue;
            }
            filler.credit -= most;
            while table[filler.at].is_some() {
                filler.at = (filler.at + filler.step) % size;
            }
            table[filler.at] = Some(filler.slot);
            free -= 1;
            if free == 0 {
                return table.into_iter().flatten().collect();
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). It must stay as it is: two releases have to
/// choose alike.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;

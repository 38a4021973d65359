//! Which counters no flow counts in any more: rows of `STATS` that backends which are gone had are given to
//! others only then.
//!
//! Called by the loader every few seconds. The tables of flows are gone through a part at a time, while any
//! such row is held. A flow moves from `FLOWS` to `FLOWS_KEPT`, its row's number is copied to `REPLIES`, and
//! that row moves to `REPLIES_KEPT`: in this order none is missed.

use std::{collections::BTreeSet, path::Path};

use mesh_ebpf_common::{
    flow::stale,
    rows::{Flow, Reply},
    spec,
};

use crate::{
    Error,
    reclaim::{PART, Rows},
    store::Store,
    sys,
};

/// One time through all tables.
struct Round {
    /// Rows that were held when it began and that no flow was seen to name.
    left: BTreeSet<u32>,
    /// See [`Store::held_stats`].
    mark: u64,
    /// The table that is being gone through.
    table: usize,
}

/// The tables of flows, with how far they were gone through.
pub struct Counting {
    flows: [Rows; 2],
    replies: [Rows; 2],
    round: Option<Round>,
}

impl Counting {
    /// Opens them at their pins in `maps`.
    pub fn open(maps: &Path) -> Result<Self, Error> {
        let open = |spec: spec::MapSpec| Rows::open(maps, spec.name);
        Ok(Self {
            flows: [open(spec::FLOWS)?, open(spec::FLOWS_KEPT)?],
            replies: [open(spec::REPLIES)?, open(spec::REPLIES_KEPT)?],
            round: None,
        })
    }

    /// Goes through a part, and gives out what no flow names at the end of a round.
    pub fn run(&mut self, store: &mut Store) -> Result<(), Error> {
        if self.round.is_none() {
            if !store.stats_due() {
                return Ok(());
            }
            // Whoever read a list that has just changed has made its flow now, and taken a row for it.
            sys::wait_for_programs();
            self.flows.iter_mut().chain(&mut self.replies).for_each(Rows::rewind);
            let (left, mark) = store.held_stats()?;
            self.round = Some(Round { left, mark, table: 0 });
        }
        store.free_oldest_stats()?;
        if self.pass()?
            && let Some(round) = self.round.take()
        {
            store.free_stats(&round.left, round.mark)?;
        }
        Ok(())
    }

    /// Goes through a part; true at the end.
    fn pass(&mut self) -> Result<bool, Error> {
        let Some(round) = &mut self.round else { return Ok(false) };
        let now = sys::boot_ns();
        let mut seen = 0;
        while round.table < 4 && seen < PART && !round.left.is_empty() {
            let (left, limit) = (&mut round.left, PART - seen);
            // What is over goes on with counters of its own, if at all.
            let ended = if round.table < 2 {
                self.flows[round.table].scan(limit, |key, f: &Flow| {
                    seen += 1;
                    if !stale(key.proto, f.bits, f.last_seen, now) {
                        left.remove(&f.stat);
                    }
                })?
            } else {
                self.replies[round.table - 2].scan(limit, |key, r: &Reply| {
                    seen += 1;
                    if !stale(key.proto, r.bits, r.last_seen, now) {
                        left.remove(&r.stat);
                    }
                })?
            };
            round.table += usize::from(ended);
        }
        Ok(round.table == 4 || round.left.is_empty())
    }
}

//! Parts of a plan for workers that take one after the other.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ops::Range;

use super::cuts::Leaves;
use super::shard::at_least_one;
use super::Plan;
use crate::error::Result;

/// What the smallest units hold by default, in images without sharing: below that, calls of the denoiser are mostly
/// empty, because an image has to pass one step after the other.
const SMALLEST: u64 = 4;

/// What a worker's share holds at least, in the same measure, before it is two units: without a second one, a slow
/// worker keeps all others waiting for half of its share, which weighs more than emptier calls.
const PAIR: u64 = 6;

/// Units for each worker by default, at most: then the last ones are 1/128 of a worker's share.
const MOST: u32 = 8;

/// How much larger than the others the largest of equal units may be, because nothing comes after it.
const EVEN: f64 = 0.05;

/// The same where halves follow, which even it out: of the units that are halved later, and of the halves.
const UNEVEN: [f64; 2] = [0.2, 0.5];

impl Plan {
    /// Plans that together make the same prompts, costliest first, for `workers` that take one after the other.
    ///
    /// Their sizes halve: of `per_worker` units for each worker the first is about half of its share, the next a
    /// quarter, and so on; the last two are of one size. So the units that start last are small, and nobody waits long
    /// for their end. Units of one prompt are not halved. By default a worker has as many units as the work of its
    /// share allows, [`MOST`] at most, if none is to hold less than [`SMALLEST`] images' worth of it; and two from
    /// [`PAIR`] images' worth on.
    pub fn units(&self, workers: i64, per_worker: Option<i64>) -> Result<Vec<Plan>> {
        let workers = at_least_one("the number of workers", workers)?;
        let per_worker = per_worker.map(|count| at_least_one("per_worker", count)).transpose()?;
        let leaves = Leaves::new(self);
        let per_worker = per_worker.unwrap_or_else(|| {
            let images = leaves.cost(&leaves.all()) / self.n_steps() as u64 / workers as u64;
            let halving = (images / SMALLEST).max(1).ilog2() + 1;
            halving.clamp(if images < PAIR { 1 } else { 2 }, MOST) as usize
        });
        let mut units = halving(&leaves, workers, per_worker);
        units.sort_by_key(|unit| (Reverse(leaves.cost(unit)), unit.start));
        self.parts(&leaves, units)
    }
}

/// Two halves of a share for each worker; one half of each worker's is halved again, and so on.
fn halving(leaves: &Leaves, workers: usize, per_worker: usize) -> Vec<Range<usize>> {
    let slack = if per_worker > 2 { UNEVEN[0] } else { EVEN };
    let mut level = leaves.shares(leaves.all(), workers.saturating_mul(per_worker.min(2)), slack);
    let mut units = Vec::new();
    for _ in 2..per_worker {
        // Those are halved where it costs least, and of these the largest ones.
        let mut halved: Vec<_> = level
            .iter()
            .filter(|unit| unit.len() > 1)
            .map(|unit| (unit.clone(), leaves.shares(unit.clone(), 2, UNEVEN[1])))
            .collect();
        halved.sort_by_key(|(unit, halves)| {
            (leaves.cost_of_cut(halves[1].start), Reverse(leaves.cost(unit)), unit.start)
        });
        halved.truncate(workers);
        if halved.is_empty() {
            break;
        }
        let gone: HashSet<usize> = halved.iter().map(|(unit, _)| unit.start).collect();
        units.extend(level.into_iter().filter(|unit| !gone.contains(&unit.start)));
        level = halved.into_iter().flat_map(|(_, halves)| halves).collect();
    }
    units.extend(level);
    units
}

//! Rows of the network: how many a lane takes at each step, and how many a call has.

use std::sync::Arc;

use crate::error::{index_count, Error, Result};

/// A lane is one row of the network at a step without guidance, and two at a guided step: unconditional and conditional.
/// Where that differs between the steps of a run, the size of a call is counted in rows, not in lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// 1 or 2 for each step.
    of_step: Arc<[u8]>,
    capacity: usize,
    /// Whether they were given, not the default.
    given: bool,
}

impl Rows {
    /// Calls of at most `batch_size` lanes, all of one row, for `n_steps` steps; or, where `rows` gives the rows of a
    /// lane at each step, calls of at most `2 batch_size` rows: `batch_size` lanes of two rows, and up to twice as many
    /// of one.
    pub fn new(n_steps: usize, batch_size: i64, rows: Option<&[i64]>) -> Result<Self> {
        let Some(size) = usize::try_from(batch_size).ok().filter(|&size| size > 0) else {
            return Err(Error::NotPositive { what: "batch_size", value: batch_size });
        };
        let Some(rows) = rows else {
            index_count("lanes", size)?;
            return Ok(Rows { of_step: vec![1; n_steps].into(), capacity: size, given: false });
        };
        if rows.len() != n_steps {
            return Err(Error::Length { what: "rows", found: rows.len(), expected: n_steps });
        }
        if let Some(step) = rows.iter().position(|value| ![1, 2].contains(value)) {
            return Err(Error::BadRows { step, value: rows[step] });
        }
        let capacity = size.saturating_mul(2);
        index_count("rows", capacity)?;
        Ok(Rows { of_step: rows.iter().map(|&value| value as u8).collect(), capacity, given: true })
    }

    /// The rows of each step as they were given; none for the default.
    pub fn given(&self) -> Option<Vec<i64>> {
        self.given.then(|| self.of_step.iter().map(|&value| value.into()).collect())
    }

    /// The most rows of a call.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Rows of a lane at `step`.
    pub fn at(&self, step: u32) -> usize {
        self.of_step[step as usize].into()
    }

    /// The most lanes of a call whose lanes are all at `step`.
    pub fn lanes(&self, step: u32) -> usize {
        self.capacity / self.at(step)
    }

    /// The most lanes of any call.
    pub fn max_lanes(&self) -> usize {
        self.capacity / usize::from(self.of_step.iter().copied().min().unwrap_or(1))
    }

    /// Rows that one lane has before each step, and at all of them.
    pub fn before(&self) -> Vec<usize> {
        let mut before = vec![0];
        for &rows in self.of_step.iter() {
            before.push(before[before.len() - 1] + usize::from(rows));
        }
        before
    }

    /// Rows of all node-steps, of which there are `counts` at each step.
    pub fn total(&self, counts: &[i64]) -> usize {
        counts.iter().zip(self.of_step.iter()).map(|(&count, &rows)| count as usize * usize::from(rows)).sum()
    }

    /// No program has fewer calls, where there are `counts` node-steps at each step and all roots begin at step 0 (or,
    /// without mixed steps, anywhere).
    ///
    /// With mixed steps it is `max_k (k + ceil(rows at steps >= k / capacity))`: the k steps before need a call each.
    /// Without, it is `sum_k ceil(node-steps at step k / lanes of a call at step k)`: no call has lanes of two steps,
    /// and the calls of step k have to take all of its node-steps.
    pub fn lower_bound(&self, counts: &[i64], mixed_steps: bool) -> usize {
        let steps = 0..counts.len() as u32;
        if !mixed_steps {
            return steps.map(|step| (counts[step as usize] as usize).div_ceil(self.lanes(step))).sum();
        }
        let mut remaining = 0;
        let mut most = 0;
        for step in steps.rev() {
            remaining += counts[step as usize] as usize * self.at(step);
            most = most.max(step as usize + remaining.div_ceil(self.capacity));
        }
        most
    }
}

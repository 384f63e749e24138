//! Cutting a plan into parts that together make its images.

use std::ops::Range;
use std::sync::Arc;

use super::cuts::Leaves;
use super::segment::Segment;
use super::Plan;
use crate::error::{Error, Result};

impl Plan {
    /// At most `n` plans that together make the same prompts: contiguous shares of the leaf order. Fewer than `n` plans
    /// only if there are fewer prompts.
    ///
    /// Cut where neighbours share least: of all ways in which the most expensive share is at most `slack` (a fraction)
    /// more expensive than it has to be, one that computes the fewest node-steps again; of those, one whose most
    /// expensive share is cheapest. With m kept prompts and c node-steps of the plan it takes O(m log c log(slack * c))
    /// time for any `n`, and O(m) memory.
    pub fn shard(&self, n: i64, slack: f64) -> Result<Vec<Plan>> {
        let n = at_least_one("the number of shards", n)?;
        if !slack.is_finite() || slack < 0.0 {
            return Err(Error::BadSlack { slack });
        }
        let leaves = Leaves::new(self);
        self.parts(&leaves, leaves.shares(leaves.all(), n, slack))
    }

    /// The plans of ranges of kept leaves.
    pub(super) fn parts(&self, leaves: &Leaves, ranges: Vec<Range<usize>>) -> Result<Vec<Plan>> {
        let plan = |range: Range<usize>| {
            let places = &leaves.places()[range];
            let mut kept: Vec<u32> = places.iter().map(|&place| self.tree().leaf_order()[place as usize]).collect();
            kept.sort_unstable();
            if self.is_resumed() {
                // A segment of the range may have no use for what the range keeps, where the next one is given.
                return self.prune(&kept.iter().map(|&prompt| prompt.into()).collect::<Vec<i64>>());
            }
            let segments = self.within(places[0], places[places.len() - 1] + 1);
            Plan::new(Arc::clone(self.tree()), Arc::clone(self.phi()), kept, segments)
        };
        ranges.into_iter().map(plan).collect()
    }

    /// The segments with a leaf in `begin..end`. The first and the last place of that range are kept, and so each of
    /// these segments has a kept leaf there.
    ///
    /// Segments of the same first step are next to each other in leaf order, so those of a range are a run of rows.
    fn within(&self, begin: u32, end: u32) -> Vec<Segment> {
        let all = self.segments();
        let mut segments: Vec<Segment> = Vec::new();
        // For each first step, by how much its rows move up.
        let mut shift = vec![0; self.n_steps()];
        let mut row = 0;
        while let Some(&Segment { first_step, .. }) = all.get(row) {
            let group = &all[row..row + all[row..].partition_point(|segment| segment.first_step == first_step)];
            let first = group.partition_point(|segment| segment.leaf_end <= begin);
            let last = group.partition_point(|segment| segment.leaf_begin < end);
            shift[first_step as usize] = (row + first - segments.len()) as u32;
            let moved = |parent: u32| parent - shift[all[parent as usize].first_step as usize];
            segments.extend(
                group[first..last].iter().map(|segment| Segment { parent: segment.parent.map(moved), ..*segment }),
            );
            row += group.len();
        }
        segments
    }
}

/// A count that was given.
pub(super) fn at_least_one(what: &'static str, value: i64) -> Result<usize> {
    usize::try_from(value).ok().filter(|&count| count > 0).ok_or(Error::NotPositive { what, value })
}

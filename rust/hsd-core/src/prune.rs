//! Restricting a plan to some of its prompts: the one primitive behind resuming, sharding and previews.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::plan::{Plan, Segment};

impl Plan {
    /// The plan for the prompts `keep` alone. Segments without a kept prompt go; the others stay what they are,
    /// conditioning and noise of the full cluster included, so that the images stay the same.
    pub fn prune(&self, keep: &[i64]) -> Result<Plan> {
        if keep.is_empty() {
            return Err(Error::Empty { what: "prompts to keep" });
        }
        let n = self.n_prompts();
        let mut kept = vec![None; n];
        self.kept().iter().for_each(|&prompt| kept[prompt as usize] = Some(false));
        for &index in keep {
            match usize::try_from(index).ok().and_then(|index| kept.get_mut(index)) {
                None => return Err(Error::OutOfRange { what: "prompt", index, count: n }),
                Some(None) => return Err(Error::NotKept { prompt: index as usize }),
                Some(Some(true)) => return Err(Error::Repeated { what: "prompt", index }),
                Some(flag) => *flag = Some(true),
            }
        }
        let kept: Vec<u32> = (0..n as u32).filter(|&prompt| kept[prompt as usize] == Some(true)).collect();
        let ranges = KeptRanges::new(self.tree().leaf_order(), &kept);
        let mut new_row = vec![None; self.segments().len()];
        let mut segments: Vec<Segment> = Vec::new();
        for (row, segment) in self.segments().iter().enumerate() {
            if ranges.first_in(segment).is_some() {
                new_row[row] = Some(segments.len() as u32);
                let parent = segment.parent.and_then(|parent| new_row[parent as usize]);
                segments.push(Segment { parent, ..*segment });
            }
        }
        Plan::new(Arc::clone(self.tree()), Arc::clone(self.phi()), kept, segments)
    }

    /// At most `n` plans that together make the same prompts: contiguous shares of the leaf order, such that the
    /// most expensive share is as cheap as can be. Fewer than `n` only when there are fewer prompts.
    pub fn shard(&self, n: i64) -> Result<Vec<Plan>> {
        let Some(n) = usize::try_from(n).ok().filter(|&n| n > 0) else {
            return Err(Error::NotPositive { what: "the number of shards", value: n });
        };
        let (prompts, costs) = self.leaf_costs();
        let shares = n.min(prompts.len());
        // Bisection over the cost of the most expensive share.
        let (mut low, mut high) = (self.n_steps(), self.node_steps().max(self.n_steps()));
        while low < high {
            let middle = low + (high - low) / 2;
            if partition(&costs, self.n_steps(), middle, shares).len() <= shares {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let ends = partition(&costs, self.n_steps(), high, shares);
        let mut begin = 0;
        let mut shards = Vec::with_capacity(ends.len());
        for end in ends {
            shards.push(self.prune(&prompts[begin..end])?);
            begin = end;
        }
        Ok(shards)
    }

    /// The kept prompts in leaf order, and the node-steps that each adds to a share that holds its left neighbour.
    ///
    /// A prompt shares with any earlier one at most what it shares with its neighbour, so these costs add up; the
    /// first prompt of a share costs all its steps.
    fn leaf_costs(&self) -> (Vec<i64>, Vec<usize>) {
        let ranges = KeptRanges::new(self.tree().leaf_order(), self.kept());
        let prompts: Vec<i64> =
            ranges.positions.iter().map(|&position| self.tree().leaf_order()[position as usize].into()).collect();
        let mut costs = vec![0; prompts.len()];
        for segment in self.segments() {
            if let Some(first) = ranges.first_in(segment) {
                costs[first] += segment.steps();
            }
        }
        (prompts, costs)
    }
}

/// Ends of the shares when each takes as many leaves as fit below `limit`, but leaves one for every later share.
fn partition(costs: &[usize], whole: usize, limit: usize, shares: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut spent = whole;
    for leaf in 1..costs.len() {
        let still_needed = shares.saturating_sub(ends.len() + 1);
        if spent + costs[leaf] > limit || costs.len() - leaf <= still_needed {
            ends.push(leaf);
            spent = whole;
        } else {
            spent += costs[leaf];
        }
    }
    ends.push(costs.len());
    ends
}

/// Places of the kept leaves in the leaf order, ascending.
struct KeptRanges {
    positions: Vec<u32>,
}

impl KeptRanges {
    fn new(leaf_order: &[u32], kept: &[u32]) -> Self {
        let mut is_kept = vec![false; leaf_order.len()];
        kept.iter().for_each(|&prompt| is_kept[prompt as usize] = true);
        let positions =
            (0..leaf_order.len() as u32).filter(|&place| is_kept[leaf_order[place as usize] as usize]).collect();
        KeptRanges { positions }
    }

    /// The first kept leaf of a segment, counted among the kept leaves.
    fn first_in(&self, segment: &Segment) -> Option<usize> {
        let first = self.positions.partition_point(|&position| position < segment.leaf_begin);
        self.positions.get(first).filter(|&&position| position < segment.leaf_end).map(|_| first)
    }
}

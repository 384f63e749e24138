//! Restricting a plan to some of its prompts: resuming, sharding and previews are built on it.

use std::sync::Arc;

use super::kept::KeptPlaces;
use super::segment::Segment;
use super::Plan;
use crate::error::{Error, Result};

impl Plan {
    /// The plan for the prompts `keep` only. Segments without a kept prompt are dropped. The others do not change:
    /// they keep the conditioning and the noise of the full cluster, so the images do not change either.
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
        let places = KeptPlaces::new(self.tree(), &kept);
        let mut new_row = vec![None; self.segments().len()];
        let mut segments: Vec<Segment> = Vec::new();
        for (row, segment) in self.segments().iter().enumerate() {
            if places.within(segment.leaf_begin, segment.leaf_end) > 0 {
                new_row[row] = Some(segments.len() as u32);
                let parent = segment.parent.and_then(|parent| new_row[parent as usize]);
                segments.push(Segment { parent, ..*segment });
            }
        }
        Plan::new(Arc::clone(self.tree()), Arc::clone(self.phi()), kept, segments)
    }

    /// At most `n` plans that together make the same prompts: contiguous shares of the leaf order. The most expensive
    /// share is as cheap as possible. Fewer than `n` plans only if there are fewer prompts.
    pub fn shard(&self, n: i64) -> Result<Vec<Plan>> {
        let Some(n) = usize::try_from(n).ok().filter(|&n| n > 0) else {
            return Err(Error::NotPositive { what: "the number of shards", value: n });
        };
        let (places, costs) = self.leaf_costs();
        let shares = n.min(places.len());
        // Bisection over the cost of the most expensive share.
        let (mut low, mut high) = (self.n_steps(), self.node_steps().max(self.n_steps()));
        while low < high {
            let middle = low + (high - low) / 2;
            if ends_of_shares(&costs, self.n_steps(), middle, shares).len() <= shares {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let ends = ends_of_shares(&costs, self.n_steps(), high, shares);
        let mut begin = 0;
        let mut shards = Vec::with_capacity(ends.len());
        for end in ends {
            let places = &places[begin..end];
            let mut kept: Vec<u32> = places.iter().map(|&place| self.tree().leaf_order()[place as usize]).collect();
            kept.sort_unstable();
            let segments = self.within(places[0], places[places.len() - 1] + 1);
            shards.push(Plan::new(Arc::clone(self.tree()), Arc::clone(self.phi()), kept, segments)?);
            begin = end;
        }
        Ok(shards)
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

    /// The kept places of the leaf order, and the node-steps that each adds to a share that has its left neighbour.
    ///
    /// A prompt shares with any earlier one at most what it shares with its neighbour, so these costs can be summed.
    /// The first prompt of a share costs all its steps.
    fn leaf_costs(&self) -> (Vec<u32>, Vec<usize>) {
        let places = KeptPlaces::new(self.tree(), self.kept());
        let mut costs = vec![0; self.kept().len()];
        for segment in self.segments() {
            costs[places.below(segment.leaf_begin) as usize] += segment.steps();
        }
        (places.iter().collect(), costs)
    }
}

/// Ends of the shares if each takes leaves up to a cost of `limit`, but leaves at least one for every later share.
fn ends_of_shares(costs: &[usize], whole: usize, limit: usize, shares: usize) -> Vec<usize> {
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

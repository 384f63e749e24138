//! Where to cut a plan so that little is computed again.
//!
//! A share is a run of kept leaves. It computes all steps of its first leaf, and of every other leaf those that it does
//! not share with its left neighbour: a leaf shares with any earlier one at most what it shares with that neighbour.
//! So a cut costs the steps that the two leaves beside it share, and nothing else.
//!
//! The cheapest path over the leaves in exactly n shares of at most some size: a share that lies inside another one is
//! no larger, so the weights of shares have the Monge property, and the least cost is convex in n. A price for each
//! share (a Lagrange multiplier, found by bisection) takes the place of n. At a price, one pass over the leaves with a
//! window of starts is enough. Of the cheapest paths at the right price, one may have fewer shares than n and one more:
//! the beginning of the one and the end of the other make one with n (Aggarwal, Schieber and Tokuyama 1994).

use std::collections::VecDeque;
use std::ops::Range;

use super::kept::KeptPlaces;
use super::segment::Segment;
use super::Plan;

/// The kept leaves of a plan in leaf order, and what shares of them cost.
pub(super) struct Leaves {
    n_steps: u64,
    places: Vec<u32>,
    /// For each leaf, the steps that it shares with the kept leaf before it; none for the first.
    shared: Vec<u64>,
    /// For each leaf, the node-steps of all leaves before it; one entry more, for all.
    before: Vec<u64>,
}

/// Which of the cheapest paths at one price.
#[derive(Clone, Copy)]
enum Shares {
    Fewest,
    Most,
}

impl Leaves {
    pub fn new(plan: &Plan) -> Self {
        let kept = KeptPlaces::new(plan.tree(), plan.kept());
        let n_steps = plan.n_steps() as u64;
        let mut own = vec![0; plan.kept().len()];
        for segment in plan.segments() {
            own[kept.below(segment.leaf_begin) as usize] += Segment::steps(segment) as u64;
        }
        let mut before = Vec::with_capacity(own.len() + 1);
        before.push(0);
        before.extend(own.iter().scan(0, |sum, steps| {
            *sum += steps;
            Some(*sum)
        }));
        let shared = own.iter().map(|steps| n_steps - steps).collect();
        Leaves { n_steps, places: kept.iter().collect(), shared, before }
    }

    /// Their places of the leaf order, ascending.
    pub fn places(&self) -> &[u32] {
        &self.places
    }

    /// All of them.
    pub fn all(&self) -> Range<usize> {
        0..self.places.len()
    }

    /// Node-steps of a share.
    pub fn cost(&self, share: &Range<usize>) -> u64 {
        self.before[share.end] - self.before[share.start] + self.shared[share.start]
    }

    /// Node-steps that are computed again if a share begins at `leaf`.
    pub fn cost_of_cut(&self, leaf: usize) -> u64 {
        self.shared[leaf]
    }

    /// Cuts `range` into `n` shares, or as many as it has leaves. No share is larger than 1 + `slack` times the least
    /// that the largest one can be; see [`Plan::shard`].
    pub fn shares(&self, range: Range<usize>, n: usize, slack: f64) -> Vec<Range<usize>> {
        let n = n.min(range.len());
        let least = self.least_largest(&range, n);
        let mut high = least.saturating_add((least as f64 * slack) as u64).min(self.cost(&range).max(self.n_steps));
        let (cost, mut path) = self.cheapest(&range, n, high);
        // The same cost with the smallest limit.
        let mut low = least;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.cheapest(&range, n, middle) {
                (same, better) if same == cost => (high, path) = (middle, better),
                _ => low = middle + 1,
            }
        }
        path.windows(2).map(|ends| ends[0]..ends[1]).collect()
    }

    /// The cost of the largest of `n` shares, if they are as even as they can be.
    fn least_largest(&self, range: &Range<usize>, n: usize) -> u64 {
        let (mut low, mut high) = (self.n_steps, self.cost(range));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.fits(range, n, middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        high
    }

    /// Whether `n` shares of at most `limit` cover `range`.
    fn fits(&self, range: &Range<usize>, n: usize, limit: u64) -> bool {
        let (mut start, mut count) = (range.start, 1);
        for end in range.start + 1..=range.end {
            if self.cost(&(start..end)) > limit {
                start = end - 1;
                count += 1;
            }
        }
        count <= n
    }

    /// The least that `n` cuts of `range` cost (its begin is one), if no share is larger than `limit`, and such cuts,
    /// with the end of the range. There are `n` such shares, and no more than leaves.
    fn cheapest(&self, range: &Range<usize>, n: usize, limit: u64) -> (u64, Vec<usize>) {
        let path = |price, which| self.at_price(range, limit, price, which);
        // At this price every cut pays for itself, and at 4 ^ i times it none does, at last.
        let mut low = -(self.n_steps as i64);
        let mut high = -low;
        let mut few =
            if n == range.len() { range.clone().chain([range.end]).collect() } else { path(high, Shares::Fewest) };
        while few.len() - 1 > n {
            (low, high) = (high, 4 * high);
            few = path(high, Shares::Fewest);
        }
        // The lowest price at which n shares are not too many.
        while few.len() - 1 < n && low + 1 < high {
            let middle = low + (high - low) / 2;
            let found = path(middle, Shares::Fewest);
            if found.len() - 1 > n {
                low = middle;
            } else {
                (high, few) = (middle, found);
            }
        }
        if few.len() - 1 < n {
            few = joined(&few, &path(high, Shares::Most), n);
        }
        let cuts = &few[..few.len() - 1];
        (cuts.iter().map(|&cut| self.shared[cut]).sum(), few)
    }

    /// A cheapest path at a price for each share: the begin of each, and the end of the range.
    fn at_price(&self, range: &Range<usize>, limit: u64, price: i64, which: Shares) -> Vec<usize> {
        let share = match which {
            Shares::Fewest => 1i64,
            Shares::Most => -1,
        };
        let first = range.start;
        // For each end: the start of its last share.
        let mut starts = Vec::with_capacity(range.len());
        // What the path to here costs, and its number of shares, negative if more are better.
        let mut best = (0, 0);
        // Starts that may be best for a later end, ascending, and so are their costs.
        let mut window: VecDeque<(usize, (i64, i64))> = VecDeque::new();
        for end in first + 1..=range.end {
            let cost = (best.0 + self.shared[end - 1] as i64, best.1);
            while window.back().is_some_and(|&(_, other)| other >= cost) {
                window.pop_back();
            }
            window.push_back((end - 1, cost));
            while self.cost(&(window[0].0..end)) > limit {
                window.pop_front();
            }
            let (start, cost) = window[0];
            best = (cost.0 + price, cost.1 + share);
            starts.push(start);
        }
        let mut path = vec![range.end];
        while let Some(&end) = path.last().filter(|&&end| end > first) {
            path.push(starts[end - first - 1]);
        }
        path.reverse();
        path
    }
}

/// A path of `n` shares as cheap as the two given ones, of which the first has fewer and the second as many or more.
fn joined(few: &[usize], many: &[usize], n: usize) -> Vec<usize> {
    let ahead = n - (few.len() - 1);
    if many.len() - 1 == n {
        return many.to_vec();
    }
    // The last share of `few` that begins no later than the share of `many` that is so many shares ahead. It spans
    // that share, so a share from there to its own end is no larger.
    let last = few.iter().zip(&many[ahead..]).take_while(|(few, many)| few <= many).count() - 1;
    [&many[..=last + ahead], &few[last + 1..]].concat()
}

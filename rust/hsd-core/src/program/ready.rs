//! Node-steps that are ready to run, by kind and step, and which of them are next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::lane::Order;
use super::rows::Rows;

/// The position of a ready node-step in the order: by step, then by rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// The step itself if breadth first, its distance from the end if depth first.
    precedence: u32,
    pub rank: u32,
    pub step: u32,
}

/// Segments whose next step is ready.
#[derive(Debug)]
pub(super) struct Ready {
    kinds: Vec<Steps>,
    rows: Rows,
    /// One bit a step: whether its lanes take one row.
    narrow: Vec<u64>,
    order: Order,
}

/// Segments of one kind whose next step is ready, one heap of ranks a step.
#[derive(Debug)]
struct Steps {
    by_step: Vec<BinaryHeap<Reverse<u32>>>,
    /// One bit a step: whether its heap holds anything.
    filled: Vec<u64>,
    /// Number of lanes that the entries of each step lead to.
    lanes: Vec<usize>,
    /// Rows that all entries lead to.
    rows: usize,
}

impl Ready {
    /// Nothing is ready.
    pub fn new(n_steps: usize, n_kinds: usize, rows: Rows, order: Order) -> Self {
        let mut narrow = vec![0; n_steps.div_ceil(64)];
        for step in (0..n_steps).filter(|&step| rows.at(step as u32) == 1) {
            narrow[step / 64] |= 1 << (step % 64);
        }
        let kinds = (0..n_kinds).map(|_| Steps::new(n_steps)).collect();
        Ready { kinds, rows, narrow, order }
    }

    /// The turn of `rank` at `step`.
    pub fn turn(&self, step: u32, rank: u32) -> Turn {
        let precedence = match self.order {
            Order::Depth => u32::MAX - step,
            Order::Breadth => step,
        };
        Turn { precedence, rank, step }
    }

    /// `rank`, which is of `kind`, is ready at `step`, and leads to `lanes` lanes.
    pub fn push(&mut self, kind: u32, step: u32, rank: u32, lanes: usize) {
        let steps = &mut self.kinds[kind as usize];
        steps.by_step[step as usize].push(Reverse(rank));
        steps.filled[step as usize / 64] |= 1 << (step % 64);
        steps.lanes[step as usize] += lanes;
        steps.rows += lanes * self.rows.at(step);
    }

    /// The lowest rank of `kind` at `step`.
    pub fn lowest(&self, kind: u32, step: u32) -> Option<u32> {
        self.kinds[kind as usize].by_step[step as usize].peek().map(|&Reverse(rank)| rank)
    }

    /// Removes the lowest rank of `kind` at `step`, which leads to `lanes` lanes.
    pub fn pop(&mut self, kind: u32, step: u32, lanes: usize) {
        let steps = &mut self.kinds[kind as usize];
        let heap = &mut steps.by_step[step as usize];
        heap.pop();
        if heap.is_empty() {
            steps.filled[step as usize / 64] &= !(1 << (step % 64));
            // Breadth first passes through steps with a heap of all segments each: their memory is freed.
            heap.shrink_to(16);
        }
        steps.lanes[step as usize] -= lanes;
        steps.rows -= lanes * self.rows.at(step);
    }

    /// The step of `kind` that comes first in this order, among those whose lanes fit into the `left` rows of a call.
    pub fn first(&self, kind: u32, left: usize) -> Option<u32> {
        let (steps, narrow) = (&self.kinds[kind as usize], (left == 1).then_some(&self.narrow[..]));
        match (left, self.order) {
            (0, _) => None,
            (_, Order::Depth) => steps.largest(narrow),
            (_, Order::Breadth) => steps.smallest(narrow),
        }
    }

    /// Kind and step that come first for a new call.
    pub fn first_kind(&self) -> Option<(u32, u32)> {
        let kinds = || 0..self.kinds.len() as u32;
        let full = kinds().filter(|&kind| self.kinds[kind as usize].rows >= self.rows.capacity());
        let first = full.filter_map(|kind| Some((kind, self.first(kind, self.rows.capacity())?)));
        let full = match self.order {
            Order::Depth => first.max_by_key(|&(kind, step)| (step, Reverse(kind))),
            Order::Breadth => first.min_by_key(|&(kind, step)| (step, kind)),
        };
        full.or_else(|| {
            let smallest = kinds().filter_map(|kind| Some((kind, self.kinds[kind as usize].smallest(None)?)));
            let (kind, _) = smallest.min_by_key(|&(kind, step)| (step, kind))?;
            Some((kind, self.first(kind, self.rows.capacity())?))
        })
    }

    /// The kind and step that come first where all lanes of a call are at one step: the smallest breadth first, and
    /// depth first the largest that fills a call, or the smallest if none does.
    ///
    /// All steps before the smallest are done, so everything that remains of the smallest is ready and can run now. In
    /// either order, therefore, every step has at most one call of a kind that is not full, its last, and no program has
    /// fewer calls. Depth first, a step whose lanes fill a call runs before the steps that would add lanes to it. So a
    /// step never has the latents of two calls of a kind waiting, however many prompts there are.
    pub fn first_alone(&self) -> Option<(u32, u32)> {
        let kinds = || 0..self.kinds.len() as u32;
        let full = match self.order {
            Order::Depth => kinds()
                .filter_map(|kind| Some((kind, self.kinds[kind as usize].full(&self.rows)?)))
                .max_by_key(|&(kind, step)| (step, Reverse(kind))),
            Order::Breadth => None,
        };
        full.or_else(|| {
            let smallest = kinds().filter_map(|kind| Some((kind, self.kinds[kind as usize].smallest(None)?)));
            smallest.min_by_key(|&(kind, step)| (step, kind))
        })
    }
}

impl Steps {
    fn new(n_steps: usize) -> Self {
        let by_step = (0..n_steps).map(|_| BinaryHeap::new()).collect();
        Steps { by_step, filled: vec![0; n_steps.div_ceil(64)], lanes: vec![0; n_steps], rows: 0 }
    }

    /// The largest step that fills a call.
    fn full(&self, rows: &Rows) -> Option<u32> {
        (0..self.lanes.len() as u32).rfind(|&step| self.lanes[step as usize] >= rows.lanes(step))
    }

    fn largest(&self, narrow: Option<&[u64]>) -> Option<u32> {
        let (at, word) = self.words(narrow).enumerate().rfind(|&(_, word)| word != 0)?;
        Some(at as u32 * 64 + 63 - word.leading_zeros())
    }

    fn smallest(&self, narrow: Option<&[u64]>) -> Option<u32> {
        let (at, word) = self.words(narrow).enumerate().find(|&(_, word)| word != 0)?;
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    /// One bit a step: whether its heap holds anything, and it is one of these steps, where given.
    fn words<'a>(&'a self, narrow: Option<&'a [u64]>) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + 'a {
        let mask = move |at: usize| narrow.map_or(u64::MAX, |words| words[at]);
        self.filled.iter().enumerate().map(move |(at, &filled)| filled & mask(at))
    }
}

//! Node-steps that are ready to run, by step, and which step is next.

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

/// Segments whose next step is ready, one heap of ranks a step.
#[derive(Debug)]
pub(super) struct Ready {
    by_step: Vec<BinaryHeap<Reverse<u32>>>,
    /// One bit a step: whether its heap holds anything.
    filled: Vec<u64>,
    /// One bit a step: whether its lanes take one row.
    narrow: Vec<u64>,
    /// Number of lanes that the entries of each step lead to. Only [`Ready::first_alone`] needs it.
    lanes: Vec<usize>,
    order: Order,
}

impl Ready {
    /// Nothing is ready.
    pub fn new(n_steps: usize, rows: &Rows, order: Order) -> Self {
        let by_step = (0..n_steps).map(|_| BinaryHeap::new()).collect();
        let mut narrow = vec![0; n_steps.div_ceil(64)];
        for step in (0..n_steps).filter(|&step| rows.at(step as u32) == 1) {
            narrow[step / 64] |= 1 << (step % 64);
        }
        Ready { by_step, filled: vec![0; n_steps.div_ceil(64)], narrow, lanes: vec![0; n_steps], order }
    }

    /// The turn of `rank` at `step`.
    pub fn turn(&self, step: u32, rank: u32) -> Turn {
        let precedence = match self.order {
            Order::Depth => self.by_step.len() as u32 - step,
            Order::Breadth => step,
        };
        Turn { precedence, rank, step }
    }

    /// `rank` is ready at `step`, and leads to `lanes` lanes.
    pub fn push(&mut self, step: u32, rank: u32, lanes: usize) {
        self.by_step[step as usize].push(Reverse(rank));
        self.filled[step as usize / 64] |= 1 << (step % 64);
        self.lanes[step as usize] += lanes;
    }

    /// The lowest rank at `step`.
    pub fn lowest(&self, step: u32) -> Option<u32> {
        self.by_step[step as usize].peek().map(|&Reverse(rank)| rank)
    }

    /// Removes the lowest rank at `step`, which leads to `lanes` lanes.
    pub fn pop(&mut self, step: u32, lanes: usize) {
        let heap = &mut self.by_step[step as usize];
        heap.pop();
        if heap.is_empty() {
            self.filled[step as usize / 64] &= !(1 << (step % 64));
            // Breadth first passes through steps with a heap of all segments each: their memory is freed.
            heap.shrink_to(16);
        }
        self.lanes[step as usize] -= lanes;
    }

    /// The step that comes first in this order, among those whose lanes fit into the `left` rows of a call.
    pub fn first(&self, left: usize) -> Option<u32> {
        match (left, self.order) {
            (0, _) => None,
            (_, Order::Depth) => self.largest(left == 1),
            (_, Order::Breadth) => self.smallest(left == 1),
        }
    }

    /// The step that comes first where all lanes of a call are at one step: the smallest breadth first, and depth first
    /// the largest that fills a call, or the smallest if none does.
    ///
    /// All steps before the smallest are done, so everything that remains of the smallest is ready and can run now. In
    /// either order, therefore, every step has at most one call that is not full, its last, and no program has fewer
    /// calls. Depth first, a step whose lanes fill a call runs before the steps that would add lanes to it. So a step
    /// never has the latents of two calls waiting, however many prompts there are.
    pub fn first_alone(&self, rows: &Rows) -> Option<u32> {
        let full = match self.order {
            Order::Depth => (0..self.lanes.len() as u32).rfind(|&step| self.lanes[step as usize] >= rows.lanes(step)),
            Order::Breadth => None,
        };
        full.or_else(|| self.smallest(false))
    }

    fn largest(&self, narrow: bool) -> Option<u32> {
        let (at, word) = self.words(narrow).enumerate().rfind(|&(_, word)| word != 0)?;
        Some(at as u32 * 64 + 63 - word.leading_zeros())
    }

    fn smallest(&self, narrow: bool) -> Option<u32> {
        let (at, word) = self.words(narrow).enumerate().find(|&(_, word)| word != 0)?;
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    /// One bit a step: whether its heap holds anything, and, where asked for, whether its lanes take one row.
    fn words(&self, narrow: bool) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + '_ {
        let mask = move |mask: u64| if narrow { mask } else { u64::MAX };
        self.filled.iter().zip(&self.narrow).map(move |(&filled, &narrow)| filled & mask(narrow))
    }
}

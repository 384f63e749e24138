//! Node-steps that are ready to run, by step, and which step is next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::lane::Order;

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
    /// Number of lanes that the entries of each step lead to. Only [`Ready::first_alone`] needs it.
    lanes: Vec<usize>,
    order: Order,
}

impl Ready {
    /// Nothing is ready.
    pub fn new(n_steps: usize, order: Order) -> Self {
        let by_step = (0..n_steps).map(|_| BinaryHeap::new()).collect();
        Ready { by_step, filled: vec![0; n_steps.div_ceil(64)], lanes: vec![0; n_steps], order }
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

    /// The step that comes first in this order.
    pub fn first(&self) -> Option<u32> {
        match self.order {
            Order::Depth => self.largest(),
            Order::Breadth => self.smallest(),
        }
    }

    /// The step that comes first where all lanes of a call are at one step: the smallest breadth first, and depth first
    /// the largest that fills a call of `batch_size` lanes, or the smallest if none does.
    ///
    /// All steps before the smallest are done, so everything that remains of the smallest is ready and can run now. In
    /// either order, therefore, every step has at most one call that is not full, its last, and no program has fewer
    /// calls. Depth first, a step whose lanes fill a call runs before the steps that would add lanes to it. So a step
    /// never has twice `batch_size` latents waiting, however many prompts there are.
    pub fn first_alone(&self, batch_size: usize) -> Option<u32> {
        let full = match self.order {
            Order::Depth => self.lanes.iter().rposition(|&lanes| lanes >= batch_size),
            Order::Breadth => None,
        };
        full.map(|step| step as u32).or_else(|| self.smallest())
    }

    fn largest(&self) -> Option<u32> {
        let (at, word) = self.filled.iter().enumerate().rfind(|(_, &word)| word != 0)?;
        Some(at as u32 * 64 + 63 - word.leading_zeros())
    }

    fn smallest(&self) -> Option<u32> {
        let (at, word) = self.filled.iter().enumerate().find(|(_, &word)| word != 0)?;
        Some(at as u32 * 64 + word.trailing_zeros())
    }
}

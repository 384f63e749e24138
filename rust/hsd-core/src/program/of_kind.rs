//! Ready node-steps of one kind, by step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::rows::Rows;

/// Segments of one kind whose next step is ready, one heap of ranks a step; and what is known of those to come.
#[derive(Debug)]
pub(super) struct OfKind {
    by_step: Vec<BinaryHeap<Reverse<u32>>>,
    /// One bit a step: whether its heap holds anything.
    filled: Vec<u64>,
    /// Number of lanes that the entries of each step lead to.
    lanes: Vec<usize>,
    /// Rows that all entries lead to.
    rows: usize,
    /// Rows of the entries whose segments have begun: they need no slot.
    held: usize,
    /// Rows of all node-steps that have not run.
    remaining: usize,
    /// Number of segments, by first step, that are not ready and fork from one of another kind.
    awaited: Vec<u32>,
    /// The first step of which there are such segments, or the number of steps.
    first_awaited: usize,
}

/// An entry: a segment whose next step is ready.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub kind: u32,
    pub step: u32,
    pub rank: u32,
    /// Number of lanes that it leads to.
    pub lanes: usize,
    /// Whether the segment has begun.
    pub begun: bool,
}

impl OfKind {
    /// Nothing is ready.
    pub fn new(n_steps: usize) -> Self {
        OfKind {
            by_step: (0..n_steps).map(|_| BinaryHeap::new()).collect(),
            filled: vec![0; n_steps.div_ceil(64)],
            lanes: vec![0; n_steps],
            rows: 0,
            held: 0,
            remaining: 0,
            awaited: vec![0; n_steps],
            first_awaited: n_steps,
        }
    }

    pub fn push(&mut self, entry: Entry, rows: usize) {
        let Entry { step, rank, lanes, begun, .. } = entry;
        self.by_step[step as usize].push(Reverse(rank));
        self.filled[step as usize / 64] |= 1 << (step % 64);
        self.lanes[step as usize] += lanes;
        self.rows += lanes * rows;
        self.held += usize::from(begun) * rows;
    }

    /// Removes the lowest rank of a step.
    pub fn pop(&mut self, entry: Entry, rows: usize) {
        let Entry { step, lanes, begun, .. } = entry;
        let heap = &mut self.by_step[step as usize];
        heap.pop();
        if heap.is_empty() {
            self.filled[step as usize / 64] &= !(1 << (step % 64));
            // Breadth first passes through steps with a heap of all segments each: their memory is freed.
            heap.shrink_to(16);
        }
        self.lanes[step as usize] -= lanes;
        self.rows -= lanes * rows;
        self.held -= usize::from(begun) * rows;
    }

    /// The lowest rank at `step`.
    pub fn lowest(&self, step: u32) -> Option<u32> {
        self.by_step[step as usize].peek().map(|&Reverse(rank)| rank)
    }

    /// A segment is still to come, of `rows` rows in all.
    pub fn expect(&mut self, rows: usize) {
        self.remaining += rows;
    }

    /// A segment that begins at `step` forks from one of another kind.
    pub fn wait(&mut self, step: u32) {
        self.awaited[step as usize] += 1;
        self.first_awaited = self.first_awaited.min(step as usize);
    }

    /// Such a segment is ready.
    pub fn arrive(&mut self, step: u32) {
        self.awaited[step as usize] -= 1;
        while self.awaited.get(self.first_awaited) == Some(&0) {
            self.first_awaited += 1;
        }
    }

    /// A lane of this many rows has run.
    pub fn done(&mut self, rows: usize) {
        self.remaining -= rows;
    }

    /// Rows that the ready entries lead to.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Ready rows that need no slot.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether all that remains comes from segments of this kind.
    pub fn is_complete(&self) -> bool {
        self.first_awaited == self.awaited.len()
    }

    /// Whether full calls are no longer enough for the way of its earliest segment to the last step, ready or awaited.
    pub fn closes(&self, capacity: usize) -> bool {
        let n_steps = self.by_step.len();
        let earliest = self.smallest(None).map_or(n_steps, |step| step as usize).min(self.first_awaited);
        self.remaining <= (n_steps - earliest) * capacity
    }

    /// Number of lanes that the entries of each step lead to.
    pub fn lanes(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.lanes.iter().enumerate().map(|(step, &lanes)| (step as u32, lanes)).filter(|&(_, lanes)| lanes > 0)
    }

    /// The largest step that fills a call.
    pub fn full(&self, rows: &Rows) -> Option<u32> {
        (0..self.lanes.len() as u32).rfind(|&step| self.lanes[step as usize] >= rows.lanes(step))
    }

    /// The largest step; of those in `mask`, where given.
    pub fn largest(&self, mask: Option<&[u64]>) -> Option<u32> {
        let (at, word) = self.words(mask).enumerate().rfind(|&(_, word)| word != 0)?;
        Some(at as u32 * 64 + 63 - word.leading_zeros())
    }

    /// The smallest step; of those in `mask`, where given.
    pub fn smallest(&self, mask: Option<&[u64]>) -> Option<u32> {
        let (at, word) = self.words(mask).enumerate().find(|&(_, word)| word != 0)?;
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    /// One bit a step: whether its heap holds anything, and it is in `mask`.
    fn words<'a>(&'a self, mask: Option<&'a [u64]>) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + 'a {
        let in_mask = move |at: usize| mask.map_or(u64::MAX, |words| words[at]);
        self.filled.iter().enumerate().map(move |(at, &filled)| filled & in_mask(at))
    }
}

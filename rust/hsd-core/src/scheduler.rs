//! List scheduling: which node-steps the next call takes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use crate::forest::Forest;
use crate::plan::Plan;
use crate::program::{Lane, Order};
use crate::slots::{Reader, Request, Slots};

/// When a ready node-step has its turn, as the order goes: by step, then by rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    /// Of the step: itself breadth first, its distance from the end depth first.
    precedence: u32,
    rank: u32,
    step: u32,
}

/// Segments whose next step is ready, one heap of ranks a step.
#[derive(Debug)]
struct Ready {
    by_step: Vec<BinaryHeap<Reverse<u32>>>,
    /// One bit a step: whether its heap holds anything.
    filled: Vec<u64>,
    order: Order,
}

impl Ready {
    fn new(n_steps: usize, order: Order) -> Self {
        let by_step = (0..n_steps).map(|_| BinaryHeap::new()).collect();
        Ready { by_step, filled: vec![0; n_steps.div_ceil(64)], order }
    }

    fn turn(&self, step: u32, rank: u32) -> Turn {
        let precedence = match self.order {
            Order::Depth => self.by_step.len() as u32 - step,
            Order::Breadth => step,
        };
        Turn { precedence, rank, step }
    }

    fn push(&mut self, step: u32, rank: u32) {
        self.by_step[step as usize].push(Reverse(rank));
        self.filled[step as usize / 64] |= 1 << (step % 64);
    }

    fn pop(&mut self) -> Option<(u32, u32)> {
        let mut words = self.filled.iter().enumerate().filter(|(_, &word)| word != 0);
        let (at, bit) = match self.order {
            Order::Depth => words.next_back().map(|(at, word)| (at, 63 - word.leading_zeros()))?,
            Order::Breadth => words.next().map(|(at, word)| (at, word.trailing_zeros()))?,
        };
        let step = at * 64 + bit as usize;
        let Reverse(rank) = self.by_step[step].pop()?;
        if self.by_step[step].is_empty() {
            self.filled[at] &= !(1 << bit);
            // Breadth first passes through steps with a heap of all segments each: their room is not kept.
            self.by_step[step].shrink_to(16);
        }
        Some((step as u32, rank))
    }
}

/// Makes the calls of a program one by one, in memory linear in the plan's segments.
///
/// Every live value has one entry in `ready`: a running segment its next step, a finished one the next child that
/// reads it (children go in ascending need); the roots have one between them. So what waits for a slot is never
/// more than what holds one.
#[derive(Debug)]
pub(crate) struct Scheduler {
    plan: Arc<Plan>,
    forest: Arc<Forest>,
    batch_size: usize,
    ready: Ready,
    slots: Slots,
    /// Slot of every segment that has begun.
    slot: Vec<Option<u32>>,
    /// Number of children that have begun; of the roots in the last entry.
    begun: Vec<u32>,
    /// Whether a child reads the segment's latent in the call under way.
    is_read: Vec<bool>,
    /// What found no slot, by what it asked for: only the first of each kind is worth trying again.
    waiting: BTreeMap<Request, BinaryHeap<Reverse<Turn>>>,
}

impl Scheduler {
    /// Before the first call.
    pub fn new(plan: Arc<Plan>, forest: Arc<Forest>, batch_size: usize, order: Order, limit: Option<usize>) -> Self {
        let n = plan.segments().len();
        let mut ready = Ready::new(plan.n_steps(), order);
        if let Some(&root) = forest.roots().first() {
            ready.push(0, forest.rank(root));
        }
        Scheduler {
            plan,
            forest,
            batch_size,
            ready,
            slots: Slots::new(limit),
            slot: vec![None; n],
            begun: vec![0; n + 1],
            is_read: vec![false; n],
            waiting: BTreeMap::new(),
        }
    }

    /// The lanes of the next call; none if all have run.
    pub fn next_call(&mut self, lanes: &mut Vec<Lane>) {
        lanes.clear();
        while lanes.len() < self.batch_size {
            let Some((step, rank)) = self.ready.pop() else { break };
            match self.place(self.forest.with_rank(rank), step) {
                Ok(lane) => lanes.push(lane),
                Err(request) => {
                    let turn = self.ready.turn(step, rank);
                    self.waiting.entry(request).or_default().push(Reverse(turn));
                }
            }
        }
        for lane in lanes.iter() {
            self.follow(lane);
        }
        if self.slots.end_call() {
            for (request, turns) in &mut self.waiting {
                // The last to read a value needs no slot once no lane beside it reads.
                let needs_none = request.reader.is_some_and(|reader| reader.to.is_none());
                while let Some(Reverse(turn)) = turns.pop() {
                    self.ready.push(turn.step, turn.rank);
                    if !needs_none {
                        break;
                    }
                }
            }
            self.waiting.retain(|_, turns| !turns.is_empty());
        }
    }

    /// A slot for what is asked. If there is one, the next that asks for the same is ready too.
    fn take(&mut self, request: Request) -> Result<u32, Request> {
        let slot = self.slots.take(request).ok_or(request)?;
        if let Some(Reverse(turn)) = self.waiting.get_mut(&request).and_then(BinaryHeap::pop) {
            self.ready.push(turn.step, turn.rank);
        }
        Ok(slot)
    }

    /// The lane of `row` at `step` in the call under way, or the slot that it has to wait for.
    fn place(&mut self, row: u32, step: u32) -> Result<Lane, Request> {
        let segment = &self.plan.segments()[row as usize];
        let parent = segment.parent;
        let (source, target, begins) = match self.slot[row as usize] {
            Some(slot) => (slot, slot, false),
            None => {
                let (source, target) = match parent {
                    None => {
                        let slot = self.take(Request { extra: self.forest.need(row) - 1, reader: None })?;
                        (slot, slot)
                    }
                    Some(parent) => self.fork(parent, row)?,
                };
                self.slot[row as usize] = Some(target);
                self.offer_sibling(parent, step);
                (source, target, true)
            }
        };
        let last = step as usize + 1 == self.plan.n_steps();
        if last {
            self.slots.retire(0);
            self.slots.give(target);
        }
        Ok(Lane { segment: row, step, source, target, fresh: begins && parent.is_none(), begins, last })
    }

    /// Slots that `row` reads and writes at its first step, or the one that it has to wait for.
    fn fork(&mut self, parent: u32, row: u32) -> Result<(u32, u32), Request> {
        // A parent has begun before its children are ready; were it not so, the checker would find the wrong slot.
        let source = self.slot[parent as usize].unwrap_or_default();
        let remaining = &self.forest.children(parent)[self.begun[parent as usize] as usize..];
        let later = &remaining[1..];
        let is_last = later.is_empty();
        if is_last && !self.is_read[parent as usize] {
            // The last reader, and no lane beside it reads: it takes the parent's place. One child alone has the
            // extra that the parent had, so nothing changes for the banker.
            return Ok((source, source));
        }
        let reader = Reader { from: self.forest.extra(remaining), to: (!is_last).then(|| self.forest.extra(later)) };
        let target = self.take(Request { extra: self.forest.need(row) - 1, reader: Some(reader) })?;
        self.is_read[parent as usize] = true;
        if is_last {
            self.slots.give(source);
        }
        Ok((source, target))
    }

    /// Makes the next reader of the same value ready, in this very call.
    fn offer_sibling(&mut self, parent: Option<u32>, step: u32) {
        let (begun, siblings) = match parent {
            Some(parent) => (&mut self.begun[parent as usize], self.forest.children(parent)),
            None => (&mut self.begun[self.plan.segments().len()], self.forest.roots()),
        };
        *begun += 1;
        if let Some(&next) = siblings.get(*begun as usize) {
            self.ready.push(step, self.forest.rank(next));
        }
    }

    /// Makes ready what `lane` makes possible, for the next call.
    fn follow(&mut self, lane: &Lane) {
        let segment = &self.plan.segments()[lane.segment as usize];
        if let Some(parent) = segment.parent.filter(|_| lane.begins) {
            self.is_read[parent as usize] = false;
        }
        let next = lane.step + 1;
        if next < segment.end_step {
            self.ready.push(next, self.forest.rank(lane.segment));
        } else if let Some(&child) = self.forest.children(lane.segment).first() {
            self.ready.push(next, self.forest.rank(child));
        }
    }
}

//! The program: a plan lowered to a table of batched calls.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{index_count, reserve, Error, Result};
use crate::forest::Forest;
use crate::plan::Plan;
use crate::simulate::simulate;
use crate::slots::Slots;

/// Which ready node-steps a call takes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The latest step first: images finish early and few latents are alive.
    Depth,
    /// The earliest step first: the fewest calls there can be (Hu 1961, highest level first).
    Breadth,
}

impl Order {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Order::Depth => "depth",
            Order::Breadth => "breadth",
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Order::Depth, Order::Breadth].into_iter().find(|order| order.name() == name).ok_or_else(|| {
            Error::UnknownName { what: "order", name: name.to_owned(), choices: "\"depth\", \"breadth\"" }
        })
    }
}

/// One row of a call: one segment at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The segment.
    pub segment: u32,
    /// The step.
    pub step: u32,
    /// The slot that holds the latent before the step.
    pub source: u32,
    /// The slot that holds it afterwards.
    pub target: u32,
    /// It starts a root: its first latent has to be drawn into `source` before the call.
    pub fresh: bool,
    /// It is the segment's first step.
    pub begins: bool,
    /// It is the last step of all: `target` holds a finished latent right after the call.
    pub last: bool,
}

/// A plan lowered to calls. Sound by construction and checked besides.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    plan: Arc<Plan>,
    batch_size: usize,
    order: Order,
    max_slots: Option<usize>,
    n_slots: usize,
    lanes: Vec<Lane>,
    /// Call `c` is `lanes[ends[c - 1]..ends[c]]`.
    ends: Vec<usize>,
}

impl Program {
    /// Lowers `plan` to calls of at most `batch_size` lanes in a buffer of at most `max_slots` slots.
    pub fn compile(plan: Arc<Plan>, batch_size: i64, order: Order, max_slots: Option<i64>) -> Result<Self> {
        let Some(batch_size) = usize::try_from(batch_size).ok().filter(|&size| size > 0) else {
            return Err(Error::NotPositive { what: "batch_size", value: batch_size });
        };
        index_count("lanes", batch_size)?;
        let forest = Forest::new(plan.segments());
        let least = forest.least_slots();
        let limit = match max_slots {
            None => None,
            Some(most) => match usize::try_from(most).ok().filter(|&most| most >= least) {
                None => return Err(Error::TooFewSlots { max_slots: most, least }),
                limit => limit,
            },
        };
        let mut scheduler = Scheduler::new(&plan, &forest, order, limit)?;
        scheduler.run(batch_size)?;
        let Scheduler { lanes, ends, slots, .. } = scheduler;
        let n_slots = slots.used();
        if limit.is_some_and(|limit| n_slots > limit) {
            return Err(Error::BadProgram(format!("it uses {n_slots} slots of {limit:?}")));
        }
        simulate(&plan, batch_size, n_slots, &lanes, &ends)?;
        Ok(Program { plan, batch_size, order, max_slots: limit, n_slots, lanes, ends })
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The most lanes of a call.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// What its calls take first.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The limit that it was compiled under.
    pub fn max_slots(&self) -> Option<usize> {
        self.max_slots
    }

    /// Number of slots that it uses.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// Number of calls.
    pub fn n_calls(&self) -> usize {
        self.ends.len()
    }

    /// The filled lanes of each call.
    pub fn calls(&self) -> impl ExactSizeIterator<Item = &[Lane]> {
        calls(&self.lanes, &self.ends)
    }

    /// Filled lanes / all lanes.
    pub fn occupancy(&self) -> f64 {
        self.lanes.len() as f64 / (self.n_calls() as f64 * self.batch_size as f64)
    }

    /// No program of this plan has fewer calls at this batch size.
    pub fn lower_bound(&self) -> usize {
        self.plan.lower_bound(self.batch_size)
    }
}

/// The runs of lanes that end at `ends`.
pub(crate) fn calls<'a>(lanes: &'a [Lane], ends: &'a [usize]) -> impl ExactSizeIterator<Item = &'a [Lane]> {
    (0..ends.len()).map(move |call| &lanes[call.checked_sub(1).map_or(0, |before| ends[before])..ends[call]])
}

/// Segments whose next step is ready, one heap of ranks a step.
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
        }
        Some((step as u32, rank))
    }
}

/// List scheduling, call by call.
///
/// Every live value has one entry in `ready`: a running segment its next step, a finished one the next child that
/// reads it (children go in ascending need); the roots have one between them. So what waits for a slot is never
/// more than what holds one.
struct Scheduler<'a> {
    plan: &'a Plan,
    forest: &'a Forest,
    ready: Ready,
    slots: Slots,
    /// Slot of every segment that has begun.
    slot: Vec<Option<u32>>,
    /// Number of children that have begun; of the roots in the last entry.
    begun: Vec<usize>,
    /// The last call in which a child read the segment's latent.
    read_in: Vec<Option<usize>>,
    lanes: Vec<Lane>,
    ends: Vec<usize>,
}

impl<'a> Scheduler<'a> {
    fn new(plan: &'a Plan, forest: &'a Forest, order: Order, limit: Option<usize>) -> Result<Self> {
        let n = plan.segments().len();
        let mut ready = Ready::new(plan.n_steps(), order);
        if let Some(&root) = forest.roots().first() {
            ready.push(0, forest.rank(root));
        }
        Ok(Scheduler {
            plan,
            forest,
            ready,
            slots: Slots::new(limit),
            slot: vec![None; n],
            begun: vec![0; n + 1],
            read_in: vec![None; n],
            lanes: reserve("the lanes of the program", plan.node_steps())?,
            ends: Vec::new(),
        })
    }

    fn run(&mut self, batch_size: usize) -> Result<()> {
        let total = self.plan.node_steps();
        let mut waiting = Vec::new();
        while self.lanes.len() < total {
            let begin = self.lanes.len();
            while self.lanes.len() - begin < batch_size {
                let Some((step, rank)) = self.ready.pop() else { break };
                match self.place(self.forest.with_rank(rank), step) {
                    Some(lane) => self.lanes.push(lane),
                    None => waiting.push((step, rank)),
                }
            }
            if self.lanes.len() == begin {
                return Err(Error::BadProgram(format!("no lane can go on after call {}", self.ends.len())));
            }
            for at in begin..self.lanes.len() {
                self.follow(self.lanes[at]);
            }
            waiting.drain(..).for_each(|(step, rank)| self.ready.push(step, rank));
            self.slots.end_call();
            self.ends.push(self.lanes.len());
        }
        Ok(())
    }

    /// The lane of `row` at `step` in the call under way; none if it has to wait for a slot.
    fn place(&mut self, row: u32, step: u32) -> Option<Lane> {
        let segment = &self.plan.segments()[row as usize];
        let (source, target, begins) = match self.slot[row as usize] {
            Some(slot) => (slot, slot, false),
            None => {
                let (source, target) = match segment.parent {
                    None => {
                        let slot = self.slots.take(self.forest.need(row) - 1, None)?;
                        (slot, slot)
                    }
                    Some(parent) => self.fork(parent, row)?,
                };
                self.slot[row as usize] = Some(target);
                self.offer_sibling(segment.parent, step);
                (source, target, true)
            }
        };
        let last = step as usize + 1 == self.plan.n_steps();
        if last {
            self.slots.retire(0);
            self.slots.give(target);
        }
        Some(Lane { segment: row, step, source, target, fresh: begins && segment.parent.is_none(), begins, last })
    }

    /// Slots that `row` reads and writes at its first step, if there is one to write.
    fn fork(&mut self, parent: u32, row: u32) -> Option<(u32, u32)> {
        let call = Some(self.ends.len());
        let source = self.slot[parent as usize]?;
        let remaining = &self.forest.children(parent)[self.begun[parent as usize]..];
        let later = &remaining[1..];
        if later.is_empty() && self.read_in[parent as usize] != call {
            // The last reader, and no lane beside it reads: it takes the parent's place. One child alone has the
            // extra that the parent had, so nothing changes for the banker.
            return Some((source, source));
        }
        let to = (!later.is_empty()).then(|| self.forest.extra(later));
        let reader = Some((self.forest.extra(remaining), to));
        let target = self.slots.take(self.forest.need(row) - 1, reader)?;
        self.read_in[parent as usize] = call;
        if later.is_empty() {
            self.slots.give(source);
        }
        Some((source, target))
    }

    /// Makes the next reader of the same value ready, in this very call.
    fn offer_sibling(&mut self, parent: Option<u32>, step: u32) {
        let (begun, siblings) = match parent {
            Some(parent) => (&mut self.begun[parent as usize], self.forest.children(parent)),
            None => (&mut self.begun[self.plan.segments().len()], self.forest.roots()),
        };
        *begun += 1;
        if let Some(&next) = siblings.get(*begun) {
            self.ready.push(step, self.forest.rank(next));
        }
    }

    /// Makes ready what `lane` makes possible, for the next call.
    fn follow(&mut self, lane: Lane) {
        let segment = &self.plan.segments()[lane.segment as usize];
        let next = lane.step + 1;
        if next < segment.end_step {
            self.ready.push(next, self.forest.rank(lane.segment));
        } else if let Some(&child) = self.forest.children(lane.segment).first() {
            self.ready.push(next, self.forest.rank(child));
        }
    }
}

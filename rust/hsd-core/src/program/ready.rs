//! Node-steps that are ready to run, by kind and step, and which of them are next.

use std::cmp::Reverse;

use super::lane::Order;
use super::of_kind::{Entry, OfKind};
use super::rows::Rows;

/// The position of a ready node-step in the order: by step, then by rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// The step itself if breadth first, its distance from the end if depth first.
    precedence: u32,
    pub rank: u32,
    pub step: u32,
}

/// Segments whose next step is ready. Its memory is linear in steps times kinds, besides the entries.
#[derive(Debug)]
pub(super) struct Ready {
    kinds: Vec<OfKind>,
    rows: Rows,
    /// One bit a step: whether its lanes take one row.
    narrow: Vec<u64>,
    order: Order,
}

impl Ready {
    /// Nothing is ready.
    pub fn new(n_steps: usize, n_kinds: usize, rows: Rows, order: Order) -> Self {
        let mut narrow = vec![0; n_steps.div_ceil(64)];
        for step in (0..n_steps).filter(|&step| rows.at(step as u32) == 1) {
            narrow[step / 64] |= 1 << (step % 64);
        }
        let kinds = (0..n_kinds).map(|_| OfKind::new(n_steps)).collect();
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

    /// An entry is ready.
    pub fn push(&mut self, entry: Entry) {
        self.kinds[entry.kind as usize].push(entry, self.rows.at(entry.step));
    }

    /// Removes an entry, which has the lowest rank of its kind and step.
    pub fn pop(&mut self, entry: Entry) {
        self.kinds[entry.kind as usize].pop(entry, self.rows.at(entry.step));
    }

    /// The entries of one kind.
    pub fn of(&self, kind: u32) -> &OfKind {
        &self.kinds[kind as usize]
    }

    /// The same, to say what is to come of it.
    pub fn of_mut(&mut self, kind: u32) -> &mut OfKind {
        &mut self.kinds[kind as usize]
    }

    /// The step of `kind` that comes first, among those whose lanes fit into the `left` rows of a call. Slots are `short`
    /// if some entries wait for one.
    ///
    /// Depth first, the last calls of one of several kinds are made breadth first: as many of them as the earliest of its
    /// segments needs for its way to the last step. Otherwise that way would be left for calls of one lane.
    pub fn first(&self, kind: u32, left: usize, short: bool) -> Option<u32> {
        let (entries, narrow) = (self.of(kind), (left == 1).then_some(&self.narrow[..]));
        match (left, self.order) {
            (0, _) => None,
            (_, Order::Depth) if !short && self.closes(kind) => entries.smallest(narrow),
            (_, Order::Depth) => entries.largest(narrow),
            (_, Order::Breadth) => entries.smallest(narrow),
        }
    }

    fn closes(&self, kind: u32) -> bool {
        self.kinds.len() > 1 && self.of(kind).closes(self.rows.capacity())
    }

    /// Kind and step that come first for a new call of mixed steps.
    ///
    /// A call that is not full costs as much as a full one, and what a kind still awaits from segments of other kinds
    /// may fill it. So breadth first runs a kind when it awaits nothing. If kinds are lengths, a cluster being as long as
    /// its longest member, the longest is always such a kind; what awaits it runs afterwards, and no program has fewer
    /// calls. Depth first, a kind that fills a call comes before, the one at the largest step, so that few latents are
    /// alive; but its last calls wait until it is complete. Kinds that await each other are run at the smallest step.
    ///
    /// If slots are short, waiting keeps them occupied. Then it is the kind with the most lanes that need no slot.
    pub fn first_kind(&self, short: bool) -> Option<(u32, u32)> {
        let capacity = self.rows.capacity();
        let ready = || self.numbers().filter_map(|kind| Some((kind, self.first(kind, capacity, short)?)));
        if self.kinds.len() == 1 {
            return ready().next();
        }
        if short {
            let held = |kind: u32| self.of(kind).held().min(capacity);
            return match self.order {
                Order::Depth => ready().max_by_key(|&(kind, step)| (held(kind), step, Reverse(kind))),
                Order::Breadth => ready().max_by_key(|&(kind, step)| (held(kind), Reverse((step, kind)))),
            };
        }
        let is_full = |kind: u32| self.of(kind).rows() >= capacity;
        let is_complete = |kind: u32| self.of(kind).is_complete();
        let full = || {
            let full = ready().filter(|&(kind, _)| is_full(kind) && (is_complete(kind) || !self.closes(kind)));
            full.max_by_key(|&(kind, step)| (step, Reverse(kind)))
        };
        let complete = || ready().filter(|&(kind, _)| is_complete(kind)).min_by_key(|&(kind, step)| (step, kind));
        let first = match self.order {
            Order::Depth => full().or_else(complete),
            Order::Breadth => complete(),
        };
        first.or_else(|| ready().min_by_key(|&(kind, _)| (!is_full(kind), self.of(kind).smallest(None), kind)))
    }

    /// The kind and step that come first where all lanes of a call are at one step: the smallest breadth first, and
    /// depth first the largest that fills a call, or the smallest if none does.
    ///
    /// All steps before the smallest are done, so everything that remains of the smallest is ready and can run now. In
    /// either order, therefore, every step has at most one call of a kind that is not full, its last, and no program has
    /// fewer calls. Depth first, a step whose lanes fill a call runs before the steps that would add lanes to it. So a
    /// step never has the latents of two calls of a kind waiting, however many prompts there are.
    ///
    /// If slots are short, it is the kind and step of the most lanes where there are several kinds.
    pub fn first_alone(&self, short: bool) -> Option<(u32, u32)> {
        if short && self.kinds.len() > 1 {
            let steps =
                self.numbers().flat_map(|kind| self.of(kind).lanes().map(move |(step, lanes)| (kind, step, lanes)));
            let most = steps.max_by_key(|&(kind, step, lanes)| (lanes.min(self.rows.lanes(step)), step, Reverse(kind)));
            return most.map(|(kind, step, _)| (kind, step));
        }
        let full = match self.order {
            Order::Depth => {
                let full = self.numbers().filter_map(|kind| Some((kind, self.of(kind).full(&self.rows)?)));
                full.max_by_key(|&(kind, step)| (step, Reverse(kind)))
            }
            Order::Breadth => None,
        };
        full.or_else(|| {
            let smallest = self.numbers().filter_map(|kind| Some((kind, self.of(kind).smallest(None)?)));
            smallest.min_by_key(|&(kind, step)| (step, kind))
        })
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        0..self.kinds.len() as u32
    }
}

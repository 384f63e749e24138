//! List scheduling: which node-steps the next call takes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::forest::Forest;
use super::kinds::Kinds;
use super::lane::{Lane, Order};
use super::of_kind::Entry;
use super::ready::{Ready, Turn};
use super::rows::Rows;
use super::slots::{Reading, Request, Slots};
use crate::plan::Plan;

/// How calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub order: Order,
    /// Whether lanes of one call may be at different steps.
    pub mixed_steps: bool,
    /// The most images of a wave; none for all of them. See [`Scheduler::open_wave`].
    pub wave: Option<NonZeroUsize>,
}

/// Makes the calls of a program one by one, in memory linear in the plan's segments.
///
/// Every live value has one entry in `ready`: a running segment has its next step, a finished one has the next child
/// that reads it (children run by ascending need), and all roots together have one. So the entries that wait for a
/// slot, or for a wave, are never more than the slots in use. Children and roots of several kinds have an entry for each
/// group of one kind, and so have roots of several first steps.
#[derive(Debug)]
pub(super) struct Scheduler {
    plan: Arc<Plan>,
    forest: Arc<Forest>,
    rows: Rows,
    kinds: Option<Kinds>,
    rule: Rule,
    ready: Ready,
    /// Segments of lower rank may begin: those of this wave and of the ones before.
    wave_end: u32,
    /// Step and rank of the entries that become ready in a later wave.
    later: Vec<(u32, u32)>,
    slots: Slots,
    /// Whether the current call has tried all waiting entries again, or need not.
    tried_again: bool,
    /// Slot of every segment that has begun.
    slot: Vec<Option<u32>>,
    /// Number of children that have begun.
    begun: Vec<u32>,
    /// Whether a child reads the segment's latent in the current call.
    is_read: Vec<bool>,
    /// The entries that got no slot, by kind and request: only the first of each needs to be tried again.
    waiting: BTreeMap<(u32, Request), BinaryHeap<Reverse<Turn>>>,
}

impl Scheduler {
    /// Before the first call.
    pub fn new(
        plan: Arc<Plan>,
        forest: Arc<Forest>,
        rows: Rows,
        kinds: Option<Kinds>,
        rule: Rule,
        limit: Option<usize>,
    ) -> Self {
        let n = plan.segments().len();
        let mut ready = Ready::new(plan.n_steps(), kinds.as_ref().map_or(1, Kinds::count), rows.clone(), rule.order);
        if let Some(kinds) = &kinds {
            let before = rows.before();
            for (row, segment) in plan.segments().iter().enumerate() {
                let (kind, [first, end]) = (kinds.of(row as u32), [segment.first_step, segment.end_step]);
                let awaited = segment.parent.is_some_and(|parent| kinds.of(parent) != kind);
                ready.of_mut(kind).expect(before[end as usize] - before[first as usize]);
                if awaited {
                    ready.of_mut(kind).wait(first);
                }
            }
        }
        let first_step = |root: u32| plan.segments()[root as usize].first_step;
        let later = forest.groups(forest.roots()).map(|root| (first_step(root), forest.rank(root))).collect();
        Scheduler {
            plan,
            forest,
            rows,
            kinds,
            rule,
            ready,
            wave_end: 0,
            later,
            slots: Slots::new(limit),
            tried_again: false,
            slot: vec![None; n],
            begun: vec![0; n],
            is_read: vec![false; n],
            waiting: BTreeMap::new(),
        }
    }

    /// The lanes of the next call; none if all have run.
    pub fn next_call(&mut self, lanes: &mut Vec<Lane>) {
        lanes.clear();
        self.tried_again = self.kinds.is_none();
        let mut left = self.rows.capacity();
        while left > 0 {
            let Some((step, rank)) = self.pop(lanes.first(), left) else {
                if lanes.is_empty() && self.try_again() {
                    continue;
                }
                if lanes.is_empty() && !self.later.is_empty() {
                    self.open_wave();
                    continue;
                }
                break;
            };
            match self.place(self.forest.with_rank(rank), step) {
                Ok(lane) => {
                    left -= self.rows.at(step);
                    lanes.push(lane);
                }
                Err(request) => {
                    let (turn, kind) = (self.ready.turn(step, rank), self.kind(self.forest.with_rank(rank)));
                    self.waiting.entry((kind, request)).or_default().push(Reverse(turn));
                }
            }
        }
        for lane in lanes.iter() {
            self.follow(lane);
        }
        if self.slots.end_call() {
            let mut waiting = std::mem::take(&mut self.waiting);
            for ((_, request), turns) in &mut waiting {
                // The last lane to read a value needs no new slot if no other lane reads it in the same call.
                let needs_none = request.reading.is_some_and(|reading| reading.after.is_none());
                while let Some(Reverse(turn)) = turns.pop() {
                    self.push(turn.step, turn.rank);
                    if !needs_none {
                        break;
                    }
                }
            }
            waiting.retain(|_, turns| !turns.is_empty());
            self.waiting = waiting;
        }
    }

    /// Makes all entries ready that wait for a slot; once a call.
    ///
    /// Where children of one segment are in several groups, the first of each waits for itself, and what it has to
    /// request changes when a child of another group begins. So a call must not be given up before all have been tried
    /// again.
    fn try_again(&mut self) -> bool {
        if std::mem::replace(&mut self.tried_again, true) || self.waiting.is_empty() {
            return false;
        }
        for Reverse(turn) in std::mem::take(&mut self.waiting).into_values().flatten() {
            self.push(turn.step, turn.rank);
        }
        true
    }

    /// Makes `rank` ready at `step`, now or when its wave is opened.
    fn push(&mut self, step: u32, rank: u32) {
        if rank < self.wave_end {
            self.ready.push(self.entry(step, rank));
        } else {
            self.later.push((step, rank));
        }
    }

    /// Step and rank of what is tried next for a call whose first lane is `first` and that has `left` rows.
    ///
    /// If one row is left, it takes the first lane of one row, although lanes of two rows may come before it.
    fn pop(&mut self, first: Option<&Lane>, left: usize) -> Option<(u32, u32)> {
        let short = !self.waiting.is_empty();
        let (kind, step) = match (first, self.rule.mixed_steps) {
            (None, true) => self.ready.first_kind(short)?,
            (None, false) => self.ready.first_alone(short)?,
            (Some(lane), true) => {
                let kind = self.kind(lane.segment);
                (kind, self.ready.first(kind, left, short)?)
            }
            (Some(lane), false) => {
                (self.kind(lane.segment), Some(lane.step).filter(|&step| self.rows.at(step) <= left)?)
            }
        };
        let rank = self.ready.of(kind).lowest(step)?;
        self.ready.pop(self.entry(step, rank));
        Some((step, rank))
    }

    fn kind(&self, row: u32) -> u32 {
        self.kinds.as_ref().map_or(0, |kinds| kinds.of(row))
    }

    /// The entry of the segment of `rank`, which is ready at `step`.
    fn entry(&self, step: u32, rank: u32) -> Entry {
        let row = self.forest.with_rank(rank);
        let begun = self.slot[row as usize].is_some();
        Entry { kind: self.kind(row), step, rank, lanes: if begun { 1 } else { self.lanes(row) }, begun }
    }

    /// How many lanes of one step the entry of a segment that has not begun leads to: one for it and for each of its
    /// siblings in this wave and group. Not counted if nothing depends on it.
    fn lanes(&self, row: u32) -> usize {
        if self.rule.mixed_steps && self.kinds.is_none() {
            return 1;
        }
        self.forest.group(row).partition_point(|&sibling| self.forest.rank(sibling) < self.wave_end)
    }

    /// Lets the next segments begin, by rank: all those that the images of the next wave need.
    ///
    /// If there are few slots and all lanes of a call have to be at one step, then the running segments must not be
    /// spread over many steps. So a wave has few enough images to run side by side. The next wave is opened when
    /// nothing of the present one can continue: because it is done, or because only a segment of a later wave can
    /// continue without a deadlock.
    fn open_wave(&mut self) {
        let mut images = self.rule.wave.map_or(usize::MAX, NonZeroUsize::get);
        while (self.wave_end as usize) < self.plan.segments().len() {
            if self.forest.children(self.forest.with_rank(self.wave_end)).is_empty() {
                if images == 0 {
                    break;
                }
                images -= 1;
            }
            self.wave_end += 1;
        }
        for (step, rank) in std::mem::take(&mut self.later) {
            self.push(step, rank);
        }
    }

    /// A slot for a request. If there is one, the next entry with the same request is ready too.
    fn take(&mut self, row: u32, request: Request) -> Result<u32, Request> {
        let slot = self.slots.take(request).ok_or(request)?;
        if let Some(Reverse(turn)) = self.waiting.get_mut(&(self.kind(row), request)).and_then(BinaryHeap::pop) {
            self.push(turn.step, turn.rank);
        }
        Ok(slot)
    }

    /// The lane of `row` at `step` in the current call, or the request that it has to wait for.
    fn place(&mut self, row: u32, step: u32) -> Result<Lane, Request> {
        let segment = &self.plan.segments()[row as usize];
        let parent = segment.parent;
        let (source, target, begins) = match self.slot[row as usize] {
            Some(slot) => (slot, slot, false),
            None => {
                let (source, target) = match parent {
                    None => {
                        let slot = self.take(row, Request { extra: self.forest.need(row) - 1, reading: None })?;
                        (slot, slot)
                    }
                    Some(parent) => self.fork(parent, row)?,
                };
                self.slot[row as usize] = Some(target);
                self.offer_sibling(row, parent, step);
                (source, target, true)
            }
        };
        let last = step as usize + 1 == self.plan.n_steps();
        if last {
            self.slots.retire(0);
            self.slots.free(target);
        }
        Ok(Lane { segment: row, step, source, target, fresh: begins && parent.is_none(), begins, last })
    }

    /// Slots that `row` reads and writes at its first step, or the request that it has to wait for.
    fn fork(&mut self, parent: u32, row: u32) -> Result<(u32, u32), Request> {
        // A parent has begun before its children are ready. If it had not, the checker would report the wrong slot.
        let source = self.slot[parent as usize].unwrap_or_default();
        let is_last = self.begun[parent as usize] as usize + 1 == self.forest.children(parent).len();
        if is_last && !self.is_read[parent as usize] {
            // The last child, and no other lane reads the parent in this call: it reuses the parent's slot. The extra
            // of a single child is that of its parent, so the state remains safe.
            return Ok((source, source));
        }
        let is_left = |child: u32| self.slot[child as usize].is_none();
        let before = self.forest.extra(parent, is_left);
        let after = (!is_last).then(|| self.forest.extra(parent, |child| child != row && is_left(child)));
        let target =
            self.take(row, Request { extra: self.forest.need(row) - 1, reading: Some(Reading { before, after }) })?;
        self.is_read[parent as usize] = true;
        if is_last {
            self.slots.free(source);
        }
        Ok((source, target))
    }

    /// Makes the next segment of the group of `row` ready, in this call.
    fn offer_sibling(&mut self, row: u32, parent: Option<u32>, step: u32) {
        if let Some(parent) = parent {
            self.begun[parent as usize] += 1;
        }
        if let Some(&next) = self.forest.group(row).get(1) {
            self.push(step, self.forest.rank(next));
        }
    }

    /// Makes ready, for the next call, what can run after `lane`.
    fn follow(&mut self, lane: &Lane) {
        let segment = &self.plan.segments()[lane.segment as usize];
        if let Some(kinds) = &self.kinds {
            let kind = kinds.of(lane.segment);
            self.ready.of_mut(kind).done(self.rows.at(lane.step));
            if lane.step + 1 == segment.end_step {
                let others = self.forest.children(lane.segment).iter().map(|&child| kinds.of(child));
                others.filter(|&other| other != kind).for_each(|other| self.ready.of_mut(other).arrive(lane.step + 1));
            }
        }
        if let Some(parent) = segment.parent.filter(|_| lane.begins) {
            self.is_read[parent as usize] = false;
        }
        let next = lane.step + 1;
        if next < segment.end_step {
            self.push(next, self.forest.rank(lane.segment));
        } else {
            let mut next_group = 0;
            while let Some(&child) = self.forest.children(lane.segment).get(next_group) {
                next_group += self.forest.group(child).len();
                self.push(next, self.forest.rank(child));
            }
        }
    }
}

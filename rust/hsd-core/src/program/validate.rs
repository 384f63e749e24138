//! Checks that a stream of calls runs a plan, from nothing but the calls: they are simulated one by one, with a note of
//! what each slot holds.

use super::kinds::Kinds;
use super::lane::Lane;
use super::rows::Rows;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// The lanes that read a slot in the current call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readers {
    None,
    One(u32),
    Several,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The segment and step whose latent it holds.
    holds: Option<(u32, u32)>,
    /// In the current call.
    readers: Readers,
    /// In the current call.
    written: bool,
}

#[derive(Debug, Clone, Copy)]
struct State {
    next_step: u32,
    target: Option<u32>,
}

/// Checks calls against a plan, one after the other. It stores the state of segments and slots, but no call.
///
/// - Every call has at least one lane, and no more rows than its capacity; all of one step, unless steps may be mixed;
///   and all of one kind, where segments have kinds.
/// - Every node-step occurs once, after the one before it, in a later call than that.
/// - Every lane reads exactly the latent that it continues: its own of the step before, its parent's last, or, at
///   the start of a root, the slot that it writes itself.
/// - No slot is written twice in a call, or read by one lane and written by another.
/// - A segment has one target for all its steps, and the flags are right.
#[derive(Debug)]
pub struct Checker<'a> {
    plan: &'a Plan,
    rows: &'a Rows,
    kinds: Option<&'a Kinds>,
    mixed_steps: bool,
    /// Number of calls so far.
    call: usize,
    segments: Vec<State>,
    slots: Vec<Slot>,
}

impl<'a> Checker<'a> {
    /// Before the first call.
    pub fn new(plan: &'a Plan, rows: &'a Rows, kinds: Option<&'a Kinds>, mixed_steps: bool) -> Self {
        let begin = |next_step| State { next_step, target: None };
        let segments = plan.segments().iter().map(|segment| begin(segment.first_step)).collect();
        Checker { plan, rows, kinds, mixed_steps, call: 0, segments, slots: Vec::new() }
    }

    /// Checks the next call. After an error the checker cannot be used any more.
    pub fn check(&mut self, lanes: &[Lane]) -> Result<()> {
        // A step that does not exist is found below, with the lane.
        let steps = lanes.iter().map(|lane| lane.step).filter(|&step| (step as usize) < self.plan.n_steps());
        let rows: usize = steps.map(|step| self.rows.at(step)).sum();
        if lanes.is_empty() || rows > self.rows.capacity() {
            let why = format!("call {} has {rows} rows of {}", self.call, self.rows.capacity());
            return Err(Error::BadProgram(why));
        }
        let other_step = lanes.iter().position(|lane| !self.mixed_steps && lane.step != lanes[0].step);
        if let Some(at) = other_step {
            let why = format!("runs step {} in a call of step {}", lanes[at].step, lanes[0].step);
            return Err(Error::BadLane { call: self.call, lane: at, why });
        }
        let kind = |lane: &Lane| {
            self.kinds.filter(|_| (lane.segment as usize) < self.segments.len()).map(|kinds| kinds.of(lane.segment))
        };
        // A segment that does not exist is found below.
        if let Some(at) = lanes.iter().position(|lane| kind(lane) != kind(&lanes[0])) {
            let why = format!("is of kind {:?} in a call of kind {:?}", kind(&lanes[at]), kind(&lanes[0]));
            return Err(Error::BadLane { call: self.call, lane: at, why });
        }
        // All lanes read before any writes.
        self.each(lanes, Checker::read)?;
        self.each(lanes, Checker::write)?;
        for lane in lanes {
            self.slots[lane.source as usize].readers = Readers::None;
            self.slots[lane.target as usize].written = false;
        }
        self.call += 1;
        Ok(())
    }

    /// Checks that nothing is left to do, and returns the number of slots that were used.
    pub fn finish(self) -> Result<usize> {
        let ends = self.plan.segments().iter().map(|segment| segment.end_step);
        match self.segments.iter().zip(ends).position(|(state, end)| state.next_step != end) {
            None => Ok(self.slots.len()),
            Some(row) => {
                let step = self.segments[row].next_step;
                Err(Error::BadProgram(format!("segment {row} stops before step {step}")))
            }
        }
    }

    fn each(&mut self, lanes: &[Lane], check: fn(&mut Self, u32, &Lane) -> Outcome) -> Result<()> {
        // A program takes slot numbers into use in ascending order. That is checked, so that a wrong number cannot make
        // the table huge.
        let most = self.slots.len() + lanes.len();
        for (at, lane) in lanes.iter().enumerate() {
            let slots = lane.source.max(lane.target) as usize + 1;
            let outcome = if slots > most {
                Err(format!("uses slots {} and {}, but {most} are in use at most", lane.source, lane.target))
            } else {
                if slots > self.slots.len() {
                    self.slots.resize(slots, Slot { holds: None, readers: Readers::None, written: false });
                }
                check(self, at as u32, lane)
            };
            outcome.map_err(|why| Error::BadLane { call: self.call, lane: at, why })?;
        }
        Ok(())
    }

    fn read(&mut self, at: u32, lane: &Lane) -> Outcome {
        let (row, source) = (lane.segment as usize, &mut self.slots[lane.source as usize]);
        let Some(segment) = self.plan.segments().get(row) else {
            return Err(format!("runs segment {row}, which is none"));
        };
        let state = &mut self.segments[row];
        if lane.step != state.next_step || lane.step >= segment.end_step {
            return Err(format!("runs step {} of segment {row}, not step {}", lane.step, state.next_step));
        }
        let begins = lane.step == segment.first_step;
        let fresh = begins && segment.parent.is_none();
        let last = lane.step as usize + 1 == self.plan.n_steps();
        if (lane.begins, lane.fresh, lane.last) != (begins, fresh, last) {
            return Err(format!("has wrong flags for step {} of segment {row}", lane.step));
        }
        if fresh {
            if lane.source != lane.target {
                return Err("starts a root, but reads another slot than it writes".to_owned());
            }
        } else {
            let from = if begins { segment.parent.unwrap_or_default() } else { lane.segment };
            let needed = (from, lane.step - 1);
            if source.holds != Some(needed) {
                let (slot, found) = (lane.source, source.holds);
                return Err(format!("needs segment {from} after step {} in slot {slot}: {found:?}", needed.1));
            }
        }
        if *state.target.get_or_insert(lane.target) != lane.target {
            return Err(format!("moves segment {row} to slot {}", lane.target));
        }
        source.readers = match source.readers {
            Readers::None => Readers::One(at),
            Readers::One(_) | Readers::Several => Readers::Several,
        };
        Ok(())
    }

    fn write(&mut self, at: u32, lane: &Lane) -> Outcome {
        let slot = &mut self.slots[lane.target as usize];
        if slot.written {
            return Err(format!("writes slot {}, which another lane writes", lane.target));
        }
        if ![Readers::None, Readers::One(at)].contains(&slot.readers) {
            return Err(format!("writes slot {}, which another lane reads", lane.target));
        }
        slot.written = true;
        slot.holds = Some((lane.segment, lane.step));
        self.segments[lane.segment as usize].next_step += 1;
        Ok(())
    }
}

/// Nothing, or the reason why a lane is wrong.
type Outcome = std::result::Result<(), String>;

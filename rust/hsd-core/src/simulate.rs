//! Proof that a table of calls runs a plan, from the table alone: one tag a slot, call by call.

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::program::{calls, Lane};

/// Checks a program against its plan.
///
/// - Every call has 1 to `batch_size` lanes.
/// - Every node-step occurs once, after the one before it, in a later call than that.
/// - Every lane reads exactly the latent that it continues: its own of the step before, its parent's last, or, at
///   the start of a root, the slot that it writes itself.
/// - No slot is written twice in a call, or read by one lane and written by another.
/// - A segment keeps one target, and the flags say what is the case.
pub fn simulate(plan: &Plan, batch_size: usize, n_slots: usize, lanes: &[Lane], ends: &[usize]) -> Result<()> {
    let segments = plan.segments();
    let n_steps = plan.n_steps() as u32;
    // The segment and step whose latent each slot holds.
    let mut holds: Vec<Option<(u32, u32)>> = vec![None; n_slots];
    let mut next_step: Vec<u32> = segments.iter().map(|segment| segment.first_step).collect();
    let mut target: Vec<Option<u32>> = vec![None; segments.len()];
    // The last call in which a slot was written, and in which it was read with its reader, or several.
    let mut written: Vec<Option<usize>> = vec![None; n_slots];
    let mut read: Vec<Option<(usize, Option<usize>)>> = vec![None; n_slots];
    if ends.last().copied().unwrap_or(0) != lanes.len() || !ends.is_sorted() {
        return Err(Error::BadProgram("its calls do not hold its lanes".to_owned()));
    }
    for (call, lanes) in calls(lanes, ends).enumerate() {
        if lanes.is_empty() || lanes.len() > batch_size {
            return Err(Error::BadProgram(format!("call {call} has {} lanes of {batch_size}", lanes.len())));
        }
        for (at, lane) in lanes.iter().enumerate() {
            let bad = |why: String| Err(Error::BadLane { call, lane: at, why });
            let (row, source) = (lane.segment as usize, lane.source as usize);
            let Some(segment) = segments.get(row) else { return bad(format!("runs segment {row}, which is none")) };
            if source >= n_slots || lane.target as usize >= n_slots {
                return bad(format!("uses slots {source} and {} of {n_slots}", lane.target));
            }
            if lane.step != next_step[row] || lane.step >= segment.end_step {
                return bad(format!("runs step {} of segment {row}, not step {}", lane.step, next_step[row]));
            }
            let begins = lane.step == segment.first_step;
            let fresh = begins && segment.parent.is_none();
            if (lane.begins, lane.fresh, lane.last) != (begins, fresh, lane.step + 1 == n_steps) {
                return bad(format!("has wrong flags for step {} of segment {row}", lane.step));
            }
            if fresh {
                if lane.source != lane.target {
                    return bad("starts a root, but reads another slot than it writes".to_owned());
                }
            } else {
                let from = if begins { segment.parent.unwrap_or_default() } else { lane.segment };
                if holds[source] != Some((from, lane.step - 1)) {
                    let found = holds[source];
                    return bad(format!(
                        "needs segment {from} after step {} in slot {source}: {found:?}",
                        lane.step - 1
                    ));
                }
            }
            if *target[row].get_or_insert(lane.target) != lane.target {
                return bad(format!("moves segment {row} to slot {}", lane.target));
            }
            read[source] = match read[source] {
                Some((then, _)) if then == call => Some((call, None)),
                _ => Some((call, Some(at))),
            };
        }
        for (at, lane) in lanes.iter().enumerate() {
            let bad = |why: String| Err(Error::BadLane { call, lane: at, why });
            let slot = lane.target as usize;
            if written[slot].replace(call) == Some(call) {
                return bad(format!("writes slot {slot}, which another lane writes"));
            }
            if read[slot].is_some_and(|(then, reader)| then == call && reader != Some(at)) {
                return bad(format!("writes slot {slot}, which another lane reads"));
            }
            holds[slot] = Some((lane.segment, lane.step));
            next_step[lane.segment as usize] += 1;
        }
    }
    match segments.iter().zip(&next_step).position(|(segment, &next)| next != segment.end_step) {
        None => Ok(()),
        Some(row) => Err(Error::BadProgram(format!("segment {row} stops before step {}", next_step[row]))),
    }
}

//! The fewest calls that any program can have.

use super::kinds::Kinds;
use super::rows::Rows;
use crate::plan::Plan;

/// No program of `plan` has fewer calls.
///
/// Without kinds, see [`Rows::lower_bound`]. With kinds, a call is of one kind, so the bounds of the kinds are added. In
/// calls of one step, the bound of a kind is that of its node-steps. With mixed steps it is, over its node-steps that
/// come after `d` others of the kind on their way from the root, `max_d (d + ceil(rows of those / capacity))`. And all
/// node-steps that come after `d` of any kind come after d calls, which gives `max_d (d + sum of ceil(rows of those /
/// capacity))`, with the sum over kinds; the larger of the two counts.
///
/// Where all roots begin at step 0, a node-step at step k comes after k others. The roots of a resumed plan begin at any
/// step, and the way is counted from there.
pub fn lower_bound(plan: &Plan, rows: &Rows, kinds: Option<&Kinds>, mixed_steps: bool) -> usize {
    if kinds.is_none() && !(mixed_steps && plan.is_resumed()) {
        return rows.lower_bound(&plan.counts(), mixed_steps);
    }
    let n_steps = plan.n_steps();
    let kind = |row: u32| kinds.map_or(0, |kinds| kinds.of(row));
    let (begins, before) = (begins(plan), before(plan, kind));
    let mut of_kind: Vec<Vec<u32>> = vec![Vec::new(); kinds.map_or(1, Kinds::count)];
    (0..plan.segments().len() as u32).for_each(|row| of_kind[kind(row) as usize].push(row));
    let mut after = vec![0; n_steps + 1];
    let mut sum = 0;
    for members in of_kind {
        let (mut counts, mut by_depth, mut of_kind) =
            (vec![0i64; n_steps], vec![0usize; n_steps], vec![0usize; n_steps]);
        for row in members.into_iter().map(|row| row as usize) {
            let segment = &plan.segments()[row];
            for step in segment.first_step..segment.end_step {
                counts[step as usize] += 1;
                by_depth[(step - begins[row]) as usize] += rows.at(step);
                of_kind[(before[row] + step - segment.first_step) as usize] += rows.at(step);
            }
        }
        if !mixed_steps {
            sum += rows.lower_bound(&counts, false);
            continue;
        }
        let (mut remaining, mut most) = (0, 0);
        for depth in (0..n_steps).rev().filter(|&depth| of_kind[depth] > 0) {
            remaining += of_kind[depth];
            most = most.max(depth + remaining.div_ceil(rows.capacity()));
        }
        sum += most;
        let mut remaining = 0;
        for depth in (0..n_steps).rev() {
            remaining += by_depth[depth];
            after[depth] += remaining.div_ceil(rows.capacity());
        }
    }
    // Nothing may be left at the largest depths.
    let depths = (0..n_steps).filter(|&depth| after[depth] > 0);
    depths.map(|depth| depth + after[depth]).max().filter(|_| mixed_steps).map_or(sum, |most| most.max(sum))
}

/// For each segment, the first step of its root.
fn begins(plan: &Plan) -> Vec<u32> {
    let mut begins: Vec<u32> = Vec::with_capacity(plan.segments().len());
    for segment in plan.segments() {
        begins.push(segment.parent.map_or(segment.first_step, |parent| begins[parent as usize]));
    }
    begins
}

/// For each segment, the number of node-steps of its kind before it on the way from its root.
fn before(plan: &Plan, kind: impl Fn(u32) -> u32) -> Vec<u32> {
    let segments = plan.segments();
    let mut before = vec![0; segments.len()];
    for (row, segment) in segments.iter().enumerate() {
        let mut above = segment.parent;
        while let Some(parent) = above {
            let ancestor = &segments[parent as usize];
            if kind(parent) == kind(row as u32) {
                before[row] = before[parent as usize] + ancestor.end_step - ancestor.first_step;
                break;
            }
            above = ancestor.parent;
        }
    }
    before
}

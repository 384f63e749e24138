//! The fewest calls that any program can have.

use super::kinds::Kinds;
use super::rows::Rows;
use crate::plan::Plan;

/// No program of `plan` has fewer calls.
///
/// Without kinds, see [`Rows::lower_bound`]. With kinds, a call is of one kind, so the bounds of the kinds are added. In
/// calls of one step, the bound of a kind is that of its node-steps. With mixed steps it is, over its node-steps that
/// come after `d` others of the kind on their way from the root, `max_d (d + ceil(rows of those / capacity))`. And all
/// node-steps at steps >= k come after k calls of any kind, which gives `max_k (k + sum of ceil(rows at steps >= k /
/// capacity))`, with the sum over kinds; the larger of the two counts.
pub fn lower_bound(plan: &Plan, rows: &Rows, kinds: Option<&Kinds>, mixed_steps: bool) -> usize {
    let Some(kinds) = kinds else { return rows.lower_bound(&plan.counts(), mixed_steps) };
    let before = before(plan, kinds);
    let n_steps = plan.n_steps();
    let mut of_kind: Vec<Vec<u32>> = vec![Vec::new(); kinds.count()];
    (0..plan.segments().len() as u32).for_each(|row| of_kind[kinds.of(row) as usize].push(row));
    let mut after = vec![0; n_steps + 1];
    let mut sum = 0;
    for members in of_kind {
        let (mut counts, mut by_depth) = (vec![0i64; n_steps], vec![0usize; n_steps]);
        for row in members {
            let segment = &plan.segments()[row as usize];
            for step in segment.first_step..segment.end_step {
                counts[step as usize] += 1;
                by_depth[(before[row as usize] + step - segment.first_step) as usize] += rows.at(step);
            }
        }
        if !mixed_steps {
            sum += rows.lower_bound(&counts, false);
            continue;
        }
        let (mut remaining, mut most) = (0, 0);
        for depth in (0..n_steps).rev().filter(|&depth| by_depth[depth] > 0) {
            remaining += by_depth[depth];
            most = most.max(depth + remaining.div_ceil(rows.capacity()));
        }
        sum += most;
        let mut remaining = 0;
        for step in (0..n_steps as u32).rev() {
            remaining += counts[step as usize] as usize * rows.at(step);
            after[step as usize] += remaining.div_ceil(rows.capacity());
        }
    }
    (0..n_steps).map(|step| step + after[step]).max().filter(|_| mixed_steps).map_or(sum, |most| most.max(sum))
}

/// For each segment, the number of node-steps of its kind before it on the way from its root.
fn before(plan: &Plan, kinds: &Kinds) -> Vec<u32> {
    let segments = plan.segments();
    let mut before = vec![0; segments.len()];
    for (row, segment) in segments.iter().enumerate() {
        let mut above = segment.parent;
        while let Some(parent) = above {
            let ancestor = &segments[parent as usize];
            if kinds.of(parent) == kinds.of(row as u32) {
                before[row] = before[parent as usize] + ancestor.end_step - ancestor.first_step;
                break;
            }
            above = ancestor.parent;
        }
    }
    before
}

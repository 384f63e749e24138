//! Proof that a list of segments is a plan, from the list alone.

use crate::error::{Error, Result};
use crate::plan::Segment;

/// How far a segment's (or the whole set's) kept leaves are covered by children met so far.
struct Cover {
    /// End of the last child.
    cursor: u32,
    /// End of the range to cover.
    end: u32,
}

/// Checks that every kept prompt has exactly one path of segments from step 0 to the last step.
///
/// - Rows stand in ascending order of (first step, leaf range), parents before children.
/// - A segment begins at step 0 without a parent, or where its parent ends and inside its parent's range.
/// - The children of one parent, and the segments of step 0, are disjoint and cover every kept leaf.
/// - A segment that runs to the last step is a single leaf; every other one has children.
/// - Every segment has a kept leaf, and its representative is its lowest prompt.
pub fn validate(leaf_order: &[u32], n_steps: usize, kept: &[u32], segments: &[Segment]) -> Result<()> {
    let n = leaf_order.len();
    let kept_before = count_kept(leaf_order, kept)?;
    let kept_in = |begin: u32, end: u32| kept_before[end as usize] - kept_before[begin as usize];
    let mut whole = Cover { cursor: 0, end: n as u32 };
    let mut covers: Vec<Cover> = Vec::with_capacity(segments.len());
    for (row, segment) in segments.iter().enumerate() {
        let bad = |why: String| Err(Error::BadSegment { segment: row, why });
        let &Segment { parent, first_step, end_step, leaf_begin, leaf_end, representative } = segment;
        if first_step >= end_step || end_step as usize > n_steps {
            return bad(format!("runs over steps {first_step}..{end_step} of {n_steps}"));
        }
        if leaf_begin >= leaf_end || leaf_end as usize > n {
            return bad(format!("has leaf range {leaf_begin}..{leaf_end} of {n}"));
        }
        if kept_in(leaf_begin, leaf_end) == 0 {
            return bad("has no kept prompt".to_owned());
        }
        if leaf_order[leaf_begin as usize] != representative {
            return bad(format!("has representative {representative}, which is not the first of its range"));
        }
        if row > 0 {
            let before = &segments[row - 1];
            if (before.first_step, before.leaf_begin) >= (first_step, leaf_begin) {
                return bad("is out of order: rows ascend by first step, then by leaf range".to_owned());
            }
        }
        let cover = match parent {
            None if first_step > 0 => return bad(format!("has no parent, but begins at step {first_step}")),
            None => &mut whole,
            Some(parent) => {
                let Some(above) = segments[..row].get(parent as usize) else {
                    return bad(format!("has parent {parent}, which does not come before it"));
                };
                if above.end_step != first_step {
                    let end = above.end_step;
                    return bad(format!("begins at step {first_step}, but its parent {parent} ends at {end}"));
                }
                if leaf_begin < above.leaf_begin || leaf_end > above.leaf_end {
                    return bad(format!("reaches outside the range of its parent {parent}"));
                }
                if representative < above.representative {
                    let theirs = above.representative;
                    return bad(format!("holds prompt {representative}, below its parent's representative {theirs}"));
                }
                &mut covers[parent as usize]
            }
        };
        if leaf_begin < cover.cursor {
            return bad("shares prompts with a sibling".to_owned());
        }
        if kept_in(cover.cursor, leaf_begin) > 0 {
            return bad(format!("leaves a gap before it: kept prompts at {}..{leaf_begin}", cover.cursor));
        }
        cover.cursor = leaf_end;
        let is_last = end_step as usize == n_steps;
        if is_last && leaf_end - leaf_begin != 1 {
            return bad(format!("runs to the last step with {} prompts", leaf_end - leaf_begin));
        }
        covers.push(Cover { cursor: if is_last { leaf_end } else { leaf_begin }, end: leaf_end });
    }
    // What its children left uncovered; a segment that ends early and has none leaves everything.
    for (row, cover) in covers.iter().enumerate() {
        if kept_in(cover.cursor, cover.end) > 0 {
            let why = format!("ends with no segment for its kept prompts at {}..{}", cover.cursor, cover.end);
            return Err(Error::BadSegment { segment: row, why });
        }
    }
    if kept_in(whole.cursor, whole.end) > 0 {
        return Err(Error::BadPlan(format!("kept prompts at {}..{n} of the leaf order never begin", whole.cursor)));
    }
    Ok(())
}

/// Number of kept leaves before each place of the leaf order. Checks that `kept` ascends and exists.
fn count_kept(leaf_order: &[u32], kept: &[u32]) -> Result<Vec<u32>> {
    let mut is_kept = vec![false; leaf_order.len()];
    if kept.is_empty() {
        return Err(Error::BadPlan("it keeps no prompt".to_owned()));
    }
    for (i, &prompt) in kept.iter().enumerate() {
        if i > 0 && kept[i - 1] >= prompt {
            return Err(Error::BadPlan(format!("kept prompts do not ascend: {} before {prompt}", kept[i - 1])));
        }
        match is_kept.get_mut(prompt as usize) {
            Some(flag) => *flag = true,
            None => return Err(Error::BadPlan(format!("kept prompt {prompt} is out of range"))),
        }
    }
    let mut before = Vec::with_capacity(leaf_order.len() + 1);
    let mut count = 0;
    before.push(0);
    for &leaf in leaf_order {
        count += u32::from(is_kept[leaf as usize]);
        before.push(count);
    }
    Ok(before)
}

//! Checks that a list of segments is a plan, from nothing but the list.

use super::kept::KeptPlaces;
use super::segment::Segment;
use crate::error::{Error, Result};
use crate::tree::Tree;

/// How far a segment's (or the whole set's) kept leaves are covered by the children seen so far.
struct Cover {
    /// End of the last child.
    cursor: u32,
    /// End of the range to cover.
    end: u32,
}

/// Checks that every kept prompt has exactly one path of segments from step 0 to the last step.
///
/// - Rows are in ascending order of (first step, leaf range), parents before children.
/// - A segment begins at step 0 without a parent, or where its parent ends and inside its parent's range.
/// - The children of one parent, and the segments of step 0, are disjoint and cover every kept leaf.
/// - A segment that runs to the last step is a single leaf; every other one has children.
/// - Every segment has a kept leaf, and its representative is its lowest prompt.
pub fn validate(tree: &Tree, n_steps: usize, kept: &[u32], segments: &[Segment]) -> Result<()> {
    let (n, leaf_order) = (tree.n_leaves(), tree.leaf_order());
    check_kept(n, kept)?;
    let places = KeptPlaces::new(tree, kept);
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
        if places.within(leaf_begin, leaf_end) == 0 {
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
        if places.within(cover.cursor, leaf_begin) > 0 {
            return bad(format!("leaves a gap before it: kept prompts at {}..{leaf_begin}", cover.cursor));
        }
        cover.cursor = leaf_end;
        let is_last = end_step as usize == n_steps;
        if is_last && leaf_end - leaf_begin != 1 {
            return bad(format!("runs to the last step with {} prompts", leaf_end - leaf_begin));
        }
        covers.push(Cover { cursor: if is_last { leaf_end } else { leaf_begin }, end: leaf_end });
    }
    // Kept leaves that no child covers: all of them, if a segment ends early and has no children.
    for (row, cover) in covers.iter().enumerate() {
        if places.within(cover.cursor, cover.end) > 0 {
            let why = format!("ends with no segment for its kept prompts at {}..{}", cover.cursor, cover.end);
            return Err(Error::BadSegment { segment: row, why });
        }
    }
    if places.within(whole.cursor, whole.end) > 0 {
        return Err(Error::BadPlan(format!("kept prompts at {}..{n} of the leaf order never begin", whole.cursor)));
    }
    Ok(())
}

/// Checks that `kept` ascends and exists.
fn check_kept(n: usize, kept: &[u32]) -> Result<()> {
    let Some(&last) = kept.last() else { return Err(Error::BadPlan("it keeps no prompt".to_owned())) };
    if let Some(pair) = kept.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::BadPlan(format!("kept prompts do not ascend: {} before {}", pair[0], pair[1])));
    }
    if last as usize >= n {
        return Err(Error::BadPlan(format!("kept prompt {last} is out of range")));
    }
    Ok(())
}

//! Checks that a list of segments is a plan, from nothing but the list.

use super::kept::KeptPlaces;
use super::order::sort_stably;
use super::schedule::first_split;
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

/// Checks that every kept prompt has exactly one path of segments from step 0 to the last step; or, in a resumed plan,
/// what is left of it where some segments are given.
///
/// - Rows are in ascending order of (first step, leaf range), parents before children.
/// - A segment begins at step 0 without a parent, or where its parent ends and inside its parent's range. Without a parent
///   it begins at a later step only where the tree is split above it at that step, and no segment ends there: then the
///   one that does is given.
/// - The children of one parent, and the segments of step 0, are disjoint and cover every kept leaf; but for leaves whose
///   next segment begins later without a parent.
/// - A segment that runs to the last step is a single leaf; every other one has children.
/// - Every segment has a kept leaf, and its representative is its lowest prompt.
pub fn validate(tree: &Tree, phi: &[f64], kept: &[u32], segments: &[Segment]) -> Result<()> {
    let (n, n_steps, leaf_order) = (tree.n_leaves(), phi.len(), tree.leaf_order());
    let is_resumed = segments.iter().any(Segment::begins_late);
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
            None if first_step > 0 => {
                if split_above(tree, phi, segment) != Some(first_step) {
                    return bad(format!("has no parent, but begins at step {first_step}, where nothing is split"));
                }
                // It lies in a gap, whose end it is not.
                &mut Cover { cursor: leaf_begin, end: leaf_end }
            }
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
        if !is_resumed && places.within(cover.cursor, leaf_begin) > 0 {
            return bad(format!("leaves a gap before it: kept prompts at {}..{leaf_begin}", cover.cursor));
        }
        cover.cursor = leaf_end;
        let is_last = end_step as usize == n_steps;
        if is_last && leaf_end - leaf_begin != 1 {
            return bad(format!("runs to the last step with {} prompts", leaf_end - leaf_begin));
        }
        covers.push(Cover { cursor: if is_last { leaf_end } else { leaf_begin }, end: leaf_end });
    }
    if is_resumed {
        return check_paths(n, kept, segments, n_steps);
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

/// The first step at which the parent of a segment's node is split; none if there is no such node.
fn split_above(tree: &Tree, phi: &[f64], segment: &Segment) -> Option<u32> {
    let range = (segment.leaf_begin, segment.leaf_end);
    let mut node = segment.representative as usize;
    while tree.range(node) != range {
        node = tree.parent(node).filter(|&parent| tree.range(parent).1 <= range.1)?;
    }
    Some(tree.parent(node).and_then(|parent| tree.height(parent)).map_or(0, |height| first_split(phi, height)))
}

/// Checks the path of every kept leaf, where some segments may be missing before a segment without a parent.
///
/// The segments are one inside the other or disjoint, so one pass over them by place finds for each the last one before it
/// on the paths of its leaves.
fn check_paths(n: usize, kept: &[u32], segments: &[Segment], n_steps: usize) -> Result<()> {
    let rows = (0..segments.len() as u32).collect();
    let mut path: Vec<u32> = Vec::new();
    let mut has_next = vec![false; segments.len()];
    for row in sort_stably(rows, n, |row| segments[row as usize].leaf_begin) {
        let bad = |why: String| Err(Error::BadSegment { segment: row as usize, why });
        let segment = &segments[row as usize];
        while path.last().is_some_and(|&last| segments[last as usize].leaf_end <= segment.leaf_begin) {
            path.pop();
        }
        if let Some(&above) = path.last() {
            let before = &segments[above as usize];
            if before.end_step > segment.first_step || before.leaf_end < segment.leaf_end {
                return bad(format!("shares prompts and steps with segment {above}"));
            }
            if (before.end_step == segment.first_step) != (segment.parent == Some(above)) {
                return bad(format!("does not fork from segment {above}, which ends at step {}", before.end_step));
            }
            has_next[above as usize] |= segment.parent == Some(above);
        }
        path.push(row);
    }
    let is_last = |segment: &Segment| segment.end_step as usize == n_steps;
    if let Some(row) = (0..segments.len()).find(|&row| !is_last(&segments[row]) && !has_next[row]) {
        return Err(Error::BadSegment { segment: row, why: "ends, but no segment forks from it".to_owned() });
    }
    let ends = segments.iter().filter(|segment| is_last(segment)).count();
    if ends != kept.len() {
        return Err(Error::BadPlan(format!("{ends} of {} kept prompts reach the last step", kept.len())));
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

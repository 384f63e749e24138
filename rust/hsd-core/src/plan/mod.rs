//! The plan: which cluster runs at which steps. Independent of hardware.
//!
//! Together with its executor it is Algorithm 1 of arXiv 2508.21032: at every step the active clusters are those of the
//! tree cut at that step's threshold, and each of them is one latent.

pub mod file;
pub mod schedule;
pub mod segment;
pub mod validate;

mod container;
mod cuts;
mod digest;
mod fingerprint;
mod kept;
mod order;
mod prune;
mod request;
mod resume;
mod shard;
mod units;

use std::sync::Arc;

use self::order::sort_stably;
use self::schedule::first_split;
use self::segment::Segment;
use self::validate::validate;
use crate::error::{index_count, Error, Result};
use crate::tree::Tree;

/// Which cluster runs when, for some or all prompts of a tree. Sound by construction, and checked as well.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    tree: Arc<Tree>,
    phi: Arc<[f64]>,
    kept: Vec<u32>,
    segments: Vec<Segment>,
}

impl Plan {
    /// Cuts `tree` at thresholds `phi`, one a step: at step k the clusters are the maximal nodes lower than `phi[k]`.
    pub fn compile(tree: Arc<Tree>, phi: &[f64]) -> Result<Self> {
        schedule::check(phi)?;
        let segments = cut(&tree, phi);
        let kept = (0..tree.n_leaves() as u32).collect();
        Plan::new(tree, phi.into(), kept, segments)
    }

    /// The only constructor: [`validate`] has passed every plan that exists.
    pub(crate) fn new(tree: Arc<Tree>, phi: Arc<[f64]>, kept: Vec<u32>, segments: Vec<Segment>) -> Result<Self> {
        index_count("segments", segments.len())?;
        validate(&tree, &phi, &kept, &segments)?;
        Ok(Plan { tree, phi, kept, segments })
    }

    /// The tree that it cuts.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// The thresholds.
    pub fn phi(&self) -> &Arc<[f64]> {
        &self.phi
    }

    /// Number of prompts of the whole tree, kept or not.
    pub fn n_prompts(&self) -> usize {
        self.tree.n_leaves()
    }

    /// Number of steps.
    pub fn n_steps(&self) -> usize {
        self.phi.len()
    }

    /// The prompts that it makes, ascending.
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// The segments, parents before children, by first step and then by place in the leaf order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether some segments begin after step 0 without a parent: at states that are not part of the plan.
    pub fn is_resumed(&self) -> bool {
        self.segments.iter().any(Segment::begins_late)
    }

    /// Evaluations of the denoiser on one latent.
    pub fn node_steps(&self) -> usize {
        self.segments.iter().map(Segment::steps).sum()
    }

    /// Number of active segments at each step.
    pub fn counts(&self) -> Vec<i64> {
        let mut change = vec![0i64; self.n_steps() + 1];
        for segment in &self.segments {
            change[segment.first_step as usize] += 1;
            change[segment.end_step as usize] -= 1;
        }
        change.pop();
        let mut active = 0;
        for count in &mut change {
            active += *count;
            *count = active;
        }
        change
    }

    /// Row of the segment that each prompt is in at `step`; none for a prompt that is not kept, and in a resumed plan for
    /// one of which nothing is left to run at that step.
    pub fn active(&self, step: i64) -> Result<Vec<Option<u32>>> {
        let last = self.n_steps() - 1;
        let Some(step) = u32::try_from(step).ok().filter(|&step| step as usize <= last) else {
            return Err(Error::NoSuchStep { step, last });
        };
        let mut kept = vec![false; self.n_prompts()];
        self.kept.iter().for_each(|&prompt| kept[prompt as usize] = true);
        let mut rows = vec![None; self.n_prompts()];
        for (row, segment) in self.segments.iter().enumerate() {
            if (segment.first_step..segment.end_step).contains(&step) {
                for &prompt in &self.tree.leaf_order()[segment.leaves()] {
                    rows[prompt as usize] = kept[prompt as usize].then_some(row as u32);
                }
            }
        }
        Ok(rows)
    }
}

/// The segments of a tree under thresholds: which clusters are active at which steps (Eq. 6 of arXiv 2508.21032, with
/// heights in place of scores).
///
/// A node is active from the first step at which its parent is split to the first at which it is split itself, so
/// two binary searches for each node replace a walk over nodes and steps.
fn cut(tree: &Tree, phi: &[f64]) -> Vec<Segment> {
    let first_split = |height: f64| first_split(phi, height);
    let mut segments = Vec::new();
    // For each node, its own segment, or else that of its nearest ancestor that has one.
    let mut segment_of: Vec<Option<u32>> = vec![None; tree.n_nodes()];
    for node in (0..tree.n_nodes()).rev() {
        let parent = tree.parent(node);
        let first_step = parent.and_then(|parent| tree.height(parent)).map_or(0, first_split);
        let end_step = tree.height(node).map_or(phi.len() as u32, first_split);
        let above = parent.and_then(|parent| segment_of[parent]);
        segment_of[node] = above;
        if first_step < end_step {
            let (leaf_begin, leaf_end) = tree.range(node);
            let representative = tree.leaf_order()[leaf_begin as usize];
            segment_of[node] = Some(segments.len() as u32);
            segments.push(Segment { parent: above, first_step, end_step, leaf_begin, leaf_end, representative });
        }
    }
    sort(segments, tree.n_leaves(), phi.len())
}

/// By first step, then by place; renumbers the parents.
fn sort(segments: Vec<Segment>, n_places: usize, n_steps: usize) -> Vec<Segment> {
    let rows = (0..segments.len() as u32).collect();
    let rows = sort_stably(rows, n_places, |row| segments[row as usize].leaf_begin);
    let rows = sort_stably(rows, n_steps, |row| segments[row as usize].first_step);
    let mut new_row = vec![0u32; segments.len()];
    for (row, &old) in rows.iter().enumerate() {
        new_row[old as usize] = row as u32;
    }
    let renumber = |&old: &u32| {
        let segment = segments[old as usize];
        Segment { parent: segment.parent.map(|parent| new_row[parent as usize]), ..segment }
    };
    rows.iter().map(renumber).collect()
}

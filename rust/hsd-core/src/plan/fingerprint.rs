//! What a plan's images depend on, as one digest.
//!
//! Scores and thresholds are not part of it, only what follows from them: which prompts share which steps. A processor
//! with other vector instructions rounds the last bit of a distance differently, and that must not make another plan.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::digest::{check_lengths, digest_prompts, hex};
use super::segment::Segment;
use super::Plan;
use crate::error::Result;

/// Digest of the prompts and their seeds, of the clusters of every step, and of `extra`, whatever else the images depend
/// on. It is the same for a plan and for all plans pruned or resumed from it.
///
/// Each segment counts with its first and last step, its lowest prompt, and the same of its parent. Two segments that
/// begin at one step have no prompt in common, so that first step and lowest prompt name a segment. A whole plan has a
/// last segment for every prompt alone. So this says which prompts are in which cluster, without listing any cluster,
/// and does not depend on the order in which the tree holds them.
pub fn fingerprint<S: AsRef<str>>(plan: &Plan, prompts: &[S], seeds: &[i64], extra: &str) -> Result<String> {
    check_lengths(plan, prompts, seeds)?;
    let whole = match plan.kept().len() == plan.n_prompts() && !plan.is_resumed() {
        true => Cow::Borrowed(plan),
        false => Cow::Owned(Plan::compile(plan.tree().clone(), plan.phi())?),
    };
    let segments = whole.segments();
    let name = |segment: &Segment| (segment.first_step, segment.representative);
    let mut order: Vec<&Segment> = segments.iter().collect();
    order.sort_unstable_by_key(|segment| name(segment));
    let mut hash = Sha256::new();
    hash.update(b"clusters of steps, 1");
    hash.update((plan.n_steps() as u64).to_le_bytes());
    hash.update((segments.len() as u64).to_le_bytes());
    for segment in order {
        // A segment of step 0 has no parent: its own name stands there, which no parent can have.
        let (step, prompt) = name(segment.parent.map_or(segment, |parent| &segments[parent as usize]));
        for number in [segment.first_step, segment.end_step, segment.representative, step, prompt] {
            hash.update(number.to_le_bytes());
        }
    }
    hash.update(digest_prompts(prompts, seeds));
    hash.update(extra);
    Ok(hex(hash))
}

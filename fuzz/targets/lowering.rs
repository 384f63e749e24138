//! Trees from any merges, thresholds from any numbers, and programs with any parameters.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use hsd_core::Plan;
use hsd_fuzz::{lower, tree, use_plan};

#[derive(Arbitrary, Debug)]
struct Lowering {
    /// Which two of the clusters that are left to join: always a tree.
    picks: Vec<(u8, u8)>,
    /// Else: any merges.
    merges: Option<Vec<[i64; 2]>>,
    scores: Vec<f64>,
    phi: Vec<f64>,
    sort: bool,
    keep: Vec<i64>,
    shards: i64,
    batch: i64,
    small_batch: bool,
    depth: bool,
    slots: Option<i8>,
    mixed: bool,
    rows: Option<Vec<bool>>,
    any_rows: Option<Vec<i64>>,
}

libfuzzer_sys::fuzz_target!(|given: Lowering| {
    let n = given.picks.len() + 1;
    let mut left: Vec<i64> = (0..n as i64).collect();
    let mut merges = Vec::with_capacity(n);
    for (merge, &(a, b)) in given.picks.iter().enumerate() {
        let a = left.swap_remove(a as usize % left.len());
        let b = left.swap_remove(b as usize % left.len());
        left.push((n + merge) as i64);
        merges.push([a, b]);
    }
    let merges = given.merges.unwrap_or(merges);
    let mut scores = given.scores;
    if given.sort {
        scores.resize(merges.len(), 0.5);
        scores.iter_mut().for_each(|score| *score = if score.is_nan() { 0.0 } else { score.abs() });
    }
    let mut phi = given.phi;
    if given.sort {
        phi.iter_mut().for_each(|value| *value = if value.is_finite() { value.abs() } else { 1.0 });
        phi.sort_by(|a, b| b.total_cmp(a));
        phi.push(0.0);
    }
    let Ok(plan) = tree(&merges, scores).and_then(|tree| Plan::compile(tree, &phi)) else { return };
    let plan = match plan.prune(&given.keep) {
        Ok(part) => Arc::new(part),
        Err(_) => Arc::new(plan),
    };
    use_plan(&plan, given.shards.saturating_abs().max(1), given.picks.len());
    let batch = if given.small_batch { given.batch.rem_euclid(9) + 1 } else { given.batch };
    let rows = given.rows.map(|rows| {
        let mut rows: Vec<i64> = rows.into_iter().map(|guided| 1 + i64::from(guided)).collect();
        rows.resize(plan.n_steps(), 1);
        rows
    });
    let rows = given.any_rows.or(rows);
    lower(&plan, batch, given.depth, given.slots.map(i64::from), given.mixed, rows.as_deref());
});

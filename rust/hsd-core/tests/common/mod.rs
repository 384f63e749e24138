//! Trees, thresholds and embeddings of every shape, for the property tests.
#![allow(dead_code)] // Every test file uses its own part of this.

use std::sync::Arc;

use hsd_core::{Embeddings, Linkage, Method, Metric, Plan, Progress, Resources, Result, Segment, Tree};
use ndarray::Array2;
use proptest::prelude::*;

/// All memory, and two threads.
pub const PLENTY: Resources = Resources { threads: 2, memory: usize::MAX };

/// A linkage and a metric that it has a form for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub linkage: Linkage,
    pub metric: Metric,
}

impl From<Linkage> for Kind {
    fn from(linkage: Linkage) -> Self {
        Kind { linkage, metric: Metric::Cosine }
    }
}

/// All that there are.
pub fn kinds() -> impl Iterator<Item = Kind> {
    let kind = |metric| move |linkage| Kind { linkage, metric };
    let with_euclidean = Linkage::ALL.into_iter().filter(|&linkage| linkage != Linkage::Centroid);
    Linkage::ALL.into_iter().map(kind(Metric::Cosine)).chain(with_euclidean.map(kind(Metric::Euclidean)))
}

/// Any of them.
pub fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(kinds().collect::<Vec<_>>())
}

/// Clusters rows exactly, with two threads and without a progress report.
pub fn build(rows: &[Vec<f64>], kind: impl Into<Kind>) -> Result<Tree> {
    build_with(rows, kind, Method::Exact, PLENTY)
}

/// Clusters rows without a progress report.
pub fn build_with(rows: &[Vec<f64>], kind: impl Into<Kind>, method: Method, resources: Resources) -> Result<Tree> {
    let (table, Kind { linkage, metric }) = (table(rows), kind.into());
    let embeddings = Embeddings::new(table.view(), |x| x, metric, resources.threads, &mut Progress::unwatched())?;
    hsd_core::cluster::build_tree(&embeddings, linkage, method, resources, &mut Progress::unwatched())
}

/// Rows as one array.
pub fn table(rows: &[Vec<f64>]) -> Array2<f64> {
    let columns = rows.first().map_or(0, Vec::len);
    Array2::from_shape_vec((rows.len(), columns), rows.concat()).unwrap()
}

/// Numbers in -1..1 that are the same at every run (SplitMix64).
pub fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Rows scattered about `groups` centres, one after the other, `scatter` wide. Row `i` belongs to group `i % groups`.
pub fn grouped(n: usize, columns: usize, groups: usize, scatter: f64) -> Vec<Vec<f64>> {
    let mut draw = numbers((n * 31 + columns) as u64);
    let centres: Vec<Vec<f64>> = (0..groups).map(|_| (0..columns).map(|_| draw()).collect()).collect();
    (0..n).map(|i| centres[i % groups].iter().map(|x| x + scatter * draw()).collect()).collect()
}

/// Rows in general position.
pub fn rows(most: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
    (1..=most, 2..6usize)
        .prop_flat_map(|(n, d)| prop::collection::vec(prop::collection::vec(-1.0..1.0, d), n))
        .prop_filter("a row of zeros has no direction", |rows: &Vec<Vec<f64>>| {
            rows.iter().all(|row| row.iter().map(|x| x * x).sum::<f64>() > 1e-6)
        })
}

/// Rows with many ties, duplicates and opposites.
pub fn tied_rows(most: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
    (1..=most, 1..4usize)
        .prop_flat_map(|(n, d)| prop::collection::vec(prop::collection::vec((-2..3i32).prop_map(f64::from), d), n))
        .prop_map(|mut rows| {
            for row in &mut rows {
                if row.iter().all(|&x| x == 0.0) {
                    row[0] = 1.0;
                }
            }
            rows
        })
}

/// How a random tree picks its next two clusters.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Random,
    Chain,
    Balanced,
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![Just(Shape::Random), Just(Shape::Chain), Just(Shape::Balanced)]
}

/// Scores that rise, fall, repeat, are zero, or are all the same (a star).
fn scores(n: usize) -> impl Strategy<Value = Vec<f64>> {
    let score = prop_oneof![0.0..2.0f64, (0..5i32).prop_map(|x| f64::from(x) / 4.0)];
    prop_oneof![
        prop::collection::vec(score.clone(), n),
        prop::collection::vec(score, n).prop_map(|mut scores| {
            scores.sort_by(f64::total_cmp);
            scores
        }),
        (0..3i32).prop_map(move |x| vec![f64::from(x) / 2.0; n]),
    ]
}

/// One tree, without infinite scores.
fn plain_tree(most: usize) -> impl Strategy<Value = Tree> {
    (1..=most, shape())
        .prop_flat_map(|(n, shape)| {
            let picks = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), n - 1);
            (Just(n), Just(shape), picks, scores(n - 1), Just((0..n as i64).collect::<Vec<_>>()).prop_shuffle())
        })
        .prop_map(|(n, shape, picks, scores, leaves)| {
            let mut open: Vec<i64> = leaves;
            let mut merges = Vec::new();
            for (merge, (x, y)) in picks.into_iter().enumerate() {
                let (a, b) = match shape {
                    Shape::Random => {
                        let a = open.swap_remove(x.index(open.len()));
                        (a, open.swap_remove(y.index(open.len())))
                    }
                    Shape::Chain => (open.pop().unwrap(), open.pop().unwrap()),
                    Shape::Balanced => (open.remove(0), open.remove(0)),
                };
                merges.push([a, b]);
                open.push((n + merge) as i64);
            }
            Tree::from_merges(&merges, scores, "ward").unwrap()
        })
}

/// A tree, or several joined by merges of infinite score.
pub fn tree(most: usize) -> impl Strategy<Value = Tree> {
    let forest = prop::collection::vec(plain_tree(most / 2 + 1), 1..4)
        .prop_flat_map(|trees| {
            let n = trees.iter().map(Tree::n_leaves).sum::<usize>();
            (Just(trees), Just((0..n as i64).collect::<Vec<_>>()).prop_shuffle())
        })
        .prop_map(|(trees, leaves)| {
            let mut rest = leaves.as_slice();
            let mut parts = Vec::new();
            for tree in &trees {
                let (part, tail) = rest.split_at(tree.n_leaves());
                parts.push(part);
                rest = tail;
            }
            Tree::join(&trees.iter().collect::<Vec<_>>(), &parts).unwrap()
        });
    prop_oneof![3 => plain_tree(most), 1 => forest]
}

/// Thresholds that never rise and end at 0.
pub fn phi() -> impl Strategy<Value = Vec<f64>> {
    let value = prop_oneof![0.0..2.5f64, (0..6i32).prop_map(|x| f64::from(x) / 4.0)];
    prop::collection::vec(value, 0..12).prop_map(|mut phi| {
        phi.sort_by(|x, y| y.total_cmp(x));
        phi.push(0.0);
        phi
    })
}

/// A plan of all its prompts.
pub fn whole_plan(most: usize) -> impl Strategy<Value = Plan> {
    (tree(most), phi()).prop_map(|(tree, phi)| Plan::compile(Arc::new(tree), &phi).unwrap())
}

/// A plan, pruned or not.
pub fn plan(most: usize) -> impl Strategy<Value = Plan> {
    (whole_plan(most), any::<bool>(), any::<u64>()).prop_map(|(plan, pruned, bits)| {
        let keep: Vec<i64> = (0..plan.n_prompts() as i64).filter(|prompt| bits >> (prompt % 64) & 1 == 1).collect();
        if pruned && !keep.is_empty() {
            plan.prune(&keep).unwrap()
        } else {
            plan
        }
    })
}

/// A plan, pruned or not, and for each of its segments whether its state is given.
pub fn plan_and_given(most: usize) -> impl Strategy<Value = (Plan, Vec<bool>)> {
    (plan(most), 0.0..=1.0f64).prop_flat_map(|(plan, share)| {
        let given = prop::collection::vec(prop::bool::weighted(share), plan.segments().len());
        (Just(plan), given)
    })
}

/// A plan, pruned or not, resumed or not.
pub fn any_plan(most: usize) -> impl Strategy<Value = Plan> {
    prop_oneof![plan(most), plan_and_given(most).prop_map(|(plan, given)| plan.resume(&given).unwrap())]
}

/// Changes one of the six fields of a segment.
pub fn set_field(segment: &mut Segment, field: i32, value: i32) {
    let number = value.max(0) as u32;
    match field {
        0 => segment.parent = u32::try_from(value).ok(),
        1 => segment.first_step = number,
        2 => segment.end_step = number,
        3 => segment.leaf_begin = number,
        4 => segment.leaf_end = number,
        _ => segment.representative = number,
    }
}

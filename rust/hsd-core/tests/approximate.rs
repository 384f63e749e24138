//! Sets too large for one matrix: what an approximate tree still promises.

mod common;

use std::collections::BTreeSet;

use common::{build, build_with, grouped, kind, kinds, numbers, rows, tied_rows, Kind, PLENTY};
use hsd_core::cluster::naive::distance_of;
use hsd_core::{Linkage, Method, Metric, Resources, Tree};
use proptest::prelude::*;

/// Memory for the matrix of this many clusters, and four points of each.
fn memory_for(rows: &[Vec<f64>], clusters: usize) -> usize {
    4 * clusters * (clusters + 4 * rows[0].len())
}

/// In memory for this many clusters at a time.
fn approximate(rows: &[Vec<f64>], kind: impl Into<Kind>, clusters: usize) -> Tree {
    let resources = Resources { memory: memory_for(rows, clusters), ..PLENTY };
    build_with(rows, kind, Method::Approximate, resources).unwrap()
}

/// One binary tree over `n` leaves, of sound heights, that says what it is.
fn assert_sound(tree: &Tree, n: usize, kind: impl Into<Kind>) {
    let linkage = kind.into().linkage;
    assert_eq!(tree.n_leaves(), n);
    assert_eq!(tree.linkage(), linkage.name());
    assert!(!tree.exact());
    let merges: Vec<[i64; 2]> = tree.merges().iter().map(|pair| pair.map(i64::from)).collect();
    let again = Tree::from_merges(&merges, tree.scores().to_vec(), linkage.name()).unwrap();
    assert_eq!(again.approximate(), *tree);
    let leaves: BTreeSet<u32> = tree.leaf_order().iter().copied().collect();
    assert_eq!(leaves.len(), n);
    assert!(tree.scores().iter().all(|score| score.is_finite() && *score >= 0.0));
    for (merge, pair) in tree.merges().iter().enumerate() {
        for &child in pair {
            assert!(tree.height(child as usize).is_none_or(|height| height <= tree.heights()[merge]));
        }
    }
}

/// The height at which two leaves meet.
fn meeting(tree: &Tree, x: usize, y: usize) -> f64 {
    let above = |leaf| std::iter::successors(Some(leaf), |&node| tree.parent(node));
    let over_x: BTreeSet<usize> = above(x).collect();
    let node = above(y).find(|node| over_x.contains(node)).unwrap();
    tree.height(node).unwrap_or(0.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_rows_give_a_tree(rows in rows(60), clusters in 1..12usize, kind in kind()) {
        assert_sound(&approximate(&rows, kind, clusters), rows.len(), kind);
    }

    #[test]
    fn tied_rows_give_a_tree(rows in tied_rows(60), clusters in 1..12usize, kind in kind()) {
        assert_sound(&approximate(&rows, kind, clusters), rows.len(), kind);
    }
}

#[test]
fn several_levels_give_one_tree() {
    // 700 rows in 40 clusters at a time: ten levels, dozens of cells.
    for rows in [grouped(700, 12, 50, 0.4), grouped(700, 3, 700, 0.0)] {
        for kind in kinds() {
            let tree = approximate(&rows, kind, 40);
            assert_sound(&tree, rows.len(), kind);
            for threads in [1, 2, 3, 5] {
                let resources = Resources { threads, memory: memory_for(&rows, 40) };
                assert_eq!(build_with(&rows, kind, Method::Approximate, resources).unwrap(), tree);
            }
        }
    }
}

#[test]
fn what_fits_in_one_matrix_is_what_it_would_be() {
    let rows = grouped(200, 8, 20, 0.4);
    for kind in kinds() {
        let tree = approximate(&rows, kind, 200);
        assert_sound(&tree, 200, kind);
        let exact = build(&rows, kind).unwrap();
        assert_eq!((tree.merges(), tree.scores()), (exact.merges(), exact.scores()));
    }
}

#[test]
fn groups_far_apart_are_found() {
    // The groups are mixed in the order given, and each is half as large as what fits at a time.
    let (n, groups) = (900, 30);
    let rows = grouped(n, 24, groups, 0.05);
    for kind in kinds() {
        let exact = build(&rows, kind).unwrap();
        let heights = exact.sorted_heights();
        let (within, between) = (heights[n - groups - 1], heights[n - groups]);
        assert!(between > 3.0 * within, "the groups are not far apart: {within} {between}");
        let tree = approximate(&rows, kind, 60);
        for labels in [exact.cut(between * 0.6).unwrap(), tree.cut(between * 0.6).unwrap()] {
            let pairs: BTreeSet<(usize, i64)> = labels.iter().enumerate().map(|(i, &l)| (i % groups, l)).collect();
            let found: BTreeSet<i64> = labels.iter().copied().collect();
            assert_eq!((pairs.len(), found.len()), (groups, groups), "{kind:?}");
        }
    }
}

#[test]
fn near_duplicates_stay_together() {
    let half = grouped(700, 10, 70, 0.5);
    for (far, least) in [(0.0, 0.0), (1e-5, 1e-12)] {
        let mut draw = numbers(9);
        let near = half.iter().map(|row| row.iter().map(|x| x + far * draw()).collect::<Vec<_>>());
        let rows: Vec<Vec<f64>> = half.iter().cloned().chain(near).collect();
        for kind in kinds() {
            let tree = approximate(&rows, kind, 100);
            for i in 0..700 {
                let apart = distance_of(kind.metric, &rows[i], &rows[i + 700]);
                let met = meeting(&tree, i, i + 700);
                // What is rounded is half the squared difference: of unit rows, or of rows about two long.
                let (half_square, least): (fn(f64) -> f64, f64) = match kind.metric {
                    Metric::Cosine => (|distance| distance, least),
                    Metric::Euclidean => (|distance| distance * distance / 2.0, 4.0 * least),
                };
                let most = 1.001 * half_square(apart) + least;
                assert!(half_square(met) <= most, "{kind:?}: rows {i}, {apart} apart, meet at {met}");
            }
        }
    }
}

#[test]
fn equal_rows_and_one_column() {
    for linkage in Linkage::ALL {
        let tree = approximate(&vec![vec![0.3, -0.2, 0.9]; 800], linkage, 30);
        assert_sound(&tree, 800, linkage);
        assert!(tree.heights().iter().all(|&height| height < 1e-6), "{linkage}: {:?}", tree.sorted_heights().last());
        // One column: all rows point one way or the other.
        let rows: Vec<Vec<f64>> = (0..800).map(|i| vec![if i % 7 < 3 { 1.0 + f64::from(i) } else { -2.0 }]).collect();
        let tree = approximate(&rows, linkage, 30);
        assert_sound(&tree, 800, linkage);
        assert!(tree.sorted_heights()[797] < 1e-6 && tree.sorted_heights()[798] > 1.9, "{linkage}");
        let labels = tree.cut(1.0).unwrap();
        assert!((0..800).all(|i| labels[i] == labels[if i % 7 < 3 { 0 } else { 3 }]));
    }
}

#[test]
fn what_does_not_fit_is_approximate() {
    let rows = grouped(300, 6, 30, 0.3);
    let build = |memory| build_with(&rows, Linkage::Ward, Method::Auto, Resources { memory, ..PLENTY }).unwrap();
    assert!(build(usize::MAX).exact());
    for memory in [1, 100, 10_000, 2 * 300 * 300 - 1] {
        assert_sound(&build(memory), 300, Linkage::Ward);
    }
}

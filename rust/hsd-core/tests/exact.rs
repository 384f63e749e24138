//! Exact trees against the naive oracle, in both shapes of the matrix and with any number of threads.

mod common;

use common::{build, build_with, grouped, kind, kinds, numbers, rows, tied_rows, Kind, PLENTY};
use hsd_core::cluster::naive::{agglomerate, cosine_distance, distance_of, Clustering};
use hsd_core::{Error, Linkage, Method, Metric, Resources, Result, Tree};
use proptest::prelude::*;

fn reducible() -> impl Iterator<Item = Kind> {
    kinds().filter(|kind| kind.linkage.is_reducible())
}

fn near(x: f64, y: f64) -> bool {
    (x - y).abs() <= 1e-5 * x.abs().max(y.abs()) + 1e-12
}

/// With memory for half of the matrix only: the other half is completed as it is needed.
fn build_lower(rows: &[Vec<f64>], kind: impl Into<Kind>) -> Result<Tree> {
    let memory = 3 * rows.len() * rows.len();
    build_with(rows, kind, Method::Exact, Resources { memory, ..PLENTY })
}

/// Replays a tree's merges on the oracle: each must join a nearest pair, at that pair's distance.
fn replay(rows: &[Vec<f64>], kind: impl Into<Kind>, tree: &Tree) {
    let Kind { linkage, metric } = kind.into();
    let mut clustering = Clustering::new(rows, linkage, metric);
    for (&[a, b], &score) in tree.merges().iter().zip(tree.scores()) {
        let (a, b) = (a as usize, b as usize);
        let least = clustering.nearest_pair().unwrap().2;
        assert!(near(score, clustering.distance(a, b)), "{a} and {b} at {score}, not {}", clustering.distance(a, b));
        // Several pairs may be nearest, and rounding may tell them apart.
        assert!(score <= least * (1.0 + 1e-4) + 1e-6, "{a} and {b} at {score}, but {least} is the least");
        clustering.join(a, b);
    }
}

/// The same merges in the same order, at the same distances but for rounding.
fn assert_same(tree: &Tree, other: &Tree) {
    assert_eq!(tree.merges(), other.merges());
    for (x, y) in tree.scores().iter().zip(other.scores()) {
        assert!(near(*x, *y), "{x} {y}");
    }
}

/// A row for each angle.
fn at_angles(angles: impl Iterator<Item = f64>) -> Vec<Vec<f64>> {
    angles.map(|angle: f64| vec![angle.cos(), angle.sin()]).collect()
}

/// Each gap is greater than the one before, so that only the first two are each other's nearest.
fn line(n: usize) -> Vec<Vec<f64>> {
    at_angles((0..n).map(|i| 1.5 * (i as f64 / n as f64).powi(2)))
}

/// The same few rows again and again.
fn repeated(n: usize, different: usize) -> Vec<Vec<f64>> {
    let mut draw = numbers(5);
    let rows: Vec<Vec<f64>> = (0..different).map(|_| (0..6).map(|_| draw()).collect()).collect();
    (0..n).map(|i| rows[if i < different { i } else { i * i % different }].clone()).collect()
}

proptest! {
    #[test]
    fn general_rows_give_the_oracles_merges(rows in rows(24), kind in kind()) {
        let expected = agglomerate(&rows, kind.linkage, kind.metric);
        for tree in [build(&rows, kind).unwrap(), build_lower(&rows, kind).unwrap()] {
            prop_assert!(tree.exact());
            prop_assert_eq!(tree.merges().len(), expected.len());
            for ((&[a, b], &score), &(x, y, distance)) in tree.merges().iter().zip(tree.scores()).zip(&expected) {
                prop_assert_eq!((a as usize, b as usize), (x, y));
                prop_assert!(near(score, distance), "{score} {distance}");
            }
        }
    }

    #[test]
    fn tied_rows_give_a_nearest_pair_at_every_merge(rows in tied_rows(14), kind in kind()) {
        for tree in [build(&rows, kind).unwrap(), build_lower(&rows, kind).unwrap()] {
            replay(&rows, kind, &tree);
            if kind.linkage.is_reducible() {
                prop_assert_eq!(tree.scores(), tree.heights());
                prop_assert!(tree.scores().is_sorted());
            }
        }
    }

    #[test]
    fn two_rows_meet_at_their_distance(rows in rows(2), power in 0..7i32, kind in kind()) {
        prop_assume!(rows.len() == 2);
        // From far apart to nearly the same.
        let other: Vec<f64> = rows[0].iter().zip(&rows[1]).map(|(x, y)| x + 10f64.powi(-power) * y).collect();
        prop_assume!(other.iter().map(|x| x * x).sum::<f64>() > 1e-6);
        let expected = distance_of(kind.metric, &rows[0], &other);
        let tree = build(&[rows[0].clone(), other], kind).unwrap();
        prop_assert!(near(tree.scores()[0], expected), "{} {expected}", tree.scores()[0]);
    }

    #[test]
    fn near_duplicates_keep_their_digits(row in prop::collection::vec(0.5..1.0f64, 8), power in 1..9i32) {
        let mut other = row.clone();
        other[0] += 10f64.powi(-power);
        let rows = [row.clone(), other, row];
        for metric in Metric::ALL {
            let tree = build(&rows, Kind { linkage: Linkage::Average, metric }).unwrap();
            prop_assert_eq!(tree.scores()[0], 0.0);
            let expected = distance_of(metric, &rows[0], &rows[1]);
            prop_assert!((tree.scores()[1] - expected).abs() <= 1e-6 * expected, "{} {expected}", tree.scores()[1]);
        }
    }
}

#[test]
fn blocks_meet_at_their_borders() {
    // More rows than one block has, and more than the rounds leave to the chain.
    let rows: Vec<Vec<f64>> =
        (0..600).map(|i| (0..3).map(|j| f64::from((i * 7919 + j * 104_729) % 1009) - 500.3).collect()).collect();
    for linkage in [Linkage::Complete, Linkage::Centroid] {
        let tree = build(&rows, linkage).unwrap();
        replay(&rows, linkage, &tree);
        assert_same(&build_lower(&rows, linkage).unwrap(), &tree);
    }
}

#[test]
fn rounds_give_the_oracles_merges() {
    let rows = grouped(400, 12, 40, 0.4);
    for linkage in reducible() {
        replay(&rows, linkage, &build(&rows, linkage).unwrap());
    }
}

#[test]
fn both_shapes_give_one_tree() {
    for (n, groups) in [(257, 3), (1000, 50), (1800, 900)] {
        let rows = grouped(n, 16, groups, 0.5);
        for kind in kinds() {
            let whole = build(&rows, kind).unwrap();
            assert_same(&build_lower(&rows, kind).unwrap(), &whole);
            assert!(!kind.linkage.is_reducible() || whole.scores().is_sorted());
        }
    }
}

#[test]
fn rounds_that_do_not_pay_are_left_to_the_chain() {
    for linkage in reducible() {
        replay(&line(300), linkage, &build(&line(300), linkage).unwrap());
        replay(&line(300), linkage, &build_lower(&line(300), linkage).unwrap());
    }
    // Some rounds pay, then no more.
    let mut mixed = grouped(300, 2, 300, 0.0);
    mixed.extend(line(300));
    let (whole, lower) = (build(&mixed, Linkage::Ward).unwrap(), build_lower(&mixed, Linkage::Ward).unwrap());
    replay(&mixed, Linkage::Ward, &whole);
    assert!(whole.scores().is_sorted());
    // Rounding may change the order of two merges, not their distances.
    assert!(whole.scores().iter().zip(lower.scores()).all(|(x, y)| near(*x, *y)));
}

#[test]
fn many_equal_rows() {
    for n in [300, 2000] {
        let rows = repeated(n, 40);
        for kind in kinds() {
            let (whole, lower) = (build(&rows, kind).unwrap(), build_lower(&rows, kind).unwrap());
            for tree in [&whole, &lower] {
                // 40 different rows: 39 merges join clusters that differ, all others are at 0.
                assert_eq!(tree.scores().iter().filter(|&&score| score > 0.0).count(), 39);
            }
            for (x, y) in whole.sorted_heights().iter().zip(lower.sorted_heights()) {
                assert!(near(*x, *y), "{x} {y}");
            }
        }
        if n == 300 {
            reducible().for_each(|kind| replay(&rows, kind, &build(&rows, kind).unwrap()));
        }
    }
    for kind in kinds() {
        let rows = vec![vec![0.3, -0.2, 0.9]; 700];
        assert_eq!(build(&rows, kind).unwrap().heights(), [0.0; 699]);
        assert_eq!(build_lower(&rows, kind).unwrap().heights(), [0.0; 699]);
    }
}

#[test]
fn distances_keep_their_digits_wherever_the_rows_lie() {
    let mut sets = Vec::new();
    // Tight groups far apart: most of what a tile holds is lost in single precision.
    for scatter in [1e-6, 1e-3, 1e-2] {
        sets.push(grouped(280, 8, 5, scatter));
    }
    // All to one side, as the text encoders of diffusion models have it: every cosine is over 0.999.
    let collapsed = grouped(280, 24, 1, 0.02);
    assert!(collapsed.iter().all(|row| cosine_distance(row, &collapsed[0]) < 1e-3));
    sets.push(collapsed.clone());
    // One far from all others, first, last and opposite.
    for at in [0, 280] {
        let mut outlier = collapsed.clone();
        outlier.insert(at, collapsed[7].iter().map(|x| -x).collect());
        sets.push(outlier);
    }
    // A single near pair.
    let mut pair = grouped(280, 8, 280, 0.0);
    pair[91] = pair[14].iter().map(|x| x * (1.0 + 1e-7) + 1e-7).collect();
    sets.push(pair);
    for rows in &sets {
        for kind in kinds() {
            replay(rows, kind, &build(rows, kind).unwrap());
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let sets = [grouped(1100, 10, 90, 0.3), grouped(600, 6, 4, 1e-3), repeated(600, 50), line(300)];
    for rows in &sets {
        for kind in kinds() {
            for memory in [usize::MAX, 3 * rows.len() * rows.len()] {
                let build = |threads| build_with(rows, kind, Method::Exact, Resources { threads, memory }).unwrap();
                let one = build(1);
                for threads in [2, 3, 5] {
                    assert_eq!(build(threads), one, "{kind:?}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn small_and_equal_sets() {
    for linkage in Linkage::ALL {
        assert_eq!(build(&[vec![3.0]], linkage).unwrap().n_leaves(), 1);
        assert_eq!(build(&[vec![1.0], vec![-2.0]], linkage).unwrap().scores(), [2.0]);
        let equal = build(&vec![vec![0.1, 0.7, -3.0]; 5], linkage).unwrap();
        assert_eq!(equal.heights(), [0.0; 4]);
        // Means of zero length: two opposite pairs.
        let opposite = [vec![1.0, 0.0], vec![-1.0, 0.0], vec![1.0, 0.0], vec![-1.0, 0.0]];
        let tree = build(&opposite, linkage).unwrap();
        assert_eq!(tree.merges()[..2], [[0, 2], [1, 3]]);
        assert!(tree.scores()[2] >= 2.0);
    }
}

#[test]
fn huge_and_tiny_rows_count_by_direction() {
    let rows = [vec![1e300, 1e300], vec![1e-300, 1e-300], vec![1e300, -1e300]];
    for linkage in Linkage::ALL {
        let tree = build(&rows, linkage).unwrap();
        assert_eq!(tree.merges(), [[0, 1], [2, 3]]);
        assert!(tree.scores()[0] < 1e-12);
    }
    // Squares that neither overflow nor vanish, down to the smallest number there is.
    let rows = [vec![f64::MAX, f64::MAX], vec![5e-324, 5e-324], vec![f64::MAX, -f64::MAX], vec![0.0, -5e-324]];
    for linkage in Linkage::ALL.into_iter().filter(|linkage| linkage.is_reducible()) {
        assert_eq!(build(&rows, linkage).unwrap().merges()[..2], [[0, 1], [2, 3]]);
    }
}

#[test]
fn centroid_weighs_rows_by_their_length() {
    // The mean of (3, 0) and (0, 1) is (1.5, 0.5), not the diagonal.
    let rows = [vec![3.0, 0.0], vec![0.0, 1.0], vec![-1.0, -0.2]];
    let tree = build(&rows, Linkage::Centroid).unwrap();
    assert_eq!(tree.merges()[0], [0, 1]);
    assert!(near(tree.scores()[1], cosine_distance(&[1.5, 0.5], &rows[2])));
}

#[test]
fn memory_decides_what_is_exact() {
    let rows = grouped(100, 4, 10, 0.3);
    let half = 2 * 100 * 100;
    for kind in kinds() {
        let build = |method, memory| build_with(&rows, kind, method, Resources { memory, ..PLENTY });
        assert_same(&build(Method::Exact, half).unwrap(), &build(Method::Exact, 2 * half).unwrap());
        let refused = build(Method::Exact, half - 1).unwrap_err();
        let what = "the distances between all prompts";
        assert_eq!(refused, Error::NoMemory { what, gigabytes: half as f64 / 1e9 });
        assert!(build(Method::Auto, half).unwrap().exact());
        assert!(!build(Method::Auto, half - 1).unwrap().exact());
        assert!(!build(Method::Approximate, usize::MAX).unwrap().exact());
    }
    let many = vec![vec![1.0]; 200_000];
    let memory = 79_999_999_999;
    let refused = build_with(&many, Linkage::Ward, Method::Exact, Resources { memory, ..PLENTY }).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the distances between all prompts need 80.0 GB, which is more than can be allocated; split the set"
    );
}

#[test]
fn unknown_linkages_are_named() {
    let error = "no-such-linkage".parse::<Linkage>().unwrap_err();
    assert!(error.to_string().contains("\"no-such-linkage\""));
    assert!(Linkage::ALL.iter().all(|linkage| linkage.name().parse() == Ok(*linkage)));
}

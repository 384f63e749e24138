//! The fast paths against the naive oracle.

mod common;

use std::ops::ControlFlow;

use common::{build, rows, tied_rows};
use hsd_core::distance::{cosine_distances, UnitRows};
use hsd_core::naive::{agglomerate, cosine_distance, Clustering};
use hsd_core::{Error, Linkage, Progress, Tree};
use proptest::prelude::*;

fn linkage() -> impl Strategy<Value = Linkage> {
    prop::sample::select(Linkage::ALL.to_vec())
}

fn near(x: f64, y: f64) -> bool {
    (x - y).abs() <= 1e-5 * x.abs().max(y.abs()) + 1e-12
}

/// Replays a tree's merges on the oracle: each must join a nearest pair, at that pair's distance.
fn replay(rows: &[Vec<f64>], linkage: Linkage, tree: &Tree) {
    let mut clustering = Clustering::new(rows, linkage);
    for (&[a, b], &score) in tree.merges().iter().zip(tree.scores()) {
        let (a, b) = (a as usize, b as usize);
        let least = clustering.nearest_pair().unwrap().2;
        assert!(near(score, clustering.distance(a, b)), "{a} and {b} at {score}");
        // Several pairs may be nearest, and rounding may tell them apart.
        assert!(score <= least * (1.0 + 1e-4) + 1e-6, "{a} and {b} at {score}, but {least} is the least");
        clustering.join(a, b);
    }
}

proptest! {
    #[test]
    fn general_rows_give_the_oracles_merges(rows in rows(24), linkage in linkage()) {
        let tree = build(&rows, linkage).unwrap();
        let expected = agglomerate(&rows, linkage);
        prop_assert_eq!(tree.merges().len(), expected.len());
        for ((&[a, b], &score), (x, y, distance)) in tree.merges().iter().zip(tree.scores()).zip(expected) {
            prop_assert_eq!((a as usize, b as usize), (x, y));
            prop_assert!(near(score, distance), "{score} {distance}");
        }
    }

    #[test]
    fn tied_rows_give_a_nearest_pair_at_every_merge(rows in tied_rows(14), linkage in linkage()) {
        let tree = build(&rows, linkage).unwrap();
        replay(&rows, linkage, &tree);
        if linkage != Linkage::Centroid {
            prop_assert_eq!(tree.scores(), tree.heights());
            prop_assert!(tree.scores().is_sorted());
        }
    }

    #[test]
    fn distances_do_not_depend_on_the_number_of_threads(rows in rows(40), threads in 2..5usize) {
        let unit = UnitRows::new(&rows.concat(), rows.len(), rows[0].len()).unwrap();
        let mut go_on = |_| ControlFlow::Continue(());
        let one = cosine_distances(&unit, 1, &mut Progress::new(&mut go_on)).unwrap();
        let many = cosine_distances(&unit, threads, &mut Progress::new(&mut go_on)).unwrap();
        prop_assert_eq!(&one, &many);
        for i in 0..rows.len() {
            for j in 0..i {
                prop_assert!(near(one.get(i, j).into(), cosine_distance(&rows[i], &rows[j])));
            }
        }
    }

    #[test]
    fn near_duplicates_keep_their_digits(row in prop::collection::vec(0.5..1.0f64, 8), power in 1..9i32) {
        let mut other = row.clone();
        other[0] += 10f64.powi(-power);
        let rows = [row.clone(), other, row];
        let tree = build(&rows, Linkage::Average).unwrap();
        prop_assert_eq!(tree.scores()[0], 0.0);
        let expected = cosine_distance(&rows[0], &rows[1]);
        prop_assert!((tree.scores()[1] - expected).abs() <= 1e-6 * expected, "{} {expected}", tree.scores()[1]);
    }
}

#[test]
fn blocks_meet_at_their_borders() {
    // More rows than one block has rows, and than it has columns.
    let rows: Vec<Vec<f64>> =
        (0..700).map(|i| (0..3).map(|j| f64::from((i * 7919 + j * 104_729) % 1009) - 500.3).collect()).collect();
    let unit = UnitRows::new(&rows.concat(), rows.len(), 3).unwrap();
    let mut go_on = |_| ControlFlow::Continue(());
    let distances = cosine_distances(&unit, 3, &mut Progress::new(&mut go_on)).unwrap();
    for i in 0..rows.len() {
        for j in 0..i {
            let (found, expected) = (f64::from(distances.get(i, j)), cosine_distance(&rows[i], &rows[j]));
            assert!((found - expected).abs() <= 1e-6 * expected + 1e-14, "({i}, {j}): {found} {expected}");
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
fn bad_rows_are_named() {
    let not_finite = build(&[vec![1.0, 2.0], vec![1.0, f64::INFINITY]], Linkage::Ward).unwrap_err();
    assert_eq!(not_finite, Error::NotFinite { row: 1, column: 1, value: f64::INFINITY });
    assert_eq!(build(&[vec![1.0], vec![0.0]], Linkage::Ward).unwrap_err(), Error::ZeroRow { row: 1 });
    assert_eq!(build(&[], Linkage::Ward).unwrap_err(), Error::NoEmbeddings { rows: 0, columns: 0 });
    assert!("single".parse::<Linkage>().is_err());
}

#[test]
fn a_report_can_stop_the_work() {
    let unit = UnitRows::new(&[1.0, 2.0, 3.0], 3, 1).unwrap();
    for calls in 0..2 {
        let mut left = calls;
        let mut stop = |fraction: f64| {
            assert!((0.0..=1.0).contains(&fraction));
            left -= 1;
            if left < 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let stopped = hsd_core::linkage::build(&unit, Linkage::Ward, 1, &mut Progress::new(&mut stop));
        assert_eq!(stopped.unwrap_err(), Error::Interrupted);
    }
}

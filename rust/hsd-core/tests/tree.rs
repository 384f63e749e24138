//! Trees, cuts and thresholds.

mod common;

use common::{phi, tree};
use hsd_core::plan::schedule::{check, counts, node_steps, tau_for_node_steps};
use hsd_core::{Error, Linkage, Order, Schedule, Tree};
use proptest::prelude::*;

/// The leaves below every node, by walking up from every leaf.
fn leaves_below(tree: &Tree) -> Vec<Vec<u32>> {
    let mut below = vec![Vec::new(); tree.n_nodes()];
    for leaf in 0..tree.n_leaves() {
        let mut node = Some(leaf);
        while let Some(at) = node {
            below[at].push(leaf as u32);
            node = tree.parent(at);
        }
    }
    below
}

proptest! {
    #[test]
    fn every_cluster_is_a_run_that_begins_with_its_lowest_leaf(tree in tree(24)) {
        for (node, below) in leaves_below(&tree).into_iter().enumerate() {
            let (begin, end) = tree.range(node);
            let mut run = tree.leaf_order()[begin as usize..end as usize].to_vec();
            prop_assert_eq!(run[0], below[0]);
            run.sort_unstable();
            prop_assert_eq!(run, below);
        }
    }

    #[test]
    fn heights_never_fall_and_are_attained(tree in tree(24)) {
        for (node, below) in leaves_below(&tree).into_iter().enumerate().skip(tree.n_leaves()) {
            let highest = (0..tree.merges().len())
                .filter(|&merge| {
                    let (begin, end) = tree.range(tree.n_leaves() + merge);
                    let (outer_begin, outer_end) = tree.range(node);
                    outer_begin <= begin && end <= outer_end
                })
                .map(|merge| tree.scores()[merge])
                .fold(0.0, f64::max);
            prop_assert_eq!(tree.height(node), Some(highest));
            prop_assert_eq!(tree.sizes()[node - tree.n_leaves()] as usize, below.len());
        }
    }

    #[test]
    fn a_cut_splits_every_node_that_is_too_high(tree in tree(24), height in 0.0..2.5f64) {
        let labels = tree.cut(height).unwrap();
        let below = leaves_below(&tree);
        for a in 0..tree.n_leaves() {
            for b in 0..a {
                let whole = |node: usize| tree.height(node).is_some_and(|own| own < height);
                let (a32, b32) = (a as u32, b as u32);
                let together = (0..tree.n_nodes())
                    .any(|node| whole(node) && below[node].contains(&a32) && below[node].contains(&b32));
                prop_assert_eq!(labels[a] == labels[b], together);
            }
        }
        let in_order: Vec<i64> = tree.leaf_order().iter().map(|&leaf| labels[leaf as usize]).collect();
        prop_assert!(in_order.is_sorted() && in_order[0] == 0);
        prop_assert_eq!(in_order.last().unwrap() + 1, counts(&tree, &[height, 0.0]).unwrap()[0]);
    }

    #[test]
    fn scipys_matrix_is_the_same_tree_by_height(tree in tree(24)) {
        let rows = tree.to_scipy();
        prop_assert!(rows.is_sorted_by(|x, y| x[2] <= y[2]));
        let merges: Vec<[i64; 2]> = rows.iter().map(|row| [row[0] as i64, row[1] as i64]).collect();
        let again = Tree::from_merges(&merges, rows.iter().map(|row| row[2]).collect(), "ward").unwrap();
        prop_assert_eq!(again.leaf_order(), tree.leaf_order());
        prop_assert_eq!(again.sorted_heights(), tree.sorted_heights());
        prop_assert!(rows.iter().zip(again.sizes()).all(|(row, &size)| row[3] == f64::from(size)));
    }

    #[test]
    fn the_budget_is_met_by_the_smallest_float(tree in tree(24), shape in phi(), share in 0.0..1.1f64) {
        let all = (tree.n_leaves() * shape.len()) as i64;
        let target = (share * all as f64) as i64;
        let cost = |tau: f64| node_steps(&tree, &shape.iter().map(|s| tau * s).collect::<Vec<_>>()).unwrap();
        match tau_for_node_steps(&tree, &shape, target) {
            Ok(tau) => {
                prop_assert!(cost(tau) <= target);
                prop_assert!(tau == 0.0 || cost(f64::from_bits(tau.to_bits() - 1)) > target);
            }
            Err(error) => {
                let least = cost(1e300);
                prop_assert_eq!(error, Error::BudgetTooSmall { target, least });
            }
        }
    }

    #[test]
    fn schedules_never_rise_and_end_at_zero(steps in 1..300usize) {
        for schedule in Schedule::ALL {
            let curve = schedule.shape(steps).unwrap();
            prop_assert_eq!(curve.len(), steps);
            prop_assert!(check(&curve).is_ok());
            prop_assert!(curve.iter().all(|value| (0.0..=1.0).contains(value)));
            prop_assert!(steps == 1 || schedule == Schedule::PaperEq7 || curve[0] == 1.0);
        }
    }

    #[test]
    fn any_merges_give_a_tree_or_an_error(
        merges in prop::collection::vec([-1..12i64, -1..12i64], 0..6),
        scores in prop::collection::vec(prop_oneof![Just(f64::NAN), -1.0..2.0f64], 0..6),
    ) {
        if let Ok(tree) = Tree::from_merges(&merges, scores, "ward") {
            let mut leaves = tree.leaf_order().to_vec();
            leaves.sort_unstable();
            prop_assert!(leaves.into_iter().eq(0..tree.n_leaves() as u32));
        }
    }
}

#[test]
fn thresholds_that_do_not_fit_are_named() {
    assert_eq!(check(&[]), Err(Error::NoSteps));
    assert_eq!(check(&[1.0, 0.5]), Err(Error::LastThreshold { step: 1, value: 0.5 }));
    assert_eq!(check(&[0.5, 1.0, 0.0]), Err(Error::RisingThreshold { step: 1, before: 0.5, value: 1.0 }));
    assert_eq!(check(&[f64::INFINITY, 0.0]), Err(Error::BadThreshold { step: 0, value: f64::INFINITY }));
    assert!(check(&[f64::NAN]).is_err() && check(&[-1.0]).is_err());
    assert_eq!(Schedule::Linear.shape(0), Err(Error::NoSteps));
}

#[test]
fn a_wrong_name_is_answered_with_the_right_ones() {
    for schedule in Schedule::ALL {
        assert_eq!(schedule.name().parse(), Ok(schedule));
    }
    assert_eq!(Linkage::NAMES, Linkage::ALL.map(Linkage::name));
    assert_eq!(Order::NAMES, ["depth", "breadth"]);
    let message = |error: Error| error.to_string();
    assert_eq!(
        "step".parse::<Schedule>().map_err(message),
        Err("unknown schedule \"step\"; choose one of \"linear\", \"paper-eq7\", \"cosine\", \"log\", \"quadratic\""
            .to_owned())
    );
    assert_eq!(
        "no-such".parse::<Linkage>().map_err(message),
        Err("unknown linkage \"no-such\"; choose one of \"ward\", \"centroid\", \"average\", \"complete\"".to_owned())
    );
    assert_eq!(
        "".parse::<Order>().map_err(message),
        Err("unknown order \"\"; choose one of \"depth\", \"breadth\"".to_owned())
    );
}

#[test]
fn schedules_are_what_their_formulas_say() {
    assert_eq!(Schedule::Linear.shape(5).unwrap(), [1.0, 0.75, 0.5, 0.25, 0.0]);
    assert_eq!(Schedule::PaperEq7.shape(4).unwrap(), [0.75, 0.5, 0.25, 0.0]);
    assert!((Schedule::Cosine.shape(3).unwrap()[1] - 0.5f64.sqrt()).abs() < 1e-15);
    assert!((Schedule::Log.shape(3).unwrap()[1] - (1.0 + (1f64.exp() - 1.0) / 2.0).ln()).abs() < 1e-15);
    assert_eq!(Schedule::Quadratic.shape(5).unwrap(), [1.0, 0.5625, 0.25, 0.0625, 0.0]);
}

#[test]
fn joins_that_do_not_fit_are_named() {
    let two = Tree::from_merges(&[[0, 1]], vec![0.5], "ward").unwrap();
    let one = Tree::from_merges(&[], vec![], "average").unwrap();
    assert_eq!(Tree::join(&[], &[]), Err(Error::Empty { what: "trees" }));
    assert!(matches!(Tree::join(&[&two], &[]), Err(Error::Length { .. })));
    assert!(matches!(Tree::join(&[&two], &[&[0]]), Err(Error::Length { .. })));
    assert_eq!(Tree::join(&[&two], &[&[0, 0]]), Err(Error::Repeated { what: "leaf", index: 0 }));
    assert_eq!(Tree::join(&[&two], &[&[0, 2]]), Err(Error::OutOfRange { what: "leaf", index: 2, count: 2 }));
    let joined = Tree::join(&[&two, &one], &[&[2, 0], &[1]]).unwrap();
    assert_eq!(joined.merges(), [[2, 0], [1, 3]]);
    assert_eq!(joined.scores(), [0.5, f64::INFINITY]);
    assert_eq!(joined.linkage(), "mixed");
    assert!(joined.exact());
    assert!(!Tree::join(&[&two, &one.approximate()], &[&[2, 0], &[1]]).unwrap().exact());
    assert_eq!(joined.cut(f64::INFINITY).unwrap(), [0, 1, 0]);
    assert!(joined.cut(-1.0).is_err() && joined.cut(f64::NAN).is_err());
}

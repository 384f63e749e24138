//! The measured schedule: no plan of the same tree that costs the same has a lower error, by trying all of them.

mod common;

use std::sync::Arc;

use common::{build, Kind};
use hsd_core::plan::schedule::measured_shape;
use hsd_core::{Error, Linkage, Metric, Plan, Schedule, Tree};
use proptest::prelude::*;

const WARD: Kind = Kind { linkage: Linkage::Ward, metric: Metric::Euclidean };

/// What a way of sharing costs, and how far prompts are from the means of their clusters, weighted by step.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    node_steps: usize,
    error: f64,
}

/// Sum of the squared distances of some rows from their mean, straight from the rows.
fn sum_of_squares(rows: &[Vec<f64>], members: &[usize]) -> f64 {
    let columns = rows[0].len();
    let mean = |j: usize| members.iter().map(|&i| rows[i][j]).sum::<f64>() / members.len() as f64;
    let means: Vec<f64> = (0..columns).map(mean).collect();
    members.iter().flat_map(|&i| rows[i].iter().zip(&means)).map(|(x, mean)| (x - mean).powi(2)).sum()
}

/// The outcome if each prompt is in these clusters, one list of labels a step.
fn outcome(rows: &[Vec<f64>], weights: &[f64], labels: &[Vec<usize>]) -> Outcome {
    let mut outcome = Outcome { node_steps: 0, error: 0.0 };
    for (labels, weight) in labels.iter().zip(weights) {
        for label in 0..=labels.iter().copied().max().unwrap_or(0) {
            let members: Vec<usize> = (0..rows.len()).filter(|&i| labels[i] == label).collect();
            if !members.is_empty() {
                outcome.node_steps += 1;
                outcome.error += weight * sum_of_squares(rows, &members);
            }
        }
    }
    outcome
}

/// The outcome of the plan with these thresholds.
fn planned(rows: &[Vec<f64>], weights: &[f64], tree: &Tree, phi: &[f64]) -> Outcome {
    let plan = Plan::compile(Arc::new(tree.clone()), phi).unwrap();
    let step = |k| plan.active(k as i64).unwrap().into_iter().map(|segment| segment.unwrap() as usize).collect();
    let found = outcome(rows, weights, &(0..phi.len()).map(step).collect::<Vec<_>>());
    assert_eq!(found.node_steps, plan.node_steps());
    found
}

/// The outcome of every plan that the tree has: each merge is split at some step, the last at the latest, and none
/// before the merge above it.
fn every_plan(rows: &[Vec<f64>], weights: &[f64], tree: &Tree) -> Vec<Outcome> {
    let (n, steps) = (rows.len(), weights.len());
    let mut outcomes = Vec::new();
    for code in 0..steps.pow((n - 1) as u32) {
        let split: Vec<usize> = (0..n - 1).map(|merge| code / steps.pow(merge as u32) % steps).collect();
        let parent = |merge: usize| tree.parent(n + merge).map_or(0, |parent| split[parent - n]);
        if (0..n - 1).any(|merge| split[merge] < parent(merge)) {
            continue;
        }
        // The cluster of a leaf is the highest node above it that is whole.
        let cluster = |leaf: usize, step: usize| {
            let above = std::iter::successors(Some(leaf), |&node| tree.parent(node));
            above.filter(|&node| node < n || split[node - n] > step).max().unwrap()
        };
        let labels: Vec<Vec<usize>> = (0..steps).map(|step| (0..n).map(|leaf| cluster(leaf, step)).collect()).collect();
        outcomes.push(outcome(rows, weights, &labels));
    }
    outcomes
}

/// Points and weights that never fall.
fn cases() -> impl Strategy<Value = (Vec<Vec<f64>>, Vec<f64>)> {
    let coordinate = prop_oneof![-1.0..1.0f64, (-2..3i32).prop_map(f64::from)];
    let rows = (2..=6usize, 1..=3usize)
        .prop_flat_map(move |(n, d)| prop::collection::vec(prop::collection::vec(coordinate.clone(), d), n));
    let weights = prop::collection::vec(prop_oneof![0.01..10.0f64, (1..4i32).prop_map(f64::from)], 1..=3);
    (rows, weights).prop_map(|(rows, mut weights)| {
        weights.sort_by(f64::total_cmp);
        (rows, weights)
    })
}

proptest! {
    #[test]
    fn heights_are_increases_of_the_sum_of_squares((rows, _) in cases()) {
        let tree = build(&rows, WARD).unwrap();
        let squares = |node: usize| {
            let (begin, end) = tree.range(node);
            let members: Vec<usize> =
                tree.leaf_order()[begin as usize..end as usize].iter().map(|&leaf| leaf as usize).collect();
            sum_of_squares(&rows, &members)
        };
        for (merge, (&[a, b], height)) in tree.merges().iter().zip(tree.heights()).enumerate() {
            let increase = squares(rows.len() + merge) - squares(a as usize) - squares(b as usize);
            prop_assert!((height * height / 2.0 - increase).abs() <= 1e-5 * increase + 1e-12);
        }
    }

    #[test]
    fn no_plan_of_equal_cost_has_a_lower_error((rows, weights) in cases(), place in 0.0..1.2f64) {
        let tree = build(&rows, WARD).unwrap();
        let all = every_plan(&rows, &weights, &tree);
        let shape = measured_shape(&weights).unwrap();
        let top = tree.sorted_heights().last().unwrap() * (weights.last().unwrap() / weights[0]).sqrt();
        // Anywhere, and exactly where a height meets a threshold.
        let ratios: Vec<f64> = weights.iter().map(|weight| (weight / weights[0]).sqrt()).collect();
        let ties = tree.heights().iter().flat_map(|height| ratios.iter().map(move |ratio| height * ratio));
        for tau in ties.chain([place * top]) {
            let phi: Vec<f64> = shape.iter().map(|x| tau * x).collect();
            let ours = planned(&rows, &weights, &tree, &phi);
            // The price of a node-step in units of the error. Tau is the threshold of the first step.
            let price = weights[0] * tau * tau / 2.0;
            for other in &all {
                let slack = 1e-5 * (ours.error + other.error) + 1e-9;
                let (own, others) = (
                    ours.error + price * ours.node_steps as f64,
                    other.error + price * other.node_steps as f64,
                );
                prop_assert!(own <= others + slack + 1e-5 * others, "{ours:?} {other:?} tau {tau}");
                if other.node_steps <= ours.node_steps {
                    prop_assert!(ours.error <= other.error + slack + 1e-5 * others, "{ours:?} {other:?} tau {tau}");
                }
            }
        }
    }
}

#[test]
fn another_schedule_is_not_as_good() {
    // Two near pairs far apart; late steps cost a hundred times as much as early ones.
    let rows = [vec![0.0], vec![1.0], vec![3.0], vec![4.5]];
    let weights = [1.0, 100.0, 100.0];
    let tree = build(&rows, WARD).unwrap();
    let all = every_plan(&rows, &weights, &tree);
    let least =
        |most: usize| all.iter().filter(|one| one.node_steps <= most).map(|one| one.error).fold(f64::MAX, f64::min);
    let outcomes = |shape: &[f64]| {
        let of_tau = |i: i32| {
            let phi: Vec<f64> = shape.iter().map(|x| f64::from(i) / 10.0 * x).collect();
            planned(&rows, &weights, &tree, &phi)
        };
        (0..100).map(of_tau).collect::<Vec<_>>()
    };
    let is_best = |one: &Outcome| one.error <= least(one.node_steps) * (1.0 + 1e-9);
    assert!(outcomes(&measured_shape(&weights).unwrap()).iter().all(is_best));
    assert!(!outcomes(&Schedule::Linear.shape(3).unwrap()).iter().all(is_best));
}

#[test]
fn shapes() {
    let shape = |weights: &[f64]| measured_shape(weights).unwrap();
    assert_eq!(shape(&[1.0, 4.0, 16.0, 16.0]), [1.0, 0.5, 0.25, 0.0]);
    assert_eq!(shape(&[4e-300, 16e-300, 1.0]), [1.0, 0.5, 0.0]);
    // Only ratios count, even the greatest there are; and the last weight does not.
    assert_eq!(shape(&[5.0, 5.0, 0.0]), [1.0, 1.0, 0.0]);
    assert!(shape(&[5e-324, f64::MAX, 1.0])[1] > 0.0);
    assert_eq!(shape(&[7.0]), [0.0]);
    // Where weights fall, the thresholds stay.
    assert_eq!(shape(&[1.0, 4.0, 1.0, 16.0, 0.0, 1.0]), [1.0, 0.5, 0.5, 0.25, 0.25, 0.0]);
    assert_eq!(shape(&[4.0, 1.0, 1.0]), [1.0, 1.0, 0.0]);
    // Weights that limit nothing.
    assert_eq!(shape(&[0.0, -1.0, 1.0, 4.0, 1.0]), [1.0, 1.0, 1.0, 0.5, 0.0]);
}

#[test]
fn bad_weights_are_named() {
    assert_eq!(measured_shape(&[]), Err(Error::Empty { what: "weights" }));
    for bad in [f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(measured_shape(&[1.0, bad, f64::NAN]), Err(Error::BadWeight { step: 1, value: bad }));
    }
    assert!(matches!(measured_shape(&[f64::NAN]), Err(Error::BadWeight { step: 0, .. })));
    assert_eq!(measured_shape(&[0.0, -1.0, 0.0]), Err(Error::NoPositiveWeight { steps: 2 }));
    assert_eq!(measured_shape(&[0.0, 1.0]), Err(Error::NoPositiveWeight { steps: 1 }));
    assert_eq!(measured_shape(&[0.0]), Err(Error::NoPositiveWeight { steps: 0 }));
}

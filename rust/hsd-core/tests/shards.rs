//! Shards and units: every prompt once, and the cheapest cuts there are.

mod common;

use common::{plan, whole_plan};
use hsd_core::{Error, Plan};
use proptest::prelude::*;

/// The kept prompts in leaf order.
fn leaves(plan: &Plan) -> Vec<i64> {
    let order = plan.tree().leaf_order().iter();
    order.filter(|leaf| plan.kept().contains(leaf)).map(|&leaf| i64::from(leaf)).collect()
}

/// Node-steps of every run of kept leaves, by begin and end: by pruning, without a word about neighbours.
fn costs(plan: &Plan) -> Vec<Vec<usize>> {
    let leaves = leaves(plan);
    let cost = |begin, end| plan.prune(&leaves[begin..end]).unwrap().node_steps();
    (0..leaves.len())
        .map(|begin| (0..=leaves.len()).map(|end| if end > begin { cost(begin, end) } else { 0 }).collect())
        .collect()
}

/// The most that a share may cost.
fn limit(least: usize, slack: f64) -> usize {
    least.saturating_add((least as f64 * slack) as usize)
}

/// Largest share and sum, over every way to cut `costs` into `n` shares: the least sum within the slack, and then the
/// least largest share.
fn by_brute_force(costs: &[Vec<usize>], n: usize, slack: f64) -> (usize, usize) {
    let m = costs.len();
    let ways: Vec<(usize, usize)> = (0..1u32 << (m - 1))
        .filter(|cuts| cuts.count_ones() as usize == n - 1)
        .map(|cuts| {
            let ends: Vec<usize> = (1..m).filter(|end| cuts >> (end - 1) & 1 == 1).chain([m]).collect();
            let begins = std::iter::once(0).chain(ends.iter().copied());
            let shares: Vec<usize> = begins.zip(&ends).map(|(begin, &end)| costs[begin][end]).collect();
            (*shares.iter().max().unwrap(), shares.iter().sum())
        })
        .collect();
    let least = ways.iter().map(|way| way.0).min().unwrap();
    let fitting = ways.into_iter().filter(|way| way.0 <= limit(least, slack));
    fitting.min_by_key(|&(largest, sum)| (sum, largest)).unwrap()
}

/// The least sum of `n` shares of at most `limit`, by the plain recurrence over shares and ends.
fn by_recurrence(costs: &[Vec<usize>], n: usize, limit: usize) -> Option<usize> {
    let m = costs.len();
    let mut sums = vec![None; m + 1];
    sums[0] = Some(0);
    for _ in 0..n {
        let next = |end| {
            (0..end)
                .filter(|&begin| costs[begin][end] <= limit)
                .filter_map(|begin| Some(sums[begin]? + costs[begin][end]))
                .min()
        };
        sums = (0..=m).map(next).collect();
    }
    sums[m]
}

/// Every kept prompt is in one part, each part is what pruning gives, and is a run of the leaf order.
fn check_parts(plan: &Plan, parts: &[Plan]) {
    let order = leaves(plan);
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for part in parts {
        let places: Vec<usize> = order
            .iter()
            .enumerate()
            .filter(|(_, leaf)| part.kept().contains(&(**leaf as u32)))
            .map(|(at, _)| at)
            .collect();
        runs.push((places[0], places[places.len() - 1] + 1));
        assert_eq!(places.len(), part.kept().len());
        assert_eq!(part, &plan.prune(&order[places[0]..places[places.len() - 1] + 1]).unwrap());
    }
    runs.sort_unstable();
    assert_eq!((runs[0].0, runs[runs.len() - 1].1), (0, order.len()));
    assert!(runs.windows(2).all(|pair| pair[0].1 == pair[1].0));
}

fn cost(parts: &[Plan]) -> usize {
    parts.iter().map(Plan::node_steps).sum()
}

fn largest(parts: &[Plan]) -> usize {
    parts.iter().map(Plan::node_steps).max().unwrap()
}

/// None, the default, a lot, and so much that nothing is balanced.
fn slack() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(0.02), 0.0..1.0, Just(1e300)]
}

proptest! {
    #[test]
    fn shards_are_the_cheapest_of_all_that_are_even_enough(plan in plan(10), n in 1..12usize, slack in slack()) {
        let shards = plan.shard(n as i64, slack).unwrap();
        let shares = n.min(plan.kept().len());
        prop_assert_eq!(shards.len(), shares);
        check_parts(&plan, &shards);
        prop_assert_eq!((largest(&shards), cost(&shards)), by_brute_force(&costs(&plan), shares, slack));
    }

    #[test]
    fn many_shards_are_the_cheapest_too(plan in whole_plan(40), n in 2..40usize, slack in slack()) {
        let (shares, costs) = (n.min(plan.kept().len()), costs(&plan));
        let least = largest(&plan.shard(n as i64, 0.0).unwrap());
        prop_assert_eq!(by_recurrence(&costs, shares, least - 1), None);
        let shards = plan.shard(n as i64, slack).unwrap();
        prop_assert_eq!(Some(cost(&shards)), by_recurrence(&costs, shares, limit(least, slack)));
        prop_assert_ne!(Some(cost(&shards)), by_recurrence(&costs, shares, largest(&shards) - 1));
    }

    #[test]
    fn units_make_every_prompt_once_and_get_smaller(plan in plan(40), workers in 1..6i64, per_worker in 0..5i64) {
        let units = plan.units(workers, (per_worker > 0).then_some(per_worker)).unwrap();
        check_parts(&plan, &units);
        prop_assert!(units.windows(2).all(|pair| pair[0].node_steps() >= pair[1].node_steps()));
        prop_assert!(units.len() <= (workers * per_worker.max(8)) as usize);
        prop_assert!(units.len() >= plan.kept().len().min(workers as usize));
        if per_worker == 0 {
            // The default is one of these numbers for each worker.
            prop_assert!((1..9).any(|count| plan.units(workers, Some(count)).unwrap() == units));
        }
    }

    #[test]
    fn the_first_units_are_no_larger_than_they_have_to_be(plan in whole_plan(40), workers in 1..4i64, per_worker in 1..5i64) {
        let units = plan.units(workers, Some(per_worker)).unwrap();
        let (equal, slack) = if per_worker < 3 { (per_worker, 0.05) } else { (2, 0.2) };
        let least = largest(&plan.shard(workers * equal, 0.0).unwrap());
        prop_assert!(largest(&units) <= limit(least, slack));
    }
}

/// `n` prompts over ten steps, of which all share the first `shared`, and nothing else.
fn alike(n: usize, shared: usize) -> Plan {
    let merges: Vec<[i64; 2]> = (1..n as i64).map(|i| [if i == 1 { 0 } else { n as i64 + i - 2 }, i]).collect();
    let tree = hsd_core::Tree::from_merges(&merges, vec![1.0; n - 1], "ward").unwrap();
    let phi: Vec<f64> = (0..10).map(|step| if step < shared { 2.0 } else { 0.0 }).collect();
    Plan::compile(tree.into(), &phi).unwrap()
}

/// `n` prompts that share nothing, over ten steps.
fn apart(n: usize) -> Plan {
    alike(n, 0)
}

#[test]
fn sizes_of_units_halve() {
    let sizes = |n, workers, per_worker| -> Vec<usize> {
        apart(n).units(workers, per_worker).unwrap().iter().map(|unit| unit.kept().len()).collect()
    };
    assert_eq!(sizes(160, 1, Some(5)), [80, 40, 20, 10, 10]);
    assert_eq!(sizes(160, 2, Some(4)), [40, 40, 20, 20, 10, 10, 10, 10]);
    assert_eq!(sizes(160, 2, Some(2)), [40; 4]);
    assert_eq!(sizes(160, 2, Some(1)), [80; 2]);
    // As many as the smallest ones of four images allow, and no more than eight a worker.
    assert_eq!(sizes(5, 1, None), [5]);
    assert_eq!(sizes(6, 1, None), [3, 3]);
    assert_eq!(sizes(15, 1, None), [8, 7]);
    assert_eq!(sizes(16, 1, None), [8, 4, 4]);
    // Two where the nine shared steps are at most a tenth of all.
    assert_eq!(alike(80, 9).units(1, None).unwrap().len(), 1);
    assert_eq!(alike(81, 9).units(1, None).unwrap().len(), 2);
    assert_eq!(sizes(64, 2, None), [16, 16, 8, 8, 4, 4, 4, 4]);
    assert_eq!(sizes(1024, 1, None), [512, 256, 128, 64, 32, 16, 8, 8]);
    // One prompt is not halved.
    assert_eq!(sizes(3, 1, Some(9)), [1; 3]);
    assert_eq!(sizes(5, i64::MAX, Some(i64::MAX)), [1; 5]);
}

#[test]
fn what_is_cheap_to_halve_is_halved() {
    // Ten prompts that share nine steps of ten, and two that share nothing: 19 and 20 node-steps.
    let merges: Vec<[i64; 2]> = (1..12).map(|i| [if i == 1 { 0 } else { 12 + i - 2 }, i]).collect();
    let scores = (1..12).map(|i| if i < 10 { 0.5 } else { 2.0 }).collect();
    let tree = hsd_core::Tree::from_merges(&merges, scores, "ward").unwrap();
    let phi: Vec<f64> = (0..10).map(|step| if step < 9 { 1.0 } else { 0.0 }).collect();
    let units = Plan::compile(tree.into(), &phi).unwrap().units(1, Some(3)).unwrap();
    assert_eq!(units.iter().map(|unit| unit.kept().len()).collect::<Vec<_>>(), [10, 1, 1]);
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let plan = apart(4);
    let not_positive = |what, value| Err(Error::NotPositive { what, value });
    assert_eq!(plan.shard(0, 0.0), not_positive("the number of shards", 0));
    assert_eq!(plan.units(0, None), not_positive("the number of workers", 0));
    assert_eq!(plan.units(1, Some(-1)), not_positive("per_worker", -1));
    for slack in [-0.1, f64::INFINITY] {
        assert_eq!(plan.shard(2, slack), Err(Error::BadSlack { slack }));
    }
    assert!(matches!(plan.shard(2, f64::NAN), Err(Error::BadSlack { .. })));
}

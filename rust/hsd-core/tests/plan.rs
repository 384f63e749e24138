//! Plans: what is compiled and pruned, and what is refused.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{phi, plan, set_field, tree, whole_plan};
use hsd_core::plan::schedule::counts;
use hsd_core::plan::validate::validate;
use hsd_core::{Error, Plan, Rows, Segment, Tree};
use proptest::prelude::*;

/// The clusters of each step by cutting the tree step by step.
fn partition(labels: impl Iterator<Item = i64>) -> Vec<usize> {
    let mut first = BTreeMap::new();
    labels.enumerate().map(|(prompt, label)| *first.entry(label).or_insert(prompt)).collect()
}

proptest! {
    #[test]
    fn each_step_has_the_clusters_of_its_cut(tree in tree(24), phi in phi()) {
        let tree = Arc::new(tree);
        let plan = Plan::compile(Arc::clone(&tree), &phi).unwrap();
        prop_assert_eq!(plan.counts(), counts(&tree, &phi).unwrap());
        prop_assert_eq!(plan.node_steps() as i64, plan.counts().iter().sum::<i64>());
        for (step, &threshold) in phi.iter().enumerate() {
            let active = plan.active(step as i64).unwrap();
            let expected = tree.cut(threshold).unwrap();
            let active = active.into_iter().map(|row| i64::from(row.unwrap()));
            prop_assert_eq!(partition(active), partition(expected.into_iter()));
        }
    }

    #[test]
    fn a_cluster_that_stays_is_one_segment(plan in plan(24)) {
        let mut seen = std::collections::BTreeSet::new();
        for segment in plan.segments() {
            prop_assert!(seen.insert((segment.leaf_begin, segment.leaf_end)));
        }
    }

    #[test]
    fn pruning_drops_what_no_kept_prompt_needs(plan in whole_plan(24), bits in 1..u64::MAX, more in any::<u64>()) {
        let chosen = |bits: u64| -> Vec<i64> {
            (0..plan.n_prompts() as i64).filter(|prompt| bits >> prompt & 1 == 1).collect()
        };
        let keep = chosen(bits);
        prop_assume!(!keep.is_empty());
        let pruned = plan.prune(&keep).unwrap();
        prop_assert!(pruned.kept().iter().map(|&prompt| i64::from(prompt)).eq(keep.iter().copied()));
        for step in 0..plan.n_steps() {
            let (whole, part) = (plan.active(step as i64).unwrap(), pruned.active(step as i64).unwrap());
            for prompt in 0..plan.n_prompts() {
                let same = part[prompt].map(|row| Segment { parent: None, ..pruned.segments()[row as usize] });
                let expected = keep.contains(&(prompt as i64)).then(|| {
                    Segment { parent: None, ..plan.segments()[whole[prompt].unwrap() as usize] }
                });
                prop_assert_eq!(same, expected);
            }
        }
        let again = chosen(bits & more);
        if !again.is_empty() {
            prop_assert_eq!(pruned.prune(&again).unwrap(), plan.prune(&again).unwrap());
        }
        if let Some(dropped) = (0..plan.n_prompts()).find(|&prompt| !keep.contains(&(prompt as i64))) {
            prop_assert_eq!(pruned.prune(&[dropped as i64]), Err(Error::NotKept { prompt: dropped }));
        }
    }

    #[test]
    fn a_changed_segment_is_refused(
        plan in whole_plan(16), row in any::<prop::sample::Index>(), field in 0..6, value in -1..24i32,
    ) {
        let mut segments = plan.segments().to_vec();
        set_field(&mut segments[row.index(plan.segments().len())], field, value);
        let verdict = validate(plan.tree(), plan.phi(), plan.kept(), &segments);
        prop_assert_eq!(verdict.is_ok(), segments == plan.segments());
    }

    #[test]
    fn a_lost_doubled_or_moved_segment_is_refused(
        plan in whole_plan(16), rows in any::<[prop::sample::Index; 2]>(), kind in 0..3,
    ) {
        let mut segments = plan.segments().to_vec();
        let [x, y] = rows.map(|row| row.index(plan.segments().len()));
        match kind {
            0 => drop(segments.remove(x)),
            1 => segments.insert(y, segments[x]),
            _ => segments.swap(x, y),
        }
        let verdict = validate(plan.tree(), plan.phi(), plan.kept(), &segments);
        prop_assert_eq!(verdict.is_ok(), segments == plan.segments());
    }

    #[test]
    fn a_wrong_list_of_kept_prompts_is_refused(plan in whole_plan(16), kept in prop::collection::vec(0..20u32, 0..4)) {
        // Too few kept prompts leave segments without one, unless they share all of them.
        let verdict = validate(plan.tree(), plan.phi(), &kept, plan.segments());
        prop_assert_eq!(verdict.is_ok(), kept == plan.kept());
    }
}

#[test]
fn chains_of_a_million_prompts_compile() {
    let n = 1_000_000i64;
    let merges: Vec<[i64; 2]> =
        (0..n - 1).map(|merge| [if merge == 0 { 0 } else { n + merge - 1 }, merge + 1]).collect();
    let scores: Vec<f64> = (0..n - 1).map(|merge| merge as f64 / n as f64).collect();
    let tree = Arc::new(Tree::from_merges(&merges, scores, "ward").unwrap());
    let phi: Vec<f64> = (0..50).rev().map(|step| f64::from(step) / 49.0).collect();
    let plan = Plan::compile(Arc::clone(&tree), &phi).unwrap();
    assert_eq!(plan.counts(), counts(&tree, &phi).unwrap());
    assert_eq!(plan.shard(3, 0.02).unwrap().len(), 3);
}

#[test]
fn one_step_is_standard_diffusion() {
    let tree = Tree::from_merges(&[[0, 1]], vec![0.0], "ward").unwrap();
    let plan = Plan::compile(Arc::new(tree), &[0.0]).unwrap();
    assert_eq!(plan.counts(), [2]);
    let rows = Rows::new(1, 1, None).unwrap();
    assert_eq!([true, false].map(|mixed_steps| rows.lower_bound(&plan.counts(), mixed_steps)), [2, 2]);
    assert_eq!(plan.active(1), Err(Error::NoSuchStep { step: 1, last: 0 }));
    assert_eq!(plan.active(-1), Err(Error::NoSuchStep { step: -1, last: 0 }));
    assert_eq!(plan.prune(&[]), Err(Error::Empty { what: "prompts to keep" }));
    assert_eq!(plan.prune(&[1, 1]), Err(Error::Repeated { what: "prompt", index: 1 }));
    assert_eq!(plan.prune(&[-1]), Err(Error::OutOfRange { what: "prompt", index: -1, count: 2 }));
}

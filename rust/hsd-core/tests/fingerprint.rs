//! The fingerprint: the same for what gives the same images, another for anything else.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::plan;
use hsd_core::plan::file::fingerprint;
use hsd_core::{Plan, Tree};
use proptest::prelude::*;

fn of(plan: &Plan) -> String {
    let n = plan.n_prompts();
    fingerprint(plan, &vec!["p"; n], &vec![3; n], "{}").unwrap()
}

/// The clusters of each step, written out.
fn clusters(plan: &Plan) -> Vec<BTreeSet<Vec<u32>>> {
    let whole = Plan::compile(Arc::clone(plan.tree()), plan.phi()).unwrap();
    let at = |step| {
        let mut members = vec![Vec::new(); whole.segments().len()];
        let rows = whole.active(step).unwrap();
        rows.iter().enumerate().for_each(|(prompt, row)| members[row.unwrap() as usize].push(prompt as u32));
        members.into_iter().filter(|prompts| !prompts.is_empty()).collect()
    };
    (0..whole.n_steps() as i64).map(at).collect()
}

/// The same tree with its merges in another order, their children exchanged, and its scores scaled.
fn rewritten(tree: &Tree, scale: f64) -> Tree {
    let n = tree.n_leaves();
    // Highest last, as SciPy sorts them: children still come before parents.
    let mut order: Vec<usize> = (0..n - 1).collect();
    order.sort_by(|&x, &y| tree.heights()[x].total_cmp(&tree.heights()[y]));
    let mut name: Vec<i64> = (0..2 * n as i64 - 1).collect();
    order.iter().enumerate().for_each(|(row, &merge)| name[n + merge] = (n + row) as i64);
    let merges: Vec<[i64; 2]> =
        order.iter().map(|&merge| tree.merges()[merge]).map(|[a, b]| [name[b as usize], name[a as usize]]).collect();
    let scores = order.iter().map(|&merge| tree.scores()[merge] * scale).collect();
    Tree::from_merges(&merges, scores, "average").unwrap()
}

proptest! {
    #[test]
    fn it_tells_clusters_apart_and_nothing_else(a in plan(5), b in plan(5)) {
        prop_assert_eq!(of(&a) == of(&b), clusters(&a) == clusters(&b));
    }

    #[test]
    fn the_order_of_the_merges_does_not_matter(plan in plan(12)) {
        let other = Plan::compile(Arc::new(rewritten(plan.tree(), 1.0)), plan.phi()).unwrap();
        prop_assert_eq!(of(&other), of(&plan));
    }

    #[test]
    fn the_last_bits_of_the_scores_do_not_matter(plan in plan(12), up in any::<bool>()) {
        let scale = if up { 1.0 + f64::EPSILON } else { 1.0 - f64::EPSILON };
        let other = Plan::compile(Arc::new(rewritten(plan.tree(), scale)), plan.phi()).unwrap();
        // Unless one of them lies exactly at a threshold, and then the clusters are others.
        prop_assert_eq!(of(&other) == of(&plan), clusters(&other) == clusters(&plan));
        let phi: Vec<f64> = plan.phi().iter().map(|phi| phi * scale).collect();
        let both = Plan::compile(Arc::new(rewritten(plan.tree(), scale)), &phi).unwrap();
        prop_assert_eq!(of(&both) == of(&plan), clusters(&both) == clusters(&plan));
    }
}

#[test]
fn it_is_the_same_on_every_machine() {
    let tree = Tree::from_merges(&[[0, 2], [1, 3]], vec![0.3, 0.7], "ward").unwrap();
    let plan = Plan::compile(Arc::new(tree), &[1.0, 0.5, 0.0]).unwrap();
    assert_eq!(of(&plan), "a29c914760b1442b15287bd0cd052dec4ca0996abbd1cc8d910ee565a651131e");
}

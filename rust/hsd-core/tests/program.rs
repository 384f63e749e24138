//! Programs: sound at any batch size, order and number of slots, and close to the bound.

mod common;

use std::sync::Arc;

use common::plan;
use hsd_core::forest::least_slots;
use hsd_core::simulate::Checker;
use hsd_core::{Error, Lane, Order, Plan, Program, Progress, Result, Segment, Tree};
use proptest::prelude::*;

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Depth), Just(Order::Breadth)]
}

/// The fewest slots in which one lane at a time can run `segment`, over every order of its children.
fn fewest_slots(segments: &[Segment], row: usize) -> usize {
    let needs: Vec<usize> = (0..segments.len())
        .filter(|&child| segments[child].parent == Some(row as u32))
        .map(|child| fewest_slots(segments, child))
        .collect();
    // All but one child run beside their parent's latent; which one runs last is free.
    let beside = |last: usize| needs.iter().enumerate().map(|(at, need)| need + usize::from(at != last)).max();
    (0..needs.len()).filter_map(beside).min().unwrap_or(1)
}

fn compile(plan: &Arc<Plan>, batch_size: i64, order: Order, max_slots: Option<i64>) -> Result<Program> {
    Program::compile(Arc::clone(plan), batch_size, order, max_slots, &mut Progress::unwatched())
}

/// Whether `calls` run `plan` in `n_slots` slots.
fn is_sound(plan: &Plan, batch_size: usize, n_slots: usize, calls: &[Vec<Lane>]) -> bool {
    let mut checker = Checker::new(plan, batch_size);
    calls.iter().all(|lanes| checker.check(lanes).is_ok()) && checker.finish() == Ok(n_slots)
}

/// A lane of a table, counted over all of its calls.
fn lane_at(calls: &mut [Vec<Lane>], at: prop::sample::Index) -> &mut Lane {
    let mut lanes: Vec<&mut Lane> = calls.iter_mut().flatten().collect();
    let at = at.index(lanes.len());
    lanes.swap_remove(at)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn breadth_meets_the_bound(plan in plan(40), batch_size in 1..41i64) {
        let program = compile(&Arc::new(plan), batch_size, Order::Breadth, None).unwrap();
        prop_assert_eq!(program.n_calls(), program.lower_bound());
    }

    #[test]
    fn least_slots_is_the_fewest_that_any_order_needs(plan in plan(24)) {
        let segments = plan.segments();
        let roots = (0..segments.len()).filter(|&row| segments[row].parent.is_none());
        let fewest = roots.map(|row| fewest_slots(segments, row)).max().unwrap();
        prop_assert_eq!(least_slots(segments), fewest);
    }

    #[test]
    fn few_slots_never_deadlock(plan in plan(40), batch_size in 1..41i64, order in order(), spare in 0..6usize) {
        // Compiling proves the program sound.
        let least = least_slots(plan.segments());
        let limit = least + spare;
        let plan = Arc::new(plan);
        let program = compile(&plan, batch_size, order, Some(limit as i64)).unwrap();
        prop_assert!(program.n_slots() <= limit);
        prop_assert!(program.n_calls() >= program.lower_bound());
        prop_assert!(program.n_calls() <= compile(&plan, batch_size, Order::Depth, Some(limit as i64)).unwrap().n_calls());
        let error = compile(&plan, batch_size, order, Some(least as i64 - 1)).unwrap_err();
        prop_assert_eq!(error, Error::TooFewSlots { max_slots: least as i64 - 1, least });
    }

    #[test]
    fn one_lane_at_a_time_needs_the_least_slots(plan in plan(24)) {
        let least = least_slots(plan.segments());
        let program = compile(&Arc::new(plan), 1, Order::Depth, None).unwrap();
        prop_assert_eq!(program.n_slots(), least);
        prop_assert_eq!(program.n_calls(), program.lower_bound());
    }

    #[test]
    fn calls_are_made_again_as_they_were_checked(
        plan in plan(40), batch_size in 1..41i64, order in order(), limited in any::<bool>(),
    ) {
        let limit = limited.then(|| least_slots(plan.segments()) as i64 + 1);
        let plan = Arc::new(plan);
        let program = compile(&plan, batch_size, order, limit).unwrap();
        let calls: Vec<Vec<Lane>> = program.calls().collect();
        prop_assert_eq!((calls.len(), program.calls().len()), (program.n_calls(), program.n_calls()));
        prop_assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), plan.node_steps());
        prop_assert!(is_sound(&plan, batch_size as usize, program.n_slots(), &calls));
        let mut again = program.calls();
        for lanes in &calls {
            prop_assert_eq!(again.next_call(), Some(&lanes[..]));
        }
        prop_assert_eq!(again.next_call(), None);
        prop_assert_eq!(program.occupancy(), plan.node_steps() as f64 / (calls.len() * batch_size as usize) as f64);
    }

    #[test]
    fn a_changed_lane_is_refused(
        plan in plan(16), batch_size in 1..9i64, order in order(), at in any::<prop::sample::Index>(),
        field in 0..7, value in 0..12u32,
    ) {
        let plan = Arc::new(plan);
        let program = compile(&plan, batch_size, order, None).unwrap();
        let mut calls: Vec<Vec<Lane>> = program.calls().collect();
        let lane = lane_at(&mut calls, at);
        let before = *lane;
        // A finished latent may come to lie in any slot that is free, if its segment has no other step.
        let free_to_move = before.last && before.begins;
        match field {
            0 => lane.segment = value,
            1 => lane.step = value,
            2 => lane.source = value,
            3 if !free_to_move => lane.target = value,
            4 => lane.fresh ^= true,
            5 => lane.begins ^= true,
            6 => lane.last ^= true,
            _ => {}
        }
        let changed = *lane != before;
        prop_assert_eq!(is_sound(&plan, batch_size as usize, program.n_slots(), &calls), !changed);
    }

    #[test]
    fn a_lost_or_doubled_lane_or_call_is_refused(
        plan in plan(16), batch_size in 1..9i64, order in order(), at in any::<prop::sample::Index>(), kind in 0..4,
    ) {
        let plan = Arc::new(plan);
        let program = compile(&plan, batch_size, order, None).unwrap();
        let mut calls: Vec<Vec<Lane>> = program.calls().collect();
        match kind {
            0 => drop(calls.last_mut().unwrap().pop()),
            1 => {
                let lane = *lane_at(&mut calls, at);
                calls.push(vec![lane]);
            }
            2 => calls.insert(0, Vec::new()),
            // All calls as one: no lane may read what another one of its call writes.
            _ if calls.len() > 1 => calls = vec![calls.concat()],
            _ => return Ok(()),
        }
        let together = kind == 3 && plan.n_steps() == 1;
        prop_assert!(!is_sound(&plan, plan.node_steps() + 1, program.n_slots(), &calls) || together);
    }
}

#[test]
fn wide_forks_and_many_roots() {
    // A star: all prompts fork from one segment; and no sharing at all.
    let n = 300i64;
    let merges: Vec<[i64; 2]> =
        (0..n - 1).map(|merge| [if merge == 0 { 0 } else { n + merge - 1 }, merge + 1]).collect();
    let tree = Arc::new(Tree::from_merges(&merges, vec![0.5; 299], "ward").unwrap());
    for phi in [[1.0, 1.0, 0.0], [0.0; 3]] {
        let plan = Arc::new(Plan::compile(Arc::clone(&tree), &phi).unwrap());
        for order in [Order::Depth, Order::Breadth] {
            for max_slots in [None, Some(9), Some(2)] {
                let program = compile(&plan, 8, order, max_slots).unwrap();
                assert!(max_slots.is_none_or(|most| program.n_slots() <= most as usize));
                assert!(max_slots == Some(2) || program.n_calls() <= program.lower_bound() + 3);
            }
        }
    }
}

#[test]
fn parameters_that_do_not_fit_are_named() {
    let tree = Tree::from_merges(&[], vec![], "ward").unwrap();
    let plan = Arc::new(Plan::compile(Arc::new(tree), &[0.0]).unwrap());
    let compile = |batch_size, slots| compile(&plan, batch_size, Order::Depth, slots);
    assert_eq!(compile(0, None), Err(Error::NotPositive { what: "batch_size", value: 0 }));
    assert_eq!(compile(1, Some(-1)), Err(Error::TooFewSlots { max_slots: -1, least: 1 }));
    assert!("sideways".parse::<Order>().is_err());
    let program = compile(4, Some(1)).unwrap();
    assert_eq!((program.n_calls(), program.n_slots(), program.occupancy()), (1, 1, 0.25));
}

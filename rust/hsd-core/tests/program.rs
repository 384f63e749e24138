//! Programs: sound at any batch size, order and number of slots, and close to the bound.

mod common;

use std::sync::Arc;

use common::plan;
use hsd_core::forest::Forest;
use hsd_core::simulate::simulate;
use hsd_core::{Error, Lane, Order, Plan, Program, Segment, Tree};
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

fn table(program: &Program) -> (Vec<Lane>, Vec<usize>) {
    let lanes: Vec<Lane> = program.calls().flatten().copied().collect();
    let mut end = 0;
    let ends = program.calls().map(|call| {
        end += call.len();
        end
    });
    let ends = ends.collect();
    (lanes, ends)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn breadth_meets_the_bound(plan in plan(40), batch_size in 1..41i64) {
        let program = Program::compile(Arc::new(plan), batch_size, Order::Breadth, None).unwrap();
        prop_assert_eq!(program.n_calls(), program.lower_bound());
    }

    #[test]
    fn least_slots_is_the_fewest_that_any_order_needs(plan in plan(24)) {
        let segments = plan.segments();
        let roots = (0..segments.len()).filter(|&row| segments[row].parent.is_none());
        let fewest = roots.map(|row| fewest_slots(segments, row)).max().unwrap();
        prop_assert_eq!(Forest::new(segments).least_slots(), fewest);
    }

    #[test]
    fn few_slots_never_deadlock(plan in plan(40), batch_size in 1..41i64, order in order(), spare in 0..6usize) {
        // Compiling proves the program sound.
        let limit = Forest::new(plan.segments()).least_slots() + spare;
        let plan = Arc::new(plan);
        let program = Program::compile(Arc::clone(&plan), batch_size, order, Some(limit as i64)).unwrap();
        prop_assert!(program.n_slots() <= limit);
        prop_assert_eq!(program.calls().map(<[Lane]>::len).sum::<usize>(), plan.node_steps());
        prop_assert!(program.n_calls() >= program.lower_bound());
        let least = Forest::new(plan.segments()).least_slots();
        let error = Program::compile(plan, batch_size, order, Some(least as i64 - 1)).unwrap_err();
        prop_assert_eq!(error, Error::TooFewSlots { max_slots: least as i64 - 1, least });
    }

    #[test]
    fn one_lane_at_a_time_needs_the_least_slots(plan in plan(24)) {
        let least = Forest::new(plan.segments()).least_slots();
        let program = Program::compile(Arc::new(plan), 1, Order::Depth, None).unwrap();
        prop_assert_eq!(program.n_slots(), least);
        prop_assert_eq!(program.n_calls(), program.lower_bound());
    }

    #[test]
    fn a_changed_lane_is_refused(
        plan in plan(16), batch_size in 1..9i64, order in order(), at in any::<prop::sample::Index>(),
        field in 0..7, value in 0..12u32,
    ) {
        let plan = Arc::new(plan);
        let program = Program::compile(Arc::clone(&plan), batch_size, order, None).unwrap();
        let (mut lanes, ends) = table(&program);
        let n_slots = program.n_slots();
        prop_assert!(simulate(&plan, batch_size as usize, n_slots, &lanes, &ends).is_ok());
        let at = at.index(lanes.len());
        let before = lanes[at];
        // A finished latent may come to lie in any slot that is free, if its segment has no other step.
        let free_to_move = before.last && before.begins;
        let lane = &mut lanes[at];
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
        let changed = lanes[at] != before;
        prop_assert_eq!(simulate(&plan, batch_size as usize, n_slots, &lanes, &ends).is_err(), changed);
    }

    #[test]
    fn a_lost_or_doubled_lane_or_call_is_refused(
        plan in plan(16), batch_size in 1..9i64, order in order(), at in any::<prop::sample::Index>(), kind in 0..4,
    ) {
        let plan = Arc::new(plan);
        let program = Program::compile(Arc::clone(&plan), batch_size, order, None).unwrap();
        let (mut lanes, mut ends) = table(&program);
        match kind {
            0 => {
                lanes.pop();
                *ends.last_mut().unwrap() -= 1;
            }
            1 => {
                lanes.push(lanes[at.index(lanes.len())]);
                ends.push(lanes.len());
            }
            2 => ends.insert(0, 0),
            // All calls as one: no lane may read what another one of its call writes.
            _ if ends.len() > 1 => ends = vec![lanes.len()],
            _ => return Ok(()),
        }
        let enough = lanes.len();
        let together = kind == 3 && plan.n_steps() == 1;
        let sound = simulate(&plan, enough, program.n_slots(), &lanes, &ends).is_ok();
        prop_assert!(!sound || together);
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
                let program = Program::compile(Arc::clone(&plan), 8, order, max_slots).unwrap();
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
    let compile = |batch_size, slots| Program::compile(Arc::clone(&plan), batch_size, Order::Depth, slots);
    assert_eq!(compile(0, None), Err(Error::NotPositive { what: "batch_size", value: 0 }));
    assert_eq!(compile(1, Some(-1)), Err(Error::TooFewSlots { max_slots: -1, least: 1 }));
    assert!("sideways".parse::<Order>().is_err());
    let program = compile(4, Some(1)).unwrap();
    assert_eq!((program.n_calls(), program.n_slots(), program.occupancy()), (1, 1, 0.25));
}

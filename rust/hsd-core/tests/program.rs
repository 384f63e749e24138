//! Programs: sound at any batch size, order and number of slots, and close to the bound.

mod common;

use std::sync::Arc;

use common::any_plan as plan;
use hsd_core::program::forest::least_slots;
use hsd_core::program::validate::Checker;
use hsd_core::{Error, Kinds, Lane, Order, PerLane, Plan, Program, Progress, Result, Rows, Segment, Tree};
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

/// Calls of up to `batch_size` lanes, of mixed steps or not.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch_size: i64,
    order: Order,
    mixed_steps: bool,
}

fn shape(most: i64) -> impl Strategy<Value = Shape> {
    let fields = (1..=most, order(), any::<bool>());
    fields.prop_map(|(batch_size, order, mixed_steps)| Shape { batch_size, order, mixed_steps })
}

fn compile(plan: &Arc<Plan>, shape: Shape, max_slots: Option<i64>) -> Result<Program> {
    compile_rows(plan, shape, max_slots, None)
}

fn compile_rows(plan: &Arc<Plan>, shape: Shape, max_slots: Option<i64>, rows: Option<&[i64]>) -> Result<Program> {
    let lanes = PerLane { rows, kinds: None };
    compile_lanes(plan, shape, max_slots, lanes)
}

fn compile_lanes(plan: &Arc<Plan>, shape: Shape, max_slots: Option<i64>, lanes: PerLane<'_>) -> Result<Program> {
    let Shape { batch_size, order, mixed_steps } = shape;
    Program::compile(Arc::clone(plan), batch_size, order, max_slots, mixed_steps, lanes, &mut Progress::unwatched())
}

/// A plan, and one or two rows for each of its steps.
fn plan_and_rows(most: usize) -> impl Strategy<Value = (Arc<Plan>, Vec<i64>)> {
    plan(most).prop_flat_map(|plan| {
        let rows = prop::collection::vec(1..=2i64, plan.n_steps());
        (Just(Arc::new(plan)), rows)
    })
}

/// A plan, and a kind for each of its segments: any, or the greatest length of its leaves.
fn plan_and_kinds(most: usize) -> impl Strategy<Value = (Arc<Plan>, Vec<i64>, bool)> {
    (plan(most), 1..8i64, any::<bool>()).prop_flat_map(|(plan, n_kinds, lengths)| {
        let numbers = if lengths { plan.n_prompts() } else { plan.segments().len() };
        (Just(Arc::new(plan)), prop::collection::vec(0..n_kinds, numbers), Just(lengths)).prop_map(
            |(plan, numbers, lengths)| {
                let longest = |segment: &Segment| segment.leaves().map(|leaf| numbers[leaf]).max().unwrap();
                let kinds = if lengths { plan.segments().iter().map(longest).collect() } else { numbers };
                (plan, kinds, lengths)
            },
        )
    })
}

/// Whether `calls` run `plan` in `n_slots` slots; at one step each, unless steps may be mixed.
fn is_sound(plan: &Plan, batch_size: usize, mixed_steps: bool, n_slots: usize, calls: &[Vec<Lane>]) -> bool {
    let rows = Rows::new(plan.n_steps(), batch_size as i64, None).unwrap();
    let mut checker = Checker::new(plan, &rows, None, mixed_steps);
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
    fn breadth_meets_the_bound(plan in plan(40), shape in shape(40)) {
        let program = compile(&Arc::new(plan), Shape { order: Order::Breadth, ..shape }, None).unwrap();
        prop_assert_eq!(program.n_calls(), program.lower_bound());
    }

    #[test]
    fn calls_of_one_step_meet_their_bound_in_either_order(plan in plan(40), shape in shape(40)) {
        let shape = Shape { mixed_steps: false, ..shape };
        let plan = Arc::new(plan);
        let program = compile(&plan, shape, None).unwrap();
        let mut of_step = vec![0; plan.n_steps()];
        for lanes in program.calls() {
            prop_assert!(lanes.iter().all(|lane| lane.step == lanes[0].step));
            of_step[lanes[0].step as usize] += 1;
        }
        let fewest: Vec<i64> = plan.counts().iter().map(|count| (count + shape.batch_size - 1) / shape.batch_size).collect();
        prop_assert_eq!(program.lower_bound() as i64, fewest.iter().sum::<i64>());
        prop_assert_eq!(of_step, fewest);
        prop_assert!(!program.mixed_steps());
    }

    #[test]
    fn calls_of_one_step_keep_few_latents_alive(plan in plan(120), batch_size in 1..5i64) {
        let plan = Arc::new(plan);
        let shape = Shape { batch_size, order: Order::Depth, mixed_steps: false };
        let program = compile(&plan, shape, None).unwrap();
        prop_assert!(program.n_slots() <= 2 * plan.n_steps() * batch_size as usize);
    }

    #[test]
    fn only_calls_of_one_step_pass_where_steps_are_not_mixed(plan in plan(16), shape in shape(8)) {
        let plan = Arc::new(plan);
        let calls: Vec<Vec<Lane>> = compile(&plan, shape, None).unwrap().calls().collect();
        let one_step = calls.iter().all(|lanes| lanes.iter().all(|lane| lane.step == lanes[0].step));
        let n_slots = compile(&plan, shape, None).unwrap().n_slots();
        prop_assert_eq!(is_sound(&plan, shape.batch_size as usize, false, n_slots, &calls), one_step);
    }

    #[test]
    fn least_slots_is_the_fewest_that_any_order_needs(plan in plan(24)) {
        let segments = plan.segments();
        let roots = (0..segments.len()).filter(|&row| segments[row].parent.is_none());
        let fewest = roots.map(|row| fewest_slots(segments, row)).max().unwrap();
        prop_assert_eq!(least_slots(segments), fewest);
    }

    #[test]
    fn few_slots_never_deadlock(plan in plan(40), shape in shape(40), spare in 0..40usize) {
        // Compiling proves the program sound.
        let least = least_slots(plan.segments());
        let limit = least + spare;
        let plan = Arc::new(plan);
        let program = compile(&plan, shape, Some(limit as i64)).unwrap();
        prop_assert!(program.n_slots() <= limit);
        prop_assert!(program.n_calls() >= program.lower_bound());
        let depth = Shape { order: Order::Depth, ..shape };
        prop_assert!(program.n_calls() <= compile(&plan, depth, Some(limit as i64)).unwrap().n_calls());
        let error = compile(&plan, shape, Some(least as i64 - 1)).unwrap_err();
        prop_assert_eq!(error, Error::TooFewSlots { max_slots: least as i64 - 1, least });
    }

    #[test]
    fn one_lane_at_a_time_needs_the_least_slots(plan in plan(24)) {
        let least = least_slots(plan.segments());
        let shape = Shape { batch_size: 1, order: Order::Depth, mixed_steps: true };
        let program = compile(&Arc::new(plan), shape, None).unwrap();
        prop_assert_eq!(program.n_slots(), least);
        prop_assert_eq!(program.n_calls(), program.lower_bound());
    }

    #[test]
    fn calls_are_made_again_as_they_were_checked(
        plan in plan(40), shape in shape(40), limited in any::<bool>(),
    ) {
        let batch_size = shape.batch_size as usize;
        let limit = limited.then(|| least_slots(plan.segments()) as i64 + 1);
        let plan = Arc::new(plan);
        let program = compile(&plan, shape, limit).unwrap();
        let calls: Vec<Vec<Lane>> = program.calls().collect();
        prop_assert_eq!((calls.len(), program.calls().len()), (program.n_calls(), program.n_calls()));
        prop_assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), plan.node_steps());
        prop_assert!(is_sound(&plan, batch_size, shape.mixed_steps, program.n_slots(), &calls));
        let mut again = program.calls();
        for lanes in &calls {
            prop_assert_eq!(again.next_call(), Some(&lanes[..]));
        }
        prop_assert_eq!(again.next_call(), None);
        prop_assert_eq!(program.occupancy(), plan.node_steps() as f64 / (calls.len() * batch_size) as f64);
    }

    #[test]
    fn calls_are_filled_with_rows(
        (plan, rows) in plan_and_rows(40), shape in shape(20), spare in prop::option::of(0..40usize),
    ) {
        let limit = spare.map(|spare| (least_slots(plan.segments()) + spare) as i64);
        let program = compile_rows(&plan, shape, limit, Some(&rows)).unwrap();
        let (capacity, of_lane) = (2 * shape.batch_size, |lane: &Lane| rows[lane.step as usize]);
        let mut total = 0;
        let calls: Vec<Vec<Lane>> = program.calls().collect();
        for lanes in &calls {
            let filled: i64 = lanes.iter().map(of_lane).sum();
            prop_assert!((1..=capacity).contains(&filled));
            prop_assert!(lanes.len() <= program.rows().max_lanes());
            total += filled;
        }
        // The bound in rows, written out.
        let counts = plan.counts();
        let of_step = |step: usize| counts[step] * rows[step];
        let after = |step: usize| (step..plan.n_steps()).map(of_step).sum::<i64>();
        let bound = if shape.mixed_steps {
            (0..plan.n_steps()).map(|step| step as i64 + (after(step) + capacity - 1) / capacity).max().unwrap()
        } else {
            (0..plan.n_steps()).map(|step| (of_step(step) + capacity - 1) / capacity).sum()
        };
        // Steps before k need no calls where a root begins later.
        let from_zero = !plan.is_resumed() || !shape.mixed_steps;
        prop_assert!(!from_zero || program.lower_bound() as i64 == bound);
        prop_assert!(calls.len() >= program.lower_bound());
        prop_assert_eq!((program.n_rows() as i64, after(0)), (total, total));
        prop_assert_eq!(program.occupancy(), total as f64 / (calls.len() as i64 * capacity) as f64);
        if limit.is_none() && !shape.mixed_steps {
            prop_assert_eq!(calls.len() as i64, bound);
        }
        // Rows are checked as well: one fewer in a call, and the same calls are refused where one of them is full.
        let fewer = Rows::new(plan.n_steps(), capacity / 2 - 1, Some(&rows));
        let full = calls.iter().any(|lanes| lanes.iter().map(of_lane).sum::<i64>() > capacity - 2);
        if let Ok(fewer) = fewer {
            let mut checker = Checker::new(&plan, &fewer, None, shape.mixed_steps);
            prop_assert_eq!(calls.iter().all(|lanes| checker.check(lanes).is_ok()), !full);
        }
    }

    #[test]
    fn lanes_of_equal_rows_are_as_without_rows(plan in plan(40), shape in shape(20), few in any::<bool>()) {
        let limit = few.then(|| least_slots(plan.segments()) as i64 + 2);
        let plan = Arc::new(plan);
        let all = |rows| vec![rows; plan.n_steps()];
        let calls = |size, rows: Option<&[i64]>| {
            compile_rows(&plan, Shape { batch_size: size, ..shape }, limit, rows).unwrap().calls().collect::<Vec<_>>()
        };
        prop_assert_eq!(calls(shape.batch_size, Some(&all(2))), calls(shape.batch_size, None));
        prop_assert_eq!(calls(shape.batch_size, Some(&all(1))), calls(2 * shape.batch_size, None));
    }

    #[test]
    fn a_row_that_is_left_takes_a_lane_of_one_row((plan, rows) in plan_and_rows(40), shape in shape(12)) {
        // Without a limit of slots nothing else keeps a lane from running.
        let shape = Shape { mixed_steps: true, ..shape };
        let program = compile_rows(&plan, shape, None, Some(&rows)).unwrap();
        let mut ready: Vec<(u32, u32)> = Vec::new(); // segment and step
        let segments = plan.segments();
        let first = |row: u32| segments[row as usize].first_step;
        let roots = (0..segments.len() as u32).filter(|&row| segments[row as usize].parent.is_none());
        ready.extend(roots.map(|row| (row, first(row))));
        for lanes in program.calls() {
            let filled: i64 = lanes.iter().map(|lane| rows[lane.step as usize]).sum();
            ready.retain(|&(row, step)| !lanes.iter().any(|lane| (lane.segment, lane.step) == (row, step)));
            let left = 2 * shape.batch_size - filled;
            prop_assert!(ready.iter().all(|&(_, step)| rows[step as usize] > left));
            for lane in &lanes {
                if lane.step + 1 < segments[lane.segment as usize].end_step {
                    ready.push((lane.segment, lane.step + 1));
                } else {
                    let children = (0..segments.len() as u32).filter(|&row| segments[row as usize].parent == Some(lane.segment));
                    ready.extend(children.map(|row| (row, lane.step + 1)));
                }
            }
        }
        prop_assert!(ready.is_empty());
    }

    #[test]
    fn lanes_of_a_call_are_of_one_kind(
        (plan, kinds, lengths) in plan_and_kinds(40), shape in shape(12), spare in prop::option::of(0..40usize),
        rows in prop::option::of(prop::collection::vec(1..=2i64, 64)),
    ) {
        let limit = spare.map(|spare| (least_slots(plan.segments()) + spare) as i64);
        let rows = rows.map(|rows| rows[..plan.n_steps().min(64)].to_vec()).filter(|rows| rows.len() == plan.n_steps());
        let lanes = PerLane { rows: rows.as_deref(), kinds: Some(&kinds) };
        let program = compile_lanes(&plan, shape, limit, lanes).unwrap();
        prop_assert!(limit.is_none_or(|limit| program.n_slots() as i64 <= limit));
        prop_assert_eq!(program.kinds().map(Kinds::given), Some(&kinds[..]));
        let numbered = Kinds::new(plan.segments().len(), &kinds).unwrap();
        let mut checker = Checker::new(&plan, program.rows(), Some(&numbered), shape.mixed_steps);
        let calls: Vec<Vec<Lane>> = program.calls().collect();
        for lanes in &calls {
            prop_assert_eq!(checker.check(lanes), Ok(()));
            prop_assert!(lanes.iter().all(|lane| kinds[lane.segment as usize] == kinds[lanes[0].segment as usize]));
        }
        prop_assert_eq!(checker.finish(), Ok(program.n_slots()));
        prop_assert!(program.n_calls() >= program.lower_bound());
        let any_kind = compile_lanes(&plan, shape, None, PerLane { rows: rows.as_deref(), kinds: None }).unwrap();
        prop_assert!(program.lower_bound() >= any_kind.lower_bound());
        if !shape.mixed_steps {
            let mut counts = std::collections::BTreeMap::new();
            for (segment, kind) in plan.segments().iter().zip(&kinds) {
                for step in segment.first_step..segment.end_step {
                    *counts.entry((step, kind)).or_insert(0usize) += 1;
                }
            }
            let bound: usize = counts.iter().map(|(&(step, _), count)| count.div_ceil(program.rows().lanes(step))).sum();
            prop_assert_eq!(program.lower_bound(), bound);
        }
        // Lengths fall from parent to child, and every cluster keeps its own to the end: the longest kind runs first.
        // The longest member may be pruned, or given.
        let whole = plan.kept().len() == plan.n_prompts() && !plan.is_resumed();
        let fewest = !shape.mixed_steps || (lengths && shape.order == Order::Breadth && rows.is_none() && whole);
        if limit.is_none() && fewest {
            prop_assert_eq!(program.n_calls(), program.lower_bound());
        }
    }

    #[test]
    fn one_kind_is_as_none(plan in plan(40), shape in shape(12), spare in prop::option::of(0..20usize), kind in 0..9i64) {
        let limit = spare.map(|spare| (least_slots(plan.segments()) + spare) as i64);
        let (kinds, plan) = (vec![kind; plan.segments().len()], Arc::new(plan));
        let [one, none] = [Some(&kinds[..]), None].map(|kinds| {
            let program = compile_lanes(&plan, shape, limit, PerLane { rows: None, kinds }).unwrap();
            (program.calls().collect::<Vec<_>>(), program.n_slots(), program.lower_bound())
        });
        prop_assert_eq!(one, none);
    }

    #[test]
    fn calls_of_several_kinds_are_refused((plan, kinds, _) in plan_and_kinds(16), shape in shape(8)) {
        let program = compile(&plan, shape, None).unwrap();
        let numbered = Kinds::new(plan.segments().len(), &kinds).unwrap();
        let mut checker = Checker::new(&plan, program.rows(), Some(&numbered), shape.mixed_steps);
        for (call, lanes) in program.calls().enumerate() {
            let of = |lane: &Lane| kinds[lane.segment as usize];
            let Some(at) = lanes.iter().position(|lane| of(lane) != of(&lanes[0])) else {
                prop_assert_eq!(checker.check(&lanes), Ok(()));
                continue;
            };
            let why = format!("is of kind {} in a call of kind {}", of(&lanes[at]), of(&lanes[0]));
            prop_assert_eq!(checker.check(&lanes), Err(Error::BadLane { call, lane: at, why }));
            break;
        }
    }

    #[test]
    fn a_changed_lane_is_refused(
        plan in plan(16), shape in shape(8), at in any::<prop::sample::Index>(),
        field in 0..7, value in 0..12u32,
    ) {
        let plan = Arc::new(plan);
        let program = compile(&plan, shape, None).unwrap();
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
        prop_assert_eq!(is_sound(&plan, shape.batch_size as usize, shape.mixed_steps, program.n_slots(), &calls), !changed);
    }

    #[test]
    fn a_lost_or_doubled_lane_or_call_is_refused(
        plan in plan(16), shape in shape(8), at in any::<prop::sample::Index>(), kind in 0..4,
    ) {
        let plan = Arc::new(plan);
        let program = compile(&plan, shape, None).unwrap();
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
        prop_assert!(!is_sound(&plan, plan.node_steps() + 1, shape.mixed_steps, program.n_slots(), &calls) || together);
    }
}

#[test]
fn wide_forks_and_many_roots() {
    // A star: all prompts fork from one segment; and no sharing at all.
    let n = 300i64;
    let merges: Vec<[i64; 2]> =
        (0..n - 1).map(|merge| [if merge == 0 { 0 } else { n + merge - 1 }, merge + 1]).collect();
    let tree = Arc::new(Tree::from_merges(&merges, vec![0.5; 299], "ward").unwrap());
    let limits = [None, Some(9), Some(2)];
    let cases = limits.map(|limit| (limit, true)).into_iter().chain(limits.map(|limit| (limit, false)));
    for phi in [[1.0, 1.0, 0.0], [0.0; 3]] {
        let plan = Arc::new(Plan::compile(Arc::clone(&tree), &phi).unwrap());
        for order in [Order::Depth, Order::Breadth] {
            for (max_slots, mixed_steps) in cases.clone() {
                let program = compile(&plan, Shape { batch_size: 8, order, mixed_steps }, max_slots).unwrap();
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
    let compile =
        |batch_size, slots| compile(&plan, Shape { batch_size, order: Order::Depth, mixed_steps: true }, slots);
    assert_eq!(compile(0, None), Err(Error::NotPositive { what: "batch_size", value: 0 }));
    assert_eq!(compile(1, Some(-1)), Err(Error::TooFewSlots { max_slots: -1, least: 1 }));
    let rows = |rows: &[i64]| {
        compile_rows(&plan, Shape { batch_size: 1, order: Order::Depth, mixed_steps: true }, None, Some(rows)).err()
    };
    assert_eq!(rows(&[3]), Some(Error::BadRows { step: 0, value: 3 }));
    assert_eq!(rows(&[1, 1]), Some(Error::Length { what: "rows", found: 2, expected: 1 }));
    let kinds = |kinds: &[i64]| {
        let lanes = PerLane { rows: None, kinds: Some(kinds) };
        compile_lanes(&plan, Shape { batch_size: 1, order: Order::Depth, mixed_steps: true }, None, lanes).err()
    };
    assert_eq!(kinds(&[-3]), Some(Error::BadKind { segment: 0, value: -3 }));
    assert_eq!(kinds(&[1, 1]), Some(Error::Length { what: "kinds", found: 2, expected: 1 }));
    assert_eq!(kinds(&[i64::MAX]), None);
    assert!("sideways".parse::<Order>().is_err());
    let program = compile(4, Some(1)).unwrap();
    assert_eq!((program.n_calls(), program.n_slots(), program.occupancy()), (1, 1, 0.25));
}

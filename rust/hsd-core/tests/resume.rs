//! Plans that continue from given states: what is left of them, and that their programs are sound.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{plan, plan_and_given, set_field, whole_plan};
use hsd_core::plan::file::{fingerprint, PlanFile};
use hsd_core::plan::validate::validate;
use hsd_core::program::bound::lower_bound;
use hsd_core::{Error, Order, PerLane, Plan, Program, Progress, Rows, Segment, Tree};
use proptest::prelude::*;

/// What names a segment whatever its row is.
fn name(segment: &Segment) -> (u32, u32) {
    (segment.first_step, segment.leaf_begin)
}

/// The names of the segments that have to run, each from its own definition.
fn to_run(plan: &Plan, given: &[bool]) -> BTreeSet<(u32, u32)> {
    fn runs(plan: &Plan, given: &[bool], row: usize) -> bool {
        let segments = plan.segments();
        let is_last = segments[row].end_step as usize == plan.n_steps();
        let mut children = (0..segments.len()).filter(|&child| segments[child].parent == Some(row as u32));
        is_last || (!given[row] && children.any(|child| runs(plan, given, child)))
    }
    let rows = (0..plan.segments().len()).filter(|&row| runs(plan, given, row));
    rows.map(|row| name(&plan.segments()[row])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_given_does_not_run((plan, given) in plan_and_given(24)) {
        let resumed = plan.resume(&given).unwrap();
        let names: BTreeSet<_> = resumed.segments().iter().map(name).collect();
        prop_assert_eq!(&names, &to_run(&plan, &given));
        prop_assert_eq!((resumed.kept(), resumed.phi(), resumed.tree()), (plan.kept(), plan.phi(), plan.tree()));
        for segment in resumed.segments() {
            let whole = plan.segments().iter().find(|other| name(other) == name(segment)).unwrap();
            prop_assert_eq!(Segment { parent: None, ..*whole }, Segment { parent: None, ..*segment });
            let parent = whole.parent.map(|row| name(&plan.segments()[row as usize])).filter(|name| names.contains(name));
            prop_assert_eq!(segment.parent.map(|row| name(&resumed.segments()[row as usize])), parent);
        }
        prop_assert_eq!(resumed.node_steps() as i64, resumed.counts().iter().sum::<i64>());
        for step in 0..plan.n_steps() {
            let (whole, part) = (plan.active(step as i64).unwrap(), resumed.active(step as i64).unwrap());
            for (whole, part) in whole.into_iter().zip(part) {
                let left = whole.map(|row| name(&plan.segments()[row as usize])).filter(|name| names.contains(name));
                prop_assert_eq!(part.map(|row| name(&resumed.segments()[row as usize])), left);
            }
        }
        prop_assert!(resumed.describe(3).starts_with("plan: "));
        let again = resumed.resume(&vec![false; resumed.segments().len()]).unwrap();
        prop_assert_eq!(again, resumed);
    }

    #[test]
    fn nothing_given_is_the_same_plan_and_all_given_leaves_the_last_segments(plan in plan(24)) {
        let n = plan.segments().len();
        prop_assert_eq!(&plan.resume(&vec![false; n]).unwrap(), &plan);
        let last = plan.resume(&vec![true; n]).unwrap();
        prop_assert_eq!(last.segments().len(), plan.kept().len());
        let is_root = |segment: &Segment| segment.parent.is_none() && segment.end_step as usize == plan.n_steps();
        prop_assert!(last.segments().iter().all(is_root));
    }

    #[test]
    fn pruning_before_and_after_is_the_same((plan, given) in plan_and_given(24), bits in any::<u64>()) {
        let keep: Vec<i64> = plan.kept().iter().map(|&prompt| prompt.into()).filter(|prompt| bits >> prompt & 1 == 1).collect();
        prop_assume!(!keep.is_empty());
        let pruned = plan.prune(&keep).unwrap();
        let of = |segment: &Segment| plan.segments().iter().position(|other| name(other) == name(segment)).unwrap();
        let mapped: Vec<bool> = pruned.segments().iter().map(|segment| given[of(segment)]).collect();
        prop_assert_eq!(plan.resume(&given).unwrap().prune(&keep).unwrap(), pruned.resume(&mapped).unwrap());
    }

    #[test]
    fn each_node_step_that_is_left_runs_once(
        (plan, given) in plan_and_given(40), batch_size in 1..12i64, breadth in any::<bool>(), mixed_steps in any::<bool>(),
    ) {
        let plan = Arc::new(plan.resume(&given).unwrap());
        let order = if breadth { Order::Breadth } else { Order::Depth };
        let progress = &mut Progress::unwatched();
        let lanes = PerLane::default();
        let program = Program::compile(Arc::clone(&plan), batch_size, order, None, mixed_steps, lanes, progress).unwrap();
        let mut seen = BTreeSet::new();
        for lane in program.calls().flatten() {
            prop_assert!(seen.insert((lane.segment, lane.step)));
            let segment = &plan.segments()[lane.segment as usize];
            prop_assert_eq!(lane.fresh, segment.parent.is_none() && lane.step == segment.first_step);
        }
        prop_assert_eq!(seen.len(), plan.node_steps());
        let rows = Rows::new(plan.n_steps(), batch_size, None).unwrap();
        let bound = lower_bound(&plan, &rows, None, mixed_steps);
        prop_assert!(program.n_calls() >= bound);
        // A state that is given takes no call: a root that begins at step f reaches step k after k - f calls.
        let latest = plan.segments().iter().filter(|segment| segment.parent.is_none());
        let latest = latest.map(|segment| segment.first_step).max().unwrap() as usize;
        let counts = plan.counts();
        for step in 0..plan.n_steps() {
            let rest: i64 = counts[step..].iter().sum();
            prop_assert!(bound >= step.saturating_sub(latest) + (rest as usize).div_ceil(batch_size as usize));
        }
    }

    #[test]
    fn a_changed_resumed_plan_is_never_taken_for_whole(
        (plan, given) in plan_and_given(16), row in any::<prop::sample::Index>(), field in 0..6, value in -1..24i32,
    ) {
        // What passes is run by the checker's rules, whatever it is; nothing may panic.
        let resumed = plan.resume(&given).unwrap();
        let mut segments = resumed.segments().to_vec();
        set_field(&mut segments[row.index(resumed.segments().len())], field, value);
        let verdict = validate(plan.tree(), plan.phi(), plan.kept(), &segments);
        prop_assert!(segments != resumed.segments() || verdict.is_ok());
        if verdict.is_ok() {
            // Every kept prompt still has one last segment, and no two segments have a prompt and a step in common.
            let ends = segments.iter().filter(|segment| segment.end_step as usize == plan.n_steps()).count();
            prop_assert_eq!(ends, plan.kept().len());
            for (x, one) in segments.iter().enumerate() {
                for other in &segments[..x] {
                    let apart = one.leaf_begin >= other.leaf_end || other.leaf_begin >= one.leaf_end;
                    prop_assert!(apart || one.first_step >= other.end_step);
                }
            }
        }
    }

    #[test]
    fn shards_of_a_resumed_plan_make_its_prompts((plan, given) in plan_and_given(24), n in 1..6i64) {
        let resumed = plan.resume(&given).unwrap();
        for parts in [resumed.shard(n, 0.02).unwrap(), resumed.units(n, None).unwrap()] {
            let mut kept: Vec<u32> = parts.iter().flat_map(|part| part.kept().to_vec()).collect();
            kept.sort_unstable();
            prop_assert_eq!(&kept, resumed.kept());
        }
    }

    #[test]
    fn a_resumed_plan_has_the_fingerprint_of_the_whole(plan in whole_plan(16), bits in any::<u64>()) {
        let given: Vec<bool> = (0..plan.segments().len()).map(|row| bits >> (row % 64) & 1 == 1).collect();
        let prompts = vec![""; plan.n_prompts()];
        let seeds = vec![0; plan.n_prompts()];
        let of = |plan: &Plan| fingerprint(plan, &prompts, &seeds, "").unwrap();
        prop_assert_eq!(of(&plan.resume(&given).unwrap()), of(&plan));
    }
}

/// ((0 1) (2 3)), where 0 and 1 are split at step 2, 2 and 3 at step 3, and the two pairs at step 1; four steps.
fn pairs() -> Plan {
    let tree = Tree::from_merges(&[[0, 1], [2, 3], [4, 5]], vec![0.5, 0.25, 0.75], "ward").unwrap();
    Plan::compile(Arc::new(tree), &[1.0, 0.7, 0.4, 0.0]).unwrap()
}

#[test]
fn a_small_plan_continues_where_it_is_given() {
    let plan = pairs();
    let text = plan.describe(9);
    let rows = |text: &str| -> Vec<String> {
        text.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(
        rows(&text),
        [
            "0 - 0..1 0..4 4 0",
            "1 0 1..2 0..2 2 0",
            "2 0 1..3 2..4 2 2",
            "3 1 2..4 0..1 1 0",
            "4 1 2..4 1..2 1 1",
            "5 2 3..4 2..3 1 2",
            "6 2 3..4 3..4 1 3"
        ],
    );
    // The first pair is known at its end. The second needs the root, whose cluster holds all four.
    let resumed = plan.resume(&[false, true, false, false, false, false, false]).unwrap();
    assert_eq!(
        rows(&resumed.describe(9)),
        [
            "0 - 0..1 0..4 4 0",
            "1 0 1..3 2..4 2 2",
            "2 - 2..4 0..1 1 0",
            "3 - 2..4 1..2 1 1",
            "4 1 3..4 2..3 1 2",
            "5 1 3..4 3..4 1 3"
        ],
    );
    assert_eq!((resumed.node_steps(), resumed.counts()), (9, vec![1, 1, 3, 4]));
    assert_eq!(resumed.active(1).unwrap(), [None, None, Some(1), Some(1)]);
    assert!(resumed.is_resumed() && !plan.is_resumed());
    let compile = |batch_size, mixed_steps| {
        let progress = &mut Progress::unwatched();
        let plan = Arc::new(resumed.clone());
        Program::compile(plan, batch_size, Order::Breadth, None, mixed_steps, PerLane::default(), progress).unwrap()
    };
    let program = compile(3, true);
    assert_eq!((program.n_calls(), program.lower_bound()), (4, 4));
    assert_eq!(
        rows(&program.describe(9)),
        ["0 3 0@0 *0 2@2 *1 3@2 *2", "1 3 1@1 0 2@3 1! 3@3 2!", "2 1 1@2 0", "3 2 4@3 0>1! 5@3 0>2!"],
    );
    // Of one step: one call for each of the first two, one of three lanes, and two of four.
    assert_eq!((compile(3, false).n_calls(), compile(3, false).lower_bound()), (5, 5));
    // Without the second pair nothing needs the root.
    let pruned = resumed.prune(&[0, 1]).unwrap();
    assert_eq!(rows(&pruned.describe(9)), ["0 - 2..4 0..1 1 0", "1 - 2..4 1..2 1 1"]);
    // Without the first there is no given state left.
    assert_eq!(resumed.prune(&[2, 3]).unwrap(), plan.prune(&[2, 3]).unwrap());
}

#[test]
fn what_a_resumed_plan_cannot_do_is_said() {
    let plan = pairs();
    assert_eq!(plan.resume(&[true]), Err(Error::Length { what: "given", found: 1, expected: 7 }));
    let resumed = Arc::new(plan.resume(&[true; 7]).unwrap());
    let file =
        PlanFile { plan: resumed, prompts: vec![String::new(); 4], seeds: vec![0; 4], metadata: "{}".to_owned() };
    assert_eq!(file.to_bytes(), Err(Error::Resumed { what: "written to a file" }));
}

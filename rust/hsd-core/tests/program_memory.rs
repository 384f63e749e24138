//! Programs take memory for segments and slots, not for node-steps: every byte that is allocated is counted.

#![allow(unsafe_code)] // A global allocator is unsafe to write; this one only counts and passes on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use hsd_core::{Order, PerLane, Plan, Program, Progress, Tree};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: `System` does all the work, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` held at once, besides what there was before.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = work();
    (MOST.load(Relaxed) - before, result)
}

/// Pairs of leaves, and pairs of those: the same segments for any number of steps.
fn plan(n: i64, n_steps: usize) -> Arc<Plan> {
    let merges: Vec<[i64; 2]> = (0..n - 1).map(|merge| [2 * merge, 2 * merge + 1]).collect();
    let scores = (0..n - 1).map(|merge| if merge < n / 2 { 0.25 } else { 0.75 }).collect();
    let tree = Tree::from_merges(&merges, scores, "ward").unwrap();
    let phi: Vec<f64> = (0..n_steps).rev().map(|step| (3 * step / (n_steps - 1)) as f64 / 3.0).collect();
    Arc::new(Plan::compile(Arc::new(tree), &phi).unwrap())
}

// The only test of this file: others would allocate beside it.
#[test]
fn programs_take_no_memory_for_steps() {
    let cases = [(Order::Depth, true), (Order::Breadth, true), (Order::Depth, false), (Order::Breadth, false)];
    for (order, mixed_steps) in cases {
        let [few, many] = [10, 1000].map(|n_steps| {
            let plan = plan(1 << 10, n_steps);
            assert!(plan.node_steps() > 800 * n_steps / 3);
            let watch = &mut Progress::unwatched();
            let compile =
                || Program::compile(Arc::clone(&plan), 4, order, None, mixed_steps, PerLane::default(), watch);
            let (compiling, program) = peak(compile);
            let mut calls = program.unwrap().calls();
            let (replaying, ()) = peak(|| while calls.next_call().is_some() {});
            (plan.segments().len(), compiling + replaying)
        });
        assert_eq!(few.0, many.0);
        // A step costs a small heap of ready segments, and a node-step nothing.
        assert!(many.1 < few.1 + 2 * 1000 * 100, "{order}: {} bytes at 10 steps, {} at 1000", few.1, many.1);
        assert!(few.1 < 200 * few.0, "{order}: {} bytes for {} segments", few.1, few.0);
    }
}

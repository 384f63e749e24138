//! Time of each stage, from embeddings to program. Every result is checked once before it is timed.

#![allow(missing_docs)] // criterion_group! makes an undocumented public function.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use hsd_core::{linkage, schedule, Embeddings, Linkage, Method, Order, Plan, Program, Progress, Resources, Tree};
use ndarray::Array2;

/// Rows scattered about one centre for every twenty of them: a stand-in for prompts made from templates.
fn embeddings(rows: usize, columns: usize) -> Array2<f64> {
    // A small generator of its own (SplitMix64), so that the numbers stay the same for good.
    let mut state = 0u64;
    let mut draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let centres: Vec<f64> = (0..rows.div_ceil(20) * columns).map(|_| draw()).collect();
    let data: Vec<f64> = (0..rows * columns)
        .map(|i| centres[(i / columns) % rows.div_ceil(20) * columns + i % columns] + 0.7 * draw())
        .collect();
    Array2::from_shape_vec((rows, columns), data).expect("rows x columns numbers")
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn check(rows: &Array2<f64>) -> Embeddings<'_> {
    Embeddings::new(rows.view(), |x| x, threads(), &mut Progress::unwatched()).expect("sound rows")
}

/// Exactly, in as much memory as it takes.
fn build(rows: &Array2<f64>, by: Linkage) -> Tree {
    build_with(rows, by, Method::Exact, usize::MAX)
}

fn build_with(rows: &Array2<f64>, by: Linkage, method: Method, memory: usize) -> Tree {
    let resources = Resources { threads: threads(), memory };
    linkage::build(&check(rows), by, method, resources, &mut Progress::unwatched()).expect("sound rows")
}

fn trees(c: &mut Criterion) {
    let mut group = c.benchmark_group("tree");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for (rows, columns) in [(1000, 384), (4000, 384)] {
        let set = embeddings(rows, columns);
        let size = format!("{rows}x{columns}");
        assert_eq!(check(&set).lengths().len(), rows);
        group.bench_function(BenchmarkId::new("check", &size), |b| b.iter(|| check(black_box(&set))));
        for by in Linkage::ALL {
            // Half of the matrix takes longer than all of it; a quarter of the clusters at a time is approximate.
            let ways = [
                ("", Method::Exact, usize::MAX),
                (", half", Method::Exact, 2 * rows * rows),
                (", approximate", Method::Approximate, rows * rows / 4),
            ];
            for (suffix, method, memory) in ways {
                let tree = build_with(&set, by, method, memory);
                assert_eq!((tree.n_leaves(), tree.exact()), (rows, method == Method::Exact));
                group.bench_function(BenchmarkId::new(format!("{by}{suffix}"), &size), |b| {
                    b.iter(|| build_with(black_box(&set), by, method, memory));
                });
            }
        }
    }
    group.finish();
}

fn plans(c: &mut Criterion) {
    let tree = Arc::new(build(&embeddings(4000, 64), Linkage::Ward));
    let phi: Vec<f64> = schedule::shape("linear", 50).expect("a known shape").iter().map(|s| s * 1.5).collect();
    let mut group = c.benchmark_group("plan");
    group.sample_size(20).warm_up_time(Duration::from_secs(1));
    group.bench_function("compile", |b| b.iter(|| Plan::compile(Arc::clone(&tree), black_box(&phi))));
    let plan = Arc::new(Plan::compile(tree, &phi).expect("sound thresholds"));
    assert_eq!(plan.counts().last(), Some(&4000));
    group.bench_function("shard in 8", |b| b.iter(|| black_box(&plan).shard(8)));
    for order in [Order::Depth, Order::Breadth] {
        for max_slots in [None, Some(128)] {
            let compile = || Program::compile(Arc::clone(&plan), 32, order, max_slots, &mut Progress::unwatched());
            let name =
                format!("program, {order}, {}", max_slots.map_or("any slots".to_owned(), |n| format!("{n} slots")));
            assert!(compile().is_ok());
            group.bench_function(name, |b| b.iter(compile));
        }
    }
    group.finish();
}

criterion_group!(benches, trees, plans);
criterion_main!(benches);

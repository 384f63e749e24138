//! Time of each stage, from embeddings to program and file. Every result is checked once before it is timed.

#![allow(missing_docs)] // criterion_group! makes an undocumented public function.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use hsd_core::cluster::build_tree;
use hsd_core::plan::file::PlanFile;
use hsd_core::plan::schedule;
use hsd_core::{
    Embeddings, Linkage, Method, Metric, Order, PerLane, Plan, Program, Progress, Resources, Schedule, Tree,
};
use ndarray::Array2;

/// A small generator written here (SplitMix64), so that the numbers never change.
fn generator() -> impl FnMut() -> u64 {
    let mut state = 0u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Rows around centres, twenty around each, similar to the embeddings of prompts made from templates.
fn embeddings(rows: usize, columns: usize) -> Array2<f64> {
    let mut next = generator();
    let mut draw = || (next() >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    let centres: Vec<f64> = (0..rows.div_ceil(20) * columns).map(|_| draw()).collect();
    let data: Vec<f64> = (0..rows * columns)
        .map(|i| centres[(i / columns) % rows.div_ceil(20) * columns + i % columns] + 0.7 * draw())
        .collect();
    Array2::from_shape_vec((rows, columns), data).expect("rows x columns numbers")
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn check(rows: &Array2<f64>, metric: Metric) -> Embeddings<'_> {
    Embeddings::new(rows.view(), |x| x, metric, threads(), &mut Progress::unwatched()).expect("sound rows")
}

fn build(rows: &Array2<f64>, by: Linkage, metric: Metric, method: Method, memory: usize) -> Tree {
    let resources = Resources { threads: threads(), memory };
    build_tree(&check(rows, metric), by, method, resources, &mut Progress::unwatched()).expect("sound rows")
}

fn trees(c: &mut Criterion) {
    let mut group = c.benchmark_group("tree");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for (rows, columns) in [(1000, 384), (4000, 384)] {
        let set = embeddings(rows, columns);
        let size = format!("{rows}x{columns}");
        let cosine = Metric::Cosine;
        assert_eq!(check(&set, cosine).lengths().len(), rows);
        group.bench_function(BenchmarkId::new("check", &size), |b| b.iter(|| check(black_box(&set), cosine)));
        let kinds = Linkage::ALL.into_iter().flat_map(|by| Metric::ALL.map(|metric| (by, metric)));
        for (by, metric) in kinds.filter(|kind| *kind != (Linkage::Centroid, Metric::Euclidean)) {
            let kind = if metric == cosine { by.to_string() } else { format!("{by}, {metric}") };
            // Half of the matrix takes longer than all of it; a quarter of the clusters at a time is approximate.
            let ways = [
                ("", Method::Exact, usize::MAX),
                (", half", Method::Exact, 2 * rows * rows),
                (", approximate", Method::Approximate, rows * rows / 4),
            ];
            for (suffix, method, memory) in ways {
                let tree = build(&set, by, metric, method, memory);
                assert_eq!((tree.n_leaves(), tree.exact()), (rows, method == Method::Exact));
                group.bench_function(BenchmarkId::new(format!("{kind}{suffix}"), &size), |b| {
                    b.iter(|| build(black_box(&set), by, metric, method, memory));
                });
            }
        }
    }
    group.finish();
}

/// Any two clusters merge next, at heights that rise from 0 to 2.
fn random_tree(n: usize) -> Tree {
    let mut next = generator();
    let mut open: Vec<i64> = (0..n as i64).collect();
    let mut pick = |open: &mut Vec<i64>| open.swap_remove((next() % open.len() as u64) as usize);
    let merges: Vec<[i64; 2]> = (n..2 * n - 1)
        .map(|node| {
            let children = [pick(&mut open), pick(&mut open)];
            open.push(node as i64);
            children
        })
        .collect();
    let scores = (1..n).map(|merge| 2.0 * (merge as f64 / n as f64).powi(2)).collect();
    Tree::from_merges(&merges, scores, "ward").expect("sound merges")
}

/// 100 new leaves on 100,000; with `--test`, which runs everything once, on 2,000.
fn growth(c: &mut Criterion) {
    const NEW: usize = 100;
    let n = if std::env::args().any(|argument| argument == "--test") { 2_000 } else { 100_000 };
    let mut group = c.benchmark_group("insert");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    let merges = random_tree(n);
    let pairs: Vec<[i64; 2]> = merges.merges().iter().map(|pair| pair.map(i64::from)).collect();
    for columns in [384, 1280] {
        let set = embeddings(n + NEW, columns).mapv(|x| x as f32);
        let check = |metric| {
            Embeddings::new(set.view(), f64::from, metric, threads(), &mut Progress::unwatched()).expect("sound rows")
        };
        let size = format!("{NEW} on {n}x{columns}");
        group.bench_function(BenchmarkId::new("check", &size), |b| b.iter(|| check(Metric::Cosine)));
        for (by, metric) in [
            (Linkage::Ward, Metric::Cosine),
            (Linkage::Ward, Metric::Euclidean),
            (Linkage::Complete, Metric::Cosine),
            (Linkage::Centroid, Metric::Cosine),
        ] {
            let tree = Tree::from_merges(&pairs, merges.scores().to_vec(), by.name()).expect("sound merges");
            let (rows, groups) = (check(metric), vec![0; n + NEW]);
            let grow = || tree.insert(&rows, black_box(&groups), threads(), &mut Progress::unwatched());
            assert_eq!(grow().expect("sound rows").n_leaves(), n + NEW);
            group.bench_function(BenchmarkId::new(format!("{by}, {metric}"), &size), |b| b.iter(grow));
        }
    }
    group.finish();
}

fn plans(c: &mut Criterion) {
    const N: usize = 50_000;
    let tree = Arc::new(random_tree(N));
    let phi = Schedule::Linear.shape(40).expect("some steps");
    let mut group = c.benchmark_group("plan");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    group.bench_function("compile", |b| b.iter(|| Plan::compile(Arc::clone(&tree), black_box(&phi))));
    let plan = Arc::new(Plan::compile(Arc::clone(&tree), &phi).expect("sound thresholds"));
    assert_eq!(plan.counts(), schedule::counts(&tree, &phi).expect("sound thresholds"));

    let half: Vec<i64> = (0..N as i64).step_by(2).collect();
    assert_eq!(plan.prune(&half).expect("sound prompts").kept().len(), N / 2);
    group.bench_function("prune to half", |b| b.iter(|| plan.prune(black_box(&half))));
    for n in [8, 64] {
        assert_eq!(plan.shard(n, 0.02).expect("sound shards").len(), n as usize);
        group.bench_function(BenchmarkId::new("shard", n), |b| b.iter(|| black_box(&plan).shard(n, 0.02)));
        assert!(plan.units(n, None).expect("sound units").len() > n as usize);
        group.bench_function(BenchmarkId::new("units", n), |b| b.iter(|| black_box(&plan).units(n, None)));
    }

    for order in [Order::Depth, Order::Breadth] {
        for max_slots in [None, Some(128)] {
            for mixed_steps in [true, false] {
                let watch = &mut Progress::unwatched();
                let mut compile = || {
                    Program::compile(Arc::clone(&plan), 32, order, max_slots, mixed_steps, PerLane::default(), watch)
                };
                let slots = max_slots.map_or("any slots".to_owned(), |n| format!("{n} slots"));
                let suffix = if mixed_steps { "" } else { ", one step a call" };
                assert!(compile().is_ok());
                group.bench_function(format!("program, {order}, {slots}{suffix}"), |b| b.iter(&mut compile));
            }
        }
    }
    let program = Program::compile(
        Arc::clone(&plan),
        32,
        Order::Depth,
        None,
        true,
        PerLane::default(),
        &mut Progress::unwatched(),
    );
    let program = program.expect("sound parameters");
    let lanes = || {
        let mut calls = program.calls();
        std::iter::from_fn(|| calls.next_call().map(<[_]>::len)).sum::<usize>()
    };
    assert_eq!(lanes(), plan.node_steps());
    group.bench_function("all calls", |b| b.iter(lanes));

    let prompts = (0..N).map(|prompt| format!("prompt number {prompt}")).collect();
    let metadata =
        r#"{"tau": 1.0, "steps": 40, "noise": "independent", "linkage": "ward", "encoder": "none"}"#.to_owned();
    let file = PlanFile { plan, prompts, seeds: (0..N as i64).collect(), metadata };
    let bytes = file.to_bytes().expect("a sound file");
    assert_eq!(PlanFile::from_bytes(&bytes).as_ref(), Ok(&file));
    group.bench_function("to bytes", |b| b.iter(|| black_box(&file).to_bytes()));
    group.bench_function("from bytes", |b| b.iter(|| PlanFile::from_bytes(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, trees, growth, plans);
criterion_main!(benches);

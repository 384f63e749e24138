//! Reports of progress: they rise from 0 to 1, and any of them can stop the work.

mod common;

use std::ops::ControlFlow;

use common::{grouped, table};
use hsd_core::cluster::build_tree;
use hsd_core::{Embeddings, Error, Linkage, Method, Metric, Progress, Resources};
use ndarray::Array2;

/// Enough for a report or two in an unoptimised build.
const N: usize = 2000;

const EXACT: Resources = Resources { threads: 2, memory: usize::MAX };
const LOWER: Resources = Resources { threads: 2, memory: 3 * N * N };
const CELLS: Resources = Resources { threads: 2, memory: N * N / 4 };

fn ways() -> [(Method, Resources); 3] {
    [(Method::Exact, EXACT), (Method::Exact, LOWER), (Method::Approximate, CELLS)]
}

/// What is reported until report `last`, which stops the work, and how the work ends.
fn run(
    rows: &Array2<f64>,
    linkage: Linkage,
    (method, resources): (Method, Resources),
    last: usize,
) -> (Vec<f64>, Option<Error>) {
    let mut seen = Vec::new();
    let mut report = |fraction| {
        seen.push(fraction);
        if seen.len() > last {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let embeddings =
        Embeddings::new(rows.view(), |x| x, Metric::Cosine, resources.threads, &mut Progress::unwatched()).unwrap();
    let result = build_tree(&embeddings, linkage, method, resources, &mut Progress::new(&mut report));
    (seen, result.err())
}

#[test]
fn fractions_rise_to_one() {
    // How many reports there are is up to the machine; that each is over the one before is not.
    let rows = table(&grouped(N, 48, 300, 0.5));
    for way in ways() {
        for linkage in [Linkage::Ward, Linkage::Centroid] {
            let (seen, error) = run(&rows, linkage, way, usize::MAX);
            assert_eq!(error, None);
            assert!(seen.is_sorted() && seen[0] >= 0.0, "{way:?}, {linkage}: {seen:?}");
            assert_eq!(seen.last(), Some(&1.0));
        }
    }
}

#[test]
fn a_report_can_stop_the_work() {
    let rows = table(&grouped(N, 48, 300, 0.5));
    for way in ways() {
        for last in 0..2 {
            let (seen, error) = run(&rows, Linkage::Ward, way, last);
            assert_eq!(error, Some(Error::Interrupted), "{way:?}: report {last}");
            assert_eq!(seen.len(), last + 1, "it went on after it was told to stop");
        }
    }
}

#[test]
fn a_small_set_can_be_stopped_too() {
    let rows = table(&[vec![1.0], vec![2.0], vec![3.0]]);
    for way in ways() {
        for linkage in Linkage::ALL {
            for last in 0..2 {
                assert_eq!(run(&rows, linkage, way, last).1, Some(Error::Interrupted));
            }
            assert_eq!(run(&rows, linkage, way, 2).1, None);
        }
    }
}

#[test]
fn checking_can_be_stopped() {
    let rows = table(&vec![vec![1.0, 2.0]; 5000]);
    let mut seen = Vec::new();
    let mut stop = |fraction| {
        seen.push(fraction);
        ControlFlow::Break(())
    };
    let checked = Embeddings::new(rows.view(), |x| x, Metric::Cosine, 2, &mut Progress::new(&mut stop));
    assert_eq!(checked.err(), Some(Error::Interrupted));
    assert_eq!(seen.len(), 1);
}

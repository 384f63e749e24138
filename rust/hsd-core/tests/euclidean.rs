//! What is special about Euclidean trees. What they share with the others is in `exact.rs` and `approximate.rs`.

mod common;

use common::{build, build_with, grouped, kinds, table, Kind, PLENTY};
use hsd_core::cluster::build_tree;
use hsd_core::{Embeddings, Error, Linkage, Method, Metric, Progress, Resources, Tree};
use ndarray::ArrayView2;

fn euclidean() -> impl Iterator<Item = Kind> {
    kinds().filter(|kind| kind.metric == Metric::Euclidean)
}

fn near(x: f64, y: f64) -> bool {
    (x - y).abs() <= 1e-6 * x.abs().max(y.abs())
}

fn scaled(rows: &[Vec<f64>], by: f64) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|x| x * by).collect()).collect()
}

/// By 300 rows at a time, if there are as many.
fn approximate(rows: &[Vec<f64>], kind: Kind) -> Tree {
    let memory = 4 * 300 * (300 + 4 * rows[0].len());
    build_with(rows, kind, Method::Approximate, Resources { memory, ..PLENTY }).unwrap()
}

#[test]
fn one_and_two_rows() {
    for kind in euclidean() {
        assert_eq!(build(&[vec![0.0, 0.0]], kind).unwrap().n_leaves(), 1);
        for (rows, distance) in
            [([vec![0.0, 3.0], vec![4.0, 0.0]], 5.0), ([vec![-1.5], vec![2.5]], 4.0), ([vec![7.0], vec![7.0]], 0.0)]
        {
            assert!(near(build(&rows, kind).unwrap().scores()[0], distance));
            assert!(near(approximate(&rows, kind).scores()[0], distance));
        }
    }
}

#[test]
fn rows_of_zeros_are_rows_like_others() {
    for kind in euclidean() {
        assert_eq!(build(&vec![vec![0.0; 3]; 4], kind).unwrap().heights(), [0.0; 3]);
        assert_eq!(approximate(&vec![vec![0.0; 3]; 700], kind).heights(), [0.0; 699]);
        let tree = build(&[vec![5.0], vec![0.0], vec![-1.0], vec![-0.0]], kind).unwrap();
        assert_eq!(tree.merges()[..2], [[1, 3], [2, 4]]);
        assert_eq!(tree.scores()[0], 0.0);
    }
    let zeros = [vec![1.0], vec![0.0]];
    assert_eq!(build(&zeros, Linkage::Ward), Err(Error::ZeroRow { row: 1 }));
}

#[test]
fn distances_scale_with_the_rows() {
    let rows = grouped(300, 5, 40, 0.4);
    for kind in euclidean() {
        for (tree, build) in [
            (
                build(&rows, kind).unwrap(),
                &(|rows: &[Vec<f64>]| build(rows, kind).unwrap()) as &dyn Fn(&[Vec<f64>]) -> Tree,
            ),
            (approximate(&rows, kind), &|rows: &[Vec<f64>]| approximate(rows, kind)),
        ] {
            // By a power of two: to the last bit, from the smallest numbers with all digits to the largest.
            for exponent in [-960, -40, 1, 40, 1020] {
                let factor = 2f64.powi(exponent);
                let other = build(&scaled(&rows, factor));
                assert_eq!(other.merges(), tree.merges(), "{kind:?} 2^{exponent}");
                assert!(
                    other.scores().iter().zip(tree.scores()).all(|(x, y)| *x == y * factor),
                    "{kind:?} 2^{exponent}"
                );
            }
        }
    }
}

#[test]
fn the_origin_does_not_count() {
    let rows = grouped(300, 5, 40, 0.4);
    // Far away, in double precision; and so that one row far from all others is the largest.
    let shifted: Vec<Vec<f64>> = rows.iter().map(|row| row.iter().map(|x| x + 1e6).collect()).collect();
    let mut outlier = rows.clone();
    outlier.push(vec![1e6; 5]);
    for kind in euclidean() {
        let tree = build(&rows, kind).unwrap();
        for other in [&shifted, &outlier] {
            let other = build(other, kind).unwrap();
            assert_eq!(
                &other.merges()[..9],
                &tree
                    .merges()
                    .iter()
                    .map(|&[a, b]| {
                        let later = |node: u32| if node < 300 { node } else { node + (other.n_leaves() - 300) as u32 };
                        [later(a), later(b)]
                    })
                    .collect::<Vec<_>>()[..9]
            );
            assert!(other.scores().iter().zip(&tree.scores()[..298]).all(|(x, y)| near(*x, *y)), "{kind:?}");
        }
    }
}

#[test]
fn the_least_and_the_greatest_numbers() {
    for kind in euclidean() {
        let tiny = build(&[vec![5e-324], vec![0.0], vec![-20e-324]], kind).unwrap();
        assert_eq!(tiny.merges(), [[0, 1], [2, 3]]);
        assert_eq!(tiny.scores()[0], 5e-324);
        // A distance over the greatest number is that number, so that a threshold can reach it.
        let huge = build(&[vec![f64::MAX], vec![-f64::MAX], vec![f64::MAX]], kind).unwrap();
        assert_eq!(huge.merges(), [[0, 2], [1, 3]]);
        assert_eq!(huge.scores(), [0.0, f64::MAX]);
    }
}

#[test]
fn equal_distances_join_in_order() {
    // A grid: every distance occurs many times.
    let grid: Vec<Vec<f64>> = (0..400).map(|i| vec![f64::from(i % 20), f64::from(i / 20)]).collect();
    for kind in euclidean() {
        let tree = build(&grid, kind).unwrap();
        assert_eq!(tree.merges()[0], [0, 1]);
        for threads in [1, 3] {
            let resources = Resources { threads, ..PLENTY };
            assert_eq!(build_with(&grid, kind, Method::Exact, resources).unwrap(), tree);
        }
    }
}

#[test]
fn means_stand_for_their_clusters() {
    // Ward's distance depends on nothing but sizes and means, so an approximate tree that joins what belongs together
    // first has exact distances, except for the rounding of the means.
    let rows = grouped(900, 6, 30, 0.02);
    for (linkage, most) in [(Linkage::Ward, 1e-5), (Linkage::Complete, 0.05), (Linkage::Average, 0.01)] {
        let kind = Kind { linkage, metric: Metric::Euclidean };
        let (exact, tree) = (build(&rows, kind).unwrap(), approximate(&rows, kind));
        assert!(!tree.exact());
        let tops = exact.sorted_heights()[870..].iter().zip(&tree.sorted_heights()[870..]);
        for (x, y) in tops {
            assert!((x - y).abs() <= most * x, "{kind:?}: {x} {y}");
        }
    }
}

#[test]
fn types_and_zero_rows_are_read() {
    fn tree<T: Copy + Sync>(view: ArrayView2<'_, T>, value: impl Fn(T) -> f64 + Sync) -> Tree {
        let embeddings = Embeddings::new(view, value, Metric::Euclidean, 2, &mut Progress::unwatched()).unwrap();
        assert_eq!(embeddings.metric(), Metric::Euclidean);
        build_tree(&embeddings, Linkage::Ward, Method::Exact, PLENTY, &mut Progress::unwatched()).unwrap()
    }
    let bits = table(&grouped(90, 7, 9, 0.4)).mapv(|x| (x * 8.0).round() as i16);
    let double = bits.mapv(|x| f64::from(x) / 8.0);
    let single = double.mapv(|x| x as f32);
    let expected = tree(double.view(), |x| x);
    assert_eq!(tree(single.view(), f64::from), expected);
    assert_eq!(tree(bits.view(), |x| f64::from(x) / 8.0), expected);
    let transposed = double.t().to_owned();
    assert_eq!(tree(transposed.t(), |x| x), expected);
}

#[test]
fn centroid_is_refused_with_a_way_out() {
    let kind = Kind { linkage: Linkage::Centroid, metric: Metric::Euclidean };
    for method in [Method::Auto, Method::Exact, Method::Approximate] {
        let error = build_with(&[vec![1.0], vec![2.0]], kind, method, PLENTY).unwrap_err();
        assert_eq!(error, Error::NoEuclideanCentroid);
        for way in ["\"cosine\"", "\"ward\"", "\"average\"", "\"complete\""] {
            assert!(error.to_string().contains(way));
        }
    }
    assert_eq!(
        build(&[vec![f64::NAN]], kind).unwrap_err().to_string(),
        "embedding 0 holds NaN at column 0; every entry must be finite"
    );
}

#[test]
fn unknown_metrics_are_named() {
    let error = "manhattan".parse::<Metric>().unwrap_err();
    assert_eq!(error.to_string(), "unknown metric \"manhattan\"; choose one of \"cosine\", \"euclidean\"");
    assert!(Metric::ALL.iter().all(|metric| metric.name().parse() == Ok(*metric)));
}

//! Embeddings of any layout and type: the numbers count, not how they lie.

mod common;

use common::{grouped, table, PLENTY};
use hsd_core::cluster::build_tree;
use hsd_core::{Embeddings, Error, Linkage, Method, Metric, Progress, Tree};
use ndarray::{concatenate, s, Array2, ArrayView2, Axis};

fn sound<'a>(view: ArrayView2<'a, f64>) -> Embeddings<'a> {
    Embeddings::new(view, |x| x, Metric::Cosine, 2, &mut Progress::unwatched()).unwrap()
}

fn cluster(embeddings: &Embeddings<'_>, linkage: Linkage) -> Tree {
    build_tree(embeddings, linkage, Method::Exact, PLENTY, &mut Progress::unwatched()).unwrap()
}

fn error_of(view: ArrayView2<'_, f64>, rows: Option<&[usize]>) -> Error {
    let result = match rows {
        None => Embeddings::new(view, |x| x, Metric::Cosine, 3, &mut Progress::unwatched()),
        Some(rows) => Embeddings::of_rows(view, |x| x, Metric::Cosine, rows, 3, &mut Progress::unwatched()),
    };
    result.err().expect("a bad row")
}

/// 90 rows of 7, of different lengths.
fn numbers() -> Array2<f64> {
    let mut rows = grouped(90, 7, 9, 0.4);
    rows.iter_mut().enumerate().for_each(|(i, row)| row.iter_mut().for_each(|x| *x *= 1.0 + i as f64));
    table(&rows)
}

#[test]
fn the_layout_does_not_show() {
    let numbers = numbers();
    let mut fortran = Array2::zeros((7, 90));
    fortran.assign(&numbers.t());
    let mut wide = Array2::from_elem((180, 21), f64::NAN);
    wide.slice_mut(s![..;2, 1..;3]).assign(&numbers);
    let mut backwards = Array2::zeros((90, 7));
    backwards.slice_mut(s![..;-1, ..;-1]).assign(&numbers);
    let views = [fortran.t(), wide.slice(s![..;2, 1..;3]), backwards.slice(s![..;-1, ..;-1])];
    for linkage in Linkage::ALL {
        let expected = cluster(&sound(numbers.view()), linkage);
        for view in views {
            assert_eq!(view, numbers);
            assert_eq!(cluster(&sound(view), linkage), expected);
        }
    }
    // One row for all, as NumPy's broadcast_to gives it.
    let row = numbers.row(0);
    let equal = row.broadcast((30, 7)).unwrap();
    assert_eq!(cluster(&sound(equal), Linkage::Ward).heights(), [0.0; 29]);
}

#[test]
fn the_type_does_not_show() {
    let single = numbers().mapv(|x| x as f32);
    let double = single.mapv(f64::from);
    // Half-integers, as an example of entries that mean something else than they are.
    let bits = double.mapv(|x| (x * 2.0).round() as i16);
    let halves = bits.mapv(|x| f64::from(x) / 2.0);
    for linkage in Linkage::ALL {
        let embeddings =
            Embeddings::new(single.view(), f64::from, Metric::Cosine, 2, &mut Progress::unwatched()).unwrap();
        assert_eq!(cluster(&embeddings, linkage), cluster(&sound(double.view()), linkage));
        let embeddings =
            Embeddings::new(bits.view(), |x| f64::from(x) / 2.0, Metric::Cosine, 2, &mut Progress::unwatched())
                .unwrap();
        assert_eq!(cluster(&embeddings, linkage), cluster(&sound(halves.view()), linkage));
    }
}

#[test]
fn some_rows_are_as_good_as_a_copy_of_them() {
    let numbers = numbers();
    let rows: Vec<usize> = (0..60).map(|i| i * 53 % 90).chain([5, 5, 0]).collect();
    let copy = numbers.select(Axis(0), &rows);
    for linkage in Linkage::ALL {
        let chosen =
            Embeddings::of_rows(numbers.view(), |x| x, Metric::Cosine, &rows, 2, &mut Progress::unwatched()).unwrap();
        assert_eq!(cluster(&chosen, linkage), cluster(&sound(copy.view()), linkage));
    }
}

#[test]
fn lengths_are_told_apart() {
    let numbers = numbers();
    let embeddings = sound(numbers.view());
    let most = numbers.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    for (row, &length) in numbers.rows().into_iter().zip(embeddings.lengths()) {
        let expected = row.iter().map(|x| x * x).sum::<f64>().sqrt() / most;
        assert!((length - expected).abs() < 1e-12 * expected);
    }
}

#[test]
fn bad_rows_are_named() {
    let mut numbers = concatenate![Axis(0), numbers(), numbers(), numbers()];
    let big = numbers.broadcast((20, 270, 7)).unwrap().to_shape((5400, 7)).unwrap().to_owned();
    for (bad, row) in [(f64::NAN, 4321), (f64::INFINITY, 0), (f64::NEG_INFINITY, 5399)] {
        let mut big = big.clone();
        big[[row, 3]] = bad;
        big[[5399, 4]] = f64::NAN; // The first counts, of rows and of columns.
        let Error::NotFinite { row: found, column, value } = error_of(big.view(), None) else { panic!("{bad}") };
        assert_eq!((found, column), (row, 3));
        assert!(value == bad || (value.is_nan() && bad.is_nan()));
    }
    let mut zeros = big.clone();
    zeros.row_mut(2000).fill(0.0);
    zeros.row_mut(3000).fill(-0.0);
    assert_eq!(error_of(zeros.view(), None), Error::ZeroRow { row: 2000 });
    // Entries whose sum is not a number although each of them is one.
    numbers.row_mut(1).assign(&ndarray::arr1(&[f64::MAX, f64::MAX, -f64::MAX, -f64::MAX, f64::MAX, 1.0, 0.0]));
    assert_eq!(sound(numbers.view()).lengths().len(), 270);

    let (none, no_columns) = (Array2::zeros((0, 4)), Array2::zeros((4, 0)));
    assert_eq!(error_of(none.view(), None), Error::NoEmbeddings { rows: 0, columns: 4 });
    assert_eq!(error_of(no_columns.view(), None), Error::NoEmbeddings { rows: 4, columns: 0 });
}

#[test]
fn errors_name_the_row_of_the_whole() {
    let mut numbers = numbers();
    numbers.row_mut(44).fill(0.0);
    numbers[[70, 2]] = f64::NAN;
    assert_eq!(error_of(numbers.view(), Some(&[3, 44, 2])), Error::ZeroRow { row: 44 });
    // The first in the order given.
    let named = error_of(numbers.view(), Some(&[70, 44]));
    assert!(matches!(named, Error::NotFinite { row: 70, column: 2, .. }), "{named}");
    assert_eq!(error_of(numbers.view(), Some(&[1, 90])), Error::OutOfRange { what: "row", index: 90, count: 90 });
    let negative = (-2i64) as usize;
    assert_eq!(error_of(numbers.view(), Some(&[negative])), Error::OutOfRange { what: "row", index: -2, count: 90 });
    assert_eq!(error_of(numbers.view(), Some(&[])), Error::NoEmbeddings { rows: 0, columns: 7 });
    // A bad row that is not among the chosen ones does no harm.
    let rows = [1, 2, 3];
    assert!(Embeddings::of_rows(numbers.view(), |x| x, Metric::Cosine, &rows, 2, &mut Progress::unwatched()).is_ok());
}

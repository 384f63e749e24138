//! Embeddings in the caller's memory and type, read a row at a time.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayView2;

use super::distance::Points;
use super::metric::Metric;
use crate::error::{index_count, Error, Result};
use crate::work::parallel::{runs, share, Task};
use crate::work::progress::Progress;
use crate::work::simd::widest;

/// Rows checked by a thread at a time.
const BAND: usize = 1024;

/// At most this many rows have their mean taken as the centre.
const SAMPLE: usize = 4096;

/// A lower limit for lengths: if two of them underflowed to 0, the mean of their rows would be 0/0.
const LEAST_LENGTH: f64 = 1e-150;

/// Rows of any float type, in memory or in a mapped file, in any layout.
trait Source: Sync {
    /// Row `row` as doubles.
    fn read(&self, row: usize, out: &mut [f64]);
}

/// Some rows of an array, and the number that an entry means.
struct Selection<'a, T, F> {
    view: ArrayView2<'a, T>,
    value: F,
    /// The rows; all if none.
    rows: Option<&'a [usize]>,
}

impl<T: Copy + Sync, F: Fn(T) -> f64 + Sync> Source for Selection<'_, T, F> {
    fn read(&self, row: usize, out: &mut [f64]) {
        let row = self.view.row(self.rows.map_or(row, |rows| rows[row]));
        match row.as_slice() {
            Some(row) => widest(|| out.iter_mut().zip(row).for_each(|(to, &from)| *to = (self.value)(from))),
            None => out.iter_mut().zip(row).for_each(|(to, &from)| *to = (self.value)(from)),
        }
    }
}

/// Embeddings, checked: (N, D) finite numbers, for the cosine distance without a row of zeros. Borrowed, never copied as
/// a whole. As points they are unit rows for the cosine distance; for the Euclidean one, the rows in a unit in which the
/// largest entry of all is near 1.
pub struct Embeddings<'a> {
    source: Box<dyn Source + 'a>,
    columns: usize,
    metric: Metric,
    /// The factor that makes each row a point; not a normal number if it is out of range.
    scales: Vec<f64>,
    /// The distance that a distance of 1 between points stands for.
    unit: f64,
    lengths: Vec<f64>,
    centre: Vec<f64>,
}

impl<'a> Embeddings<'a> {
    /// Checks every row; an error names the first bad one. `value` gives the number that an entry means, for example
    /// `f64::from`.
    pub fn new<T: Copy + Sync>(
        view: ArrayView2<'a, T>,
        value: impl Fn(T) -> f64 + Sync + 'a,
        metric: Metric,
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        Embeddings::check(view, value, metric, None, threads, progress)
    }

    /// The same of some rows only, in the order given. An error names the row of the whole.
    pub fn of_rows<T: Copy + Sync>(
        view: ArrayView2<'a, T>,
        value: impl Fn(T) -> f64 + Sync + 'a,
        metric: Metric,
        rows: &'a [usize],
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let count = view.nrows();
        if let Some(&row) = rows.iter().find(|&&row| row >= count) {
            return Err(Error::OutOfRange { what: "row", index: row as i64, count });
        }
        Embeddings::check(view, value, metric, Some(rows), threads, progress)
    }

    fn check<T: Copy + Sync>(
        view: ArrayView2<'a, T>,
        value: impl Fn(T) -> f64 + Sync + 'a,
        metric: Metric,
        chosen: Option<&'a [usize]>,
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let (rows, columns) = (chosen.map_or(view.nrows(), <[_]>::len), view.ncols());
        if rows == 0 || columns == 0 {
            return Err(Error::NoEmbeddings { rows, columns });
        }
        index_count("prompts", rows)?;
        let source: Box<dyn Source + 'a> = Box::new(Selection { view, value, rows: chosen });
        // Of each row, its largest entry and its length in units of that: squares of huge and tiny entries fit.
        let mut measures = vec![(0.0, 0.0); rows];
        let first_error: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let tasks = runs(rows, BAND).zip(measures.chunks_mut(BAND));
        let tasks = tasks.map(|(range, out)| Task { cost: range.len(), item: (range, out) }).collect();
        let check = |entries: &mut Vec<f64>, (range, out): (Range<usize>, &mut [(f64, f64)]), _: &_| {
            for (row, measure) in range.zip(out) {
                source.read(row, entries);
                match measure_row(chosen.map_or(row, |chosen| chosen[row]), entries, metric) {
                    Ok(found) => *measure = found,
                    Err(error) => {
                        let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                        if first.as_ref().is_none_or(|&(before, _)| row < before) {
                            *first = Some((row, error));
                        }
                        return;
                    }
                }
            }
        };
        share(threads, tasks, progress, || vec![0.0; columns], check)?;
        if let Some((_, error)) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let largest = measures.iter().fold(0.0, |most: f64, &(entry, _)| most.max(entry));
        // The maximum ignores the NaN of a set of zeros.
        let lengths = measures.iter().map(|&(entry, length)| (length * (entry / largest)).max(LEAST_LENGTH)).collect();
        let (scales, unit) = match metric {
            Metric::Cosine => (measures.iter().map(|&(entry, length)| 1.0 / (entry * length)).collect(), 1.0),
            Metric::Euclidean => {
                let scale = scale_for(largest);
                (vec![scale; rows], 1.0 / scale)
            }
        };
        let centre = vec![0.0; columns];
        let mut embeddings = Embeddings { source, columns, metric, scales, unit, lengths, centre };
        embeddings.centre = mean_of_sample(&embeddings);
        Ok(embeddings)
    }

    /// How far apart two of them are.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The distance of two clusters, of their distance as points. Finite: the largest number there is where it is more.
    pub(super) fn in_units(&self, distance: f64) -> f64 {
        (distance * self.unit).min(f64::MAX)
    }

    /// The distance of two clusters as points, of their distance.
    pub(super) fn of_units(&self, distance: f64) -> f64 {
        distance / self.unit
    }

    /// The rows' lengths, in units of the largest entry of all.
    pub fn lengths(&self) -> &[f64] {
        &self.lengths
    }
}

/// The mean of some points, evenly spaced. Distances are right for any centre; a near one keeps more digits.
pub(super) fn mean_of_sample(points: &dyn Points) -> Vec<f64> {
    let step = points.len().div_ceil(SAMPLE);
    let mut sum = vec![0.0; points.columns()];
    let mut row = vec![0.0; points.columns()];
    for i in (0..points.len()).step_by(step) {
        points.read(i, &mut row);
        sum.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
    }
    let count = points.len().div_ceil(step) as f64;
    sum.iter_mut().for_each(|sum| *sum /= count);
    sum
}

impl Points for Embeddings<'_> {
    fn len(&self) -> usize {
        self.scales.len()
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn centre(&self) -> &[f64] {
        &self.centre
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        self.source.read(i, out);
        let scale = self.scales[i];
        if scale.is_normal() {
            widest(|| out.iter_mut().for_each(|x| *x *= scale));
        } else if let Ok((entry, length)) = measure_row(i, out, self.metric) {
            out.iter_mut().for_each(|x| *x = *x / entry / length);
        }
    }

    fn spread(&self, _: usize) -> f64 {
        0.0
    }
}

/// A power of two, so that nothing is rounded, that brings a set whose largest entry this is near 1: squares of huge and
/// tiny entries fit.
fn scale_for(largest: f64) -> f64 {
    if largest == 0.0 {
        return 1.0;
    }
    // Both ends are normal numbers, and so are their inverses.
    2f64.powi((-largest.log2().floor()).clamp(-1022.0, 1022.0) as i32)
}

/// The largest entry of a row, and the row's length in units of it.
fn measure_row(row: usize, entries: &[f64], metric: Metric) -> Result<(f64, f64)> {
    let most = entries.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    // The maximum ignores NaN; the sum does not.
    if !most.is_finite() || entries.iter().sum::<f64>().is_nan() {
        if let Some(column) = entries.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { row, column, value: entries[column] });
        }
    }
    if most == 0.0 {
        return match metric {
            Metric::Cosine => Err(Error::ZeroRow { row }),
            Metric::Euclidean => Ok((0.0, 0.0)),
        };
    }
    Ok((most, entries.iter().map(|x| (x / most) * (x / most)).sum::<f64>().sqrt()))
}

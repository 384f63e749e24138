//! Cosine distances between all rows of an embedding matrix.
//!
//! `1 - dot` in single precision has an error near 1e-7, which is a whole percent of the distance between two
//! near-duplicate prompts. So rows are normalised and multiplied in double precision; only the finished
//! distances are stored in single precision, whose error is relative and therefore harmless.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::sync::Mutex;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, Slice};

use crate::error::{index_count, reserve, Error, Result};
use crate::progress::{Progress, INTERVAL};

/// Rows and columns of one block of the Gram matrix: small enough that its buffer stays in the L2 cache,
/// large enough that packing the operands costs little.
const BLOCK_ROWS: usize = 128;
const BLOCK_COLUMNS: usize = 512;

/// Below this distance, `1 - dot` in double precision has lost more digits than single precision holds.
const NEAR: f64 = 1e-7;

/// The lower triangle of a symmetric matrix with a zero diagonal, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Condensed {
    n: usize,
    data: Vec<f32>,
}

/// Where row `i` of the lower triangle begins.
fn row_start(i: usize) -> usize {
    i * i.saturating_sub(1) / 2
}

impl Condensed {
    /// All zeros.
    pub fn zeros(n: usize) -> Result<Self> {
        let mut data = reserve("the distances between all prompts", row_start(n))?;
        data.resize(row_start(n), 0.0);
        Ok(Condensed { n, data })
    }

    /// Number of rows of the whole matrix.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Entries `(i, 0..i)`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[row_start(i)..row_start(i) + i]
    }

    /// Entry `(i, j)`, `i != j`.
    pub fn get(&self, i: usize, j: usize) -> f32 {
        self.data[row_start(i.max(j)) + i.min(j)]
    }

    /// Sets entry `(i, j)`, `i != j`.
    pub fn set(&mut self, i: usize, j: usize, value: f32) {
        self.data[row_start(i.max(j)) + i.min(j)] = value;
    }
}

/// The rows of an embedding matrix, checked, each of length 1, and the lengths they had.
#[derive(Debug, Clone)]
pub struct UnitRows {
    unit: Array2<f64>,
    /// The rows' lengths, in units of the largest entry of the whole matrix.
    pub lengths: Vec<f64>,
}

impl UnitRows {
    /// Checks and normalises `rows` rows of `columns` entries each.
    pub fn new<T: Copy + Into<f64>>(data: &[T], rows: usize, columns: usize) -> Result<Self> {
        if rows == 0 || columns == 0 {
            return Err(Error::NoEmbeddings { rows, columns });
        }
        if rows.checked_mul(columns) != Some(data.len()) {
            return Err(Error::Length {
                what: "the embeddings' data",
                found: data.len(),
                expected: rows.saturating_mul(columns),
            });
        }
        index_count("prompts", rows)?;
        // Scaling by the largest entry first keeps the squares of huge and tiny rows representable.
        let mut largest = Vec::with_capacity(rows);
        for (row, entries) in data.chunks_exact(columns).enumerate() {
            let mut most = 0.0f64;
            for (column, &entry) in entries.iter().enumerate() {
                let value: f64 = entry.into();
                if !value.is_finite() {
                    return Err(Error::NotFinite { row, column, value });
                }
                most = most.max(value.abs());
            }
            if most == 0.0 {
                return Err(Error::ZeroRow { row });
            }
            largest.push(most);
        }
        let unit_of_length = largest.iter().copied().fold(0.0, f64::max);
        let mut unit = Vec::with_capacity(data.len());
        let mut lengths = Vec::with_capacity(rows);
        for (entries, &most) in data.chunks_exact(columns).zip(&largest) {
            let start = unit.len();
            unit.extend(entries.iter().map(|&entry| entry.into() / most));
            let row = &mut unit[start..];
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
            // A length that underflows would make the mean of two such rows 0/0.
            lengths.push((length * (most / unit_of_length)).max(1e-150));
        }
        let unit = Array2::from_shape_vec((rows, columns), unit).map_err(|_| Error::NoEmbeddings { rows, columns })?;
        Ok(UnitRows { unit, lengths })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.unit.nrows()
    }

    /// Whether there are no rows; never the case.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, each of length 1.
    pub fn view(&self) -> ArrayView2<'_, f64> {
        self.unit.view()
    }
}

/// All pairwise cosine distances, by `threads` threads; the result is the same for any number of them.
pub fn cosine_distances(rows: &UnitRows, threads: usize, progress: &mut Progress<'_>) -> Result<Condensed> {
    let n = rows.len();
    let mut distances = Condensed::zeros(n)?;
    let total = distances.data.len();
    let mut bands = Vec::new();
    let mut rest = distances.data.as_mut_slice();
    for first in (0..n).step_by(BLOCK_ROWS) {
        let last = (first + BLOCK_ROWS).min(n);
        let (band, tail) = rest.split_at_mut(row_start(last) - row_start(first));
        bands.push((first, last, band));
        rest = tail;
    }
    // The longest bands last in the list are taken first, so that no thread is left alone at the end.
    let threads = threads.clamp(1, bands.len());
    let bands = Mutex::new(bands);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, bands, stop) = (sender.clone(), &bands, &stop);
            scope.spawn(move || {
                let mut gram = Array2::zeros((BLOCK_ROWS, BLOCK_COLUMNS));
                while !stop.load(Ordering::Relaxed) {
                    let Some((first, last, band)) = bands.lock().ok().and_then(|mut bands| bands.pop()) else { break };
                    fill_band(rows.view(), first, last, band, &mut gram);
                    if sender.send(band.len()).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut done = 0;
        loop {
            match receiver.recv_timeout(INTERVAL) {
                Ok(cells) => done += cells,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if let Err(error) = progress.at(done, total) {
                stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
    })?;
    Ok(distances)
}

/// Distances of rows `first..last` to all rows before them, into that band of the triangle.
fn fill_band(unit: ArrayView2<'_, f64>, first: usize, last: usize, band: &mut [f32], gram: &mut Array2<f64>) {
    let ours = unit.slice_axis(Axis(0), Slice::from(first..last));
    for left in (0..last).step_by(BLOCK_COLUMNS) {
        let right = (left + BLOCK_COLUMNS).min(last);
        let theirs = unit.slice_axis(Axis(0), Slice::from(left..right));
        let mut gram = gram.slice_axis_mut(Axis(0), Slice::from(..last - first));
        gram.slice_axis_inplace(Axis(1), Slice::from(..right - left));
        general_mat_mul(1.0, &ours, &theirs.t(), 0.0, &mut gram);
        for i in first..last {
            let width = right.min(i).saturating_sub(left);
            let start = row_start(i) - row_start(first) + left;
            let out = band.get_mut(start..start + width).unwrap_or_default();
            for (j, (cell, &dot)) in out.iter_mut().zip(gram.row(i - first)).enumerate() {
                let far = 1.0 - dot;
                *cell = if far < NEAR { near_distance(unit, i, left + j) } else { far } as f32;
            }
        }
    }
}

/// `1 - cos` of two unit rows as half their squared difference: exact to the last digits however near they
/// are, and 0 for equal rows.
fn near_distance(unit: ArrayView2<'_, f64>, i: usize, j: usize) -> f64 {
    unit.row(i).iter().zip(unit.row(j)).map(|(x, y)| (x - y) * (x - y)).sum::<f64>() / 2.0
}

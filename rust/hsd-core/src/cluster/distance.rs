//! Distances of points, a tile at a time.
//!
//! The distance is half the squared difference. For unit rows that is `1 - dot`, the cosine distance; for other rows the
//! linkage takes the root, which makes it the Euclidean one.
//!
//! It is computed from dot products, `(|x|² + |y|²) / 2 - dot`. For unit rows, `1 - dot` in single precision has an error near 1e-7 times the product of the lengths. For two near-duplicate
//! prompts that is a whole percent of their distance. Three things keep the digits. A common centre is subtracted from
//! all points first, so that only their differences from it are multiplied, which are shorter. Pairs that are much
//! nearer to each other than to the centre are computed again in double precision. Where a tile is full of such pairs,
//! the whole tile is.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::metric::Metric;
use crate::work::simd::widest;

/// Points of about unit length at most. The distance of two is half their squared difference plus half of both spreads:
/// for single rows the half squared difference of these, for means of rows the mean of it over the members of one and
/// the members of the other. With the cosine metric all rows are unit rows, so it is `1 - dot`, for means too.
pub trait Points: Sync {
    /// Number of points.
    fn len(&self) -> usize;

    /// Number of coordinates.
    fn columns(&self) -> usize;

    /// What the rows are: unit rows with the cosine metric.
    fn metric(&self) -> Metric;

    /// A point near all of them.
    fn centre(&self) -> &[f64];

    /// Point `i`.
    fn read(&self, i: usize, out: &mut [f64]);

    /// The mean squared difference between point `i` and the rows that it is the mean of: 0 for a row. For a mean of unit
    /// rows it is `1 - |i|²`.
    fn spread(&self, i: usize) -> f64;
}

/// The most points of a block: two blocks and the tile between them stay in the L2 cache.
pub const BLOCK: usize = 512;

/// Below this share of a pair's distances from the centre, single precision has lost too many digits.
const NEAR: f64 = 1.0 / 8.0;

/// If more than one pair in this many is near, the whole tile is computed again.
const CROWDED: usize = 128;

/// Below this share of a pair's distances from the origin, double precision has lost more digits than single precision
/// holds.
const NEAR_DOUBLE: f64 = 1e-7;

/// Up to [`BLOCK`] consecutive points, ready to be multiplied.
#[derive(Debug, Default)]
pub struct Block {
    range: Range<usize>,
    /// The points minus the centre, row by row.
    rows: Vec<f32>,
    /// Half of what each point adds to its distances: half its squared length and half its spread.
    halves: Vec<f64>,
    /// Scratch: one point.
    point: Vec<f64>,
}

impl Block {
    /// Replaces the block's points.
    pub fn load(&mut self, points: &dyn Points, range: Range<usize>) {
        self.halves.clear();
        self.point.resize(points.columns(), 0.0);
        self.rows.resize(range.len() * points.columns(), 0.0);
        for (i, row) in range.clone().zip(self.rows.chunks_exact_mut(points.columns())) {
            points.read(i, &mut self.point);
            let square = widest(|| {
                for ((y, x), centre) in row.iter_mut().zip(&self.point).zip(points.centre()) {
                    *y = (x - centre) as f32;
                }
                sum_of(row, row, |x, y| f64::from(x) * f64::from(y))
            });
            self.halves.push((square + points.spread(i)) / 2.0);
        }
        self.range = range;
    }

    /// The points.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

/// The distances between two blocks, and the scratch memory to compute them in.
#[derive(Debug, Default)]
pub struct Tile {
    cells: Vec<f32>,
    width: usize,
    doubles: Doubles,
    one: Vec<f64>,
    other: Vec<f64>,
}

/// Scratch memory for a tile in double precision.
#[derive(Debug, Default)]
struct Doubles {
    rows: Doubled,
    columns: Doubled,
    cells: Vec<f64>,
}

/// Points of a tile in double precision.
#[derive(Debug, Default)]
struct Doubled {
    entries: Vec<f64>,
    /// As in a [`Block`].
    halves: Vec<f64>,
}

impl Doubled {
    /// Replaces the points.
    fn load(&mut self, points: &dyn Points, range: Range<usize>) {
        let depth = points.columns();
        self.entries.resize(range.len() * depth, 0.0);
        self.halves.clear();
        for (row, i) in self.entries.chunks_exact_mut(depth).zip(range) {
            points.read(i, row);
            self.halves.push(match points.metric() {
                Metric::Cosine => 0.5, // Exactly, which a sum of squares is not.
                Metric::Euclidean => {
                    let square = widest(|| {
                        row.iter_mut().zip(points.centre()).for_each(|(x, centre)| *x -= centre);
                        sum_of(row, row, |x, y| x * y)
                    });
                    (square + points.spread(i)) / 2.0
                }
            });
        }
    }
}

impl Tile {
    /// Distances from a point of the first block to those of the second.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.cells.chunks_exact(self.width)
    }

    /// Computes all distances from `rows` to `columns`. Near pairs are computed again if the column's point comes
    /// before the row's; the others are not used.
    pub fn fill(&mut self, points: &dyn Points, rows: &Block, columns: &Block) {
        let (height, width, depth) = (rows.halves.len(), columns.halves.len(), points.columns());
        self.width = width;
        self.cells.resize(height * width, 0.0);
        matmul(
            MatMut::from_row_major_slice_mut(&mut self.cells, height, width),
            Accum::Replace,
            MatRef::from_row_major_slice(&rows.rows, height, depth),
            MatRef::from_row_major_slice(&columns.rows, width, depth).transpose(),
            1.0,
            Par::Seq,
        );
        let near = widest(|| {
            let mut near = 0;
            for (cells, &half) in self.cells.chunks_exact_mut(width).zip(&rows.halves) {
                for (cell, &other) in cells.iter_mut().zip(&columns.halves) {
                    let sum = half + other;
                    let distance = sum - f64::from(*cell);
                    near += u64::from(distance < NEAR * sum);
                    *cell = if distance > 0.0 { distance as f32 } else { 0.0 };
                }
            }
            near as usize
        });
        if near > height * width / CROWDED + height {
            self.fill_in_doubles(points, rows.range(), columns.range());
        } else if near > 0 {
            self.refine(points, rows, columns);
        }
    }

    /// Computes near distances again.
    fn refine(&mut self, points: &dyn Points, rows: &Block, columns: &Block) {
        self.one.resize(points.columns(), 0.0);
        self.other.resize(points.columns(), 0.0);
        for (i, cells) in self.cells.chunks_exact_mut(self.width).enumerate() {
            let row = rows.range.start + i;
            let mut is_read = false;
            for (j, cell) in cells.iter_mut().enumerate() {
                let column = columns.range.start + j;
                let sum = rows.halves[i] + columns.halves[j];
                if f64::from(*cell) < NEAR * sum && column < row {
                    if !is_read {
                        points.read(row, &mut self.one);
                        is_read = true;
                    }
                    points.read(column, &mut self.other);
                    *cell = exact(&self.one, &self.other, points.spread(row), points.spread(column)) as f32;
                }
            }
        }
    }

    /// Computes all distances again.
    fn fill_in_doubles(&mut self, points: &dyn Points, rows: Range<usize>, columns: Range<usize>) {
        let depth = points.columns();
        self.doubles.rows.load(points, rows.clone());
        self.doubles.columns.load(points, columns.clone());
        let Doubles { rows: left, columns: right, cells } = &mut self.doubles;
        cells.resize(rows.len() * columns.len(), 0.0);
        matmul(
            MatMut::from_row_major_slice_mut(cells, rows.len(), columns.len()),
            Accum::Replace,
            MatRef::from_row_major_slice(&left.entries, rows.len(), depth),
            MatRef::from_row_major_slice(&right.entries, columns.len(), depth).transpose(),
            1.0,
            Par::Seq,
        );
        for (i, (cells, dots)) in
            self.cells.chunks_exact_mut(self.width).zip(cells.chunks_exact(columns.len())).enumerate()
        {
            for (j, (cell, dot)) in cells.iter_mut().zip(dots).enumerate() {
                let sum = left.halves[i] + right.halves[j];
                let far = sum - dot;
                let distance = if far < NEAR_DOUBLE * sum && columns.start + j < rows.start + i {
                    let (one, other) = (&left.entries[i * depth..][..depth], &right.entries[j * depth..][..depth]);
                    exact(one, other, points.spread(rows.start + i), points.spread(columns.start + j))
                } else {
                    far
                };
                *cell = distance.max(0.0) as f32;
            }
        }
    }
}

/// The sum of `f` over pairs of entries, as several independent sums: in a single one, each addition would wait for the
/// one before.
#[inline(always)]
fn sum_of<X: Copy, Y: Copy>(x: &[X], y: &[Y], f: impl Fn(X, Y) -> f64) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let (heads, tails) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f64 = heads.remainder().iter().zip(tails.remainder()).map(|(&x, &y)| f(x, y)).sum();
    for (x, y) in heads.zip(tails) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x, y);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// The distance without dot products: exact to the last digits however near two points are, and 0 for equal rows.
fn exact(x: &[f64], y: &[f64], spread_x: f64, spread_y: f64) -> f64 {
    (widest(|| sum_of(x, y, |x, y| (x - y) * (x - y))) + spread_x + spread_y) / 2.0
}

//! The matrix of distances between clusters, while clusters are being joined.
//!
//! In short: a join writes one row and no column; every other row is brought up to date when it is next read.
//!
//! Joining two clusters changes one row and one column of a symmetric matrix. The row is contiguous and quick to write.
//! Writing the column would touch every other row, with a cache miss each. So the column is left out, and the two
//! copies of an entry may differ for a while: the one in the row of the cluster that was joined later is the valid one.
//! A log of all joins tells a row, when it is next read, which entries it has to copy from other rows.

use std::mem::take;
use std::ops::Range;

use super::clusters::{Clusters, Entries};
use super::distance::{Block, Tile, BLOCK};
use crate::error::{reserve, Result};
use crate::work::parallel::{runs, share, Stop, Task};
use crate::work::progress::Progress;
use crate::work::simd::widest;

/// Rows that a thread mirrors at a time: that many cache lines fit in the L1 cache together.
const MIRROR: usize = 64;

/// How much of each row is stored from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Everything: n² entries.
    Whole,
    /// The part before the diagonal, n²/2 entries; a row is completed when it is first needed as a whole.
    Lower,
}

/// A symmetric matrix over n places, one cluster at each. The diagonal is infinite, and so is every entry of a place
/// that is empty because its cluster was joined to another.
#[derive(Debug)]
pub struct Matrix {
    /// Row `i` holds entries `0..i` or all; none once its place is empty.
    rows: Vec<Vec<f32>>,
    log: Vec<LogEntry>,
    /// How much of the log each row has been brought up to date with.
    seen: Vec<usize>,
    /// Index of the last log entry about each place.
    latest: Vec<usize>,
    /// Scratch: places whose entries a row has to copy.
    due: Vec<usize>,
}

/// A join: the place that was emptied, and the place of the joined cluster.
#[derive(Debug, Clone, Copy)]
struct LogEntry {
    from: usize,
    into: usize,
}

impl Matrix {
    /// The distances between all clusters; the same for any number of threads.
    pub fn new(
        clusters: &Clusters<'_>,
        entries: Entries,
        storage: Storage,
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let n = clusters.len();
        // One allocation of the whole size is tried before the rows are allocated one by one. The system would grant
        // rows until it kills the process, and an error would give the size of a single row.
        let what = "the distances between all prompts";
        drop(reserve::<f32>(what, Matrix::bytes(n, storage) / size_of::<f32>())?);
        let mut rows = Vec::with_capacity(n);
        for i in 0..n {
            let length = if storage == Storage::Whole { n } else { i };
            rows.push(reserve(what, length)?);
        }
        progress.part(0.0, 0.9, |progress| fill(&mut rows, clusters, entries, storage, threads, progress))?;
        if storage == Storage::Whole {
            progress.part(0.9, 1.0, |progress| mirror(&mut rows, threads, progress))?;
        }
        Ok(Matrix::from_rows(rows))
    }

    /// A matrix of these rows.
    pub fn from_rows(rows: Vec<Vec<f32>>) -> Self {
        let n = rows.len();
        Matrix { rows, log: Vec::new(), seen: vec![0; n], latest: vec![usize::MAX; n], due: Vec::new() }
    }

    /// Whether every row is whole from the start.
    pub fn is_whole(&self) -> bool {
        self.rows.first().is_some_and(|first| first.len() == self.rows.len())
    }

    /// The rows.
    pub fn into_rows(self) -> Vec<Vec<f32>> {
        self.rows
    }

    /// Bytes that a matrix takes.
    pub fn bytes(n: usize, storage: Storage) -> usize {
        let entries = n.saturating_mul(n) / if storage == Storage::Whole { 1 } else { 2 };
        entries.saturating_mul(size_of::<f32>())
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Distances from `place` to all places.
    pub fn row(&mut self, place: usize) -> &[f32] {
        self.complete(place);
        self.refresh(place);
        &self.rows[place]
    }

    /// Distances from `place` to the places before it.
    pub fn lower(&mut self, place: usize) -> &[f32] {
        self.refresh(place);
        &self.rows[place][..place]
    }

    /// Joins two clusters: the new one is at `into`, and `from` becomes empty. `update` takes the distances from the
    /// two to a third, and the third's weight.
    ///
    /// Returns the new distances.
    pub fn join(&mut self, from: usize, into: usize, weights: &[f64], update: impl Fn(f32, f32, f64) -> f32) -> &[f32] {
        self.row(from);
        self.row(into);
        let gone = take(&mut self.rows[from]);
        let row = &mut self.rows[into];
        widest(|| {
            for ((cell, &other), &weight) in row.iter_mut().zip(&gone).zip(weights) {
                *cell = update(other, *cell, weight);
            }
        });
        row[from] = f32::INFINITY;
        row[into] = f32::INFINITY;
        (self.latest[from], self.latest[into]) = (self.log.len(), self.log.len());
        self.log.push(LogEntry { from, into });
        self.seen[into] = self.log.len();
        &self.rows[into]
    }

    /// Removes the empty places. Returns the places that are kept, in order: what was at the i-th of them is now at i.
    ///
    /// All rows are brought up to date here, in order. That is far cheaper than one by one when they are read: the
    /// entries for one row are beside those for the next in memory.
    pub fn compact(&mut self, is_empty: &[bool]) -> Vec<usize> {
        let kept: Vec<usize> = (0..self.len()).filter(|&place| !is_empty[place]).collect();
        for &place in &kept {
            self.refresh(place);
        }
        let mut rows = Vec::with_capacity(kept.len());
        for &place in &kept {
            let row = take(&mut self.rows[place]);
            let lower = kept.partition_point(|&other| other < row.len());
            rows.push(kept[..lower].iter().map(|&other| row[other]).collect());
        }
        *self = Matrix::from_rows(rows);
        kept
    }

    /// Completes a row that has only its lower part, from the rows after it.
    fn complete(&mut self, place: usize) {
        let n = self.rows.len();
        if self.rows[place].len() == n {
            return;
        }
        // A joined cluster has a whole row. So this place has not been joined, and every later row, whenever it was
        // written, holds a valid entry for it.
        let mut row = take(&mut self.rows[place]);
        row.reserve_exact(n - place);
        row.push(f32::INFINITY);
        row.extend(self.rows[place + 1..].iter().map(|later| later.get(place).copied().unwrap_or(f32::INFINITY)));
        self.rows[place] = row;
    }

    /// Brings a row up to date with the joins since it was last read.
    fn refresh(&mut self, place: usize) {
        let mut row = take(&mut self.rows[place]);
        let mut due = take(&mut self.due);
        due.clear();
        for (at, &LogEntry { from, into }) in self.log.iter().enumerate().skip(self.seen[place]) {
            if let Some(cell) = row.get_mut(from) {
                *cell = f32::INFINITY;
            }
            // A place that was joined again or emptied since then has a later log entry.
            if self.latest[into] == at && into < row.len() {
                due.push(into);
            }
        }
        // Every entry is a cache miss. A loop without branches lets the processor load many of them at the same time.
        for &other in &due {
            row[other] = self.rows[other].get(place).copied().unwrap_or(f32::INFINITY);
        }
        self.seen[place] = self.log.len();
        self.rows[place] = row;
        self.due = due;
    }
}

/// Whether enough places are empty that removing them saves more time than it takes.
pub fn is_sparse(clusters: usize, places: usize) -> bool {
    places > 64 && clusters * 5 < places * 2
}

/// The least entry of a row and its place, the first among equals; none if all are infinite.
pub fn least(row: &[f32]) -> Option<(usize, f32)> {
    const LANES: usize = 32;
    let lesser = |x: f32, y: f32| if y < x { y } else { x };
    let least = widest(|| {
        let mut lanes = [f32::INFINITY; LANES];
        let chunks = row.chunks_exact(LANES);
        let rest = chunks.remainder().iter().copied().fold(f32::INFINITY, lesser);
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = lesser(*lane, x);
            }
        }
        lanes.into_iter().fold(rest, lesser)
    });
    if least == f32::INFINITY {
        return None;
    }
    // Whole chunks are tested first: that needs no branch per entry.
    let has = |chunk: &&[f32]| chunk.iter().fold(false, |has, &x| has | (x == least));
    let chunk = widest(|| row.chunks(LANES).position(|chunk| has(&chunk)))?;
    let start = chunk * LANES;
    let place = row[start..].iter().position(|&x| x == least)?;
    Some((start + place, least))
}

/// What a thread fills at a time: consecutive clusters and their rows.
type Band<'a> = (Range<usize>, &'a mut [Vec<f32>]);

/// Fills the lower part of all rows, and gives them their length.
fn fill(
    rows: &mut [Vec<f32>],
    clusters: &Clusters<'_>,
    entries: Entries,
    storage: Storage,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let n = rows.len();
    let blocks = clusters.blocks(BLOCK);
    let mut tasks = Vec::new();
    let mut rest = rows;
    // Bands are two blocks high, so that the blocks beside them are loaded half as often. The longest rows are last in
    // the list and therefore done first: no thread is busy for long after the others have finished.
    for band in clusters.blocks(2 * BLOCK) {
        let (head, tail) = rest.split_at_mut(band.len());
        tasks.push(Task { cost: band.len() * band.end, item: (band, head) });
        rest = tail;
    }
    let spreads = clusters.spreads(entries, threads, progress)?;
    let work = |(ours, theirs, tile): &mut (Block, Block, Tile), (band, rows): Band<'_>, stop: &Stop| {
        for (i, row) in band.clone().zip(rows.iter_mut()) {
            row.resize(if storage == Storage::Whole { n } else { i }, f32::INFINITY);
        }
        ours.load(clusters.points, clusters.points_of(band.clone()));
        for block in blocks.iter().take_while(|block| block.start < band.end && !stop.is_set()) {
            theirs.load(clusters.points, clusters.points_of(block.clone()));
            tile.fill(clusters.points, ours, theirs);
            entries.write(clusters, &spreads, band.clone(), block.clone(), tile, rows);
        }
    };
    share(threads, tasks, progress, Default::default, work)
}

/// Copies the lower part of all rows to the upper.
fn mirror(rows: &mut [Vec<f32>], threads: usize, progress: &mut Progress<'_>) -> Result<()> {
    let n = rows.len();
    let (lower, mut upper): (Vec<&[f32]>, Vec<&mut [f32]>) = rows
        .iter_mut()
        .enumerate()
        .map(|(i, row)| {
            let (lower, upper) = row.split_at_mut(i);
            (&*lower, upper)
        })
        .unzip();
    let tasks = runs(n, MIRROR).zip(upper.chunks_mut(MIRROR)).map(|(band, rows)| {
        let cost = band.len() * (n - band.start);
        Task { item: (band, rows), cost }
    });
    let mut tasks: Vec<_> = tasks.collect();
    tasks.reverse();
    let work = |(): &mut (), (band, rows): (Range<usize>, &mut [&mut [f32]]), stop: &Stop| {
        for columns in runs(n - band.start, MIRROR).take_while(|_| !stop.is_set()) {
            for column in columns.start + band.start..columns.end + band.start {
                for (i, (row, &cell)) in band.clone().zip(rows.iter_mut().zip(&lower[column][band.start.min(column)..]))
                {
                    row[column - i] = cell;
                }
            }
        }
    };
    share(threads, tasks, progress, || (), work)
}

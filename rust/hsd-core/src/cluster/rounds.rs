//! Reducible linkages in rounds: all pairs of clusters that are each other's nearest (reciprocal nearest neighbours)
//! are joined at once.
//!
//! In short: a round finds all such pairs, joins them, and writes a smaller matrix over the old one.
//!
//! With a reducible linkage, a pair of each other's nearest remains one whatever else is joined, so it may be joined at
//! any time. A round reads the matrix once, row by row. A new row follows from one or two old rows and from nothing
//! else, so rows are rewritten in place, by any number of threads, and memory is read in order. About a third of all
//! clusters find their partner in a round, so a matrix of n² entries needs about 2 n² entries to be read in all rounds
//! together.
//!
//! There may be few such pairs: only one in each round, if the clusters are on a line and every gap is larger than the
//! one before. Then the rounds end, and the chain joins the rest.

use super::join::Join;
use super::matrix::{least, Matrix};
use super::update::Update;
use crate::error::Result;
use crate::work::parallel::{share, Stop, Task};
use crate::work::progress::Progress;
use crate::work::simd::widest;

/// A round has to join at least one cluster in this many; otherwise the chain is faster.
const LEAST_SHARE: usize = 32;

/// With this many clusters or fewer, starting threads costs more than they save.
const SMALL: usize = 256;

/// Rows that a thread rewrites at a time.
const BAND: usize = 64;

/// What the rounds have joined, and what they leave to the chain.
pub struct Rounds {
    /// What they have joined, by the places of the first matrix.
    pub joins: Vec<Join>,
    /// The clusters left.
    pub distances: Matrix,
    /// Their sizes.
    pub sizes: Vec<f64>,
    /// Their places in the first matrix.
    pub places: Vec<usize>,
}

/// A row: its entries, those of the cluster that joins it in this round (empty otherwise), and the nearest other place
/// once the entries are new.
#[derive(Default)]
struct Line {
    row: Vec<f32>,
    other: Vec<f32>,
    nearest: (usize, f32),
}

/// The new places, and the old ones that they come from.
struct Columns {
    /// Of each new place, the old one; of two old ones, the first.
    first: Vec<usize>,
    /// The new places made of two, ascending.
    pairs: Vec<Pair>,
}

/// Two old places that become one.
#[derive(Clone, Copy)]
struct Pair {
    /// The new place.
    place: usize,
    first: usize,
    second: usize,
    distance: f32,
    /// Their sizes.
    sizes: [f64; 2],
}

/// Joins clusters in rounds for as long as that is faster than the chain. Among equally near clusters the lowest place
/// counts as the nearest. A matrix that is not whole is left as it is.
pub fn agglomerate(
    distances: Matrix,
    sizes: &[f64],
    update: impl Update,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Rounds> {
    let n = distances.len();
    let places = (0..n).collect();
    let mut rounds = Rounds { joins: Vec::with_capacity(n), distances, sizes: sizes.to_vec(), places };
    if !rounds.distances.is_whole() {
        return Ok(rounds);
    }
    let rows = std::mem::replace(&mut rounds.distances, Matrix::from_rows(Vec::new())).into_rows();
    let mut lines: Vec<Line> = rows.into_iter().map(|row| Line { row, ..Line::default() }).collect();
    let tasks = lines.chunks_mut(BAND).map(|lines| Task { item: lines, cost: 1 }).collect();
    let find = |(): &mut (), lines: &mut [Line], _: &Stop| {
        lines.iter_mut().for_each(|line| line.nearest = nearest(&line.row));
    };
    progress.part(0.0, 0.0, |progress| share(threads, tasks, progress, || (), find))?;
    while lines.len() > SMALL {
        let columns = Columns::of(&lines, &rounds.sizes);
        if columns.pairs.len() * LEAST_SHARE < lines.len() {
            break;
        }
        let (begin, end) = (done(lines.len(), n), done(columns.first.len(), n));
        let round = |progress: &mut Progress<'_>| rounds.round(lines, &columns, update, threads, progress);
        lines = progress.part(begin, end, round)?;
    }
    rounds.distances = Matrix::from_rows(lines.into_iter().map(|line| line.row).collect());
    Ok(rounds)
}

/// The share of the work that is done when `left` clusters of `n` remain: the rest takes about `left²` of `n²`.
pub fn done(left: usize, n: usize) -> f64 {
    1.0 - (left as f64 / n as f64).powi(2)
}

impl Columns {
    /// All pairs of places that are each other's nearest become one, at the first of the two.
    fn of(lines: &[Line], sizes: &[f64]) -> Self {
        let mut columns = Columns { first: Vec::with_capacity(lines.len()), pairs: Vec::new() };
        for (first, line) in lines.iter().enumerate() {
            let (second, distance) = line.nearest;
            if lines[second].nearest.0 == first {
                if second < first {
                    continue;
                }
                let place = columns.first.len();
                let sizes = [sizes[first], sizes[second]];
                columns.pairs.push(Pair { place, first, second, distance, sizes });
            }
            columns.first.push(first);
        }
        columns
    }
}

impl Rounds {
    /// One round: the new lines.
    fn round(
        &mut self,
        mut lines: Vec<Line>,
        columns: &Columns,
        update: impl Update,
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Line>> {
        let old_sizes = std::mem::take(&mut self.sizes);
        let old_places = std::mem::take(&mut self.places);
        self.sizes = columns.first.iter().map(|&first| old_sizes[first]).collect();
        self.places = columns.first.iter().map(|&first| old_places[first]).collect();
        let mut new: Vec<(Line, Option<Pair>)> =
            columns.first.iter().map(|&first| (std::mem::take(&mut lines[first]), None)).collect();
        for pair in &columns.pairs {
            self.sizes[pair.place] = pair.sizes[0] + pair.sizes[1];
            let (from, into) = (old_places[pair.second], old_places[pair.first]);
            self.joins.push(Join { from, into, distance: pair.distance.into() });
            new[pair.place].0.other = std::mem::take(&mut lines[pair.second].row);
            new[pair.place].1 = Some(*pair);
        }
        let tasks = new.chunks_mut(BAND).enumerate().map(|(band, lines)| Task { item: (band * BAND, lines), cost: 1 });
        let work = |scratch: &mut Scratch, (start, lines): (usize, &mut [(Line, Option<Pair>)]), _: &Stop| {
            for (at, (line, pair)) in lines.iter_mut().enumerate() {
                match pair {
                    None => line.rewrite(old_sizes[columns.first[start + at]], columns, update, scratch),
                    Some(pair) => line.rewrite_joined(*pair, &old_sizes, columns, update, scratch),
                }
                line.nearest = nearest(&line.row);
            }
        };
        share(threads, tasks.collect(), progress, Scratch::default, work)?;
        Ok(new.into_iter().map(|(line, _)| line).collect())
    }
}

/// Memory to compute a new row in.
#[derive(Default)]
struct Scratch {
    joined: Vec<f32>,
    /// Entries for both old places of each pair, from either old row.
    between: [Vec<f32>; 4],
    /// The new entry of each pair.
    new: Vec<f32>,
}

impl Line {
    /// Writes the new row of a cluster of size `own` that is not joined over its old row.
    fn rewrite(&mut self, own: f64, columns: &Columns, update: impl Update, scratch: &mut Scratch) {
        let Scratch { between: [ac, bc, ..], new, .. } = scratch;
        gather(ac, &self.row, columns.pairs.iter().map(|pair| pair.first));
        gather(bc, &self.row, columns.pairs.iter().map(|pair| pair.second));
        new.resize(columns.pairs.len(), 0.0);
        widest(|| {
            for (((new, pair), &ac), &bc) in new.iter_mut().zip(&columns.pairs).zip(&*ac).zip(&*bc) {
                *new = update.pair(pair.distance, [ac, bc], [pair.sizes[0], pair.sizes[1], own]);
            }
        });
        // Places only move to the front, so the row can be overwritten from front to back.
        for (place, &first) in columns.first.iter().enumerate() {
            self.row[place] = self.row[first];
        }
        self.row.truncate(columns.first.len());
        for (pair, &new) in columns.pairs.iter().zip(&*new) {
            self.row[pair.place] = new;
        }
    }

    /// Writes the new row of two clusters that are joined over the old one of the first.
    fn rewrite_joined(
        &mut self,
        own: Pair,
        sizes: &[f64],
        columns: &Columns,
        update: impl Update,
        scratch: &mut Scratch,
    ) {
        let Line { row, other, .. } = self;
        let Scratch { joined, between, new } = scratch;
        let [a, b] = own.sizes;
        joined.resize(row.len(), 0.0);
        for (out, (row, second)) in
            between.iter_mut().zip([(&*row, false), (&*row, true), (&*other, false), (&*other, true)])
        {
            gather(out, row, columns.pairs.iter().map(|pair| if second { pair.second } else { pair.first }));
        }
        new.resize(columns.pairs.len(), 0.0);
        let [ac, ad, bc, bd] = between;
        widest(|| {
            for (((joined, &ac), &bc), &c) in joined.iter_mut().zip(&*row).zip(&*other).zip(sizes) {
                *joined = update.pair(own.distance, [ac, bc], [a, b, c]);
            }
            let between = ac.iter().zip(&*ad).zip(bc.iter().zip(&*bd));
            for ((new, pair), ((&ac, &ad), (&bc, &bd))) in new.iter_mut().zip(&columns.pairs).zip(between) {
                let [c, d] = pair.sizes;
                *new = update.pairs(own.distance, pair.distance, [ac, ad, bc, bd], [a, b, c, d]);
            }
        });
        gather(row, joined, columns.first.iter().copied());
        for (pair, &new) in columns.pairs.iter().zip(&*new) {
            row[pair.place] = new;
        }
        row[own.place] = f32::INFINITY;
        *other = Vec::new();
    }
}

/// Fills `out` with the entries of `row` at `places`.
fn gather(out: &mut Vec<f32>, row: &[f32], places: impl Iterator<Item = usize>) {
    out.clear();
    out.extend(places.map(|place| row[place]));
}

/// The nearest other cluster; there is one.
fn nearest(row: &[f32]) -> (usize, f32) {
    least(row).unwrap_or((0, f32::INFINITY))
}

//! Reducible linkages in rounds: all pairs of clusters that are each other's nearest are joined at once.
//!
//! Such a pair stays what it is whatever else is joined, so it can be joined at any time. A round goes once through
//! the matrix, row by row: a new row follows from one or two old ones and from nothing else, so rows are rewritten in
//! place, by any number of threads, without a cache miss but for the stream itself. About a third of all clusters find
//! their partner in a round, so a matrix of n² entries is done after some 2 n² of them.
//!
//! There may be few such pairs (one a round, on a line of growing gaps); then the chain goes on from here.

use crate::error::Result;
use crate::linkage::Join;
use crate::matrix::{least, Matrix};
use crate::parallel::{share, Stop, Task};
use crate::progress::Progress;
use crate::simd::widest;
use crate::update::Update;

/// A round has to join one of so many clusters to be worth its while.
const LEAST_SHARE: usize = 32;

/// Below so many clusters, starting threads costs more than they save.
const SMALL: usize = 256;

/// Rows that a thread rewrites at a time.
const BAND: usize = 64;

/// What the rounds have left to do.
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

/// A new row: the old one, the other old one if two are joined (empty otherwise), and, once it is new, its nearest.
#[derive(Default)]
struct Line {
    row: Vec<f32>,
    other: Vec<f32>,
    nearest: (usize, f32),
}

/// What the new places are made of.
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

/// Joins clusters in rounds for as long as that pays. Ties go to the lowest pair of places. A matrix that is not whole
/// is left as it is.
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

/// The share that is done with `left` clusters of `n`: what is left to do is about the square of what is left.
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
        let work = |room: &mut Room, (start, lines): (usize, &mut [(Line, Option<Pair>)]), _: &Stop| {
            for (at, (line, pair)) in lines.iter_mut().enumerate() {
                match pair {
                    None => line.rewrite(old_sizes[columns.first[start + at]], columns, update, room),
                    Some(pair) => line.rewrite_joined(*pair, &old_sizes, columns, update, room),
                }
                line.nearest = nearest(&line.row);
            }
        };
        share(threads, tasks.collect(), progress, Room::default, work)?;
        Ok(new.into_iter().map(|(line, _)| line).collect())
    }
}

/// Room to write a new row in.
#[derive(Default)]
struct Room {
    joined: Vec<f32>,
    /// Entries of both old places of each pair, from either old row, and what becomes of them.
    between: [Vec<f32>; 4],
    new: Vec<f32>,
}

impl Line {
    /// Writes the new row of a cluster that stays, of size `own`, over the old.
    fn rewrite(&mut self, own: f64, columns: &Columns, update: impl Update, room: &mut Room) {
        let Room { between: [ac, bc, new, _], .. } = room;
        gather(ac, &self.row, columns.pairs.iter().map(|pair| pair.first));
        gather(bc, &self.row, columns.pairs.iter().map(|pair| pair.second));
        new.resize(columns.pairs.len(), 0.0);
        widest(|| {
            for (((new, pair), &ac), &bc) in new.iter_mut().zip(&columns.pairs).zip(&*ac).zip(&*bc) {
                *new = update.pair(pair.distance, [ac, bc], [pair.sizes[0], pair.sizes[1], own]);
            }
        });
        // Places only move to the front, so the row can be written over itself.
        for (place, &first) in columns.first.iter().enumerate() {
            self.row[place] = self.row[first];
        }
        self.row.truncate(columns.first.len());
        for (pair, &new) in columns.pairs.iter().zip(&*new) {
            self.row[pair.place] = new;
        }
    }

    /// Writes the new row of two clusters that are joined over the old one of the first.
    fn rewrite_joined(&mut self, own: Pair, sizes: &[f64], columns: &Columns, update: impl Update, room: &mut Room) {
        let Line { row, other, .. } = self;
        let Room { joined, between, new } = room;
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

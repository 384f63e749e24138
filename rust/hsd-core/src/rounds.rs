//! Reducible linkages in rounds: all pairs of clusters that are each other's nearest are joined at once.
//!
//! Such a pair stays what it is whatever else is joined, so it can be joined at any time. A round goes once through
//! the matrix, row by row: a new row follows from one or two old ones and from nothing else, so rows are rewritten in
//! place, by any number of threads, without a cache miss but for the stream itself. About a third of all clusters find
//! their partner in a round, so a matrix of n² entries is done after some 2 n² of them.
//!
//! There may be few such pairs (one a round, on a line of growing gaps); then the chain goes on from here.

use crate::chain::{update_of, Triple};
use crate::error::Result;
use crate::linkage::Join;
use crate::matrix::{least, Matrix};
use crate::parallel::{share, Stop, Task};
use crate::progress::Progress;

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

/// A new column: the old one, and the other old one if two are joined, with their distance.
#[derive(Clone, Copy)]
struct Column {
    first: usize,
    second: Option<(usize, f32)>,
}

/// Joins clusters in rounds for as long as that pays. Ties go to the lowest pair of places. A matrix that is not whole
/// is left as it is.
pub fn agglomerate(
    distances: Matrix,
    sizes: &[f64],
    update: impl Fn(Triple) -> f64 + Copy + Sync,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Rounds> {
    let n = distances.len();
    let mut rounds = Rounds { joins: Vec::with_capacity(n), distances, sizes: sizes.to_vec(), places: (0..n).collect() };
    if !rounds.distances.is_whole() {
        return Ok(rounds);
    }
    let rows = std::mem::replace(&mut rounds.distances, Matrix::from_rows(Vec::new())).into_rows();
    let mut lines: Vec<Line> = rows.into_iter().map(|row| Line { row, ..Line::default() }).collect();
    for line in &mut lines {
        line.nearest = nearest(&line.row);
    }
    while lines.len() > SMALL {
        let columns = pair(&lines);
        if (lines.len() - columns.len()) * LEAST_SHARE < lines.len() {
            break;
        }
        let next = progress.part(done(lines.len(), n), done(columns.len(), n), |progress| {
            round(lines, &columns, &mut rounds, update, threads, progress)
        });
        lines = next?;
    }
    rounds.distances = Matrix::from_rows(lines.into_iter().map(|line| line.row).collect());
    Ok(rounds)
}

/// The share that is done with `left` clusters of `n`: what is left to do is about the square of what is left.
pub fn done(left: usize, n: usize) -> f64 {
    1.0 - (left as f64 / n as f64).powi(2)
}

/// The clusters after a round, by their lowest place.
fn pair(lines: &[Line]) -> Vec<Column> {
    let is_mutual = |place: usize| lines[lines[place].nearest.0].nearest.0 == place;
    let stays = |&place: &usize| !is_mutual(place) || place < lines[place].nearest.0;
    let column = |place: usize| Column { first: place, second: is_mutual(place).then_some(lines[place].nearest) };
    (0..lines.len()).filter(stays).map(column).collect()
}

/// One round: the lines of the new columns.
fn round(
    mut lines: Vec<Line>,
    columns: &[Column],
    rounds: &mut Rounds,
    update: impl Fn(Triple) -> f64 + Copy + Sync,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Line>> {
    let sizes = std::mem::take(&mut rounds.sizes);
    let places = std::mem::take(&mut rounds.places);
    let mut next = Vec::with_capacity(columns.len());
    for &Column { first, second } in columns {
        let mut line = std::mem::take(&mut lines[first]);
        let mut size = sizes[first];
        if let Some((other, distance)) = second {
            line.other = std::mem::take(&mut lines[other].row);
            size += sizes[other];
            rounds.joins.push(Join { from: places[other], into: places[first], distance: distance.into() });
        }
        rounds.sizes.push(size);
        rounds.places.push(places[first]);
        next.push(line);
    }
    let mut tasks: Vec<Task<(usize, &mut [Line])>> = Vec::new();
    for (band, lines) in next.chunks_mut(BAND).enumerate() {
        tasks.push(Task { item: (band * BAND, lines), cost: BAND });
    }
    let work = |room: &mut Room, (start, lines): (usize, &mut [Line]), _: &Stop| {
        for (at, line) in lines.iter_mut().enumerate() {
            line.rewrite(columns[start + at], columns, &sizes, update, room);
            line.nearest = nearest(&line.row);
        }
    };
    share(threads, tasks, progress, Room::default, work)?;
    Ok(next)
}

/// Room to write a new row in.
#[derive(Default)]
struct Room {
    joined: Vec<f32>,
    new: Vec<f32>,
}

impl Line {
    /// Writes the new row over the old.
    ///
    /// The distance of two new clusters takes two updates, and their order shows in the last bit. It is the same seen
    /// from either cluster: the pair with the lower place goes first.
    fn rewrite(
        &mut self,
        own: Column,
        columns: &[Column],
        sizes: &[f64],
        update: impl Fn(Triple) -> f64,
        room: &mut Room,
    ) {
        let Line { row, other, .. } = self;
        let Room { joined, new } = room;
        let a = sizes[own.first];
        new.clear();
        match own.second {
            None => new.extend(columns.iter().map(|&Column { first, second }| match second {
                None => row[first],
                Some((second, cd)) => update_of(&update, cd, [row[first], row[second]], [sizes[first], sizes[second], a]),
            })),
            Some((place, ab)) => {
                let b = sizes[place];
                let pairs = row.iter().zip(other.iter()).zip(sizes);
                joined.clear();
                joined.extend(pairs.map(|((&ac, &bc), &c)| update_of(&update, ab, [ac, bc], [a, b, c])));
                new.extend(columns.iter().map(|&Column { first, second }| match second {
                    _ if first == own.first => f32::INFINITY,
                    None => joined[first],
                    Some((second, cd)) => {
                        let (c, d) = (sizes[first], sizes[second]);
                        if first > own.first {
                            return update_of(&update, cd, [joined[first], joined[second]], [c, d, a + b]);
                        }
                        let one = update_of(&update, cd, [row[first], row[second]], [c, d, a]);
                        let two = update_of(&update, cd, [other[first], other[second]], [c, d, b]);
                        update_of(&update, ab, [one, two], [a, b, c + d])
                    }
                }));
            }
        }
        *other = Vec::new();
        row.clear();
        row.extend_from_slice(new);
    }
}

fn nearest(row: &[f32]) -> (usize, f32) {
    let least = least(row);
    (row.iter().position(|&distance| distance == least).unwrap_or_default(), least)
}

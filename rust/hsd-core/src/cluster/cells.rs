//! Points divided into cells of similar ones, small enough to be clustered one at a time.

use super::distance::Points;
use crate::error::Result;
use crate::work::parallel::{runs, share, Task};
use crate::work::progress::Progress;

/// At most this many points decide where a cut is.
const SAMPLE: usize = 2048;

/// Steps of 2-means on the sample.
const STEPS: usize = 6;

/// Points that a thread projects at a time.
const BAND: usize = 1024;

/// No cut leaves less than this share on one side.
const LEAST_SHARE: f64 = 0.2;

/// Cells of at most `most` points each, in ascending order within a cell. Where the cuts are depends on `seed`, so that
/// two points which one partition separates are likely to be together in another.
pub fn partition(
    points: &dyn Points,
    most: usize,
    seed: u64,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Vec<usize>>> {
    let mut cells = Vec::new();
    let mut open = vec![(0..points.len()).collect::<Vec<_>>()];
    let mut random = Random(seed);
    let depth = (points.len() as f64 / most as f64).log2().max(1.0);
    let mut projected = 0;
    while let Some(cell) = open.pop() {
        if cell.len() <= most {
            cells.push(cell);
            continue;
        }
        let cut = Cut::of(points, &cell, &mut random);
        let total = (points.len() as f64 * depth) as usize;
        let at = |done: usize| (done as f64 / total as f64).min(1.0);
        let (begin, end) = (at(projected), at(projected + cell.len()));
        projected += cell.len();
        let along = progress.part(begin, end, |progress| cut.project(points, &cell, threads, progress))?;
        let (low, high) = cut.sides(cell, &along);
        open.push(high);
        open.push(low);
    }
    Ok(cells)
}

/// A hyperplane between two halves of a cell.
struct Cut {
    direction: Vec<f64>,
    threshold: f64,
}

impl Cut {
    /// Between the two means of 2-means on a sample, started at two random points.
    fn of(points: &dyn Points, cell: &[usize], random: &mut Random) -> Self {
        let columns = points.columns();
        let count = cell.len().min(SAMPLE);
        let mut rows = vec![0.0; count * columns];
        for (at, row) in rows.chunks_exact_mut(columns).enumerate() {
            points.read(cell[at * cell.len() / count], row);
        }
        let pick = |at: usize| rows[at * columns..][..columns].to_vec();
        let mut means = [pick(random.below(count)), pick(random.below(count))];
        let mut cut = Cut::between(&means);
        for _ in 0..STEPS {
            let mut sums = [vec![0.0; columns], vec![0.0; columns]];
            let mut counts = [0.0; 2];
            for row in rows.chunks_exact(columns) {
                let side = usize::from(dot(&cut.direction, row) >= cut.threshold);
                sums[side].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                counts[side] += 1.0;
            }
            if counts.contains(&0.0) {
                break;
            }
            for (sum, count) in sums.iter_mut().zip(counts) {
                sum.iter_mut().for_each(|x| *x /= count);
            }
            means = sums;
            cut = Cut::between(&means);
        }
        cut
    }

    /// Half-way between two points.
    fn between([low, high]: &[Vec<f64>; 2]) -> Self {
        let direction = high.iter().zip(low).map(|(x, y)| x - y).collect();
        Cut { direction, threshold: (dot(high, high) - dot(low, low)) / 2.0 }
    }

    /// Coordinate of each point along the direction.
    fn project(
        &self,
        points: &dyn Points,
        cell: &[usize],
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<f64>> {
        let mut along = vec![0.0; cell.len()];
        let bands = runs(cell.len(), BAND).zip(along.chunks_mut(BAND));
        let tasks = bands.map(|(range, out)| Task { cost: range.len(), item: (&cell[range], out) }).collect();
        let work = |row: &mut Vec<f64>, (cell, out): (&[usize], &mut [f64]), _: &_| {
            for (&i, out) in cell.iter().zip(out) {
                points.read(i, row);
                *out = dot(&self.direction, row);
            }
        };
        share(threads, tasks, progress, || vec![0.0; points.columns()], work)?;
        Ok(along)
    }

    /// The points below and above. Equal points may be separated: otherwise a cell of equal points could not be
    /// divided.
    fn sides(&self, cell: Vec<usize>, along: &[f64]) -> (Vec<usize>, Vec<usize>) {
        let mut order: Vec<usize> = (0..cell.len()).collect();
        order.sort_unstable_by(|&x, &y| along[x].total_cmp(&along[y]).then(x.cmp(&y)));
        let natural = order.partition_point(|&at| along[at] < self.threshold);
        let least = ((LEAST_SHARE * cell.len() as f64) as usize).max(1);
        let below = natural.clamp(least, cell.len() - least);
        let mut is_low = vec![false; cell.len()];
        order[..below].iter().for_each(|&at| is_low[at] = true);
        let side = |low: bool| cell.iter().zip(&is_low).filter(move |(_, &is)| is == low).map(|(&i, _)| i).collect();
        (side(true), side(false))
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

//! Sets whose distances do not fit in memory: approximately, level by level.
//!
//! A level cuts the clusters that there are into cells of like ones, clusters each cell by itself, and keeps the
//! lowest of all those merges, below one height for all cells, until there are few enough clusters for one matrix.
//! What is lost are merges across the borders of cells; every level draws the borders elsewhere, so that two clusters
//! parted on one level can still meet on the next, at little more than their height.
//!
//! A cluster of many prompts stands in the matrix for the mean of them all, which for `centroid` and `average` is
//! exact. The distances of `ward` and `complete` depend on all members; some points stand for them: the highest
//! clusters inside it, for `ward` their means, weighted, for `complete` one member each.

use std::collections::BinaryHeap;
use std::ops::Range;

use crate::cells::partition;
use crate::clusters::Clusters;
use crate::distance::Points;
use crate::embeddings::Embeddings;
use crate::error::{reserve, Result};
use crate::linkage::{agglomerate, root_of, Join, Linkage};
use crate::matrix::Shape;
use crate::parallel::{runs, share, Task};
use crate::progress::Progress;
use crate::tree::Tree;

/// What a level leaves of the clusters, unless one matrix holds more. The less a level does, the fewer clusters join
/// another than the one across a border that they should: at 0.4 the savings of 20,000 prompts in 1,024 clusters a cell
/// are off by up to 2.7 points, at 0.75 by 0.7, at 0.85 by 0.2 for three times the time.
const LEVEL: f64 = 0.75;

/// The most points that stand for a cluster. More than four change nothing that can be measured.
const POINTS: usize = 4;

/// Nodes whose points a thread finds at a time.
const BAND: usize = 256;

/// The most clusters of a cell, and of the last matrix.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Of a cell.
    pub cell: usize,
    /// Of the last matrix, by which no cell is smaller.
    pub last: usize,
}

/// The most clusters `n` whose matrix, n² entries, and points, [`POINTS`] n rows of `columns`, fit in `memory` bytes.
pub fn most_clusters(memory: usize, columns: usize) -> usize {
    let half = (POINTS * columns) as f64 / 2.0;
    ((half * half + (memory / size_of::<f32>()) as f64).sqrt() - half) as usize
}

/// Clusters the embeddings, approximately.
pub fn build(
    embeddings: &Embeddings<'_>,
    linkage: Linkage,
    sizes: Sizes,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let n = embeddings.len();
    let mut forest = Forest::new(embeddings, linkage);
    let mut level = 0;
    while forest.roots.len() > sizes.last {
        let count = forest.roots.len();
        let left = ((count as f64 * LEVEL) as usize).max(sizes.last).min(count - 1);
        // A level takes about as long as it has clusters.
        let done = |left: usize| 0.9 * (1.0 - left as f64 / n as f64);
        progress.part(done(count), done(left), |progress| {
            forest.level(sizes.cell, count - left, level, threads, progress)
        })?;
        level += 1;
    }
    progress.part(0.9, 1.0, |progress| {
        let all: Vec<usize> = (0..forest.roots.len()).collect();
        let joins = forest.cluster(&all, threads, progress)?;
        forest.join(&[(all, joins)], f64::INFINITY);
        Ok(())
    })?;
    progress.finish()?;
    let merges: Vec<[i64; 2]> = forest.merges.iter().map(|pair| pair.map(i64::from)).collect();
    Ok(Tree::from_merges(&merges, forest.scores, linkage.name())?.approximate())
}

/// The clusters so far.
struct Forest<'a> {
    embeddings: &'a Embeddings<'a>,
    linkage: Linkage,
    /// Children of node `n + j`.
    merges: Vec<[u32; 2]>,
    scores: Vec<f64>,
    /// Prompts below each node.
    sizes: Vec<u32>,
    /// The nodes that have no parent yet.
    roots: Vec<u32>,
    /// The prompts, such that each node has a run of them.
    order: Vec<u32>,
    /// Where each node's run begins.
    begins: Vec<u32>,
}

impl<'a> Forest<'a> {
    fn new(embeddings: &'a Embeddings<'a>, linkage: Linkage) -> Self {
        let n = embeddings.len();
        let all: Vec<u32> = (0..n as u32).collect();
        Forest {
            embeddings,
            linkage,
            merges: Vec::with_capacity(n - 1),
            scores: Vec::with_capacity(n - 1),
            sizes: vec![1; n],
            roots: all.clone(),
            order: all.clone(),
            begins: all,
        }
    }

    /// Joins `count` pairs or a few more: the lowest that clustering cell by cell finds.
    fn level(
        &mut self,
        cell: usize,
        count: usize,
        seed: u64,
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let total = self.roots.len() as f64;
        let means = Means { forest: self };
        let cells = progress.part(0.0, 0.2, |progress| partition(&means, cell, seed, threads, progress))?;
        let mut clustered = Vec::with_capacity(cells.len());
        let mut done = 0;
        for cell in cells {
            let begin = 0.2 + 0.8 * done as f64 / total;
            done += cell.len();
            let end = 0.2 + 0.8 * done as f64 / total;
            let joins = progress.part(begin, end, |progress| self.cluster(&cell, threads, progress))?;
            clustered.push((cell, joins));
        }
        let mut heights: Vec<f64> = clustered.iter().flat_map(|(cell, joins)| heights(cell.len(), joins)).collect();
        // Cells of two or three may have fewer joins in them than were asked for, but one of them has one.
        let count = count.min(heights.len());
        let (_, &mut height, _) = heights.select_nth_unstable_by(count - 1, f64::total_cmp);
        self.join(&clustered, height);
        Ok(())
    }

    /// Clusters some roots exactly, as far as their points stand for them.
    fn cluster(&self, roots: &[usize], threads: usize, progress: &mut Progress<'_>) -> Result<Vec<Join>> {
        let nodes: Vec<u32> = roots.iter().map(|&root| self.roots[root]).collect();
        let n = self.embeddings.len();
        if nodes.iter().all(|&node| (node as usize) < n) {
            let points = Subset { points: self.embeddings, members: &nodes };
            let lengths: Vec<f64> = nodes.iter().map(|&node| self.embeddings.lengths()[node as usize]).collect();
            return agglomerate(&Clusters::singles(&points, &lengths), self.linkage, Shape::Whole, threads, progress);
        }
        let most = if matches!(self.linkage, Linkage::Ward | Linkage::Complete) { POINTS } else { 1 };
        let mut starts = vec![0];
        let mut parts = Vec::new();
        let mut shares = Vec::new();
        for &node in &nodes {
            for part in self.parts(node, most) {
                shares.push(f64::from(self.sizes[part as usize]) / f64::from(self.sizes[node as usize]));
                parts.push(part);
            }
            starts.push(parts.len());
        }
        let points = progress.part(0.0, 0.1, |progress| Rows::new(self, &parts, threads, progress))?;
        let clusters = Clusters {
            sizes: nodes.iter().map(|&node| self.sizes[node as usize].into()).collect(),
            lengths: if most == 1 { points.lengths.clone() } else { vec![1.0; nodes.len()] },
            points: &points,
            starts: (most > 1).then_some(starts),
            shares,
        };
        progress.part(0.1, 1.0, |progress| agglomerate(&clusters, self.linkage, Shape::Whole, threads, progress))
    }

    /// At most `most` nodes that make up `node`: the highest merges undone.
    fn parts(&self, node: u32, most: usize) -> Vec<u32> {
        let n = self.embeddings.len();
        // By score; positive floats are ordered as their bits are.
        let entry = |node: u32| {
            let score = (node as usize).checked_sub(n).map_or(0, |merge| self.scores[merge].to_bits() + 1);
            (score, node)
        };
        let mut open = BinaryHeap::from([entry(node)]);
        while open.len() < most {
            let Some((score, node)) = open.pop() else { break };
            if score == 0 {
                open.push((score, node));
                break;
            }
            open.extend(self.merges[node as usize - n].map(entry));
        }
        let mut parts: Vec<u32> = open.into_iter().map(|(_, node)| node).collect();
        parts.sort_unstable();
        parts
    }

    /// Makes the joins up to `height` of some cells, each a list of roots.
    fn join(&mut self, cells: &[(Vec<usize>, Vec<Join>)], height: f64) {
        let mut nodes = std::mem::take(&mut self.roots);
        let mut is_joined = vec![false; nodes.len()];
        for (cell, joins) in cells {
            let mut above: Vec<usize> = (0..cell.len()).collect();
            let mut joins: Vec<(f64, &Join)> = heights(cell.len(), joins).zip(joins).collect();
            joins.sort_by(|x, y| x.0.total_cmp(&y.0));
            for &(_, join) in joins.iter().take_while(|(own, _)| *own <= height) {
                let from = root_of(&mut above, join.from);
                let into = root_of(&mut above, join.into);
                let pair = [nodes[cell[from]], nodes[cell[into]]];
                let node = (self.embeddings.len() + self.merges.len()) as u32;
                self.merges.push([pair[0].min(pair[1]), pair[0].max(pair[1])]);
                self.scores.push(join.distance);
                self.sizes.push(self.sizes[pair[0] as usize] + self.sizes[pair[1] as usize]);
                nodes[cell[into]] = node;
                is_joined[cell[from]] = true;
                above[from] = into;
            }
        }
        self.roots = nodes.into_iter().zip(is_joined).filter(|(_, joined)| !joined).map(|(node, _)| node).collect();
        self.arrange();
    }

    /// Gives every node a run of prompts again.
    fn arrange(&mut self) {
        let n = self.embeddings.len();
        self.begins.resize(n + self.merges.len(), 0);
        let mut begin = 0;
        for &root in &self.roots {
            self.begins[root as usize] = begin;
            begin += self.sizes[root as usize];
        }
        for (j, &[a, b]) in self.merges.iter().enumerate().rev() {
            let begin = self.begins[n + j];
            self.begins[a as usize] = begin;
            self.begins[b as usize] = begin + self.sizes[a as usize];
        }
        for (leaf, &place) in self.begins[..n].iter().enumerate() {
            self.order[place as usize] = leaf as u32;
        }
    }

    /// The prompts below a node.
    fn members(&self, node: u32) -> &[u32] {
        let begin = self.begins[node as usize] as usize;
        &self.order[begin..begin + self.sizes[node as usize] as usize]
    }

    /// What stands for a node: the mean of its unit rows; of `centroid`, of its rows as given, at length 1; of
    /// `complete`, one member. Returns the length of the sum of its rows as given.
    fn stand_for(&self, node: u32, row: &mut [f64], out: &mut [f64]) -> f64 {
        let members = self.members(node);
        if let ([only], _) | ([only, ..], Linkage::Complete) = (members, self.linkage) {
            self.embeddings.read(*only as usize, out);
            return self.embeddings.lengths()[*only as usize];
        }
        let is_centroid = self.linkage == Linkage::Centroid;
        out.fill(0.0);
        for &member in members {
            self.embeddings.read(member as usize, row);
            let weight = if is_centroid { self.embeddings.lengths()[member as usize] } else { 1.0 };
            out.iter_mut().zip(&*row).for_each(|(sum, x)| *sum += weight * x);
        }
        let length = out.iter().map(|x| x * x).sum::<f64>().sqrt();
        let divisor = if is_centroid && length > 0.0 { length } else { members.len() as f64 };
        out.iter_mut().for_each(|x| *x /= divisor);
        length
    }
}

/// Of each join, the greatest distance at or below it.
fn heights<'a>(n: usize, joins: &'a [Join]) -> impl Iterator<Item = f64> + 'a {
    let mut above: Vec<usize> = (0..n).collect();
    let mut height = vec![0.0f64; n];
    joins.iter().map(move |join| {
        let (from, into) = (root_of(&mut above, join.from), root_of(&mut above, join.into));
        height[into] = height[into].max(height[from]).max(join.distance);
        above[from] = into;
        height[into]
    })
}

/// Every root as one point, made when it is read: for finding cells, which needs few passes.
struct Means<'a> {
    forest: &'a Forest<'a>,
}

impl Points for Means<'_> {
    fn len(&self) -> usize {
        self.forest.roots.len()
    }

    fn columns(&self) -> usize {
        self.forest.embeddings.columns()
    }

    fn centre(&self) -> &[f64] {
        self.forest.embeddings.centre()
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        let mut row = vec![0.0; out.len()];
        self.forest.stand_for(self.forest.roots[i], &mut row, out);
    }

    fn spread(&self, _: usize) -> f64 {
        0.0
    }
}

/// Some of other points.
struct Subset<'a> {
    points: &'a dyn Points,
    members: &'a [u32],
}

impl Points for Subset<'_> {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn columns(&self) -> usize {
        self.points.columns()
    }

    fn centre(&self) -> &[f64] {
        self.points.centre()
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        self.points.read(self.members[i] as usize, out);
    }

    fn spread(&self, i: usize) -> f64 {
        self.points.spread(self.members[i] as usize)
    }
}

/// The points that stand for some nodes.
struct Rows<'a> {
    rows: Vec<f32>,
    columns: usize,
    centre: &'a [f64],
    spreads: Vec<f64>,
    lengths: Vec<f64>,
}

impl<'a> Rows<'a> {
    fn new(forest: &'a Forest<'_>, nodes: &[u32], threads: usize, progress: &mut Progress<'_>) -> Result<Self> {
        let columns = forest.embeddings.columns();
        let mut rows = reserve("the points that stand for clusters", nodes.len() * columns)?;
        rows.resize(nodes.len() * columns, 0.0f32);
        let mut measures = vec![(0.0, 0.0); nodes.len()];
        let bands = runs(nodes.len(), BAND).zip(rows.chunks_mut(BAND * columns)).zip(measures.chunks_mut(BAND));
        let tasks = bands.map(|((range, rows), out)| Task { cost: range.len(), item: (&nodes[range], rows, out) });
        type Item<'a> = (&'a [u32], &'a mut [f32], &'a mut [(f64, f64)]);
        let work = |(row, mean): &mut (Vec<f64>, Vec<f64>), (nodes, rows, out): Item<'_>, _: &_| {
            for ((&node, to), out) in nodes.iter().zip(rows.chunks_exact_mut(columns)).zip(out) {
                let length = forest.stand_for(node, row, mean);
                to.iter_mut().zip(&*mean).for_each(|(to, &x)| *to = x as f32);
                let is_unit =
                    forest.members(node).len() == 1 || matches!(forest.linkage, Linkage::Centroid | Linkage::Complete);
                let square: f64 = mean.iter().map(|x| x * x).sum();
                *out = (if is_unit { 0.0 } else { (1.0 - square).max(0.0) }, length);
            }
        };
        share(threads, tasks.collect(), progress, || (vec![0.0; columns], vec![0.0; columns]), work)?;
        let (spreads, lengths) = measures.into_iter().unzip();
        Ok(Rows { rows, columns, centre: forest.embeddings.centre(), spreads, lengths })
    }

    fn range(&self, i: usize) -> Range<usize> {
        i * self.columns..(i + 1) * self.columns
    }
}

impl Points for Rows<'_> {
    fn len(&self) -> usize {
        self.spreads.len()
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn centre(&self) -> &[f64] {
        self.centre
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        out.iter_mut().zip(&self.rows[self.range(i)]).for_each(|(to, &x)| *to = x.into());
    }

    fn spread(&self, i: usize) -> f64 {
        self.spreads[i]
    }
}

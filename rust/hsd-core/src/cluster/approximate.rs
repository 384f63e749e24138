//! Approximate clustering of sets whose distances do not fit in memory, level by level.
//!
//! A level divides the present clusters into cells of similar ones, clusters each cell by itself, and keeps the lowest
//! of all merges found, up to one height for all cells. Levels follow until the clusters that remain fit in one matrix.
//! Merges across the borders of cells are lost. Every level draws the borders elsewhere, so that two clusters that one
//! level separates can still meet on the next, at little more than their height.
//!
//! One or more points represent a cluster of many prompts; `Linkage::definition` says which. One is exact where the
//! distances depend on nothing but the mean. Where they depend on all members, one point represents each of the highest
//! clusters inside it.

use std::borrow::Cow;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::cells::partition;
use super::clusters::Clusters;
use super::distance::Points;
use super::embeddings::Embeddings;
use super::exact::agglomerate;
use super::join::{Join, UnionFind};
use super::linkage::{Definition, Point, Representation, POINTS};
use super::matrix::Storage;
use super::metric::Metric;
use crate::error::{reserve, Result};
use crate::tree::Tree;
use crate::work::parallel::{runs, share, Task};
use crate::work::progress::Progress;

/// The share of the clusters that a level leaves, unless one matrix holds more. The fewer merges a level makes, the
/// fewer clusters join one of their own cell instead of a nearer one across a border: at 0.4 the savings of 20,000
/// prompts in cells of 1,024 clusters are off by up to 2.7 percentage points, at 0.75 by 0.7, at 0.85 by 0.2 for three
/// times the time.
const LEVEL: f64 = 0.75;

/// Nodes whose points a thread computes at a time.
const BAND: usize = 256;

/// The most clusters of a cell, and of the last matrix.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Of a cell.
    pub cell: usize,
    /// Of the last matrix. No cell is larger.
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
    definition: Definition,
    sizes: Sizes,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let n = embeddings.len();
    let mut partial = PartialTree::new(embeddings, definition);
    let mut level = 0;
    while partial.roots.len() > sizes.last {
        let count = partial.roots.len();
        let left = ((count as f64 * LEVEL) as usize).max(sizes.last).min(count - 1);
        // The time of a level is about proportional to its clusters.
        let done = |left: usize| 0.9 * (1.0 - left as f64 / n as f64);
        progress.part(done(count), done(left), |progress| {
            partial.level(sizes.cell, count - left, level, threads, progress)
        })?;
        level += 1;
    }
    progress.part(0.9, 1.0, |progress| {
        let all: Vec<usize> = (0..partial.roots.len()).collect();
        let joins = partial.cluster(&all, threads, progress)?;
        partial.join(&[(all, joins)], f64::INFINITY);
        Ok(())
    })?;
    progress.finish()?;
    let merges: Vec<[i64; 2]> = partial.merges.iter().map(|pair| pair.map(i64::from)).collect();
    let scores = partial.scores.into_iter().map(|score| embeddings.in_units(score)).collect();
    Ok(Tree::from_merges(&merges, scores, definition.linkage.name())?.approximate())
}

/// The merges so far: a binary tree for each cluster that has no parent yet.
struct PartialTree<'a> {
    embeddings: &'a Embeddings<'a>,
    definition: Definition,
    /// Children of node `n + j`.
    merges: Vec<[u32; 2]>,
    scores: Vec<f64>,
    /// Prompts below each node.
    sizes: Vec<u32>,
    /// The nodes that have no parent yet.
    roots: Vec<u32>,
    /// The prompts, in an order in which those of each node are next to each other.
    order: Vec<u32>,
    /// Where in this order each node's prompts begin.
    begins: Vec<u32>,
}

impl<'a> PartialTree<'a> {
    fn new(embeddings: &'a Embeddings<'a>, definition: Definition) -> Self {
        let n = embeddings.len();
        let all: Vec<u32> = (0..n as u32).collect();
        PartialTree {
            embeddings,
            definition,
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
        let means = Means { partial: self };
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
        // Cells of two or three clusters may have fewer joins in them than `count`, but at least one has one.
        let count = count.min(heights.len());
        let (_, &mut height, _) = heights.select_nth_unstable_by(count - 1, f64::total_cmp);
        self.join(&clustered, height);
        Ok(())
    }

    /// Clusters some roots by one matrix: exactly, as far as their points represent them.
    fn cluster(&self, roots: &[usize], threads: usize, progress: &mut Progress<'_>) -> Result<Vec<Join>> {
        let definition = self.definition;
        let nodes: Vec<u32> = roots.iter().map(|&root| self.roots[root]).collect();
        let n = self.embeddings.len();
        if nodes.iter().all(|&node| (node as usize) < n) {
            let points = Subset { points: self.embeddings, members: &nodes };
            let lengths: Vec<f64> = nodes.iter().map(|&node| self.embeddings.lengths()[node as usize]).collect();
            let clusters = Clusters::singles(&points, &lengths);
            return agglomerate(&clusters, definition, definition.entries, Storage::Whole, threads, progress);
        }
        let Representation { most_points, entries, .. } = definition.representation;
        let mut starts = vec![0];
        let mut parts = Vec::new();
        let mut shares = Vec::new();
        for &node in &nodes {
            for part in self.parts(node, most_points) {
                shares.push(f64::from(self.sizes[part as usize]) / f64::from(self.sizes[node as usize]));
                parts.push(part);
            }
            starts.push(parts.len());
        }
        let points = progress.part(0.0, 0.1, |progress| Rows::new(self, &parts, threads, progress))?;
        let (starts, lengths) = match most_points {
            1 => (None, points.lengths.clone()),
            // The length of a whole cluster's sum is not known. No linkage with several points needs it.
            _ => (Some(starts), vec![1.0; nodes.len()]),
        };
        let sizes = nodes.iter().map(|&node| self.sizes[node as usize].into()).collect();
        let clusters = Clusters { points: &points, starts, shares, sizes, lengths };
        progress
            .part(0.1, 1.0, |progress| agglomerate(&clusters, definition, entries, Storage::Whole, threads, progress))
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

    /// Adds the joins up to `height` of some cells, each a list of roots.
    fn join(&mut self, cells: &[(Vec<usize>, Vec<Join>)], height: f64) {
        let mut nodes = std::mem::take(&mut self.roots);
        let mut is_joined = vec![false; nodes.len()];
        for (cell, joins) in cells {
            let mut places = UnionFind::new(cell.len());
            let mut joins: Vec<(f64, &Join)> = heights(cell.len(), joins).zip(joins).collect();
            joins.sort_by(|x, y| x.0.total_cmp(&y.0));
            for &(_, join) in joins.iter().take_while(|(own, _)| *own <= height) {
                let (from, into) = places.unite(join);
                let pair = [nodes[cell[from]], nodes[cell[into]]];
                let node = (self.embeddings.len() + self.merges.len()) as u32;
                self.merges.push([pair[0].min(pair[1]), pair[0].max(pair[1])]);
                self.scores.push(join.distance);
                self.sizes.push(self.sizes[pair[0] as usize] + self.sizes[pair[1] as usize]);
                nodes[cell[into]] = node;
                is_joined[cell[from]] = true;
            }
        }
        self.roots = nodes.into_iter().zip(is_joined).filter(|(_, joined)| !joined).map(|(node, _)| node).collect();
        self.arrange();
    }

    /// Orders the prompts again, so that those of each node are next to each other.
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

    /// Writes the point that represents a node. `row` is scratch.
    fn represent(&self, node: u32, row: &mut [f64], out: &mut [f64]) -> Measures {
        let members = self.members(node);
        let length_of = |member: u32| self.embeddings.lengths()[member as usize];
        let point = match members {
            [_] => Point::Member,
            _ => self.definition.representation.point,
        };
        match point {
            Point::Member => {
                self.read(members[0], out);
                Measures { length: length_of(members[0]), spread: 0.0 }
            }
            Point::MeanDirection => {
                let length = self.add_up(members, length_of, row, out);
                let divisor = if length > 0.0 { length } else { members.len() as f64 };
                out.iter_mut().for_each(|x| *x /= divisor);
                Measures { length, spread: 0.0 }
            }
            Point::Mean | Point::MeanOnly => {
                let length = self.add_up(members, |_| 1.0, row, out);
                out.iter_mut().for_each(|x| *x /= members.len() as f64);
                let spread = if point == Point::Mean { self.spread(members, row, out) } else { 0.0 };
                Measures { length, spread }
            }
        }
    }

    /// A prompt as a point. Euclidean points are moved so that the centre is the origin, where single precision is finest.
    fn read(&self, member: u32, out: &mut [f64]) {
        self.embeddings.read(member as usize, out);
        match self.embeddings.metric() {
            Metric::Cosine => {}
            Metric::Euclidean => out.iter_mut().zip(self.embeddings.centre()).for_each(|(x, centre)| *x -= centre),
        }
    }

    /// Writes the weighted sum of the rows of `members`, and returns its length.
    fn add_up(&self, members: &[u32], weight: impl Fn(u32) -> f64, row: &mut [f64], out: &mut [f64]) -> f64 {
        out.fill(0.0);
        for &member in members {
            self.read(member, row);
            let weight = weight(member);
            out.iter_mut().zip(&*row).for_each(|(sum, x)| *sum += weight * x);
        }
        out.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// The mean squared difference between `members` and their mean. `row` is scratch.
    fn spread(&self, members: &[u32], row: &mut [f64], mean: &[f64]) -> f64 {
        match self.embeddings.metric() {
            Metric::Cosine => (1.0 - mean.iter().map(|x| x * x).sum::<f64>()).max(0.0),
            Metric::Euclidean => {
                let square = |&member: &u32| {
                    self.read(member, row);
                    row.iter().zip(mean).map(|(x, mean)| (x - mean) * (x - mean)).sum::<f64>()
                };
                members.iter().map(square).sum::<f64>() / members.len() as f64
            }
        }
    }

    /// A point near all points that represent nodes.
    fn centre(&self) -> Cow<'a, [f64]> {
        match self.embeddings.metric() {
            Metric::Cosine => Cow::Borrowed(self.embeddings.centre()),
            Metric::Euclidean => Cow::Owned(vec![0.0; self.embeddings.columns()]),
        }
    }
}

/// What is known of a point that represents a node, besides its coordinates.
#[derive(Debug, Clone, Copy, Default)]
struct Measures {
    /// Length of the sum of the rows that it is made from.
    length: f64,
    /// Its distance from itself; see [`Points::spread`].
    spread: f64,
}

/// Of each join, the greatest distance at or below it.
fn heights<'a>(n: usize, joins: &'a [Join]) -> impl Iterator<Item = f64> + 'a {
    let mut places = UnionFind::new(n);
    let mut height = vec![0.0f64; n];
    joins.iter().map(move |join| {
        let (from, into) = places.unite(join);
        height[into] = height[into].max(height[from]).max(join.distance);
        height[into]
    })
}

/// Every root as one point, computed when it is read: cells are found in a few passes, so storing them does not pay.
struct Means<'a> {
    partial: &'a PartialTree<'a>,
}

impl Points for Means<'_> {
    fn len(&self) -> usize {
        self.partial.roots.len()
    }

    fn columns(&self) -> usize {
        self.partial.embeddings.columns()
    }

    fn metric(&self) -> Metric {
        self.partial.embeddings.metric()
    }

    fn centre(&self) -> &[f64] {
        self.partial.embeddings.centre()
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        let mut row = vec![0.0; out.len()];
        self.partial.represent(self.partial.roots[i], &mut row, out);
    }

    fn spread(&self, _: usize) -> f64 {
        0.0
    }
}

/// Some of a larger set of points.
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

    fn metric(&self) -> Metric {
        self.points.metric()
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

/// The points that represent some nodes, stored.
struct Rows<'a> {
    rows: Vec<f32>,
    columns: usize,
    metric: Metric,
    centre: Cow<'a, [f64]>,
    spreads: Vec<f64>,
    lengths: Vec<f64>,
}

impl<'a> Rows<'a> {
    fn new(partial: &PartialTree<'a>, nodes: &[u32], threads: usize, progress: &mut Progress<'_>) -> Result<Self> {
        let columns = partial.embeddings.columns();
        let mut rows = reserve("the points that represent clusters", nodes.len() * columns)?;
        rows.resize(nodes.len() * columns, 0.0f32);
        let mut measures = vec![Measures::default(); nodes.len()];
        let bands = runs(nodes.len(), BAND).zip(rows.chunks_mut(BAND * columns)).zip(measures.chunks_mut(BAND));
        let tasks = bands.map(|((range, rows), out)| Task { cost: range.len(), item: (&nodes[range], rows, out) });
        type Item<'a> = (&'a [u32], &'a mut [f32], &'a mut [Measures]);
        let work = |(row, point): &mut (Vec<f64>, Vec<f64>), (nodes, rows, out): Item<'_>, _: &_| {
            for ((&node, to), out) in nodes.iter().zip(rows.chunks_exact_mut(columns)).zip(out) {
                *out = partial.represent(node, row, point);
                to.iter_mut().zip(&*point).for_each(|(to, &x)| *to = x as f32);
            }
        };
        share(threads, tasks.collect(), progress, || (vec![0.0; columns], vec![0.0; columns]), work)?;
        let (spreads, lengths) = measures.into_iter().map(|Measures { length, spread }| (spread, length)).unzip();
        let metric = partial.embeddings.metric();
        Ok(Rows { rows, columns, metric, centre: partial.centre(), spreads, lengths })
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

    fn metric(&self) -> Metric {
        self.metric
    }

    fn centre(&self) -> &[f64] {
        &self.centre
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        out.iter_mut().zip(&self.rows[self.range(i)]).for_each(|(to, &x)| *to = x.into());
    }

    fn spread(&self, i: usize) -> f64 {
        self.spreads[i]
    }
}

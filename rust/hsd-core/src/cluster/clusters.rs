//! What a matrix of distances is made from: prompts, or clusters of prompts that one or more points represent.

use std::ops::Range;

use super::distance::{Block, Points, Tile, BLOCK};
use crate::error::Result;
use crate::work::parallel::{share, Task};
use crate::work::progress::Progress;
use crate::work::simd::widest;

/// Clusters, each a run of points: a single prompt is its own point; some points represent many prompts.
pub struct Clusters<'a> {
    /// All points.
    pub points: &'a dyn Points,
    /// Cluster `c` has points `starts[c]..starts[c + 1]`; none if every cluster is one point.
    pub starts: Option<Vec<usize>>,
    /// Share of its cluster that each point represents; empty if every cluster is one point.
    pub shares: Vec<f64>,
    /// Number of prompts in each cluster.
    pub sizes: Vec<f64>,
    /// Length of the sum of each cluster's embeddings.
    pub lengths: Vec<f64>,
}

impl<'a> Clusters<'a> {
    /// Every point a cluster.
    pub fn singles(points: &'a dyn Points, lengths: &[f64]) -> Self {
        let sizes = vec![1.0; points.len()];
        Clusters { points, starts: None, shares: Vec::new(), sizes, lengths: lengths.to_vec() }
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// The points of consecutive clusters.
    pub fn points_of(&self, clusters: Range<usize>) -> Range<usize> {
        match &self.starts {
            None => clusters,
            Some(starts) => starts[clusters.start]..starts[clusters.end],
        }
    }

    /// All clusters in runs of at most `size` points, or of one cluster.
    pub fn blocks(&self, size: usize) -> Vec<Range<usize>> {
        let mut blocks = Vec::new();
        let mut begin = 0;
        while begin < self.len() {
            let mut end = begin + 1;
            while end < self.len() && self.points_of(begin..end + 1).len() <= size {
                end += 1;
            }
            blocks.push(begin..end);
            begin = end;
        }
        blocks
    }

    /// For [`Entries::Spread`], the mean squared distance between two members of a cluster, for each cluster; empty for
    /// other entries.
    pub fn spreads(&self, entries: Entries, threads: usize, progress: &mut Progress<'_>) -> Result<Vec<f64>> {
        match entries {
            Entries::Spread => {}
            Entries::Plain
            | Entries::Squared
            | Entries::Root
            | Entries::Increase
            | Entries::MeanRoot
            | Entries::Farthest => return Ok(Vec::new()),
        }
        let mut spreads = vec![0.0; self.len()];
        let mut rest = spreads.as_mut_slice();
        let mut tasks = Vec::new();
        for band in self.blocks(BLOCK) {
            let (head, tail) = rest.split_at_mut(band.len());
            tasks.push(Task { cost: 0, item: (band, head) });
            rest = tail;
        }
        let work = |(block, tile): &mut (Block, Tile), (band, out): (Range<usize>, &mut [f64]), _: &_| {
            for (cluster, out) in band.zip(out) {
                let points = self.points_of(cluster..cluster + 1);
                block.load(self.points, points.clone());
                tile.fill(self.points, block, block);
                for (i, row) in tile.rows().enumerate() {
                    let (share, spread) = (self.shares[points.start + i], self.points.spread(points.start + i));
                    *out += share * share * spread * spread;
                    for (j, &distance) in row[..i].iter().enumerate() {
                        *out += 2.0 * share * self.shares[points.start + j] * f64::from(distance).powi(2);
                    }
                }
            }
        };
        share(threads, tasks, progress, Default::default, work)?;
        Ok(spreads)
    }
}

/// How the entry for two clusters follows from the distances between their points, as a tile has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entries {
    /// The distance; every cluster is one point.
    Plain,
    /// The distance squared; every cluster is one point.
    Squared,
    /// The root of the distance; every cluster is one point.
    Root,
    /// The distance of two means times `2 a b / (a + b)` for clusters of sizes a and b: if the distance is half a
    /// squared one, what joining the two adds to the sum of squared distances from the means of the clusters (Ward,
    /// 1963). Every cluster is one point.
    Increase,
    /// Ward's, squared: what the Lance-Williams update gives for two clusters of sizes a and b, in whatever order their
    /// members were joined: `2 a b / (a + b) (mean d² between the two - half the sum of the mean d² within each)`.
    Spread,
    /// The mean root of the distances.
    MeanRoot,
    /// The largest distance.
    Farthest,
}

impl Entries {
    /// Writes the entries that follow from a tile into the rows of `band`, at the places of `block` before each row's
    /// own.
    pub fn write(
        self,
        clusters: &Clusters<'_>,
        spreads: &[f64],
        band: Range<usize>,
        block: Range<usize>,
        tile: &Tile,
        rows: &mut [Vec<f32>],
    ) {
        // Empty where the whole block comes later: the band is higher than a block.
        let before = |cluster: usize| block.start.min(cluster)..block.end.min(cluster);
        match self {
            Entries::Plain => {
                for ((cluster, row), cells) in band.zip(rows).zip(tile.rows()) {
                    row[before(cluster)].iter_mut().zip(cells).for_each(|(to, &cell)| *to = cell);
                }
            }
            Entries::Squared => {
                for ((cluster, row), cells) in band.zip(rows).zip(tile.rows()) {
                    row[before(cluster)].iter_mut().zip(cells).for_each(|(to, &cell)| *to = cell * cell);
                }
            }
            Entries::Root => {
                for ((cluster, row), cells) in band.zip(rows).zip(tile.rows()) {
                    row[before(cluster)].iter_mut().zip(cells).for_each(|(to, &cell)| *to = cell.sqrt());
                }
            }
            Entries::Increase => {
                for ((cluster, row), cells) in band.zip(rows).zip(tile.rows()) {
                    let (a, sizes) = (clusters.sizes[cluster], &clusters.sizes[block.clone()]);
                    widest(|| {
                        for ((to, &cell), b) in row[before(cluster)].iter_mut().zip(cells).zip(sizes) {
                            *to = (2.0 * a * b / (a + b) * f64::from(cell)) as f32;
                        }
                    });
                }
            }
            Entries::Spread => {
                let columns = clusters.points_of(block.clone());
                let shares = &clusters.shares[columns.clone()];
                let mut squares = vec![0.0f64; columns.len()];
                let mut tile = tile.rows();
                for (cluster, row) in band.zip(rows) {
                    squares.fill(0.0);
                    for (point, cells) in clusters.points_of(cluster..cluster + 1).zip(tile.by_ref()) {
                        let own = clusters.shares[point];
                        widest(|| {
                            for ((sum, &cell), share) in squares.iter_mut().zip(cells).zip(shares) {
                                *sum += own * share * f64::from(cell) * f64::from(cell);
                            }
                        });
                    }
                    let (a, own) = (clusters.sizes[cluster], spreads[cluster]);
                    for (to, other) in row[before(cluster)].iter_mut().zip(block.clone()) {
                        let points = clusters.points_of(other..other + 1);
                        let between: f64 =
                            squares[points.start - columns.start..points.end - columns.start].iter().sum();
                        let b = clusters.sizes[other];
                        let spread = between - (own + spreads[other]) / 2.0;
                        *to = (2.0 * a * b / (a + b) * spread).max(0.0) as f32;
                    }
                }
            }
            Entries::MeanRoot => {
                let columns = clusters.points_of(block.clone());
                let shares = &clusters.shares[columns.clone()];
                let mut roots = vec![0.0f64; columns.len()];
                let mut tile = tile.rows();
                for (cluster, row) in band.zip(rows) {
                    roots.fill(0.0);
                    for (point, cells) in clusters.points_of(cluster..cluster + 1).zip(tile.by_ref()) {
                        let own = clusters.shares[point];
                        widest(|| {
                            for ((sum, &cell), share) in roots.iter_mut().zip(cells).zip(shares) {
                                *sum += own * share * f64::from(cell.sqrt());
                            }
                        });
                    }
                    for (to, other) in row[before(cluster)].iter_mut().zip(block.clone()) {
                        let points = clusters.points_of(other..other + 1);
                        let mean: f64 = roots[points.start - columns.start..points.end - columns.start].iter().sum();
                        *to = mean as f32;
                    }
                }
            }
            Entries::Farthest => {
                let columns = clusters.points_of(block.clone());
                let mut farthest = vec![0.0f32; columns.len()];
                let mut tile = tile.rows();
                for (cluster, row) in band.zip(rows) {
                    farthest.fill(0.0);
                    for (_, cells) in clusters.points_of(cluster..cluster + 1).zip(tile.by_ref()) {
                        for (most, &cell) in farthest.iter_mut().zip(cells) {
                            *most = if cell > *most { cell } else { *most };
                        }
                    }
                    for (to, other) in row[before(cluster)].iter_mut().zip(block.clone()) {
                        let points = clusters.points_of(other..other + 1);
                        let cells = &farthest[points.start - columns.start..points.end - columns.start];
                        *to = cells.iter().copied().fold(0.0, f32::max);
                    }
                }
            }
        }
    }
}

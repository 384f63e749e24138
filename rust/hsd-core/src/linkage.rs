//! Agglomerative clustering: embeddings in, a tree out.

use std::fmt;
use std::str::FromStr;

use crate::clusters::{Clusters, Entries};
use crate::distance::Points;
use crate::embeddings::Embeddings;
use crate::error::{Error, Result};
use crate::large::{self, Sizes};
use crate::matrix::{Matrix, Shape};
use crate::progress::Progress;
use crate::rounds::Rounds;
use crate::tree::Tree;
use crate::update::{Average, Complete, Power, Update, Ward};
use crate::{centroid, chain, rounds};

/// How the distance between two clusters follows from the distances between their members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    /// Ward's Lance-Williams update run on cosine distances, as the paper's authors do.
    Ward,
    /// The cosine distance of the clusters' mean embeddings: the paper's Eqs. 3-5.
    Centroid,
    /// The mean distance between members of one and members of the other.
    Average,
    /// The largest distance between a member of one and a member of the other.
    Complete,
}

impl Linkage {
    /// All of them.
    pub const ALL: [Linkage; 4] = [Linkage::Ward, Linkage::Centroid, Linkage::Average, Linkage::Complete];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Linkage::Ward => "ward",
            Linkage::Centroid => "centroid",
            Linkage::Average => "average",
            Linkage::Complete => "complete",
        }
    }
}

impl fmt::Display for Linkage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Linkage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Linkage::ALL.into_iter().find(|linkage| linkage.name() == name).ok_or_else(|| Error::UnknownName {
            what: "linkage",
            name: name.to_owned(),
            choices: "\"ward\", \"centroid\", \"average\", \"complete\"",
        })
    }
}

/// One step of the agglomeration: the two places joined, `from < into`, and their distance. The joined cluster
/// stands at `into` from then on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Join {
    /// The place that falls empty.
    pub from: usize,
    /// The place of the joined cluster.
    pub into: usize,
    /// How far apart the two were.
    pub distance: f64,
}

/// How the tree is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Exactly, if there is memory for it and it does not take too long; approximately otherwise.
    Auto,
    /// Exactly, or not at all.
    Exact,
    /// Approximately, even a set that could be done exactly.
    Approximate,
}

/// What the work may take.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    /// Threads; the tree does not depend on them.
    pub threads: usize,
    /// Bytes, besides the embeddings. The tree may depend on them: they decide what is done exactly.
    pub memory: usize,
}

/// The most prompts that [`Method::Auto`] clusters exactly, however much memory there is: the time grows as N², and an
/// approximate tree is near.
pub const MOST_EXACT: usize = 100_000;

/// The most clusters of a cell, and of the matrix in which an approximate clustering ends.
const CELL: usize = 16_384;
const LAST: usize = 30_000;

/// Clusters the embeddings by cosine distance.
pub fn build(
    embeddings: &Embeddings<'_>,
    linkage: Linkage,
    method: Method,
    resources: Resources,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let n = embeddings.len();
    let Resources { threads, memory } = resources;
    let fits = |shape: Shape| Matrix::bytes(n, shape) <= memory;
    let shape = if fits(Shape::Whole) { Shape::Whole } else { Shape::Lower };
    let is_exact = match method {
        Method::Exact if !fits(shape) => {
            let gigabytes = Matrix::bytes(n, shape) as f64 / 1e9;
            return Err(Error::NoMemory { what: "the distances between all prompts", gigabytes });
        }
        Method::Exact => true,
        Method::Auto => n <= MOST_EXACT && fits(shape),
        Method::Approximate => false,
    };
    if !is_exact {
        let fitting = large::most_clusters(memory, embeddings.columns());
        let sizes = Sizes { cell: fitting.clamp(2, CELL), last: fitting.clamp(2, LAST) };
        return large::build(embeddings, linkage, sizes, threads, progress);
    }
    let clusters = Clusters::singles(embeddings, embeddings.lengths());
    let mut joins = agglomerate(&clusters, linkage, shape, threads, progress)?;
    if linkage != Linkage::Centroid {
        // Merges are found out of order; their distances never fall on the way up, so sorting restores it.
        joins.sort_by(|x, y| x.distance.total_cmp(&y.distance));
    }
    progress.finish()?;
    label(n, &joins, linkage)
}

/// Joins clusters until one is left, by the matrix of all their distances. Children come before parents.
pub(crate) fn agglomerate(
    clusters: &Clusters<'_>,
    linkage: Linkage,
    shape: Shape,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let is_single = clusters.starts.is_none();
    let entries = match linkage {
        Linkage::Ward if is_single => Entries::Squared,
        Linkage::Ward => Entries::Spread,
        Linkage::Complete if !is_single => Entries::Farthest,
        _ => Entries::Plain,
    };
    let distances = progress.part(0.0, 0.6, |progress| Matrix::new(clusters, entries, shape, threads, progress))?;
    progress.part(0.6, 1.0, |progress| match linkage {
        Linkage::Ward => reduce(distances, &clusters.sizes, Ward, threads, progress),
        Linkage::Average => reduce(distances, &clusters.sizes, Average, threads, progress),
        Linkage::Complete => reduce(distances, &clusters.sizes, Complete, threads, progress),
        Linkage::Centroid => centroid::agglomerate(distances, &clusters.lengths, progress),
    })
}

/// Reducible linkages: in rounds while they pay, then by the chain, which always does.
fn reduce<U: Update>(
    distances: Matrix,
    sizes: &[f64],
    update: U,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let n = distances.len();
    let Rounds { mut joins, distances, sizes, places } =
        rounds::agglomerate(distances, sizes, update, threads, progress)?;
    let done = rounds::done(distances.len(), n);
    let rest = progress.part(done, 1.0, |progress| chain::agglomerate(distances, &sizes, update, progress))?;
    joins.extend(rest.iter().map(|join| Join { from: places[join.from], into: places[join.into], ..*join }));
    if U::POWER == Power::Two {
        joins.iter_mut().for_each(|join| join.distance = join.distance.sqrt());
    }
    Ok(joins)
}

/// Names the clusters that `joins` make one after the other as SciPy does: leaf i is i, merge j is N + j.
pub fn label(n: usize, joins: &[Join], linkage: Linkage) -> Result<Tree> {
    // Union-find over places. Sorted joins may use a place after a later one has emptied it.
    let mut above: Vec<usize> = (0..n).collect();
    let mut name: Vec<i64> = (0..n as i64).collect();
    let mut merges = Vec::with_capacity(joins.len());
    for (j, join) in joins.iter().enumerate() {
        let (from, into) = (root_of(&mut above, join.from), root_of(&mut above, join.into));
        merges.push([name[from].min(name[into]), name[from].max(name[into])]);
        above[from] = into;
        name[into] = (n + j) as i64;
    }
    Tree::from_merges(&merges, joins.iter().map(|join| join.distance).collect(), linkage.name())
}

pub(crate) fn root_of(above: &mut [usize], mut place: usize) -> usize {
    while above[place] != place {
        above[place] = above[above[place]];
        place = above[place];
    }
    place
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use ndarray::Array2;

    use super::*;

    /// Checks rows and clusters them in each way there is; `report` gets every report, however small.
    fn each_way(mut check: impl FnMut(&mut dyn FnMut(&mut Progress<'_>) -> Result<Tree>)) {
        let n = 900;
        let rows = Array2::from_shape_fn((n, 5), |(i, j)| ((i * 7919 + j * 104_729 + i * j) % 1009) as f64 - 500.3);
        for (method, memory) in [(Method::Exact, usize::MAX), (Method::Exact, 3 * n * n), (Method::Approximate, n * n)]
        {
            for linkage in Linkage::ALL {
                let resources = Resources { threads: 2, memory };
                check(&mut |progress| {
                    let rows = progress.part(0.0, 0.1, |progress| Embeddings::new(rows.view(), |x| x, 2, progress))?;
                    progress.part(0.1, 1.0, |progress| build(&rows, linkage, method, resources, progress))
                });
            }
        }
    }

    #[test]
    fn every_fraction_is_over_the_one_before() {
        each_way(|work| {
            let mut seen = Vec::new();
            let mut report = |fraction| {
                seen.push(fraction);
                ControlFlow::Continue(())
            };
            let tree = work(&mut Progress::eager(&mut report)).unwrap();
            let falls: Vec<_> = seen.windows(2).filter(|pair| pair[1] < pair[0]).collect();
            assert!(falls.is_empty(), "{}: {falls:?}", tree.linkage());
            assert!(seen.len() > 20 && seen[0] <= 0.1 && seen.last() == Some(&1.0), "{seen:?}");
        });
    }

    #[test]
    fn any_report_can_stop_the_work() {
        each_way(|work| {
            let mut last = 0;
            // At least so many reports there are in each way.
            while last < 20 {
                let mut seen = 0;
                let mut report = |_| {
                    seen += 1;
                    if seen > last {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                };
                assert_eq!(work(&mut Progress::eager(&mut report)).unwrap_err(), Error::Interrupted);
                assert_eq!(seen, last + 1, "it went on after it was told to stop");
                last += 3;
            }
        });
    }
}

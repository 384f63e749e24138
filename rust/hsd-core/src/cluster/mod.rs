//! Embeddings in, a tree out: agglomerative clustering by cosine or Euclidean distance, exact or approximate.

pub mod embeddings;
pub mod linkage;
pub mod metric;
pub mod naive;

mod approximate;
mod cells;
mod centroid;
mod chain;
mod clusters;
mod distance;
mod exact;
mod insert;
mod join;
mod matrix;
mod reducible;
mod rounds;
mod update;

use self::approximate::Sizes;
use self::distance::Points;
use self::embeddings::Embeddings;
use self::linkage::Linkage;
use self::matrix::{Matrix, Storage};
use crate::error::{Error, Result};
use crate::tree::Tree;
use crate::work::progress::Progress;

/// Whether the tree is to be exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Exact if there is memory for it and it does not take too long; approximate otherwise.
    Auto,
    /// Exact, or an error.
    Exact,
    /// Approximate, even for a set that could be clustered exactly.
    Approximate,
}

/// What the clustering may use.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    /// Number of threads; the tree does not depend on it.
    pub threads: usize,
    /// Bytes, besides the embeddings. The tree may depend on them: they decide what is done exactly.
    pub memory: usize,
}

/// The most prompts that [`Method::Auto`] clusters exactly, however much memory there is: the time grows as N², and an
/// approximate tree is close to the exact one.
pub const MOST_EXACT: usize = 100_000;

/// The most clusters of a cell, and of the matrix in which an approximate clustering ends.
const CELL: usize = 16_384;
const LAST: usize = 30_000;

/// Clusters the embeddings by their metric. An error if the linkage has no form for it.
pub fn build_tree(
    embeddings: &Embeddings<'_>,
    linkage: Linkage,
    method: Method,
    resources: Resources,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let definition = linkage.definition(embeddings.metric())?;
    let n = embeddings.len();
    let Resources { threads, memory } = resources;
    let fits = |storage: Storage| Matrix::bytes(n, storage) <= memory;
    let storage = if fits(Storage::Whole) { Storage::Whole } else { Storage::Lower };
    let is_exact = match method {
        Method::Exact if !fits(storage) => {
            let gigabytes = Matrix::bytes(n, storage) as f64 / 1e9;
            return Err(Error::NoMemory { what: "the distances between all prompts", gigabytes });
        }
        Method::Exact => true,
        Method::Auto => n <= MOST_EXACT && fits(storage),
        Method::Approximate => false,
    };
    if is_exact {
        return exact::build(embeddings, definition, storage, threads, progress);
    }
    let fitting = approximate::most_clusters(memory, embeddings.columns());
    let sizes = Sizes { cell: fitting.clamp(2, CELL), last: fitting.clamp(2, LAST) };
    approximate::build(embeddings, definition, sizes, threads, progress)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use ndarray::Array2;

    use super::metric::Metric;
    use super::*;

    /// Checks rows and clusters them in each way there is; `report` gets every report, however small.
    fn each_way(mut check: impl FnMut(&mut dyn FnMut(&mut Progress<'_>) -> Result<Tree>)) {
        let n = 900;
        let rows = Array2::from_shape_fn((n, 5), |(i, j)| ((i * 7919 + j * 104_729 + i * j) % 1009) as f64 - 500.3);
        for (method, memory) in [(Method::Exact, usize::MAX), (Method::Exact, 3 * n * n), (Method::Approximate, n * n)]
        {
            let kinds = Metric::ALL.into_iter().flat_map(|metric| Linkage::ALL.map(|linkage| (linkage, metric)));
            for (linkage, metric) in kinds.filter(|(linkage, metric)| linkage.definition(*metric).is_ok()) {
                let resources = Resources { threads: 2, memory };
                check(&mut |progress| {
                    let rows =
                        progress.part(0.0, 0.1, |progress| Embeddings::new(rows.view(), |x| x, metric, 2, progress))?;
                    progress.part(0.1, 1.0, |progress| build_tree(&rows, linkage, method, resources, progress))
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
            // Each way makes at least this number of reports.
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

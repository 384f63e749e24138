//! Reducible linkages: in rounds for as long as these pay, then by the nearest-neighbour chain, which always does.

use super::clusters::Clusters;
use super::join::Join;
use super::matrix::Matrix;
use super::rounds::{self, Rounds};
use super::{chain, update::Update};
use crate::error::Result;
use crate::work::progress::Progress;

/// Joins clusters until one is left. Children come before parents, but not every join is farther than the one before.
pub fn agglomerate<U: Update>(
    distances: Matrix,
    clusters: &Clusters<'_>,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let (n, update) = (distances.len(), U::default());
    let Rounds { mut joins, distances, sizes, places } =
        rounds::agglomerate(distances, &clusters.sizes, update, threads, progress)?;
    let done = rounds::done(distances.len(), n);
    let rest = progress.part(done, 1.0, |progress| chain::agglomerate(distances, &sizes, update, progress))?;
    joins.extend(rest.iter().map(|join| Join { from: places[join.from], into: places[join.into], ..*join }));
    Ok(joins)
}

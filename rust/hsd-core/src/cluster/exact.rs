//! Exact clustering: by the matrix of the distances between all clusters.

use super::clusters::Clusters;
use super::distance::Points;
use super::embeddings::Embeddings;
use super::join::{tree_of, Join};
use super::linkage::{Joining, Linkage, Representation};
use super::matrix::{Matrix, Storage};
use crate::error::Result;
use crate::tree::Tree;
use crate::work::progress::Progress;

/// Clusters the embeddings by the linkage itself.
pub fn build(
    embeddings: &Embeddings<'_>,
    linkage: Linkage,
    storage: Storage,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let clusters = Clusters::singles(embeddings, embeddings.lengths());
    let mut joins = agglomerate(&clusters, linkage, storage, threads, progress)?;
    if linkage.is_reducible() {
        // Pairs are found out of order. No join is nearer than those below it, so sorting keeps children before
        // parents.
        joins.sort_by(|x, y| x.distance.total_cmp(&y.distance));
    }
    progress.finish()?;
    tree_of(embeddings.len(), &joins, linkage.name())
}

/// Joins clusters until one is left. Children come before parents.
pub fn agglomerate(
    clusters: &Clusters<'_>,
    linkage: Linkage,
    storage: Storage,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let definition = linkage.definition();
    let entries = match (&clusters.starts, definition.representation) {
        (Some(_), Representation::Several(_, entries)) => entries,
        (None, _) | (Some(_), Representation::One(_)) => definition.entries,
    };
    let distances = progress.part(0.0, 0.6, |progress| Matrix::new(clusters, entries, storage, threads, progress))?;
    let (Joining::Reducible(join_all) | Joining::NearestFirst(join_all)) = definition.joining;
    let mut joins = progress.part(0.6, 1.0, |progress| join_all(distances, clusters, threads, progress))?;
    if entries.are_squares() {
        joins.iter_mut().for_each(|join| join.distance = join.distance.sqrt());
    }
    Ok(joins)
}

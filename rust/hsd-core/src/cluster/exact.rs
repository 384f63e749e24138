//! Exact clustering: by the matrix of the distances between all clusters.

use super::clusters::{Clusters, Entries};
use super::distance::Points;
use super::embeddings::Embeddings;
use super::join::{tree_of, Join};
use super::linkage::{Definition, Joining};
use super::matrix::{Matrix, Storage};
use crate::error::Result;
use crate::tree::Tree;
use crate::work::progress::Progress;

/// Clusters the embeddings by the linkage itself.
pub fn build(
    embeddings: &Embeddings<'_>,
    definition: Definition,
    storage: Storage,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let units = |distance| embeddings.in_units(distance);
    let tree = build_of(embeddings, embeddings.lengths(), &units, definition, storage, threads, progress)?;
    progress.finish()?;
    Ok(tree)
}

/// Clusters points whose rows have these lengths by the linkage itself. `in_units` makes a distance of points a score.
pub fn build_of(
    points: &dyn Points,
    lengths: &[f64],
    in_units: &dyn Fn(f64) -> f64,
    definition: Definition,
    storage: Storage,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Tree> {
    let clusters = Clusters::singles(points, lengths);
    let mut joins = agglomerate(&clusters, definition, definition.entries, storage, threads, progress)?;
    joins.iter_mut().for_each(|join| join.distance = in_units(join.distance));
    if definition.linkage.is_reducible() {
        // Pairs are found out of order. No join is nearer than those below it, so sorting keeps children before
        // parents.
        joins.sort_by(|x, y| x.distance.total_cmp(&y.distance));
    }
    tree_of(points.len(), &joins, definition.linkage.name())
}

/// Joins clusters until one is left, by a matrix of such entries. Children come before parents.
pub fn agglomerate(
    clusters: &Clusters<'_>,
    definition: Definition,
    entries: Entries,
    storage: Storage,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let distances = progress.part(0.0, 0.6, |progress| Matrix::new(clusters, entries, storage, threads, progress))?;
    let (Joining::Reducible(join_all) | Joining::NearestFirst(join_all)) = definition.joining;
    let mut joins = progress.part(0.6, 1.0, |progress| join_all(distances, clusters, threads, progress))?;
    joins.iter_mut().for_each(|join| join.distance = (definition.distance)(join.distance));
    Ok(joins)
}

//! The nearest-neighbour chain: clusters in O(N²), whatever the distances, for reducible linkages. Müllner, *Modern
//! hierarchical, agglomerative clustering algorithms*, arXiv 1109.2378, section 3.2.

use super::join::Join;
use super::matrix::{is_sparse, least, Matrix};
use super::update::Update;
use crate::error::Result;
use crate::work::progress::Progress;

/// Joins all clusters, in the order in which the chain finds them. Among equally near clusters the chain takes the one
/// that it came from, then the lowest place, as SciPy does, so that equal distances give equal merges.
pub fn agglomerate(
    mut distances: Matrix,
    sizes: &[f64],
    update: impl Update,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let n = distances.len();
    let mut sizes = sizes.to_vec();
    let mut names: Vec<usize> = (0..n).collect();
    let mut is_empty = vec![false; n];
    let mut first = 0;
    let mut chain: Vec<usize> = Vec::new();
    let mut joins = Vec::with_capacity(n.saturating_sub(1));
    while joins.len() + 1 < n {
        progress.at(joins.len(), n)?;
        if is_sparse(n - joins.len(), distances.len()) {
            let kept = distances.compact(&is_empty);
            chain.iter_mut().for_each(|place| *place = kept.partition_point(|kept| kept < place));
            sizes = kept.iter().map(|&place| sizes[place]).collect();
            names = kept.iter().map(|&place| names[place]).collect();
            is_empty = vec![false; kept.len()];
            first = 0;
        }
        let tip = match chain.last() {
            Some(&tip) => tip,
            None => {
                while is_empty[first] {
                    first += 1;
                }
                chain.push(first);
                first
            }
        };
        let before = chain.len().checked_sub(2).map(|i| chain[i]);
        let (nearest, ab) = nearest(distances.row(tip), before);
        if Some(nearest) != before {
            chain.push(nearest);
            continue;
        }
        chain.truncate(chain.len() - 2);
        let (from, into) = (tip.min(nearest), tip.max(nearest));
        let (a, b) = (sizes[from], sizes[into]);
        distances.join(from, into, &sizes, |ac, bc, c| update.pair(ab, [ac, bc], [a, b, c]));
        sizes[into] += sizes[from];
        is_empty[from] = true;
        joins.push(Join { from: names[from], into: names[into], distance: ab.into() });
    }
    Ok(joins)
}

/// The nearest place and its distance, with `before` first among equals.
fn nearest(row: &[f32], before: Option<usize>) -> (usize, f32) {
    let (place, least) = least(row).unwrap_or((0, f32::INFINITY));
    (before.filter(|&before| row[before] == least).unwrap_or(place), least)
}

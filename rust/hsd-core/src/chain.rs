//! The nearest-neighbour chain: clusters in O(N²) for linkages that are reducible, `ward`, `average` and `complete`
//! (joining two clusters brings neither nearer to a third). Müllner, *Modern hierarchical, agglomerative clustering
//! algorithms*, arXiv 1109.2378, section 3.2. The three share one loop and differ by one formula.

use crate::error::Result;
use crate::linkage::Join;
use crate::matrix::{least, Matrix};
use crate::progress::Progress;

/// The two clusters about to be joined, and a third: distances and sizes.
#[derive(Debug, Clone, Copy)]
pub struct Triple {
    /// Distance between the two.
    pub ab: f64,
    /// Distance from the first to the third.
    pub ac: f64,
    /// Distance from the second to the third.
    pub bc: f64,
    /// Size of the first.
    pub a: f64,
    /// Size of the second.
    pub b: f64,
    /// Size of the third.
    pub c: f64,
}

/// Ward's update (Müllner, Figure 2) of squared distances, which need no root.
pub fn ward(t: Triple) -> f64 {
    ((t.a + t.c) * t.ac + (t.b + t.c) * t.bc - t.c * t.ab) / (t.a + t.b + t.c)
}

/// The mean over all pairs.
pub fn average(t: Triple) -> f64 {
    (t.a * t.ac + t.b * t.bc) / (t.a + t.b)
}

/// The larger of the two.
pub fn complete(t: Triple) -> f64 {
    t.ac.max(t.bc)
}

/// The distance from two joined clusters, `ab` apart, to a third that is `[ac, bc]` from them; sizes `[a, b, c]`.
pub(crate) fn update_of(update: impl Fn(Triple) -> f64, ab: f32, [ac, bc]: [f32; 2], [a, b, c]: [f64; 3]) -> f32 {
    let joined = update(Triple { ab: ab.into(), ac: ac.into(), bc: bc.into(), a, b, c });
    // Rounding must not bring the joined cluster nearer than its parts were: all below rests on that.
    (joined as f32).max(if ac < bc { ac } else { bc })
}

/// Joins all clusters, in the order in which the chain finds them. Ties go to the cluster that the chain came from,
/// then to the lowest place, as in SciPy, so that equal distances give equal merges.
pub fn agglomerate(
    mut distances: Matrix,
    sizes: &[f64],
    update: impl Fn(Triple) -> f64,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let n = distances.len();
    let mut sizes = sizes.to_vec();
    let mut is_empty = vec![false; n];
    let mut first = 0;
    let mut chain: Vec<usize> = Vec::new();
    let mut joins = Vec::with_capacity(n.saturating_sub(1));
    while joins.len() + 1 < n {
        progress.at(joins.len(), n)?;
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
        distances.join(from, into, &sizes, |ac, bc, c| update_of(&update, ab, [ac, bc], [a, b, c]));
        sizes[into] += sizes[from];
        is_empty[from] = true;
        joins.push(Join { from, into, distance: ab.into() });
    }
    Ok(joins)
}

/// The nearest place and its distance, with `before` first among equals.
fn nearest(row: &[f32], before: Option<usize>) -> (usize, f32) {
    let least = least(row);
    let before = before.filter(|&before| row[before] == least);
    let place = before.or_else(|| row.iter().position(|&distance| distance == least));
    (place.unwrap_or_default(), least)
}

//! Centroid linkage: clusters are as far apart as their mean embeddings point apart (the paper's Eqs. 3-5).
//!
//! With sums `s` and their lengths `l`, everything follows from the distances `d = 1 - cos`: the joined length is
//! `l_z² = (l_a + l_b)² - 2 l_a l_b d_ab`, and `cos(s_z, s_c) = (l_a cos_ac + l_b cos_bc) / l_z`. So an update is O(1)
//! a pair and needs no vector. Solved for `d_zc` below, it has no `1 - cos` in it and keeps small distances exact.
//!
//! Means of zero length need no rule: the nearest of three or more clusters have `cos >= -1/2`, so only the last
//! merge can make one, and nothing is measured from there.

use crate::error::Result;
use crate::linkage::Join;
use crate::matrix::{least, Matrix};
use crate::progress::Progress;

/// Length of `s_a + s_b`.
pub fn joined_length(a: f64, b: f64, distance: f64) -> f64 {
    ((a + b) * (a + b) - 2.0 * a * b * distance).max(0.0).sqrt()
}

/// Joins the nearest pair until one is left; ties go to the lowest pair of places.
///
/// Centroid linkage is not reducible: a joined cluster may come nearer to a third than its parts were, so neither
/// rounds nor the chain apply. Instead every place remembers its nearest earlier place, or a lower bound of that
/// distance (Müllner's generic algorithm, arXiv 1109.2378, section 3.1, with a scan in place of the heap: finding a
/// neighbour anew costs as much as the scan).
pub fn agglomerate(mut distances: Matrix, lengths: &[f64], progress: &mut Progress<'_>) -> Result<Vec<Join>> {
    let n = distances.len();
    let mut length = lengths.to_vec();
    // For each place: a lower bound of the distance to any earlier place (infinite if there is none), and the place
    // that attains it, if known.
    let mut bound = vec![f32::NEG_INFINITY; n];
    let mut attained: Vec<Option<usize>> = vec![None; n];
    bound[0] = f32::INFINITY;
    let mut joins = Vec::with_capacity(n - 1);
    while joins.len() + 1 < n {
        progress.at(joins.len(), n)?;
        let (from, into, nearest) = loop {
            let lowest = least(&bound);
            let place = bound.iter().position(|&bound| bound == lowest).unwrap_or_default();
            if let Some(other) = attained[place] {
                break (other, place, lowest);
            }
            (attained[place], bound[place]) = nearest_earlier(distances.lower(place));
        };
        let (a, b, ab) = (length[from], length[into], f64::from(nearest));
        let joined = joined_length(a, b, ab);
        // joined - a - b, without cancellation.
        let shortening = 2.0 * a * b * ab / (a + b + joined);
        let row = distances.join(from, into, &length, |ac, bc, _| {
            ((a * f64::from(ac) + b * f64::from(bc) - shortening) / joined).max(0.0) as f32
        });
        (attained[into], bound[into]) = nearest_earlier(&row[..into]);
        (attained[from], bound[from]) = (None, f32::INFINITY);
        for attained in attained[from..into].iter_mut().filter(|attained| **attained == Some(from)) {
            *attained = None; // The bound stays one: nothing has come nearer.
        }
        for place in into + 1..n {
            let (distance, at) = (row[place], attained[place]);
            if distance < bound[place] || (distance == bound[place] && at.is_some_and(|at| into < at)) {
                (attained[place], bound[place]) = (Some(into), distance);
            } else if at.is_some_and(|at| at == from || (at == into && distance > bound[place])) {
                attained[place] = None;
            }
        }
        length[into] = joined;
        joins.push(Join { from, into, distance: ab });
    }
    Ok(joins)
}

/// The nearest of the places before one, if there is any, and its distance.
fn nearest_earlier(lower: &[f32]) -> (Option<usize>, f32) {
    let least = least(lower);
    if least == f32::INFINITY {
        return (None, least);
    }
    (lower.iter().position(|&distance| distance == least), least)
}

//! Centroid linkage: clusters are as far apart as their mean embeddings point apart (the paper's Eqs. 3-5).
//!
//! With sums `s` and their lengths `l`, everything follows from the distances `d = 1 - cos`: the joined length is
//! `l_z² = (l_a + l_b)² - 2 l_a l_b d_ab`, and `cos(s_z, s_c) = (l_a cos_ac + l_b cos_bc) / l_z`. So an update is O(1)
//! a pair and needs no vector. Solved for `d_zc` below, it has no `1 - cos` in it and keeps small distances exact.
//!
//! Means of zero length need no rule: the nearest of three or more clusters have `cos >= -1/2`, so only the last
//! merge can make one, and nothing is measured from there.

use crate::distance::Condensed;
use crate::error::Result;
use crate::linkage::Join;
use crate::progress::Progress;

/// Length of `s_a + s_b`.
pub fn joined_length(a: f64, b: f64, distance: f64) -> f64 {
    ((a + b) * (a + b) - 2.0 * a * b * distance).max(0.0).sqrt()
}

/// Distance from `a ∪ b` to a third cluster; `a`, `b` and `joined` are lengths.
pub fn joined_distance(a: f64, b: f64, joined: f64, ab: f64, ac: f64, bc: f64) -> f64 {
    if joined == 0.0 {
        return 1.0; // Unreachable, see above; a right angle is what a vector without direction would get.
    }
    // joined - a - b, without cancellation.
    let shortening = 2.0 * a * b * ab / (a + b + joined);
    ((a * ac + b * bc - shortening) / joined).max(0.0)
}

/// Joins the nearest pair until one is left; ties go to the lowest pair of places.
///
/// Centroid linkage is not reducible: a joined cluster may come nearer to a third than its parts were, so the
/// chain does not apply. Instead every place remembers its nearest later place, or a lower bound of that distance
/// (Müllner's generic algorithm, arXiv 1109.2378, section 3.1, with a scan in place of the heap: finding a
/// neighbour anew costs as much as the scan).
pub fn agglomerate(mut distances: Condensed, lengths: &[f64], progress: &mut Progress<'_>) -> Result<Vec<Join>> {
    let n = distances.len();
    let mut length = lengths.to_vec();
    let mut active: Vec<usize> = (0..n).collect();
    // For each place: a lower bound of the distance to any later place, and the place that attains it if known.
    let mut bound = vec![f32::NEG_INFINITY; n];
    let mut attained: Vec<Option<usize>> = vec![None; n];
    let mut joins = Vec::with_capacity(n.saturating_sub(1));
    while active.len() > 1 {
        progress.at(joins.len(), n)?;
        let (from, into) = loop {
            let place = lowest(&active, &bound);
            match attained[place] {
                Some(other) => break (place, other),
                None => {
                    let (other, distance) = nearest_later(&distances, &active, place);
                    (attained[place], bound[place]) = (Some(other), distance);
                }
            }
        };
        let ab = f64::from(bound[from]);
        let (a, b) = (length[from], length[into]);
        let joined = joined_length(a, b, ab);
        active.retain(|&place| place != from);
        for &place in active.iter().filter(|&&place| place != into) {
            let (ac, bc) = (distances.get(from, place).into(), distances.get(into, place).into());
            let distance = joined_distance(a, b, joined, ab, ac, bc) as f32;
            distances.set(into, place, distance);
            if place > into {
                continue;
            }
            if distance < bound[place] || (distance == bound[place] && attained[place].is_some_and(|at| into < at)) {
                (attained[place], bound[place]) = (Some(into), distance);
            } else if attained[place] == Some(from) || (attained[place] == Some(into) && distance > bound[place]) {
                attained[place] = None; // The bound stays one: nothing else has come nearer.
            }
        }
        // Places between `from` and `into` keep no memory of `from`; earlier ones were treated above.
        (attained[into], bound[into]) = (None, f32::NEG_INFINITY);
        length[into] = joined;
        joins.push(Join { from, into, distance: ab });
    }
    Ok(joins)
}

/// The active place with the lowest bound; the last active place has no later one and is left out.
fn lowest(active: &[usize], bound: &[f32]) -> usize {
    let mut best = active[0];
    for &place in &active[..active.len() - 1] {
        if bound[place] < bound[best] {
            best = place;
        }
    }
    best
}

fn nearest_later(distances: &Condensed, active: &[usize], place: usize) -> (usize, f32) {
    let later = &active[active.partition_point(|&other| other <= place)..];
    let (mut nearest, mut least) = (usize::MAX, f32::INFINITY);
    for &other in later {
        let distance = distances.get(other, place);
        if distance < least {
            (nearest, least) = (other, distance);
        }
    }
    (nearest, least)
}

//! Centroid linkage: the distance of two clusters is the cosine distance of their mean embeddings (Eqs. 3-5 of arXiv
//! 2508.21032).
//!
//! With sums `s` of embeddings and their lengths `l`, everything follows from the distances `d = 1 - cos`: the joined
//! length is `l_z² = (l_a + l_b)² - 2 l_a l_b d_ab`, and `cos(s_z, s_c) = (l_a cos_ac + l_b cos_bc) / l_z`. So an
//! update is O(1) for each pair and needs no vector. Solved for `d_zc` below, it has no `1 - cos` in it and keeps small
//! distances exact.
//!
//! A mean of length zero has no direction, but needs no rule: the nearest two of three or more clusters have
//! `cos >= -1/2`, so only the last merge can produce one, and no distance from it is needed.

use super::clusters::Clusters;
use super::join::Join;
use super::matrix::{is_sparse, least, Matrix};
use crate::error::Result;
use crate::work::progress::Progress;

/// Length of `s_a + s_b`.
pub fn joined_length(a: f64, b: f64, distance: f64) -> f64 {
    ((a + b) * (a + b) - 2.0 * a * b * distance).max(0.0).sqrt()
}

/// Joins the nearest pair until one cluster is left; the lowest pair of places among equally near ones.
///
/// Centroid linkage is not reducible: a joined cluster may be nearer to a third than its parts were, so neither the
/// rounds nor the chain apply. Instead the nearest earlier place of every place is stored, or a lower bound of that
/// distance (Müllner's generic algorithm, arXiv 1109.2378, section 3.1, with a scan instead of the heap: finding a new
/// neighbour costs as much as the scan). One thread does it: a join is a few passes over rows, too little to share.
pub fn agglomerate(
    mut distances: Matrix,
    clusters: &Clusters<'_>,
    _threads: usize,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let n = distances.len();
    let mut neighbours = Neighbours::new(&clusters.lengths);
    let mut joins = Vec::with_capacity(n - 1);
    while joins.len() + 1 < n {
        progress.at(joins.len(), n)?;
        if is_sparse(n - joins.len(), distances.len()) {
            neighbours.keep(&distances.compact(&neighbours.is_empty));
        }
        let (from, into, nearest) = neighbours.nearest_pair(&mut distances);
        let (a, b, ab) = (neighbours.length[from], neighbours.length[into], f64::from(nearest));
        let joined = joined_length(a, b, ab);
        // joined - a - b, without cancellation.
        let shortening = 2.0 * a * b * ab / (a + b + joined);
        let row = distances.join(from, into, &neighbours.length, |ac, bc, _| {
            ((a * f64::from(ac) + b * f64::from(bc) - shortening) / joined).max(0.0) as f32
        });
        neighbours.join(from, into, row);
        neighbours.length[into] = joined;
        joins.push(Join { from: neighbours.name[from], into: neighbours.name[into], distance: ab });
    }
    Ok(joins)
}

/// The nearest earlier cluster of every cluster, as far as it is known, by place.
struct Neighbours {
    /// Length of the sum of the cluster's embeddings.
    length: Vec<f64>,
    /// The place that each had at first.
    name: Vec<usize>,
    is_empty: Vec<bool>,
    /// A lower bound of the distance to any earlier place, infinite if there is none.
    bound: Vec<f32>,
    /// The earlier place that attains the bound, if one is known to.
    nearest: Vec<Option<u32>>,
}

impl Neighbours {
    fn new(lengths: &[f64]) -> Self {
        let n = lengths.len();
        let mut bound = vec![f32::NEG_INFINITY; n];
        bound[0] = f32::INFINITY;
        Neighbours {
            length: lengths.to_vec(),
            name: (0..n).collect(),
            is_empty: vec![false; n],
            bound,
            nearest: vec![None; n],
        }
    }

    /// The nearest two clusters, the earlier place first, and their distance.
    fn nearest_pair(&mut self, distances: &mut Matrix) -> (usize, usize, f32) {
        loop {
            let (place, lowest) = least(&self.bound).unwrap_or((0, f32::INFINITY));
            if let Some(other) = self.nearest[place] {
                return (other as usize, place, lowest);
            }
            (self.nearest[place], self.bound[place]) = nearest_earlier(distances.lower(place));
        }
    }

    /// Updates what is known: `from` has been joined into `into`, and `row` has the new distances of `into`.
    fn join(&mut self, from: usize, into: usize, row: &[f32]) {
        (self.nearest[into], self.bound[into]) = nearest_earlier(&row[..into]);
        (self.nearest[from], self.bound[from]) = (None, f32::INFINITY);
        self.is_empty[from] = true;
        let (gone, joined) = (Some(from as u32), Some(into as u32));
        for nearest in self.nearest[from..into].iter_mut().filter(|nearest| **nearest == gone) {
            *nearest = None; // The bound is still a lower bound: nothing has come nearer.
        }
        let later = self.nearest.iter_mut().zip(&mut self.bound).zip(row).skip(into + 1);
        for ((nearest, bound), &distance) in later {
            if distance < *bound || (distance == *bound && nearest.is_some() && joined < *nearest) {
                (*nearest, *bound) = (joined, distance);
            } else if *nearest == gone || (*nearest == joined && distance > *bound) {
                *nearest = None;
            }
        }
    }

    /// Keeps only these places, in this order.
    fn keep(&mut self, kept: &[usize]) {
        let mut place = vec![None; self.name.len()];
        kept.iter().enumerate().for_each(|(new, &old)| place[old] = Some(new as u32));
        self.nearest = kept.iter().map(|&old| self.nearest[old].and_then(|nearest| place[nearest as usize])).collect();
        self.length = kept.iter().map(|&old| self.length[old]).collect();
        self.name = kept.iter().map(|&old| self.name[old]).collect();
        self.bound = kept.iter().map(|&old| self.bound[old]).collect();
        self.is_empty = vec![false; kept.len()];
    }
}

/// The nearest of the places before one, if there is any, and its distance.
fn nearest_earlier(lower: &[f32]) -> (Option<u32>, f32) {
    least(lower).map_or((None, f32::INFINITY), |(place, least)| (Some(place as u32), least))
}

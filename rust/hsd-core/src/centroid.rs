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
use crate::matrix::{is_sparse, least, Matrix};
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
    let mut clusters = Clusters::new(lengths);
    let mut joins = Vec::with_capacity(n - 1);
    while joins.len() + 1 < n {
        progress.at(joins.len(), n)?;
        if is_sparse(n - joins.len(), distances.len()) {
            clusters.keep(&distances.compact(&clusters.is_empty));
        }
        let (from, into, nearest) = clusters.nearest_pair(&mut distances);
        let (a, b, ab) = (clusters.length[from], clusters.length[into], f64::from(nearest));
        let joined = joined_length(a, b, ab);
        // joined - a - b, without cancellation.
        let shortening = 2.0 * a * b * ab / (a + b + joined);
        let row = distances.join(from, into, &clusters.length, |ac, bc, _| {
            ((a * f64::from(ac) + b * f64::from(bc) - shortening) / joined).max(0.0) as f32
        });
        clusters.join(from, into, row);
        clusters.length[into] = joined;
        joins.push(Join { from: clusters.name[from], into: clusters.name[into], distance: ab });
    }
    Ok(joins)
}

/// What is known of the clusters, by place.
struct Clusters {
    length: Vec<f64>,
    /// The place that each had at first.
    name: Vec<usize>,
    is_empty: Vec<bool>,
    /// A lower bound of the distance to any earlier place, infinite if there is none.
    bound: Vec<f32>,
    /// The earlier place that attains the bound, if one is known to.
    nearest: Vec<Option<u32>>,
}

impl Clusters {
    fn new(lengths: &[f64]) -> Self {
        let n = lengths.len();
        let mut bound = vec![f32::NEG_INFINITY; n];
        bound[0] = f32::INFINITY;
        Clusters {
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

    /// Takes in that `from` has joined `into`, where `row` has the distances from now on.
    fn join(&mut self, from: usize, into: usize, row: &[f32]) {
        (self.nearest[into], self.bound[into]) = nearest_earlier(&row[..into]);
        (self.nearest[from], self.bound[from]) = (None, f32::INFINITY);
        self.is_empty[from] = true;
        let (gone, joined) = (Some(from as u32), Some(into as u32));
        for nearest in self.nearest[from..into].iter_mut().filter(|nearest| **nearest == gone) {
            *nearest = None; // The bound stays one: nothing has come nearer.
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

    /// Only these places stay, in this order.
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

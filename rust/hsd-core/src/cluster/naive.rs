//! The oracle: agglomeration as it is defined, in O(n³). The tests compare the fast ways with it.
//!
//! Nothing but tests should call this. It shares no code with the fast ways: distances come from dot products
//! row by row, matrices are whole and in double precision, and centroids are vectors.

use super::linkage::Linkage;
use super::metric::Metric;

/// One merge: the smaller id, the larger id, and their distance. Ids as in SciPy.
pub type Merge = (usize, usize, f64);

/// The state of a clustering: the present clusters and the distances between them.
#[derive(Debug, Clone)]
pub struct Clustering {
    linkage: Linkage,
    metric: Metric,
    distance: Vec<Vec<f64>>,
    sum: Vec<Vec<f64>>,
    size: Vec<f64>,
    alive: Vec<bool>,
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(a, b)| a * b).sum()
}

/// `1 - cos`, as half the squared difference of the unit vectors.
pub fn cosine_distance(x: &[f64], y: &[f64]) -> f64 {
    let (a, b) = (dot(x, x).sqrt(), dot(y, y).sqrt());
    x.iter().zip(y).map(|(p, q)| (p / a - q / b).powi(2)).sum::<f64>() / 2.0
}

/// `|x - y|`.
pub fn euclidean_distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(p, q)| (p - q).powi(2)).sum::<f64>().sqrt()
}

/// The distance of two rows by a metric.
pub fn distance_of(metric: Metric, x: &[f64], y: &[f64]) -> f64 {
    match metric {
        Metric::Cosine => cosine_distance(x, y),
        Metric::Euclidean => euclidean_distance(x, y),
    }
}

impl Clustering {
    /// Every row is a cluster.
    pub fn new(rows: &[Vec<f64>], linkage: Linkage, metric: Metric) -> Self {
        Clustering {
            linkage,
            metric,
            distance: rows.iter().map(|x| rows.iter().map(|y| distance_of(metric, x, y)).collect()).collect(),
            sum: rows.to_vec(),
            size: vec![1.0; rows.len()],
            alive: vec![true; rows.len()],
        }
    }

    /// The distance of clusters `a` and `b`.
    pub fn distance(&self, a: usize, b: usize) -> f64 {
        self.distance[a][b]
    }

    /// The nearest two clusters, the lowest ids among equals.
    pub fn nearest_pair(&self) -> Option<Merge> {
        let n = self.alive.len();
        let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
        pairs
            .filter(|&(a, b)| self.alive[a] && self.alive[b])
            .map(|(a, b)| (a, b, self.distance[a][b]))
            .min_by(|x, y| x.2.total_cmp(&y.2))
    }

    /// Joins clusters `a` and `b` into a new one with the next id.
    pub fn join(&mut self, a: usize, b: usize) {
        let sum: Vec<f64> = self.sum[a].iter().zip(&self.sum[b]).map(|(x, y)| x + y).collect();
        let (na, nb) = (self.size[a], self.size[b]);
        let ab = self.distance[a][b];
        let mut row: Vec<f64> = (0..self.alive.len())
            .map(|c| {
                let (ac, bc, nc) = (self.distance[a][c], self.distance[b][c], self.size[c]);
                match self.linkage {
                    Linkage::Complete => ac.max(bc),
                    Linkage::Average => (na * ac + nb * bc) / (na + nb),
                    // Sums for means: they have the same direction.
                    Linkage::Centroid => distance_of(self.metric, &sum, &self.sum[c]),
                    Linkage::Ward => {
                        let squares = (na + nc) * ac.powi(2) + (nb + nc) * bc.powi(2) - nc * ab.powi(2);
                        (squares.max(0.0) / (na + nb + nc)).sqrt()
                    }
                }
            })
            .collect();
        for (line, &distance) in self.distance.iter_mut().zip(&row) {
            line.push(distance);
        }
        row.push(0.0);
        self.distance.push(row);
        self.sum.push(sum);
        self.size.push(na + nb);
        self.alive[a] = false;
        self.alive[b] = false;
        self.alive.push(true);
    }
}

/// All merges, nearest pair first.
pub fn agglomerate(rows: &[Vec<f64>], linkage: Linkage, metric: Metric) -> Vec<Merge> {
    let mut clustering = Clustering::new(rows, linkage, metric);
    let mut merges = Vec::new();
    while let Some(merge) = clustering.nearest_pair() {
        clustering.join(merge.0, merge.1);
        merges.push(merge);
    }
    merges
}

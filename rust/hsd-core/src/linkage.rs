//! Agglomerative clustering of a distance matrix.
//!
//! `ward`, `average` and `complete` are reducible (joining two clusters brings neither nearer to a third), so
//! the nearest-neighbour chain finds their merges in O(N²): Müllner, *Modern hierarchical, agglomerative
//! clustering algorithms*, arXiv 1109.2378, section 3.2. They share one loop and differ by one formula.

use std::fmt;
use std::str::FromStr;

use crate::centroid;
use crate::distance::{cosine_distances, Condensed, UnitRows};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tree::Tree;

/// How the distance between two clusters follows from the distances between their members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    /// Ward's Lance-Williams update run on cosine distances, as the paper's authors do.
    Ward,
    /// The cosine distance of the clusters' mean embeddings: the paper's Eqs. 3-5.
    Centroid,
    /// The mean distance between members of one and members of the other.
    Average,
    /// The largest distance between a member of one and a member of the other.
    Complete,
}

impl Linkage {
    /// All of them.
    pub const ALL: [Linkage; 4] = [Linkage::Ward, Linkage::Centroid, Linkage::Average, Linkage::Complete];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Linkage::Ward => "ward",
            Linkage::Centroid => "centroid",
            Linkage::Average => "average",
            Linkage::Complete => "complete",
        }
    }
}

impl fmt::Display for Linkage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Linkage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Linkage::ALL.into_iter().find(|linkage| linkage.name() == name).ok_or_else(|| Error::UnknownName {
            what: "linkage",
            name: name.to_owned(),
            choices: "\"ward\", \"centroid\", \"average\", \"complete\"",
        })
    }
}

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

/// Ward's update (Müllner, Figure 2): squares weighted by size.
pub fn ward(t: Triple) -> f64 {
    let squares = (t.a + t.c) * t.ac * t.ac + (t.b + t.c) * t.bc * t.bc - t.c * t.ab * t.ab;
    (squares.max(0.0) / (t.a + t.b + t.c)).sqrt()
}

/// The mean over all pairs.
pub fn average(t: Triple) -> f64 {
    (t.a * t.ac + t.b * t.bc) / (t.a + t.b)
}

/// The larger of the two.
pub fn complete(t: Triple) -> f64 {
    t.ac.max(t.bc)
}

/// One step of the agglomeration: the two places joined, `from < into`, and their distance. The joined cluster
/// stands at `into` from then on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Join {
    /// The place that falls empty.
    pub from: usize,
    /// The place of the joined cluster.
    pub into: usize,
    /// How far apart the two were.
    pub distance: f64,
}

/// Clusters the rows by cosine distance.
pub fn build(rows: &UnitRows, linkage: Linkage, threads: usize, progress: &mut Progress<'_>) -> Result<Tree> {
    // Measured: at a few hundred dimensions the two phases take about as long.
    progress.phase(0.0, 0.5);
    let distances = cosine_distances(rows, threads, progress)?;
    progress.phase(0.5, 1.0);
    let mut joins = match linkage {
        Linkage::Ward => chain(distances, ward, progress)?,
        Linkage::Average => chain(distances, average, progress)?,
        Linkage::Complete => chain(distances, complete, progress)?,
        Linkage::Centroid => centroid::agglomerate(distances, &rows.lengths, progress)?,
    };
    if linkage != Linkage::Centroid {
        // The chain finds merges out of order; their distances never fall on the way up, so sorting restores it.
        joins.sort_by(|x, y| x.distance.total_cmp(&y.distance));
    }
    progress.finish()?;
    label(rows.len(), &joins, linkage)
}

/// Names the clusters that `joins` make one after the other as SciPy does: leaf i is i, merge j is N + j.
pub fn label(n: usize, joins: &[Join], linkage: Linkage) -> Result<Tree> {
    // Union-find over places. Sorted joins may use a place after a later one has emptied it.
    let mut above: Vec<usize> = (0..n).collect();
    let mut name: Vec<i64> = (0..n as i64).collect();
    let mut merges = Vec::with_capacity(joins.len());
    for (j, join) in joins.iter().enumerate() {
        let (from, into) = (root_of(&mut above, join.from), root_of(&mut above, join.into));
        merges.push([name[from].min(name[into]), name[from].max(name[into])]);
        above[from] = into;
        name[into] = (n + j) as i64;
    }
    Tree::from_merges(&merges, joins.iter().map(|join| join.distance).collect(), linkage.name())
}

fn root_of(above: &mut [usize], mut place: usize) -> usize {
    while above[place] != place {
        above[place] = above[above[place]];
        place = above[place];
    }
    place
}

/// The nearest-neighbour chain. Ties go to the cluster that the chain came from, then to the lowest place, as in
/// SciPy, so that equal distances give equal merges.
pub fn chain(
    mut distances: Condensed,
    update: impl Fn(Triple) -> f64,
    progress: &mut Progress<'_>,
) -> Result<Vec<Join>> {
    let n = distances.len();
    let mut size = vec![1.0; n];
    let mut active: Vec<usize> = (0..n).collect();
    let mut chain: Vec<usize> = Vec::new();
    let mut joins = Vec::with_capacity(n.saturating_sub(1));
    while active.len() > 1 {
        progress.at(joins.len(), n)?;
        let tip = *chain.last().unwrap_or(&active[0]);
        if chain.is_empty() {
            chain.push(tip);
        }
        let before = chain.len().checked_sub(2).map(|i| chain[i]);
        let (nearest, distance) = nearest(&distances, &active, tip, before);
        if Some(nearest) != before {
            chain.push(nearest);
            continue;
        }
        chain.truncate(chain.len() - 2);
        let (from, into) = (tip.min(nearest), tip.max(nearest));
        active.retain(|&place| place != from);
        for &place in active.iter().filter(|&&place| place != into) {
            let (ac, bc) = (distances.get(from, place), distances.get(into, place));
            let joined = update(Triple {
                ab: distance.into(),
                ac: ac.into(),
                bc: bc.into(),
                a: size[from],
                b: size[into],
                c: size[place],
            });
            // Rounding must not bring the joined cluster nearer than its parts were, or the chain would break.
            distances.set(into, place, (joined as f32).max(ac.min(bc)));
        }
        size[into] += size[from];
        joins.push(Join { from, into, distance: distance.into() });
    }
    Ok(joins)
}

/// The active place nearest to `tip` and its distance, with `before` first among equals.
fn nearest(distances: &Condensed, active: &[usize], tip: usize, before: Option<usize>) -> (usize, f32) {
    let (mut place, mut least) = match before {
        Some(before) => (before, distances.get(tip, before)),
        None => (usize::MAX, f32::INFINITY),
    };
    let row = distances.row(tip);
    let lower = active.partition_point(|&other| other < tip);
    for &other in &active[..lower] {
        if row[other] < least {
            (place, least) = (other, row[other]);
        }
    }
    for &other in &active[lower + 1..] {
        let distance = distances.get(other, tip);
        if distance < least {
            (place, least) = (other, distance);
        }
    }
    (place, least)
}

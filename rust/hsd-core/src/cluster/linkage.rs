//! What each linkage is: the one place where linkages differ.

use super::centroid;
use super::clusters::{Clusters, Entries};
use super::join::Join;
use super::matrix::Matrix;
use super::metric::Metric;
use super::reducible;
use super::update::{Average, Complete, Ward};
use crate::choice::named_choice;
use crate::error::{Error, Result};
use crate::work::progress::Progress;

named_choice! {
    "linkage";
    /// How the distance between two clusters follows from the distances between their members.
    ///
    /// # To add a linkage
    ///
    /// 1. Add the variant and its name here. The name reaches errors and Python from here.
    /// 2. The compiler now asks for its arms in `joining` and, for each metric, in `definition`. If it is reducible (a
    ///    joined cluster is not nearer to a third than the nearer of its parts was), write its formula in `update.rs`.
    /// 3. The compiler also asks for its arms in `insert.rs`, which lets new prompts join a tree (its formula there is an
    ///    `Across`), and for its formula in `naive.rs`, the slow form that the tests compare with.
    /// 4. `tests/insert.rs` asks for its definition. All tests that run over [`Linkage::ALL`] then cover it.
    ///
    /// CONTRIBUTING.md has an example.
    pub enum Linkage {
        /// Ward's Lance-Williams update. Of cosine distances it is what the paper's authors use; of Euclidean ones it is
        /// Ward's method itself: the square of a join's distance is twice what the join adds to the sum of the squared
        /// distances from the means of the clusters.
        Ward = "ward",
        /// The cosine distance of the clusters' mean embeddings: the paper's Eqs. 3-5 (arXiv 2508.21032). There is no
        /// Euclidean form of it.
        Centroid = "centroid",
        /// The mean distance between members of one and members of the other.
        Average = "average",
        /// The largest distance between a member of one and a member of the other.
        Complete = "complete",
    }
}

/// The most points that represent a cluster. More than four change nothing that can be measured.
pub(super) const POINTS: usize = 4;

/// All that the rest of the clustering has to know of a linkage and a metric.
#[derive(Clone, Copy)]
pub(super) struct Definition {
    /// The linkage.
    pub linkage: Linkage,
    /// How clusters are joined.
    pub joining: Joining,
    /// How an entry of the matrix is formed for two prompts.
    pub entries: Entries,
    /// The distance that an entry stands for. It rises with the entry, so it is taken at the end, of the joins only.
    pub distance: fn(f64) -> f64,
    /// What represents a cluster of many prompts in an approximate clustering.
    pub representation: Representation,
}

/// Joins the clusters of a matrix until one is left, with a number of threads. Children come before parents.
type Agglomerate = fn(Matrix, &Clusters<'_>, usize, &mut Progress<'_>) -> Result<Vec<Join>>;

/// How clusters are joined.
#[derive(Clone, Copy)]
pub(super) enum Joining {
    /// The linkage is reducible: a joined cluster is not nearer to a third than the nearer of its parts was. So any two
    /// that are each other's nearest may be joined at any time, and the joins are sorted by distance afterwards.
    Reducible(Agglomerate),
    /// The linkage is not reducible: the nearest pair of all is joined, again and again. Distances may fall from one
    /// join to the next.
    NearestFirst(Agglomerate),
}

/// What represents a cluster of many prompts.
#[derive(Clone, Copy)]
pub(super) struct Representation {
    /// What kind of point it is.
    pub point: Point,
    /// The most points of a cluster. One, if the distances depend on nothing else than it. Otherwise up to [`POINTS`],
    /// one for each of the highest clusters inside it, weighted by size.
    pub most_points: usize,
    /// How an entry is formed for two such clusters.
    pub entries: Entries,
}

/// The point that represents some prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// The mean of their rows, which knows how far they are spread about it: its distance is the mean over them.
    Mean,
    /// The mean of their rows, as if all of them were there.
    MeanOnly,
    /// The direction of the mean of their rows as given: a unit row.
    MeanDirection,
    /// One of them.
    Member,
}

impl Linkage {
    /// Whether a joined cluster is never nearer to a third than the nearer of its parts was. Then scores do not fall on
    /// the way up.
    pub fn is_reducible(self) -> bool {
        match self.joining() {
            Joining::Reducible(_) => true,
            Joining::NearestFirst(_) => false,
        }
    }

    fn joining(self) -> Joining {
        match self {
            Linkage::Ward => Joining::Reducible(reducible::agglomerate::<Ward>),
            Linkage::Centroid => Joining::NearestFirst(centroid::agglomerate),
            Linkage::Average => Joining::Reducible(reducible::agglomerate::<Average>),
            Linkage::Complete => Joining::Reducible(reducible::agglomerate::<Complete>),
        }
    }

    /// What the linkage is with this metric, or an error if it is nothing.
    pub(super) fn definition(self, metric: Metric) -> Result<Definition> {
        let one = |point, entries| Representation { point, most_points: 1, entries };
        let several = |point, entries| Representation { point, most_points: POINTS, entries };
        // A tile holds half of each squared distance.
        let half_square: fn(f64) -> f64 = |entry| (2.0 * entry).sqrt();
        type Parts = (Entries, fn(f64) -> f64, Representation);
        let (entries, distance, representation): Parts = match (self, metric) {
            (Linkage::Ward, Metric::Cosine) => (Entries::Squared, f64::sqrt, several(Point::Mean, Entries::Spread)),
            (Linkage::Ward, Metric::Euclidean) => {
                (Entries::Plain, half_square, one(Point::MeanOnly, Entries::Increase))
            }
            (Linkage::Centroid, Metric::Cosine) => {
                (Entries::Plain, |entry| entry, one(Point::MeanDirection, Entries::Plain))
            }
            (Linkage::Centroid, Metric::Euclidean) => return Err(Error::NoEuclideanCentroid),
            (Linkage::Average, Metric::Cosine) => (Entries::Plain, |entry| entry, one(Point::Mean, Entries::Plain)),
            (Linkage::Average, Metric::Euclidean) => {
                let root_of_half: fn(f64) -> f64 = |entry| entry * std::f64::consts::SQRT_2;
                (Entries::Root, root_of_half, several(Point::Mean, Entries::MeanRoot))
            }
            (Linkage::Complete, Metric::Cosine) => {
                (Entries::Plain, |entry| entry, several(Point::Member, Entries::Farthest))
            }
            // The farthest pair is the farthest pair by half squares too.
            (Linkage::Complete, Metric::Euclidean) => {
                (Entries::Plain, half_square, several(Point::Member, Entries::Farthest))
            }
        };
        Ok(Definition { linkage: self, joining: self.joining(), entries, distance, representation })
    }
}

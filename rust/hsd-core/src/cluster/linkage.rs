//! What each linkage is: the one place where linkages differ.

use super::centroid;
use super::clusters::{Clusters, Entries};
use super::join::Join;
use super::matrix::Matrix;
use super::reducible;
use super::update::{Average, Complete, Ward};
use crate::choice::named_choice;
use crate::error::Result;
use crate::work::progress::Progress;

named_choice! {
    "linkage";
    /// How the distance between two clusters follows from the distances between their members.
    ///
    /// # To add a linkage
    ///
    /// 1. Add the variant and its name here. The name reaches errors and Python from here.
    /// 2. The compiler now asks for its arm in [`Linkage::definition`]. If it is reducible (a joined cluster is not nearer
    ///    to a third than the nearer of its parts was), write its formula in `update.rs`.
    /// 3. The compiler also asks for its formula in `naive.rs`, the slow form that the tests compare with. All tests
    ///    that run over [`Linkage::ALL`] then cover it.
    pub enum Linkage {
        /// Ward's Lance-Williams update run on cosine distances, as the paper's authors do.
        Ward = "ward",
        /// The cosine distance of the clusters' mean embeddings: the paper's Eqs. 3-5 (arXiv 2508.21032).
        Centroid = "centroid",
        /// The mean distance between members of one and members of the other.
        Average = "average",
        /// The largest distance between a member of one and a member of the other.
        Complete = "complete",
    }
}

/// The most points that represent a cluster. More than four change nothing that can be measured.
pub(super) const POINTS: usize = 4;

/// All that the rest of the clustering has to know of a linkage.
#[derive(Clone, Copy)]
pub(super) struct Definition {
    /// How clusters are joined.
    pub joining: Joining,
    /// How an entry of the matrix is formed for two clusters of one point each. If entries are squared distances, so
    /// are the distances of the joins, and their roots are taken at the end.
    pub entries: Entries,
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
pub(super) enum Representation {
    /// One point: the distances depend on nothing else. Entries are formed as for single prompts.
    One(Point),
    /// Up to [`POINTS`] points, one for each of the highest clusters inside it, weighted by size, and how an entry is
    /// formed for two clusters of several points: the distances depend on all members.
    Several(Point, Entries),
}

/// The point that represents some prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// The mean of their unit rows.
    Mean,
    /// The direction of the mean of their rows as given: a unit row.
    MeanDirection,
    /// One of them.
    Member,
}

impl Linkage {
    /// Whether a joined cluster is never nearer to a third than the nearer of its parts was. Then scores do not fall on
    /// the way up.
    pub fn is_reducible(self) -> bool {
        match self.definition().joining {
            Joining::Reducible(_) => true,
            Joining::NearestFirst(_) => false,
        }
    }

    /// What the linkage is.
    pub(super) fn definition(self) -> Definition {
        match self {
            Linkage::Ward => Definition {
                joining: Joining::Reducible(reducible::agglomerate::<Ward>),
                entries: Entries::Squared,
                representation: Representation::Several(Point::Mean, Entries::Spread),
            },
            Linkage::Centroid => Definition {
                joining: Joining::NearestFirst(centroid::agglomerate),
                entries: Entries::Plain,
                representation: Representation::One(Point::MeanDirection),
            },
            Linkage::Average => Definition {
                joining: Joining::Reducible(reducible::agglomerate::<Average>),
                entries: Entries::Plain,
                representation: Representation::One(Point::Mean),
            },
            Linkage::Complete => Definition {
                joining: Joining::Reducible(reducible::agglomerate::<Complete>),
                entries: Entries::Plain,
                representation: Representation::Several(Point::Member, Entries::Farthest),
            },
        }
    }
}

impl Representation {
    /// What kind of point it is.
    pub fn point(self) -> Point {
        match self {
            Representation::One(point) | Representation::Several(point, _) => point,
        }
    }

    /// The most points of a cluster.
    pub fn most_points(self) -> usize {
        match self {
            Representation::One(_) => 1,
            Representation::Several(..) => POINTS,
        }
    }
}

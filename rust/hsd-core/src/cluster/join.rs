//! Joins: what a clustering finds, and how a list of them becomes a tree.

use crate::error::Result;
use crate::tree::Tree;

/// One step of the agglomeration: the places of the two clusters joined, `from < into`, and their distance. From then
/// on the joined cluster is at `into`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Join {
    /// The place that becomes empty.
    pub from: usize,
    /// The place of the joined cluster.
    pub into: usize,
    /// The distance of the two.
    pub distance: f64,
}

/// Which place a cluster is at now. A list of joins may name a place that an earlier join of the list has emptied,
/// because joins are sorted after they are found.
pub struct UnionFind {
    above: Vec<usize>,
}

impl UnionFind {
    /// Of `n` places, nothing joined.
    pub fn new(n: usize) -> Self {
        UnionFind { above: (0..n).collect() }
    }

    /// The place that the cluster of `place` is at now.
    pub fn find(&mut self, mut place: usize) -> usize {
        while self.above[place] != place {
            self.above[place] = self.above[self.above[place]];
            place = self.above[place];
        }
        place
    }

    /// The places of the two clusters of `join` now. The first has been emptied into the second when this returns.
    pub fn unite(&mut self, join: &Join) -> (usize, usize) {
        let (from, into) = (self.find(join.from), self.find(join.into));
        self.above[from] = into;
        (from, into)
    }
}

/// The tree of `n` leaves that `joins` make one after the other. Nodes are numbered as in SciPy: leaf i is i, merge j
/// is N + j. `linkage` is the name of what made them.
pub fn tree_of(n: usize, joins: &[Join], linkage: &str) -> Result<Tree> {
    let mut places = UnionFind::new(n);
    let mut node: Vec<i64> = (0..n as i64).collect();
    let mut merges = Vec::with_capacity(joins.len());
    for (j, join) in joins.iter().enumerate() {
        let (from, into) = places.unite(join);
        merges.push([node[from].min(node[into]), node[from].max(node[into])]);
        node[into] = (n + j) as i64;
    }
    Tree::from_merges(&merges, joins.iter().map(|join| join.distance).collect(), linkage)
}

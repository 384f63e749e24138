//! The merge tree: which prompts are similar, and how much.

use crate::error::{index_count, Error, Result};

/// The longest linkage name that a tree stores, in bytes.
const NAME_LIMIT: usize = 64;

/// A binary merge tree over N leaves. Leaf `i` has id `i`, merge `j` has id `N + j`, children come before parents.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    n: usize,
    linkage: String,
    exact: bool,
    merges: Vec<[u32; 2]>,
    scores: Vec<f64>,
    heights: Vec<f64>,
    sizes: Vec<u32>,
    /// Parent of every node; the root has none.
    parents: Vec<Option<u32>>,
    /// Where every node's range of the leaf order begins.
    begins: Vec<u32>,
    leaf_order: Vec<u32>,
    sorted_heights: Vec<f64>,
}

impl Tree {
    /// A tree from its merges and their scores. `linkage` is the name of the linkage that it was built with.
    pub fn from_merges(merges: &[[i64; 2]], scores: Vec<f64>, linkage: &str) -> Result<Self> {
        if scores.len() != merges.len() {
            return Err(Error::Length { what: "scores", found: scores.len(), expected: merges.len() });
        }
        if linkage.len() > NAME_LIMIT {
            return Err(Error::TooMany { what: "bytes of linkage name", count: linkage.len(), limit: NAME_LIMIT });
        }
        let n = merges.len() + 1;
        index_count("prompts", n)?;
        if let Some(merge) = scores.iter().position(|score| score.is_nan() || *score < 0.0) {
            return Err(Error::BadScore { merge, score: scores[merge] });
        }
        let mut parents: Vec<Option<u32>> = vec![None; n + merges.len()];
        let mut checked = Vec::with_capacity(merges.len());
        for (merge, children) in merges.iter().enumerate() {
            let id = n + merge;
            for &node in children {
                let why = match usize::try_from(node).ok().filter(|&node| node < id) {
                    None if node >= id as i64 => "does not exist yet; children must come before parents",
                    None => "is negative",
                    Some(node) if parents[node].is_some() => "has been joined before",
                    Some(node) => {
                        parents[node] = Some(id as u32);
                        continue;
                    }
                };
                return Err(Error::BadMerge { merge, node, why });
            }
            checked.push([children[0] as u32, children[1] as u32]);
        }
        // N - 1 merges, each of two clusters without a parent, leave one root: this is one binary tree.
        Ok(Tree::derive(n, linkage.to_owned(), checked, scores, parents))
    }

    /// Computes everything that follows from the merges.
    fn derive(n: usize, linkage: String, merges: Vec<[u32; 2]>, scores: Vec<f64>, parents: Vec<Option<u32>>) -> Self {
        let mut sizes = vec![1u32; n];
        let mut lowest: Vec<u32> = (0..n as u32).collect();
        let mut heights: Vec<f64> = vec![0.0; n];
        for (&[a, b], &score) in merges.iter().zip(&scores) {
            let (a, b) = (a as usize, b as usize);
            sizes.push(sizes[a] + sizes[b]);
            lowest.push(lowest[a].min(lowest[b]));
            heights.push(score.max(heights[a]).max(heights[b]));
        }
        // Ranges of the leaf order, from the root down. Of the two children of a merge, the one that has the smallest
        // leaf of both comes first. So every node's range begins with its smallest leaf, whose generator draws the
        // noise of the node's cluster.
        let mut begins = vec![0u32; n + merges.len()];
        for (j, &[a, b]) in merges.iter().enumerate().rev() {
            let (first, second) = if lowest[a as usize] < lowest[b as usize] { (a, b) } else { (b, a) };
            begins[first as usize] = begins[n + j];
            begins[second as usize] = begins[n + j] + sizes[first as usize];
        }
        let mut leaf_order = vec![0u32; n];
        for (leaf, &position) in begins[..n].iter().enumerate() {
            leaf_order[position as usize] = leaf as u32;
        }
        sizes.drain(..n);
        heights.drain(..n);
        let mut sorted_heights = heights.clone();
        sorted_heights.sort_unstable_by(f64::total_cmp);
        let exact = true;
        Tree { n, linkage, exact, merges, scores, heights, sizes, parents, begins, leaf_order, sorted_heights }
    }

    /// One tree over the union of the leaves: leaf `i` of `trees[t]` becomes leaf `leaves[t][i]`.
    ///
    /// The roots are chained, in the order given, by merges of infinite score, so that no cluster spans two trees.
    pub fn join(trees: &[&Tree], leaves: &[&[i64]]) -> Result<Self> {
        let Some(first) = trees.first() else { return Err(Error::Empty { what: "trees" }) };
        if leaves.len() != trees.len() {
            return Err(Error::Length { what: "the list of leaves", found: leaves.len(), expected: trees.len() });
        }
        let n = trees.iter().map(|tree| tree.n).sum::<usize>();
        index_count("prompts", n)?;
        let mut seen = vec![false; n];
        let mut merges: Vec<[i64; 2]> = Vec::with_capacity(n - 1);
        let mut scores = Vec::with_capacity(n - 1);
        let mut roots = Vec::with_capacity(trees.len());
        for (tree, &leaves) in trees.iter().zip(leaves) {
            if leaves.len() != tree.n {
                return Err(Error::Length { what: "the leaves of a tree", found: leaves.len(), expected: tree.n });
            }
            for &leaf in leaves {
                match usize::try_from(leaf).ok().and_then(|leaf| seen.get_mut(leaf)) {
                    None => return Err(Error::OutOfRange { what: "leaf", index: leaf, count: n }),
                    Some(true) => return Err(Error::Repeated { what: "leaf", index: leaf }),
                    Some(seen) => *seen = true,
                }
            }
            let offset = n + merges.len();
            let rename = |node: u32| match (node as usize).checked_sub(tree.n) {
                None => leaves[node as usize],
                Some(merge) => (offset + merge) as i64,
            };
            merges.extend(tree.merges.iter().map(|&[a, b]| [rename(a), rename(b)]));
            scores.extend_from_slice(&tree.scores);
            roots.push(rename(tree.root() as u32));
        }
        let mut trunk = roots[0];
        for &root in &roots[1..] {
            merges.push([trunk.min(root), trunk.max(root)]);
            scores.push(f64::INFINITY);
            trunk = (n + merges.len() - 1) as i64;
        }
        let same = trees.iter().all(|tree| tree.linkage == first.linkage);
        let joined = Tree::from_merges(&merges, scores, if same { &first.linkage } else { "mixed" })?;
        Ok(Tree { exact: trees.iter().all(|tree| tree.exact), ..joined })
    }

    /// This tree, marked as built by an approximate method.
    pub fn approximate(self) -> Self {
        Tree { exact: false, ..self }
    }

    /// Number of leaves.
    pub fn n_leaves(&self) -> usize {
        self.n
    }

    /// Number of nodes, leaves included.
    pub fn n_nodes(&self) -> usize {
        self.n + self.merges.len()
    }

    /// Id of the root.
    pub fn root(&self) -> usize {
        self.n_nodes() - 1
    }

    /// Name of the linkage that the tree was built with.
    pub fn linkage(&self) -> &str {
        &self.linkage
    }

    /// Whether this is the linkage itself, not an approximation of it.
    pub fn exact(&self) -> bool {
        self.exact
    }

    /// The two children of each merge.
    pub fn merges(&self) -> &[[u32; 2]] {
        &self.merges
    }

    /// The distance of the two children of each merge.
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }

    /// The highest score at or below each merge.
    pub fn heights(&self) -> &[f64] {
        &self.heights
    }

    /// The heights in ascending order.
    pub fn sorted_heights(&self) -> &[f64] {
        &self.sorted_heights
    }

    /// Number of leaves below each merge.
    pub fn sizes(&self) -> &[u32] {
        &self.sizes
    }

    /// The leaves from left to right. Every cluster is a run of it that begins with the cluster's lowest leaf.
    pub fn leaf_order(&self) -> &[u32] {
        &self.leaf_order
    }

    /// Parent of a node; the root has none.
    pub fn parent(&self, node: usize) -> Option<usize> {
        self.parents[node].map(|parent| parent as usize)
    }

    /// Height of a merge; leaves have none, because they are never split.
    pub fn height(&self, node: usize) -> Option<f64> {
        node.checked_sub(self.n).map(|merge| self.heights[merge])
    }

    /// The node's range of the leaf order.
    pub fn range(&self, node: usize) -> (u32, u32) {
        let size = node.checked_sub(self.n).map_or(1, |merge| self.sizes[merge]);
        (self.begins[node], self.begins[node] + size)
    }

    /// SciPy's linkage matrix, sorted by height: two children (the smaller id first), height, size.
    pub fn to_scipy(&self) -> Vec<[f64; 4]> {
        let mut order: Vec<usize> = (0..self.merges.len()).collect();
        // The sort is stable, and no node is higher than its parent, so children are still before parents.
        order.sort_by(|&x, &y| self.heights[x].total_cmp(&self.heights[y]));
        let mut name: Vec<usize> = (0..self.n_nodes()).collect();
        let mut rows = Vec::with_capacity(order.len());
        for (row, &merge) in order.iter().enumerate() {
            name[self.n + merge] = self.n + row;
            let [a, b] = self.merges[merge].map(|child| name[child as usize] as f64);
            rows.push([a.min(b), a.max(b), self.heights[merge], self.sizes[merge].into()]);
        }
        rows
    }

    /// Cluster of each leaf when every node with a height of at least `height` is split, counted in leaf order.
    pub fn cut(&self, height: f64) -> Result<Vec<i64>> {
        if height.is_nan() || height < 0.0 {
            return Err(Error::BadHeight { height });
        }
        let mut starts = vec![true; self.n];
        for (merge, _) in self.heights.iter().enumerate().filter(|(_, &own)| own < height) {
            // The children of a merge that is not split are one cluster: the second one does not start a new label.
            let second = self.merges[merge].map(|child| self.begins[child as usize]).into_iter().max();
            starts[second.unwrap_or_default() as usize] = false;
        }
        let mut labels = vec![0; self.n];
        let mut label = -1;
        for (&leaf, start) in self.leaf_order.iter().zip(starts) {
            label += i64::from(start);
            labels[leaf as usize] = label;
        }
        Ok(labels)
    }
}

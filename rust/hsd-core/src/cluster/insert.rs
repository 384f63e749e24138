//! A set that grows: new prompts join a tree whose clusters stay as they are.
//!
//! The new leaves are first clustered among themselves. Then the agglomeration is followed as if the old tree stood: at
//! height t its clusters are the nodes whose height is at most t and whose parent's is more. A new cluster `u` and an old
//! one `c` meet at the largest of their distance and their two heights, if `c` has not been joined to another by then.
//! Each new cluster joins the old one that it meets first, unless it meets another new one before. Within these rules
//! nothing is approximate: all distances of clusters are those of the linkage.
//!
//! Every distance of `u` and `c` follows from what both are by themselves, which the scores of their trees tell, and from
//! one number across the two: a sum (or the maximum) over all pairs of members. The sums of one `u` with all `c` are one
//! pass over the tree, each node after its children. So a new cluster costs the distances of its members to all old
//! leaves, and time linear in the old nodes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::centroid::joined_length;
use super::distance::{Block, Points, Tile, BLOCK};
use super::embeddings::{mean_of_sample, Embeddings};
use super::exact;
use super::linkage::{Definition, Linkage};
use super::matrix::Storage;
use super::metric::Metric;
use crate::error::{reserve, Error, Result};
use crate::tree::Tree;
use crate::work::parallel::{runs, share, Task};
use crate::work::progress::Progress;
use crate::work::simd::widest;

/// New leaves whose distances are computed at a time hold this many bytes of them, unless that are very few or many.
const ROWS: usize = 64 << 20;

/// The fewest of them: each time, all old rows are read.
const FEWEST: usize = 16;

/// Share of the work that clustering the new leaves among themselves is, as far as progress is concerned.
const AMONG: f64 = 0.2;

/// Share of a block that its leaves are; the rest is what is joined of them.
const LEAVES: f64 = 0.8;

impl Tree {
    /// This tree with new leaves, by its own linkage and the metric of the embeddings.
    ///
    /// `embeddings` are the rows of this tree's leaves, in order, and then of at least one new leaf. Leaf `i` remains
    /// leaf `i`, and the heights and the order of all that is old remain: the tree restricted to the old leaves is this
    /// one. (If the metric is not the one that it was built with, that still holds.)
    ///
    /// Where merges of infinite score join several parts, a new leaf joins only parts that hold an old leaf of its group.
    /// New leaves of different groups are never in one cluster of finite height. Those whose group no part holds are a
    /// tree of their own, joined to the rest by a merge of infinite score.
    pub fn insert(
        &self,
        embeddings: &Embeddings<'_>,
        groups: &[i64],
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Tree> {
        let (n, rows) = (self.n_leaves(), embeddings.len());
        if rows <= n {
            return Err(Error::NoNewRows { rows, leaves: n });
        }
        if groups.len() != rows {
            return Err(Error::Length { what: "groups", found: groups.len(), expected: rows });
        }
        let Ok(linkage) = self.linkage().parse::<Linkage>() else {
            return Err(Error::NoSuchGrowth { linkage: self.linkage().to_owned(), choices: &Linkage::NAMES });
        };
        let definition = linkage.definition(embeddings.metric())?;
        let work = Work { old: self, embeddings, definition, threads };
        let (families, strangers) = families(self, groups)?;
        let mut growth = Growth::new(rows);
        // For each old node, the clusters that join it: score, lowest leaf, id.
        let mut guests: BTreeMap<u32, Vec<(f64, u32, i64)>> = BTreeMap::new();
        let mut done = 0;
        let mut part =
            |count: usize, progress: &mut Progress<'_>, work: &mut dyn FnMut(&mut Progress<'_>) -> Result<()>| {
                let begin = done as f64 / (rows - n) as f64;
                done += count;
                progress.part(begin, done as f64 / (rows - n) as f64, |progress| work(progress))
            };
        for Family { parts, rows } in families {
            part(rows.len(), progress, &mut |progress| work.join(&parts, &rows, &mut growth, &mut guests, progress))?;
        }
        let mut alone = Vec::with_capacity(strangers.len());
        for rows in strangers {
            part(rows.len(), progress, &mut |progress| {
                let tree = work.among(&rows, progress)?;
                let names = growth.copy(&tree, &rows, |_| true);
                alone.push(names[tree.root()]);
                Ok(())
            })?;
        }
        // The old nodes, each with what joins it.
        let mut names: Vec<i64> = Vec::with_capacity(self.n_nodes());
        for node in 0..self.n_nodes() {
            let mut name = match node.checked_sub(n) {
                None => node as i64,
                Some(merge) => {
                    let [a, b] = self.merges()[merge].map(|child| names[child as usize]);
                    growth.merge(a, b, self.scores()[merge])
                }
            };
            let mut guests = guests.remove(&(node as u32)).unwrap_or_default();
            guests.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
            for (score, _, guest) in guests {
                name = growth.merge(name, guest, score);
            }
            names.push(name);
        }
        let mut trunk = names[self.root()];
        for root in alone {
            trunk = growth.merge(trunk, root, f64::INFINITY);
        }
        progress.finish()?;
        let tree = Tree::from_merges(&growth.merges, growth.scores, self.linkage())?;
        Ok(if self.exact() { tree } else { tree.approximate() })
    }
}

/// The new rows of one group, and the parts of the old tree that they may join, by their place in the leaf order.
struct Family {
    parts: Vec<u32>,
    rows: Vec<u32>,
}

/// The groups of the new leaves that some part holds, and the rows of each of the others; both by their lowest new leaf.
fn families(tree: &Tree, groups: &[i64]) -> Result<(Vec<Family>, Vec<Vec<u32>>)> {
    let n = tree.n_leaves();
    let mut new: BTreeMap<i64, Family> = BTreeMap::new();
    for (row, &group) in groups.iter().enumerate().skip(n) {
        let family = new.entry(group).or_insert_with(|| Family { parts: Vec::new(), rows: Vec::new() });
        family.rows.push(row as u32);
    }
    // The largest node of finite height above each node.
    let mut part: Vec<Option<u32>> = vec![None; tree.n_nodes()];
    for node in (0..tree.n_nodes()).rev() {
        let is_finite = tree.height(node).is_none_or(f64::is_finite);
        let above = tree.parent(node).and_then(|parent| part[parent]);
        part[node] = above.or(is_finite.then_some(node as u32));
    }
    // The group of new leaves that each part takes.
    let mut taken: BTreeMap<u32, (i64, usize)> = BTreeMap::new();
    for &leaf in tree.leaf_order() {
        let (leaf, group) = (leaf as usize, groups[leaf as usize]);
        let (Some(family), Some(part)) = (new.get_mut(&group), part[leaf]) else { continue };
        match taken.insert(part, (group, leaf)) {
            None => family.parts.push(part),
            Some((other, _)) if other == group => {}
            Some((_, other)) => return Err(Error::MixedGroups { leaves: [other.min(leaf), other.max(leaf)] }),
        }
    }
    let mut families: Vec<Family> = new.into_values().collect();
    families.sort_by_key(|family| family.rows[0]);
    let (known, others): (Vec<Family>, Vec<Family>) = families.into_iter().partition(|family| !family.parts.is_empty());
    Ok((known, others.into_iter().map(|family| family.rows).collect()))
}

/// The merges of the new tree.
struct Growth {
    n: usize,
    merges: Vec<[i64; 2]>,
    scores: Vec<f64>,
}

impl Growth {
    /// Of `n` leaves, old and new.
    fn new(n: usize) -> Self {
        Growth { n, merges: Vec::with_capacity(n - 1), scores: Vec::with_capacity(n - 1) }
    }

    /// Joins two clusters; the id of the joined one.
    fn merge(&mut self, a: i64, b: i64, score: f64) -> i64 {
        self.merges.push([a.min(b), a.max(b)]);
        self.scores.push(score);
        (self.n + self.merges.len() - 1) as i64
    }

    /// Adds the merges of `tree`, whose leaves are `rows`, that `stay`. The id of each of its nodes; 0 of one that does not
    /// stay.
    fn copy(&mut self, tree: &Tree, rows: &[u32], stays: impl Fn(usize) -> bool) -> Vec<i64> {
        let mut names: Vec<i64> = rows.iter().map(|&row| row.into()).collect();
        for (merge, (pair, &score)) in tree.merges().iter().zip(tree.scores()).enumerate() {
            let [a, b] = pair.map(|child| names[child as usize]);
            names.push(if stays(rows.len() + merge) { self.merge(a, b, score) } else { 0 });
        }
        names
    }
}

/// Some rows of the embeddings as points.
struct Chosen<'a> {
    embeddings: &'a Embeddings<'a>,
    rows: Vec<u32>,
    centre: Vec<f64>,
}

impl Points for Chosen<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn columns(&self) -> usize {
        self.embeddings.columns()
    }

    fn metric(&self) -> Metric {
        self.embeddings.metric()
    }

    fn centre(&self) -> &[f64] {
        &self.centre
    }

    fn read(&self, i: usize, out: &mut [f64]) {
        self.embeddings.read(self.rows[i] as usize, out);
    }

    fn spread(&self, _: usize) -> f64 {
        0.0
    }
}

/// What a cluster is by itself, as far as its distances depend on it.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    /// Number of leaves.
    size: f64,
    /// Sum of the weights of its leaves.
    weight: f64,
    /// What the linkage has to know besides; see [`Across::joined`].
    value: f64,
}

/// How a linkage's distance of two clusters follows from one number across them.
trait Across: Sync {
    /// Whether a leaf's weight is the length of its row. Otherwise all weights are 1.
    const LENGTHS: bool = false;

    /// The number across one cluster and the two parts of another, from those of the parts.
    fn both(x: f64, y: f64) -> f64 {
        x + y
    }

    /// The value of a leaf of this weight.
    fn leaf(_weight: f64) -> f64 {
        0.0
    }

    /// The value of a joined cluster.
    fn joined(_a: Cluster, _b: Cluster, _score: f64) -> f64 {
        0.0
    }

    /// The distance of two clusters, of the number across them.
    fn distance(across: f64, c: Cluster, u: Cluster) -> f64;
}

/// The value is V, the sum of the squared distances of all pairs of members by the size; across is the sum of squared
/// distances. A join of score s makes V of the two and s²/2 of them. That holds for any distances: it is what the
/// Lance-Williams update of Ward's linkage comes to.
struct Ward;

impl Across for Ward {
    fn joined(a: Cluster, b: Cluster, score: f64) -> f64 {
        a.value + b.value + score * score / 2.0
    }

    #[inline(always)]
    fn distance(across: f64, c: Cluster, u: Cluster) -> f64 {
        // 2 (V of both - V of c - V of u), without the terms that cancel.
        (2.0 * (across - u.size * c.value - c.size * u.value) / (c.size + u.size)).max(0.0).sqrt()
    }
}

/// Across is the sum of distances.
struct Average;

impl Across for Average {
    #[inline(always)]
    fn distance(across: f64, c: Cluster, u: Cluster) -> f64 {
        across / (c.size * u.size)
    }
}

/// Across is the largest distance.
struct Complete;

impl Across for Complete {
    #[inline(always)]
    fn both(x: f64, y: f64) -> f64 {
        if x > y {
            x
        } else {
            y
        }
    }

    #[inline(always)]
    fn distance(across: f64, _: Cluster, _: Cluster) -> f64 {
        across
    }
}

/// The value is the length of the sum of the rows; across is the sum of distances, weighted by both lengths.
struct Centroid;

impl Across for Centroid {
    const LENGTHS: bool = true;

    fn leaf(weight: f64) -> f64 {
        weight
    }

    fn joined(a: Cluster, b: Cluster, score: f64) -> f64 {
        joined_length(a.value, b.value, score)
    }

    #[inline(always)]
    fn distance(across: f64, c: Cluster, u: Cluster) -> f64 {
        // A sum of length zero has no direction: it is as far as one at a right angle.
        let lengths = c.value * u.value;
        if lengths > 0.0 {
            (1.0 - (c.weight * u.weight - across) / lengths).clamp(0.0, 2.0)
        } else {
            1.0
        }
    }
}

/// An old cluster that a new one may join.
#[derive(Debug, Clone, Copy)]
struct Host {
    node: u32,
    /// Where its leaves begin.
    begin: u32,
    is_leaf: bool,
    cluster: Cluster,
    height: f64,
    /// The height of its parent, infinite if that is no part of the same part: from there on it is no cluster any more.
    above: f64,
}

/// Where and when a new cluster meets an old one first.
#[derive(Debug, Clone, Copy)]
struct Meeting {
    /// Its place in the list of hosts.
    host: usize,
    /// The height at which they meet.
    key: f64,
}

/// The numbers across a new cluster and each old leaf, by place.
enum Row {
    /// Of a leaf, without its weight.
    Leaf(Vec<f32>),
    /// Of a joined cluster.
    Joined(Vec<f64>),
}

/// A new cluster: what it is, its height, and its weight if its row lacks that.
struct Guest {
    cluster: Cluster,
    height: f64,
    scale: f64,
}

/// What does not change while groups are inserted.
struct Work<'a> {
    old: &'a Tree,
    embeddings: &'a Embeddings<'a>,
    definition: Definition,
    threads: usize,
}

impl Work<'_> {
    /// The exact tree of some rows.
    fn among(&self, rows: &[u32], progress: &mut Progress<'_>) -> Result<Tree> {
        let embeddings = self.embeddings;
        let mut points = Chosen { embeddings, rows: rows.to_vec(), centre: Vec::new() };
        points.centre = mean_of_sample(&points);
        let lengths: Vec<f64> = rows.iter().map(|&row| embeddings.lengths()[row as usize]).collect();
        let units = |distance| embeddings.in_units(distance);
        exact::build_of(&points, &lengths, &units, self.definition, Storage::Whole, self.threads, progress)
    }

    /// Lets new leaves `rows` join `parts`: adds their own merges that stay, and for each old node what joins it.
    fn join(
        &self,
        parts: &[u32],
        rows: &[u32],
        growth: &mut Growth,
        guests: &mut BTreeMap<u32, Vec<(f64, u32, i64)>>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let new = progress.part(0.0, AMONG, |progress| self.among(rows, progress))?;
        let (hosts, meetings) = progress.part(AMONG, 1.0, |progress| match self.definition.linkage {
            Linkage::Ward => self.meet::<Ward>(parts, &new, rows, progress),
            Linkage::Average => self.meet::<Average>(parts, &new, rows, progress),
            Linkage::Complete => self.meet::<Complete>(parts, &new, rows, progress),
            Linkage::Centroid => self.meet::<Centroid>(parts, &new, rows, progress),
        })?;
        let names = growth.copy(&new, rows, |node| meetings[node].is_some());
        for (node, meeting) in meetings.iter().enumerate() {
            let Some(meeting) = meeting.filter(|_| new.parent(node).is_none_or(|parent| meetings[parent].is_none()))
            else {
                continue; // Not whole, or below one that is.
            };
            let host = hosts[meeting.host].node as usize;
            // In the units of the scores, where neither height is rounded.
            let height = |tree: &Tree, node: Option<usize>| node.and_then(|node| tree.height(node)).unwrap_or(0.0);
            let least = height(self.old, Some(host)).max(height(&new, Some(node)));
            let most = self.old.parent(host).and_then(|parent| self.old.height(parent)).unwrap_or(f64::INFINITY);
            let score = self.embeddings.in_units(meeting.key).max(least).min(most);
            let lowest = rows[new.leaf_order()[new.range(node).0 as usize] as usize];
            guests.entry(host as u32).or_default().push((score, lowest, names[node]));
        }
        Ok(())
    }

    /// For each node of the tree `new` that stays whole, where it meets an old cluster first.
    ///
    /// A node stays whole if both its children do, and these meet before either meets an old cluster.
    fn meet<A: Across>(
        &self,
        parts: &[u32],
        new: &Tree,
        rows: &[u32],
        progress: &mut Progress<'_>,
    ) -> Result<(Vec<Host>, Vec<Option<Meeting>>)> {
        let weights = |rows: &mut dyn Iterator<Item = u32>| -> Vec<f64> {
            rows.map(|row| if A::LENGTHS { self.embeddings.lengths()[row as usize] } else { 1.0 }).collect()
        };
        let old_weights = weights(&mut (0..self.old.n_leaves() as u32));
        let new_weights = weights(&mut rows.iter().copied());
        let hosts = self.hosts(parts, &self.clusters::<A>(self.old, &old_weights));
        let clusters = self.clusters::<A>(new, &new_weights);
        let guest = |node: usize| {
            let cluster = clusters[node];
            let height = self.embeddings.of_units(new.height(node).unwrap_or(0.0));
            Guest { cluster, height, scale: if node < rows.len() { cluster.weight } else { 1.0 } }
        };
        let order = larger_first(new);
        let leaves: Vec<u32> = order.iter().copied().filter(|&node| (node as usize) < rows.len()).collect();
        // Old leaves by place, then the new ones in the order in which they are needed.
        let old_leaves: Vec<u32> = hosts.iter().filter(|host| host.is_leaf).map(|host| host.node).collect();
        let n_old = old_leaves.len();
        let chosen = old_leaves.into_iter().chain(leaves.iter().map(|&leaf| rows[leaf as usize])).collect();
        let points = Chosen { embeddings: self.embeddings, rows: chosen, centre: self.embeddings.centre().to_vec() };
        let at_once = (ROWS / (n_old * size_of::<f32>())).clamp(FEWEST, BLOCK);
        let mut meetings: Vec<Option<Meeting>> = vec![None; new.n_nodes()];
        let mut kept: Vec<Option<Row>> = (0..new.n_nodes()).map(|_| None).collect();
        let mut open: Vec<f64> = Vec::new();
        let mut seen = 0;
        let mut block = 0..0;
        for &node in &order {
            let node = node as usize;
            // Leaves of the block first, then what is joined of them.
            let at = |leaf: usize| leaf as f64 / leaves.len() as f64;
            let middle = |block: &Range<usize>| at(block.start) + LEAVES * at(block.len());
            if !block.is_empty() {
                let begin = middle(&block);
                progress.part(begin, at(block.end), |progress| progress.at(seen - block.start, block.len()))?;
            }
            if let Some(merge) = node.checked_sub(rows.len()) {
                let [a, b] = new.merges()[merge].map(|child| child as usize);
                let (one, other) = (kept[a].take(), kept[b].take());
                let own = guest(node);
                let meets = |child: usize| meetings[child].is_some_and(|meeting| meeting.key >= own.height);
                if let (true, Some(one), Some(other)) = (meets(a) && meets(b), one, other) {
                    let row = joined_row::<A>((one, guest(a).scale), (other, guest(b).scale));
                    meetings[node] = nearest::<A, f64>(&hosts, &row, &own, &mut open);
                    kept[node] = Some(Row::Joined(row));
                }
            } else {
                if seen == block.end {
                    block = seen..(seen + at_once).min(leaves.len());
                    let nodes: Vec<usize> = leaves[block.clone()].iter().map(|&leaf| leaf as usize).collect();
                    progress.part(at(seen), middle(&block), |progress| {
                        let new = n_old + block.start..n_old + block.end;
                        let rows = self.rows(&points, n_old, new, progress)?;
                        let met = self.nearest_of_all::<A>(&hosts, &rows, &nodes, &guest, progress)?;
                        for ((leaf, row), met) in nodes.into_iter().zip(rows).zip(met) {
                            (kept[leaf], meetings[leaf]) = (Some(Row::Leaf(row)), met);
                        }
                        Ok(())
                    })?;
                }
                seen += 1;
            }
        }
        Ok((hosts, meetings))
    }

    /// What each node of a tree is by itself, in the units of points.
    fn clusters<A: Across>(&self, tree: &Tree, weights: &[f64]) -> Vec<Cluster> {
        let leaf = |&weight: &f64| Cluster { size: 1.0, weight, value: A::leaf(weight) };
        let mut clusters: Vec<Cluster> = weights.iter().map(leaf).collect();
        for (pair, &score) in tree.merges().iter().zip(tree.scores()) {
            let [a, b] = pair.map(|child| clusters[child as usize]);
            let value = A::joined(a, b, self.embeddings.of_units(score));
            clusters.push(Cluster { size: a.size + b.size, weight: a.weight + b.weight, value });
        }
        clusters
    }

    /// The nodes of the parts, each after its children, and leaves in leaf order.
    fn hosts(&self, parts: &[u32], clusters: &[Cluster]) -> Vec<Host> {
        let tree = self.old;
        let mut hosts = Vec::new();
        let mut begin = 0;
        for &part in parts {
            let offset = begin - i64::from(tree.range(part as usize).0);
            // From the last node to the first: a node, then its later child with all that is below it, then the other.
            let first = hosts.len();
            let mut open = vec![part];
            while let Some(node) = open.pop() {
                let at = node as usize;
                if let Some(merge) = at.checked_sub(tree.n_leaves()) {
                    let mut children = tree.merges()[merge];
                    children.sort_unstable_by_key(|&child| tree.range(child as usize).0);
                    open.extend(children);
                }
                let above = tree.parent(at).and_then(|parent| tree.height(parent)).unwrap_or(f64::INFINITY);
                hosts.push(Host {
                    node,
                    begin: (i64::from(tree.range(at).0) + offset) as u32,
                    is_leaf: at < tree.n_leaves(),
                    cluster: clusters[at],
                    height: self.embeddings.of_units(tree.height(at).unwrap_or(0.0)),
                    above: self.embeddings.of_units(above),
                });
            }
            hosts[first..].reverse();
            let (from, to) = tree.range(part as usize);
            begin += i64::from(to - from);
        }
        hosts
    }

    /// The numbers across each of some new points and the first `n_old` points.
    fn rows(
        &self,
        points: &Chosen<'_>,
        n_old: usize,
        new: Range<usize>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(new.len());
        for _ in new.clone() {
            let mut row = reserve("the distances of new prompts", n_old)?;
            row.resize(n_old, 0.0f32);
            rows.push(row);
        }
        let term: fn(f32) -> f32 = match (self.definition.linkage, self.embeddings.metric()) {
            (Linkage::Ward, Metric::Cosine) => |cell| cell * cell,
            // A tile holds half of each squared distance.
            (Linkage::Ward, Metric::Euclidean) => |cell| 2.0 * cell,
            (Linkage::Average | Linkage::Complete | Linkage::Centroid, Metric::Cosine) => |cell| cell,
            (Linkage::Average | Linkage::Complete | Linkage::Centroid, Metric::Euclidean) => |cell| (2.0 * cell).sqrt(),
        };
        let mut ours = Block::default();
        ours.load(points, new);
        let mut bands: Vec<(Range<usize>, Vec<&mut [f32]>)> =
            runs(n_old, BLOCK).map(|band| (band, Vec::new())).collect();
        for row in &mut rows {
            bands.iter_mut().zip(row.chunks_mut(BLOCK)).for_each(|((_, cells), part)| cells.push(part));
        }
        let tasks = bands.into_iter().map(|band| Task { cost: band.0.len(), item: band }).collect();
        let work = |(theirs, tile): &mut (Block, Tile), (band, mut cells): (Range<usize>, Vec<&mut [f32]>), _: &_| {
            theirs.load(points, band);
            tile.fill(points, &ours, theirs);
            for (to, from) in cells.iter_mut().zip(tile.rows()) {
                to.iter_mut().zip(from).for_each(|(to, &cell)| *to = term(cell));
            }
        };
        progress.part(0.0, 0.7, |progress| share(self.threads, tasks, progress, Default::default, work))?;
        Ok(rows)
    }

    /// [`nearest`] of leaves `block`, whose numbers across are `rows`.
    fn nearest_of_all<A: Across>(
        &self,
        hosts: &[Host],
        rows: &[Vec<f32>],
        block: &[usize],
        guest: &(impl Fn(usize) -> Guest + Sync),
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Option<Meeting>>> {
        let mut met = vec![None; block.len()];
        let tasks = rows.iter().zip(block).zip(&mut met).map(|item| Task { cost: 1, item }).collect();
        let work = |open: &mut Vec<f64>, ((row, &leaf), met): ((&Vec<f32>, &usize), &mut Option<Meeting>), _: &_| {
            *met = nearest::<A, f32>(hosts, row, &guest(leaf), open);
        };
        progress.part(0.7, 1.0, |progress| share(self.threads, tasks, progress, Vec::new, work))?;
        Ok(met)
    }
}

/// The nodes of a tree, each after its children, and the child with more leaves first: then few rows are held at a time.
fn larger_first(tree: &Tree) -> Vec<u32> {
    let size = |node: u32| tree.range(node as usize).1 - tree.range(node as usize).0;
    let mut order = Vec::with_capacity(tree.n_nodes());
    let mut open = vec![tree.root() as u32];
    while let Some(node) = open.pop() {
        order.push(node);
        if let Some(merge) = (node as usize).checked_sub(tree.n_leaves()) {
            let [a, b] = tree.merges()[merge];
            // The order is turned round at the end.
            open.extend(if size(a) < size(b) { [b, a] } else { [a, b] });
        }
    }
    order.reverse();
    order
}

/// The row of a joined cluster, of those of its parts and their scales.
fn joined_row<A: Across>(one: (Row, f64), other: (Row, f64)) -> Vec<f64> {
    let (mut sum, (other, scale)) = match (one, other) {
        ((Row::Joined(row), _), other) | (other, (Row::Joined(row), _)) => (row, other),
        ((Row::Leaf(row), scale), other) => (row.iter().map(|&x| scale * f64::from(x)).collect(), other),
    };
    match other {
        Row::Leaf(row) => {
            widest(|| sum.iter_mut().zip(&row).for_each(|(to, &x)| *to = A::both(*to, scale * f64::from(x))))
        }
        Row::Joined(row) => widest(|| sum.iter_mut().zip(&row).for_each(|(to, &x)| *to = A::both(*to, x))),
    }
    sum
}

/// Where a new cluster meets an old one first. Among equals, the one whose leaves begin first, and of these the smallest.
///
/// `open` is scratch: the numbers across the new cluster and those nodes whose parent has not been reached.
fn nearest<A: Across, T: Copy + Into<f64>>(
    hosts: &[Host],
    row: &[T],
    guest: &Guest,
    open: &mut Vec<f64>,
) -> Option<Meeting> {
    let mut best: Option<Meeting> = None;
    let mut least = f64::INFINITY;
    let mut leaves = row.iter();
    open.clear();
    for (at, host) in hosts.iter().enumerate() {
        let across = if host.is_leaf {
            leaves.next().map_or(0.0, |&x| guest.scale * x.into() * host.cluster.weight)
        } else {
            let (y, x) = (open.pop().unwrap_or(0.0), open.pop().unwrap_or(0.0));
            A::both(x, y)
        };
        open.push(across);
        if host.height > least || guest.height > host.above {
            continue;
        }
        let key = A::distance(across, host.cluster, guest.cluster).max(host.height).max(guest.height);
        if key > host.above || key > least {
            continue;
        }
        let rank = |host: &Host| (host.begin, host.cluster.size);
        if key < least || best.is_none_or(|best| rank(host) < rank(&hosts[best.host])) {
            (best, least) = (Some(Meeting { host: at, key }), key);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use ndarray::Array2;

    use super::*;
    use crate::cluster::{build_tree, Method, Resources};

    /// Inserts 60 rows of two groups, one of which is new, by each linkage and metric.
    fn each_way(mut check: impl FnMut(&mut dyn FnMut(&mut Progress<'_>) -> Result<Tree>)) {
        let (n, new) = (700, 60);
        let rows =
            Array2::from_shape_fn((n + new, 5), |(i, j)| ((i * 7919 + j * 104_729 + i * j) % 1009) as f64 - 500.3);
        let groups: Vec<i64> = (0..n + new).map(|row| i64::from(row >= n + 50)).collect();
        let kinds = Metric::ALL.into_iter().flat_map(|metric| Linkage::ALL.map(|linkage| (linkage, metric)));
        for (linkage, metric) in kinds.filter(|(linkage, metric)| linkage.definition(*metric).is_ok()) {
            let watch = &mut Progress::unwatched();
            let old: Vec<usize> = (0..n).collect();
            let old = Embeddings::of_rows(rows.view(), |x| x, metric, &old, 2, watch).unwrap();
            let resources = Resources { threads: 2, memory: usize::MAX };
            let tree = build_tree(&old, linkage, Method::Exact, resources, watch).unwrap();
            let all = Embeddings::new(rows.view(), |x| x, metric, 2, watch).unwrap();
            check(&mut |progress| tree.insert(&all, &groups, 2, progress));
        }
    }

    #[test]
    fn every_fraction_is_over_the_one_before() {
        each_way(|work| {
            let mut seen = Vec::new();
            let mut report = |fraction| {
                seen.push(fraction);
                ControlFlow::Continue(())
            };
            work(&mut Progress::eager(&mut report)).unwrap();
            let falls: Vec<_> = seen.windows(2).filter(|pair| pair[1] < pair[0]).collect();
            assert!(falls.is_empty(), "{falls:?}");
            assert!(seen.len() > 20 && seen.last() == Some(&1.0), "{seen:?}");
        });
    }

    #[test]
    fn any_report_can_stop_the_work() {
        each_way(|work| {
            for last in (0..20).step_by(3) {
                let mut seen = 0;
                let mut report = |_| {
                    seen += 1;
                    if seen > last {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                };
                assert_eq!(work(&mut Progress::eager(&mut report)).unwrap_err(), Error::Interrupted);
                assert_eq!(seen, last + 1, "it went on after it was told to stop");
            }
        });
    }
}

//! Trees that grow: old clusters stay, and new ones join where the definition says.

mod common;

use std::collections::BTreeSet;

use common::{build, build_with, grouped, kind, kinds, rows, table, tied_rows, tree, Kind, PLENTY};
use hsd_core::cluster::naive::distance_of;
use hsd_core::{Embeddings, Error, Linkage, Method, Metric, Progress, Resources, Result, Tree};
use proptest::prelude::*;

/// Inserts the rows after the leaves of a tree, with this number of threads.
fn insert(tree: &Tree, rows: &[Vec<f64>], groups: &[i64], metric: Metric, threads: usize) -> Result<Tree> {
    let table = table(rows);
    let watch = &mut Progress::unwatched();
    let embeddings = Embeddings::new(table.view(), |x| x, metric, threads, watch)?;
    tree.insert(&embeddings, groups, threads, watch)
}

/// A tree with the children of each merge in ascending order.
fn ordered(n: usize, merges: &[[i64; 2]], scores: &[f64], linkage: &str) -> Tree {
    assert_eq!(n, merges.len() + 1);
    let merges: Vec<[i64; 2]> = merges.iter().map(|&[a, b]| [a.min(b), a.max(b)]).collect();
    Tree::from_merges(&merges, scores.to_vec(), linkage).unwrap()
}

/// The tree without the leaves from `n` on; every old node has to have its old height.
fn restricted(tree: &Tree, n: usize) -> (Tree, Vec<f64>) {
    let mut old: Vec<Option<i64>> = (0..tree.n_leaves()).map(|leaf| (leaf < n).then_some(leaf as i64)).collect();
    let (mut merges, mut scores, mut heights) = (Vec::new(), Vec::new(), Vec::new());
    for (merge, &[a, b]) in tree.merges().iter().enumerate() {
        old.push(match (old[a as usize], old[b as usize]) {
            (Some(a), Some(b)) => {
                merges.push([a, b]);
                scores.push(tree.scores()[merge]);
                heights.push(tree.heights()[merge]);
                Some((n + merges.len() - 1) as i64)
            }
            (one, other) => one.or(other),
        });
    }
    (ordered(n, &merges, &scores, tree.linkage()), heights)
}

fn check_old(old: &Tree, new: &Tree) {
    let n = old.n_leaves();
    let merges: Vec<[i64; 2]> = old.merges().iter().map(|pair| pair.map(i64::from)).collect();
    let (part, heights) = restricted(new, n);
    assert_eq!(part, ordered(n, &merges, old.scores(), old.linkage()));
    assert_eq!(heights, old.heights());
    let order: Vec<u32> = new.leaf_order().iter().copied().filter(|&leaf| (leaf as usize) < n).collect();
    assert_eq!(order, old.leaf_order());
    assert_eq!((new.linkage(), new.exact()), (old.linkage(), old.exact()));
}

/// The leaves below each node.
fn members(tree: &Tree) -> Vec<BTreeSet<usize>> {
    (0..tree.n_nodes())
        .map(|node| {
            let (begin, end) = tree.range(node);
            tree.leaf_order()[begin as usize..end as usize].iter().map(|&leaf| leaf as usize).collect()
        })
        .collect()
}

/// The linkage's distance of two clusters, from the rows of their members.
fn distance(rows: &[Vec<f64>], kind: Kind, u: &BTreeSet<usize>, c: &BTreeSet<usize>) -> f64 {
    let d = |&i: &usize, &j: &usize| distance_of(kind.metric, &rows[i], &rows[j]);
    let across = || u.iter().flat_map(|i| c.iter().map(move |j| d(i, j)));
    match kind.linkage {
        Linkage::Complete => across().fold(0.0, f64::max),
        Linkage::Average => across().sum::<f64>() / (u.len() * c.len()) as f64,
        Linkage::Centroid => {
            let sum = |set: &BTreeSet<usize>| -> Vec<f64> {
                (0..rows[0].len()).map(|column| set.iter().map(|&i| rows[i][column]).sum()).collect()
            };
            distance_of(kind.metric, &sum(u), &sum(c))
        }
        Linkage::Ward => {
            let spread = |set: &BTreeSet<usize>| {
                set.iter().flat_map(|i| set.iter().map(move |j| d(i, j).powi(2))).sum::<f64>() / 2.0 / set.len() as f64
            };
            let both: BTreeSet<usize> = u | c;
            (2.0 * (spread(&both) - spread(u) - spread(c))).max(0.0).sqrt()
        }
    }
}

/// Checks everything that joins `old` in `new` against the definition, by exhaustive search. All leaves are of one group,
/// and `old` is one tree of finite height.
fn check_against_definition(old: &Tree, new: &Tree, rows: &[Vec<f64>], kind: Kind) {
    const CLOSE: f64 = 2e-4;
    let n = old.n_leaves();
    let own = build(&rows[n..], kind).unwrap();
    let (old_sets, new_sets) = (members(old), members(new));
    let own_sets: Vec<BTreeSet<usize>> =
        members(&own).iter().map(|set| set.iter().map(|leaf| leaf + n).collect()).collect();
    let height = |tree: &Tree, node: usize| tree.height(node).unwrap_or(0.0);
    let above = |tree: &Tree, node: usize| tree.parent(node).map_or(f64::INFINITY, |parent| height(tree, parent));
    let key =
        |u: usize, c: usize| distance(rows, kind, &own_sets[u], &old_sets[c]).max(height(old, c)).max(height(&own, u));
    let best = |u: usize| -> f64 {
        let keys = (0..old.n_nodes()).map(|c| (key(u, c), above(old, c)));
        keys.filter(|(key, above)| key <= above).map(|(key, _)| key).fold(f64::INFINITY, f64::min)
    };
    let is_old = |set: &BTreeSet<usize>| set.first().is_some_and(|&leaf| leaf < n);
    let mut is_whole = vec![false; own.n_nodes()];
    for (merge, &[a, b]) in new.merges().iter().enumerate() {
        let [a, b] = [a as usize, b as usize];
        let (guest, host) = match (is_old(&new_sets[a]), is_old(&new_sets[b])) {
            (true, false) => (b, a),
            (false, true) => (a, b),
            _ => continue,
        };
        let u =
            own_sets.iter().position(|set| *set == new_sets[guest]).expect("a cluster of the new leaves themselves");
        let host: BTreeSet<usize> = new_sets[host].iter().copied().filter(|&leaf| leaf < n).collect();
        let c = old_sets.iter().position(|set| *set == host).expect("an old cluster");
        let score = new.scores()[merge];
        assert!((score - key(u, c)).abs() < CLOSE, "{kind:?}: {score} is not {}", key(u, c));
        assert!(score <= above(old, c) && score >= height(old, c));
        assert!((score - best(u)).abs() < CLOSE, "{kind:?}: {score}, but the best is {}", best(u));
        for (node, set) in own_sets.iter().enumerate() {
            is_whole[node] |= set.is_subset(&own_sets[u]);
        }
    }
    assert!(is_whole[..rows.len() - n].iter().all(|whole| *whole));
    for (merge, &[a, b]) in own.merges().iter().enumerate() {
        let (node, [a, b]) = (rows.len() - n + merge, [a as usize, b as usize]);
        let first = best(a).min(best(b));
        if is_whole[node] {
            assert!(first >= height(&own, node) - CLOSE, "{kind:?}: {first} is before {}", height(&own, node));
        } else if is_whole[a] && is_whole[b] {
            assert!(first < height(&own, node) + CLOSE, "{kind:?}: {first} is after {}", height(&own, node));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_the_tree_is_old_clusters_stay_and_groups_are_apart(
        old in tree(16), kind in kind(), (rows, extra) in (tied_rows(24), 1..8usize), picks in any::<[u8; 32]>(),
    ) {
        let n = old.n_leaves();
        let merges: Vec<[i64; 2]> = old.merges().iter().map(|pair| pair.map(i64::from)).collect();
        let old = Tree::from_merges(&merges, old.scores().to_vec(), kind.linkage.name()).unwrap();
        let rows: Vec<Vec<f64>> = rows.into_iter().cycle().take(n + extra).collect();
        // Two parts of a group, and more groups than parts.
        let mut groups: Vec<i64> = old.cut(f64::INFINITY).unwrap().into_iter().map(|part| part / 2).collect();
        groups.extend((0..extra).map(|new| i64::from(picks[new % 32] % 4)));
        let new = insert(&old, &rows, &groups, kind.metric, 2).unwrap();
        check_old(&old, &new);
        let parts = new.cut(f64::INFINITY).unwrap();
        for (i, part) in parts.iter().enumerate() {
            for (j, other) in parts.iter().enumerate().filter(|&(_, other)| other == part) {
                prop_assert!(groups[i] == groups[j], "{i} and {j}, {part} and {other}");
            }
        }
        for leaf in n..n + extra {
            let with_old = (0..n).any(|other| parts[other] == parts[leaf]);
            prop_assert_eq!(with_old, groups[..n].contains(&groups[leaf]));
            for other in (n..n + extra).filter(|&other| groups[other] == groups[leaf] && !with_old) {
                prop_assert_eq!(parts[other], parts[leaf]);
            }
        }
        prop_assert_eq!(&insert(&old, &rows, &groups, kind.metric, 1).unwrap(), &new);
    }

    #[test]
    fn new_clusters_join_where_the_definition_says(rows in rows(24), kind in kind(), share in 0.0..1.0f64) {
        prop_assume!(rows.len() > 1);
        let n = ((rows.len() as f64 * share) as usize).clamp(1, rows.len() - 1);
        let old = build(&rows[..n], kind).unwrap();
        let new = insert(&old, &rows, &vec![0; rows.len()], kind.metric, 2).unwrap();
        check_old(&old, &new);
        check_against_definition(&old, &new, &rows, kind);
    }

    #[test]
    fn a_copy_joins_the_leaf_that_it_copies(rows in rows(24), kind in kind(), which in any::<prop::sample::Index>()) {
        let old = build(&rows, kind).unwrap();
        let n = rows.len();
        let mut rows = rows;
        let copied = which.index(n);
        rows.push(rows[copied].clone());
        let new = insert(&old, &rows, &vec![7; n + 1], kind.metric, 2).unwrap();
        let merge = new.parent(n).unwrap() - new.n_leaves();
        prop_assert!(new.merges()[merge].contains(&(copied as u32)), "{:?}", new.merges()[merge]);
        prop_assert!(new.scores()[merge] < 1e-7, "{}", new.scores()[merge]);
        check_old(&old, &new);
    }
}

#[test]
fn many_groups_of_rows_join_by_the_definition() {
    for kind in kinds() {
        let rows = grouped(160, 8, 9, 0.5);
        for n in [100, 159] {
            let old = build(&rows[..n], kind).unwrap();
            let new = insert(&old, &rows, &vec![0; rows.len()], kind.metric, 2).unwrap();
            check_old(&old, &new);
            check_against_definition(&old, &new, &rows, kind);
        }
    }
}

#[test]
fn a_set_of_its_own_is_clustered_as_it_would_be_alone() {
    for kind in kinds() {
        // Far away, and close to each other.
        let centre = grouped(1, 6, 1, 0.0);
        let around = |rows: Vec<Vec<f64>>, side: f64| -> Vec<Vec<f64>> {
            let near = |row: &Vec<f64>| row.iter().zip(&centre[0]).map(|(x, y)| 0.01 * x + side * y).collect();
            rows.iter().map(near).collect()
        };
        let mut rows = around(grouped(40, 6, 4, 0.5), 9.0);
        let far = around(grouped(30, 6, 5, 0.5), -9.0);
        let n = rows.len();
        rows.extend(far);
        let old = build(&rows[..n], kind).unwrap();
        let alone = build(&rows[n..], kind).unwrap();
        for groups in [vec![0; rows.len()], (0..rows.len()).map(|row| i64::from(row >= n)).collect()] {
            let new = insert(&old, &rows, &groups, kind.metric, 2).unwrap();
            check_old(&old, &new);
            let root = new.root() - new.n_leaves();
            let joined = new.merges()[root];
            assert_eq!(new.scores()[root] == f64::INFINITY, groups[n] == 1, "{kind:?}");
            let sets = members(&new);
            assert!(joined.iter().any(|&child| sets[child as usize] == (n..rows.len()).collect()), "{kind:?}");
            let heights: Vec<f64> = (0..new.n_nodes())
                .filter(|&node| sets[node].first().is_some_and(|&leaf| leaf >= n) && sets[node].len() > 1)
                .map(|node| new.height(node).unwrap())
                .collect();
            assert_eq!(heights.len(), alone.heights().len());
            for (one, other) in heights.iter().zip(alone.heights()) {
                assert!((one - other).abs() <= 1e-6 * other, "{kind:?}: {one} is not {other}");
            }
        }
    }
}

#[test]
fn an_approximate_tree_grows_by_its_scores() {
    let rows = grouped(900, 12, 30, 0.6);
    for kind in kinds() {
        let resources = Resources { memory: 300 * 300, ..PLENTY };
        let old = build_with(&rows[..800], kind, Method::Approximate, resources).unwrap();
        let new = insert(&old, &rows, &vec![0; 900], kind.metric, 2).unwrap();
        assert!(!new.exact());
        check_old(&old, &new);
        assert_eq!(insert(&old, &rows, &vec![0; 900], kind.metric, 1).unwrap(), new);
    }
}

#[test]
fn huge_and_tiny_rows_are_as_others() {
    for scale in [1e-160, 1e160] {
        let rows: Vec<Vec<f64>> =
            grouped(60, 4, 5, 0.5).iter().map(|row| row.iter().map(|x| x * scale).collect()).collect();
        for kind in kinds() {
            let old = build(&rows[..50], kind).unwrap();
            let new = insert(&old, &rows, &[0; 60], kind.metric, 2).unwrap();
            check_old(&old, &new);
            assert!(new.scores().iter().all(|score| score.is_finite()));
        }
    }
}

#[test]
fn what_cannot_be_inserted_is_named() {
    let rows = grouped(6, 3, 2, 0.3);
    let old = build(&rows[..4], Linkage::Ward).unwrap();
    let cosine = Metric::Cosine;
    let refused =
        |tree: &Tree, rows: &[Vec<f64>], groups: &[i64], metric| insert(tree, rows, groups, metric, 1).unwrap_err();
    assert_eq!(refused(&old, &rows[..4], &[0; 4], cosine), Error::NoNewRows { rows: 4, leaves: 4 });
    assert_eq!(refused(&old, &rows[..3], &[0; 3], cosine), Error::NoNewRows { rows: 3, leaves: 4 });
    assert_eq!(refused(&old, &rows, &[0; 5], cosine), Error::Length { what: "groups", found: 5, expected: 6 });
    let mixed = Tree::from_merges(&[[0, 1], [2, 3], [4, 5]], vec![1.0, 1.0, f64::INFINITY], "mixed").unwrap();
    let error = refused(&mixed, &rows, &[0; 6], cosine);
    assert_eq!(error, Error::NoSuchGrowth { linkage: "mixed".to_owned(), choices: &Linkage::NAMES });
    let centroid = Tree::from_merges(&[], vec![], "centroid").unwrap();
    assert_eq!(refused(&centroid, &rows[..2], &[0; 2], Metric::Euclidean), Error::NoEuclideanCentroid);
    // Two groups in one part: an error only where both grow.
    let parts = Tree::from_merges(&[[0, 1], [2, 3], [4, 5]], vec![1.0, 1.0, f64::INFINITY], "ward").unwrap();
    let error = refused(&parts, &rows, &[0, 1, 0, 0, 0, 1], cosine);
    assert_eq!(error, Error::MixedGroups { leaves: [0, 1] });
    assert!(insert(&parts, &rows, &[0, 1, 0, 0, 1, 1], cosine, 1).is_ok());
}

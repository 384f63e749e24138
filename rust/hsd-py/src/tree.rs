//! `hsd._core.Tree`.

use std::sync::Arc;

use half::f16;
use hsd_core::cluster::build_tree;
use hsd_core::plan::schedule;
use hsd_core::{Embeddings, Error, Linkage, Method, Metric, Progress, Resources};
use numpy::ndarray::ArrayView2;
use numpy::{PyArray1, PyArray2, ToPyArray};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::arrays::{indices, pairs, vector};
use crate::embeddings::{bf16_to_f64, thread_count, Borrowed};
use crate::errors::raise;
use crate::pickle::rebuild;
use crate::progress::watched;

/// A binary merge tree over N prompts. Immutable.
#[pyclass(frozen, module = "hsd._core")]
pub struct Tree {
    pub(crate) inner: Arc<hsd_core::Tree>,
}

impl From<hsd_core::Tree> for Tree {
    fn from(tree: hsd_core::Tree) -> Self {
        Tree { inner: Arc::new(tree) }
    }
}

#[pymethods]
impl Tree {
    /// Cluster the rows of ``embeddings``, (N, D) float16, float32 or float64 in any layout.
    ///
    /// ``metric`` is ``cosine``, the distance 1 - cos, or ``euclidean``, that of the rows as given. SciPy's linkages
    /// of the same distances are the same, up to ties and rounding (``ward`` squares cosine distances too).
    ///
    /// They are read in place and never copied as a whole. ``bfloat16`` takes uint16 for the bits of bfloat16.
    /// ``rows`` clusters some of them only: leaf i is row ``rows[i]``.
    ///
    /// ``memory`` is how many bytes the clustering may use (default: no limit). If all distances fit (4 N²
    /// bytes, or 2 N² in a slower form) and N is at most 100,000, the tree is exact, otherwise approximate;
    /// ``exact`` chooses one of the two. The tree does not depend on ``threads`` (default: one per core).
    ///
    /// ``progress`` is called with the finished fraction (0..1) at the start, about ten times a second, and
    /// at the end; an exception from it stops the work and is raised here. Ctrl-C stops it within a second. The
    /// GIL is released during the work.
    ///
    /// Raises ``ValueError`` for an empty set, for a row with a NaN or an infinite entry (names row and column),
    /// for a row of zeros with ``cosine`` (names the row), for an unknown linkage or metric, for ``centroid`` with
    /// ``euclidean``, for a row that does not exist, and threads or memory below 1; ``TypeError`` for anything but
    /// such an array; ``MemoryError`` if ``exact=True`` does not fit.
    #[staticmethod]
    #[pyo3(signature = (
        embeddings, linkage = "ward", *, metric = "cosine", rows = None, exact = None, threads = None, memory = None,
        bfloat16 = false, progress = None
    ))]
    #[allow(clippy::too_many_arguments)] // Keywords, each with a default.
    fn build(
        py: Python<'_>,
        embeddings: &Bound<'_, PyAny>,
        linkage: &str,
        metric: &str,
        rows: Option<&Bound<'_, PyAny>>,
        exact: Option<bool>,
        threads: Option<i64>,
        memory: Option<i64>,
        bfloat16: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let threads = thread_count(threads)?;
        let memory = match memory {
            Some(bytes) => usize::try_from(bytes)
                .ok()
                .filter(|&bytes| bytes > 0)
                .ok_or_else(|| raise(Error::NotPositive { what: "memory", value: bytes }))?,
            None => usize::MAX,
        };
        let method = exact.map_or(Method::Auto, |exact| if exact { Method::Exact } else { Method::Approximate });
        let resources = Resources { threads, memory };
        let rows = rows.map(row_indices).transpose()?;
        let (linkage, metric) = (linkage.parse().map_err(raise)?, metric.parse().map_err(raise)?);
        let options = Options { linkage, metric, method, resources, rows };
        match Borrowed::new(embeddings, bfloat16)? {
            Borrowed::Half(array) => options.build(py, array.as_array(), f16::to_f64, progress),
            Borrowed::Bfloat16(array) => options.build(py, array.as_array(), bf16_to_f64, progress),
            Borrowed::Single(array) => options.build(py, array.as_array(), f64::from, progress),
            Borrowed::Double(array) => options.build(py, array.as_array(), |x| x, progress),
        }
    }

    /// A tree from its merges (N-1, 2), ids as in SciPy (leaf i is i, merge j is N + j), and scores (N-1,).
    ///
    /// ``linkage`` is any name of at most 64 bytes; it and ``exact`` are only stored. Scores may be infinite.
    /// Raises ``ValueError`` if this is not one binary tree, or a score is negative or NaN.
    #[staticmethod]
    #[pyo3(signature = (merges, scores, linkage = "ward", exact = true))]
    fn from_merges(merges: &Bound<'_, PyAny>, scores: &Bound<'_, PyAny>, linkage: &str, exact: bool) -> PyResult<Self> {
        let (merges, scores) = (pairs("merges", merges)?, vector("scores", scores)?);
        let tree = hsd_core::Tree::from_merges(&merges, scores, linkage).map_err(raise)?;
        Ok(if exact { tree } else { tree.approximate() }.into())
    }

    /// One tree over the union of the leaves: tree t's leaf i becomes leaf ``leaves[t][i]``.
    ///
    /// The roots are joined, in the order given, by merges of infinite score, so that no cluster ever spans two
    /// of them. The linkage is that of the trees, or "mixed" if they differ.
    /// Raises ``ValueError`` unless the leaves are a permutation of 0..N-1.
    #[staticmethod]
    fn join(trees: Vec<PyRef<'_, Tree>>, leaves: Vec<Bound<'_, PyAny>>) -> PyResult<Self> {
        let trees: Vec<&hsd_core::Tree> = trees.iter().map(|tree| &*tree.inner).collect();
        let leaves: Vec<Vec<i64>> = leaves.iter().map(|leaves| vector("leaves", leaves)).collect::<PyResult<_>>()?;
        let leaves: Vec<&[i64]> = leaves.iter().map(Vec::as_slice).collect();
        Ok(hsd_core::Tree::join(&trees, &leaves).map_err(raise)?.into())
    }

    /// A tree with new leaves N, N + 1, ..., in which the clusters of the old ones do not change.
    ///
    /// ``embeddings`` (N + n, D) are the rows of the old leaves, in order, and then of n >= 1 new ones. The new leaves
    /// are clustered by this tree's linkage among themselves, and each cluster of them joins the old cluster that it
    /// meets first: at the largest of their distance and their two heights, if the old one is not below another by
    /// then. Heights of old nodes and the order of old leaves do not change: the tree restricted to the old leaves is
    /// this one.
    ///
    /// ``groups`` (N + n,) is a number for each leaf. In a joined tree a new leaf joins only parts of finite height
    /// that hold an old leaf of its group, and new leaves of different groups are never in one cluster of finite
    /// height. Those of a group that no part holds become a tree of their own, joined by a merge of infinite score.
    ///
    /// Embeddings, ``metric``, ``threads``, ``bfloat16``, ``progress`` and Ctrl-C are as in :meth:`build`; the metric
    /// has to be the one that this tree was built with. The result is ``exact`` if this tree is.
    ///
    /// Raises ``ValueError`` for what :meth:`build` refuses in the embeddings, for no new rows, a wrong number of
    /// groups, a linkage that :meth:`build` does not take (such as "mixed"), and for two groups that both grow in one
    /// part; ``TypeError`` for anything but such an array.
    #[pyo3(signature = (embeddings, groups, *, metric = "cosine", threads = None, bfloat16 = false, progress = None))]
    #[allow(clippy::too_many_arguments)] // Keywords, each with a default.
    fn insert(
        &self,
        py: Python<'_>,
        embeddings: &Bound<'_, PyAny>,
        groups: &Bound<'_, PyAny>,
        metric: &str,
        threads: Option<i64>,
        bfloat16: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let threads = thread_count(threads)?;
        let growth = Growth { groups: vector("groups", groups)?, metric: metric.parse().map_err(raise)?, threads };
        let tree = &self.inner;
        match Borrowed::new(embeddings, bfloat16)? {
            Borrowed::Half(array) => growth.insert(py, tree, array.as_array(), f16::to_f64, progress),
            Borrowed::Bfloat16(array) => growth.insert(py, tree, array.as_array(), bf16_to_f64, progress),
            Borrowed::Single(array) => growth.insert(py, tree, array.as_array(), f64::from, progress),
            Borrowed::Double(array) => growth.insert(py, tree, array.as_array(), |x| x, progress),
        }
    }

    /// N, the prompts that the tree joins.
    #[getter]
    fn n_leaves(&self) -> usize {
        self.inner.n_leaves()
    }

    /// The name of the linkage that it was built with; "mixed" if it was joined from trees of several.
    #[getter]
    fn linkage(&self) -> &str {
        self.inner.linkage()
    }

    /// Whether the clustering was exact, not approximate. A joined tree is exact if all its parts are.
    #[getter]
    fn exact(&self) -> bool {
        self.inner.exact()
    }

    /// (N-1, 2) ids of the two children of each merge, children before parents, SciPy's numbering.
    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let flat: Vec<i64> = self.inner.merges().iter().flatten().map(|&id| id.into()).collect();
        matrix(py, flat, 2)
    }

    /// (N-1,) distance of the two children of each merge, as the linkage defines it.
    ///
    /// A built tree's merges are in the order in which they were made: by ascending score for ``ward``,
    /// ``average`` and ``complete``; for ``centroid`` scores may fall.
    #[getter]
    fn scores<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.scores().to_pyarray(py)
    }

    /// (N-1,) max of the score and the children's heights; never decreases towards the root.
    #[getter]
    fn heights<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.heights().to_pyarray(py)
    }

    /// (N-1,) number of leaves below each merge.
    #[getter]
    fn sizes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        indices(py, self.inner.sizes())
    }

    /// (N,) the leaves from left to right. Every cluster is a contiguous run that begins with its lowest leaf.
    #[getter]
    fn leaf_order<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        indices(py, self.inner.leaf_order())
    }

    /// (N-1, 4) SciPy linkage matrix: two children (smaller id first), height, size; sorted by height.
    ///
    /// A joined tree has infinite heights, which SciPy's own functions refuse.
    fn to_scipy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        matrix(py, self.inner.to_scipy().concat(), 4)
    }

    /// (N,) cluster label of each leaf when every node with ``node height >= height`` is split.
    ///
    /// Labels count from 0 in leaf order. Raises ``ValueError`` for a negative or NaN height.
    fn cut<'py>(&self, py: Python<'py>, height: f64) -> PyResult<Bound<'py, PyArray1<i64>>> {
        Ok(PyArray1::from_vec(py, self.inner.cut(height).map_err(raise)?))
    }

    /// (K,) number of active clusters at each step for thresholds ``phi`` (K,): 1 + #{heights >= phi[k]}.
    ///
    /// ``phi`` has to be non-increasing, finite, >= 0 and 0 at the end, here and wherever thresholds are given.
    fn counts<'py>(&self, py: Python<'py>, phi: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let counts = schedule::counts(&self.inner, &vector("phi", phi)?).map_err(raise)?;
        Ok(PyArray1::from_vec(py, counts))
    }

    /// Sum of ``counts(phi)`` for thresholds ``phi`` (K,), computed from the sorted heights only.
    fn node_steps(&self, phi: &Bound<'_, PyAny>) -> PyResult<i64> {
        schedule::node_steps(&self.inner, &vector("phi", phi)?).map_err(raise)
    }

    /// The smallest tau >= 0 with ``node_steps(tau * shape) <= target``, exact to the last bit of a float.
    ///
    /// ``shape`` is checked as thresholds are. Raises ``ValueError`` if no tau reaches the target; the message
    /// gives the smallest possible number of node-steps.
    fn tau_for_node_steps(&self, shape: &Bound<'_, PyAny>, target: i64) -> PyResult<f64> {
        schedule::tau_for_node_steps(&self.inner, &vector("shape", shape)?, target).map_err(raise)
    }

    fn __repr__(&self) -> String {
        let heights = self.inner.sorted_heights();
        let top = heights.last().copied().unwrap_or(0.0);
        format!("Tree(n_leaves={}, linkage='{}', top height {top:.4})", self.inner.n_leaves(), self.inner.linkage())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let arguments = ("from_merges", self.merges(py)?, self.scores(py), self.linkage(), self.exact());
        rebuild(py, arguments, None, py.get_type::<Tree>())
    }
}

fn matrix<T: numpy::Element>(py: Python<'_>, flat: Vec<T>, columns: usize) -> PyResult<Bound<'_, PyArray2<T>>> {
    use numpy::PyArrayMethods;
    let rows = flat.len() / columns;
    PyArray1::from_vec(py, flat).reshape([rows, columns])
}

/// Share of the work that checking the embeddings is, as far as progress is concerned; where a tree is built, and where
/// new leaves are inserted.
const CHECK: f64 = 0.02;
const CHECK_INSERT: f64 = 0.4;

/// How a tree is to be built.
struct Options {
    linkage: Linkage,
    metric: Metric,
    method: Method,
    resources: Resources,
    rows: Option<Vec<usize>>,
}

/// Row numbers; a negative one becomes one that is out of range.
fn row_indices(rows: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    let rows: Vec<i64> = vector("rows", rows)?;
    Ok(rows.into_iter().map(|row| row as usize).collect())
}

impl Options {
    fn build<T: Copy + Sync>(
        &self,
        py: Python<'_>,
        view: ArrayView2<'_, T>,
        value: impl Fn(T) -> f64 + Send + Sync,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<Tree> {
        let build = |progress: &mut Progress<'_>| {
            let threads = self.resources.threads;
            let embeddings = progress.part(0.0, CHECK, |progress| match &self.rows {
                None => Embeddings::new(view, value, self.metric, threads, progress),
                Some(rows) => Embeddings::of_rows(view, value, self.metric, rows, threads, progress),
            })?;
            progress.part(CHECK, 1.0, |progress| {
                build_tree(&embeddings, self.linkage, self.method, self.resources, progress)
            })
        };
        Ok(watched(py, callback.as_ref(), build)?.into())
    }
}

/// How new leaves are to be inserted.
struct Growth {
    groups: Vec<i64>,
    metric: Metric,
    threads: usize,
}

impl Growth {
    fn insert<T: Copy + Sync>(
        &self,
        py: Python<'_>,
        tree: &hsd_core::Tree,
        view: ArrayView2<'_, T>,
        value: impl Fn(T) -> f64 + Send + Sync,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<Tree> {
        let insert = |progress: &mut Progress<'_>| {
            let embeddings = progress.part(0.0, CHECK_INSERT, |progress| {
                Embeddings::new(view, value, self.metric, self.threads, progress)
            })?;
            progress.part(CHECK_INSERT, 1.0, |progress| tree.insert(&embeddings, &self.groups, self.threads, progress))
        };
        Ok(watched(py, callback.as_ref(), insert)?.into())
    }
}

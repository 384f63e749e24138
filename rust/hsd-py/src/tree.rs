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

    #[staticmethod]
    #[pyo3(signature = (merges, scores, linkage = "ward", exact = true))]
    fn from_merges(merges: &Bound<'_, PyAny>, scores: &Bound<'_, PyAny>, linkage: &str, exact: bool) -> PyResult<Self> {
        let (merges, scores) = (pairs("merges", merges)?, vector("scores", scores)?);
        let tree = hsd_core::Tree::from_merges(&merges, scores, linkage).map_err(raise)?;
        Ok(if exact { tree } else { tree.approximate() }.into())
    }

    #[staticmethod]
    fn join(trees: Vec<PyRef<'_, Tree>>, leaves: Vec<Bound<'_, PyAny>>) -> PyResult<Self> {
        let trees: Vec<&hsd_core::Tree> = trees.iter().map(|tree| &*tree.inner).collect();
        let leaves: Vec<Vec<i64>> = leaves.iter().map(|leaves| vector("leaves", leaves)).collect::<PyResult<_>>()?;
        let leaves: Vec<&[i64]> = leaves.iter().map(Vec::as_slice).collect();
        Ok(hsd_core::Tree::join(&trees, &leaves).map_err(raise)?.into())
    }

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

    #[getter]
    fn n_leaves(&self) -> usize {
        self.inner.n_leaves()
    }

    #[getter]
    fn linkage(&self) -> &str {
        self.inner.linkage()
    }

    #[getter]
    fn exact(&self) -> bool {
        self.inner.exact()
    }

    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let flat: Vec<i64> = self.inner.merges().iter().flatten().map(|&id| id.into()).collect();
        matrix(py, flat, 2)
    }

    #[getter]
    fn scores<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.scores().to_pyarray(py)
    }

    #[getter]
    fn heights<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.heights().to_pyarray(py)
    }

    #[getter]
    fn sizes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        indices(py, self.inner.sizes())
    }

    #[getter]
    fn leaf_order<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        indices(py, self.inner.leaf_order())
    }

    fn to_scipy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        matrix(py, self.inner.to_scipy().concat(), 4)
    }

    fn cut<'py>(&self, py: Python<'py>, height: f64) -> PyResult<Bound<'py, PyArray1<i64>>> {
        Ok(PyArray1::from_vec(py, self.inner.cut(height).map_err(raise)?))
    }

    fn counts<'py>(&self, py: Python<'py>, phi: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let counts = schedule::counts(&self.inner, &vector("phi", phi)?).map_err(raise)?;
        Ok(PyArray1::from_vec(py, counts))
    }

    fn node_steps(&self, phi: &Bound<'_, PyAny>) -> PyResult<i64> {
        schedule::node_steps(&self.inner, &vector("phi", phi)?).map_err(raise)
    }

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

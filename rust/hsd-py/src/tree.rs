//! `hsd._core.Tree`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use hsd_core::distance::UnitRows;
use hsd_core::{linkage, schedule, Linkage, Progress};
use numpy::{PyArray1, PyArray2, PyReadonlyArray2, ToPyArray};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::arrays::{pairs, table, vector, wrong_type};
use crate::errors::raise;
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
    #[pyo3(signature = (embeddings, linkage = "ward", *, progress = None))]
    fn build(
        py: Python<'_>,
        embeddings: &Bound<'_, PyAny>,
        linkage: &str,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let linkage = linkage.parse().map_err(raise)?;
        if let Ok(array) = embeddings.extract::<PyReadonlyArray2<'_, f32>>() {
            let (data, rows, columns) = table("embeddings", &array)?;
            return build(py, data, rows, columns, linkage, progress);
        }
        if let Ok(array) = embeddings.extract::<PyReadonlyArray2<'_, f64>>() {
            let (data, rows, columns) = table("embeddings", &array)?;
            return build(py, data, rows, columns, linkage, progress);
        }
        Err(wrong_type("embeddings", "float32 or float64 array of shape (N, D)", embeddings))
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
        rebuild(py, arguments, py.get_type::<Tree>())
    }
}

/// What `__reduce__` returns for an object that `owner` makes by the method call `arguments`.
pub fn rebuild<'py>(
    py: Python<'py>,
    arguments: impl pyo3::call::PyCallArgs<'py>,
    owner: impl IntoPyObject<'py>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
    let call = py.import("operator")?.getattr("methodcaller")?.call1(arguments)?;
    Ok((call, PyTuple::new(py, [owner])?))
}

/// 32-bit indices as NumPy's usual integers.
pub fn indices<'py>(py: Python<'py>, values: &[u32]) -> Bound<'py, PyArray1<i64>> {
    PyArray1::from_iter(py, values.iter().map(|&value| i64::from(value)))
}

fn matrix<T: numpy::Element>(py: Python<'_>, flat: Vec<T>, columns: usize) -> PyResult<Bound<'_, PyArray2<T>>> {
    use numpy::PyArrayMethods;
    let rows = flat.len() / columns;
    PyArray1::from_vec(py, flat).reshape([rows, columns])
}

fn build<T: Copy + Into<f64> + Sync>(
    py: Python<'_>,
    data: &[T],
    rows: usize,
    columns: usize,
    linkage: Linkage,
    callback: Option<Py<PyAny>>,
) -> PyResult<Tree> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let build = |progress: &mut Progress<'_>| {
        let unit_rows = UnitRows::new(data, rows, columns)?;
        linkage::build(&unit_rows, linkage, threads, progress)
    };
    Ok(watched(py, callback.as_ref(), build)?.into())
}

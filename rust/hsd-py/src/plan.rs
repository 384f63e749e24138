//! `hsd._core.Plan`.

use std::sync::Arc;

use hsd_core::plan::file::{self, PlanFile};
use hsd_core::program::bound::lower_bound;
use hsd_core::program::forest::least_slots;
use hsd_core::{Kinds, Order, PerLane, Progress, Rows};
use numpy::{PyArray1, ToPyArray};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple};

use crate::arrays::{indices, records, vector};
use crate::errors::raise;
use crate::pickle::rebuild;
use crate::program::Program;
use crate::progress::watched;
use crate::tree::Tree;

/// Which cluster runs when. Every invariant is checked before one exists. Immutable.
#[pyclass(frozen, module = "hsd._core")]
pub struct Plan {
    pub(crate) inner: Arc<hsd_core::Plan>,
    segments: PyOnceLock<Py<PyAny>>,
}

impl From<Arc<hsd_core::Plan>> for Plan {
    fn from(inner: Arc<hsd_core::Plan>) -> Self {
        Plan { inner, segments: PyOnceLock::new() }
    }
}

impl From<hsd_core::Plan> for Plan {
    fn from(plan: hsd_core::Plan) -> Self {
        Arc::new(plan).into()
    }
}

const FIELDS: [(&str, &str); 6] = [
    ("parent", "i4"),
    ("first_step", "i4"),
    ("end_step", "i4"),
    ("leaf_begin", "i4"),
    ("leaf_end", "i4"),
    ("representative", "i4"),
];

/// The argument `rows` or `kinds`.
fn optional(what: &str, numbers: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Vec<i64>>> {
    numbers.map(|numbers| vector(what, numbers)).transpose()
}

#[pymethods]
impl Plan {
    #[staticmethod]
    fn compile(py: Python<'_>, tree: &Tree, phi: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (tree, phi) = (Arc::clone(&tree.inner), vector("phi", phi)?);
        Ok(py.detach(|| hsd_core::Plan::compile(tree, &phi)).map_err(raise)?.into())
    }

    #[getter]
    fn tree(&self) -> Tree {
        Tree { inner: Arc::clone(self.inner.tree()) }
    }

    #[getter]
    fn phi<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.phi().to_pyarray(py)
    }

    #[getter]
    fn n_prompts(&self) -> usize {
        self.inner.n_prompts()
    }

    #[getter]
    fn n_steps(&self) -> usize {
        self.inner.n_steps()
    }

    #[getter]
    fn kept<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        indices(py, self.inner.kept())
    }

    #[getter]
    fn segments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let rows = self.inner.segments();
        let array = self.segments.get_or_try_init(py, || {
            let fill = |buffer: &mut [u8]| {
                let fields = rows.iter().flat_map(hsd_core::Segment::row);
                buffer.chunks_exact_mut(4).zip(fields).for_each(|(to, field)| to.copy_from_slice(&field.to_ne_bytes()));
            };
            records(py, &FIELDS, 24, (rows.len(), None), fill).map(Bound::unbind)
        })?;
        Ok(array.bind(py).clone())
    }

    #[getter]
    fn node_steps(&self) -> usize {
        self.inner.node_steps()
    }

    fn counts<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_vec(py, self.inner.counts())
    }

    fn active<'py>(&self, py: Python<'py>, step: i64) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows = self.inner.active(step).map_err(raise)?;
        Ok(PyArray1::from_iter(py, rows.into_iter().map(|row| row.map_or(-1, i64::from))))
    }

    fn prune(&self, py: Python<'_>, keep: &Bound<'_, PyAny>) -> PyResult<Self> {
        let keep = vector("keep", keep)?;
        Ok(py.detach(|| self.inner.prune(&keep)).map_err(raise)?.into())
    }

    fn resume(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<Self> {
        let given: Vec<bool> = vector("given", given)?;
        Ok(py.detach(|| self.inner.resume(&given)).map_err(raise)?.into())
    }

    #[pyo3(signature = (n, slack = 0.02))]
    fn shard(&self, py: Python<'_>, n: i64, slack: f64) -> PyResult<Vec<Self>> {
        let shards = py.detach(|| self.inner.shard(n, slack)).map_err(raise)?;
        Ok(shards.into_iter().map(Plan::from).collect())
    }

    #[pyo3(signature = (workers, per_worker = None))]
    fn units(&self, py: Python<'_>, workers: i64, per_worker: Option<i64>) -> PyResult<Vec<Self>> {
        let units = py.detach(|| self.inner.units(workers, per_worker)).map_err(raise)?;
        Ok(units.into_iter().map(Plan::from).collect())
    }

    #[pyo3(signature = (
        batch_size, order = "depth", max_slots = None, *, mixed_steps = true, rows = None, kinds = None, progress = None
    ))]
    #[allow(clippy::too_many_arguments)] // They are Python's keyword arguments.
    fn program(
        slf: Bound<'_, Self>,
        batch_size: i64,
        order: &str,
        max_slots: Option<i64>,
        mixed_steps: bool,
        rows: Option<&Bound<'_, PyAny>>,
        kinds: Option<&Bound<'_, PyAny>>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Program> {
        let (rows, kinds) = (optional("rows", rows)?, optional("kinds", kinds)?);
        let order: Order = order.parse().map_err(raise)?;
        let plan = Arc::clone(&slf.get().inner);
        let compile = |progress: &mut Progress<'_>| {
            let per_lane = PerLane { rows: rows.as_deref(), kinds: kinds.as_deref() };
            hsd_core::Program::compile(plan, batch_size, order, max_slots, mixed_steps, per_lane, progress)
        };
        let program = watched(slf.py(), progress.as_ref(), compile)?;
        Ok(Program::new(program, slf.into_any().unbind()))
    }

    #[pyo3(signature = (batch_size, order = "depth", max_slots = None, *, mixed_steps = true, rows = None))]
    #[allow(unused_variables)] // Both values of mixed_steps are valid; only its type is checked.
    fn check_program(
        &self,
        batch_size: i64,
        order: &str,
        max_slots: Option<i64>,
        mixed_steps: bool,
        rows: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        order.parse::<Order>().map_err(raise)?;
        hsd_core::Program::check(&self.inner, batch_size, max_slots, optional("rows", rows)?.as_deref())
            .map_err(raise)?;
        Ok(())
    }

    #[pyo3(signature = (batch_size, *, mixed_steps = true, rows = None, kinds = None))]
    fn lower_bound(
        &self,
        batch_size: i64,
        mixed_steps: bool,
        rows: Option<&Bound<'_, PyAny>>,
        kinds: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        let (rows, kinds) = (optional("rows", rows)?, optional("kinds", kinds)?);
        let rows = Rows::new(self.inner.n_steps(), batch_size, rows.as_deref()).map_err(raise)?;
        let kinds = kinds.map(|kinds| Kinds::new(self.inner.segments().len(), &kinds)).transpose().map_err(raise)?;
        Ok(lower_bound(&self.inner, &rows, kinds.as_ref(), mixed_steps))
    }

    fn least_slots(&self) -> usize {
        least_slots(self.inner.segments())
    }

    #[pyo3(signature = (max_rows = 200))]
    fn describe(&self, max_rows: usize) -> String {
        self.inner.describe(max_rows)
    }

    fn to_bytes<'py>(
        &self,
        py: Python<'py>,
        prompts: Vec<String>,
        seeds: &Bound<'_, PyAny>,
        metadata: String,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let seeds = vector("seeds", seeds)?;
        let file = PlanFile { plan: Arc::clone(&self.inner), prompts, seeds, metadata };
        Ok(PyBytes::new(py, &py.detach(|| file.to_bytes()).map_err(raise)?))
    }

    fn fingerprint(
        &self,
        py: Python<'_>,
        prompts: Vec<String>,
        seeds: &Bound<'_, PyAny>,
        extra: &str,
    ) -> PyResult<String> {
        let seeds: Vec<i64> = vector("seeds", seeds)?;
        py.detach(|| file::fingerprint(&self.inner, &prompts, &seeds, extra)).map_err(raise)
    }

    #[staticmethod]
    #[allow(clippy::type_complexity)] // Python gets this tuple; a name for its type would only hide that.
    fn from_bytes<'py>(
        py: Python<'py>,
        data: &[u8],
    ) -> PyResult<(Self, Vec<String>, Bound<'py, PyArray1<i64>>, String)> {
        let PlanFile { plan, prompts, seeds, metadata } = py.detach(|| PlanFile::from_bytes(data)).map_err(raise)?;
        Ok((plan.into(), prompts, PyArray1::from_vec(py, seeds), metadata))
    }

    #[staticmethod]
    fn file_size(head: &[u8]) -> PyResult<u64> {
        PlanFile::size(head).map_err(raise)
    }

    fn __repr__(&self) -> String {
        format!(
            "Plan({} of {} prompts, {} steps, {} segments, {} node-steps)",
            self.inner.kept().len(),
            self.inner.n_prompts(),
            self.inner.n_steps(),
            self.inner.segments().len(),
            self.inner.node_steps(),
        )
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        if self.inner.is_resumed() {
            return Err(raise(hsd_core::Error::Resumed { what: "pickled" }));
        }
        if self.inner.kept().len() == self.inner.n_prompts() {
            return rebuild(py, ("compile", self.tree(), self.phi(py)), None, py.get_type::<Plan>());
        }
        let whole = hsd_core::Plan::compile(Arc::clone(self.inner.tree()), self.inner.phi()).map_err(raise)?;
        rebuild(py, ("prune", self.kept(py)), None, Plan::from(whole))
    }
}

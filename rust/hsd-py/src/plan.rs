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
    /// Cut ``tree`` at thresholds ``phi`` (K,): non-increasing, finite, >= 0, last entry 0.
    ///
    /// Raises ``ValueError`` naming the step and the value otherwise.
    #[staticmethod]
    fn compile(py: Python<'_>, tree: &Tree, phi: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (tree, phi) = (Arc::clone(&tree.inner), vector("phi", phi)?);
        Ok(py.detach(|| hsd_core::Plan::compile(tree, &phi)).map_err(raise)?.into())
    }

    /// The tree of all N prompts.
    #[getter]
    fn tree(&self) -> Tree {
        Tree { inner: Arc::clone(self.inner.tree()) }
    }

    /// (K,) the threshold at each step.
    #[getter]
    fn phi<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.phi().to_pyarray(py)
    }

    /// N, the prompts of the whole tree, kept or not.
    #[getter]
    fn n_prompts(&self) -> usize {
        self.inner.n_prompts()
    }

    /// K, evaluations of the denoiser from noise to image.
    #[getter]
    fn n_steps(&self) -> usize {
        self.inner.n_steps()
    }

    /// Prompts whose images this plan generates, ascending. All of them unless pruned.
    #[getter]
    fn kept<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        indices(py, self.inner.kept())
    }

    /// Structured array, one entry per segment, parents before children.
    ///
    /// Ordered by first step, then by position in the leaf order. Read-only; the same array at every access.
    /// Fields, all int32: ``parent`` (index, -1 for none: at step 0, or resumed), ``first_step``, ``end_step``
    /// (exclusive), ``leaf_begin``, ``leaf_end`` (range of the leaf order: the *full* cluster, also when pruned) and
    /// ``representative`` (the full cluster's lowest prompt).
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

    /// Evaluations of the denoiser on one latent: the sum of the segments' lengths.
    #[getter]
    fn node_steps(&self) -> usize {
        self.inner.node_steps()
    }

    /// (K,) number of segments active at each step.
    fn counts<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_vec(py, self.inner.counts())
    }

    /// (N,) index of each prompt's segment at ``step``; -1 for a prompt that is not kept, and in a resumed plan for
    /// one of which nothing is left to run at that step.
    ///
    /// Raises ``IndexError`` if there is no such step.
    fn active<'py>(&self, py: Python<'py>, step: i64) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows = self.inner.active(step).map_err(raise)?;
        Ok(PyArray1::from_iter(py, rows.into_iter().map(|row| row.map_or(-1, i64::from))))
    }

    /// The plan restricted to prompts ``keep`` (any order, no repeats). The leaf ranges of clusters do not change.
    ///
    /// Raises ``ValueError`` for an empty ``keep``, and for a prompt that is repeated, out of range or not kept
    /// (names it).
    fn prune(&self, py: Python<'_>, keep: &Bound<'_, PyAny>) -> PyResult<Self> {
        let keep = vector("keep", keep)?;
        Ok(py.detach(|| self.inner.prune(&keep)).map_err(raise)?.into())
    }

    /// The plan without what ``given`` (segments,) makes needless: of which of :attr:`segments` the state at their
    /// end is known.
    ///
    /// Segments that reach the last step stay, and those that are not given and that another one that stays forks
    /// from. One whose parent is left out has no parent, keeps its own ``first_step`` > 0, and continues the state at
    /// its parent's end; its lane there is ``fresh``. Tree, phi and kept stay. Such a plan cannot be pickled or written
    /// to a file: both raise ``ValueError``. Raises ``ValueError`` for a wrong number of entries.
    fn resume(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<Self> {
        let given: Vec<bool> = vector("given", given)?;
        Ok(py.detach(|| self.inner.resume(&given)).map_err(raise)?.into())
    }

    /// At most ``n`` plans that together generate the same images: contiguous shares of the leaf order, cut where
    /// neighbours share least. Fewer than n when there are fewer prompts.
    ///
    /// The largest share has at most 1 + ``slack`` times the node-steps that it must have. Of all such cuts these
    /// compute the fewest node-steps again, and then have the smallest largest share.
    /// Raises ``ValueError`` for n < 1, and unless ``slack`` is finite and >= 0.
    #[pyo3(signature = (n, slack = 0.02))]
    fn shard(&self, py: Python<'_>, n: i64, slack: f64) -> PyResult<Vec<Self>> {
        let shards = py.detach(|| self.inner.shard(n, slack)).map_err(raise)?;
        Ok(shards.into_iter().map(Plan::from).collect())
    }

    /// Plans that together generate the same images, costliest first, for workers that take one after the other.
    ///
    /// Their sizes halve: a worker's share is cut into about 1/2, 1/4, ... and two equal last ones, ``per_worker`` in
    /// all; by default up to 8, while the smallest have 4 images' worth of node-steps. Units of one prompt are not
    /// halved. ``ValueError`` for numbers below 1.
    #[pyo3(signature = (workers, per_worker = None))]
    fn units(&self, py: Python<'_>, workers: i64, per_worker: Option<i64>) -> PyResult<Vec<Self>> {
        let units = py.detach(|| self.inner.units(workers, per_worker)).map_err(raise)?;
        Ok(units.into_iter().map(Plan::from).collect())
    }

    /// Lower to calls of ``batch_size`` lanes. See :class:`Program`.
    ///
    /// ``rows`` (K,) gives the rows of the network that a lane has at each step, 1 or 2. Then a call has at most
    /// ``2 batch_size`` rows: ``batch_size`` lanes of two rows, up to twice as many of one, or both. If one row is left
    /// where the next lane by order has two, the next lane of one row takes it. Default: every lane is one row, and a
    /// call has ``batch_size`` of them.
    ///
    /// ``kinds`` (segments,) gives the kind of each of :attr:`segments`, a number >= 0; a segment and its parent may
    /// differ. Then all lanes of a call are of one kind. Default: any lanes may be in one call. Where a cluster is as
    /// long as its longest member and kinds are lengths, ``breadth`` meets :attr:`Program.lower_bound` without
    /// ``max_slots`` if all lanes are of one row and no prompt is pruned. ``depth`` comes close with fewer latents
    /// alive. Some wait for others of their kind, so a small ``max_slots`` costs more calls than without kinds.
    ///
    /// ``mixed_steps=False``: all lanes of a call are at one step. Without ``max_slots`` both orders then meet
    /// :attr:`Program.lower_bound`, and ``depth`` keeps fewer than 2 K latents alive for each lane of a call.
    ///
    /// ``breadth`` runs depth first if that makes fewer calls in ``max_slots`` slots. ``progress`` and Ctrl-C
    /// are as in :meth:`Tree.build`. Raises ``ValueError`` for a batch size < 1, for a ``max_slots`` below the
    /// smallest number that suffices (the message gives it), and for ``rows`` that are not K values of 1 or 2, or
    /// ``kinds`` that are not one number >= 0 for each segment.
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

    /// Raises what :meth:`program` would raise for these arguments, without lowering the plan.
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

    /// Max over k of k + ceil(rows at steps >= k / rows of a call): no program has fewer calls. In a resumed plan,
    /// whose roots begin at any step, max over d of d + ceil(rows after d node-steps from the root / rows of a call).
    ///
    /// Without mixed steps, the sum over k of ceil(node-steps at step k / lanes of a call at step k): no call has lanes
    /// of two steps. Without ``rows`` a lane is one row, and a call has ``batch_size``.
    ///
    /// With ``kinds`` no call has lanes of two kinds: without mixed steps the sum is over steps and kinds. With mixed
    /// steps it is the sum over kinds of max over d of d + ceil(rows after d node-steps of the kind / rows of a call),
    /// or max over d of d + the sum over kinds of ceil(rows after d node-steps of any kind / rows of a call), if that
    /// is more.
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

    /// The fewest slots any program of this plan needs (Sethi-Ullman number of the segment forest).
    fn least_slots(&self) -> usize {
        least_slots(self.inner.segments())
    }

    /// Segments as aligned text, for people and for golden files.
    #[pyo3(signature = (max_rows = 200))]
    fn describe(&self, max_rows: usize) -> String {
        self.inner.describe(max_rows)
    }

    /// A safetensors file: tree, phi, kept, prompts (UTF-8 and offsets), seeds (N,), and ``metadata`` (JSON text).
    ///
    /// The header's one entry, ``hsd``, is JSON: ``exact``, ``format``, ``linkage``, ``metadata``, ``prompts_sha256``
    /// (of prompts and seeds) and ``sha256`` (of everything). The same plan gives the same bytes. For other readers
    /// the file also holds ``segments`` (M, 6), int32, columns as in :attr:`segments`.
    /// Raises ``ValueError`` for a wrong number of prompts or seeds, if ``metadata`` is not JSON, and for a resumed
    /// plan.
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

    /// Hex SHA-256 of the clusters of every step, prompts, seeds and ``extra``; the same for a plan and all plans
    /// pruned or resumed from it, whatever the last bits of scores and phi are.
    ///
    /// Raises ``ValueError`` for a wrong number of prompts or seeds.
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

    /// Read what :meth:`to_bytes` wrote: plan, prompts, seeds, metadata. Safe on untrusted bytes: every shape,
    /// index, digest and invariant is checked, and each value of the metadata that is used later; ``ValueError`` says
    /// what is wrong. Time and memory are in proportion to the file.
    #[staticmethod]
    #[allow(clippy::type_complexity)] // Python gets this tuple; a name for its type would only hide that.
    fn from_bytes<'py>(
        py: Python<'py>,
        data: &[u8],
    ) -> PyResult<(Self, Vec<String>, Bound<'py, PyArray1<i64>>, String)> {
        let PlanFile { plan, prompts, seeds, metadata } = py.detach(|| PlanFile::from_bytes(data)).map_err(raise)?;
        Ok((plan.into(), prompts, PyArray1::from_vec(py, seeds), metadata))
    }

    /// Bytes of the file that begins with ``head``, which has to hold its header; ``ValueError`` if that is not the
    /// header of a plan.
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

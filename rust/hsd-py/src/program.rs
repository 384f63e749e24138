//! `hsd._core.Program`.

use std::sync::Arc;

use hsd_core::Progress;
use numpy::{PyArray1, ToPyArray};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyTuple};

use crate::arrays::records;
use crate::errors::positive;
use crate::pickle::rebuild;
use crate::progress::watched;

/// A plan lowered to calls. Every invariant is checked before one exists. Immutable.
///
/// In each call all lanes read their source before any lane writes its target. A lane may write the slot
/// that it reads itself; no lane reads a slot that another lane of the same call writes.
#[pyclass(frozen, module = "hsd._core")]
pub struct Program {
    inner: Arc<hsd_core::Program>,
    /// The `hsd._core.Plan` that it was compiled from.
    plan: Py<PyAny>,
    calls: PyOnceLock<Py<PyAny>>,
}

impl Program {
    /// A program, and the `hsd._core.Plan` that it was compiled from.
    pub fn new(inner: hsd_core::Program, plan: Py<PyAny>) -> Self {
        Program { inner: Arc::new(inner), plan, calls: PyOnceLock::new() }
    }
}

const FIELDS: [(&str, &str); 7] = [
    ("segment", "i4"),
    ("step", "i4"),
    ("source", "i4"),
    ("target", "i4"),
    ("fresh", "?"),
    ("begins", "?"),
    ("final", "?"),
];

/// Four integers and three flags, padded to whole integers.
const ITEMSIZE: usize = 20;

fn write(record: &mut [u8], numbers: [i32; 4], flags: [bool; 3]) {
    let (head, tail) = record.split_at_mut(16);
    head.chunks_exact_mut(4).zip(numbers).for_each(|(to, number)| to.copy_from_slice(&number.to_ne_bytes()));
    tail.iter_mut().zip(flags).for_each(|(to, flag)| *to = flag.into());
}

/// The next `count` calls as a structured array, one row for each call. Without the GIL, and stopped by Ctrl-C.
fn table<'py>(
    py: Python<'py>,
    program: &hsd_core::Program,
    calls: &mut hsd_core::Calls,
    count: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let width = program.rows().max_lanes();
    let scratch = program.n_slots() as i32;
    let mut outcome = Ok(());
    let fill = |buffer: &mut [u8]| {
        outcome = watched(py, None, |progress| {
            for (call, records) in buffer.chunks_exact_mut(ITEMSIZE * width).enumerate() {
                let lanes = calls.next_call().unwrap_or_default();
                for (at, record) in records.chunks_exact_mut(ITEMSIZE).enumerate() {
                    match lanes.get(at) {
                        None => write(record, [-1, 0, scratch, scratch], [false; 3]),
                        Some(lane) => {
                            let numbers = [lane.segment, lane.step, lane.source, lane.target];
                            write(record, numbers.map(|n| n as i32), [lane.fresh, lane.begins, lane.last]);
                        }
                    }
                }
                progress.at(call, count)?;
            }
            Ok(())
        });
    };
    let array = records(py, &FIELDS, ITEMSIZE, (count, Some(width)), fill);
    outcome.and(array)
}

#[pymethods]
impl Program {
    /// Structured array (n_calls, max_lanes), filled lanes first. Read-only; the same array at every access.
    ///
    /// It takes 20 bytes per lane, so the memory is linear in node-steps: for large plans use :meth:`chunks`.
    ///
    /// Fields: ``segment`` (int32; -1 in padding), ``step`` (int32; 0 in padding), ``source`` and ``target``
    /// (int32 slots; ``n_slots``, a scratch slot, in padding), ``fresh`` (bool: the lane starts a root segment, its
    /// first latent has to be drawn into ``source`` before the call; at a step > 0, of a resumed plan, its parent's
    /// state has to be put there), ``begins`` (bool: first step of its segment: its conditioning has to be ready),
    /// ``final`` (bool: last step; the finished latent is in ``target`` right after the call).
    ///
    /// A segment's target is the same slot at all its steps. A slot is reused at the earliest in the call after
    /// the one that last needs it, so a finished latent has to be copied out before the next call.
    #[getter]
    fn calls<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let make = || table(py, &self.inner, &mut self.inner.calls(), self.inner.n_calls()).map(Bound::unbind);
        Ok(self.calls.get_or_try_init(py, make)?.bind(py).clone())
    }

    /// The entries of :attr:`calls` in order, in arrays of at most ``calls``; only one such array is in memory.
    ///
    /// Raises ``ValueError`` for calls < 1.
    #[pyo3(signature = (calls = 1024))]
    fn chunks(&self, calls: i64) -> PyResult<Chunks> {
        let size = positive("calls", calls)?;
        Ok(Chunks { program: Arc::clone(&self.inner), calls: self.inner.calls(), size })
    }

    /// (n_calls,) filled lanes of each call. Computed at every access.
    #[getter]
    fn lanes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let mut calls = self.inner.calls();
        let count = |progress: &mut Progress<'_>| {
            let mut lanes = Vec::with_capacity(calls.len());
            while let Some(call) = calls.next_call() {
                lanes.push(call.len() as i64);
                progress.at(lanes.len(), self.inner.n_calls())?;
            }
            Ok(lanes)
        };
        Ok(PyArray1::from_vec(py, watched(py, None, count)?))
    }

    /// Calls of the denoiser.
    #[getter]
    fn n_calls(&self) -> usize {
        self.inner.n_calls()
    }

    /// Slots used, without the scratch slot.
    #[getter]
    fn n_slots(&self) -> usize {
        self.inner.n_slots()
    }

    /// (n_calls,) filled rows of each call. Computed at every access.
    #[getter]
    fn rows_per_call<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let mut calls = self.inner.calls();
        let count = |progress: &mut Progress<'_>| {
            let mut rows = Vec::with_capacity(calls.len());
            while let Some(call) = calls.next_call() {
                rows.push(call.iter().map(|lane| self.inner.rows().at(lane.step) as i64).sum());
                progress.at(rows.len(), self.inner.n_calls())?;
            }
            Ok(rows)
        };
        Ok(PyArray1::from_vec(py, watched(py, None, count)?))
    }

    /// (K,) rows of the network that a lane has at each step, as given; None: one at all steps.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<i64>>> {
        self.inner.rows().given().map(|rows| PyArray1::from_vec(py, rows))
    }

    /// (segments,) kind of each segment, as given; None: lanes of one call may be of any segments.
    #[getter]
    fn kinds<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<i64>>> {
        self.inner.kinds().map(|kinds| kinds.given().to_pyarray(py))
    }

    /// Rows of the network of all calls.
    #[getter]
    fn n_rows(&self) -> usize {
        self.inner.n_rows()
    }

    /// The most rows of a call: ``batch_size``, or twice that where ``rows`` were given.
    #[getter]
    fn max_rows(&self) -> usize {
        self.inner.rows().capacity()
    }

    /// The most lanes of a call: ``batch_size``, or twice that if ``rows`` were given and some steps have one.
    #[getter]
    fn max_lanes(&self) -> usize {
        self.inner.rows().max_lanes()
    }

    /// The size of a call as it was given: lanes, or where ``rows`` were given, lanes of two rows.
    #[getter]
    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    /// ``depth`` or ``breadth``, as given.
    #[getter]
    fn order(&self) -> &'static str {
        self.inner.order().name()
    }

    /// Whether lanes of one call may be at different steps.
    #[getter]
    fn mixed_steps(&self) -> bool {
        self.inner.mixed_steps()
    }

    /// Filled rows / all rows, which are lanes unless ``rows`` were given.
    #[getter]
    fn occupancy(&self) -> f64 {
        self.inner.occupancy()
    }

    /// No program of this plan has fewer calls at this batch size; see :meth:`Plan.lower_bound`.
    #[getter]
    fn lower_bound(&self) -> usize {
        self.inner.lower_bound()
    }

    /// Calls and slots as aligned text, for people and for golden files.
    #[pyo3(signature = (max_rows = 200))]
    fn describe(&self, max_rows: usize) -> String {
        self.inner.describe(max_rows)
    }

    fn __repr__(&self) -> String {
        format!(
            "Program({} calls of {} {}, {} slots, order='{}'{}{})",
            self.inner.n_calls(),
            self.inner.rows().capacity(),
            if self.inner.rows().given().is_some() { "rows" } else { "lanes" },
            self.inner.n_slots(),
            self.inner.order(),
            if self.inner.mixed_steps() { "" } else { ", mixed_steps=False" },
            self.inner.kinds().map_or_else(String::new, |kinds| format!(", {} kinds", kinds.count())),
        )
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let arguments = ("program", self.inner.batch_size(), self.inner.order().name(), self.inner.max_slots());
        let keywords = [("mixed_steps", self.inner.mixed_steps())].into_py_dict(py)?;
        if let Some(rows) = self.rows(py) {
            keywords.set_item("rows", rows)?;
        }
        if let Some(kinds) = self.kinds(py) {
            keywords.set_item("kinds", kinds)?;
        }
        rebuild(py, arguments, Some(&keywords), self.plan.bind(py))
    }
}

/// Consecutive calls of a program, a bounded number at a time.
#[pyclass(module = "hsd._core")]
pub struct Chunks {
    program: Arc<hsd_core::Program>,
    calls: hsd_core::Calls,
    size: usize,
}

#[pymethods]
impl Chunks {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let count = self.calls.len().min(self.size);
        let chunk = (count > 0).then(|| table(py, &self.program, &mut self.calls, count)).transpose();
        if chunk.is_err() {
            self.size = 0; // Some calls are lost. Like a generator that has raised, this iterator is at its end.
        }
        chunk
    }
}

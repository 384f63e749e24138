//! `hsd._core.Program`.

use std::sync::Arc;

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::arrays::records;
use crate::plan::Plan;
use crate::tree::rebuild;

/// A plan lowered to a table of calls. Every invariant is checked before one exists. Immutable.
///
/// In each call all lanes read their source before any lane writes its target. A lane may write the slot
/// that it reads itself; no lane reads a slot that another lane of the same call writes.
#[pyclass(frozen, module = "hsd._core")]
pub struct Program {
    inner: hsd_core::Program,
    calls: PyOnceLock<Py<PyAny>>,
}

impl From<hsd_core::Program> for Program {
    fn from(inner: hsd_core::Program) -> Self {
        Program { inner, calls: PyOnceLock::new() }
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

#[pymethods]
impl Program {
    #[getter]
    fn calls<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let batch_size = self.inner.batch_size();
        let scratch = self.inner.n_slots() as i32;
        let array = self.calls.get_or_try_init(py, || {
            let fill = |buffer: &mut [u8]| {
                for (call, lanes) in buffer.chunks_exact_mut(ITEMSIZE * batch_size).zip(self.inner.calls()) {
                    for (at, record) in call.chunks_exact_mut(ITEMSIZE).enumerate() {
                        match lanes.get(at) {
                            None => write(record, [-1, 0, scratch, scratch], [false; 3]),
                            Some(lane) => {
                                let numbers = [lane.segment, lane.step, lane.source, lane.target];
                                write(record, numbers.map(|n| n as i32), [lane.fresh, lane.begins, lane.last]);
                            }
                        }
                    }
                }
            };
            records(py, &FIELDS, ITEMSIZE, (self.inner.n_calls(), Some(batch_size)), fill).map(Bound::unbind)
        })?;
        Ok(array.bind(py).clone())
    }

    #[getter]
    fn lanes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.inner.calls().map(|lanes| lanes.len() as i64))
    }

    #[getter]
    fn n_calls(&self) -> usize {
        self.inner.n_calls()
    }

    #[getter]
    fn n_slots(&self) -> usize {
        self.inner.n_slots()
    }

    #[getter]
    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    #[getter]
    fn order(&self) -> &'static str {
        self.inner.order().name()
    }

    #[getter]
    fn occupancy(&self) -> f64 {
        self.inner.occupancy()
    }

    #[getter]
    fn lower_bound(&self) -> usize {
        self.inner.lower_bound()
    }

    #[pyo3(signature = (max_rows = 200))]
    fn describe(&self, max_rows: usize) -> String {
        self.inner.describe(max_rows)
    }

    fn __repr__(&self) -> String {
        format!(
            "Program({} calls of {} lanes, {} slots, order='{}')",
            self.inner.n_calls(),
            self.inner.batch_size(),
            self.inner.n_slots(),
            self.inner.order(),
        )
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let arguments = ("program", self.inner.batch_size(), self.inner.order().name(), self.inner.max_slots());
        rebuild(py, arguments, Plan::from(Arc::clone(self.inner.plan())))
    }
}

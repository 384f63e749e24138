//! Embeddings in Python's memory, in any of the types that the core reads.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use hsd_core::{Embeddings, Metric};
use numpy::ndarray::ArrayView2;
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;

use crate::arrays::{aligned, wrong_type};
use crate::errors::{positive, raise};
use crate::progress::watched;

/// A borrowed array of embeddings.
pub enum Borrowed<'py> {
    Half(PyReadonlyArray2<'py, f16>),
    /// The bits of bfloat16, which NumPy does not have.
    Bfloat16(PyReadonlyArray2<'py, u16>),
    Single(PyReadonlyArray2<'py, f32>),
    Double(PyReadonlyArray2<'py, f64>),
}

impl<'py> Borrowed<'py> {
    /// Borrows an array, or raises `TypeError`.
    pub fn new(embeddings: &Bound<'py, PyAny>, bfloat16: bool) -> PyResult<Self> {
        aligned("embeddings", embeddings)?;
        if bfloat16 {
            return embeddings
                .extract()
                .map(Borrowed::Bfloat16)
                .map_err(|_| wrong_type("embeddings", "uint16 array of shape (N, D), for bfloat16=True", embeddings));
        }
        let single = embeddings.extract().map(Borrowed::Single);
        let double = || embeddings.extract().map(Borrowed::Double);
        let half = || embeddings.extract().map(Borrowed::Half);
        single.or_else(|_: PyErr| double()).or_else(|_: PyErr| half()).map_err(|_: PyErr| {
            wrong_type("embeddings", "float16, float32 or float64 array of shape (N, D)", embeddings)
        })
    }
}

pub fn bf16_to_f64(bits: u16) -> f64 {
    bf16::from_bits(bits).to_f64()
}

/// The number of threads: one for each core unless it is given.
pub fn thread_count(threads: Option<i64>) -> PyResult<usize> {
    match threads {
        Some(threads) => positive("threads", threads),
        None => Ok(std::thread::available_parallelism().map_or(1, NonZeroUsize::get)),
    }
}

/// Raises what `Tree.build` would raise for these embeddings, without clustering them.
#[pyfunction]
#[pyo3(signature = (embeddings, *, metric = "cosine", bfloat16 = false, threads = None))]
pub fn check_embeddings(
    py: Python<'_>,
    embeddings: &Bound<'_, PyAny>,
    metric: &str,
    bfloat16: bool,
    threads: Option<i64>,
) -> PyResult<()> {
    fn check<T: Copy + Sync>(
        py: Python<'_>,
        view: ArrayView2<'_, T>,
        value: fn(T) -> f64,
        metric: Metric,
        threads: usize,
    ) -> PyResult<()> {
        watched(py, None, |progress| Embeddings::new(view, value, metric, threads, progress).map(drop))
    }

    let threads = thread_count(threads)?;
    let metric = metric.parse().map_err(raise)?;
    match Borrowed::new(embeddings, bfloat16)? {
        Borrowed::Half(array) => check(py, array.as_array(), f16::to_f64, metric, threads),
        Borrowed::Bfloat16(array) => check(py, array.as_array(), bf16_to_f64, metric, threads),
        Borrowed::Single(array) => check(py, array.as_array(), f64::from, metric, threads),
        Borrowed::Double(array) => check(py, array.as_array(), |x| x, metric, threads),
    }
}

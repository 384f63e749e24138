//! Thresholds: their shapes, and what is wrong with them.

use hsd_core::plan::schedule;
use hsd_core::Schedule;
use numpy::{PyArray1, ToPyArray};
use pyo3::prelude::*;

use crate::arrays::vector;
use crate::errors::{positive, raise};

/// A threshold curve for tau = 1: (K,) values in [0, 1] that never rise and end at exactly 0.
#[pyfunction]
pub fn schedule_shape<'py>(py: Python<'py>, name: &str, steps: i64) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let steps = positive("steps", steps)?;
    let schedule: Schedule = name.parse().map_err(raise)?;
    Ok(schedule.shape(steps).map_err(raise)?.to_pyarray(py))
}

/// The curve for tau = 1 that is best for weights (K,) of the error at each step.
#[pyfunction]
pub fn measured_shape<'py>(py: Python<'py>, weights: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let shape = schedule::measured_shape(&vector("weights", weights)?).map_err(raise)?;
    Ok(PyArray1::from_vec(py, shape))
}

/// Raises what `Tree.counts` and `Plan.compile` would raise for these thresholds.
#[pyfunction]
pub fn check_thresholds(phi: &Bound<'_, PyAny>) -> PyResult<()> {
    schedule::check(&vector("phi", phi)?).map_err(raise)
}

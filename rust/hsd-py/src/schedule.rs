//! Thresholds: their shapes, and what is wrong with them.

use hsd_core::plan::schedule::check;
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

/// Raises what `Tree.counts` and `Plan.compile` would raise for these thresholds.
#[pyfunction]
pub fn check_thresholds(phi: &Bound<'_, PyAny>) -> PyResult<()> {
    check(&vector("phi", phi)?).map_err(raise)
}

//! Python bindings of `hsd-core`, the module `hsd._core`: they convert, delegate and let go of the GIL.

mod arrays;
mod errors;
mod plan;
mod program;
mod progress;
mod tree;

use numpy::{PyArray1, ToPyArray};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::raise;

/// The compiled core of HSD: trees, plans and programs. Pure data in, pure data out; no torch.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::plan::Plan;
    #[pymodule_export]
    use super::program::{Chunks, Program};
    #[pymodule_export]
    use super::tree::Tree;
    use super::*;
    #[pymodule_export]
    use super::{build_info, schedule_shape};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Versions and build settings of the compiled module.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("plan_format", hsd_core::file::FORMAT.to_string())?;
    Ok(info)
}

/// A threshold curve for tau = 1: (K,) values in [0, 1] that never rise and end at exactly 0.
#[pyfunction]
fn schedule_shape<'py>(py: Python<'py>, name: &str, steps: i64) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let steps = errors::positive("steps", steps)?;
    Ok(hsd_core::schedule::shape(name, steps).map_err(raise)?.to_pyarray(py))
}

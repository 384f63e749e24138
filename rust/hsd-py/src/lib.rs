//! Python bindings of `hsd-core`, the module `hsd._core`: they convert, delegate and release the GIL.

mod arrays;
mod embeddings;
mod errors;
mod pickle;
mod plan;
mod program;
mod progress;
mod schedule;
mod tree;

use hsd_core::{Linkage, Metric, Order, Schedule};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// The compiled core of HSD: trees, plans and programs. Pure data in, pure data out; no torch.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::build_info;
    #[pymodule_export]
    use super::embeddings::check_embeddings;
    #[pymodule_export]
    use super::plan::Plan;
    #[pymodule_export]
    use super::program::{Chunks, Program};
    #[pymodule_export]
    use super::schedule::{check_thresholds, measured_shape, schedule_shape};
    #[pymodule_export]
    use super::tree::Tree;
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        module.add("LINKAGES", PyTuple::new(py, Linkage::NAMES)?)?;
        module.add("METRICS", PyTuple::new(py, Metric::NAMES)?)?;
        module.add("ORDERS", PyTuple::new(py, Order::NAMES)?)?;
        module.add("MOST_HEADER", hsd_core::plan::file::MOST_HEADER)?;
        module.add("NOISES", PyTuple::new(py, hsd_core::plan::file::NOISES)?)?;
        module.add("SCHEDULES", PyTuple::new(py, Schedule::NAMES)?)?;
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
    info.set_item("plan_format", hsd_core::plan::file::FORMAT.to_string())?;
    Ok(info)
}

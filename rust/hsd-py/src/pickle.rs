//! What the classes return to Python's pickle.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// What `__reduce__` returns for an object that `owner` makes by the method call `arguments`, `keywords`.
pub fn rebuild<'py>(
    py: Python<'py>,
    arguments: impl pyo3::call::PyCallArgs<'py>,
    keywords: Option<&Bound<'py, PyDict>>,
    owner: impl IntoPyObject<'py>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
    let call = py.import("operator")?.getattr("methodcaller")?.call(arguments, keywords)?;
    Ok((call, PyTuple::new(py, [owner])?))
}

//! Arrays between Python and Rust. From Python come copies of vectors, and the embeddings as a checked borrow. To
//! Python go read-only structured arrays.

use numpy::{dtype, Element, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

/// The entries of a one-axis array. A copy, because Python may write to the array while the GIL is released.
pub fn vector<T: Element + Copy>(what: &str, array: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    aligned(what, array)?;
    match array.extract::<PyReadonlyArray1<'_, T>>() {
        Ok(array) => Ok(array.as_array().iter().copied().collect()),
        Err(_) => Err(wrong_type(what, &format!("{} array of shape (n,)", name_of::<T>(array.py())?), array)),
    }
}

/// The rows of a two-axis array with two columns.
pub fn pairs<T: Element + Copy>(what: &str, array: &Bound<'_, PyAny>) -> PyResult<Vec<[T; 2]>> {
    aligned(what, array)?;
    match array.extract::<PyReadonlyArray2<'_, T>>() {
        Ok(rows) if rows.shape()[1] == 2 => {
            Ok(rows.as_array().rows().into_iter().map(|row| [row[0], row[1]]).collect())
        }
        Ok(rows) => {
            let columns = rows.shape()[1];
            Err(PyValueError::new_err(format!("{what} has {columns} columns; two are needed")))
        }
        Err(_) => Err(wrong_type(what, &format!("{} array of shape (n, 2)", name_of::<T>(array.py())?), array)),
    }
}

/// 32-bit indices as NumPy's usual integers.
pub fn indices<'py>(py: Python<'py>, values: &[u32]) -> Bound<'py, PyArray1<i64>> {
    PyArray1::from_iter(py, values.iter().map(|&value| i64::from(value)))
}

/// A `TypeError` for an array whose entries are not aligned in memory: NumPy can read them, Rust must not.
pub fn aligned(what: &str, array: &Bound<'_, PyAny>) -> PyResult<()> {
    let flag = array.getattr("flags").and_then(|flags| flags.getattr("aligned"));
    match flag.and_then(|flag| flag.is_truthy()) {
        Ok(false) => Err(PyTypeError::new_err(format!("{what} must be an aligned array; pass a copy of it"))),
        _ => Ok(()),
    }
}

/// `what` must be `needed`, but is `found`.
pub fn wrong_type(what: &str, needed: &str, found: &Bound<'_, PyAny>) -> PyErr {
    let text = |name: &str| found.getattr(name).and_then(|value| Ok(value.str()?.to_string()));
    let found = match (text("dtype"), text("shape")) {
        (Ok(dtype), Ok(shape)) => format!("{dtype} of shape {shape}"),
        _ => found.get_type().name().map_or_else(|_| "something else".to_owned(), |name| name.to_string()),
    };
    PyTypeError::new_err(format!("{what} must be a NumPy {needed}, not {found}"))
}

fn name_of<T: Element>(py: Python<'_>) -> PyResult<String> {
    Ok(dtype::<T>(py).str()?.to_string())
}

/// A read-only structured array over bytes that `fill` writes, `itemsize` a record (NumPy's aligned layout).
pub fn records<'py>(
    py: Python<'py>,
    fields: &[(&str, &str)],
    itemsize: usize,
    shape: (usize, Option<usize>),
    fill: impl FnOnce(&mut [u8]),
) -> PyResult<Bound<'py, PyAny>> {
    let numpy = py.import("numpy")?;
    let options = PyDict::new(py);
    options.set_item("align", true)?;
    let dtype = numpy.call_method("dtype", (PyList::new(py, fields)?,), Some(&options))?;
    let count = shape.0 * shape.1.unwrap_or(1);
    let size = count.checked_mul(itemsize).ok_or_else(|| PyValueError::new_err("the table does not fit in memory"))?;
    let bytes = PyBytes::new_with(py, size, |buffer| {
        fill(buffer);
        Ok(())
    })?;
    let array = numpy.call_method1("frombuffer", (bytes, dtype))?;
    match shape {
        (_, None) => Ok(array),
        (rows, Some(columns)) => array.call_method1("reshape", (rows, columns)),
    }
}

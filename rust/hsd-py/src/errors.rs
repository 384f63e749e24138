//! Core errors as Python exceptions.

use hsd_core::Error;
use pyo3::exceptions::{PyIndexError, PyMemoryError, PyValueError};
use pyo3::PyErr;

/// The exception for a core error: `ValueError`, unless Python has a name for it.
pub fn raise(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::NoSuchStep { .. } => PyIndexError::new_err(message),
        Error::NoMemory { .. } => PyMemoryError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}

/// A count that must be at least one and at most what 32-bit tables hold.
pub fn positive(what: &'static str, value: i64) -> Result<usize, PyErr> {
    match usize::try_from(value) {
        Ok(value) if value > 0 && value <= i32::MAX as usize => Ok(value),
        Ok(count) if count > 0 => Err(raise(Error::TooMany { what, count, limit: i32::MAX as usize })),
        _ => Err(raise(Error::NotPositive { what, value })),
    }
}

//! Long work: without the GIL, with progress, and stopped by Ctrl-C.

use std::ops::ControlFlow;

use hsd_core::Progress;
use pyo3::prelude::*;

use crate::errors::raise;

/// The result of `work`. About ten times a second, signals are handled and `callback` is called with the finished
/// fraction. An exception raised there stops the work and is raised in place of the core's `Interrupted`.
pub fn watched<T: Send>(
    py: Python<'_>,
    callback: Option<&Py<PyAny>>,
    work: impl FnOnce(&mut Progress<'_>) -> hsd_core::Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        let mut report = |fraction: f64| {
            let outcome = Python::attach(|py| {
                py.check_signals()?;
                callback.map_or(Ok(()), |callback| callback.call1(py, (fraction,)).map(drop))
            });
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        work(&mut Progress::new(&mut report))
    });
    match raised {
        Some(error) => Err(error),
        None => result.map_err(raise),
    }
}

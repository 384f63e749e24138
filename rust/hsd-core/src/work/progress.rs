//! Progress of a long computation, and the one way to stop it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often progress is reported.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Calls a function with the finished fraction, at the start, at the end and every [`INTERVAL`] between.
///
/// The function stops the work by [`ControlFlow::Break`]; the work then ends with [`Error::Interrupted`].
pub struct Progress<'a> {
    report: Option<&'a mut dyn FnMut(f64) -> ControlFlow<()>>,
    last: Option<Instant>,
    interval: Duration,
    range: (f64, f64),
}

impl<'a> Progress<'a> {
    /// Reports to `report`.
    pub fn new(report: &'a mut dyn FnMut(f64) -> ControlFlow<()>) -> Self {
        Progress { report: Some(report), ..Progress::unwatched() }
    }

    /// Reports to nobody: the work runs to its end.
    pub fn unwatched() -> Self {
        Progress { report: None, last: None, interval: INTERVAL, range: (0.0, 1.0) }
    }

    /// Makes every report, however short the time since the one before, as a very slow machine would.
    #[cfg(test)]
    pub(crate) fn eager(report: &'a mut dyn FnMut(f64) -> ControlFlow<()>) -> Self {
        Progress { interval: Duration::ZERO, ..Progress::new(report) }
    }

    /// Does a part of the work: from `begin` to `end`, as fractions of the part around it. `work` reports 0 to 1.
    pub fn part<T>(&mut self, begin: f64, end: f64, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let whole = self.range;
        let at = |fraction: f64| whole.0 + (whole.1 - whole.0) * fraction;
        self.range = (at(begin), at(end));
        let result = work(self);
        self.range = whole;
        result
    }

    /// Reports `done` of `total` if the last report is old enough.
    pub fn at(&mut self, done: usize, total: usize) -> Result<()> {
        if self.last.is_some_and(|last| last.elapsed() < self.interval) {
            return Ok(());
        }
        let (begin, end) = self.range;
        self.send(begin + (end - begin) * (done as f64 / total.max(1) as f64))
    }

    /// Reports that all is done.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.send(1.0)
    }

    fn send(&mut self, fraction: f64) -> Result<()> {
        self.last = Some(Instant::now());
        match self.report.as_mut().map(|report| report(fraction)) {
            Some(ControlFlow::Break(())) => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }
}

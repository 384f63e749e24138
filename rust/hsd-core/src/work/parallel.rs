//! Work shared among threads, while the calling thread reports progress.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam_channel::RecvTimeoutError;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::progress::{Progress, INTERVAL};
use crate::error::{Error, Result};

/// Whether the work is to end early. A task that can take long has to look at it now and then.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Whether to end now; unfinished results will not be used.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A piece of the work, and how much of it that is.
#[derive(Debug)]
pub struct Task<T> {
    /// What to work on.
    pub item: T,
    /// Its share, in any unit.
    pub cost: usize,
}

/// Threads that share work: a rayon pool. It took as long as threads started for each piece of work on 4,000 and 10,000
/// rows of 256 (within 3 %, two threads), and two thirds of that on 300 rows.
pub struct Workers(ThreadPool);

impl Workers {
    /// Starts `threads` threads, but no more than there can be tasks at once.
    pub fn new(threads: usize, most_tasks: usize) -> Result<Self> {
        let threads = threads.clamp(1, most_tasks.max(1));
        let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|at| format!("hsd-{at}"));
        let pool = builder.build().map_err(|error| Error::NoThreads { threads, why: error.to_string() })?;
        Ok(Workers(pool))
    }

    /// Does all tasks, the last in the list first. Each thread has its own scratch.
    ///
    /// The calling thread only reports progress, so that a report comes every [`INTERVAL`], however long a task takes.
    /// Tasks must not depend on each other: which thread does which task is not determined. If a task panics, the panic
    /// is passed on once the other threads are done.
    pub fn share<T: Send, S>(
        &self,
        tasks: Vec<Task<T>>,
        progress: &mut Progress<'_>,
        scratch: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, T, &Stop) + Sync,
    ) -> Result<()> {
        let total = tasks.iter().map(|task| task.cost).sum();
        let count = tasks.len().min(self.0.current_num_threads());
        let tasks = Mutex::new(tasks);
        let stop = Stop::default();
        let (sender, receiver) = crossbeam_channel::unbounded();
        self.0.in_place_scope(|scope| {
            for _ in 0..count {
                let (sender, tasks, stop, scratch, work) = (sender.clone(), &tasks, &stop, &scratch, &work);
                scope.spawn(move |_| {
                    let mut scratch = scratch();
                    while !stop.is_set() {
                        let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let Some(Task { item, cost }) = next else { break };
                        work(&mut scratch, item, stop);
                        if sender.send(cost).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut done = 0;
            loop {
                match receiver.recv_timeout(INTERVAL) {
                    Ok(cost) => done += cost,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                if let Err(error) = progress.at(done, total) {
                    stop.0.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        })
    }
}

/// `0..n` in runs of at most `size`.
pub fn runs(n: usize, size: usize) -> impl DoubleEndedIterator<Item = std::ops::Range<usize>> {
    (0..n.div_ceil(size)).map(move |at| at * size..((at + 1) * size).min(n))
}

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, AssertUnwindSafe};

    use super::*;

    #[test]
    fn a_panic_in_a_task_comes_out() {
        let workers = Workers::new(2, 100).unwrap();
        let share = |bad: usize| {
            let tasks = (0..100).map(|item| Task { item, cost: 1 }).collect();
            let work = |(): &mut (), item: usize, _: &Stop| assert_ne!(item, bad);
            workers.share(tasks, &mut Progress::unwatched(), || (), work)
        };
        assert!(catch_unwind(AssertUnwindSafe(|| share(40))).is_err());
        // The threads are still there.
        assert_eq!(share(100), Ok(()));
    }
}

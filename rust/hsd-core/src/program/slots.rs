//! Slots: rows of the latent buffer. They are allocated like registers, and without deadlocks.
//!
//! In short: a lane gets a slot only if, afterwards, there still is an order in which everything begun can be finished.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a lane that needs a slot requests. If one of several equal requests cannot be met, none of them can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Extra of the new value.
    pub extra: usize,
    /// The value that the lane reads, if it is not the start of a root.
    pub reading: Option<Reading>,
}

/// How a lane changes the need of the value that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading {
    /// The value's extra before.
    pub before: usize,
    /// Its extra afterwards; none if no other lane has to read it.
    pub after: Option<usize>,
}

/// A pool of slots without deadlocks.
///
/// A deadlock would be a buffer full of latents that each wait for another slot before they can free their own. Every
/// live value (a running segment, or a finished one that some children still have to read) will need some more slots,
/// its *extra*, before it frees its own. A state is safe if all live values can be finished one after the other, the
/// least extra first, each freeing its slot for the next: Dijkstra's banker's algorithm. A slot is allocated only if
/// the state afterwards is safe; then there is always a lane that can continue.
#[derive(Debug)]
pub struct Slots {
    limit: Option<usize>,
    used: usize,
    free: BinaryHeap<Reverse<u32>>,
    /// Freed during this call, usable from the next one on.
    freed: Vec<u32>,
    /// Number of live values by extra. Extras grow with the logarithm of the set, so this list is short.
    live: Vec<usize>,
    /// Whether this call has changed what is free or live.
    changed: bool,
}

impl Slots {
    /// At most `limit` slots.
    pub fn new(limit: Option<usize>) -> Self {
        Slots { limit, used: 0, free: BinaryHeap::new(), freed: Vec::new(), live: Vec::new(), changed: false }
    }

    /// A free slot, the lowest first. None, and nothing changed, if no slot is free or the state after it would not
    /// be safe.
    pub fn take(&mut self, Request { extra, reading }: Request) -> Option<u32> {
        if self.free.is_empty() && self.limit.is_some_and(|limit| self.used >= limit) {
            return None;
        }
        self.add(extra);
        if let Some(Reading { before, after }) = reading {
            self.remove(before);
            after.into_iter().for_each(|after| self.add(after));
        }
        if !self.is_safe() {
            self.remove(extra);
            if let Some(Reading { before, after }) = reading {
                after.into_iter().for_each(|after| self.remove(after));
                self.add(before);
            }
            return None;
        }
        self.changed = true;
        Some(self.free.pop().map_or_else(
            || {
                self.used += 1;
                self.used as u32 - 1
            },
            |Reverse(slot)| slot,
        ))
    }

    /// A value with this extra is no longer needed.
    pub fn retire(&mut self, extra: usize) {
        self.remove(extra);
        self.changed = true;
    }

    /// The content of `slot` is not needed after this call.
    pub fn free(&mut self, slot: u32) {
        self.freed.push(slot);
        self.changed = true;
    }

    /// The call is complete. False if a request that could not be met in this call cannot be met in the next one
    /// either.
    pub fn end_call(&mut self) -> bool {
        self.free.extend(self.freed.drain(..).map(Reverse));
        std::mem::take(&mut self.changed)
    }

    fn add(&mut self, extra: usize) {
        if self.limit.is_none() {
            return;
        }
        if self.live.len() <= extra {
            self.live.resize(extra + 1, 0);
        }
        self.live[extra] += 1;
    }

    fn remove(&mut self, extra: usize) {
        if self.limit.is_some() {
            self.live[extra] -= 1;
        }
    }

    fn is_safe(&self) -> bool {
        let Some(limit) = self.limit else { return true };
        let live: usize = self.live.iter().sum();
        let Some(mut available) = limit.checked_sub(live) else { return false };
        for (extra, &count) in self.live.iter().enumerate() {
            if count > 0 && available < extra {
                return false;
            }
            available += count;
        }
        true
    }
}

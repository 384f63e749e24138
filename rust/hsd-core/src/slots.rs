//! Slots: rows of the latent buffer, handed out like registers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a lane that needs a slot asks for. Of lanes that ask for the same, all can be served or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Extra of the new value.
    pub extra: usize,
    /// The value that the lane reads, if it is not the start of a root.
    pub reader: Option<Reader>,
}

/// How a lane changes the value that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reader {
    /// The value's extra before.
    pub from: usize,
    /// Its extra afterwards; none if this was the last to read it.
    pub to: Option<usize>,
}

/// A pool of slots that never runs into a deadlock.
///
/// Every live value (a running segment, or a finished one with children still to read it) will need some slots
/// more, its *extra*, before it gives back its own. A state is safe if the values can be finished one after the
/// other, least extra first, each giving back its slot: Dijkstra's banker. A slot is handed out only if the state
/// after it is safe; then there is always a lane that can go on.
#[derive(Debug)]
pub struct Slots {
    limit: Option<usize>,
    used: usize,
    free: BinaryHeap<Reverse<u32>>,
    /// Freed during this call, usable from the next one on.
    freed: Vec<u32>,
    /// Number of live values by extra. Extras grow with the logarithm of the set, so this stays short.
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
    pub fn take(&mut self, Request { extra, reader }: Request) -> Option<u32> {
        if self.free.is_empty() && self.limit.is_some_and(|limit| self.used >= limit) {
            return None;
        }
        self.add(extra);
        if let Some(Reader { from, to }) = reader {
            self.remove(from);
            to.into_iter().for_each(|to| self.add(to));
        }
        if !self.is_safe() {
            self.remove(extra);
            if let Some(Reader { from, to }) = reader {
                to.into_iter().for_each(|to| self.remove(to));
                self.add(from);
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

    /// A value with extra `extra` is gone.
    pub fn retire(&mut self, extra: usize) {
        self.remove(extra);
        self.changed = true;
    }

    /// `slot` holds nothing that is needed after this call.
    pub fn give(&mut self, slot: u32) {
        self.freed.push(slot);
        self.changed = true;
    }

    /// The call is complete. False if what could not be served in it cannot be in the next one either.
    pub fn end_call(&mut self) -> bool {
        self.free.extend(self.freed.drain(..).map(Reverse));
        std::mem::take(&mut self.changed)
    }

    fn add(&mut self, extra: usize) {
        if self.live.len() <= extra {
            self.live.resize(extra + 1, 0);
        }
        self.live[extra] += 1;
    }

    fn remove(&mut self, extra: usize) {
        self.live[extra] -= 1;
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

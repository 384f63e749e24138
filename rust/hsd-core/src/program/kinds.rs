//! Kinds of segments: all lanes of a call are of one kind.

use std::sync::Arc;

use crate::error::{index_count, Error, Result};

/// The kind of each segment. A network that takes lanes of one shape only, such as one length of text, is called with
/// lanes of one kind. A segment may have another kind than the one that it forks from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kinds {
    given: Arc<[i64]>,
    /// The same kinds, numbered in ascending order without gaps.
    of_segment: Arc<[u32]>,
    count: usize,
}

impl Kinds {
    /// Of `n_segments` segments.
    pub fn new(n_segments: usize, kinds: &[i64]) -> Result<Self> {
        if kinds.len() != n_segments {
            return Err(Error::Length { what: "kinds", found: kinds.len(), expected: n_segments });
        }
        if let Some(segment) = kinds.iter().position(|&kind| kind < 0) {
            return Err(Error::BadKind { segment, value: kinds[segment] });
        }
        let mut distinct = kinds.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        index_count("kinds", distinct.len())?;
        let of_segment = kinds.iter().map(|kind| distinct.partition_point(|other| other < kind) as u32).collect();
        Ok(Kinds { given: kinds.into(), of_segment, count: distinct.len() })
    }

    /// The kinds as they were given.
    pub fn given(&self) -> &[i64] {
        &self.given
    }

    /// How many different kinds there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The kind of a segment, below [`Kinds::count`].
    pub fn of(&self, segment: u32) -> u32 {
        self.of_segment[segment as usize]
    }
}

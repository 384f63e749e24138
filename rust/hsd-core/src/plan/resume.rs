//! What is left of a plan where the states of some segments are known: a set that grows continues from them.

use std::sync::Arc;

use super::Plan;
use crate::error::{Error, Result};

impl Plan {
    /// The plan without what `given` makes needless: it says of which segments the state at their end is known. Segments
    /// that reach the last step stay, and those that are not given and that another one forks from. One whose parent is
    /// left out has no parent, and begins at its own first step, with the state at its parent's end.
    ///
    /// Such a plan cannot be written to a file or pickled: it can only run where these states are.
    pub fn resume(&self, given: &[bool]) -> Result<Plan> {
        let n = self.segments().len();
        if given.len() != n {
            return Err(Error::Length { what: "given", found: given.len(), expected: n });
        }
        let segments = self.needed(|row, segment| segment.end_step as usize == self.n_steps() || !given[row]);
        Plan::new(Arc::clone(self.tree()), Arc::clone(self.phi()), self.kept().to_vec(), segments)
    }
}

//! The parts of a call: its lanes, and the order in which they are chosen.

use crate::choice::named_choice;

named_choice! {
    "order";
    /// Which ready node-steps a call takes first.
    pub enum Order {
        /// The latest step first: images finish early and few latents are alive. If all lanes of a call are at one
        /// step, the latest that fills a call, which gives the fewest calls possible.
        Depth = "depth",
        /// The earliest step first: the fewest calls possible (Hu 1961, highest level first; level by level, if all
        /// lanes of a call are at one step).
        Breadth = "breadth",
    }
}

/// One row of a call: one segment at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The segment.
    pub segment: u32,
    /// The step.
    pub step: u32,
    /// The slot that holds the latent before the step.
    pub source: u32,
    /// The slot that holds it afterwards.
    pub target: u32,
    /// It starts a root: its first latent has to be drawn into `source` before the call, or in a resumed plan the state
    /// put there that it continues.
    pub fresh: bool,
    /// It is the segment's first step.
    pub begins: bool,
    /// It is the last step of all: `target` holds a finished latent right after the call.
    pub last: bool,
}

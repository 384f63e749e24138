//! The compiler of HSD, without Python: embeddings become a [`Tree`], a tree cut by thresholds becomes a [`Plan`],
//! and a plan is lowered to a [`Program`], a table of batched calls that an executor replays.
//!
//! The same input gives the same bytes on any machine and with any number of threads: ties break by lowest index,
//! and no hash order reaches a result. What is built or loaded is checked before it exists.
#![forbid(unsafe_code)]

pub mod centroid;
pub mod distance;
mod error;
pub mod file;
pub mod forest;
pub mod linkage;
pub mod naive;
mod places;
mod plan;
mod program;
mod progress;
mod prune;
pub mod schedule;
mod scheduler;
pub mod simulate;
mod slots;
mod text;
mod tree;
pub mod validate;

pub use error::{Error, Result};
pub use linkage::Linkage;
pub use plan::{Plan, Segment};
pub use program::{Calls, Lane, Order, Program};
pub use progress::{Progress, INTERVAL};
pub use tree::Tree;

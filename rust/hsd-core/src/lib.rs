//! The compiler of HSD, without Python: embeddings become a [`Tree`], a tree cut by thresholds becomes a [`Plan`],
//! and a plan is lowered to a [`Program`], a table of batched calls that an executor replays.
//!
//! The same input gives the same bytes with any number of threads: ties break by lowest index, and no hash order reaches
//! a result. (Machines with other vector instructions may round the last bit of a distance otherwise.) What is built or
//! loaded is checked before it exists.
#![forbid(unsafe_code)]

mod cells;
mod centroid;
mod chain;
mod clusters;
mod distance;
pub mod embeddings;
mod error;
pub mod file;
pub mod forest;
mod large;
pub mod linkage;
mod matrix;
pub mod naive;
mod parallel;
mod places;
mod plan;
mod program;
mod progress;
mod prune;
mod ready;
mod rounds;
pub mod schedule;
mod scheduler;
mod simd;
pub mod simulate;
mod slots;
mod text;
mod tree;
mod update;
pub mod validate;

pub use embeddings::Embeddings;
pub use error::{Error, Result};
pub use linkage::{Linkage, Method, Resources};
pub use plan::{Plan, Segment};
pub use program::{Calls, Lane, Order, Program};
pub use progress::{Progress, INTERVAL};
pub use tree::Tree;

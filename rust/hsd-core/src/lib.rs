//! The compiler of HSD, without Python. [`cluster::build_tree`] clusters embeddings to a [`Tree`], a tree cut at
//! thresholds is a [`Plan`], and a plan is lowered to a [`Program`], a table of batched calls that an executor replays.
//!
//! It implements *Reusing Computation in Text-to-Image Diffusion for Efficient Generation of Image Sets* (arXiv
//! 2508.21032). Where its equations are: Eqs. 3-5, the distance of clusters, in `cluster/centroid.rs`; Eq. 6, the clusters
//! that Algorithm 1 runs at each step, in `plan/mod.rs` (`cut`); Eq. 7, the thresholds, in `plan/schedule.rs`.
//!
//! The same input gives the same bytes with any number of threads: ties are broken by lowest index, and no hash order
//! reaches a result. (Machines with other vector instructions may round the last bit of a distance differently: a plan's
//! fingerprint is of its clusters, and does not notice.)
//! Whatever is built or loaded is checked before it exists.
#![forbid(unsafe_code)]

mod choice;
pub mod cluster;
mod error;
pub mod plan;
pub mod program;
mod text;
mod tree;
mod work;

pub use cluster::embeddings::Embeddings;
pub use cluster::linkage::Linkage;
pub use cluster::metric::Metric;
pub use cluster::{Method, Resources};
pub use error::{Error, Result};
pub use plan::schedule::Schedule;
pub use plan::segment::Segment;
pub use plan::Plan;
pub use program::kinds::Kinds;
pub use program::lane::{Lane, Order};
pub use program::rows::Rows;
pub use program::{Calls, PerLane, Program};
pub use tree::Tree;
pub use work::progress::{Progress, INTERVAL};

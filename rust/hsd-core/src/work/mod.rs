//! How long work is done: by several threads, with progress, and with the machine's vector instructions.

pub mod parallel;
pub mod progress;
pub mod simd;

//! How far apart two embeddings are.

use crate::choice::named_choice;

named_choice! {
    "metric";
    /// The distance of two embeddings.
    ///
    /// Both are half a squared difference at heart, which is what a tile computes: of the unit rows for the cosine
    /// distance, of the rows as given for the Euclidean one. [`Linkage::definition`](super::linkage::Linkage) says what
    /// each linkage makes of it.
    pub enum Metric {
        /// `1 - cos`, as in the paper (arXiv 2508.21032, Eq. 3). Lengths do not count, so a row of zeros has none.
        Cosine = "cosine",
        /// `|x - y|`. Lengths count, and a row of zeros is a row like any other.
        Euclidean = "euclidean",
    }
}

//! Loops compiled for the widest vectors that the machine has.

/// Runs `work` compiled for this machine's vector instructions, whatever the build was for. Functions that it
/// calls are included only if they are inlined. Results do not change: nothing is reordered or fused.
#[inline(always)]
pub fn widest<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

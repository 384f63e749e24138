//! What the digests of a file and of a plan have in common.

use sha2::{Digest, Sha256};

use super::Plan;
use crate::error::{Error, Result};

/// Checks that there is one prompt and one seed for each leaf of the plan's tree.
pub(super) fn check_lengths<S>(plan: &Plan, prompts: &[S], seeds: &[i64]) -> Result<()> {
    let expected = plan.n_prompts();
    for (what, found) in [("the list of prompts", prompts.len()), ("seeds", seeds.len())] {
        if found != expected {
            return Err(Error::Length { what, found, expected });
        }
    }
    Ok(())
}

/// Digest of the prompts and seeds: what a plan was made for.
pub(super) fn digest_prompts<S: AsRef<str>>(prompts: &[S], seeds: &[i64]) -> String {
    let mut hash = Sha256::new();
    for prompt in prompts {
        hash.update((prompt.as_ref().len() as u64).to_le_bytes());
        hash.update(prompt.as_ref());
    }
    seeds.iter().for_each(|seed| hash.update(seed.to_le_bytes()));
    hex(hash)
}

/// The digest in hexadecimal digits.
pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

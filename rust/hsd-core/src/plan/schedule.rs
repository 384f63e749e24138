//! Thresholds: how dissimilar the prompts of one cluster may be at each step, and what that costs.

use crate::choice::named_choice;
use crate::error::{index_count, Error, Result};
use crate::tree::Tree;

named_choice! {
    "schedule";
    /// The shape of a threshold curve. With `x = k / (steps - 1)` at step k:
    pub enum Schedule {
        /// `1 - x`, as in the code of the paper's authors.
        Linear = "linear",
        /// Eq. 7 of arXiv 2508.21032 for tau = 1: `1 - (k + 1) / steps`.
        PaperEq7 = "paper-eq7",
        /// `cos(x π/2)`.
        Cosine = "cosine",
        /// `ln(1 + (e - 1)(1 - x))`.
        Log = "log",
        /// `(1 - x)²`: clusters split earlier, which leaves more steps to catch up.
        Quadratic = "quadratic",
    }
}

impl Schedule {
    /// The curve for tau = 1: `steps` values in [0, 1] that never rise and end at exactly 0.
    pub fn shape(self, steps: usize) -> Result<Vec<f64>> {
        if steps == 0 {
            return Err(Error::NoSteps);
        }
        let at = |k: usize| {
            if k + 1 == steps {
                return 0.0; // The cosine of π/2 is not exactly 0 in floating point.
            }
            let x = k as f64 / (steps - 1) as f64;
            match self {
                Schedule::Linear => 1.0 - x,
                Schedule::PaperEq7 => 1.0 - (k + 1) as f64 / steps as f64,
                Schedule::Cosine => (x * std::f64::consts::FRAC_PI_2).cos(),
                Schedule::Quadratic => (1.0 - x) * (1.0 - x),
                Schedule::Log => ((std::f64::consts::E - 1.0) * (1.0 - x)).ln_1p().min(1.0),
            }
        };
        Ok((0..steps).map(at).collect())
    }
}

/// The curve for tau = 1 that is best if sharing costs `weights[k]` at step k for each unit of the sum of squared
/// distances of prompts from the means of their clusters: proportional to `1 / sqrt(pooled weight)`, 1 at its largest,
/// never rising, 0 at the last step.
///
/// Why it is best, on a tree of Ward's method with Euclidean distances. There a join of height h adds h²/2 to the sum of
/// squares. So for any price λ of a node-step, joining two clusters at step k pays if and only if `weights[k] h²/2 < λ`,
/// that is, `h < τ / sqrt(weights[k])` with `λ = τ²/2`: the cut at that threshold has the least error + λ · node-steps of
/// all cuts of the tree at step k (cost-complexity pruning: Breiman et al., *Classification and Regression Trees*, 1984,
/// section 3.3). At equality both choices are equally good, and the cut splits. If the weights never fall, the thresholds
/// never rise, so that the best cuts of all steps are nested and together a plan. Then no plan of the tree that costs the
/// same has a lower error.
///
/// Where weights fall, a cluster that was split cannot be joined again. A join that lasts until step s has the error
/// `h²/2` times the sum of the first s weights, so the best s is where a line of slope `2 λ / h²` touches these sums from
/// below: only their greatest convex minorant counts, and its slopes are the pooled weights (isotonic regression, pool
/// adjacent violators). So with these the same holds for all weights.
///
/// A negative weight, as a measurement may give it, counts as 0. First steps whose pooled weight is 0 take the first
/// threshold that is limited, instead of a larger one of which nothing is known.
pub fn measured_shape(weights: &[f64]) -> Result<Vec<f64>> {
    if weights.is_empty() {
        return Err(Error::Empty { what: "weights" });
    }
    if let Some((step, &value)) = weights.iter().enumerate().find(|(_, weight)| !weight.is_finite()) {
        return Err(Error::BadWeight { step, value });
    }
    let steps = weights.len() - 1;
    if steps == 0 && weights[0] > 0.0 {
        return Ok(vec![0.0]);
    }
    // All prompts are single at the last step, whatever its weight.
    let pooled = pool(&weights[..steps]);
    let Some(&first) = pooled.iter().find(|&&weight| weight > 0.0) else {
        return Err(Error::NoPositiveWeight { steps });
    };
    // Roots first: the quotient of a tiny and a huge weight may be 0.
    let threshold = |weight: &f64| first.sqrt() / weight.max(first).sqrt();
    Ok(pooled.iter().map(threshold).chain([0.0]).collect())
}

/// Weights with neighbours that fall replaced by their mean, until none fall.
fn pool(weights: &[f64]) -> Vec<f64> {
    let mut runs: Vec<(f64, usize)> = Vec::with_capacity(weights.len());
    for weight in weights {
        let (mut mean, mut count) = (weight.max(0.0), 1);
        while let Some(&(before, length)) = runs.last().filter(|(before, _)| *before > mean) {
            runs.pop();
            // Shares first: the sum of two weights may be too large for a number.
            let total = (length + count) as f64;
            mean = before * (length as f64 / total) + mean * (count as f64 / total);
            count += length;
        }
        runs.push((mean, count));
    }
    runs.into_iter().flat_map(|(mean, count)| std::iter::repeat_n(mean, count)).collect()
}

/// Checks thresholds: finite, not negative, never rising, 0 at the end.
pub fn check(phi: &[f64]) -> Result<()> {
    let Some(&last) = phi.last() else { return Err(Error::NoSteps) };
    index_count("steps", phi.len())?;
    for (step, &value) in phi.iter().enumerate() {
        if !value.is_finite() || value < 0.0 {
            return Err(Error::BadThreshold { step, value });
        }
        if step > 0 && value > phi[step - 1] {
            return Err(Error::RisingThreshold { step, before: phi[step - 1], value });
        }
    }
    if last != 0.0 {
        return Err(Error::LastThreshold { step: phi.len() - 1, value: last });
    }
    Ok(())
}

/// The first step at which a node of this height is split, or the number of steps.
pub(super) fn first_split(phi: &[f64], height: f64) -> u32 {
    phi.partition_point(|&threshold| threshold > height) as u32
}

/// Number of clusters when nodes of at least this height are split.
fn count(tree: &Tree, threshold: f64) -> i64 {
    let whole = tree.sorted_heights().partition_point(|&height| height < threshold);
    (tree.n_leaves() - whole) as i64
}

/// Number of active clusters at each step: `1 + #{heights >= phi[k]}`.
pub fn counts(tree: &Tree, phi: &[f64]) -> Result<Vec<i64>> {
    check(phi)?;
    Ok(phi.iter().map(|&threshold| count(tree, threshold)).collect())
}

/// Sum of [`counts`].
pub fn node_steps(tree: &Tree, phi: &[f64]) -> Result<i64> {
    Ok(counts(tree, phi)?.iter().sum())
}

/// The smallest tau whose thresholds `tau * shape` cost at most `target` node-steps, exact to the last bit.
pub fn tau_for_node_steps(tree: &Tree, shape: &[f64], target: i64) -> Result<f64> {
    check(shape)?;
    let cost = |tau: f64| shape.iter().map(|&s| count(tree, tau * s)).sum::<i64>();
    if cost(0.0) <= target {
        return Ok(0.0);
    }
    // The largest tau that keeps every threshold finite.
    let mut most = f64::MAX / shape[0].max(1.0);
    while !(most * shape[0]).is_finite() {
        most = f64::from_bits(most.to_bits() - 1);
    }
    let least = cost(most);
    if least > target {
        return Err(Error::BudgetTooSmall { target, least });
    }
    // Positive floats have the same order as their bits, and the cost never rises with tau.
    let (mut fails, mut holds) = (0, most.to_bits());
    while holds - fails > 1 {
        let middle = fails + (holds - fails) / 2;
        if cost(f64::from_bits(middle)) <= target {
            holds = middle;
        } else {
            fails = middle;
        }
    }
    Ok(f64::from_bits(holds))
}

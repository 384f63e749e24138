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
                Schedule::Log => ((std::f64::consts::E - 1.0) * (1.0 - x)).ln_1p().min(1.0),
            }
        };
        Ok((0..steps).map(at).collect())
    }
}

/// The curve for tau = 1 that is best if sharing costs `weights[k]` at step k for each unit of the sum of squared
/// distances of prompts from the means of their clusters: proportional to `1 / sqrt(weights[k])`, 1 at its largest, made
/// to never rise, 0 at the last step.
///
/// Why it is best, on a tree of Ward's method with Euclidean distances. There a join of height h adds h²/2 to the sum of
/// squares. So for any price λ of a node-step, joining two clusters at step k pays if and only if `weights[k] h²/2 < λ`,
/// that is, `h < τ / sqrt(weights[k])` with `λ = τ²/2`: the cut at that threshold has the least error + λ · node-steps of
/// all cuts of the tree at step k (cost-complexity pruning: Breiman et al., *Classification and Regression Trees*, 1984,
/// section 3.3). At equality both choices are equally good, and the cut splits. If the weights never fall, the thresholds
/// never rise, so that the best cuts of all steps are nested and together a plan. Then no plan of the tree that costs the
/// same has a lower error. (A plan whose cost is between those of two τ may have a lower error than a straight line
/// between these two, but none is below that line.)
///
/// Where the weights fall, a threshold is limited by those before it, because a cluster that was split cannot be joined
/// again. A weight that is 0 or negative, as a measurement may give it, limits nothing by itself: its step takes the
/// threshold of the step before, and first steps of this kind take the first one that is limited, instead of a larger one
/// of which nothing is known.
pub fn measured_shape(weights: &[f64]) -> Result<Vec<f64>> {
    if weights.is_empty() {
        return Err(Error::Empty { what: "weights" });
    }
    if let Some((step, &value)) = weights.iter().enumerate().find(|(_, weight)| !weight.is_finite()) {
        return Err(Error::BadWeight { step, value });
    }
    let steps = weights.len() - 1;
    let mut most = 0.0f64;
    // The thresholds are compared by their weights: the largest weight so far is the smallest threshold so far.
    let so_far: Vec<f64> = weights[..steps]
        .iter()
        .map(|&weight| {
            most = most.max(weight);
            most
        })
        .collect();
    let Some(&first) = so_far.iter().find(|&&weight| weight > 0.0) else {
        return if steps == 0 && weights[0] > 0.0 { Ok(vec![0.0]) } else { Err(Error::NoPositiveWeight { steps }) };
    };
    // Roots first: the quotient of a tiny and a huge weight may be 0.
    let threshold = |weight: &f64| first.sqrt() / weight.max(first).sqrt();
    Ok(so_far.iter().map(threshold).chain([0.0]).collect())
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

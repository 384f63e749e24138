//! Thresholds: how unlike the prompts of one cluster may be at each step, and what that costs.

use crate::error::{Error, Result};
use crate::tree::Tree;

/// Names of the shapes that [`shape`] knows.
pub const SHAPES: [&str; 4] = ["linear", "paper-eq7", "cosine", "log"];

/// A threshold curve for tau = 1: `steps` values in [0, 1] that never rise and end at exactly 0.
///
/// With `x = k / (steps - 1)`: `linear` is `1 - x`, `cosine` is `cos(x π/2)`, `log` is `ln(1 + (e - 1)(1 - x))`.
/// `paper-eq7` is the paper's Eq. 7, `1 - (k + 1) / steps`. A single step is 0 in all of them.
pub fn shape(name: &str, steps: usize) -> Result<Vec<f64>> {
    if steps == 0 {
        return Err(Error::NoSteps);
    }
    let curve: fn(f64) -> f64 = match name {
        "linear" | "paper-eq7" => |x| 1.0 - x,
        "cosine" => |x| (x * std::f64::consts::FRAC_PI_2).cos(),
        "log" => |x| ((std::f64::consts::E - 1.0) * (1.0 - x)).ln_1p().min(1.0),
        _ => {
            return Err(Error::UnknownName {
                what: "schedule",
                name: name.to_owned(),
                choices: "\"linear\", \"paper-eq7\", \"cosine\", \"log\"",
            })
        }
    };
    let at = |k: usize| {
        if k + 1 == steps {
            0.0 // The cosine of π/2 is not exactly 0 in floating point.
        } else if name == "paper-eq7" {
            curve((k + 1) as f64 / steps as f64)
        } else {
            curve(k as f64 / (steps - 1) as f64)
        }
    };
    Ok((0..steps).map(at).collect())
}

/// Checks thresholds: finite, not negative, never rising, 0 at the end.
pub fn check(phi: &[f64]) -> Result<()> {
    let Some(&last) = phi.last() else { return Err(Error::NoSteps) };
    crate::error::index_count("steps", phi.len())?;
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
    // Positive floats are ordered as their bits are, and the cost never rises with tau.
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

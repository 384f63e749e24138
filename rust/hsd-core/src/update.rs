//! The formulas of the reducible linkages, for which joining two clusters brings neither nearer to a third.

/// How the distances of joined clusters follow from those of their parts.
///
/// Sizes and distances are named after the clusters: `[a, b, c]` are sizes, `ac` is the distance of a and c.
pub trait Update: Copy + Sync {
    /// What is kept of a distance: itself, or a power of it.
    const POWER: Power;

    /// Distance from `a ∪ b` to c. What is returned, and taken, is kept in the form that [`Update::POWER`] says.
    fn joined(self, ab: f64, between: [f64; 2], sizes: [f64; 3]) -> f64;

    /// Distance from `a ∪ b` to `c ∪ d`, of `[ac, ad, bc, bd]`. The same to the last bit if the pairs change places.
    fn both_joined(self, ab: f64, cd: f64, between: [f64; 4], sizes: [f64; 4]) -> f64;

    /// [`Update::joined`] in single precision. Rounding must not bring the joined cluster nearer than its parts
    /// were, on which all that is done with reducible linkages rests.
    #[inline(always)]
    fn pair(self, ab: f32, [ac, bc]: [f32; 2], sizes: [f64; 3]) -> f32 {
        let joined = self.joined(ab.into(), [ac.into(), bc.into()], sizes) as f32;
        greater(joined, lesser(ac, bc))
    }

    /// [`Update::both_joined`] in single precision, likewise.
    #[inline(always)]
    fn pairs(self, ab: f32, cd: f32, between: [f32; 4], sizes: [f64; 4]) -> f32 {
        let joined = self.both_joined(ab.into(), cd.into(), between.map(f64::from), sizes) as f32;
        let [ac, ad, bc, bd] = between;
        greater(joined, lesser(lesser(ac, bd), lesser(ad, bc)))
    }
}

/// What is kept of a distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// The distance.
    One,
    /// Its square.
    Two,
}

/// Ward's linkage (Müllner, arXiv 1109.2378, Figure 2), of squared distances, which need no root.
#[derive(Debug, Clone, Copy)]
pub struct Ward;

impl Update for Ward {
    const POWER: Power = Power::Two;

    #[inline(always)]
    fn joined(self, ab: f64, [ac, bc]: [f64; 2], [a, b, c]: [f64; 3]) -> f64 {
        ((a + c) * ac + (b + c) * bc - c * ab) / (a + b + c)
    }

    #[inline(always)]
    fn both_joined(self, ab: f64, cd: f64, [ac, ad, bc, bd]: [f64; 4], [a, b, c, d]: [f64; 4]) -> f64 {
        let across = ((a + c) * ac + (b + d) * bd) + ((a + d) * ad + (b + c) * bc);
        (across - ((c + d) * ab + (a + b) * cd)) / ((a + b) + (c + d))
    }
}

/// The mean distance between members of one and members of the other.
#[derive(Debug, Clone, Copy)]
pub struct Average;

impl Update for Average {
    const POWER: Power = Power::One;

    #[inline(always)]
    fn joined(self, _: f64, [ac, bc]: [f64; 2], [a, b, _]: [f64; 3]) -> f64 {
        (a * ac + b * bc) / (a + b)
    }

    #[inline(always)]
    fn both_joined(self, _: f64, _: f64, [ac, ad, bc, bd]: [f64; 4], [a, b, c, d]: [f64; 4]) -> f64 {
        ((a * c * ac + b * d * bd) + (a * d * ad + b * c * bc)) / ((a + b) * (c + d))
    }
}

/// The largest distance between a member of one and a member of the other.
#[derive(Debug, Clone, Copy)]
pub struct Complete;

impl Update for Complete {
    const POWER: Power = Power::One;

    #[inline(always)]
    fn joined(self, _: f64, [ac, bc]: [f64; 2], _: [f64; 3]) -> f64 {
        ac.max(bc)
    }

    #[inline(always)]
    fn both_joined(self, _: f64, _: f64, [ac, ad, bc, bd]: [f64; 4], _: [f64; 4]) -> f64 {
        ac.max(ad).max(bc.max(bd))
    }
}

#[inline(always)]
fn lesser(x: f32, y: f32) -> f32 {
    if x < y {
        x
    } else {
        y
    }
}

#[inline(always)]
fn greater(x: f32, y: f32) -> f32 {
    if x > y {
        x
    } else {
        y
    }
}

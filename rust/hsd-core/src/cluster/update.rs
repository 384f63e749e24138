//! The formulas of the reducible linkages, for which a joined cluster is not nearer to a third
//! than the nearer of its parts was.

/// How the distances of joined clusters follow from those of their parts.
///
/// Sizes and distances are named after the clusters: `[a, b, c]` are sizes, `ac` is the distance of a and c, or its
/// square if the matrix has squares.
pub trait Update: Copy + Default + Sync {
    /// Distance from `a ∪ b` to c.
    fn joined(self, ab: f64, between: [f64; 2], sizes: [f64; 3]) -> f64;

    /// Distance from `a ∪ b` to `c ∪ d`, of `[ac, ad, bc, bd]`. The same to the last bit if the two pairs are
    /// exchanged.
    fn both_joined(self, ab: f64, cd: f64, between: [f64; 4], sizes: [f64; 4]) -> f64;

    /// [`Update::joined`] in single precision. Rounding must not bring the joined cluster nearer than its parts were:
    /// the rounds and the chain rely on that.
    #[inline(always)]
    fn pair(self, ab: f32, [ac, bc]: [f32; 2], sizes: [f64; 3]) -> f32 {
        let joined = self.joined(ab.into(), [ac.into(), bc.into()], sizes) as f32;
        greater(joined, lesser(ac, bc))
    }

    /// [`Update::both_joined`] in single precision, with the same guarantee.
    #[inline(always)]
    fn pairs(self, ab: f32, cd: f32, between: [f32; 4], sizes: [f64; 4]) -> f32 {
        let joined = self.both_joined(ab.into(), cd.into(), between.map(f64::from), sizes) as f32;
        let [ac, ad, bc, bd] = between;
        greater(joined, lesser(lesser(ac, bd), lesser(ad, bc)))
    }
}

/// Ward's linkage (Müllner, arXiv 1109.2378, Figure 2), of squared distances, which need no root.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ward;

impl Update for Ward {
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
#[derive(Debug, Clone, Copy, Default)]
pub struct Average;

impl Update for Average {
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
#[derive(Debug, Clone, Copy, Default)]
pub struct Complete;

impl Update for Complete {
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

//! One row of a plan.

/// One cluster over the run of steps in which it is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Row of the segment that it forks from; none at step 0, and none in a resumed plan if that one is given.
    pub parent: Option<u32>,
    /// Its first step.
    pub first_step: u32,
    /// One past its last step.
    pub end_step: u32,
    /// Begin of its range of the leaf order.
    pub leaf_begin: u32,
    /// End of its range of the leaf order, exclusive.
    pub leaf_end: u32,
    /// Its lowest prompt, whose generator draws its noise. (Algorithm 1 of arXiv 2508.21032 draws one initial latent
    /// for each cluster of step 0.)
    pub representative: u32,
}

impl Segment {
    /// Number of steps.
    pub fn steps(&self) -> usize {
        (self.end_step - self.first_step) as usize
    }

    /// Whether it has no parent, but begins after step 0: it continues a state that is given.
    pub fn begins_late(&self) -> bool {
        self.parent.is_none() && self.first_step > 0
    }

    /// Its six fields as other programs read them; -1 for no parent. No field exceeds 31 bits.
    pub fn row(&self) -> [i32; 6] {
        let parent = self.parent.map_or(-1, |parent| parent as i32);
        let rest = [self.first_step, self.end_step, self.leaf_begin, self.leaf_end, self.representative];
        let [a, b, c, d, e] = rest.map(|field| field as i32);
        [parent, a, b, c, d, e]
    }

    /// Its range of the leaf order.
    pub fn leaves(&self) -> std::ops::Range<usize> {
        self.leaf_begin as usize..self.leaf_end as usize
    }
}

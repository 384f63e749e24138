//! Restricting a plan to some of its prompts: resuming and previews are built on it.

use std::sync::Arc;

use super::kept::KeptPlaces;
use super::segment::Segment;
use super::Plan;
use crate::error::{Error, Result};

impl Plan {
    /// The plan for the prompts `keep` only. Segments without a kept prompt are dropped. The others do not change:
    /// they keep the conditioning and the noise of the full cluster, so the images do not change either.
    pub fn prune(&self, keep: &[i64]) -> Result<Plan> {
        if keep.is_empty() {
            return Err(Error::Empty { what: "prompts to keep" });
        }
        let n = self.n_prompts();
        let mut kept = vec![None; n];
        self.kept().iter().for_each(|&prompt| kept[prompt as usize] = Some(false));
        for &index in keep {
            match usize::try_from(index).ok().and_then(|index| kept.get_mut(index)) {
                None => return Err(Error::OutOfRange { what: "prompt", index, count: n }),
                Some(None) => return Err(Error::NotKept { prompt: index as usize }),
                Some(Some(true)) => return Err(Error::Repeated { what: "prompt", index }),
                Some(flag) => *flag = Some(true),
            }
        }
        let kept: Vec<u32> = (0..n as u32).filter(|&prompt| kept[prompt as usize] == Some(true)).collect();
        let places = KeptPlaces::new(self.tree(), &kept);
        let segments = self.needed(|_, segment| places.within(segment.leaf_begin, segment.leaf_end) > 0);
        Plan::new(Arc::clone(self.tree()), Arc::clone(self.phi()), kept, segments)
    }

    /// Of the segments that `may_run` (given row and segment), those that reach the last step, and those that another one
    /// of these forks from. One that loses its parent is left without.
    pub(super) fn needed(&self, may_run: impl Fn(usize, &Segment) -> bool) -> Vec<Segment> {
        let all = self.segments();
        let mut runs: Vec<bool> = all.iter().map(|segment| segment.end_step as usize == self.n_steps()).collect();
        for (row, segment) in all.iter().enumerate().rev() {
            runs[row] = runs[row] && may_run(row, segment);
            if let Some(parent) = segment.parent.filter(|_| runs[row]) {
                runs[parent as usize] = true;
            }
        }
        let mut new_row = vec![None; all.len()];
        let mut segments: Vec<Segment> = Vec::new();
        for (row, segment) in all.iter().enumerate().filter(|&(row, _)| runs[row]) {
            new_row[row] = Some(segments.len() as u32);
            segments.push(Segment { parent: segment.parent.and_then(|parent| new_row[parent as usize]), ..*segment });
        }
        segments
    }
}

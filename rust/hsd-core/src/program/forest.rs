//! The segments of a plan as trees, one for each segment without a parent: the scheduler reads here which segments fork
//! from one, how many slots these need, and which of two equal ones comes first.

use super::kinds::Kinds;
use crate::plan::segment::Segment;

/// What the scheduler has to know of a plan's segments.
#[derive(Debug, PartialEq)]
pub struct Forest {
    /// Children of segment `s` are `children[starts[s]..starts[s + 1]]`. The last entry of `starts` but one is of the
    /// roots.
    children: Vec<u32>,
    starts: Vec<u32>,
    /// Position of each segment in `children`.
    place: Vec<u32>,
    /// Number of siblings of a segment's group from it on, itself included.
    left: Vec<u32>,
    need: Vec<u32>,
    rank: Vec<u32>,
    by_rank: Vec<u32>,
}

impl Forest {
    /// Of a plan's segments, parents before children.
    ///
    /// Roots are in leaf order and children ascend by need. With `kinds` both are sorted by kind first, and roots of a
    /// resumed plan by first step then. Those of one kind and first step are a group.
    pub fn new(segments: &[Segment], kinds: Option<&Kinds>) -> Self {
        let n = segments.len();
        let need = needs(segments);
        let family = |segment: &Segment| segment.parent.map_or(n, |parent| parent as usize);
        let mut starts = vec![0u32; n + 2];
        for segment in segments {
            starts[family(segment) + 1] += 1;
        }
        for row in 0..=n {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut children = vec![0u32; n];
        for (row, segment) in segments.iter().enumerate() {
            let next = &mut next[family(segment)];
            children[*next as usize] = row as u32;
            *next += 1;
        }
        // Siblings that have a parent begin where it ends, all at one step.
        let group = |row: u32| (kinds.map_or(0, |kinds| kinds.of(row)), segments[row as usize].first_step);
        let mut left = vec![1; n];
        for row in 0..=n {
            let siblings = &mut children[starts[row] as usize..starts[row + 1] as usize];
            let need = |child: u32| if row < n { need[child as usize] } else { 0 };
            siblings.sort_by_key(|&child| (group(child), need(child)));
            for at in (1..siblings.len()).rev().filter(|&at| group(siblings[at - 1]) == group(siblings[at])) {
                left[siblings[at - 1] as usize] += left[siblings[at] as usize];
            }
        }
        let mut place = vec![0; n];
        children.iter().enumerate().for_each(|(at, &child)| place[child as usize] = at as u32);
        let mut forest = Forest { children, starts, place, left, need, rank: vec![0; n], by_rank: Vec::new() };
        forest.number();
        forest
    }

    /// Ranks in depth-first order, children in their order. With calls of one lane and children by ascending need, this
    /// order needs the fewest slots.
    fn number(&mut self) {
        let mut stack: Vec<u32> = self.roots().iter().rev().copied().collect();
        while let Some(row) = stack.pop() {
            self.rank[row as usize] = self.by_rank.len() as u32;
            self.by_rank.push(row);
            stack.extend(self.children(row).iter().rev());
        }
    }

    /// The segments without a parent: those of step 0, and in a resumed plan those whose parent is given.
    pub fn roots(&self) -> &[u32] {
        self.children(self.rank.len() as u32)
    }

    /// The segments that fork from `row`.
    pub fn children(&self, row: u32) -> &[u32] {
        &self.children[self.starts[row as usize] as usize..self.starts[row as usize + 1] as usize]
    }

    /// The first of each group of these siblings. The members of a group begin one after the other.
    pub fn groups<'a>(&'a self, siblings: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = *siblings.get(at)?;
            at += self.left[first as usize] as usize;
            Some(first)
        })
    }

    /// The siblings of a segment's group from it on.
    pub fn group(&self, row: u32) -> &[u32] {
        let begin = self.place[row as usize] as usize;
        &self.children[begin..begin + self.left[row as usize] as usize]
    }

    /// Slots that suffice to run `row` and everything that forks from it, its own slot included.
    pub fn need(&self, row: u32) -> usize {
        self.need[row as usize] as usize
    }

    /// Slots that suffice to run those children of `row` that are left, in addition to the slot that they read: those that
    /// are not are the first of their groups.
    pub fn extra(&self, row: u32, left: impl Fn(u32) -> bool) -> usize {
        let (mut first, mut second) = (0, 0);
        let siblings = self.children(row);
        for group in self.groups(siblings).map(|head| self.group(head)) {
            // Ascending by need, and what is left of a group is its end.
            for need in group.iter().rev().take_while(|&&child| left(child)).take(2).map(|&child| self.need(child)) {
                if need > first {
                    (first, second) = (need, first);
                } else {
                    second = need.max(second);
                }
            }
        }
        match (first, second) {
            (0, _) => 0,
            (first, 0) => first - 1,
            (first, second) => first.max(second + 1) - 1,
        }
    }

    /// Position of `row` among segments that are equal otherwise.
    pub fn rank(&self, row: u32) -> u32 {
        self.rank[row as usize]
    }

    /// The segment with this rank.
    pub fn with_rank(&self, rank: u32) -> u32 {
        self.by_rank[rank as usize]
    }
}

/// The fewest slots in which any program of these segments can run.
pub fn least_slots(segments: &[Segment]) -> usize {
    // A child never needs more than the segment that it forks from.
    needs(segments).into_iter().max().unwrap_or(0) as usize
}

/// The number of slots that each segment needs, with everything that forks from it: Sethi-Ullman numbers (*The
/// Generation of Optimal Code for Arithmetic Expressions*, JACM 1970) with the direction of the data reversed.
///
/// A latent keeps its slot until its last child has read it, and that child may reuse the slot. So it is best to run
/// the child with the largest need last. Every other child runs while its parent's slot is occupied, and that is one
/// slot more than the child's own need.
fn needs(segments: &[Segment]) -> Vec<u32> {
    let mut top = vec![(0u32, 0u32); segments.len()];
    let mut need = vec![1; segments.len()];
    for (row, segment) in segments.iter().enumerate().rev() {
        let (first, second) = top[row];
        need[row] = match (first, second) {
            (0, _) => 1,
            (first, 0) => first,
            (first, second) => first.max(second + 1),
        };
        if let Some(parent) = segment.parent {
            let (first, second) = &mut top[parent as usize];
            if need[row] > *first {
                (*first, *second) = (need[row], *first);
            } else {
                *second = need[row].max(*second);
            }
        }
    }
    need
}

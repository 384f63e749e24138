//! Kept prompts as places of the leaf order: a range of them is counted in constant time.

use crate::tree::Tree;

/// One bit for each place from the first kept one to the last, and how many are set before each word.
pub(super) struct KeptPlaces {
    first_word: usize,
    words: Vec<u64>,
    /// One entry more than words: the last one counts all.
    before: Vec<u32>,
}

impl KeptPlaces {
    /// `kept` are existing prompts, each once.
    pub fn new(tree: &Tree, kept: &[u32]) -> Self {
        let places = || kept.iter().map(|&prompt| tree.range(prompt as usize).0 as usize);
        let first_word = places().min().unwrap_or(0) / 64;
        let mut words = vec![0u64; places().max().map_or(0, |last| last / 64 + 1 - first_word)];
        places().for_each(|place| words[place / 64 - first_word] |= 1 << (place % 64));
        let mut count = 0;
        let mut before = vec![0];
        before.extend(words.iter().map(|word| {
            count += word.count_ones();
            count
        }));
        KeptPlaces { first_word, words, before }
    }

    /// Number of kept places below `place`.
    pub fn below(&self, place: u32) -> u32 {
        let Some(word) = (place as usize / 64).checked_sub(self.first_word) else { return 0 };
        match self.words.get(word) {
            None => self.before[self.words.len()],
            Some(bits) => self.before[word] + (bits & ((1 << (place % 64)) - 1)).count_ones(),
        }
    }

    /// Number of kept places from `begin` to `end`, exclusive.
    pub fn within(&self, begin: u32, end: u32) -> u32 {
        self.below(end) - self.below(begin)
    }

    /// The kept places, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(word, &bits)| {
            let base = ((self.first_word + word) * 64) as u32;
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| base + bit)
        })
    }
}

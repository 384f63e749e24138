//! Sorting by counting.

/// `rows` by ascending key, each key below `n_keys`; equal keys keep their order. Linear: keys are counted, not
/// compared.
pub(super) fn sort_stably(rows: Vec<u32>, n_keys: usize, key: impl Fn(u32) -> u32) -> Vec<u32> {
    let mut next = vec![0u32; n_keys + 1];
    for &row in &rows {
        next[key(row) as usize + 1] += 1;
    }
    for key in 0..n_keys {
        next[key + 1] += next[key];
    }
    let mut sorted = vec![0; rows.len()];
    for row in rows {
        let place = &mut next[key(row) as usize];
        sorted[*place as usize] = row;
        *place += 1;
    }
    sorted
}

//! Files with right digests and a right layout, and any contents: what stands behind the first checks.
#![no_main]

use arbitrary::Arbitrary;
use hsd_core::{Plan, Segment};
use hsd_fuzz::{check_file, sealed, tree, METADATA};

#[derive(Arbitrary, Debug)]
struct Contents {
    /// Children of merges, most of them small numbers.
    merges: Vec<(u8, u8)>,
    large: Option<(u8, i64)>,
    scores: Vec<f64>,
    phi: Vec<f64>,
    sort: bool,
    kept: Option<Vec<i64>>,
    text: Vec<u8>,
    ends: Option<Vec<i64>>,
    seeds: i64,
    segments: Option<Vec<i32>>,
    shape: Option<(u8, Vec<u64>)>,
    linkage: String,
    exact: bool,
    metadata: Option<String>,
}

fn bytes<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

libfuzzer_sys::fuzz_target!(|given: Contents| {
    let n = given.merges.len() + 1;
    let mut merges: Vec<[i64; 2]> = given.merges.iter().map(|&(a, b)| [a.into(), b.into()]).collect();
    if let Some((which, node)) = given.large {
        let row = which as usize % merges.len().max(1);
        if let Some(merge) = merges.get_mut(row) {
            merge[0] = node;
        }
    }
    let mut scores = given.scores;
    scores.resize(n - 1, 0.5);
    let mut phi = given.phi;
    if given.sort {
        phi.iter_mut().for_each(|value| *value = if value.is_finite() { value.abs() } else { 1.0 });
        phi.sort_by(|a, b| b.total_cmp(a));
        phi.push(0.0);
    }
    let kept = given.kept.unwrap_or_else(|| (0..n as i64).collect());
    let ends =
        given.ends.unwrap_or_else(|| (0..n).map(|i| if i + 1 == n { given.text.len() as i64 } else { 0 }).collect());
    let plan = tree(&merges, scores.clone()).and_then(|tree| Plan::compile(tree, &phi));
    let plan = plan.map(|plan| if kept.len() == n { Ok(plan) } else { plan.prune(&kept) });
    let segments: Vec<i32> = match (given.segments, plan) {
        (None, Ok(Ok(plan))) => plan.segments().iter().flat_map(Segment::row).collect(),
        (any, _) => any.unwrap_or_default(),
    };
    let (rows, columns) = (segments.len() as u64 / 6, 6);
    let mut arrays = [
        (vec![kept.len() as u64], bytes(kept.iter().map(|value| value.to_le_bytes()))),
        (vec![merges.len() as u64, 2], bytes(merges.iter().flatten().map(|value| value.to_le_bytes()))),
        (vec![phi.len() as u64], bytes(phi.iter().map(|value| value.to_le_bytes()))),
        (vec![given.text.len() as u64], given.text),
        (vec![ends.len() as u64], bytes(ends.iter().map(|value| value.to_le_bytes()))),
        (vec![scores.len() as u64], bytes(scores.iter().map(|value| value.to_le_bytes()))),
        (vec![n as u64], bytes((0..n as i64).map(|i| given.seeds.wrapping_add(i).to_le_bytes()))),
        (vec![rows, columns], bytes(segments.iter().map(|value| value.to_le_bytes()))),
    ];
    if let Some((which, shape)) = given.shape {
        arrays[which as usize % 8].0 = shape;
    }
    check_file(&sealed(&arrays, &given.linkage, given.exact, given.metadata.as_deref().unwrap_or(METADATA)));
});

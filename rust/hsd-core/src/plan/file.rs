//! Plans as files: one safetensors file, arrays plus one JSON entry in the header.
//!
//! Segments are written for other programs. Loading compiles them again from tree and thresholds and compares, so that
//! no file can have a plan that contradicts its own tree. A digest of everything detects changed bits.

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::tensor::TensorView;
use serde_json::{json, Value};
use sha2::{Digest, Sha256};

use super::container::{bad, Dtype, Header, ARRAYS, KEY};
use super::digest::{check_lengths, digest_prompts, hex};
use super::request;
use super::segment::Segment;
use super::Plan;
use crate::error::{Error, Result};
use crate::tree::Tree;

pub use super::container::MOST_HEADER;
pub use super::fingerprint::fingerprint;
pub use super::request::NOISES;

/// Version of the format; a reader accepts its own version only.
pub const FORMAT: u64 = 2;

/// A plan and what it was made for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanFile {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The prompts.
    pub prompts: Vec<String>,
    /// The seed of each prompt.
    pub seeds: Vec<i64>,
    /// JSON text, chosen by the writer.
    pub metadata: String,
}

impl PlanFile {
    /// The file's bytes. The same plan gives the same bytes. An error for a resumed plan.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let plan = &self.plan;
        if plan.is_resumed() {
            return Err(Error::Resumed { what: "written to a file" });
        }
        let n = plan.n_prompts();
        check_lengths(plan, &self.prompts, &self.seeds)?;
        check_json(&self.metadata)?;
        let mut end = 0;
        let ends = self.prompts.iter().map(|prompt| {
            end += prompt.len() as i64;
            end
        });
        let contents: [(Vec<usize>, Vec<u8>); 8] = [
            (vec![plan.kept().len()], bytes(plan.kept().iter().map(|&prompt| i64::from(prompt).to_le_bytes()))),
            (vec![n - 1, 2], merge_bytes(plan.tree())),
            (vec![plan.n_steps()], float_bytes(plan.phi())),
            (vec![self.prompts.iter().map(String::len).sum()], self.prompts.concat().into_bytes()),
            (vec![n], bytes(ends.map(i64::to_le_bytes))),
            (vec![n - 1], float_bytes(plan.tree().scores())),
            (vec![n], bytes(self.seeds.iter().map(|seed| seed.to_le_bytes()))),
            (vec![plan.segments().len(), 6], segment_bytes(plan.segments())),
        ];
        let arrays: Vec<&[u8]> = contents.iter().map(|(_, data)| data.as_slice()).collect();
        let (linkage, exact) = (plan.tree().linkage(), plan.tree().exact());
        let header = json!({
            "exact": exact,
            "format": FORMAT,
            "linkage": linkage,
            "metadata": self.metadata,
            "prompts_sha256": digest_prompts(&self.prompts, &self.seeds),
            "sha256": digest(linkage, exact, &self.metadata, &arrays),
        });
        let mut views = Vec::with_capacity(ARRAYS.len());
        for ((name, dtype), (shape, data)) in ARRAYS.iter().zip(&contents) {
            let view = TensorView::new(written(*dtype), shape.clone(), data);
            let view = view.map_err(|error| bad(error.to_string()))?;
            views.push((*name, view));
        }
        let info = HashMap::from([(KEY.to_owned(), header.to_string())]);
        safetensors::serialize(views, Some(info)).map_err(|error| bad(error.to_string()))
    }

    /// Reads what [`PlanFile::to_bytes`] wrote. Safe on any bytes: nothing is used before it is checked, and time and
    /// memory are in proportion to the file.
    pub fn from_bytes(data: &[u8]) -> Result<Self> {
        let file = Header::read(data)?;
        let arrays = file.arrays(data)?;
        let header = read_entry(file.entry())?;
        let [kept, merges, phi, prompt_bytes, prompt_ends, scores, seeds, segments] = arrays;
        let field = |name: &str| header.get(name).and_then(Value::as_str).ok_or_else(|| bad(format!("no {name}")));
        let (linkage, metadata) = (field("linkage")?, field("metadata")?);
        let exact = header.get("exact").and_then(Value::as_bool).ok_or_else(|| bad("no exact"))?;
        if field("sha256")? != digest(linkage, exact, metadata, &arrays.map(|array| array.data)) {
            return Err(bad("its digest does not match its contents; it was damaged or edited"));
        }
        if linkage.chars().any(char::is_control) {
            return Err(bad("its linkage holds control characters, which could change what a terminal shows"));
        }
        let seeds: Vec<i64> = numbers(seeds.vector()?, i64::from_le_bytes);
        let n = seeds.len();
        for (what, found) in
            [("prompt_ends", prompt_ends.vector()?.len() / 8), ("scores", scores.vector()?.len() / 8 + 1)]
        {
            if found != n {
                return Err(bad(format!("{what} fits {found} prompts, but there are {n} seeds")));
            }
        }
        merges.table(2)?;
        segments.table(6)?;
        let ids = numbers(merges.data, i64::from_le_bytes);
        let ids: Vec<[i64; 2]> = ids.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
        let tree = Tree::from_merges(&ids, numbers(scores.data, f64::from_le_bytes), linkage)?;
        let tree = if exact { tree } else { tree.approximate() };
        let mut plan = Plan::compile(Arc::new(tree), &numbers(phi.vector()?, f64::from_le_bytes))?;
        let kept = numbers(kept.vector()?, i64::from_le_bytes);
        if !kept.is_sorted() {
            return Err(bad("its kept prompts do not ascend"));
        }
        if kept.len() != n {
            plan = plan.prune(&kept)?;
        }
        if !kept.iter().copied().eq(plan.kept().iter().map(|&prompt| i64::from(prompt))) {
            return Err(bad("its kept prompts are not prompts"));
        }
        if segments.data != segment_bytes(plan.segments()) {
            return Err(bad("its segments are not those of its tree and thresholds"));
        }
        let prompts = read_prompts(prompt_bytes.vector()?, &numbers(prompt_ends.data, i64::from_le_bytes))?;
        if field("prompts_sha256")? != digest_prompts(&prompts, &seeds) {
            return Err(bad("the digest of its prompts and seeds does not match them"));
        }
        request::check(metadata, &plan)?;
        Ok(PlanFile { plan: Arc::new(plan), prompts, seeds, metadata: metadata.to_owned() })
    }

    /// The size of the file that begins with `head`, by its header, which `head` has to hold: with this, a file that is
    /// no plan is refused before it is read.
    pub fn size(head: &[u8]) -> Result<u64> {
        let file = Header::read(head)?;
        read_entry(file.entry())?;
        Ok(file.file_size())
    }
}

/// The type as the library that writes the file names it.
fn written(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::U8 => safetensors::Dtype::U8,
        Dtype::I32 => safetensors::Dtype::I32,
        Dtype::I64 => safetensors::Dtype::I64,
        Dtype::F64 => safetensors::Dtype::F64,
    }
}

fn read_entry(text: &str) -> Result<Value> {
    let header: Value = serde_json::from_str(text).map_err(|error| bad(format!("its \"hsd\" entry: {error}")))?;
    match header.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => Ok(header),
        Some(found) => Err(bad(format!("it has format {found}, but this version reads format {FORMAT}"))),
        None => Err(bad("it names no format")),
    }
}

fn read_prompts(text: &[u8], ends: &[i64]) -> Result<Vec<String>> {
    let mut begin = 0;
    let mut prompts = Vec::with_capacity(ends.len());
    for (prompt, &end) in ends.iter().enumerate() {
        let bytes = usize::try_from(end).ok().and_then(|end| text.get(begin..end));
        let bytes = bytes.ok_or_else(|| bad(format!("prompt {prompt} ends at byte {end} of {}", text.len())))?;
        let prompt = std::str::from_utf8(bytes).map_err(|error| bad(format!("prompt {prompt}: {error}")))?;
        prompts.push(prompt.to_owned());
        begin = end as usize;
    }
    if begin != text.len() {
        return Err(bad(format!("its prompts end at byte {begin} of {}", text.len())));
    }
    Ok(prompts)
}

fn check_json(text: &str) -> Result<()> {
    let parsed = serde_json::from_str::<serde::de::IgnoredAny>(text);
    parsed.map(|_| ()).map_err(|error| bad(format!("its metadata is not JSON: {error}")))
}

fn bytes<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.size_hint().0 * N);
    values.for_each(|value| bytes.extend_from_slice(&value));
    bytes
}

fn float_bytes(values: &[f64]) -> Vec<u8> {
    bytes(values.iter().map(|value| value.to_le_bytes()))
}

fn merge_bytes(tree: &Tree) -> Vec<u8> {
    bytes(tree.merges().iter().flatten().map(|&id| i64::from(id).to_le_bytes()))
}

fn numbers<T, const N: usize>(data: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    data.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).map(read).collect()
}

/// Rows of six: parent (-1 for none), first step, end step, leaf begin, leaf end, representative.
fn segment_bytes(segments: &[Segment]) -> Vec<u8> {
    let rows = segments.iter().flat_map(Segment::row);
    bytes(rows.map(i32::to_le_bytes))
}

/// Digest of everything in a file.
fn digest(linkage: &str, exact: bool, metadata: &str, arrays: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in [linkage.as_bytes(), &[exact.into()], metadata.as_bytes()].iter().chain(arrays) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(hash)
}

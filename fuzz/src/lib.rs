//! What the fuzz targets have in common: files with right digests, and all that a plan can be asked to do.

use std::sync::Arc;

use hsd_core::plan::file::{fingerprint, PlanFile};
use hsd_core::{Order, Plan, Program, Progress, Tree};
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};

/// Metadata that a reader takes.
pub const METADATA: &str = r#"{"tau": 0.5, "steps": 4, "noise": "shared", "linkage": "ward", "encoder": "any"}"#;

/// The arrays of a plan's file, in the order in which its digest takes them, with their types in safetensors.
pub const ARRAYS: [(&str, &str); 8] = [
    ("kept", "I64"),
    ("merges", "I64"),
    ("phi", "F64"),
    ("prompt_bytes", "U8"),
    ("prompt_ends", "I64"),
    ("scores", "F64"),
    ("seeds", "I64"),
    ("segments", "I32"),
];

/// More lanes than this are not lowered: the time of an input has to be short.
const MOST_NODE_STEPS: usize = 20_000;

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file with these arrays (shape and bytes) and this metadata, and the digests that belong to them.
pub fn sealed(arrays: &[(Vec<u64>, Vec<u8>); 8], linkage: &str, exact: bool, metadata: &str) -> Vec<u8> {
    let mut header = Map::new();
    let mut body = Vec::new();
    for ((name, dtype), (shape, data)) in ARRAYS.iter().zip(arrays) {
        let begin = body.len();
        body.extend_from_slice(data);
        header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, body.len()]}));
    }
    let contents: Vec<&[u8]> = arrays.iter().map(|(_, data)| data.as_slice()).collect();
    let entry = json!({
        "format": 2, "linkage": linkage, "exact": exact, "metadata": metadata,
        "sha256": digest(linkage, exact, metadata, &contents),
        "prompts_sha256": digest_prompts(contents[3], contents[4], contents[6]),
    });
    header.insert("__metadata__".to_owned(), json!({"hsd": entry.to_string()}));
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &body].concat()
}

/// The same file with the digests that belong to its contents, if its header can be read so far.
pub fn resealed(data: &[u8]) -> Option<Vec<u8>> {
    let (size, rest) = data.split_first_chunk::<8>()?;
    let size = usize::try_from(u64::from_le_bytes(*size)).ok()?;
    let (text, body) = (rest.get(..size)?, rest.get(size..)?);
    let mut header: Value = serde_json::from_slice(text).ok()?;
    let entry = header.get("__metadata__")?.get("hsd")?.as_str()?;
    let mut entry: Value = serde_json::from_str(entry).ok()?;
    let mut contents = Vec::new();
    for (name, _) in ARRAYS {
        let offsets = header.get(name)?.get("data_offsets")?;
        let [from, to] = [0, 1].map(|side| offsets.get(side).and_then(Value::as_u64).map(|offset| offset as usize));
        contents.push(body.get(from?..to?)?);
    }
    let (linkage, metadata) = (entry.get("linkage")?.as_str()?, entry.get("metadata")?.as_str()?);
    let sha256 = digest(linkage, entry.get("exact")?.as_bool()?, metadata, &contents);
    let prompts_sha256 = digest_prompts(contents[3], contents[4], contents[6]);
    let fields = entry.as_object_mut()?;
    fields.insert("sha256".to_owned(), sha256.into());
    fields.insert("prompts_sha256".to_owned(), prompts_sha256.into());
    header.get_mut("__metadata__")?.as_object_mut()?.insert("hsd".to_owned(), entry.to_string().into());
    let header = header.to_string();
    Some([&(header.len() as u64).to_le_bytes(), header.as_bytes(), body].concat())
}

fn digest(linkage: &str, exact: bool, metadata: &str, contents: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in [linkage.as_bytes(), &[exact.into()], metadata.as_bytes()].iter().chain(contents) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(hash)
}

fn digest_prompts(text: &[u8], ends: &[u8], seeds: &[u8]) -> String {
    let mut hash = Sha256::new();
    let mut begin = 0;
    for end in ends.chunks_exact(8) {
        let end = i64::from_le_bytes(end.try_into().unwrap_or_default()) as usize;
        let prompt = text.get(begin..end).unwrap_or_default();
        hash.update((prompt.len() as u64).to_le_bytes());
        hash.update(prompt);
        begin = end;
    }
    hash.update(seeds);
    hex(hash)
}

/// Reads a file; if it is a plan, writes it again, reads that, and uses it.
pub fn check_file(data: &[u8]) {
    let Ok(file) = PlanFile::from_bytes(data) else { return };
    assert_eq!(PlanFile::size(data), Ok(data.len() as u64));
    let again = file.to_bytes().expect("what was read can be written");
    assert_eq!(PlanFile::from_bytes(&again).as_ref(), Ok(&file));
    let request: Value = serde_json::from_str(&file.metadata).expect("metadata is JSON");
    for name in ["tau", "steps"] {
        assert!(request[name].as_f64().is_some_and(|number| number.is_finite() && number >= 0.0), "{name}");
    }
    assert!(["noise", "linkage", "encoder"].iter().all(|name| request[name].is_string()));
    let own = fingerprint(&file.plan, &file.prompts, &file.seeds, "").expect("prompts and seeds fit");
    for part in use_plan(&file.plan, 3, 7) {
        assert_eq!(fingerprint(&part, &file.prompts, &file.seeds, "").as_ref(), Ok(&own));
    }
}

/// Everything that a plan can be asked to do; returns its shards.
pub fn use_plan(plan: &Arc<Plan>, shards: i64, keep: usize) -> Vec<Plan> {
    assert_eq!(plan.counts().iter().sum::<i64>(), plan.node_steps() as i64);
    assert!(plan.describe(20).lines().count() <= 24);
    assert!(plan.active(plan.n_steps() as i64).is_err());
    let last = plan.active(plan.n_steps() as i64 - 1).expect("the last step");
    assert_eq!(last.iter().flatten().count(), plan.kept().len());
    let kept = i64::from(plan.kept()[keep % plan.kept().len()]);
    assert_eq!(plan.prune(&[kept]).expect("a kept prompt").node_steps(), plan.n_steps());
    let units = plan.units(shards, None).expect("at least one worker");
    assert_eq!(units.iter().map(|unit| unit.kept().len()).sum::<usize>(), plan.kept().len());
    plan.shard(shards, 0.02).expect("at least one shard")
}

/// Lowers a plan with any parameters, if that is not too much work.
pub fn lower(plan: &Arc<Plan>, batch: i64, depth: bool, slots: Option<i64>, mixed: bool, rows: Option<&[i64]>) {
    if plan.node_steps() > MOST_NODE_STEPS {
        return;
    }
    let order = if depth { Order::ALL[0] } else { Order::ALL[Order::ALL.len() - 1] };
    let checked = Program::check(plan, batch, slots, rows);
    let compiled = Program::compile(Arc::clone(plan), batch, order, slots, mixed, rows, &mut Progress::unwatched());
    assert_eq!(checked.is_ok(), compiled.is_ok(), "the check knows what can be compiled");
}

/// A tree from any numbers, or the reason why they are none.
pub fn tree(merges: &[[i64; 2]], scores: Vec<f64>) -> hsd_core::Result<Arc<Tree>> {
    Tree::from_merges(merges, scores, "ward").map(Arc::new)
}

//! Plan files: what is written is read, and nothing else is.

mod common;

use common::plan;
use hsd_core::plan::file::{fingerprint, PlanFile};
use hsd_core::{Error, Plan};
use proptest::prelude::*;

/// The least that a reader needs.
const METADATA: &str = r#"{"tau": 0.5, "steps": 4, "noise": "shared", "linkage": "ward", "encoder": "any"}"#;

fn file() -> impl Strategy<Value = PlanFile> {
    (plan(12), any::<u64>(), "[a-zé\\PC]{0,6}").prop_map(|(plan, seed, word)| {
        let n = plan.n_prompts();
        let prompts = (0..n).map(|i| word.repeat(i % 4)).collect();
        let seeds = (0..n).map(|i| seed.rotate_left(i as u32) as i64).collect();
        PlanFile { plan: plan.into(), prompts, seeds, metadata: METADATA.to_owned() }
    })
}

/// `bytes` with its header's JSON text changed and its length put right.
fn with_header(bytes: &[u8], change: impl Fn(String) -> String) -> Vec<u8> {
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(bytes[8..8 + size].to_vec()).unwrap());
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + size..]].concat()
}

proptest! {
    #[test]
    fn what_is_written_is_read(file in file()) {
        let bytes = file.to_bytes().unwrap();
        prop_assert_eq!(&bytes, &file.to_bytes().unwrap());
        prop_assert_eq!(PlanFile::from_bytes(&bytes).unwrap(), file);
    }

    #[test]
    fn the_fingerprint_is_of_the_whole(file in file(), keep in any::<prop::sample::Index>(), other in any::<i64>()) {
        let of = |file: &PlanFile, extra| fingerprint(&file.plan, &file.prompts, &file.seeds, extra).unwrap();
        let own = of(&file, "{}");
        let pruned = file.plan.prune(&[file.plan.kept()[keep.index(file.plan.kept().len())].into()]).unwrap();
        prop_assert_eq!(&of(&PlanFile { plan: pruned.into(), ..file.clone() }, "{}"), &own);
        prop_assert_ne!(&of(&file, "{ }"), &own);
        let mut seeds = file.seeds.clone();
        seeds[0] = other;
        let changed = seeds != file.seeds;
        prop_assert_eq!(of(&PlanFile { seeds, ..file.clone() }, "{}") != own, changed);
        let mut prompts = file.prompts.clone();
        prompts[0].push('x');
        prop_assert_ne!(&of(&PlanFile { prompts, ..file.clone() }, "{}"), &own);
        let zeros = Plan::compile(file.plan.tree().clone(), &vec![0.0; file.plan.n_steps() + 1]).unwrap();
        prop_assert_ne!(&of(&PlanFile { plan: zeros.into(), ..file.clone() }, "{}"), &own);
    }

    #[test]
    fn a_truncated_file_is_refused(file in file(), at in any::<prop::sample::Index>()) {
        let bytes = file.to_bytes().unwrap();
        prop_assert!(PlanFile::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_flipped_byte_is_refused_or_harmless(file in file(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = file.to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // A space of the header may become another one.
        prop_assert!(PlanFile::from_bytes(&bytes).map_or(true, |read| read == file));
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(PlanFile::from_bytes(&bytes).is_err());
    }

    #[test]
    fn hostile_numbers_in_the_header_are_refused(
        file in file(), which in any::<prop::sample::Index>(),
        number in prop_oneof![Just(u64::MAX), Just(1 << 62), Just(0), any::<u64>(), 0..100u64],
    ) {
        let bytes = file.to_bytes().unwrap();
        let hostile = with_header(&bytes, |header| {
            let tensors = header.find("\"kept\":").unwrap_or(0);
            let digits: Vec<(usize, &str)> = header[tensors..].match_indices(|c: char| c.is_ascii_digit()).collect();
            let (at, _) = digits[which.index(digits.len())];
            let (before, after) = header.split_at(tensors + at);
            format!("{before}{number}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        });
        prop_assert!(PlanFile::from_bytes(&hostile).map_or(true, |read| read == file));
    }
}

fn small() -> PlanFile {
    let tree = hsd_core::Tree::from_merges(&[[0, 1]], vec![0.5], "ward").unwrap();
    let plan = hsd_core::Plan::compile(std::sync::Arc::new(tree), &[1.0, 0.0]).unwrap().into();
    PlanFile { plan, prompts: vec!["a".into(), "b".into()], seeds: vec![1, 2], metadata: METADATA.into() }
}

fn why(result: hsd_core::Result<PlanFile>) -> String {
    match result {
        Err(Error::BadFile(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_versions_and_other_files_are_named() {
    let bytes = small().to_bytes().unwrap();
    let newer = with_header(&bytes, |header| header.replace("\\\"format\\\":2", "\\\"format\\\":7"));
    assert!(why(PlanFile::from_bytes(&newer)).contains("format 7"));
    let other = with_header(&bytes, |header| header.replace("\"hsd\"", "\"pt\""));
    assert!(why(PlanFile::from_bytes(&other)).contains("some other safetensors file"));
    let edited = with_header(&bytes, |header| header.replace("ward", "wart"));
    assert!(why(PlanFile::from_bytes(&edited)).contains("digest"));
    let other_kind = with_header(&bytes, |header| header.replace("\\\"exact\\\":true", "\\\"exact\\\":false"));
    assert!(why(PlanFile::from_bytes(&other_kind)).contains("digest"));
    let unnamed = with_header(&bytes, |header| header.replace("\"scores\"", "\"score5\""));
    assert!(why(PlanFile::from_bytes(&unnamed)).contains("array \"score5\", which no plan has"));
    let without = with_header(&bytes, |header| {
        let at = header.find("\"scores\":{").unwrap();
        let end = at + header[at..].find("},").unwrap() + 2;
        format!("{}{}", &header[..at], &header[end..])
    });
    assert!(why(PlanFile::from_bytes(&without)).contains("no array scores"));
}

#[test]
fn names_cannot_steer_a_terminal() {
    let tree = hsd_core::Tree::from_merges(&[[0, 1]], vec![0.5], "ward\n\u{1b}[2J").unwrap();
    let plan = hsd_core::Plan::compile(std::sync::Arc::new(tree), &[1.0, 0.0]).unwrap();
    let file = PlanFile { plan: plan.into(), ..small() };
    assert!(why(PlanFile::from_bytes(&file.to_bytes().unwrap())).contains("control characters"));
}

#[test]
fn an_approximate_tree_stays_one() {
    let tree = hsd_core::Tree::from_merges(&[[0, 1]], vec![0.5], "ward").unwrap().approximate();
    let plan = hsd_core::Plan::compile(std::sync::Arc::new(tree), &[1.0, 0.0]).unwrap();
    let file = PlanFile { plan: plan.into(), ..small() };
    assert!(!PlanFile::from_bytes(&file.to_bytes().unwrap()).unwrap().plan.tree().exact());
    assert!(PlanFile::from_bytes(&small().to_bytes().unwrap()).unwrap().plan.tree().exact());
}

#[test]
fn offsets_that_wrap_around_are_refused() {
    // Arrays whose sizes add up to more than 64 bits hold.
    let huge = (0..9u64).map(|i| {
        let (begin, end) = (i * ((1 << 61) - 1), (i + 1) * ((1 << 61) - 1));
        format!("\"x{i}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{begin},{end}]}}", (1u64 << 61) - 1)
    });
    let header = format!("{{{}}}", huge.take(8).collect::<Vec<_>>().join(","));
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    assert!(PlanFile::from_bytes(&bytes).is_err());
}

#[test]
fn what_does_not_fit_is_not_written() {
    let file = PlanFile { prompts: vec!["a".into()], ..small() };
    assert_eq!(file.to_bytes(), Err(Error::Length { what: "the list of prompts", found: 1, expected: 2 }));
    let file = PlanFile { seeds: vec![], ..small() };
    assert_eq!(file.to_bytes(), Err(Error::Length { what: "seeds", found: 0, expected: 2 }));
    let file = PlanFile { metadata: "tau".into(), ..small() };
    assert!(why(file.to_bytes().map(|_| small())).contains("not JSON"));
}

/// A small file whose metadata has one change.
fn with_metadata(change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> PlanFile {
    let mut request = serde_json::from_str(METADATA).unwrap();
    change(&mut request);
    let metadata = serde_json::Value::Object(request).to_string();
    PlanFile::from_bytes(&PlanFile { metadata, ..small() }.to_bytes().unwrap())
        .unwrap_or_else(|error| PlanFile { metadata: error.to_string(), ..small() })
}

#[test]
fn metadata_is_checked() {
    use serde_json::{json, Value};
    let huge: Value = serde_json::from_str("1e308").unwrap();
    let settings = |values: Value, index: Value| json!({"values": values, "index": index});
    for (name, value) in [
        ("tau", json!(0)),
        ("tau", huge),
        ("steps", json!(1000)),
        ("metric", json!("direct")),
        ("metric_correlation", Value::Null),
        ("metric_correlation", json!(-0.5)),
        ("schedule", json!("custom")),
        ("catch_up", Value::Null),
        ("catch_up", json!(0)),
        ("asked_tau", Value::Null),
        ("asked_tau", json!(0.7)),
        ("asked_metric", json!("auto")),
        ("budget", json!(0.3)),
        ("images_per_prompt", json!(2)),
        ("settings", settings(json!([{}]), json!([0, 0]))),
        ("from_a_later_version", json!([1, [2, {"x": null}]])),
    ] {
        let read = with_metadata(|request| {
            request.insert(name.into(), value.clone());
        });
        assert!(read.metadata.starts_with('{'), "{name} {value}: {}", read.metadata);
    }
    for (name, value, says) in [
        ("tau", json!(-0.5), "tau -0.5; it has to be a finite number >= 0"),
        ("tau", json!(true), "tau true"),
        ("tau", json!("1"), "tau \"1\""),
        ("tau", Value::Null, "no tau"),
        ("steps", json!(1_000_000_000), "steps 1000000000; it has to be an integer from 1 to 1000"),
        ("steps", json!(0), "steps 0"),
        ("steps", json!(-4), "steps -4"),
        ("steps", json!(4.0), "steps 4.0"),
        ("steps", json!(true), "steps true"),
        ("noise", json!("loud"), "noise \"loud\"; it has to be one of independent, shared"),
        ("noise", Value::Null, "noise null"),
        ("linkage", json!("mixed"), "linkage \"mixed\""),
        ("linkage", json!(["ward"]), "linkage a list"),
        ("encoder", json!({}), "encoder an object"),
        ("encoder", json!("\u{1b}[2J"), "a text without control characters"),
        ("metric", json!("manhattan"), "metric \"manhattan\""),
        ("metric", Value::Null, "metric null"),
        ("schedule", json!(3), "schedule 3"),
        ("budget", json!(2), "budget 2"),
        ("catch_up", json!(-1), "catch_up -1"),
        ("catch_up", json!(false), "catch_up false"),
        ("asked_tau", json!("x"), "asked_tau \"x\""),
        ("asked_tau", json!(-1), "asked_tau -1"),
        ("asked_metric", json!([1]), "asked_metric a list"),
        ("asked_metric", Value::Null, "asked_metric null"),
        ("metric_correlation", json!(7), "metric_correlation 7"),
        ("images_per_prompt", json!(3), "images_per_prompt 3"),
        ("hsd_version", json!(1), "hsd_version 1"),
        ("calibration", json!([]), "calibration a list"),
        ("settings", json!([]), "settings are not a list of objects"),
        ("settings", settings(json!([3]), json!([0, 0])), "settings are not a list of objects"),
        ("settings", settings(json!([{}, {}, {}]), json!([0, 0])), "3 settings for 2 prompts"),
        ("settings", settings(json!([{}]), json!([0])), "which settings each of its 2"),
        ("settings", settings(json!([{}]), json!([0, 1])), "prompt 1 has settings 1 of 1"),
        ("settings", settings(json!([{}]), json!([0, -1])), "prompt 1 has settings -1 of 1"),
        ("settings", settings(json!([{}, {}]), json!([0, 1])), "segment 0 holds prompts of different settings"),
    ] {
        let read = with_metadata(|request| {
            request.insert(name.into(), value.clone());
        });
        assert!(read.metadata.contains(says), "{name} {value}: {}", read.metadata);
    }
    for name in ["tau", "steps", "noise", "linkage", "encoder"] {
        let read = with_metadata(|request| {
            request.remove(name);
        });
        assert!(read.metadata.contains(name) && !read.metadata.starts_with('{'), "{name}: {}", read.metadata);
    }
}

#[test]
fn metadata_that_other_readers_stumble_over_is_refused() {
    let huge = format!("1{}", "0".repeat(400));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let with = |value: &str| METADATA.replace("0.5", value);
    for (metadata, says) in [
        (with(&huge), "out of range"),
        (with("1e400"), "out of range"),
        (METADATA.replace("}", &format!(", \"x\": {deep}}}")), "recursion limit"),
        (deep, "recursion limit"),
        ("[]".into(), "not a JSON object"),
        ("null".into(), "not a JSON object"),
    ] {
        let bytes = PlanFile { metadata, ..small() }.to_bytes().unwrap();
        let why = why(PlanFile::from_bytes(&bytes));
        assert!(why.contains(says), "{why}");
    }
}

/// A file with only a header.
fn header_only(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

#[test]
fn the_header_is_read_with_care() {
    let bytes = small().to_bytes().unwrap();
    let says = |change: &dyn Fn(String) -> String| why(PlanFile::from_bytes(&with_header(&bytes, change)));
    let twice = |header: String| {
        let at = header.find("\"phi\":{").unwrap();
        let end = at + header[at..].find("},").unwrap() + 2;
        format!("{}{}", &header[..end], &header[at..])
    };
    assert!(says(&twice).contains("two arrays phi"));
    assert!(says(&|header| header.replacen('{', "{\"__metadata__\":{},", 1)).contains("two lists of entries"));
    assert!(says(&|header| header.replacen("{\"hsd\"", "{\"hsd\":\"\",\"hsd\"", 1)).contains("two entries"));
    assert!(says(&|header| header.replace("\"phi\":{", "\"phi\":{\"dtype\":\"F64\",")).contains("duplicate field"));
    assert!(says(&|header| header.replace("\"phi\":{", "\"phi\":{\"x\":1,")).contains("unknown field"));
    assert!(says(&|header| header.replace("\"hsd\"", "\"a\":[[[]]],\"pt\"")).contains("no \"hsd\" entry"));
    let longer = [&bytes[..], b"\0"].concat();
    assert!(why(PlanFile::from_bytes(&longer)).contains("its header describes"));
    assert_eq!(PlanFile::size(&bytes), Ok(bytes.len() as u64));
    // What a full reader would take minutes and gigabytes for.
    let tensors = (0..200_000).map(|i| format!("\"x{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"));
    let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    assert!(why(PlanFile::from_bytes(&header_only(&header))).contains("array \"x0\", which no plan has"));
    assert!(why(PlanFile::from_bytes(&u64::MAX.to_le_bytes())).contains("length of a header"));
    assert!(why(PlanFile::from_bytes(&header_only(&"[".repeat(100_000)))).contains("its header"));
    assert!(why(PlanFile::from_bytes(b"")).contains("0 bytes"));
}

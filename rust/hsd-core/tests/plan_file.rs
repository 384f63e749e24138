//! Plan files: what is written is read, and nothing else is.

mod common;

use common::plan;
use hsd_core::plan::file::{fingerprint, PlanFile};
use hsd_core::{Error, Plan};
use proptest::prelude::*;

fn file() -> impl Strategy<Value = PlanFile> {
    (plan(12), any::<u64>(), "[a-zé\\PC]{0,6}").prop_map(|(plan, seed, word)| {
        let n = plan.n_prompts();
        let prompts = (0..n).map(|i| word.repeat(i % 4)).collect();
        let seeds = (0..n).map(|i| seed.rotate_left(i as u32) as i64).collect();
        PlanFile { plan: plan.into(), prompts, seeds, metadata: "{\"tau\": 0.5}".to_owned() }
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
        let tree = hsd_core::Tree::clone(file.plan.tree()).approximate();
        let approximate = Plan::compile(tree.into(), file.plan.phi()).unwrap();
        prop_assert_ne!(&of(&PlanFile { plan: approximate.into(), ..file.clone() }, "{}"), &own);
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
    PlanFile { plan, prompts: vec!["a".into(), "b".into()], seeds: vec![1, 2], metadata: "{}".into() }
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
    assert!(why(PlanFile::from_bytes(&unnamed)).contains("no array scores"));
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

//! Any text as the metadata of a plan that is sound otherwise.
#![no_main]

use std::sync::Arc;

use hsd_core::plan::file::PlanFile;
use hsd_core::Plan;
use hsd_fuzz::{check_file, tree};

libfuzzer_sys::fuzz_target!(|metadata: String| {
    let plan = tree(&[[0, 1], [2, 3]], vec![0.5, 2.0]).and_then(|tree| Plan::compile(tree, &[1.0, 0.5, 0.0]));
    let plan = Arc::new(plan.expect("a sound plan"));
    let (prompts, seeds) = (["a", "b", "c"].map(String::from).to_vec(), vec![0, 1, 2]);
    if let Ok(data) = (PlanFile { plan, prompts, seeds, metadata }).to_bytes() {
        check_file(&data);
    }
});

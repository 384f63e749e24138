//! Writes the seeds: small sound plans of each shape, and texts of metadata. `cargo run --example seeds`
//!
//! They are in the repository, so that the tests of the Python package read them too.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hsd_core::plan::file::PlanFile;
use hsd_core::Plan;
use hsd_fuzz::{tree, METADATA};

const SETTINGS: &str = r#"{"tau": 1, "steps": 3, "noise": "independent", "linkage": "average", "encoder": "m",
 "metric": "direct", "schedule": "custom", "budget": null, "catch_up": 1.5, "images_per_prompt": 1, "calibration": "0a",
 "metric_correlation": -0.25, "hsd_version": "0.1.0",
 "settings": {"values": [{}, {"width": 64}], "index": [0, 0, 0, 1]}, "later": [[1e3, "\u00e9"], {"x": null}]}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let plan = |merges: &[[i64; 2]], scores: &[f64], phi: &[f64]| {
        Plan::compile(tree(merges, scores.to_vec())?, phi).map(Arc::new)
    };
    let four = plan(&[[0, 1], [2, 4], [3, 5]], &[0.1, 0.6, 5.0], &[1.0, 0.5, 0.0])?;
    let chain = plan(&[[0, 3], [1, 4], [2, 5]], &[0.2, 0.0, f64::INFINITY], &[0.9, 0.2, 0.1, 0.0])?;
    let plans = [
        ("one", plan(&[], &[], &[0.0])?, METADATA),
        ("four", Arc::clone(&four), METADATA),
        ("settings", Arc::clone(&four), SETTINGS),
        ("pruned", Arc::new(four.prune(&[1, 3])?), METADATA),
        ("chain", chain, METADATA),
    ];
    fs::create_dir_all(seeds.join("plan_file"))?;
    fs::create_dir_all(seeds.join("plan_metadata"))?;
    for (name, plan, metadata) in plans {
        let n = plan.n_prompts();
        let prompts = (0..n).map(|i| ["é", "", "a cat", "b"][i % 4].to_owned()).collect();
        let file = PlanFile { plan, prompts, seeds: (0..n as i64).collect(), metadata: metadata.to_owned() };
        fs::write(seeds.join("plan_file").join(name), file.to_bytes()?)?;
        fs::write(seeds.join("plan_metadata").join(name), metadata)?;
    }
    Ok(())
}

//! What a plan was compiled with, as its file records it: checked before anything relies on it.
//!
//! It is a JSON object that Python reads again. Names and numbers that later stages use have to be ones that
//! `hsd.compile` could have written. Keys that are not known here are from other versions, and are left as they are.

use serde_json::{Map, Value};

use super::container::bad;
use super::Plan;
use crate::cluster::linkage::Linkage;
use crate::cluster::metric::Metric;
use crate::error::Result;
use crate::plan::schedule::Schedule;

/// How the first latents of clusters may be drawn.
pub const NOISES: [&str; 2] = ["independent", "shared"];

/// Metrics that are not one of vectors alone: Python makes the vectors.
const MORE_METRICS: [&str; 3] = ["auto", "calibrated", "direct"];

/// Schedules whose values come from elsewhere: a calibrated model, or the user.
const MORE_SCHEDULES: [&str; 2] = ["measured", "custom"];

/// `steps` counts as the scheduler of a model does, which may make some more evaluations, or leave out equal ones. It is
/// at most so many times the evaluations of the plan, or at most the number that follows.
const STEPS_PER_EVALUATION: usize = 10;
const FEW_STEPS: usize = 1000;

/// Checks the JSON text `metadata` of a file with `plan`.
///
/// A text with values nested deeper than 128, or with numbers that no float holds, is refused too, so that every reader
/// of JSON takes it.
pub(super) fn check(metadata: &str, plan: &Plan) -> Result<()> {
    let request: Value =
        serde_json::from_str(metadata).map_err(|error| bad(format!("its metadata cannot be read: {error}")))?;
    let Value::Object(request) = request else { return Err(bad("its metadata is not a JSON object")) };
    let fields = Fields(&request);

    fields.number("tau", 0.0, f64::MAX)?.ok_or_else(|| missing("tau"))?;
    let most = FEW_STEPS.max(plan.n_steps().saturating_mul(STEPS_PER_EVALUATION));
    fields.integer("steps", most)?.ok_or_else(|| missing("steps"))?;
    fields.name("noise", &[&NOISES])?.ok_or_else(|| missing("noise"))?;
    fields.name("linkage", &[&Linkage::NAMES])?.ok_or_else(|| missing("linkage"))?;
    fields.text("encoder")?.ok_or_else(|| missing("encoder"))?;

    fields.name("metric", &[&Metric::NAMES, &MORE_METRICS])?;
    fields.name("schedule", &[&Schedule::NAMES, &MORE_SCHEDULES])?;
    fields.number("budget", 0.0, 1.0)?;
    fields.number("catch_up", 0.0, f64::MAX)?;
    fields.number("asked_tau", 0.0, f64::MAX)?;
    fields.name("asked_metric", &[&Metric::NAMES, &MORE_METRICS])?;
    fields.number("metric_correlation", -1.0, 1.0)?;
    fields.integer("images_per_prompt", plan.n_prompts())?;
    fields.text("calibration")?;
    fields.text("hsd_version")?;
    fields.extensions(plan.n_prompts())?;
    match fields.get("settings") {
        None => Ok(()),
        Some(settings) => check_settings(settings, plan),
    }
}

fn missing(name: &str) -> crate::Error {
    bad(format!("its metadata has no {name}"))
}

/// A value in a message: the beginning of its text.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string().chars().take(40).collect(),
    }
}

/// The keys of the object. For all but names, null counts as none: Python writes it for an argument that was not given.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, name: &str, value: &Value, needed: &str) -> Result<T> {
        Err(bad(format!("its metadata has {name} {}; it has to be {needed}", shown(value))))
    }

    fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None if most == f64::MAX => self.wrong(name, value, &format!("a finite number >= {least}")),
            None => self.wrong(name, value, &format!("a number from {least} to {most}")),
        }
    }

    fn integer(&self, name: &str, most: usize) -> Result<Option<u64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().filter(|number| (1..=most as u64).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => self.wrong(name, value, &format!("an integer from 1 to {most} in this plan")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_str().filter(|text| !text.chars().any(char::is_control)) {
            Some(text) => Ok(Some(text)),
            None => self.wrong(name, value, "a text without control characters"),
        }
    }

    /// How many prompts there were before each time that the plan was extended, and what it was then.
    fn extensions(&self, n: usize) -> Result<()> {
        if let Some(value) = self.get("extensions") {
            let begins = value.as_array().map(|begins| begins.iter().map(Value::as_u64).collect::<Vec<_>>());
            // No prompt is `None`, which is below every number.
            let ascend = |begins: &Vec<Option<u64>>| begins.windows(2).all(|pair| pair[0] < pair[1]);
            let within = |begins: &Vec<Option<u64>>| {
                begins.first().is_none_or(|first| *first > Some(0))
                    && begins.last().is_none_or(|last| *last < Some(n as u64))
            };
            if begins.filter(|begins| ascend(begins) && within(begins)).is_none() {
                return self.wrong("extensions", value, "an ascending list of numbers of its prompts");
            }
        }
        if let Some(value) = self.get("variations") {
            let pair = |pair: &Value| {
                let numbers = pair.as_array().map(|pair| pair.iter().map(Value::as_u64).collect::<Vec<_>>());
                matches!(numbers.as_deref(), Some(&[Some(new), Some(of)]) if of < new && new < n as u64)
            };
            let ascend = |pairs: &[Value]| {
                pairs
                    .windows(2)
                    .all(|two| two[0].get(0).and_then(Value::as_u64) < two[1].get(0).and_then(Value::as_u64))
            };
            if value.as_array().map(|pairs| pairs.iter().all(pair) && ascend(pairs)) != Some(true) {
                return self.wrong("variations", value, "an ascending list of pairs of its prompts");
            }
        }
        if let Some(value) = self.get("grown_from") {
            let texts = value.as_array().map(|texts| texts.iter().all(Value::is_string));
            if texts != Some(true) {
                return self.wrong("grown_from", value, "a list of texts");
            }
        }
        Ok(())
    }

    fn name(&self, what: &str, known: &[&[&str]]) -> Result<Option<&'a str>> {
        let Some(value) = self.0.get(what) else { return Ok(None) };
        let known = known.concat();
        match value.as_str().filter(|name| known.contains(name)) {
            Some(name) => Ok(Some(name)),
            None => self.wrong(what, value, &format!("one of {}", known.join(", "))),
        }
    }
}

/// Checks that each prompt has settings, and that all prompts of a cluster have the same.
fn check_settings(settings: &Value, plan: &Plan) -> Result<()> {
    let n = plan.n_prompts();
    let values = settings.get("values").and_then(Value::as_array);
    let values = values.filter(|values| values.iter().all(Value::is_object));
    let values = values.ok_or_else(|| bad("its settings are not a list of objects"))?;
    if values.len() > n {
        return Err(bad(format!("it has {} settings for {n} prompts", values.len())));
    }
    let index = settings.get("index").and_then(Value::as_array).filter(|index| index.len() == n);
    let index = index.ok_or_else(|| bad(format!("it does not say which settings each of its {n} prompts has")))?;
    let mut setting = Vec::with_capacity(n);
    for (prompt, which) in index.iter().enumerate() {
        match which.as_u64().filter(|&which| which < values.len() as u64) {
            Some(which) => setting.push(which),
            None => return Err(bad(format!("prompt {prompt} has settings {} of {}", shown(which), values.len()))),
        }
    }
    // How often the settings change up to each place of the leaf order: the same at both ends of a cluster of one kind.
    let order = plan.tree().leaf_order();
    let mut changes = vec![0u32; n];
    for place in 1..n {
        let differ = setting[order[place] as usize] != setting[order[place - 1] as usize];
        changes[place] = changes[place - 1] + u32::from(differ);
    }
    let mixed = |leaves: std::ops::Range<usize>| changes[leaves.end - 1] != changes[leaves.start];
    match plan.segments().iter().position(|segment| mixed(segment.leaves())) {
        Some(segment) => Err(bad(format!("segment {segment} holds prompts of different settings"))),
        None => Ok(()),
    }
}

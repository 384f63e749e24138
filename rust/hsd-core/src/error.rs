//! What can be wrong with an input, with the numbers that a caller needs to correct it.

use thiserror::Error;

/// What went wrong. Every message names the offending index and value, and says what to do if anything can be done.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The embeddings hold no row or no column.
    #[error("embeddings have shape ({rows}, {columns}); at least one row and one column are needed")]
    NoEmbeddings {
        /// Rows given.
        rows: usize,
        /// Columns given.
        columns: usize,
    },
    /// An embedding holds a NaN or an infinity.
    #[error("embedding {row} holds {value} at column {column}; every entry must be finite")]
    NotFinite {
        /// The row.
        row: usize,
        /// The first such column of it.
        column: usize,
        /// The entry.
        value: f64,
    },
    /// An embedding is all zeros.
    #[error("embedding {row} is all zeros, so it has no direction; leave that prompt out or encode it again")]
    ZeroRow {
        /// The row.
        row: usize,
    },
    /// A name that is none of the known ones.
    #[error("unknown {what} {name:?}; choose one of {}", quoted(choices))]
    UnknownName {
        /// What the name is of.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names there are.
        choices: &'static [&'static str],
    },
    /// Centroid linkage with Euclidean distances.
    #[error(
        "centroid linkage compares mean embeddings by cosine distance, so it has no Euclidean form; \
         choose metric \"cosine\", or with \"euclidean\" one of \"ward\", \"average\", \"complete\""
    )]
    NoEuclideanCentroid,
    /// No row of embeddings besides those of the old leaves.
    #[error(
        "there are {rows} rows of embeddings and {leaves} leaves; the rows of all leaves come first, and then at least one \
         new row"
    )]
    NoNewRows {
        /// Rows given.
        rows: usize,
        /// Leaves of the tree.
        leaves: usize,
    },
    /// A tree whose linkage is none that new leaves could be inserted by.
    #[error("the tree's linkage is {linkage:?}; only trees of {} can grow", quoted(choices))]
    NoSuchGrowth {
        /// The linkage of the tree.
        linkage: String,
        /// The linkages that there are.
        choices: &'static [&'static str],
    },
    /// Leaves of two groups, both of which grow, in one cluster of finite height.
    #[error(
        "leaves {} and {} are in one cluster, but in two groups that both grow; give all leaves of a cluster of finite \
         height one group",
        leaves[0],
        leaves[1]
    )]
    MixedGroups {
        /// One of each group.
        leaves: [usize; 2],
    },
    /// More of something than the tables' 32-bit indices can hold.
    #[error("{count} {what} are more than the {limit} that fit; split the set")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        count: usize,
        /// The most there may be.
        limit: usize,
    },
    /// A table for which there is no memory.
    #[error("{what} need {gigabytes:.1} GB, which is more than can be allocated; split the set")]
    NoMemory {
        /// What needs the memory.
        what: &'static str,
        /// How much.
        gigabytes: f64,
    },
    /// Two arrays that belong together differ in length.
    #[error("{what} has length {found}, but {expected} is needed")]
    Length {
        /// The array.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it needs.
        expected: usize,
    },
    /// A merge that does not continue a binary tree.
    #[error("merge {merge} joins node {node}, which {why}")]
    BadMerge {
        /// Row of the merge.
        merge: usize,
        /// The child at fault.
        node: i64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A negative or NaN score.
    #[error("merge {merge} has score {score}; scores must be numbers >= 0")]
    BadScore {
        /// Row of the merge.
        merge: usize,
        /// Its score.
        score: f64,
    },
    /// A negative or NaN height to cut at.
    #[error("height is {height}; it must be a number >= 0")]
    BadHeight {
        /// The height.
        height: f64,
    },
    /// Thresholds without a single step.
    #[error("there are 0 steps; at least one is needed")]
    NoSteps,
    /// A threshold that is NaN, infinite or negative.
    #[error("the threshold at step {step} is {value}; thresholds must be finite and >= 0")]
    BadThreshold {
        /// The step.
        step: usize,
        /// Its threshold.
        value: f64,
    },
    /// A weight that is NaN or infinite.
    #[error("the weight of step {step} is {value}; weights must be finite")]
    BadWeight {
        /// The step.
        step: usize,
        /// Its weight.
        value: f64,
    },
    /// Weights that limit no threshold.
    #[error("none of the {steps} weights before the last is over 0, so nothing limits sharing; measure them again")]
    NoPositiveWeight {
        /// Number of steps before the last.
        steps: usize,
    },
    /// A threshold above the one before.
    #[error(
        "the threshold rises from {before} to {value} at step {step}; thresholds must not rise, \
         as a cluster that was split cannot be joined again"
    )]
    RisingThreshold {
        /// The step.
        step: usize,
        /// The threshold of the step before.
        before: f64,
        /// The step's threshold.
        value: f64,
    },
    /// A last threshold that is not 0.
    #[error(
        "the threshold at the last step {step} is {value}; it must be 0, so that every prompt ends as a single cluster"
    )]
    LastThreshold {
        /// The last step.
        step: usize,
        /// Its threshold.
        value: f64,
    },
    /// No tau brings the node-steps down to the target.
    #[error("{target} node-steps cannot be reached: this tree and schedule need at least {least}; raise the budget")]
    BudgetTooSmall {
        /// The node-steps wanted.
        target: i64,
        /// The fewest that any tau gives.
        least: i64,
    },
    /// A leaf or prompt that does not exist.
    #[error("{what} {index} is out of range; there are {count}")]
    OutOfRange {
        /// What was indexed.
        what: &'static str,
        /// The index given.
        index: i64,
        /// How many there are.
        count: usize,
    },
    /// A step that does not exist.
    #[error("step {step} is out of range; steps run from 0 to {last}")]
    NoSuchStep {
        /// The step given.
        step: i64,
        /// The last step.
        last: usize,
    },
    /// One leaf or prompt given twice.
    #[error("{what} {index} is given twice")]
    Repeated {
        /// What was indexed.
        what: &'static str,
        /// The index.
        index: i64,
    },
    /// A prompt that an earlier prune has dropped.
    #[error("prompt {prompt} is not kept by this plan, so it cannot be kept now; prune the full plan instead")]
    NotKept {
        /// The prompt.
        prompt: usize,
    },
    /// A resumed plan where a plan is needed that begins at step 0.
    #[error(
        "this plan continues from states that are not part of it, so it cannot be {what}; \
         use the plan that it was resumed from"
    )]
    Resumed {
        /// What cannot be done with it.
        what: &'static str,
    },
    /// Nothing to work on.
    #[error("no {what} given; at least one is needed")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// A count that must be at least one.
    #[error("{what} is {value}; it must be at least 1")]
    NotPositive {
        /// The parameter.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// A slack of shares that is NaN, infinite or negative.
    #[error(
        "slack is {slack}; it must be a finite number >= 0, such as 0.05: the largest share may then be 5 % larger \
         than it has to be"
    )]
    BadSlack {
        /// The slack.
        slack: f64,
    },
    /// Rows of a lane that are neither one nor two.
    #[error("rows is {value} at step {step}; a lane is 1 row of the network, or 2 where it is guided")]
    BadRows {
        /// The step.
        step: usize,
        /// Its rows.
        value: i64,
    },
    /// A kind of a segment that is negative.
    #[error("kinds is {value} at segment {segment}; kinds are numbers >= 0, one for each segment")]
    BadKind {
        /// The segment.
        segment: usize,
        /// Its kind.
        value: i64,
    },
    /// A buffer in which the plan cannot run.
    #[error("max_slots is {max_slots}, but this plan needs at least {least}; raise it to {least} or more")]
    TooFewSlots {
        /// Slots allowed.
        max_slots: i64,
        /// The fewest that suffice.
        least: usize,
    },
    /// A plan that breaks one of its invariants.
    #[error("segment {segment} of the plan {why}")]
    BadSegment {
        /// Row of the segment.
        segment: usize,
        /// The invariant that it breaks.
        why: String,
    },
    /// A plan that breaks an invariant which is not one segment's.
    #[error("the plan is not sound: {0}")]
    BadPlan(String),
    /// A program that breaks one of its invariants.
    #[error("call {call}, lane {lane} of the program {why}")]
    BadLane {
        /// The call.
        call: usize,
        /// The lane.
        lane: usize,
        /// The invariant that it breaks.
        why: String,
    },
    /// A program that breaks an invariant which is not one lane's.
    #[error("the program is not sound: {0}")]
    BadProgram(String),
    /// A file that is not a plan, or not a whole one.
    #[error("this is not a sound plan file: {0}")]
    BadFile(String),
    /// The progress callback stopped the work.
    #[error("interrupted")]
    Interrupted,
}

/// Names in quotes, one after the other.
fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// An empty vector with capacity for `count` entries, or an error: the usual allocation would abort the process.
pub(crate) fn reserve<T>(what: &'static str, count: usize) -> Result<Vec<T>> {
    let mut empty = Vec::new();
    match empty.try_reserve_exact(count) {
        Ok(()) => Ok(empty),
        Err(_) => Err(Error::NoMemory { what, gigabytes: count as f64 * size_of::<T>() as f64 / 1e9 }),
    }
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// `count` as a 32-bit index, or an error that says what there is too much of.
pub(crate) fn index_count(what: &'static str, count: usize) -> Result<u32> {
    const LIMIT: usize = i32::MAX as usize;
    if count > LIMIT {
        return Err(Error::TooMany { what, count, limit: LIMIT });
    }
    Ok(count as u32)
}

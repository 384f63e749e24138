//! The program: a plan lowered to batched calls, which are made anew whenever they are asked for.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{index_count, Error, Result};
use crate::forest::{least_slots, Forest};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::scheduler::{Rule, Scheduler};
use crate::simulate::Checker;

/// Which ready node-steps a call takes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The latest step first: images finish early and few latents are alive. Where all lanes of a call are at one step,
    /// the latest that fills a call, which gives the fewest calls there can be.
    Depth,
    /// The earliest step first: the fewest calls there can be (Hu 1961, highest level first; level by level, where all
    /// lanes of a call are at one step).
    Breadth,
}

impl Order {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Order::Depth => "depth",
            Order::Breadth => "breadth",
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Order::Depth, Order::Breadth].into_iter().find(|order| order.name() == name).ok_or_else(|| {
            Error::UnknownName { what: "order", name: name.to_owned(), choices: "\"depth\", \"breadth\"" }
        })
    }
}

/// One row of a call: one segment at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The segment.
    pub segment: u32,
    /// The step.
    pub step: u32,
    /// The slot that holds the latent before the step.
    pub source: u32,
    /// The slot that holds it afterwards.
    pub target: u32,
    /// It starts a root: its first latent has to be drawn into `source` before the call.
    pub fresh: bool,
    /// It is the segment's first step.
    pub begins: bool,
    /// It is the last step of all: `target` holds a finished latent right after the call.
    pub last: bool,
}

/// A plan lowered to calls. Sound by construction and checked besides.
///
/// The calls are not stored: they are linear in node-steps, and scheduling is fast and deterministic. Compiling runs
/// the schedule once to check every call and count them; [`Program::calls`] runs it again. Memory, here and there, is
/// linear in the plan's segments.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    plan: Arc<Plan>,
    forest: Arc<Forest>,
    batch_size: usize,
    order: Order,
    /// How the calls are made; not in `order` where that would take more calls.
    rule: Rule,
    max_slots: Option<usize>,
    n_calls: usize,
    n_slots: usize,
}

impl Program {
    /// Lowers `plan` to calls of at most `batch_size` lanes in a buffer of at most `max_slots` slots. All lanes of a call
    /// stand at one step, unless `mixed_steps`.
    ///
    /// A small buffer spoils what is best in a large one. Breadth first fills it with latents that all wait for room
    /// to fork, and then goes on one by one; so does either order if steps are not mixed, where waves help. So with
    /// `max_slots` several rules are tried, and the one with the fewest calls is taken.
    pub fn compile(
        plan: Arc<Plan>,
        batch_size: i64,
        order: Order,
        max_slots: Option<i64>,
        mixed_steps: bool,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let (batch_size, max_slots) = Program::check(&plan, batch_size, max_slots)?;
        let forest = Arc::new(Forest::new(plan.segments()));
        let rule = Rule { order, mixed_steps, wave: None };
        let mut rules = vec![rule];
        if let Some(limit) = max_slots {
            if order == Order::Breadth {
                rules.insert(0, Rule { order: Order::Depth, ..rule });
            }
            if !mixed_steps {
                // Besides one latent an image, a wave may find those that later waves read: fewer than the least slots.
                // Images are not all alive at once, and twice as many as would surely fit were better than once or
                // three times on nearly all plans.
                let fit = limit - least_slots(plan.segments()) + 1;
                let wave = NonZeroUsize::new(fit.saturating_mul(2)).filter(|wave| wave.get() < plan.kept().len());
                rules.splice(0..0, wave.map(|wave| Rule { order: Order::Depth, mixed_steps, wave: Some(wave) }));
            }
        }
        let mut program = Program { plan, forest, batch_size, order, rule, max_slots, n_calls: usize::MAX, n_slots: 0 };
        let share = 1.0 / rules.len() as f64;
        for (at, &rule) in rules.iter().enumerate() {
            let begin = at as f64 * share;
            progress.part(begin, begin + share, |progress| program.try_rule(rule, progress))?;
        }
        progress.finish()?;
        Ok(program)
    }

    /// Checks the parameters of [`Program::compile`] without lowering the plan; as numbers of their true types.
    pub fn check(plan: &Plan, batch_size: i64, max_slots: Option<i64>) -> Result<(usize, Option<usize>)> {
        let Some(batch_size) = usize::try_from(batch_size).ok().filter(|&size| size > 0) else {
            return Err(Error::NotPositive { what: "batch_size", value: batch_size });
        };
        index_count("lanes", batch_size)?;
        let Some(max_slots) = max_slots else { return Ok((batch_size, None)) };
        let least = least_slots(plan.segments());
        match usize::try_from(max_slots).ok().filter(|&most| most >= least) {
            None => Err(Error::TooFewSlots { max_slots, least }),
            limit => Ok((batch_size, limit)),
        }
    }

    /// Runs through the schedule by `rule`, checks every call, and takes the rule unless it makes more calls than
    /// the one before. Gives up as soon as that is certain.
    fn try_rule(&mut self, rule: Rule, progress: &mut Progress<'_>) -> Result<()> {
        let mut scheduler = self.scheduler(rule);
        let mut checker = Checker::new(&self.plan, self.batch_size, rule.mixed_steps);
        let mut lanes = Vec::new();
        let total = self.plan.node_steps();
        let (mut done, mut n_calls) = (0, 0);
        while done < total {
            if n_calls + (total - done).div_ceil(self.batch_size) > self.n_calls {
                return Ok(());
            }
            scheduler.next_call(&mut lanes);
            checker.check(&lanes)?;
            done += lanes.len();
            n_calls += 1;
            progress.at(done, total)?;
        }
        let n_slots = checker.finish()?;
        if self.max_slots.is_some_and(|limit| n_slots > limit) {
            return Err(Error::BadProgram(format!("it uses {n_slots} slots of {:?}", self.max_slots)));
        }
        (self.rule, self.n_calls, self.n_slots) = (rule, n_calls, n_slots);
        Ok(())
    }

    fn scheduler(&self, rule: Rule) -> Scheduler {
        Scheduler::new(Arc::clone(&self.plan), Arc::clone(&self.forest), self.batch_size, rule, self.max_slots)
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The most lanes of a call.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// What its calls were asked to take first.
    pub fn order(&self) -> Order {
        self.order
    }

    /// What its calls take first.
    pub fn rule(&self) -> Order {
        self.rule.order
    }

    /// Whether lanes of one call may stand at different steps.
    pub fn mixed_steps(&self) -> bool {
        self.rule.mixed_steps
    }

    /// The limit that it was compiled under.
    pub fn max_slots(&self) -> Option<usize> {
        self.max_slots
    }

    /// Number of slots that it uses.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// Number of calls.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// The calls, made one after the other, the same every time.
    pub fn calls(&self) -> Calls {
        Calls { scheduler: self.scheduler(self.rule), lanes: Vec::new(), left: self.n_calls }
    }

    /// Filled lanes / all lanes.
    pub fn occupancy(&self) -> f64 {
        self.plan.node_steps() as f64 / (self.n_calls as f64 * self.batch_size as f64)
    }

    /// No program of this plan has fewer calls of its kind at this batch size; see [`Plan::lower_bound`].
    pub fn lower_bound(&self) -> usize {
        self.plan.lower_bound(self.batch_size, self.rule.mixed_steps)
    }
}

/// The calls of a program, made as they are asked for: the filled lanes of each.
#[derive(Debug)]
pub struct Calls {
    scheduler: Scheduler,
    /// Of the call that was made last.
    lanes: Vec<Lane>,
    left: usize,
}

impl Calls {
    /// The lanes of the next call. Lends one buffer again and again, where the iterator makes a vector a call.
    pub fn next_call(&mut self) -> Option<&[Lane]> {
        self.left = self.left.checked_sub(1)?;
        self.scheduler.next_call(&mut self.lanes);
        Some(&self.lanes)
    }
}

impl Iterator for Calls {
    type Item = Vec<Lane>;

    fn next(&mut self) -> Option<Vec<Lane>> {
        self.next_call().map(<[Lane]>::to_vec)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Calls {}

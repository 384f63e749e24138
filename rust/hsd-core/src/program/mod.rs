//! The program: a plan lowered to batched calls, which are computed again whenever they are needed.

pub mod bound;
pub mod forest;
pub mod kinds;
pub mod lane;
pub mod rows;
pub mod validate;

mod ready;
mod scheduler;
mod slots;

use std::num::NonZeroUsize;
use std::sync::Arc;

use self::bound::lower_bound;
use self::forest::{least_slots, Forest};
use self::kinds::Kinds;
use self::lane::{Lane, Order};
use self::rows::Rows;
use self::scheduler::{Rule, Scheduler};
use self::validate::Checker;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::work::progress::Progress;

/// What lanes differ in, as far as it decides which of them can be in one call.
#[derive(Debug, Clone, Copy, Default)]
pub struct PerLane<'a> {
    /// The rows of a lane at each step; see [`Rows`]. None: one.
    pub rows: Option<&'a [i64]>,
    /// The kind of each segment; see [`Kinds`]. None: all are of one kind.
    pub kinds: Option<&'a [i64]>,
}

/// A plan lowered to calls. Sound by construction, and checked as well.
///
/// The calls are not stored: they are linear in node-steps, and scheduling is fast and deterministic. Compiling runs
/// the schedule once to check every call and count them; [`Program::calls`] runs it again. Both need memory linear in
/// the plan's segments.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    plan: Arc<Plan>,
    forest: Arc<Forest>,
    rows: Rows,
    kinds: Option<Kinds>,
    order: Order,
    /// How the calls are made. Its order differs from `order` if that one would take more calls.
    rule: Rule,
    max_slots: Option<usize>,
    n_calls: usize,
    n_slots: usize,
}

impl Program {
    /// Lowers `plan` to calls of at most `batch_size` lanes in a buffer of at most `max_slots` slots. All lanes of a
    /// call are at one step, unless `mixed_steps`. With `rows`, the rows of a lane at each step, calls have at most
    /// `2 batch_size` rows; see [`Rows`]. With `kinds`, all lanes of a call are of one kind.
    ///
    /// The rule that is best in a large buffer can be bad in a small one. Breadth first fills the buffer with latents
    /// that all wait for a free slot to fork into, and then runs them one by one. Without mixed steps either order does
    /// that, and there waves help. So with `max_slots` several rules are tried, and the one with the fewest calls is
    /// taken.
    pub fn compile(
        plan: Arc<Plan>,
        batch_size: i64,
        order: Order,
        max_slots: Option<i64>,
        mixed_steps: bool,
        PerLane { rows, kinds }: PerLane<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let (rows, max_slots) = Program::check(&plan, batch_size, max_slots, rows)?;
        let kinds = kinds.map(|kinds| Kinds::new(plan.segments().len(), kinds)).transpose()?;
        let forest = Arc::new(Forest::new(plan.segments(), kinds.as_ref(), max_slots.is_some()));
        let rule = Rule { order, mixed_steps, wave: None };
        let mut rules = vec![rule];
        if let Some(limit) = max_slots {
            if order == Order::Breadth {
                rules.insert(0, Rule { order: Order::Depth, ..rule });
            }
            if !mixed_steps {
                // A wave needs at most one slot for each of its images, besides the slots of latents that later waves
                // read, which are fewer than the least slots. So `fit` images certainly fit. As images are not all
                // alive at the same time, twice that number was better than once or three times on nearly all plans.
                let fit = limit - least_slots(plan.segments()) + 1;
                let wave = NonZeroUsize::new(fit.saturating_mul(2)).filter(|wave| wave.get() < plan.kept().len());
                rules.splice(0..0, wave.map(|wave| Rule { order: Order::Depth, mixed_steps, wave: Some(wave) }));
            }
        }
        let mut program =
            Program { plan, forest, rows, kinds, order, rule, max_slots, n_calls: usize::MAX, n_slots: 0 };
        let share = 1.0 / rules.len() as f64;
        for (at, &rule) in rules.iter().enumerate() {
            let begin = at as f64 * share;
            progress.part(begin, begin + share, |progress| program.try_rule(rule, progress))?;
        }
        progress.finish()?;
        Ok(program)
    }

    /// Checks the parameters of [`Program::compile`] without lowering the plan; as numbers of their true types.
    pub fn check(
        plan: &Plan,
        batch_size: i64,
        max_slots: Option<i64>,
        rows: Option<&[i64]>,
    ) -> Result<(Rows, Option<usize>)> {
        let rows = Rows::new(plan.n_steps(), batch_size, rows)?;
        let Some(max_slots) = max_slots else { return Ok((rows, None)) };
        let least = least_slots(plan.segments());
        match usize::try_from(max_slots).ok().filter(|&most| most >= least) {
            None => Err(Error::TooFewSlots { max_slots, least }),
            limit => Ok((rows, limit)),
        }
    }

    /// Runs through the schedule by `rule`, checks every call, and takes the rule unless it makes more calls than
    /// the one before. Returns early when that is certain.
    fn try_rule(&mut self, rule: Rule, progress: &mut Progress<'_>) -> Result<()> {
        let mut scheduler = self.scheduler(rule);
        let mut checker = Checker::new(&self.plan, &self.rows, self.kinds.as_ref(), rule.mixed_steps);
        let mut lanes = Vec::new();
        let total = self.n_rows();
        let (mut done, mut n_calls) = (0, 0);
        while done < total {
            if n_calls + (total - done).div_ceil(self.rows.capacity()) > self.n_calls {
                return Ok(());
            }
            scheduler.next_call(&mut lanes);
            checker.check(&lanes)?;
            done += lanes.iter().map(|lane| self.rows.at(lane.step)).sum::<usize>();
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
        let (plan, forest) = (Arc::clone(&self.plan), Arc::clone(&self.forest));
        Scheduler::new(plan, forest, self.rows.clone(), self.kinds.clone(), rule, self.max_slots)
    }

    /// How many rows of the network a lane takes at each step, and how many a call has.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The kinds of segments; none if calls may mix them all.
    pub fn kinds(&self) -> Option<&Kinds> {
        self.kinds.as_ref()
    }

    /// The size of a call as it was given: its most lanes, or where rows were given, its most lanes of two rows.
    pub fn batch_size(&self) -> usize {
        self.rows.capacity() / if self.rows.given().is_some() { 2 } else { 1 }
    }

    /// Rows of the network of all calls.
    pub fn n_rows(&self) -> usize {
        self.rows.total(&self.plan.counts())
    }

    /// The order that it was compiled for.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The order that its calls are in.
    pub(crate) fn rule(&self) -> Order {
        self.rule.order
    }

    /// Whether lanes of one call may be at different steps.
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

    /// The calls, computed one after the other, the same every time.
    pub fn calls(&self) -> Calls {
        Calls { scheduler: self.scheduler(self.rule), lanes: Vec::new(), left: self.n_calls }
    }

    /// Filled rows / all rows. (Without `rows`, a lane is one row.)
    pub fn occupancy(&self) -> f64 {
        self.n_rows() as f64 / (self.n_calls as f64 * self.rows.capacity() as f64)
    }

    /// No program of this plan has fewer calls of this form at this batch size; see [`lower_bound`].
    pub fn lower_bound(&self) -> usize {
        lower_bound(&self.plan, &self.rows, self.kinds.as_ref(), self.rule.mixed_steps)
    }
}

/// The calls of a program, each computed when it is read: its filled lanes.
#[derive(Debug)]
pub struct Calls {
    scheduler: Scheduler,
    /// The lanes of the last call.
    lanes: Vec<Lane>,
    left: usize,
}

impl Calls {
    /// The lanes of the next call, in a buffer that the next call overwrites. The iterator makes a vector for each
    /// call.
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

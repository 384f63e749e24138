//! Plans and programs as aligned text, for people and for golden files.

use std::fmt::Write;

use crate::plan::Plan;
use crate::program::lane::Lane;
use crate::program::Program;

impl Plan {
    /// The segments, one a line, at most `max_rows` of them.
    pub fn describe(&self, max_rows: usize) -> String {
        let (n, steps) = (self.kept().len(), self.n_steps());
        let standard = n * steps;
        let saved = 100.0 * (1.0 - self.node_steps() as f64 / standard as f64);
        let mut text = format!(
            "plan: {n} of {} prompts, {steps} steps, {} linkage, {} segments, {} node-steps of {standard} ({saved:.1} % saved)\n",
            self.n_prompts(),
            self.tree().linkage(),
            self.segments().len(),
            self.node_steps(),
        );
        let header = ["segment", "parent", "steps", "leaves", "size", "representative"].map(str::to_owned);
        let rows = self.segments().iter().take(max_rows).enumerate().map(|(row, segment)| {
            [
                row.to_string(),
                segment.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string()),
                format!("{}..{}", segment.first_step, segment.end_step),
                format!("{}..{}", segment.leaf_begin, segment.leaf_end),
                segment.leaves().len().to_string(),
                segment.representative.to_string(),
            ]
        });
        text += &table(std::iter::once(header).chain(rows).collect());
        text + &more(self.segments().len(), max_rows)
    }
}

impl Program {
    /// The calls, one a line, at most `max_rows` of them.
    ///
    /// A lane is printed as `segment@step source>target`. `*` marks a fresh root and `!` a finished image. A single
    /// slot is both read and written.
    pub fn describe(&self, max_rows: usize) -> String {
        let mut text = format!(
            "program: {} first, {} calls of {} {}{}{} (at least {}), {:.1} % filled, {} slots\n",
            self.rule(),
            self.n_calls(),
            self.rows().capacity(),
            if self.rows().given().is_some() { "rows" } else { "lanes" },
            if self.mixed_steps() { "" } else { " at one step" },
            if self.kinds().is_some() { " of one kind" } else { "" },
            self.lower_bound(),
            100.0 * self.occupancy(),
            self.n_slots(),
        );
        let header = vec!["call".to_owned(), "lanes".to_owned(), "segment@step slot".to_owned()];
        let rows = self.calls().take(max_rows).enumerate().map(|(call, lanes)| {
            let mut row = vec![call.to_string(), lanes.len().to_string()];
            row.extend(lanes.iter().map(lane));
            row
        });
        text += &table(std::iter::once(header).chain(rows).collect());
        text + &more(self.n_calls(), max_rows)
    }
}

fn lane(lane: &Lane) -> String {
    let fresh = if lane.fresh { "*" } else { "" };
    let last = if lane.last { "!" } else { "" };
    if lane.source == lane.target {
        format!("{}@{} {fresh}{}{last}", lane.segment, lane.step, lane.target)
    } else {
        format!("{}@{} {}>{}{last}", lane.segment, lane.step, lane.source, lane.target)
    }
}

/// Columns aligned to the right, two spaces apart.
fn table<R: AsRef<[String]>>(rows: Vec<R>) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.as_ref().iter().enumerate() {
            match widths.get_mut(column) {
                Some(width) => *width = cell.len().max(*width),
                None => widths.push(cell.len()),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.as_ref().iter().zip(&widths) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}

fn more(rows: usize, shown: usize) -> String {
    match rows.saturating_sub(shown) {
        0 => String::new(),
        hidden => format!("  ... {hidden} more\n"),
    }
}

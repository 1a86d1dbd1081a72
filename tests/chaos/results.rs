//! What came of a run: the table, and whether it is right.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fault::Kind;
use crate::injector::Made;
use crate::operator::Operations;
use crate::target::{Branch, Tally};

/// How many messages are named on the screen.
const NAMED_MAX: usize = 20;

/// How many faults of a kind must have found nothing to break for that to be no chance any more.
const NEVER_MADE_MIN: usize = 3;

/// What came of a run.
pub(crate) struct Results {
    pub(crate) seed: u64,
    pub(crate) tally: Tally,
    pub(crate) faults: Vec<Made>,
    pub(crate) operations: Operations,
    /// Each step, and how it was at the end.
    pub(crate) states: Vec<(String, String)>,
    /// What was given up.
    pub(crate) dead: Vec<String>,
    /// From the end of the last fault until nothing came any more.
    pub(crate) converged: Duration,
    pub(crate) took: Duration,
    /// Whether the second branch had `once: true`.
    pub(crate) once: bool,
}

#[derive(Default)]
struct OfKind {
    made: usize,
    not_made: usize,
    longest: Duration,
}

impl Results {
    /// Whether nothing is missing or given up, nothing was done twice that must not be, nobody has to
    /// help, and what was planned was really broken.
    pub(crate) fn is_right(&self) -> bool {
        self.tally.missing().is_empty()
            && (!self.once || self.duplicates(Branch::Once) == 0)
            && self.dead.is_empty()
            && self.operations.given_up.is_empty()
            && self.runs()
            && self.never_made().is_empty()
    }

    /// The kinds of faults of which several were planned and none could be made.
    fn never_made(&self) -> Vec<Kind> {
        let kinds = self.by_kind().into_iter();
        kinds
            .filter(|(_, of)| of.made == 0 && of.not_made >= NEVER_MADE_MIN)
            .map(|(kind, _)| kind)
            .collect()
    }

    fn runs(&self) -> bool {
        !self.states.is_empty() && self.states.iter().all(|(_, state)| state == "running")
    }

    fn duplicates(&self, branch: Branch) -> u64 {
        self.tally.branches[&branch].duplicates()
    }

    fn by_kind(&self) -> BTreeMap<Kind, OfKind> {
        let mut kinds: BTreeMap<Kind, OfKind> = BTreeMap::new();
        for fault in &self.faults {
            let kind = kinds.entry(fault.kind).or_default();
            if fault.hit.is_ok() {
                kind.made += 1;
            } else {
                kind.not_made += 1;
            }
            if let Some(recovery) = self.tally.recovered.get(&fault.number) {
                kind.longest = kind.longest.max(*recovery);
            }
        }
        kinds
    }

    /// The table, line by line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let kinds = self.by_kind();
        let made: usize = kinds.values().map(|kind| kind.made).sum();
        let longest = kinds.values().map(|kind| kind.longest).max();
        let mut lines = vec![
            String::new(),
            format!(
                "{:<26}{:>6}{:>10}{:>19}",
                "fault", "made", "not made", "longest recovery"
            ),
        ];
        for (kind, of) in &kinds {
            lines.push(format!(
                "{:<26}{:>6}{:>10}{:>17.1} s",
                kind.name(),
                of.made,
                of.not_made,
                of.longest.as_secs_f64()
            ));
        }
        let second = if self.once {
            "with `once: true`"
        } else {
            "second branch, plain"
        };
        let row = |what: &str, value: String| format!("{what:<45}{value:>16}");
        lines.push(String::new());
        lines.extend([
            row("seed", self.seed.to_string()),
            row("faults made", made.to_string()),
            row("messages in", self.tally.messages.to_string()),
            row(
                "distinct out, of both branches",
                self.tally.distinct().to_string(),
            ),
            row("missing", self.tally.missing().len().to_string()),
            row(
                "duplicates at the target, without `once`",
                self.duplicates(Branch::Plain).to_string(),
            ),
            row(
                &format!("duplicates at the target, {second}"),
                self.duplicates(Branch::Once).to_string(),
            ),
            row(
                "order inversions, without `once`",
                self.tally.branches[&Branch::Plain].inversions.to_string(),
            ),
            row(
                &format!("order inversions, {second}"),
                self.tally.branches[&Branch::Once].inversions.to_string(),
            ),
            row(
                "posts that the target refused",
                self.tally.refused.to_string(),
            ),
            row("dead letters", self.dead.len().to_string()),
            row(
                "commands done, and given again",
                format!("{}, {}", self.operations.done, self.operations.repeated),
            ),
            row(
                "longest recovery",
                format!("{:.1} s", longest.unwrap_or_default().as_secs_f64()),
            ),
            row(
                "converged after the last fault within",
                format!("{:.1} s", self.converged.as_secs_f64()),
            ),
            row("took", format!("{:.0} s", self.took.as_secs_f64())),
        ]);
        lines.extend(self.complaints());
        lines.push(if self.is_right() {
            "right".to_owned()
        } else {
            "NOT RIGHT".to_owned()
        });
        lines
    }

    fn complaints(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let missing = self.tally.missing();
        for (order, branch) in missing.iter().take(NAMED_MAX) {
            lines.push(format!("missing: order {order} at {branch:?}"));
        }
        if self.once {
            for (order, count) in self.tally.branches[&Branch::Once]
                .repeated()
                .iter()
                .take(NAMED_MAX)
            {
                lines.push(format!("done {count} times with `once`: order {order}"));
            }
        }
        for (step, state) in self.states.iter().filter(|(_, state)| state != "running") {
            lines.push(format!("at the end, step `{step}` is {state}"));
        }
        for kind in self.never_made() {
            lines.push(format!(
                "none was made of what was planned: {}",
                kind.name()
            ));
        }
        for letter in self.dead.iter().take(NAMED_MAX) {
            lines.push(format!("dead letter: {letter}"));
        }
        for command in &self.operations.given_up {
            lines.push(format!("the operator gave up: {command}"));
        }
        lines
    }

    /// The orders that are missing, a line each.
    pub(crate) fn missing_text(&self) -> String {
        let line = |(order, branch): &(u64, Branch)| format!("{order} {branch:?}\n");
        self.tally.missing().iter().map(line).collect()
    }

    /// The orders that were done more than once with `once`, a line each.
    pub(crate) fn repeated_text(&self) -> String {
        let line = |(order, count): &(u64, u32)| format!("{order} {count}\n");
        self.tally.branches[&Branch::Once]
            .repeated()
            .iter()
            .map(line)
            .collect()
    }

    /// The ids of messages that were done more than once with `once`.
    pub(crate) fn repeated_keys(&self) -> Vec<String> {
        self.tally.branches[&Branch::Once].repeated_keys()
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let kinds: Vec<Value> = self
            .by_kind()
            .iter()
            .map(|(kind, of)| {
                json!({
                    "kind": kind.name(),
                    "made": of.made,
                    "not_made": of.not_made,
                    "longest_recovery_ms": of.longest.as_millis(),
                })
            })
            .collect();
        json!({
            "seed": self.seed,
            "right": self.is_right(),
            "faults": kinds,
            "messages": self.tally.messages,
            "distinct": self.tally.distinct(),
            "missing": self.tally.missing().len(),
            "duplicates_plain": self.duplicates(Branch::Plain),
            "duplicates_once": self.duplicates(Branch::Once),
            "once": self.once,
            "inversions_plain": self.tally.branches[&Branch::Plain].inversions,
            "inversions_once": self.tally.branches[&Branch::Once].inversions,
            "refused": self.tally.refused,
            "dead_letters": self.dead.len(),
            "states": self.states.iter().cloned().collect::<BTreeMap<_, _>>(),
            "commands_done": self.operations.done,
            "commands_repeated": self.operations.repeated,
            "commands_given_up": self.operations.given_up,
            "converged_ms": self.converged.as_millis(),
            "took_ms": self.took.as_millis(),
        })
    }
}

//! What one round of the loop must remember for the next: failures, drains, signals, reports.
//!
//! All of it may be lost: then the next rounds find it out again. Nothing here decides; it is
//! what [`super::plan`] is told beside what is and what should be.

use std::collections::{BTreeMap, BTreeSet};

use towpath_protocol::office::{AgentState, Report};
use towpath_protocol::start::Identity;

use super::plan::{Action, ActionKind};
use crate::engine::{ContainerState, Observed, Signal};

/// The wait after the first failure of a replica, in milliseconds; it doubles with each.
pub const BACKOFF_MS_MIN: u64 = 1_000;

/// The longest wait between two starts of a replica, in milliseconds.
pub const BACKOFF_MS_MAX: u64 = 60_000;

/// A replica that ran for this long was well: its failures before that no longer count.
pub const WELL_MS: u64 = 300_000;

/// What is remembered. All times are milliseconds since 1970.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The replicas that failed, until they have run well.
    pub failures: BTreeMap<Identity, Failure>,
    /// The containers that were told to drain, and until when they may.
    pub drains: BTreeMap<String, Drain>,
    /// The last signal but drain that a container was sent, and when.
    pub signals: BTreeMap<String, (Signal, u64)>,
    /// What the agents said last, by container.
    pub reports: BTreeMap<String, Report>,
    /// How often the replicas of a step (flow, step) were started again after a failure.
    pub restarts: BTreeMap<(String, String), u64>,
    /// The containers that were removed, as the engine said, and those that it would not remove,
    /// while they are still there.
    pub removals: BTreeMap<String, Removal>,
    /// The containers that are to be replaced although they run, and why.
    pub recycles: BTreeMap<String, String>,
    /// How often replicas of a step (flow, step) were replaced although they ran.
    pub recycled: BTreeMap<(String, String), u64>,
    /// The replicas whose containers went, and not by us.
    pub vanished: BTreeSet<Identity>,
    /// What there was in the last round, by container.
    seen: BTreeMap<String, Observed>,
    /// The exits that were counted as failures already.
    counted: BTreeSet<String>,
}

/// That a replica failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How often in a row.
    pub count: u32,
    /// When, last.
    pub at: u64,
    /// When to try again.
    pub next: u64,
    /// Why, last.
    pub reason: String,
    /// The last lines of its log.
    pub last_lines: Vec<String>,
}

/// That a container was to be removed, and is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// How often that was tried.
    pub count: u32,
    /// When to try again.
    pub next: u64,
    /// Why it is still there.
    pub reason: String,
    /// Whether that is known: right after the first removal nobody has looked again.
    pub is_known: bool,
}

/// That a container was told to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// When, first.
    pub since: u64,
    /// When, last.
    pub told: u64,
    /// When it is no longer waited for.
    pub until: u64,
}

impl Memory {
    /// Takes in what there is, and what the agents say. Returns the containers whose end was not
    /// known before and is a failure: the caller reads their last lines.
    pub fn learn(
        &mut self,
        observed: &[Observed],
        latest: impl Fn(&Identity) -> Option<Report>,
        now: u64,
    ) -> Vec<String> {
        let there: BTreeSet<&str> = observed.iter().map(|it| it.container.as_str()).collect();
        self.drains
            .retain(|container, _| there.contains(container.as_str()));
        self.signals
            .retain(|container, _| there.contains(container.as_str()));
        self.counted
            .retain(|container| there.contains(container.as_str()));
        self.removals
            .retain(|container, _| there.contains(container.as_str()));
        self.recycles
            .retain(|container, _| there.contains(container.as_str()));
        self.reports.clear();
        let mut failed = Vec::new();
        for one in observed {
            match &one.state {
                ContainerState::Exited {
                    code,
                    out_of_memory,
                    memory_bytes,
                    at,
                } => {
                    if self.is_failure(one, *code) && self.counted.insert(one.container.clone()) {
                        let lived = at.saturating_sub(one.created);
                        let reason = exit_reason(*code, *out_of_memory, *memory_bytes);
                        self.fail(&one.identity, reason, lived, (*at).min(now));
                        failed.push(one.container.clone());
                    }
                }
                ContainerState::Running => {
                    // A report of the container that had this name before says nothing of this one.
                    if let Some(report) = latest(&one.identity).filter(|it| it.at >= one.created) {
                        self.reports.insert(one.container.clone(), report);
                    }
                    if now.saturating_sub(one.created) >= WELL_MS {
                        self.failures.remove(&one.identity);
                    }
                }
                ContainerState::Created => {}
            }
        }
        failed
    }

    /// Takes in that an action succeeded, or why it did not.
    pub fn acted(&mut self, action: &Action, result: Result<(), String>, now: u64) {
        let container = action.container.clone().unwrap_or_default();
        match (action.kind, result) {
            (ActionKind::Create, Ok(())) => {
                self.vanished.remove(&action.identity);
                if self.failures.contains_key(&action.identity) {
                    let step = (action.identity.flow.clone(), action.identity.step.clone());
                    *self.restarts.entry(step).or_default() += 1;
                }
            }
            (ActionKind::Create, Err(reason)) => {
                self.fail(&action.identity, reason, 0, now);
            }
            (ActionKind::Signal(Signal::Drain), Ok(())) => {
                let until = now.saturating_add(action.patience_ms);
                let drain = self.drains.entry(container);
                drain
                    .or_insert(Drain {
                        since: now,
                        told: now,
                        until,
                    })
                    .told = now;
            }
            (ActionKind::Signal(signal), Ok(())) => {
                self.signals.insert(container, (signal, now));
            }
            // Whoever failed to be told is told again in the next round.
            (ActionKind::Signal(_), Err(_)) => {}
            (ActionKind::Remove, result) => self.removed(container, result, now),
        }
    }

    /// Takes in that a container was removed, or why not. If it is there again in the next round,
    /// the engine did not do what it said.
    fn removed(&mut self, container: String, result: Result<(), String>, now: u64) {
        let before = self.removals.get(&container).map_or(0, |it| it.count);
        let count = before.saturating_add(1);
        let is_known = result.is_err() || before > 0;
        let reason = match result {
            Ok(()) => "the engine says that it was removed, and it is still there".to_owned(),
            Err(reason) => format!("it cannot be removed: {reason}"),
        };
        let removal = Removal {
            count,
            next: now.saturating_add(backoff_ms(count)),
            reason,
            is_known,
        };
        self.removals.insert(container, removal);
    }

    /// The containers of the last round that are not in this list: it may be wrong.
    pub fn missing_from(&self, observed: &[Observed]) -> Vec<Observed> {
        let there: BTreeSet<&str> = observed.iter().map(|it| it.container.as_str()).collect();
        self.seen
            .values()
            .filter(|one| !there.contains(one.container.as_str()))
            .cloned()
            .collect()
    }

    /// Takes in what there is, and what was there and is gone.
    pub fn saw(&mut self, observed: &[Observed], gone: &[Observed]) {
        for one in gone {
            if !self.removals.contains_key(&one.container) {
                self.vanished.insert(one.identity.clone());
            }
        }
        self.seen = observed
            .iter()
            .map(|one| (one.container.clone(), one.clone()))
            .collect();
    }

    /// Takes in that a container is to be replaced although it runs.
    pub fn recycle(&mut self, container: &str, reason: &str, identity: &Identity) {
        let before = self
            .recycles
            .insert(container.to_owned(), reason.to_owned());
        if before.is_none() {
            let step = (identity.flow.clone(), identity.step.clone());
            *self.recycled.entry(step).or_default() += 1;
        }
    }

    /// Whether a container is to be replaced although it runs.
    pub fn is_recycled(&self, container: &str) -> bool {
        self.recycles.contains_key(container)
    }

    /// Whether a container was removed a moment ago: nobody has to do it again yet.
    pub fn is_removed(&self, container: &str, now: u64) -> bool {
        self.removals
            .get(container)
            .is_some_and(|removal| removal.next > now)
    }

    /// Keeps the last lines of a replica that failed.
    pub fn keep_lines(&mut self, identity: &Identity, lines: Vec<String>) {
        if let Some(failure) = self.failures.get_mut(identity) {
            failure.last_lines = lines;
        }
    }

    /// What the agent of a container is doing, as far as it is known.
    pub fn agent(&self, container: &str) -> Option<AgentState> {
        self.reports.get(container).map(|report| report.state)
    }

    /// Whether a container has been told to drain, by us now or before a restart.
    pub fn is_draining(&self, container: &str) -> bool {
        self.drains.contains_key(container) || self.agent(container) == Some(AgentState::Draining)
    }

    fn is_failure(&self, one: &Observed, code: i64) -> bool {
        !(code == 0 && self.drains.contains_key(&one.container))
    }

    fn fail(&mut self, identity: &Identity, reason: String, lived_ms: u64, at: u64) {
        let before = self.failures.get(identity).filter(|_| lived_ms < WELL_MS);
        let count = before.map_or(0, |failure| failure.count).saturating_add(1);
        let last_lines = before
            .map(|failure| failure.last_lines.clone())
            .unwrap_or_default();
        let next = at.saturating_add(backoff_ms(count));
        let failure = Failure {
            count,
            at,
            next,
            reason,
            last_lines,
        };
        self.failures.insert(identity.clone(), failure);
    }

    /// Forgets the failures of replicas that are no longer wanted.
    pub fn keep_failures(&mut self, is_wanted: impl Fn(&Identity) -> bool) {
        self.failures.retain(|identity, _| is_wanted(identity));
        self.vanished.retain(|identity| is_wanted(identity));
    }
}

/// How long to wait before the start that follows failure number `count`, from 1.
pub fn backoff_ms(count: u32) -> u64 {
    let doubled = BACKOFF_MS_MIN
        .checked_shl(count.saturating_sub(1))
        .unwrap_or(BACKOFF_MS_MAX);
    if count > 16 {
        BACKOFF_MS_MAX
    } else {
        doubled.min(BACKOFF_MS_MAX)
    }
}

/// Says why a container is no longer running.
pub fn exit_reason(code: i64, out_of_memory: bool, memory_bytes: u64) -> String {
    let limit = match memory_bytes >> 20 {
        0 => "the memory limit".to_owned(),
        mib => format!("the memory limit, {mib} MiB"),
    };
    if code == 137 && out_of_memory {
        return format!("it was killed by {limit} (exit code 137)");
    }
    let known = match code {
        0 => "it ended although nobody asked it to",
        2 => "its agent cannot use what it was started with",
        3 => "it did not finish what it held in time",
        137 => "it was killed",
        143 => "it was terminated",
        _ => "its agent ended",
    };
    let memory = if out_of_memory {
        format!("; something in it was killed by {limit}")
    } else {
        String::new()
    };
    format!("{known} (exit code {code}{memory})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            instance: "i".into(),
            flow: "f".into(),
            step: "s".into(),
            replica: 1,
            spec: "spec".into(),
        }
    }

    fn exited(container: &str, created: u64, at: u64) -> Observed {
        Observed {
            container: container.into(),
            name: container.into(),
            identity: identity(),
            state: ContainerState::Exited {
                code: 137,
                out_of_memory: true,
                memory_bytes: 256 << 20,
                at,
            },
            created,
        }
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute() {
        let waits: Vec<_> = (1..=8).map(backoff_ms).collect();
        assert_eq!(
            waits,
            [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
        );
        assert_eq!(backoff_ms(u32::MAX), BACKOFF_MS_MAX);
    }

    #[test]
    fn an_end_is_counted_once() {
        let mut memory = Memory::default();
        let observed = [exited("a", 1_000, 2_000)];
        assert_eq!(memory.learn(&observed, |_| None, 2_500), ["a"]);
        assert_eq!(
            memory.learn(&observed, |_| None, 3_000),
            Vec::<String>::new()
        );
        let failure = &memory.failures[&identity()];
        assert_eq!((failure.count, failure.next), (1, 3_000));
        assert_eq!(
            failure.reason,
            "it was killed by the memory limit, 256 MiB (exit code 137)"
        );
        memory.learn(&[exited("b", 3_000, 4_000)], |_| None, 4_500);
        assert_eq!(memory.failures[&identity()].count, 2);
    }

    #[test]
    fn who_ran_well_begins_anew() {
        let mut memory = Memory::default();
        memory.learn(&[exited("a", 1_000, 2_000)], |_| None, 2_500);
        memory.learn(
            &[exited("b", 3_000, 3_000 + WELL_MS)],
            |_| None,
            4_000 + WELL_MS,
        );
        assert_eq!(memory.failures[&identity()].count, 1);
    }

    #[test]
    fn who_was_told_to_end_did_not_fail() {
        let mut memory = Memory::default();
        memory.drains.insert(
            "a".into(),
            Drain {
                since: 0,
                told: 0,
                until: 10,
            },
        );
        let mut one = exited("a", 0, 5);
        one.state = ContainerState::Exited {
            code: 0,
            out_of_memory: false,
            memory_bytes: 0,
            at: 5,
        };
        assert_eq!(memory.learn(&[one], |_| None, 6), Vec::<String>::new());
        assert!(memory.failures.is_empty());
    }
}

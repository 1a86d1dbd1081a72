//! The actions between what is and what should be, each with its reason: pure.
//!
//! A plan is made of what can be done now. What must wait for something (a replica that has to
//! start first, a back-off, an end) is planned when that has happened: a round may be repeated or
//! cut off anywhere.
//!
//! # Invariants
//!
//! - `converges_and_then_rests`: from anywhere, a few rounds lead to what should be, and then
//!   there is nothing to do.
//! - `strangers_are_never_touched`: what belongs to another instance is not in any plan.
//! - `what_is_blocked_keeps_what_runs`: a step that cannot run now loses nothing.
//! - `scaling_out_creates_exactly_what_is_missing` and restarts nothing;
//!   `scaling_in_drains_the_highest_numbers`.
//! - `new_before_old`: a replica is drained for its successor only when that is ready.
//! - `one_exclusive_replica_at_most`: for a trigger the old one ends first. Two at work would both
//!   move one checkpoint, and a trigger that is away for a moment loses nothing: its ticks wait.
//! - `every_action_has_a_reason`.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use towpath_protocol::office::AgentState;
use towpath_protocol::start::Identity;

use super::memory::Memory;
use super::spec::DRAIN_MAX;
use super::{Desired, DesiredFlow, DesiredStep, FlowState};
use crate::engine::{ContainerState, Observed, Signal};

/// How long an agent may take to act on a signal before it is told again.
const TELL_AGAIN_MS: u64 = 5_000;

/// What is waited beyond the time for a drain before the container is removed: the agent is the
/// first to give up, and says so.
const DRAIN_MARGIN_MS: u64 = 15_000;

/// How long a replica that says nothing must have run to count as ready. It may have nothing to
/// say it with: then it would be wrong to wait for ever.
const SILENT_READY_MS: u64 = 30_000;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// What.
    pub kind: ActionKind,
    /// To whom.
    pub identity: Identity,
    /// The container; none for one that is to be created.
    pub container: Option<String>,
    /// Why.
    pub reason: String,
    /// How long it may take to end after a drain, in milliseconds; 0 for every other action.
    pub patience_ms: u64,
}

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// Create and start a replica.
    Create,
    /// Send a signal to its agent.
    Signal(Signal),
    /// Remove its container.
    Remove,
}

impl ActionKind {
    /// What it is called for people: `create`, `drain`, `pause`, `resume`, `remove`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Signal(Signal::Drain) => "drain",
            Self::Signal(Signal::Pause) => "pause",
            Self::Signal(Signal::Resume) => "resume",
            Self::Remove => "remove",
        }
    }
}

impl Serialize for ActionKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            flow,
            step,
            replica,
            ..
        } = &self.identity;
        write!(
            f,
            "{} {flow}/{step} #{replica}: {}",
            self.kind.name(),
            self.reason
        )
    }
}

/// Says what to do now.
pub fn plan(desired: &Desired, observed: &[Observed], memory: &Memory, now: u64) -> Vec<Action> {
    let ours: Vec<&Observed> = observed
        .iter()
        .filter(|one| one.identity.instance == desired.instance)
        .collect();
    let mut actions = Vec::new();
    for (flow, step) in steps(desired) {
        let replicas = ours
            .iter()
            .filter(|one| one.identity.flow == flow.flow.name && one.identity.step == step.id)
            .copied()
            .collect();
        let planner = StepPlanner {
            instance: &desired.instance,
            flow,
            step,
            replicas,
            memory,
            now,
        };
        planner.plan(&mut actions);
    }
    let wanted: BTreeSet<_> = steps(desired)
        .map(|(flow, step)| (flow.flow.name.as_str(), step.id.as_str()))
        .collect();
    for one in ours {
        let of = (one.identity.flow.as_str(), one.identity.step.as_str());
        if !wanted.contains(&of) {
            let is_flow = desired
                .flows
                .iter()
                .any(|it| it.flow.name == one.identity.flow);
            let reason = if is_flow {
                "the flow has no such step"
            } else {
                "there is no such flow"
            };
            end(
                one,
                reason,
                DRAIN_MAX.as_millis(),
                memory,
                now,
                &mut actions,
            );
        }
    }
    actions
}

fn steps(desired: &Desired) -> impl Iterator<Item = (&DesiredFlow, &DesiredStep)> {
    desired
        .flows
        .iter()
        .flat_map(|flow| flow.steps.iter().map(move |step| (flow, step)))
}

struct StepPlanner<'a> {
    instance: &'a str,
    flow: &'a DesiredFlow,
    step: &'a DesiredStep,
    replicas: Vec<&'a Observed>,
    memory: &'a Memory,
    now: u64,
}

impl<'a> StepPlanner<'a> {
    fn plan(&self, actions: &mut Vec<Action>) {
        if self.step.state == FlowState::Stopped {
            for one in &self.replicas {
                self.end(one, self.because(), actions);
            }
            return;
        }
        if self.step.blocked.is_some() {
            for one in self.at_work() {
                self.pause_or_resume(one, actions);
            }
            return;
        }
        self.scale_in(actions);
        self.replace(actions);
        self.fill(actions);
    }

    /// Ends what is beyond the number of replicas, the highest first.
    fn scale_in(&self, actions: &mut Vec<Action>) {
        let wanted = self.step.replicas;
        let mut beyond: Vec<_> = self
            .replicas
            .iter()
            .filter(|one| one.identity.replica > wanted || one.identity.replica == 0)
            .collect();
        beyond.sort_by_key(|one| std::cmp::Reverse(one.identity.replica));
        for one in beyond {
            // While the flow is being replaced its old replicas stay until the new ones can do
            // their work, also those that have no successor.
            let is_old = one.identity.spec != self.step.spec;
            if is_old && self.is_active(one) && !self.step.exclusive && !self.all_ready() {
                continue;
            }
            self.end(one, &format!("scaled in to {wanted}"), actions);
        }
    }

    /// Ends what was made from something else, once its successor is ready.
    fn replace(&self, actions: &mut Vec<Action>) {
        let reason = "the step has changed";
        for one in self.replicas.iter().filter(|one| self.is_numbered(one)) {
            if one.identity.spec == self.step.spec {
                continue;
            }
            let may_go = self.step.exclusive
                || !self.is_active(one)
                || self
                    .current(one.identity.replica)
                    .is_some_and(|it| self.is_ready(it));
            if may_go {
                self.end(one, reason, actions);
            }
        }
    }

    /// Makes what is missing, and keeps what is there as it should be.
    fn fill(&self, actions: &mut Vec<Action>) {
        for replica in 1..=self.step.replicas {
            let mut same: Vec<_> = self
                .replicas
                .iter()
                .copied()
                .filter(|it| it.identity.replica == replica && it.identity.spec == self.step.spec)
                .collect();
            // There is one at most, because they would have one name; but an engine may lie.
            same.sort_by_key(|one| (rank(one), one.created, one.container.as_str()));
            let Some((first, others)) = same.split_first() else {
                self.create(replica, "missing", actions);
                continue;
            };
            for one in others {
                self.end(one, "there is another one of it", actions);
            }
            self.keep(first, actions);
        }
    }

    fn keep(&self, one: &Observed, actions: &mut Vec<Action>) {
        match &one.state {
            ContainerState::Created => {
                self.create(one.identity.replica, "created, but not started", actions);
            }
            ContainerState::Running if self.memory.is_recycled(&one.container) => {
                let reason = self.memory.recycles.get(&one.container);
                self.end(one, reason.map_or("it is stuck", String::as_str), actions);
            }
            ContainerState::Running if self.memory.is_draining(&one.container) => {
                // It was told to go, and is wanted again: it goes, and then a new one comes.
                self.end(one, "it was told to go", actions);
            }
            ContainerState::Running => self.pause_or_resume(one, actions),
            ContainerState::Exited { .. } => {
                let failure = self.memory.failures.get(&one.identity);
                let is_due = failure.is_none_or(|failure| failure.next <= self.now);
                if is_due && !self.memory.is_removed(&one.container, self.now) {
                    let reason = failure.map_or("it has ended", |failure| failure.reason.as_str());
                    actions.push(action(ActionKind::Remove, one, reason));
                }
            }
        }
    }

    fn create(&self, replica: u32, why: &str, actions: &mut Vec<Action>) {
        let identity = Identity {
            instance: self.instance.to_owned(),
            flow: self.flow.flow.name.clone(),
            step: self.step.id.clone(),
            replica,
            spec: self.step.spec.clone(),
        };
        let failure = self.memory.failures.get(&identity);
        if failure.is_some_and(|failure| failure.next > self.now) {
            return;
        }
        // An exclusive one waits until no other is there that may still be at work.
        let is_other =
            |it: &&&Observed| it.identity != identity && it.state == ContainerState::Running;
        if self.step.exclusive && self.replicas.iter().any(|it| is_other(&it)) {
            return;
        }
        let mut reason = format!("replica {replica} of {} is {why}", self.step.replicas);
        if self.memory.vanished.contains(&identity) {
            reason = format!(
                "replica {replica} of {} was removed, and not by us",
                self.step.replicas
            );
        }
        if self
            .replicas
            .iter()
            .any(|it| it.identity.spec != self.step.spec)
        {
            "the step has changed".clone_into(&mut reason);
        }
        if let Some(failure) = failure {
            reason = format!(
                "it failed {} times, last: {}",
                failure.count, failure.reason
            );
        }
        actions.push(Action {
            kind: ActionKind::Create,
            identity,
            container: None,
            reason,
            patience_ms: 0,
        });
    }

    fn pause_or_resume(&self, one: &Observed, actions: &mut Vec<Action>) {
        let is_paused = self
            .memory
            .agent(&one.container)
            .map(|it| it == AgentState::Paused);
        let (signal, reason) = match (self.step.state, is_paused) {
            (FlowState::Paused, Some(false) | None) => (Signal::Pause, self.because()),
            (FlowState::Running | FlowState::Draining, Some(true)) => (Signal::Resume, "it runs"),
            _ => return,
        };
        let told = self.memory.signals.get(&one.container);
        let is_fresh = |&(last, at): &(Signal, u64)| {
            last == signal && self.now.saturating_sub(at) < TELL_AGAIN_MS
        };
        if !told.is_some_and(is_fresh) {
            actions.push(action(ActionKind::Signal(signal), one, reason));
        }
    }

    /// Because of what it does not simply run.
    fn because(&self) -> &str {
        self.step.because.as_deref().unwrap_or("it is held")
    }

    fn end(&self, one: &Observed, reason: &str, actions: &mut Vec<Action>) {
        end(
            one,
            reason,
            self.step.drain.as_millis(),
            self.memory,
            self.now,
            actions,
        );
    }

    fn at_work(&self) -> impl Iterator<Item = &'a Observed> {
        self.replicas
            .iter()
            .copied()
            .filter(|one| self.is_active(one))
    }

    fn is_numbered(&self, one: &Observed) -> bool {
        (1..=self.step.replicas).contains(&one.identity.replica)
    }

    fn is_active(&self, one: &Observed) -> bool {
        one.state == ContainerState::Running && !self.memory.is_draining(&one.container)
    }

    fn current(&self, replica: u32) -> Option<&'a Observed> {
        self.at_work()
            .find(|it| it.identity.replica == replica && it.identity.spec == self.step.spec)
    }

    fn all_ready(&self) -> bool {
        (1..=self.step.replicas)
            .all(|replica| self.current(replica).is_some_and(|it| self.is_ready(it)))
    }

    fn is_ready(&self, one: &Observed) -> bool {
        is_ready(one, self.memory, self.now)
    }
}

/// Whether a container that runs can do its work.
pub(super) fn is_ready(one: &Observed, memory: &Memory, now: u64) -> bool {
    match memory.agent(&one.container) {
        Some(AgentState::Running | AgentState::Paused | AgentState::HeldBack) => true,
        Some(_) => false,
        None => now.saturating_sub(one.created) >= SILENT_READY_MS,
    }
}

/// Ends a replica, by whatever is next: drain, wait, remove.
fn end(
    one: &Observed,
    reason: &str,
    patience_ms: u128,
    memory: &Memory,
    now: u64,
    actions: &mut Vec<Action>,
) {
    if memory.is_removed(&one.container, now) {
        return;
    }
    if one.state != ContainerState::Running {
        actions.push(action(ActionKind::Remove, one, reason));
        return;
    }
    match memory.drains.get(&one.container) {
        Some(drain) if drain.until <= now => {
            let reason = format!("{reason}, and it does not end");
            actions.push(action(ActionKind::Remove, one, &reason));
        }
        // The first signal may have come before the agent could hear it.
        Some(drain) if now.saturating_sub(drain.told) < TELL_AGAIN_MS => {}
        Some(_) if memory.agent(&one.container) == Some(AgentState::Draining) => {}
        _ => {
            let patience_ms = u64::try_from(patience_ms).unwrap_or(u64::MAX);
            let mut drain = action(ActionKind::Signal(Signal::Drain), one, reason);
            drain.patience_ms = patience_ms.saturating_add(DRAIN_MARGIN_MS);
            actions.push(drain);
        }
    }
}

/// Which of several is kept: one that runs, then one that can be started, then one that has ended.
fn rank(one: &Observed) -> u8 {
    match one.state {
        ContainerState::Running => 0,
        ContainerState::Created => 1,
        ContainerState::Exited { .. } => 2,
    }
}

fn action(kind: ActionKind, one: &Observed, reason: &str) -> Action {
    Action {
        kind,
        identity: one.identity.clone(),
        container: Some(one.container.clone()),
        reason: reason.to_owned(),
        patience_ms: 0,
    }
}

#[cfg(test)]
mod tests;

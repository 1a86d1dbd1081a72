//! Pause, resume, drain and stop: of a flow, or of one of its steps.
//!
//! # Invariants
//!
//! - Every verb may be repeated: the second time changes nothing, and says so.
//! - `a_step_that_is_held_stays_held_when_its_flow_runs_again`.

use towpath_flow::{Fires, Flow};

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::operate::find_step;
use super::view::Done;
use crate::reconcile::FlowState;
use crate::reconcile::intent::steps_before;
use crate::store::flows::FlowRecord;

/// What an operator says to a flow or to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Consume nothing; containers and messages stay.
    Pause,
    /// Undo pause, drain and stop.
    Resume,
    /// Take nothing new, and finish what is there.
    Drain,
    /// No containers; messages stay.
    Stop,
}

impl Verb {
    /// What a flow or a step that is in one state should be doing from now on.
    const fn next(self, now: FlowState) -> FlowState {
        match (self, now) {
            // Stopped is more than paused.
            (Self::Pause, FlowState::Stopped) => now,
            (Self::Pause, _) => FlowState::Paused,
            (Self::Resume, _) => FlowState::Running,
            (Self::Drain, _) => FlowState::Draining,
            (Self::Stop, _) => FlowState::Stopped,
        }
    }
}

impl Control {
    /// Stops consuming; containers and messages stay.
    pub async fn pause(&self, flow: &str) -> Result<Done, ControlError> {
        self.tell(flow, Verb::Pause).await
    }

    /// Undoes pause, drain and stop.
    pub async fn resume(&self, flow: &str) -> Result<Done, ControlError> {
        self.tell(flow, Verb::Resume).await
    }

    /// Removes the containers; messages stay.
    pub async fn stop(&self, flow: &str) -> Result<Done, ControlError> {
        self.tell(flow, Verb::Stop).await
    }

    /// Says what a flow should be doing.
    pub async fn tell(&self, flow: &str, verb: Verb) -> Result<Done, ControlError> {
        let _alone = self.applying.lock().await;
        let (record, _) = self.record(flow).await?;
        let state = verb.next(record.state);
        let changed = state != record.state;
        if changed {
            if !self.catalog.store.set_state(flow, state).await? {
                return Err(self.no_flow(flow).await);
            }
            tracing::info!(flow, ?state, before = ?record.state, "changed the state of a flow");
            self.changed().await?;
        }
        let mut message = said(&format!("`{flow}`"), verb, state, changed);
        if let (Verb::Resume, Some(rest)) = (verb, still_held(&record)) {
            message = format!("{message}; {rest}");
        }
        Ok(Done { changed, message })
    }

    /// Says what one step should be doing.
    pub async fn tell_step(
        &self,
        flow: &str,
        step: &str,
        verb: Verb,
    ) -> Result<Done, ControlError> {
        let _alone = self.applying.lock().await;
        let (record, checked) = self.record(flow).await?;
        refuse_without_container(&checked, step)?;
        find_step(&checked, step)?;
        let now = record.held.get(step).copied().unwrap_or_default();
        let state = verb.next(now);
        let changed = state != now;
        if changed {
            self.catalog.store.set_hold(flow, step, state).await?;
            tracing::info!(flow, step, ?state, before = ?now, "changed the state of a step");
            self.changed().await?;
        }
        let mut message = said(&format!("`{step}` of `{flow}`"), verb, state, changed);
        if verb == Verb::Drain {
            message = format!("{message}; {}", holds_still(&checked, step));
        }
        if record.state != FlowState::Running {
            message = format!(
                "{message}; and the whole flow {}: `towpath resume {flow}` undoes that",
                is(record.state)
            );
        }
        Ok(Done { changed, message })
    }

    /// Says why one step is not deleted.
    pub async fn delete_step(&self, flow: &str, step: &str) -> Result<Done, ControlError> {
        let (_, checked) = self.record(flow).await?;
        if step != checked.trigger_id {
            find_step(&checked, step)?;
        }
        let message = format!("`{step}` is a part of `{flow}`, and is not deleted by itself");
        Err(
            ControlError::new(ErrorKind::Conflict, "step_not_deletable", message).hint(format!(
                "take it out of the flow file and apply that; `towpath stop {flow} {step}` removes its containers and keeps its messages"
            )),
        )
    }
}

/// A webhook trigger without an image has no container that could be told something.
fn refuse_without_container(flow: &Flow, step: &str) -> Result<(), ControlError> {
    let is_bare = flow.fires == Fires::Webhook
        && step == flow.trigger_id
        && flow.steps.iter().all(|it| it.id != step);
    if !is_bare {
        return Ok(());
    }
    let message = format!("`{step}` is a webhook without an image: it has no container");
    Err(
        ControlError::new(ErrorKind::Conflict, "trigger_without_container", message).hint(format!(
            "`towpath drain {0}` refuses requests and finishes what is there; `towpath stop {0}` refuses them and stops everything",
            flow.name
        )),
    )
}

/// What something is doing, after its name.
pub(super) const fn is(state: FlowState) -> &'static str {
    match state {
        FlowState::Running => "runs",
        FlowState::Draining => "drains",
        FlowState::Paused => "is paused",
        FlowState::Stopped => "is stopped",
    }
}

fn said(name: &str, verb: Verb, state: FlowState, changed: bool) -> String {
    if changed {
        format!("{name} {} from now on", is(state))
    } else if verb == Verb::Pause && state == FlowState::Stopped {
        format!("{name} is stopped, which is more than paused")
    } else {
        format!("{name} {} already", is(state))
    }
}

/// The steps that stay held when the flow runs again.
fn still_held(record: &FlowRecord) -> Option<String> {
    let parts: Vec<String> = record
        .held
        .iter()
        .map(|(step, state)| {
            format!(
                "`{step}` still {}: `towpath resume {} {step}` undoes that",
                is(*state),
                record.name
            )
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What holds still while a step drains.
fn holds_still(flow: &Flow, step: &str) -> String {
    let mut before: Vec<String> = steps_before(flow, step)
        .map(|it| format!("`{}`", it.id))
        .collect();
    if before.is_empty() {
        let what = if flow.fires.by_ticks() {
            "no tick is sent"
        } else {
            "requests are asked to come again"
        };
        return format!("{what} until it is resumed");
    }
    before.sort();
    let verb = if before.len() == 1 { "holds" } else { "hold" };
    format!("{} {verb} still until it is resumed", before.join(" and "))
}

#[cfg(test)]
#[path = "hold_tests.rs"]
mod tests;

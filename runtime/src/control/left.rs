//! What is left of a flow, or of a step, that drains.
//!
//! A report of an agent is some seconds old, and a message that left one queue a moment ago may be
//! with an agent that has not reported it yet. So nothing is called drained at first sight: all
//! queues must be empty at one moment, and every agent must have held nothing before *and* after
//! that moment, with nothing taken in between.
//!
//! # Invariants
//!
//! - `nothing_is_drained_before_every_agent_has_said_so_twice`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use towpath_flow::Flow;
use towpath_protocol::office::{AgentState, Report};
use towpath_protocol::start::Identity;

use super::Control;
use super::error::ControlError;
use super::view::Left;
use crate::reconcile::FlowState;
use crate::reconcile::intent::{intent, is_intake, steps_before};
use crate::reconcile::status::ReplicaState;
use crate::store::flows::FlowRecord;
use crate::store::now_ms;

/// What drains.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    flow: String,
    /// The step; none for the whole flow.
    step: Option<String>,
}

/// One sight of empty queues and of agents that hold nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sight {
    /// When, in milliseconds since 1970.
    at: u64,
    /// What each agent had taken until then, by step, replica and incarnation.
    taken: BTreeMap<(String, u32, String), u64>,
}

/// The first sight of each thing that drains.
#[derive(Debug, Default)]
pub(super) struct Sights {
    first: Mutex<BTreeMap<Scope, Sight>>,
}

impl Sights {
    /// Takes in a look at something. `reports` is none if something is known to be there still.
    /// Says whether it is drained.
    fn look(&self, scope: Scope, reports: Option<&[Report]>, now: u64) -> bool {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reports) = reports else {
            first.remove(&scope);
            return false;
        };
        let taken: BTreeMap<_, _> = reports
            .iter()
            .map(|report| {
                let Identity { step, replica, .. } = report.identity.clone();
                let agent = (step, replica, report.incarnation.clone());
                // What is sorted goes on from a queue to another while nobody holds it.
                (agent, report.counters.received + report.counters.sorted)
            })
            .collect();
        match first.get(&scope) {
            Some(sight) if sight.taken == taken => reports.iter().all(|it| it.at > sight.at),
            _ => {
                let is_nobody_there = taken.is_empty();
                first.insert(scope, Sight { at: now, taken });
                is_nobody_there
            }
        }
    }

    /// Forgets what no longer drains.
    fn forget(&self, scope: &Scope) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.remove(scope);
    }
}

impl Control {
    /// What is left of a flow that drains; none if it does not.
    pub(super) async fn left_of_flow(
        &self,
        record: &FlowRecord,
        flow: &Flow,
    ) -> Result<Option<Left>, ControlError> {
        let scope = Scope {
            flow: record.name.clone(),
            step: None,
        };
        if record.state != FlowState::Draining {
            self.sights.forget(&scope);
            return Ok(None);
        }
        let queues: Vec<&str> = flow
            .steps
            .iter()
            // What waits there is nothing that was taken in.
            .filter(|step| !is_intake(flow, step))
            .map(|step| step.id.as_str())
            .collect();
        let agents: Vec<&str> = flow.steps.iter().map(|step| step.id.as_str()).collect();
        self.left(record, flow, scope, &queues, &agents)
            .await
            .map(Some)
    }

    /// What is left of a step that drains; none if it does not.
    pub(super) async fn left_of_step(
        &self,
        record: &FlowRecord,
        flow: &Flow,
        step: &str,
    ) -> Result<Option<Left>, ControlError> {
        let scope = Scope {
            flow: record.name.clone(),
            step: Some(step.to_owned()),
        };
        if record.held.get(step) != Some(&FlowState::Draining) {
            self.sights.forget(&scope);
            return Ok(None);
        }
        // Steps before it that drain themselves do not hold still: they must be empty as well.
        let mut queues: Vec<&str> = vec![step];
        let mut agents: Vec<&str> = vec![step];
        let mut next = 0;
        while let Some(id) = queues.get(next).copied() {
            next += 1;
            for before in steps_before(flow, id) {
                if !agents.contains(&&*before.id) {
                    agents.push(&before.id);
                    if record.held.get(&before.id) == Some(&FlowState::Draining) {
                        queues.push(&before.id);
                    }
                }
            }
        }
        self.left(record, flow, scope, &queues, &agents)
            .await
            .map(Some)
    }

    /// The queues of a step that is applied: several if it keeps an order.
    pub(super) fn queues_of(&self, flow: &str, step: &str) -> Vec<String> {
        let live = self.live.borrow();
        let partitions = live.get(flow).and_then(|it| it.ordered.get(step).copied());
        self.catalog.ground.names.queues(flow, step, partitions)
    }

    /// What a step has, as it looks at first sight.
    pub(super) async fn left_in(&self, flow: &str, step: &str) -> Result<Left, ControlError> {
        let queues = self.queues_of(flow, step);
        let depths = self.broker.depths(&queues).await?;
        let ready = depths.values().map(|depth| depth.ready).sum();
        Ok(Left {
            queued: self.messages_in(flow, step, ready).max(ready),
            in_hand: self.held(flow, step),
            waiting: self.waiting(flow, &[step]).await?,
            drained: false,
        })
    }

    async fn left(
        &self,
        record: &FlowRecord,
        flow: &Flow,
        scope: Scope,
        queues: &[&str],
        agents: &[&str],
    ) -> Result<Left, ControlError> {
        let of_steps: Vec<Vec<String>> = queues
            .iter()
            .map(|step| self.queues_of(&flow.name, step))
            .collect();
        let wanted = of_steps.concat();
        let depths = self.broker.depths(&wanted).await?;
        let queued = queues
            .iter()
            .zip(&of_steps)
            .map(|(step, of_step)| {
                let ready = of_step.iter().filter_map(|queue| depths.get(queue));
                let ready = ready.map(|depth| depth.ready).sum();
                self.messages_in(&flow.name, step, ready).max(ready)
            })
            .sum();
        let waiting = self.waiting(&flow.name, queues).await?;
        let now = now_ms();
        let reports = self.live_reports(record, flow, agents);
        let held = |step: &str| self.held(&flow.name, step);
        let in_hand = agents.iter().map(|step| held(step)).sum();
        let is_gone = queued == 0 && waiting == 0 && in_hand == 0 && depths.len() == wanted.len();
        let drained = self
            .sights
            .look(scope, reports.as_deref().filter(|_| is_gone), now);
        Ok(Left {
            queued,
            in_hand,
            waiting,
            drained,
        })
    }

    /// What the agents of all containers that run said last, if each said something, none holds
    /// anything, and those that should be paused are.
    fn live_reports(
        &self,
        record: &FlowRecord,
        flow: &Flow,
        agents: &[&str],
    ) -> Option<Vec<Report>> {
        let status = self.reconciler.status.borrow();
        if status.at == 0 || status.trouble.is_some() {
            return None;
        }
        let seen = status.flows.get(&flow.name)?;
        let mut reports = Vec::new();
        for id in agents {
            let model = flow.steps.iter().find(|it| it.id == *id)?;
            let wanted = intent(flow, record.state, &record.held, model).state;
            for replica in &seen.steps.get(*id)?.replicas {
                let is_over = matches!(
                    replica.state,
                    ReplicaState::Missing | ReplicaState::BackingOff | ReplicaState::Exited
                );
                if is_over || replica.container.is_none() {
                    continue;
                }
                let report = self.reports.latest(&Identity {
                    instance: self.catalog.ground.names.instance.clone(),
                    flow: flow.name.clone(),
                    step: (*id).to_owned(),
                    replica: replica.replica,
                    spec: replica.spec.clone(),
                })?;
                let holds = report.held > 0 || report.unacknowledged > 0;
                let is_late = wanted == FlowState::Paused
                    && !matches!(report.state, AgentState::Paused | AgentState::Draining);
                if holds || is_late {
                    return None;
                }
                reports.push(report);
            }
        }
        Some(reports)
    }

    /// How many messages of these steps wait in the delay ladder, to be tried again: as noted, unless
    /// nothing at all waits there. A note may be lost, so it may be more.
    pub(super) async fn waiting(&self, flow: &str, steps: &[&str]) -> Result<u64, ControlError> {
        if steps.is_empty() {
            return Ok(0);
        }
        let ladder = self.catalog.ground.names.delays();
        let depths = self.broker.depths(&ladder).await?;
        if depths.values().all(|depth| depth.ready == 0) {
            return Ok(0);
        }
        let noted = self.catalog.store.waiting_counts(flow, now_ms()).await?;
        Ok(steps.iter().filter_map(|step| noted.get(*step)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(at: u64, incarnation: &str, received: u64) -> Report {
        let text = serde_json::json!({
            "identity": {"instance": "t", "flow": "f", "step": "s", "replica": 1, "spec": "x"},
            "incarnation": incarnation, "at": at, "state": "running", "in_hand": 0, "held": 0,
            "unacknowledged": 0, "restarts": 0, "latency": {"counts": [], "sum_us": 0},
            "counters": {"received": received, "deliveries": 0, "emitted": 0, "unconnected": 0,
                "done": 0, "failed": 0, "retried": 0, "rebounded": 0, "dead": 0, "timed_out": 0,
                "crashed": 0},
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn nothing_is_drained_before_every_agent_has_said_so_twice() {
        let sights = Sights::default();
        let scope = || Scope {
            flow: "f".into(),
            step: None,
        };
        let look =
            |reports: Option<Vec<Report>>, now| sights.look(scope(), reports.as_deref(), now);
        assert!(!look(Some(vec![report(10, "a", 5)]), 20), "at first sight");
        assert!(!look(Some(vec![report(15, "a", 5)]), 30), "said before it");
        assert!(!look(Some(vec![report(25, "a", 6)]), 40), "took one more");
        assert!(!look(Some(vec![report(25, "a", 6)]), 50), "no news");
        assert!(look(Some(vec![report(45, "a", 6)]), 60));
        assert!(look(Some(vec![report(45, "a", 6)]), 70), "and stays so");
        assert!(!look(Some(vec![report(75, "b", 6)]), 80), "another agent");
        assert!(!look(None, 90), "something is there again");
        assert!(!look(Some(vec![report(95, "b", 6)]), 96));
        assert!(look(Some(vec![report(97, "b", 6)]), 98));
        assert!(
            look(Some(Vec::new()), 99),
            "nobody is there who could hold anything"
        );
    }
}

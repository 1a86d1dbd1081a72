//! The autoscaled steps from one round to the next: what was decided, and on what.
//!
//! # Invariants
//!
//! - `a_restart_begins_with_what_runs`: nothing is remembered across one, and nothing needs to be.

use std::collections::BTreeMap;

use towpath_protocol::office::AgentState;

use super::autoscale::{History, Signals, decide};
use super::gauge::{Load, Loads};
use super::memory::Memory;
use super::plan::is_ready;
use super::{Desired, DesiredFlow, DesiredStep, FlowState};
use crate::engine::{ContainerState, Observed};
use crate::reports::StepKey;

/// The autoscaled steps.
#[derive(Debug, Clone, Default)]
pub struct Scaling {
    steps: BTreeMap<StepKey, Scaled>,
}

#[derive(Debug, Clone)]
struct Scaled {
    replicas: u32,
    reason: String,
    history: History,
}

impl Scaling {
    /// The steps whose load is to be known: those that are autoscaled, and those after them.
    pub fn asks_for(desired: &Desired) -> Vec<StepKey> {
        let mut keys = Vec::new();
        for (flow, step) in autoscaled(desired) {
            keys.push(key(flow, step));
            keys.extend(successors(flow, step).map(|id| (flow.flow.name.clone(), id.to_owned())));
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// Decides about all autoscaled steps, and fills in how many replicas each should have.
    pub fn decide(
        &mut self,
        desired: &mut Desired,
        observed: &[Observed],
        memory: &Memory,
        loads: Option<&Loads>,
        now: u64,
    ) {
        let mut decided = BTreeMap::new();
        for (flow, step) in autoscaled(desired) {
            let Some(policy) = step.autoscale else {
                continue;
            };
            let key = key(flow, step);
            let before = self.steps.remove(&key);
            let replicas: Vec<&Observed> = of_step(observed, &desired.instance, &key).collect();
            let current = match &before {
                Some(before) => before.replicas,
                None => running(&replicas, memory),
            };
            let signals = signals(flow, step, current, &replicas, memory, loads, now);
            let history = before.map(|before| before.history).unwrap_or_default();
            let decision = decide(&signals, &history, policy, now);
            if decision.replicas != current {
                let (flow, step) = &key;
                let (replicas, reason) = (decision.replicas, &decision.reason);
                tracing::info!(flow, step, replicas, before = current, reason, "autoscaled");
            }
            decided.insert(
                key,
                Scaled {
                    replicas: decision.replicas,
                    reason: decision.reason,
                    history: decision.history,
                },
            );
        }
        self.steps = decided;
        self.fill(desired);
    }

    /// Fills in how many replicas each autoscaled step should have, as was decided last.
    pub fn fill(&self, desired: &mut Desired) {
        for flow in &mut desired.flows {
            for step in &mut flow.steps {
                let of = (flow.flow.name.clone(), step.id.clone());
                if let (Some(_), Some(scaled)) = (step.autoscale, self.steps.get(&of)) {
                    step.replicas = scaled.replicas;
                    step.scaling = Some(scaled.reason.clone());
                }
            }
        }
    }

    /// The steps that sleep: the first message is to wake them.
    pub fn sleeping(&self) -> Vec<StepKey> {
        self.steps
            .iter()
            .filter(|(_, scaled)| scaled.replicas == 0)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Whether there is nothing to decide about.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn key(flow: &DesiredFlow, step: &DesiredStep) -> StepKey {
    (flow.flow.name.clone(), step.id.clone())
}

/// The autoscaled steps that have containers at all.
fn autoscaled(desired: &Desired) -> impl Iterator<Item = (&DesiredFlow, &DesiredStep)> {
    desired
        .flows
        .iter()
        .flat_map(|flow| flow.steps.iter().map(move |step| (flow, step)))
        .filter(|(_, step)| step.autoscale.is_some() && step.blocked.is_none())
        .filter(|(_, step)| step.state != FlowState::Stopped)
}

fn successors<'a>(flow: &'a DesiredFlow, step: &'a DesiredStep) -> impl Iterator<Item = &'a str> {
    let follows = |it: &&towpath_flow::Step| it.after.iter().any(|(from, _)| *from == step.id);
    flow.flow
        .steps
        .iter()
        .filter(follows)
        .map(|it| it.id.as_str())
}

fn of_step<'a>(
    observed: &'a [Observed],
    instance: &'a str,
    (flow, step): &'a StepKey,
) -> impl Iterator<Item = &'a Observed> {
    observed.iter().filter(move |one| {
        let identity = &one.identity;
        (identity.instance.as_str(), &identity.flow, &identity.step) == (instance, flow, step)
    })
}

/// How many there are, by their numbers: one that crashed is one that there should be.
fn running(replicas: &[&Observed], memory: &Memory) -> u32 {
    replicas
        .iter()
        .filter(|one| !memory.is_draining(&one.container))
        .map(|one| one.identity.replica)
        .max()
        .unwrap_or(0)
}

fn signals(
    flow: &DesiredFlow,
    step: &DesiredStep,
    current: u32,
    replicas: &[&Observed],
    memory: &Memory,
    loads: Option<&Loads>,
    now: u64,
) -> Signals {
    let ready: Vec<_> = replicas
        .iter()
        .filter(|one| {
            one.state == ContainerState::Running
                && !memory.is_draining(&one.container)
                && is_ready(one, memory, now)
        })
        .collect();
    let reports: Vec<_> = replicas
        .iter()
        .filter_map(|one| memory.reports.get(&one.container))
        .collect();
    let in_hand: u64 = reports.iter().map(|report| report.in_hand).sum();
    let places = step
        .blueprint
        .as_ref()
        .map_or(1, |blueprint| u64::from(blueprint.concurrency()))
        * ready.len() as u64;
    let load = |id: &str| {
        let of = (flow.flow.name.clone(), id.to_owned());
        loads.map(|loads| loads.get(&of).copied().unwrap_or_default())
    };
    let own: Option<Load> = load(&step.id);
    let is_held_back = reports
        .iter()
        .any(|report| report.state == AgentState::HeldBack);
    let full = successors(flow, step).find(|id| load(id).is_some_and(|it| it.is_half_full));
    let is_paced = reports.iter().any(|report| {
        report
            .pacing
            .as_ref()
            .is_some_and(|pacing| pacing.is_waiting)
    });
    let obstacle = match full {
        _ if is_paced => Some("it is held back by its rate".to_owned()),
        Some(id) => Some(format!(
            "`{id}` after it is the bottleneck: its queue is more than half full"
        )),
        None if is_held_back => Some("it is held back by what follows it".to_owned()),
        None => None,
    };
    Signals {
        replicas: current,
        ready: u32::try_from(ready.len()).unwrap_or(u32::MAX),
        waiting: own.map(|load| load.messages.max(load.deliveries)),
        held: reports.iter().map(|report| report.held).sum(),
        rate: own.map_or(0.0, |load| load.rate),
        is_busy: places > 0 && in_hand * 10 >= places * 9,
        obstacle,
        is_paused: step.state == FlowState::Paused,
    }
}

//! What a person, and a metric, can know of the replicas: pure, from what is and what should be.

use std::collections::BTreeMap;

use serde::Serialize;
use towpath_protocol::office::AgentState;
use utoipa::ToSchema;

use super::memory::Memory;
use super::{Desired, DesiredFlow, DesiredStep, FlowState};
use crate::engine::{ContainerState, Observed};

/// How everything is. All times are milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Status {
    /// When this was found out; 0 before the first round.
    pub at: u64,
    /// Why it could not be found out since then, if it could not: then what runs goes on, and the
    /// rest of this is as it was.
    pub trouble: Option<String>,
    /// The flows, by name, those that are being deleted included.
    pub flows: BTreeMap<String, FlowStatus>,
}

/// How a flow is.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FlowStatus {
    /// What it should be doing.
    pub state: FlowState,
    /// Its version; 0 for a flow that is being deleted.
    pub version: u32,
    /// Its steps, by id, those that are being removed included.
    pub steps: BTreeMap<String, StepStatus>,
}

/// How a step is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct StepStatus {
    /// What it should be doing.
    pub state: FlowState,
    /// Because of what, if it does not simply run.
    pub because: Option<String>,
    /// How many replicas there should be.
    pub desired: u32,
    /// Why that many, if the work counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<String>,
    /// How many there are that run and were not told to go, outdated ones included.
    pub running: u32,
    /// How many of them are made from what they should be made from.
    pub current: u32,
    /// Why it cannot run now, if it cannot.
    pub blocked: Option<String>,
    /// How often replicas were started again after a failure, since the control plane started.
    pub restarts: u64,
    /// How often replicas were replaced although they ran, because they did nothing, since then.
    pub recycled: u64,
    /// Its replicas, those that should be there and are not included.
    pub replicas: Vec<ReplicaStatus>,
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReplicaStatus {
    /// Its number, from 1.
    pub replica: u32,
    /// The hash of what it was made from.
    pub spec: String,
    /// Whether that is what it should be made from.
    pub is_current: bool,
    /// Its container, if there is one.
    pub container: Option<String>,
    /// How it is.
    pub state: ReplicaState,
    /// Why, if it is not simply running.
    pub reason: Option<String>,
    /// Since when.
    pub since: u64,
    /// When it is next looked at, if that is for its own sake.
    pub next: Option<u64>,
    /// How often in a row it failed.
    pub failures: u32,
    /// The last lines of its log, if it fails.
    pub last_lines: Vec<String>,
}

/// What state a replica is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It should be there, and is about to be made.
    Missing,
    /// It failed, and is made again after a wait.
    BackingOff,
    /// It has ended.
    Exited,
    /// Its container or its process is starting.
    Starting,
    /// It takes messages.
    Running,
    /// It was told not to take any.
    Paused,
    /// It finishes what it holds, and goes.
    Draining,
    /// It cannot reach the broker.
    WaitingForBroker,
    /// The broker takes no more from it.
    HeldBack,
    /// Its process dies or refuses again and again.
    StepFails,
}

/// Says how the flows are. `before` is what was said last, to know since when.
pub fn flows(
    desired: &Desired,
    observed: &[Observed],
    memory: &Memory,
    before: &Status,
    now: u64,
) -> BTreeMap<String, FlowStatus> {
    let mut flows: BTreeMap<_, _> = desired
        .flows
        .iter()
        .map(|flow| (flow.flow.name.clone(), flow_status(flow, memory, now)))
        .collect();
    for one in observed
        .iter()
        .filter(|one| one.identity.instance == desired.instance)
    {
        let flow = flows
            .entry(one.identity.flow.clone())
            .or_insert_with(|| FlowStatus {
                state: FlowState::Stopped,
                version: 0,
                steps: BTreeMap::new(),
            });
        let wanted = desired_step(desired, one);
        let is_current = wanted.is_some_and(|step| step.spec == one.identity.spec);
        let step = flow.steps.entry(one.identity.step.clone()).or_default();
        if is_current {
            step.replicas
                .retain(|it| it.replica != one.identity.replica || it.container.is_some());
        }
        let replica = replica_status(one, is_current, memory, now);
        if one.state == ContainerState::Running && replica.state != ReplicaState::Draining {
            step.running += 1;
            step.current += u32::from(is_current);
        }
        step.replicas.push(replica);
    }
    for (name, flow) in &mut flows {
        for (id, step) in &mut flow.steps {
            step.replicas.sort_by(|one, other| {
                (one.replica, !one.is_current, &one.spec).cmp(&(
                    other.replica,
                    !other.is_current,
                    &other.spec,
                ))
            });
            let was = before.flows.get(name).and_then(|flow| flow.steps.get(id));
            for replica in &mut step.replicas {
                keep_since(replica, was);
            }
        }
    }
    flows
}

fn desired_step<'a>(desired: &'a Desired, one: &Observed) -> Option<&'a DesiredStep> {
    let flow = desired
        .flows
        .iter()
        .find(|it| it.flow.name == one.identity.flow)?;
    flow.steps.iter().find(|it| it.id == one.identity.step)
}

fn flow_status(flow: &DesiredFlow, memory: &Memory, now: u64) -> FlowStatus {
    let steps = flow.steps.iter().map(|step| {
        let wanted = if step.state == FlowState::Stopped {
            0
        } else {
            step.replicas
        };
        let key = (flow.flow.name.clone(), step.id.clone());
        let status = StepStatus {
            state: step.state,
            because: step.because.clone(),
            desired: wanted,
            scaling: step.scaling.clone(),
            blocked: step.blocked.clone(),
            restarts: memory.restarts.get(&key).copied().unwrap_or_default(),
            recycled: memory.recycled.get(&key).copied().unwrap_or_default(),
            replicas: (1..=wanted)
                .map(|it| missing(flow, step, it, memory, now))
                .collect(),
            ..Default::default()
        };
        (step.id.clone(), status)
    });
    FlowStatus {
        state: flow.state,
        version: flow.version,
        steps: steps.collect(),
    }
}

fn missing(
    flow: &DesiredFlow,
    step: &DesiredStep,
    replica: u32,
    memory: &Memory,
    now: u64,
) -> ReplicaStatus {
    let failure = memory.failures.iter().find_map(|(identity, failure)| {
        let is_it = identity.flow == flow.flow.name
            && identity.step == step.id
            && identity.replica == replica
            && identity.spec == step.spec;
        is_it.then_some(failure)
    });
    ReplicaStatus {
        replica,
        spec: step.spec.clone(),
        is_current: true,
        container: None,
        state: if failure.is_some() {
            ReplicaState::BackingOff
        } else {
            ReplicaState::Missing
        },
        reason: step
            .blocked
            .clone()
            .or_else(|| failure.map(|failure| failure.reason.clone())),
        since: failure.map_or(now, |failure| failure.at),
        next: failure.map(|failure| failure.next),
        failures: failure.map_or(0, |failure| failure.count),
        last_lines: failure
            .map(|failure| failure.last_lines.clone())
            .unwrap_or_default(),
    }
}

fn replica_status(one: &Observed, is_current: bool, memory: &Memory, now: u64) -> ReplicaStatus {
    let report = memory.reports.get(&one.container);
    let failure = memory.failures.get(&one.identity);
    let drain = memory.drains.get(&one.container);
    let (state, reason, since) = match &one.state {
        ContainerState::Created => (ReplicaState::Starting, None, one.created),
        ContainerState::Exited {
            code,
            out_of_memory,
            memory_bytes,
            at,
        } => {
            let reason = super::memory::exit_reason(*code, *out_of_memory, *memory_bytes);
            let is_next = is_current && failure.is_some();
            let state = if is_next {
                ReplicaState::BackingOff
            } else {
                ReplicaState::Exited
            };
            (state, Some(reason), *at)
        }
        ContainerState::Running if drain.is_some() => (
            ReplicaState::Draining,
            memory.recycles.get(&one.container).cloned(),
            drain.map_or(now, |drain| drain.since),
        ),
        ContainerState::Running => {
            let state = report.map_or(ReplicaState::Starting, |it| agent_state(it.state));
            let is_plain = matches!(state, ReplicaState::Running | ReplicaState::Starting);
            let since = if is_plain { one.created } else { now };
            (
                state,
                report.and_then(|report| report.reason.clone()),
                since,
            )
        }
    };
    let said = report
        .map(|report| report.last_lines.clone())
        .unwrap_or_default();
    let last_lines = if said.is_empty() {
        failure
            .map(|failure| failure.last_lines.clone())
            .unwrap_or_default()
    } else {
        said
    };
    let is_waiting = state == ReplicaState::BackingOff;
    let removal = memory.removals.get(&one.container).filter(|it| it.is_known);
    let reason = removal.map(|it| it.reason.clone()).or(reason);
    ReplicaStatus {
        replica: one.identity.replica,
        spec: one.identity.spec.clone(),
        is_current,
        container: Some(one.container.clone()),
        state,
        reason: reason.or_else(|| (!is_current).then(|| "outdated".to_owned())),
        since,
        next: removal
            .map(|removal| removal.next)
            .or(failure.filter(|_| is_waiting).map(|failure| failure.next)),
        failures: failure.map_or(0, |failure| failure.count),
        last_lines,
    }
}

/// A state that has not changed began when it was first seen.
fn keep_since(replica: &mut ReplicaStatus, was: Option<&StepStatus>) {
    let was = was.and_then(|step| {
        step.replicas.iter().find(|it| {
            it.replica == replica.replica
                && it.container == replica.container
                && it.state == replica.state
        })
    });
    if let Some(was) = was {
        replica.since = replica.since.min(was.since);
    }
}

const fn agent_state(state: AgentState) -> ReplicaState {
    match state {
        AgentState::Starting => ReplicaState::Starting,
        AgentState::Running => ReplicaState::Running,
        AgentState::Paused => ReplicaState::Paused,
        AgentState::Draining => ReplicaState::Draining,
        AgentState::WaitingForBroker => ReplicaState::WaitingForBroker,
        AgentState::HeldBack => ReplicaState::HeldBack,
        AgentState::StepFails => ReplicaState::StepFails,
    }
}

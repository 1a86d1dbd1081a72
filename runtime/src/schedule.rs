//! Fires triggers: when they are due, and when a person asks.
//!
//! # Invariants
//!
//! - `a_trigger_has_at_most_one_active_run`: the next tick is sent when the run before has ended.
//! - `one_further_run_is_remembered_and_fires_when_the_one_before_has_ended`, if the flow says so:
//!   it is a record in the store, of which there can be but one, and not a count.
//! - `a_run_is_recorded_before_its_tick_is_published`: cut off in between, the same tick is published
//!   again, with the same id.
//! - `only_running_flows_fire`.
//! - `a_run_is_abandoned_only_if_its_tick_is_nowhere`: for minutes, by everything that can be seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use towpath_flow::{Fires, Overlap};
use towpath_protocol::frame::{TickBody, Why};
use towpath_protocol::message::{BATCH_TYPE, Lineage, Message};
use towpath_protocol::office::AgentState;
use towpath_protocol::{DEFAULT_CONNECTION, MessageId};

use crate::broker::topology::Names;
use crate::broker::{Broker, BrokerError, Publication};
use crate::engine::chain;
use crate::live::{LiveFlow, LiveFlows};
use crate::metrics::Metrics;
use crate::reconcile::FlowState;
use crate::reports::Reports;
use crate::store::records::{RunRecord, RunState};
use crate::store::{Store, StoreError};

mod due;

pub use due::{Decision, STILL_AFTER, due};

/// What time it is, in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clock of the machine.
pub fn system_clock() -> Clock {
    Arc::new(crate::store::now_ms)
}

/// The longest that the loop sleeps: everything is looked at again then, whatever was heard.
const LOOK: Duration = Duration::from_secs(5);

/// The shortest time between two looks.
const PACE: Duration = Duration::from_millis(20);

/// After how long a run that was recorded is taken as not published: longer than a publish takes.
const REPUBLISH_AFTER_MS: u64 = 20_000;

/// How long a run must have been under way, and everything quiet, before it is given up.
const QUIET_MS: u64 = 60_000;

/// The same after a retry was due: the broker may hold a delayed tick back for some minutes.
const QUIET_AFTER_RETRY_MS: u64 = 5 * 60_000;

/// How old a report may be to say how an agent is now.
const FRESH_MS: u64 = 30_000;

/// Fires triggers. Clones do the same work.
#[derive(Clone)]
pub struct Scheduler {
    /// Where ticks go.
    pub broker: Arc<dyn Broker>,
    /// Where runs are recorded.
    pub store: Store,
    /// The instance's names.
    pub names: Names,
    /// The flows.
    pub flows: LiveFlows,
    /// How agents are.
    pub reports: Reports,
    /// Where ticks are counted.
    pub metrics: Metrics,
    /// Tells that a run may have ended.
    pub runs_changed: Arc<Notify>,
    /// What time it is.
    pub clock: Clock,
}

/// Why a trigger is not fired.
#[derive(Debug, thiserror::Error)]
pub enum FireError {
    /// There is no such flow.
    #[error("there is no flow `{flow}`")]
    NoFlow {
        /// The flow.
        flow: String,
    },
    /// Its trigger is a webhook.
    #[error("the trigger of `{flow}` is a webhook: it is fired by a request to its URL")]
    Webhook {
        /// The flow.
        flow: String,
    },
    /// It is paused or stopped.
    #[error("`{flow}` is not running")]
    NotRunning {
        /// The flow.
        flow: String,
        /// What it is doing instead.
        state: FlowState,
    },
    /// The run before has not ended.
    #[error("`{flow}` has a run that has not ended yet")]
    Busy {
        /// The flow.
        flow: String,
        /// The run, if it has not ended by now.
        run: Option<MessageId>,
        /// Whether a further one is remembered already.
        queues: bool,
    },
    /// The store does not work.
    #[error("the run cannot be recorded")]
    Store(#[from] StoreError),
}

/// What the loop remembers from one look to the next; nothing of it is missed after a restart.
#[derive(Default)]
struct Memory {
    /// Since when everything has been quiet around an active run.
    quiet_since: HashMap<MessageId, u64>,
    /// When a recorded run was published again last.
    published_again: HashMap<MessageId, u64>,
    /// The flows that cannot be looked at, so that it is said once.
    troubled: HashMap<String, String>,
}

impl Scheduler {
    /// Fires what is due, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut flows = self.flows.clone();
        let mut memory = Memory::default();
        let began = (self.clock)();
        loop {
            let next = self.look(&mut memory, began).await;
            let wait = Duration::from_millis(next.saturating_sub((self.clock)())).clamp(PACE, LOOK);
            // Cancel-safe: all of them only wait.
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = flows.changed() => if changed.is_err() { return },
                () = self.runs_changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Looks at every flow once; returns when to look again at the latest.
    async fn look(&self, memory: &mut Memory, began: u64) -> u64 {
        let flows = Arc::clone(&self.flows.borrow());
        let mut next = u64::MAX;
        for flow in flows.values().filter(|flow| flow.trigger.fires.by_ticks()) {
            match self.look_at(flow, memory, began).await {
                Ok(until) => {
                    next = next.min(until);
                    memory.troubled.remove(&flow.name);
                }
                Err(error) => {
                    let text = chain(&error);
                    let before = memory.troubled.insert(flow.name.clone(), text.clone());
                    if before.as_ref() != Some(&text) {
                        tracing::warn!(
                            flow = flow.name,
                            error = text,
                            "the trigger cannot be fired now; trying on"
                        );
                    }
                }
            }
        }
        memory.troubled.retain(|flow, _| flows.contains_key(flow));
        next
    }

    async fn look_at(
        &self,
        flow: &LiveFlow,
        memory: &mut Memory,
        began: u64,
    ) -> Result<u64, LookError> {
        let runs = history(&self.store, flow).await?;
        let now = (self.clock)();
        if flow.state == FlowState::Running
            && runs.first().is_none_or(|last| !last.state.is_active())
            && let Some(run) = self.store.run_released(&flow.name, now).await?
        {
            self.publish(flow, &run).await?;
            return Ok(u64::MAX);
        }
        match due(flow, &runs, now) {
            Decision::Off => Ok(u64::MAX),
            Decision::Wait { until } => Ok(until),
            Decision::Fire { due } => {
                let run = self.record(flow, Why::Schedule, due, None);
                if self.store.run_started(&run).await? {
                    self.publish(flow, &run).await?;
                }
                Ok(u64::MAX)
            }
            Decision::Busy { .. } => {
                let Some(run) = runs.first() else {
                    return Ok(u64::MAX);
                };
                self.tend(flow, run, memory, began, now).await?;
                Ok(u64::MAX)
            }
        }
    }

    /// Looks after an active run: publishes its tick if nobody did, gives it up if it is nowhere.
    async fn tend(
        &self,
        flow: &LiveFlow,
        run: &RunRecord,
        memory: &mut Memory,
        began: u64,
        now: u64,
    ) -> Result<(), LookError> {
        if run.state == RunState::Recorded {
            // Recorded before this process began: whoever was to publish it is gone.
            let last = memory
                .published_again
                .get(&run.id)
                .copied()
                .unwrap_or(run.started_at);
            if run.started_at < began && !memory.published_again.contains_key(&run.id)
                || now.saturating_sub(last) >= REPUBLISH_AFTER_MS
            {
                memory
                    .published_again
                    .retain(|_, at| now.saturating_sub(*at) < 2 * REPUBLISH_AFTER_MS);
                memory.published_again.insert(run.id, now);
                self.publish(flow, run).await?;
            }
            return Ok(());
        }
        if !is_overdue(run, now) || !self.is_quiet(flow, run, now).await? {
            memory.quiet_since.remove(&run.id);
            return Ok(());
        }
        let since = *memory.quiet_since.entry(run.id).or_insert(now);
        if now.saturating_sub(since) < QUIET_MS {
            return Ok(());
        }
        let reason = "its tick is in no queue and with no agent any more";
        let end = self.store.run_ended(
            run.id,
            RunState::Abandoned,
            now,
            None,
            Some(reason.to_owned()),
        );
        if end.await? {
            tracing::warn!(flow = flow.name, run = %run.id, reason, "the run was lost and is given up, so that the next can begin");
            self.metrics
                .run_abandoned(&flow.name, &run.step, &run.connection);
        }
        memory
            .quiet_since
            .retain(|_, since| now.saturating_sub(*since) < 24 * 3_600_000);
        memory.quiet_since.remove(&run.id);
        self.runs_changed.notify_one();
        Ok(())
    }

    /// Says whether the tick of a run is nowhere to be seen: not in the trigger's queue, not with an
    /// agent, and no word about it is on its way.
    async fn is_quiet(
        &self,
        flow: &LiveFlow,
        run: &RunRecord,
        now: u64,
    ) -> Result<bool, LookError> {
        let seen = self.reports.of_step(&flow.name, &run.step);
        let idle = |seen: &crate::reports::Seen| {
            let report = &seen.report;
            now.saturating_sub(seen.received_at) <= FRESH_MS
                && report.at > run.started_at
                && report.state == AgentState::Running
                && report.held == 0
                && report.in_hand == 0
                && report.unacknowledged == 0
        };
        // One that has been silent may still hold it; it is forgotten in time.
        if seen.is_empty() || !seen.iter().all(idle) {
            return Ok(false);
        }
        let queue = self.names.queue(&flow.name, &run.step);
        let queues = [
            queue,
            self.names.news(),
            self.names.dead(),
            self.names.lost(),
        ];
        let depths = self.broker.depths(&queues).await?;
        Ok(depths.len() == queues.len() && depths.values().all(|depth| depth.ready == 0))
    }

    /// Fires a trigger now, and returns the run. It is recorded; if the broker is away, its tick is
    /// published when it is back. If a run is active and the flow remembers one, it is that one.
    pub async fn fire(
        &self,
        flow: &str,
        why: Why,
        payload: Option<Box<RawValue>>,
    ) -> Result<MessageId, FireError> {
        let name = flow.to_owned();
        let Some(flow) = self.flows.borrow().get(flow).cloned() else {
            return Err(FireError::NoFlow { flow: name });
        };
        if !flow.trigger.fires.by_ticks() {
            return Err(FireError::Webhook { flow: name });
        }
        if flow.state != FlowState::Running {
            return Err(FireError::NotRunning {
                flow: name,
                state: flow.state,
            });
        }
        let mut run = self.record(&flow, why, (self.clock)(), payload);
        if !self.store.run_started(&run).await? {
            run.state = RunState::Queued;
            let queues = flow.trigger.overlap == Overlap::QueueOne;
            if queues && self.store.run_started(&run).await? {
                // The active one may have ended meanwhile.
                self.runs_changed.notify_one();
                return Ok(run.id);
            }
            let run = self.store.active_run(&name).await?.map(|run| run.id);
            return Err(FireError::Busy {
                flow: name,
                run,
                queues,
            });
        }
        if let Err(error) = self.publish(&flow, &run).await {
            tracing::warn!(flow = name, run = %run.id, error = %chain(&error), "the tick is published later");
        }
        Ok(run.id)
    }

    fn record(
        &self,
        flow: &LiveFlow,
        why: Why,
        due: u64,
        payload: Option<Box<RawValue>>,
    ) -> RunRecord {
        RunRecord {
            id: MessageId::from_bytes(uuid::Uuid::now_v7().into_bytes()),
            flow: flow.name.clone(),
            step: flow.trigger.step.clone(),
            connection: DEFAULT_CONNECTION.to_owned(),
            version: flow.version,
            why,
            state: RunState::Recorded,
            due,
            started_at: (self.clock)(),
            ended_at: None,
            emitted: None,
            attempts: 0,
            next_at: None,
            reason: None,
            payload,
            tracked: flow.track,
            cancel_at: None,
        }
    }

    async fn publish(&self, flow: &LiveFlow, run: &RunRecord) -> Result<(), LookError> {
        let publication = Publication {
            exchange: self.names.steps(),
            key: Names::step_key(&flow.name, &run.step),
            kind: BATCH_TYPE,
            body: tick(run).into(),
            count: 1,
        };
        self.broker.publish(publication).await?;
        self.store.run_published(run.id).await?;
        self.metrics
            .tick(&flow.name, &run.step, &run.connection, run.why);
        tracing::info!(flow = flow.name, run = %run.id, why = ?run.why, "the trigger was fired");
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The runs of a trigger that matter for when it is due: the active one, or else the last ones.
pub async fn history(store: &Store, flow: &LiveFlow) -> Result<Vec<RunRecord>, StoreError> {
    if let Some(active) = store.active_run(&flow.name).await? {
        return Ok(vec![active]);
    }
    let count = match flow.trigger.fires {
        Fires::Stream => due::STREAM_RUNS,
        _ => 1,
    };
    store.last_runs(&flow.name, count).await
}

fn is_overdue(run: &RunRecord, now: u64) -> bool {
    let (since, patience) = match run.next_at {
        Some(next) => (next, QUIET_AFTER_RETRY_MS),
        None => (run.started_at, QUIET_MS),
    };
    now.saturating_sub(since) > patience && now > since
}

/// The line of a run's tick: the same each time it is made.
fn tick(run: &RunRecord) -> String {
    let lineage = Lineage {
        run: run.id,
        version: run.version,
        at: run.started_at,
        connection: run.connection.clone(),
        trace: Some(trace_of(run.id)),
    };
    let body = TickBody {
        why: run.why,
        due: run.due,
        payload: run.payload.as_deref(),
    };
    let lineage = serde_json::value::to_raw_value(&lineage).expect("a lineage is JSON");
    let body = serde_json::value::to_raw_value(&body).expect("a tick is JSON");
    serde_json::to_string(&Message::root(run.id, &lineage, &body)).expect("a message is JSON")
}

/// The `traceparent` of what begins with this id, if it brings none.
pub(crate) fn trace_of(id: MessageId) -> String {
    let span = &blake3::hash(id.as_bytes()).to_hex()[..16];
    format!("00-{id}-{span}-01")
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;

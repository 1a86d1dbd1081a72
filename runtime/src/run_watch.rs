//! Looks after runs that have begun: tells agents of cancelled ones, finds those that will never be
//! finished, and forgets what is not needed any more.
//!
//! # Invariants
//!
//! - `a_run_whose_messages_are_nowhere_says_so`: minutes after the last was heard of it, and only if
//!   by everything that can be seen its flow holds nothing.
//! - A cancelled run is told of again until whoever has its tick says that it left it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use towpath_protocol::MessageId;
use towpath_protocol::office::{AgentState, CancelRun, ToAgent};

use crate::broker::topology::Names;
use crate::broker::{Broker, BrokerError};
use crate::engine::chain;
use crate::live::{LiveFlow, LiveFlows, reached};
use crate::reports::Reports;
use crate::schedule::Clock;
use crate::store::records::RunRecord;
use crate::store::tracking::NOWHERE;
use crate::store::{Store, StoreError};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(5);

/// How long nothing must have been heard of a run before its messages are looked for: longer than a
/// broker or a control plane is away for an update, and than what the delay ladder may hold back.
pub const QUIET_MS: u64 = 10 * 60_000;

/// How long everything around it must have been quiet then.
const STILL_QUIET_MS: u64 = 60_000;

/// How old a report may be to say how an agent is now.
const FRESH_MS: u64 = 30_000;

/// How many runs of a flow are looked at at a time.
const RUNS_AT_ONCE: u32 = 50;

/// How long the messages of a finished run are kept: what is said twice is said again within
/// minutes, when a connection or a container was lost.
pub const KEPT_MS: u64 = 10 * 60_000;

/// How many messages are forgotten in one transaction: a small part of a second.
const FORGET_AT_ONCE: u32 = 10_000;

/// How many such transactions there are in one look; between them others use the store.
const FORGET_TIMES: u32 = 50;

/// How old a report may be whose writer is told of a cancelled run.
const ADDRESS_MS: u64 = 120_000;

/// Looks after runs. Clones do the same work.
#[derive(Clone)]
pub struct RunWatch {
    /// Where queues are looked at.
    pub broker: Arc<dyn Broker>,
    /// Where runs are.
    pub store: Store,
    /// The instance's names.
    pub names: Names,
    /// The flows.
    pub flows: LiveFlows,
    /// How agents are.
    pub reports: Reports,
    /// What time it is.
    pub clock: Clock,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl RunWatch {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut quiet_since = HashMap::new();
        let mut said = String::new();
        loop {
            match self.look(&mut quiet_since).await {
                Ok(()) => said.clear(),
                Err(error) => {
                    let text = chain(&error);
                    if text != said {
                        tracing::warn!(error = text, "runs cannot be looked after now; trying on");
                        said = text;
                    }
                }
            }
            // Cancel-safe: both only wait.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn look(&self, quiet_since: &mut HashMap<String, u64>) -> Result<(), LookError> {
        for run in self.store.runs_to_cancel().await? {
            self.tell_cancelled(&run).await;
        }
        let now = (self.clock)();
        for _ in 0..FORGET_TIMES {
            let before = now.saturating_sub(KEPT_MS);
            if self
                .store
                .forget_run_messages(before, FORGET_AT_ONCE)
                .await?
                == 0
            {
                break;
            }
        }
        let flows = Arc::clone(&self.flows.borrow());
        quiet_since.retain(|flow, _| flows.contains_key(flow));
        for flow in flows.values().filter(|flow| flow.track) {
            self.look_for_lost(&flows, flow, quiet_since, now).await?;
        }
        Ok(())
    }

    /// Tells whoever may have the tick of a run that it is cancelled.
    pub async fn tell_cancelled(&self, run: &RunRecord) {
        let cancel = ToAgent::Cancel(CancelRun { run: run.id });
        let body = Bytes::from(serde_json::to_vec(&cancel).expect("an order is JSON"));
        let since = (self.clock)().saturating_sub(ADDRESS_MS);
        for address in self.reports.addresses(since) {
            if address.identity.flow != run.flow || address.identity.step != run.step {
                continue;
            }
            let told = self
                .broker
                .reply(&address.reply_to, &run.id.to_string(), body.clone())
                .await;
            // It is told again, and who asks for its checkpoint is told in the answer.
            if let Err(error) = told {
                tracing::debug!(flow = run.flow, run = %run.id, error = %chain(&error), "an agent cannot be told that a run is cancelled");
            }
        }
    }

    async fn look_for_lost(
        &self,
        flows: &BTreeMap<String, LiveFlow>,
        flow: &LiveFlow,
        quiet_since: &mut HashMap<String, u64>,
        now: u64,
    ) -> Result<(), LookError> {
        let before = now.saturating_sub(QUIET_MS);
        let runs = self
            .store
            .quiet_runs(&flow.name, before, RUNS_AT_ONCE)
            .await?;
        // What was handed over may be held there.
        let mut is_quiet = !runs.is_empty();
        for flow in std::iter::once(flow).chain(reached(flows, &flow.name)) {
            is_quiet = is_quiet && self.is_quiet(flow, now).await?;
        }
        if !is_quiet {
            quiet_since.remove(&flow.name);
            return Ok(());
        }
        let since = *quiet_since.entry(flow.name.clone()).or_insert(now);
        if now.saturating_sub(since) < STILL_QUIET_MS {
            return Ok(());
        }
        let progress = self.store.runs_progress(runs.clone()).await?;
        let lost: Vec<MessageId> = runs
            .into_iter()
            .zip(progress)
            .filter(|(_, progress)| progress.retrying == 0)
            .map(|(run, _)| run)
            .collect();
        for run in &lost {
            tracing::warn!(flow = flow.name, %run, reason = NOWHERE, "it will never be known what came of the run");
        }
        self.store.runs_lost(lost, NOWHERE).await?;
        Ok(())
    }

    /// Says whether a flow holds nothing, by everything that can be seen: no message is in a queue
    /// or with an agent, and no word about one is on its way.
    async fn is_quiet(&self, flow: &LiveFlow, now: u64) -> Result<bool, LookError> {
        let mut queues = vec![
            self.names.runs(),
            self.names.dead(),
            self.names.lost(),
            self.names.news(),
        ];
        for (step, _) in &flow.steps {
            let partitions = flow.ordered.get(step).copied();
            queues.extend(self.names.queues(&flow.name, step, partitions));
            let is_idle = |seen: crate::reports::Seen| {
                let report = &seen.report;
                // One that has been silent may still hold something; it is forgotten in time.
                now.saturating_sub(seen.received_at) <= FRESH_MS
                    && report.state == AgentState::Running
                    && report.held == 0
                    && report.unacknowledged == 0
            };
            if !self
                .reports
                .of_step(&flow.name, step)
                .into_iter()
                .all(is_idle)
            {
                return Ok(false);
            }
        }
        let depths = self.broker.depths(&queues).await?;
        Ok(depths.len() == queues.len() && depths.values().all(|depth| depth.ready == 0))
    }
}

#[cfg(test)]
#[path = "run_watch_tests.rs"]
mod tests;

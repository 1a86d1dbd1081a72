//! The control plane's verbs, as the API and the tests use them.
//!
//! | Module | What |
//! |---|---|
//! | [`catalog`] | what should be, from what was applied |
//! | `draft` | plan and apply; `changes` says what differs, `choices` what becomes of messages |
//! | `versions` | what was applied, what differs, and back again |
//! | `operate` | scale, delete |
//! | `hold` | pause, resume, drain, stop: a flow or a step |
//! | `left` | what is left of what drains |
//! | `status` | how everything is |
//! | `checkpoint` | where a trigger is in its source |
//! | `run_state` | how a run is |
//! | `runs`, `dead`, `retries`, `secrets`, `images`, `logs` | one group of verbs each |
//! | `why` | where a message is: `whereabouts` decides, from all that is known |
//! | `webhooks` | what stands in front of webhooks, and new keys for their URLs |
//! | `registrations` | calls triggers to register at their sources, and to take that back |
//! | `removals` | takes away the queues of what is gone |
//!
//! # Invariants
//!
//! - Nothing here knows of HTTP, SQL, Docker or AMQP.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::broker::Broker;
use crate::broker::topology::Topology;
use crate::engine::Engine;
use crate::ingress::{Gates, Recent};
use crate::inquiry::Inquiry;
use crate::live::LiveFlow;
use crate::metrics::Metrics;
use crate::reconcile::run::Handle;
use crate::reconcile::status::ReplicaState;
use crate::replay::Replayer;
use crate::reports::Reports;
use crate::schedule::Scheduler;
use crate::sweep::Sweeper;
use catalog::Catalog;
use error::ControlError;

pub mod catalog;
mod changes;
pub mod checkpoint;
mod choices;
pub mod dead;
mod draft;
pub mod error;
mod handovers;
mod hold;
mod images;
mod left;
mod logs;
mod operate;
mod registrations;
mod removals;
mod retries;
pub mod run_state;
mod runs;
mod secrets;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod versions;
pub mod view;
mod webhooks;
mod whereabouts;
mod why;

pub(crate) use changes::FROM_FLOWS;
pub use dead::DeadFilter;
pub use hold::Verb;
pub use logs::LogFilter;
pub use operate::DeleteChoices;
pub use retries::RetryFilter;
pub use runs::RunFilter;
pub use whereabouts::{AtStep, Attempt, Child, Parent, Place, Whereabouts};

/// What the verbs are made of.
pub struct Parts {
    /// What was applied.
    pub catalog: Arc<Catalog>,
    /// What carries messages.
    pub broker: Arc<dyn Broker>,
    /// What makes what is into what should be.
    pub reconciler: Handle,
    /// What fires triggers.
    pub scheduler: Scheduler,
    /// What agents say.
    pub reports: Reports,
    /// How agents are asked.
    pub inquiry: Inquiry,
    /// What webhooks took in of late.
    pub entered: Recent,
    /// What stands in front of webhooks.
    pub gates: Gates,
    /// What is counted.
    pub metrics: Metrics,
    /// How the API is reached from outside.
    pub public_url: String,
    /// After how long without a word a run is stalled, in milliseconds.
    pub stalled_after_ms: u64,
    /// The binary that runs: it serves as worker for filters as well.
    pub program: PathBuf,
    /// Where to tell which flows are applied.
    pub live: watch::Sender<Arc<BTreeMap<String, LiveFlow>>>,
    /// Told when a trigger has answered a call to register.
    pub registrations_changed: Arc<Notify>,
}

/// Everything the verbs need.
pub struct Control {
    catalog: Arc<Catalog>,
    broker: Arc<dyn Broker>,
    reconciler: Handle,
    reports: Reports,
    inquiry: Inquiry,
    entered: Recent,
    gates: Gates,
    metrics: Metrics,
    scheduler: Scheduler,
    replayer: Replayer,
    sweeper: Sweeper,
    public_url: String,
    stalled_after_ms: u64,
    sights: left::Sights,
    program: PathBuf,
    live: watch::Sender<Arc<BTreeMap<String, LiveFlow>>>,
    /// Held by what reads the flows, decides, and writes: applies do not overtake each other.
    applying: tokio::sync::Mutex<()>,
    removals: Notify,
    registrations_changed: Arc<Notify>,
}

impl Control {
    /// Makes it, and reads what was applied.
    pub async fn start(parts: Parts) -> Result<Self, ControlError> {
        let control = Self {
            catalog: parts.catalog,
            broker: parts.broker,
            reconciler: parts.reconciler,
            replayer: Replayer::new(parts.scheduler.clone()),
            sweeper: Sweeper::new(
                Arc::clone(&parts.scheduler.broker),
                parts.scheduler.store.clone(),
                parts.scheduler.names.clone(),
                parts.scheduler.clock.clone(),
            ),
            scheduler: parts.scheduler,
            reports: parts.reports,
            inquiry: parts.inquiry,
            entered: parts.entered,
            gates: parts.gates,
            metrics: parts.metrics,
            public_url: parts.public_url,
            stalled_after_ms: parts.stalled_after_ms,
            sights: left::Sights::default(),
            program: parts.program,
            live: parts.live,
            applying: tokio::sync::Mutex::new(()),
            removals: Notify::new(),
            registrations_changed: parts.registrations_changed,
        };
        control.changed().await?;
        Ok(control)
    }

    /// What runs containers.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.catalog.engine
    }

    /// What sends dead letters again.
    pub fn replayer(&self) -> Replayer {
        self.replayer.clone()
    }

    /// Declares what should be on the broker. What earlier versions had stays, because replicas of
    /// them may be at work: [`Self::run_removals`] removes it.
    pub async fn declare(&self) -> Result<(), ControlError> {
        let topology: Topology = self.catalog.topology().await?;
        Ok(self.broker.declare(&topology, &[]).await?)
    }

    /// Tells everyone that what should be has changed.
    async fn changed(&self) -> Result<(), ControlError> {
        let flows = Arc::new(self.catalog.live_flows().await?);
        self.gates.replace(self.gates().await?);
        self.live.send_replace(flows);
        self.reconciler.look_now();
        Ok(())
    }

    fn webhook_url(&self, flow: &str, key: &str) -> String {
        format!("{}/hooks/{flow}/{key}", self.public_url)
    }

    /// About how many messages are in deliveries to a step.
    fn messages_in(&self, flow: &str, step: &str, deliveries: u64) -> u64 {
        let each = self.reports.messages_per_delivery(flow, step);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate that is not negative, far below the limits of f64"
        )]
        let messages = (deliveries as f64 * each).round() as u64;
        messages
    }

    /// How many messages the agents of a step that run hold, as they said last.
    fn held(&self, flow: &str, step: &str) -> u64 {
        self.seen(flow, step).iter().map(|seen| seen.held).sum()
    }

    /// What the agents of a step that are there said last: what one had in hand whose container has
    /// ended is in the queue again.
    fn seen(&self, flow: &str, step: &str) -> Vec<towpath_protocol::office::Report> {
        let status = self.reconciler.status.borrow();
        let replicas = status
            .flows
            .get(flow)
            .and_then(|flow| flow.steps.get(step))
            .map(|step| step.replicas.as_slice())
            .unwrap_or_default();
        let is_there = |report: &towpath_protocol::office::Report| {
            replicas.iter().any(|it| {
                it.container.is_some()
                    && !matches!(it.state, ReplicaState::BackingOff | ReplicaState::Exited)
                    && it.replica == report.identity.replica
                    && it.spec == report.identity.spec
            })
        };
        self.reports
            .of_step(flow, step)
            .into_iter()
            .map(|seen| seen.report)
            .filter(is_there)
            .collect()
    }
}

//! Sends dead letters again.
//!
//! # Invariants
//!
//! - `a_dead_letter_is_marked_after_it_was_sent`: cut off in between it is still open, and a second
//!   replay sends the same message, with the same id, again. Nothing is lost that way.
//! - `two_at_once_send_it_once`.
//! - `it_goes_nowhere_that_does_not_exist`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::frame::{TickBody, Why};
use towpath_protocol::message::{BATCH_TYPE, Message};

use crate::broker::topology::Names;
use crate::broker::{BrokerError, Publication};
use crate::live::LiveFlow;
use crate::schedule::{FireError, Scheduler};
use crate::store::StoreError;
use crate::store::records::{DeadLetterRecord, DeadState};

/// Sends dead letters again. Clones share what is being sent.
#[derive(Clone)]
pub struct Replayer {
    scheduler: Scheduler,
    under_way: Arc<Mutex<HashSet<u64>>>,
}

/// What became of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The flow.
    pub flow: String,
    /// The step that gets it.
    pub step: String,
    /// The message, or the run that was begun in place of a tick.
    pub message_id: MessageId,
}

/// Why a dead letter is not sent again, or not discarded.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// There is no such dead letter.
    #[error("there is no dead letter {id}")]
    NotFound {
        /// Its number.
        id: u64,
    },
    /// Somebody decided already.
    #[error("dead letter {id} was {} already", word(*.state))]
    NotOpen {
        /// Its number.
        id: u64,
        /// What was done about it.
        state: DeadState,
    },
    /// Somebody is just doing it.
    #[error("dead letter {id} is being sent or discarded just now")]
    UnderWay {
        /// Its number.
        id: u64,
    },
    /// Its flow or step is gone.
    #[error("there is no step `{step}` in a flow `{flow}` that could take it")]
    NoStep {
        /// The flow.
        flow: String,
        /// The step.
        step: String,
    },
    /// It cannot be read as a message.
    #[error("dead letter {id} cannot be read as a message, so no step can take it")]
    Unreadable {
        /// Its number.
        id: u64,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// It is the tick of a trigger, and that cannot be fired.
    #[error("it is the tick of a trigger that cannot be fired now")]
    Tick(#[from] FireError),
    /// The broker does not take it.
    #[error("the message was not sent, or it is not known whether it was")]
    Broker(#[from] BrokerError),
    /// The store does not work.
    #[error("the dead letter cannot be read or marked")]
    Store(#[from] StoreError),
}

fn word(state: DeadState) -> &'static str {
    match state {
        DeadState::Open => "opened",
        DeadState::Replayed => "replayed",
        DeadState::Discarded => "discarded",
    }
}

impl Replayer {
    /// Makes one that uses what the scheduler uses.
    pub fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            under_way: Arc::default(),
        }
    }

    /// Sends a dead letter to its step again, as if for the first time; with another body, if one
    /// is given.
    pub async fn replay(
        &self,
        id: u64,
        body: Option<Box<RawValue>>,
    ) -> Result<Replayed, ReplayError> {
        let _claim = self.claim(id)?;
        let record = self.open(id).await?;
        let flow = self.scheduler.flows.borrow().get(&record.flow).cloned();
        let route = flow.as_ref().and_then(|flow| self.route(flow, &record));
        let (Some(flow), Some(route)) = (flow, route) else {
            return Err(ReplayError::NoStep {
                flow: record.flow,
                step: record.step,
            });
        };
        let message_id = if is_tick(&flow, &record) {
            self.fire(&record, body).await?
        } else {
            let line = fresh(&record, body.as_deref())
                .map_err(|source| ReplayError::Unreadable { id, source })?;
            let (exchange, key) = route;
            let publication = Publication {
                exchange,
                key,
                kind: BATCH_TYPE,
                body: line.into(),
                count: 1,
            };
            self.scheduler.broker.publish(publication).await?;
            record.message_id
        };
        self.scheduler
            .store
            .change_dead_letter(id, DeadState::Open, DeadState::Replayed)
            .await?;
        tracing::info!(flow = record.flow, step = record.step, %message_id, dead_letter = id, "a dead letter was sent again");
        Ok(Replayed {
            flow: record.flow,
            step: record.step,
            message_id,
        })
    }

    /// Decides that a dead letter is not needed. It is kept, but no longer open.
    pub async fn discard(&self, id: u64) -> Result<(), ReplayError> {
        let _claim = self.claim(id)?;
        let record = self.open(id).await?;
        self.scheduler
            .store
            .change_dead_letter(id, DeadState::Open, DeadState::Discarded)
            .await?;
        tracing::info!(flow = record.flow, step = record.step, message_id = %record.message_id, dead_letter = id, "a dead letter was discarded");
        Ok(())
    }

    async fn open(&self, id: u64) -> Result<DeadLetterRecord, ReplayError> {
        let record = self.scheduler.store.dead_letter(id).await?;
        let record = record.ok_or(ReplayError::NotFound { id })?;
        if record.state != DeadState::Open {
            return Err(ReplayError::NotOpen {
                id,
                state: record.state,
            });
        }
        Ok(record)
    }

    /// Where a dead letter goes, if that is still there.
    fn route(&self, flow: &LiveFlow, record: &DeadLetterRecord) -> Option<(String, String)> {
        let names = &self.scheduler.names;
        if let Some(port) = &record.port {
            let from = (record.step.clone(), port.clone());
            let is_taken = flow.steps.iter().any(|(_, after)| after.contains(&from));
            return is_taken.then(|| (names.flow(&flow.name), Names::port_key(&record.step, port)));
        }
        let is_there = flow.steps.iter().any(|(step, _)| *step == record.step);
        is_there.then(|| (names.steps(), Names::step_key(&flow.name, &record.step)))
    }

    /// A tick is not sent again: its run has ended, and what it would save would not be stored. A
    /// new run begins in its place.
    async fn fire(
        &self,
        record: &DeadLetterRecord,
        body: Option<Box<RawValue>>,
    ) -> Result<MessageId, ReplayError> {
        let payload = body.or_else(|| {
            let message: Message<'_> = serde_json::from_str(record.message.get()).ok()?;
            let tick: TickBody<'_> = serde_json::from_str(message.body.get()).ok()?;
            tick.payload.map(ToOwned::to_owned)
        });
        Ok(self
            .scheduler
            .fire(&record.flow, Why::Manual, payload)
            .await?)
    }

    fn claim(&self, id: u64) -> Result<Claim, ReplayError> {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !under_way.insert(id) {
            return Err(ReplayError::UnderWay { id });
        }
        Ok(Claim {
            id,
            under_way: Arc::clone(&self.under_way),
        })
    }
}

/// That a dead letter is being worked on, as long as this lives.
struct Claim {
    id: u64,
    under_way: Arc<Mutex<HashSet<u64>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}

fn is_tick(flow: &LiveFlow, record: &DeadLetterRecord) -> bool {
    flow.trigger.every.is_some() && record.port.is_none() && flow.trigger.step == record.step
}

/// The message as it was, with its attempts ahead of it again. What happened to it before stays in
/// the store.
fn fresh(record: &DeadLetterRecord, body: Option<&RawValue>) -> Result<String, serde_json::Error> {
    let mut message: Message<'_> = serde_json::from_str(record.message.get())?;
    message.attempt = 1;
    message.rebounds = 0;
    message.replays += 1;
    message.history = Vec::new();
    let compact = body
        .map(|body| serde_json::from_str::<serde_json::Value>(body.get()))
        .transpose()?;
    let compact = compact
        .map(|value| serde_json::value::to_raw_value(&value))
        .transpose()?;
    if let Some(body) = &compact {
        message.body = body;
    }
    serde_json::to_string(&message)
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;

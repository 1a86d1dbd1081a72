//! Sends dead letters again: one at once, many by [`job`]s.
//!
//! # Invariants
//!
//! - `a_dead_letter_is_marked_after_it_was_sent`: cut off in between it is open again, and a second
//!   replay sends the same message, with the same id, again. Nothing is lost that way.
//! - `two_at_once_send_it_once`: who sends it takes it first, in the store.
//! - `it_goes_nowhere_that_does_not_exist`.

use std::sync::Arc;

use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use towpath_protocol::MessageId;
use towpath_protocol::frame::{TickBody, Why};
use towpath_protocol::message::{BATCH_TYPE, Message};

use crate::broker::topology::Names;
use crate::broker::{BrokerError, Publication};
use crate::json_text::compact;
use crate::schedule::{FireError, Scheduler};
use crate::store::StoreError;
use crate::store::dead_letters::KeptLetter;
use crate::store::records::DeadState;
use crate::store::replay_jobs::{JobRecord, NewJob};

pub mod job;
pub mod route;

use route::{NoRoute, Place, Route, route};

/// Sends dead letters again. Clones do the same work.
#[derive(Clone)]
pub struct Replayer {
    scheduler: Scheduler,
    /// Told when there is a new job.
    changed: Arc<Notify>,
    /// Told when a job is cancelled.
    cancels: Arc<Notify>,
    /// What is sent goes on when who asked for it goes away.
    tasks: TaskTracker,
}

/// What became of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The flow.
    pub flow: String,
    /// The step that gets it, or that it left.
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
    /// A job has it.
    #[error("dead letter {id} is being replayed by job {job}")]
    InJob {
        /// Its number.
        id: u64,
        /// The job.
        job: u64,
    },
    /// Somebody is just doing it.
    #[error("dead letter {id} is being sent just now")]
    UnderWay {
        /// Its number.
        id: u64,
    },
    /// It can go nowhere.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
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
    /// The process is ending.
    #[error("the control plane is ending")]
    Ending,
}

fn word(state: DeadState) -> &'static str {
    match state {
        DeadState::Open => "opened",
        DeadState::Replaying => "taken",
        DeadState::Replayed => "replayed",
        DeadState::Discarded => "discarded",
    }
}

/// What is to be sent for a dead letter.
enum Sending {
    /// A message.
    Message {
        /// The exchange.
        exchange: String,
        /// The routing key.
        key: String,
        /// The message.
        line: String,
    },
    /// A new run in place of a tick.
    Tick {
        /// What the trigger is handed.
        payload: Option<Box<RawValue>>,
    },
}

impl Replayer {
    /// Makes one that uses what the scheduler uses.
    pub fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            changed: Arc::default(),
            cancels: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Sends a dead letter to its step again, or to one before it, as if for the first time; with
    /// another body, if one is given.
    pub async fn replay(
        &self,
        id: u64,
        body: Option<Box<RawValue>>,
        from: Option<String>,
    ) -> Result<Replayed, ReplayError> {
        let own = self.clone();
        // A task of its own, because who asked may go away in the middle.
        let task = self
            .tasks
            .spawn(async move { own.replay_one(id, body, from.as_deref()).await });
        match task.await {
            Ok(replayed) => replayed,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ReplayError::Ending),
        }
    }

    async fn replay_one(
        &self,
        id: u64,
        body: Option<Box<RawValue>>,
        from: Option<&str>,
    ) -> Result<Replayed, ReplayError> {
        let store = &self.scheduler.store;
        let letter = self.take(id).await?;
        let sent = self.send(&letter, body.as_deref(), from).await;
        let mark = async || {
            if sent.is_ok() {
                store
                    .dead_letter_sent(id, from.map(ToOwned::to_owned))
                    .await
            } else {
                let (from, to) = (DeadState::Replaying, DeadState::Open);
                store.change_dead_letter(id, from, to).await
            }
        };
        let mut marked = mark().await;
        if marked.is_err() {
            // Tried once more, so that it is not sent twice; after that it is open when we start.
            marked = mark().await;
        }
        let replayed = sent?;
        marked?;
        self.scheduler.metrics.replayed(&letter);
        tracing::info!(flow = letter.flow, step = replayed.step, message_id = %replayed.message_id, dead_letter = id, "a dead letter was sent again");
        Ok(replayed)
    }

    /// Begins a job that sends these dead letters, if any of them is open.
    pub async fn begin(
        &self,
        job: NewJob,
        letters: Vec<u64>,
    ) -> Result<Option<JobRecord>, StoreError> {
        let begun = self.scheduler.store.begin_job(job, letters).await?;
        self.changed.notify_one();
        Ok(begun)
    }

    /// Has a job end after what it is just sending. Returns whether it was running.
    pub async fn cancel(&self, job: u64) -> Result<bool, StoreError> {
        let cancelled = self.scheduler.store.cancel_job(job).await?;
        self.cancels.notify_waiters();
        self.changed.notify_one();
        Ok(cancelled)
    }

    /// Decides that a dead letter is not needed. It is kept, but no longer open.
    pub async fn discard(&self, id: u64) -> Result<(), ReplayError> {
        let letter = self.open(id).await?;
        let (from, to) = (DeadState::Open, DeadState::Discarded);
        if !self
            .scheduler
            .store
            .change_dead_letter(id, from, to)
            .await?
        {
            return Err(self
                .open(id)
                .await
                .err()
                .unwrap_or(ReplayError::UnderWay { id }));
        }
        tracing::info!(flow = letter.flow, step = letter.step, message_id = %letter.message_id, dead_letter = id, "a dead letter was discarded");
        Ok(())
    }

    /// Takes an open dead letter, so that nobody else sends it.
    async fn take(&self, id: u64) -> Result<KeptLetter, ReplayError> {
        let letter = self.open(id).await?;
        let (from, to) = (DeadState::Open, DeadState::Replaying);
        if self
            .scheduler
            .store
            .change_dead_letter(id, from, to)
            .await?
        {
            return Ok(letter);
        }
        Err(self
            .open(id)
            .await
            .err()
            .unwrap_or(ReplayError::UnderWay { id }))
    }

    /// Reads a dead letter that is open.
    pub async fn open(&self, id: u64) -> Result<KeptLetter, ReplayError> {
        let letter = self.scheduler.store.dead_letter(id).await?;
        let letter = letter.ok_or(ReplayError::NotFound { id })?;
        match (letter.state, letter.job) {
            (DeadState::Open, _) => Ok(letter),
            (DeadState::Replaying, Some(job)) => Err(ReplayError::InJob { id, job }),
            (DeadState::Replaying, None) => Err(ReplayError::UnderWay { id }),
            (state, _) => Err(ReplayError::NotOpen { id, state }),
        }
    }

    async fn send(
        &self,
        letter: &KeptLetter,
        body: Option<&RawValue>,
        from: Option<&str>,
    ) -> Result<Replayed, ReplayError> {
        let mut step = from.unwrap_or(&letter.step).to_owned();
        let message_id = match self.sending(letter, body, from)? {
            Sending::Tick { payload } => {
                step.clone_from(&letter.step);
                self.fire(letter, payload).await?
            }
            Sending::Message {
                exchange,
                key,
                line,
            } => {
                let publication = Publication {
                    exchange,
                    key,
                    kind: BATCH_TYPE,
                    body: line.into(),
                    count: 1,
                };
                self.scheduler.broker.publish(publication).await?;
                letter.message_id
            }
        };
        Ok(Replayed {
            flow: letter.flow.clone(),
            step,
            message_id,
        })
    }

    /// Says what is to be sent for a dead letter, and where.
    fn sending(
        &self,
        letter: &KeptLetter,
        body: Option<&RawValue>,
        from: Option<&str>,
    ) -> Result<Sending, ReplayError> {
        let names = &self.scheduler.names;
        let body = body.or(letter.edited.as_deref());
        let place = Place {
            flow: &letter.flow,
            step: &letter.step,
            port: letter.port.as_deref(),
        };
        let (exchange, key) = match self.route(place, from)? {
            Route::Step(step) => (names.steps(), Names::step_key(&letter.flow, &step)),
            Route::Port { step, port } => {
                let flows = self.scheduler.flows.borrow();
                let flow = flows.get(&letter.flow);
                let key = flow.map_or_else(
                    || Names::port_key(&step, &port, []),
                    |flow| flow.port_key(&step, &port),
                );
                (names.flow(&letter.flow), key)
            }
            Route::Tick => {
                let payload = body.map(ToOwned::to_owned).or_else(|| payload(letter));
                return Ok(Sending::Tick { payload });
            }
        };
        let line = fresh(letter, body).map_err(|source| ReplayError::Unreadable {
            id: letter.id,
            source,
        })?;
        Ok(Sending::Message {
            exchange,
            key,
            line,
        })
    }

    /// Says where a dead letter goes, as the flows are now.
    pub fn route(&self, place: Place<'_>, from: Option<&str>) -> Result<Route, NoRoute> {
        let flows = self.scheduler.flows.borrow();
        route(flows.get(place.flow), place, from)
    }

    /// A tick is not sent again: its run has ended, and what it would save would not be stored. A
    /// new run begins in its place.
    async fn fire(
        &self,
        letter: &KeptLetter,
        payload: Option<Box<RawValue>>,
    ) -> Result<MessageId, ReplayError> {
        Ok(self
            .scheduler
            .fire(&letter.flow, Why::Manual, payload)
            .await?)
    }
}

/// What the trigger was handed by the tick that died.
fn payload(letter: &KeptLetter) -> Option<Box<RawValue>> {
    let message: Message<'_> = serde_json::from_str(letter.message.get()).ok()?;
    let tick: TickBody<'_> = serde_json::from_str(message.body.get()).ok()?;
    tick.payload.map(ToOwned::to_owned)
}

/// The message as it was, with its attempts ahead of it again. What happened to it before stays in
/// the store.
fn fresh(letter: &KeptLetter, body: Option<&RawValue>) -> Result<String, serde_json::Error> {
    let mut message: Message<'_> = serde_json::from_str(letter.message.get())?;
    message.attempt = 1;
    message.rebounds = 0;
    message.replays += 1;
    message.history = Vec::new();
    let body = body.map(compact);
    if let Some(body) = &body {
        message.body = body;
    }
    serde_json::to_string(&message)
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;

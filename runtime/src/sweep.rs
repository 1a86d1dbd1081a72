//! Takes messages out of the delay ladder before their time: to their step at once, or to the dead
//! letters.
//!
//! The ladder is one for all flows, and its queues know no messages. So a **sweep** takes what each
//! level held when it came there, from the longest delay to the shortest, and puts back what it does
//! not want with what is left of its delay. What moves on by itself meanwhile moves towards what is
//! still to be swept.
//!
//! # Invariants
//!
//! - `a_sweep_that_is_cut_off_anywhere_loses_nothing`: a delivery is acknowledged after all that was
//!   in it is confirmed somewhere else. Cut off in between, what was in it may come twice.
//! - `nothing_comes_back_early`: what is put back keeps its time.
//! - Memory is bounded: so many deliveries are in hand at a time, and of those that were moved the
//!   ids are kept.
//! - One sweep at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use towpath_protocol::MessageId;
use towpath_protocol::message::{BATCH_TYPE, Message};
use towpath_protocol::office::{DEAD_TYPE, DeadCause, DeadLetter};
use towpath_protocol::start::{DELAY_LEVELS, DELAY_UNIT_MS, Identity, delay_units};

use crate::broker::topology::Names;
use crate::broker::{Broker, BrokerError, Delivery, Publication};
use crate::engine::chain;
use crate::schedule::Clock;
use crate::store::{Store, StoreError};

/// How many deliveries are in hand at a time: enough to share the broker's disk syncs. Each is a
/// batch, so they may be some tens of MiB.
const WINDOW: u16 = 64;

/// How long a level may be silent before it is asked what it still holds: what was there may have
/// moved on by itself.
const SILENCE: Duration = Duration::from_millis(300);

/// How often it must hold nothing then: a delivery may be on its way.
const EMPTY: u32 = 2;

/// How often it may hold something then and not deliver it.
const STUCK: u32 = 30;

/// How often a publish is tried before the sweep gives up, with a wait that doubles in between: a
/// broker that comes back within some seconds is waited for.
const TRIES: u32 = 6;

/// The first of these waits.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// The number of notes that are forgotten at once.
const NOTES_AT_ONCE: usize = 10_000;

/// Takes messages out of the ladder. Clones share their turn.
#[derive(Clone)]
pub struct Sweeper {
    broker: Arc<dyn Broker>,
    store: Store,
    names: Names,
    clock: Clock,
    turn: Arc<tokio::sync::Mutex<()>>,
    tasks: TaskTracker,
}

/// What to take out, and what to do with it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Messages that wait for steps of this flow.
    pub flow: String,
    /// Which of them.
    pub which: Which,
    /// Where they go.
    pub fate: Fate,
}

/// Which messages of a flow.
#[derive(Debug, Clone)]
pub enum Which {
    /// All.
    All,
    /// Those that wait for this step.
    Step(String),
    /// These.
    Ids(BTreeSet<MessageId>),
}

/// Where messages go that are taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// To their step at once. No attempt is counted.
    Now,
    /// To the dead letters.
    Cancel,
}

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// How many messages were taken out.
    pub moved: u64,
    /// How many were put back because the queue of their step is full.
    pub held_back: u64,
    /// Those that were asked for by id and not found: they came back meanwhile.
    pub not_found: Vec<MessageId>,
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Another one is under way.
    #[error("another sweep of the delay ladder is under way")]
    UnderWay,
    /// The broker does not do what is needed.
    #[error("the sweep ended early; {moved} messages were moved, the others wait as before")]
    Broker {
        /// How many were moved.
        moved: u64,
        /// Why it ended.
        #[source]
        source: BrokerError,
    },
    /// The notes cannot be brought up to date.
    #[error("{moved} messages were moved, but not taken off the list of what waits")]
    Store {
        /// How many were moved.
        moved: u64,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The process is ending.
    #[error("the control plane is ending")]
    Ending,
}

/// What of one delivery goes where.
#[derive(Debug, PartialEq, Eq)]
struct Sorted<'a> {
    taken: Vec<&'a [u8]>,
    ids: Vec<MessageId>,
    kept: Vec<&'a [u8]>,
}

/// What became of one delivery.
#[derive(Default)]
struct Handled {
    ids: Vec<MessageId>,
    moved: u64,
    held_back: u64,
}

impl Sweeper {
    /// Makes one; nothing is taken yet.
    pub fn new(broker: Arc<dyn Broker>, store: Store, names: Names, clock: Clock) -> Self {
        Self {
            broker,
            store,
            names,
            clock,
            turn: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Sweeps the whole ladder. It goes on if whoever asked does not wait for the end.
    pub async fn sweep(&self, order: Order) -> Result<Swept, SweepError> {
        let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() else {
            return Err(SweepError::UnderWay);
        };
        let this = self.clone();
        let swept = self.tasks.spawn(async move {
            let _turn = turn;
            this.sweep_in_turn(&order).await
        });
        swept.await.map_err(|_| SweepError::Ending)?
    }

    /// The same, and cut off where it is when it is dropped.
    async fn sweep_in_turn(&self, order: &Order) -> Result<Swept, SweepError> {
        let began = (self.clock)();
        let mut swept = Swept::default();
        let mut ids = Vec::new();
        let mut ended = Ok(());
        for level in (0..DELAY_LEVELS).rev() {
            ended = self.sweep_level(level, order, &mut swept, &mut ids).await;
            if ended.is_err() {
                break;
            }
        }
        if let Which::Ids(wanted) = &order.which {
            let found: BTreeSet<MessageId> = ids.iter().copied().collect();
            swept.not_found = wanted.difference(&found).copied().collect();
        }
        let moved = swept.moved;
        for some in ids.chunks(NOTES_AT_ONCE) {
            self.store
                .forget_waiting(&order.flow, some.to_vec(), began)
                .await
                .map_err(|source| SweepError::Store { moved, source })?;
        }
        ended.map_err(|source| SweepError::Broker { moved, source })?;
        tracing::info!(
            flow = order.flow,
            fate = ?order.fate,
            moved,
            held_back = swept.held_back,
            not_found = swept.not_found.len(),
            "swept the delay ladder"
        );
        Ok(swept)
    }

    /// Takes what a level holds now.
    async fn sweep_level(
        &self,
        level: usize,
        order: &Order,
        swept: &mut Swept,
        ids: &mut Vec<MessageId>,
    ) -> Result<(), BrokerError> {
        let queue = self.names.delay(level);
        let mut left = self.ready(&queue).await?;
        if left == 0 {
            return Ok(());
        }
        let (mut empty, mut stuck) = (0, 0);
        let window = u16::try_from(left).unwrap_or(WINDOW).min(WINDOW);
        let mut deliveries = self.broker.consume(&queue, window).await;
        let mut in_hand = FuturesUnordered::new();
        let mut ended = Ok(());
        loop {
            let is_more = left > 0 && ended.is_ok();
            if !is_more && in_hand.is_empty() {
                // What was delivered beyond that goes back by itself.
                return ended;
            }
            // Cancel-safe: `recv` and `next` lose nothing. A delivery that is dropped is given back.
            tokio::select! {
                delivery = timeout(SILENCE, deliveries.recv()), if is_more && in_hand.len() < usize::from(WINDOW) => {
                    match delivery {
                        Ok(Some(delivery)) => {
                            left -= 1;
                            (empty, stuck) = (0, 0);
                            in_hand.push(self.handle(level, order, delivery));
                        }
                        Ok(None) => ended = Err(BrokerError::Unreachable("the deliveries ended".into())),
                        Err(_) => match self.ready(&queue).await {
                            Ok(0) if empty < EMPTY => empty += 1,
                            Ok(0) => left = 0,
                            Ok(_) if stuck < STUCK => stuck += 1,
                            Ok(_) => ended = Err(BrokerError::Unreachable("it does not deliver".into())),
                            Err(error) => ended = Err(error),
                        },
                    }
                }
                Some(handled) = in_hand.next() => match handled {
                    Ok(Handled { ids: found, moved, held_back }) => {
                        swept.moved += moved;
                        swept.held_back += held_back;
                        ids.extend(found);
                    }
                    Err(error) => ended = Err(error),
                },
            }
        }
    }

    async fn ready(&self, queue: &str) -> Result<u64, BrokerError> {
        let depths = self.broker.depths(&[queue.to_owned()]).await?;
        Ok(depths.get(queue).map_or(0, |depth| depth.ready))
    }

    /// Moves what is wanted of a delivery, puts back the rest, then acknowledges it.
    async fn handle(
        &self,
        level: usize,
        order: &Order,
        delivery: Delivery,
    ) -> Result<Handled, BrokerError> {
        let now = (self.clock)();
        let due = due(&delivery, level, now);
        let (flow, step) = addressee(&delivery.key);
        let Sorted {
            taken,
            ids,
            mut kept,
        } = sort(order, flow, step, &delivery.body);
        let mut handled = Handled::default();
        if !taken.is_empty() {
            let publication = match order.fate {
                Fate::Now => Self::batch(self.names.steps(), Names::step_key(flow, step), &taken),
                Fate::Cancel => Publication {
                    exchange: self.names.dead(),
                    key: Names::step_key(flow, step),
                    kind: DEAD_TYPE,
                    body: self.letters(flow, step, &taken, now).into(),
                    count: count(&taken),
                },
            };
            match self.insist(publication, None).await {
                Ok(()) => {
                    handled.moved = taken.len() as u64;
                    handled.ids = ids;
                }
                // Its time comes as it would have, and there may be room by then.
                Err(BrokerError::Full { .. }) => {
                    handled.held_back = taken.len() as u64;
                    kept.extend(taken);
                }
                Err(error) => return Err(error),
            }
        }
        if !kept.is_empty() {
            self.put_back(flow, step, &kept, due).await?;
        }
        if delivery.settle.send(true).is_err() {
            tracing::debug!("a delivery came from a connection that is gone, and will come again");
        }
        Ok(handled)
    }

    /// Puts messages back for what is left of their delay.
    async fn put_back(
        &self,
        flow: &str,
        step: &str,
        kept: &[&[u8]],
        due: u64,
    ) -> Result<(), BrokerError> {
        let back = |delay| {
            let (exchange, key) = self.names.delayed(delay, flow, step);
            Self::batch(exchange, key, kept)
        };
        let delay = Duration::from_millis(due.saturating_sub((self.clock)()));
        match self.insist(back(delay), Some(due)).await {
            // The queue of its step is full: it waits where it waited.
            Err(BrokerError::Full { .. }) if delay.is_zero() => {
                self.insist(back(Duration::from_millis(DELAY_UNIT_MS)), Some(due))
                    .await
            }
            done => done,
        }
    }

    fn batch(exchange: String, key: String, lines: &[&[u8]]) -> Publication {
        let mut body = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
        for line in lines {
            body.extend_from_slice(line);
            body.push(b'\n');
        }
        Publication {
            exchange,
            key,
            kind: BATCH_TYPE,
            body: body.into(),
            count: count(lines),
        }
    }

    fn letters(&self, flow: &str, step: &str, lines: &[&[u8]], now: u64) -> Vec<u8> {
        let mut body = Vec::new();
        for line in lines {
            let letter = cancelled(&self.names.instance, flow, step, line, now);
            serde_json::to_writer(&mut body, &letter).expect("a dead letter is JSON");
            body.push(b'\n');
        }
        body
    }

    /// Publishes, and tries again if it is not known whether that worked.
    async fn insist(&self, publication: Publication, due: Option<u64>) -> Result<(), BrokerError> {
        let publish = |publication| async move {
            match due {
                Some(due) => self.broker.publish_due(publication, due).await,
                None => self.broker.publish(publication).await,
            }
        };
        let mut wait = TRY_AGAIN;
        for _ in 1..TRIES {
            match publish(publication.clone()).await {
                Ok(()) => return Ok(()),
                Err(error @ BrokerError::Full { .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(error = %chain(&error), "the sweep publishes again");
                }
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        publish(publication).await
    }
}

fn count(lines: &[&[u8]]) -> u32 {
    u32::try_from(lines.len()).unwrap_or(u32::MAX)
}

/// The flow and the step that a delivery of the ladder goes to: the last words of its key.
fn addressee(key: &str) -> (&str, &str) {
    let mut words = key.rsplit('.');
    let step = words.next().unwrap_or_default();
    (words.next().unwrap_or_default(), step)
}

/// When a delivery that was found in a level is due, in milliseconds since 1970. Without a header
/// that says so, as if it had just come to this level: later than it should, never earlier.
fn due(delivery: &Delivery, level: usize, now: u64) -> u64 {
    delivery.due.unwrap_or_else(|| {
        let ahead = (1 << (level + 1)) - 1;
        let units = delay_units(&delivery.key).unwrap_or(0) & ahead;
        now + u64::from(units) * DELAY_UNIT_MS
    })
}

/// Says which lines of a delivery are wanted.
fn sort<'a>(order: &Order, flow: &str, step: &str, body: &'a [u8]) -> Sorted<'a> {
    let mut sorted = Sorted {
        taken: Vec::new(),
        ids: Vec::new(),
        kept: Vec::new(),
    };
    let lines = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    let is_of_flow = order.flow == flow;
    for line in lines {
        let id = serde_json::from_slice::<Named>(line).ok().map(|it| it.id);
        let is_wanted = is_of_flow
            && match &order.which {
                Which::All => true,
                Which::Step(wanted) => wanted == step,
                Which::Ids(wanted) => id.is_some_and(|id| wanted.contains(&id)),
            };
        if is_wanted {
            sorted.taken.push(line);
            sorted.ids.extend(id);
        } else {
            sorted.kept.push(line);
        }
    }
    sorted
}

/// As much of a message as is needed to know it.
#[derive(serde::Deserialize)]
struct Named {
    id: MessageId,
}

fn cancelled(instance: &str, flow: &str, step: &str, line: &[u8], now: u64) -> DeadLetter {
    let text = String::from_utf8_lossy(line);
    let message = serde_json::from_str::<Message<'_>>(&text).ok();
    let attempt = message.as_ref().map_or(1, |message| message.attempt);
    let attempts = message.map_or_else(Vec::new, |message| message.history);
    let raw = RawValue::from_string(text.trim().to_owned()).unwrap_or_else(|_| {
        let text = serde_json::to_string(&text).expect("a string is JSON");
        RawValue::from_string(text).expect("it was just written as JSON")
    });
    DeadLetter {
        identity: Identity {
            instance: instance.to_owned(),
            flow: flow.to_owned(),
            step: step.to_owned(),
            replica: 0,
            spec: String::new(),
        },
        at: now,
        cause: DeadCause::Cancelled,
        reason: format!("cancelled by an operator while it waited for attempt {attempt}"),
        chain: Vec::new(),
        attempts,
        message: raw,
    }
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;

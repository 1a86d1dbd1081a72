//! Publishes what comes in, in batches that grow by themselves: one request alone is sent at once,
//! and while it waits for its confirm, those behind it gather. Requests that have a name are
//! remembered after the confirm and before the answer; the runs of requests that wait for an answer
//! begin before.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use towpath_protocol::MessageId;

use super::turns::Turn;
use super::{IngressError, WAITING_MAX};
use crate::broker::{Broker, BrokerError, Publication};
use crate::engine::chain;
use crate::schedule::Clock;
use crate::store::tracking::RequestRun;
use crate::store::{Store, StoreError};

/// The most messages in one batch: a slow step that follows wants its replicas to share the work.
const BATCH_MESSAGES_MAX: usize = 32;

/// The most bytes in one batch, unless one message alone is larger.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// The most batches of one flow that wait for their confirms: enough that the broker never waits
/// for us.
const IN_FLIGHT_MAX: usize = 4;

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) exchange: String,
    pub(super) key: String,
    /// What is published by it: messages or dead letters.
    pub(super) kind: &'static str,
}

type Outcome = oneshot::Sender<Result<(), IngressError>>;

/// A message to publish.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) route: Route,
    pub(super) flow: String,
    pub(super) id: MessageId,
    pub(super) line: String,
    /// The turn of a request that has a name: such a one is remembered.
    pub(super) turn: Option<Turn>,
    /// The run of a request that waits for what comes of it: it begins before anybody can take the
    /// message.
    pub(super) run: Option<Arc<RequestRun>>,
    pub(super) outcome: Outcome,
}

/// The task behind an [`super::Ingress`].
pub struct Worker {
    items: mpsc::Receiver<Item>,
    memory: Memory,
}

/// Where answered requests are remembered.
#[derive(Clone)]
struct Memory {
    store: Store,
    clock: Clock,
}

/// What waits for one route.
#[derive(Default)]
struct Waiting {
    items: Vec<Item>,
    in_flight: usize,
}

type InFlight = FuturesUnordered<BoxFuture<'static, Route>>;

impl Worker {
    pub(super) fn new(items: mpsc::Receiver<Item>, store: Store, clock: Clock) -> Self {
        Self {
            items,
            memory: Memory { store, clock },
        }
    }

    /// Publishes until `shutdown`; what was taken before is still published.
    pub async fn run(mut self, broker: Arc<dyn Broker>, shutdown: CancellationToken) {
        let mut waiting: HashMap<Route, Waiting> = HashMap::new();
        let mut in_flight = InFlight::new();
        let mut stopping = false;
        loop {
            let count: usize = waiting.values().map(|waiting| waiting.items.len()).sum();
            // Cancel-safe: `recv` and `next` lose nothing, a token only waits.
            let route = tokio::select! {
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    self.items.close();
                    continue;
                }
                Some(route) = in_flight.next() => {
                    waiting.entry(route.clone()).or_default().in_flight -= 1;
                    route
                }
                Some(item) = self.items.recv(), if count < WAITING_MAX => {
                    let route = item.route.clone();
                    waiting.entry(route.clone()).or_default().items.push(item);
                    route
                }
                else => return,
            };
            let of_route = waiting.entry(route.clone()).or_default();
            while of_route.in_flight < IN_FLIGHT_MAX && !of_route.items.is_empty() {
                of_route.in_flight += 1;
                in_flight.push(publish(
                    Arc::clone(&broker),
                    self.memory.clone(),
                    route.clone(),
                    of_route.batch(),
                ));
            }
            if of_route.in_flight == 0 {
                waiting.remove(&route);
            }
        }
    }
}

impl Waiting {
    /// Takes the next batch out.
    fn batch(&mut self) -> Vec<Item> {
        let mut bytes = 0;
        let fits = |item: &&Item| {
            bytes += item.line.len() + 1;
            bytes <= BATCH_BYTES_MAX
        };
        let count = self
            .items
            .iter()
            .take(BATCH_MESSAGES_MAX)
            .take_while(fits)
            .count()
            .max(1);
        self.items.drain(..count.min(self.items.len())).collect()
    }
}

impl Memory {
    /// Begins the runs of those of a batch that wait for what comes of them. Returns those that were
    /// not there.
    async fn begin(&self, batch: &[Item]) -> Result<Vec<MessageId>, StoreError> {
        let runs: Vec<_> = batch.iter().filter_map(|item| item.run.clone()).collect();
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        self.store.begin_requests(runs, (self.clock)()).await
    }

    /// Takes back what [`Memory::begin`] began.
    async fn take_back(&self, begun: Vec<MessageId>) {
        if begun.is_empty() {
            return;
        }
        if let Err(error) = self.store.take_back_requests(begun).await {
            // They say after a while that their messages are nowhere.
            tracing::warn!("cannot take back the runs of requests: {}", chain(&error));
        }
    }

    /// Remembers those of a batch, which is of one flow, that have names.
    async fn remember(&self, batch: &[Item]) {
        let named = batch.iter().filter(|item| item.turn.is_some());
        let named: Vec<MessageId> = named.map(|item| item.id).collect();
        let Some(first) = batch.first().filter(|_| !named.is_empty()) else {
            return;
        };
        let now = (self.clock)();
        if let Err(error) = self.store.remember_answered(&first.flow, named, now).await {
            // The messages are in the queue, and so the answers are right; repeated, the same
            // messages would be there a second time, with the same ids.
            tracing::warn!(
                flow = first.flow,
                "cannot remember answered requests: {}",
                chain(&error)
            );
        }
    }
}

fn publish(
    broker: Arc<dyn Broker>,
    memory: Memory,
    route: Route,
    batch: Vec<Item>,
) -> BoxFuture<'static, Route> {
    Box::pin(async move {
        let begun = match memory.begin(&batch).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::warn!("cannot begin the runs of requests: {}", chain(&error));
                for item in batch {
                    answer(item, Err(IngressError::Unavailable(None)));
                }
                return route;
            }
        };
        let lines: Vec<&str> = batch.iter().map(|item| item.line.as_str()).collect();
        let publication = Publication {
            exchange: route.exchange.clone(),
            key: route.key.clone(),
            kind: route.kind,
            count: u32::try_from(lines.len()).unwrap_or(u32::MAX),
            body: lines.join("\n").into(),
        };
        let mut failed = broker.publish(publication).await.err();
        let is_full = matches!(failed, Some(BrokerError::Full { .. }));
        let is_ok = failed.is_none();
        if is_ok {
            memory.remember(&batch).await;
        } else {
            memory.take_back(begun).await;
        }
        for item in batch {
            let outcome = if is_ok {
                Ok(())
            } else if is_full {
                Err(IngressError::Full)
            } else {
                // The first gets the cause; the log of the broker's own loop has it too.
                Err(IngressError::Unavailable(failed.take()))
            };
            answer(item, outcome);
        }
        route
    })
}

fn answer(item: Item, outcome: Result<(), IngressError>) {
    if item.outcome.send(outcome).is_err() {
        tracing::debug!("a sender left before its webhook was confirmed");
    }
}

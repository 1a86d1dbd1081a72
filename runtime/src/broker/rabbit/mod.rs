//! RabbitMQ.
//!
//! # Invariants
//!
//! - Only this folder names `lapin`.
//! - One task owns the publishing channel: several would mix up each other's confirms.
//! - Publishing has a connection of its own: when the broker blocks it, acknowledgements still go out.
//! - Any trouble drops the channel or the connection and starts again, for ever, with a back-off.
//! - Nothing is decided by what the broker returns as unroutable: alternate exchanges make the case
//!   impossible.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::uri::AMQPUri;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::topology::{
    Declaration, FlowTopology, STEP_QUEUE_DELIVERIES_MAX, Topology, declarations_bounded,
    stale_bindings,
};
use super::{Broker, BrokerError, Delivery, Depth, Publication};
use crate::store::now_ms;
use link::{Link, LinkState};
use publisher::{Outgoing, Publisher};

mod admin;
mod consumer;
mod link;
mod publisher;

/// How long one answer of the broker to anything but a publish may take. It answers in
/// milliseconds, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for a connection that is just being made again, before it says that the
/// broker cannot be reached. Short, because a webhook's caller waits too.
const CONNECT_GRACE: Duration = Duration::from_secs(2);

/// How often everything is declared again although nothing is known to be wrong: that long a queue
/// that someone deleted by hand may be gone.
pub const RESYNC: Duration = Duration::from_secs(30);

/// RabbitMQ. Clones share the connections.
#[derive(Clone)]
pub struct Rabbit {
    inner: Arc<Inner>,
    /// The most deliveries in a step's queue.
    step_deliveries_max: u64,
}

struct Inner {
    publisher: Publisher,
    consuming: Link,
    wanted: Mutex<Vec<Declaration>>,
    /// Only one declares at a time.
    declaring: tokio::sync::Mutex<()>,
    declare_again: Arc<Notify>,
    queues: Mutex<Queues>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What is known of queues.
#[derive(Default)]
struct Queues {
    /// Those that were there.
    declared: BTreeSet<String>,
    /// Those that were gone then, and when they were made again.
    remade: BTreeMap<String, u64>,
}

impl Inner {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares all of these. A queue that was there before and is not is one that somebody else
    /// deleted.
    async fn declare(
        &self,
        connection: &lapin::Connection,
        wanted: &[Declaration],
    ) -> Result<(), BrokerError> {
        let names = |declaration: &Declaration| match declaration {
            Declaration::Queue(queue) => Some(queue.name.clone()),
            Declaration::Exchange(_) | Declaration::Binding(_) => None,
        };
        let wanted_queues: Vec<String> = wanted.iter().filter_map(names).collect();
        let known: Vec<String> = {
            let queues = self.queues();
            let known = |name: &&String| queues.declared.contains(*name);
            wanted_queues.iter().filter(known).cloned().collect()
        };
        let there = admin::depths(connection, &known).await?;
        admin::declare(connection, wanted).await?;
        let mut queues = self.queues();
        queues.declared.extend(wanted_queues);
        for queue in known.into_iter().filter(|name| !there.contains_key(name)) {
            tracing::error!(
                queue,
                "a queue was gone from the broker and was made again: what was in it is lost"
            );
            queues.remade.insert(queue, now_ms());
        }
        Ok(())
    }
}

impl fmt::Debug for Rabbit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rabbit").finish_non_exhaustive()
    }
}

impl Rabbit {
    /// Begins to connect to `amqp://user:password@host:port/vhost`, and goes on until `shutdown`.
    /// Whether the broker is there now makes no difference; only an unusable URL is an error, and
    /// the error does not repeat the URL, which holds a password.
    pub fn start(url: &str, shutdown: CancellationToken) -> Result<Self, BrokerError> {
        Self::start_with(url, RESYNC, shutdown)
    }

    /// The same, with another time between two declarations.
    pub fn start_with(
        url: &str,
        resync: Duration,
        shutdown: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let mut uri: AMQPUri = url.parse().map_err(|reason: String| BrokerError::Refused {
            what: "be found: its URL must look like `amqp://user:password@host:5672/vhost`".into(),
            source: reason.into(),
        })?;
        // 128 KiB is the broker's own default; left open, the client keeps buffers that are larger.
        uri.query.frame_max.get_or_insert(128 << 10);
        uri.query.heartbeat.get_or_insert(20);
        let tasks = TaskTracker::new();
        let publishing = Link::start("towpath publisher", uri.clone(), &shutdown, &tasks);
        let consuming = Link::start("towpath consumer", uri, &shutdown, &tasks);
        let declare_again = Arc::new(Notify::new());
        let publisher = Publisher::start(publishing, Arc::clone(&declare_again), &shutdown, &tasks);
        let inner = Arc::new(Inner {
            publisher,
            consuming,
            wanted: Mutex::default(),
            declaring: tokio::sync::Mutex::default(),
            declare_again,
            queues: Mutex::default(),
            shutdown,
            tasks: tasks.clone(),
        });
        tasks.spawn(keep_declared(Arc::clone(&inner), resync));
        Ok(Self {
            inner,
            step_deliveries_max: STEP_QUEUE_DELIVERIES_MAX,
        })
    }

    /// Gives the queues of steps another bound. A queue that is there with another one stays as it
    /// is, and declaring it is refused.
    #[must_use]
    pub fn with_step_deliveries_max(self, step_deliveries_max: u64) -> Self {
        Self {
            step_deliveries_max,
            ..self
        }
    }

    /// Waits until everything has ended, after the `shutdown` that was given at the start.
    pub async fn closed(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Declares exactly these things, and forgets what it was to keep declared before.
    pub async fn declare_all(&self, wanted: Vec<Declaration>) -> Result<(), BrokerError> {
        self.inner
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&wanted);
        let connection = self.inner.consuming.up(CONNECT_GRACE).await?;
        let _one_at_a_time = self.inner.declaring.lock().await;
        self.inner.declare(&connection, &wanted).await
    }
}

/// Declares everything again: after every new connection, when something turned out to be missing,
/// and now and then.
async fn keep_declared(inner: Arc<Inner>, resync: Duration) {
    let mut state = inner.consuming.state();
    let mut warned = false;
    loop {
        // Cancel-safe: all three only wait.
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = inner.declare_again.notified() => {
                // Whoever found something missing tries again soon, and says so again if need be.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            changed = tokio::time::timeout(resync, state.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
            }
        }
        let LinkState::Up(connection) = state.borrow_and_update().clone() else {
            continue;
        };
        // First the turn, then the list: what is deleted meanwhile must not come back.
        let _one_at_a_time = inner.declaring.lock().await;
        let wanted = inner
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if wanted.is_empty() {
            continue;
        }
        // Cancel-safe: what is half declared is declared again after the next start.
        let declared = tokio::select! {
            () = inner.shutdown.cancelled() => return,
            declared = inner.declare(&connection, &wanted) => declared,
        };
        match declared {
            Ok(()) if warned => {
                tracing::info!("the queues on the broker are as they should be again");
                warned = false;
            }
            Ok(()) => {}
            Err(error) if !warned => {
                tracing::warn!(error = %crate::engine::chain(&error), "cannot declare the queues again; trying on");
                warned = true;
            }
            Err(error) => {
                tracing::debug!(error = %crate::engine::chain(&error), "cannot declare the queues");
            }
        }
    }
}

#[async_trait]
impl Broker for Rabbit {
    async fn is_up(&self) -> bool {
        self.inner.publisher.is_up() && self.inner.consuming.is_up()
    }

    async fn trouble(&self) -> Option<String> {
        let links = [self.inner.publisher.link(), &self.inner.consuming];
        links.into_iter().find_map(Link::trouble)
    }

    fn remade(&self) -> BTreeMap<String, u64> {
        self.inner.queues().remade.clone()
    }

    async fn declare(
        &self,
        topology: &Topology,
        former: &[FlowTopology],
    ) -> Result<(), BrokerError> {
        let wanted = declarations_bounded(topology, self.step_deliveries_max);
        self.declare_all(wanted).await?;
        let stale = stale_bindings(topology, former);
        if stale.is_empty() {
            return Ok(());
        }
        let connection = self.inner.consuming.up(CONNECT_GRACE).await?;
        let _one_at_a_time = self.inner.declaring.lock().await;
        admin::unbind(&connection, &stale).await
    }

    async fn publish(&self, publication: Publication) -> Result<(), BrokerError> {
        self.inner
            .publisher
            .publish(Outgoing::Batch(publication, None))
            .await
    }

    async fn publish_due(&self, publication: Publication, due: u64) -> Result<(), BrokerError> {
        self.inner
            .publisher
            .publish(Outgoing::Batch(publication, Some(due)))
            .await
    }

    async fn depths(&self, queues: &[String]) -> Result<BTreeMap<String, Depth>, BrokerError> {
        let connection = self.inner.consuming.up(CONNECT_GRACE).await?;
        let depths = admin::depths(&connection, queues).await?;
        if depths.len() < queues.len() {
            self.inner.declare_again.notify_one();
        }
        Ok(depths)
    }

    async fn delete_queue(&self, queue: &str, even_if_full: bool) -> Result<(), BrokerError> {
        self.forget(|declaration| match declaration {
            Declaration::Queue(found) => found.name == queue,
            Declaration::Binding(found) => {
                matches!(&found.destination, super::topology::Destination::Queue(name) if name == queue)
            }
            Declaration::Exchange(_) => false,
        });
        let connection = self.inner.consuming.up(CONNECT_GRACE).await?;
        let _one_at_a_time = self.inner.declaring.lock().await;
        admin::delete_queue(&connection, queue, even_if_full).await?;
        let mut queues = self.inner.queues();
        queues.declared.remove(queue);
        queues.remade.remove(queue);
        Ok(())
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        self.forget(|declaration| match declaration {
            Declaration::Exchange(found) => found.name == exchange,
            Declaration::Binding(found) => found.source == exchange,
            Declaration::Queue(_) => false,
        });
        let connection = self.inner.consuming.up(CONNECT_GRACE).await?;
        let _one_at_a_time = self.inner.declaring.lock().await;
        admin::delete_exchange(&connection, exchange).await
    }

    async fn consume(&self, queue: &str, window: u16) -> mpsc::Receiver<Delivery> {
        let (sender, receiver) = mpsc::channel(usize::from(window.max(1)));
        let consumer = consumer::Consumer {
            link: self.inner.consuming.clone(),
            queue: queue.to_owned(),
            window: window.max(1),
            sender,
            declare_again: Arc::clone(&self.inner.declare_again),
            shutdown: self.inner.shutdown.clone(),
        };
        self.inner.tasks.spawn(consumer.run());
        receiver
    }

    async fn reply(
        &self,
        reply_to: &str,
        correlation: &str,
        body: Bytes,
    ) -> Result<(), BrokerError> {
        let answer = Outgoing::Answer {
            reply_to: reply_to.to_owned(),
            correlation: correlation.to_owned(),
            body,
        };
        self.inner.publisher.publish(answer).await
    }
}

impl Rabbit {
    /// What is deleted on purpose is not to come back by itself.
    fn forget(&self, gone: impl Fn(&Declaration) -> bool) {
        let mut wanted = self
            .inner
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        wanted.retain(|declaration| !gone(declaration));
    }
}

/// Waits for an answer of the broker, not for ever.
async fn answered<T>(
    what: impl FnOnce() -> String,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(broker_error(what, error)),
        Err(_) => Err(BrokerError::Unreachable(
            format!("it did not {} within {ANSWER_TIMEOUT:?}", what()).into(),
        )),
    }
}

/// A refusal of the broker is one; everything else means that it cannot be reached now.
fn broker_error(what: impl FnOnce() -> String, error: lapin::Error) -> BrokerError {
    if error.is_amqp_soft_error() {
        BrokerError::Refused {
            what: what(),
            source: Box::new(error),
        }
    } else {
        BrokerError::Unreachable(Box::new(error))
    }
}

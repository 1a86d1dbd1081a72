//! The one task that publishes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use towpath_protocol::message::{BATCH_CONTENT_TYPE, BATCH_COUNT_HEADER, DUE_HEADER};

use super::link::{Link, LinkState};
use super::{ANSWER_TIMEOUT, CONNECT_GRACE, broker_error};
use crate::broker::{BrokerError, Publication};

/// How long a confirm may take: a quorum queue that is just electing a leader takes some seconds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);

/// The most publishes without a confirm. Ticks, webhooks and replays come one by one: enough to
/// share the broker's disk syncs, few enough to settle at once when the connection goes.
const WINDOW: usize = 256;

/// The AMQP delivery mode of what is written to disk.
const PERSISTENT: u8 = 2;

/// Hands what is published to the task that owns the channel.
#[derive(Clone)]
pub(super) struct Publisher {
    link: Link,
    requests: mpsc::Sender<Request>,
}

/// What is published.
pub(super) enum Outgoing {
    /// A batch for a queue; and when it is due, if not after the delay in its key.
    Batch(Publication, Option<u64>),
    /// An answer over direct reply-to, which is only reached through the default exchange; who
    /// asked and is gone does not miss it.
    Answer {
        /// Where.
        reply_to: String,
        /// To which question.
        correlation: String,
        /// What.
        body: Bytes,
    },
}

struct Request {
    outgoing: Outgoing,
    outcome: oneshot::Sender<Result<(), BrokerError>>,
}

/// A confirm on its way; yields whether the channel is still of use.
type Pending = FuturesUnordered<BoxFuture<'static, bool>>;

impl Publisher {
    pub(super) fn start(
        link: Link,
        declare_again: Arc<Notify>,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (sender, requests) = mpsc::channel(WINDOW);
        let task = Task {
            state: link.state(),
            requests,
            declare_again,
            shutdown: shutdown.clone(),
        };
        tasks.spawn(task.run());
        Self {
            link,
            requests: sender,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.link.is_up()
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Publishes and waits for the confirm. Only [`BrokerError::Full`] says that it was not taken;
    /// after any other error it may have been.
    pub(super) async fn publish(&self, outgoing: Outgoing) -> Result<(), BrokerError> {
        self.link.up(CONNECT_GRACE).await?;
        let (outcome, answer) = oneshot::channel();
        let send = self
            .requests
            .send_timeout(Request { outgoing, outcome }, CONFIRM_TIMEOUT);
        send.await.map_err(|_| BrokerError::TimedOut)?;
        match timeout(CONFIRM_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(BrokerError::TimedOut),
        }
    }
}

struct Task {
    state: watch::Receiver<LinkState>,
    requests: mpsc::Receiver<Request>,
    declare_again: Arc<Notify>,
    shutdown: CancellationToken,
}

impl Task {
    async fn run(mut self) {
        loop {
            let state = self.state.borrow_and_update().clone();
            if let LinkState::Up(connection) = state {
                match open(&connection).await {
                    Ok(channel) => self.serve(&channel).await,
                    Err(error) => {
                        tracing::debug!(error = %crate::engine::chain(&error), "no channel to publish on");
                        tokio::time::sleep(super::link::backoff(1)).await;
                    }
                }
                if self.shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            // Cancel-safe: `recv` loses nothing, the others only wait.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                request = self.requests.recv() => match request {
                    None => return,
                    Some(request) => request.answer(Err(BrokerError::Unreachable("the connection was lost".into()))),
                },
            }
        }
    }

    /// Publishes on one channel until it, or the connection, is of no use any more.
    async fn serve(&mut self, channel: &Channel) {
        let mut pending = Pending::new();
        loop {
            // Cancel-safe: `recv` and `next` lose nothing, the others only wait.
            let usable = tokio::select! {
                () = self.shutdown.cancelled() => false,
                changed = self.state.changed() => {
                    changed.is_ok() && !matches!(*self.state.borrow_and_update(), LinkState::Down(_))
                }
                Some(usable) = pending.next() => usable,
                request = self.requests.recv(), if pending.len() < WINDOW => match request {
                    None => false,
                    Some(request) => self.publish(channel, request, &mut pending).await,
                },
            };
            if !usable {
                break;
            }
        }
        // No confirm is dropped: each gets its answer, which is an error at once if the channel is
        // gone, and what the broker says if we are stopping.
        while pending.next().await.is_some() {}
    }

    async fn publish(&self, channel: &Channel, request: Request, pending: &mut Pending) -> bool {
        let Request { outgoing, outcome } = request;
        let (exchange, key, body, properties) = match outgoing {
            Outgoing::Batch(batch, due) => {
                let properties = batch_properties(&batch, due);
                (batch.exchange, batch.key, batch.body, properties)
            }
            Outgoing::Answer {
                reply_to,
                correlation,
                body,
            } => {
                let properties = BasicProperties::default()
                    .with_content_type("application/json".into())
                    .with_correlation_id(short(&correlation));
                (String::new(), reply_to, body, properties)
            }
        };
        let publish = channel.basic_publish(
            short(&exchange),
            short(&key),
            BasicPublishOptions::default(),
            &body,
            properties,
        );
        let confirm = match publish.await {
            Ok(confirm) => confirm,
            Err(error) => {
                let failed = Err(BrokerError::Unreachable(Box::new(error)));
                Request::answer_to(outcome, failed);
                return false;
            }
        };
        let declare_again = Arc::clone(&self.declare_again);
        pending.push(Box::pin(async move {
            let (answer, usable) = match timeout(CONFIRM_TIMEOUT, confirm).await {
                Ok(Ok(Confirmation::Nack(_))) => (Err(BrokerError::Full { key }), true),
                Ok(Ok(_)) => (Ok(()), true),
                Ok(Err(error)) => {
                    // The exchange is gone: publishing to it closed the channel.
                    declare_again.notify_one();
                    (
                        Err(broker_error(
                            || format!("take a message for exchange `{exchange}`"),
                            error,
                        )),
                        false,
                    )
                }
                Err(_) => (Err(BrokerError::TimedOut), false),
            };
            Request::answer_to(outcome, answer);
            usable
        }));
        true
    }
}

impl Request {
    fn answer(self, outcome: Result<(), BrokerError>) {
        Self::answer_to(self.outcome, outcome);
    }

    fn answer_to(
        sender: oneshot::Sender<Result<(), BrokerError>>,
        outcome: Result<(), BrokerError>,
    ) {
        if sender.send(outcome).is_err() {
            tracing::debug!("nobody waits for this confirm any more");
        }
    }
}

async fn open(connection: &Connection) -> Result<Channel, BrokerError> {
    let open = async {
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    };
    match timeout(ANSWER_TIMEOUT, open).await {
        Ok(channel) => channel.map_err(|error| broker_error(|| "open a channel".into(), error)),
        Err(_) => Err(BrokerError::TimedOut),
    }
}

fn batch_properties(batch: &Publication, due: Option<u64>) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(
        BATCH_COUNT_HEADER.into(),
        AMQPValue::LongLongInt(i64::from(batch.count)),
    );
    if let Some(due) = due.or_else(|| batch.due(crate::store::now_ms())) {
        let due = i64::try_from(due).unwrap_or(i64::MAX);
        headers.insert(DUE_HEADER.into(), AMQPValue::LongLongInt(due));
    }
    BasicProperties::default()
        .with_type(batch.kind.into())
        .with_content_type(BATCH_CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers)
}

/// Names are bounded by the flow file, so they fit; what does not fit names nothing that exists.
fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_else(|_| "too.long".into())
}

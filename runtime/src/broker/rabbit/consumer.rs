//! A consumer that is made again, for ever.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery as Raw;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, Connection};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use towpath_protocol::message::DUE_HEADER;

use super::link::{Link, LinkState, backoff};
use super::{ANSWER_TIMEOUT, answered};
use crate::broker::{BrokerError, Delivery};

pub(super) struct Consumer {
    pub(super) link: Link,
    pub(super) queue: String,
    pub(super) window: u16,
    pub(super) sender: mpsc::Sender<Delivery>,
    pub(super) declare_again: Arc<Notify>,
    pub(super) shutdown: CancellationToken,
}

impl Consumer {
    pub(super) async fn run(self) {
        let mut state = self.link.state();
        let mut failures = 0;
        loop {
            let current = state.borrow_and_update().clone();
            if let LinkState::Up(connection) = current {
                // Cancel-safe: what was delivered and not settled is delivered again.
                let ended = tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    ended = self.consume(&connection, &mut failures) => ended,
                };
                let Err(ended) = ended else {
                    return;
                };
                tracing::debug!(queue = self.queue, error = %crate::engine::chain(&ended), "consuming again soon");
                if matches!(ended, BrokerError::Refused { .. }) {
                    self.declare_again.notify_one();
                }
            } else {
                // Cancel-safe: all of them only wait.
                tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    () = self.sender.closed() => return,
                    changed = state.changed() => if changed.is_err() { return },
                }
                continue;
            }
            // Cancel-safe: all of them only wait.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.sender.closed() => return,
                () = tokio::time::sleep(backoff(failures)) => failures += 1,
            }
        }
    }

    /// Consumes on one channel until something goes wrong, and says what, or until nobody takes
    /// deliveries any more; then what was settled is said to the broker first.
    async fn consume(
        &self,
        connection: &Connection,
        failures: &mut u32,
    ) -> Result<(), BrokerError> {
        let what = || format!("deliver from `{}`", self.queue);
        let channel = answered(what, connection.create_channel()).await?;
        answered(
            what,
            channel.basic_qos(self.window, BasicQosOptions::default()),
        )
        .await?;
        let consume = channel.basic_consume(
            self.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut deliveries = answered(what, consume).await?;
        let mut unsettled = FuturesUnordered::new();
        loop {
            // Cancel-safe: a stream's `next` loses nothing.
            tokio::select! {
                delivery = deliveries.next() => {
                    let gone = || BrokerError::Refused { what: what(), source: "the consumer was cancelled: the queue is gone or moves".into() };
                    let delivery = delivery.ok_or_else(gone)?;
                    let delivery = delivery.map_err(|error| super::broker_error(what, error))?;
                    *failures = 0;
                    unsettled.push(self.hand_over(delivery)?);
                }
                Some((acker, acknowledge)) = unsettled.next() => {
                    answered(what, settle(&acker, acknowledge)).await?;
                }
                () = self.sender.closed() => break,
            }
        }
        // What was not taken is dropped without a word, and so given back. Whoever has one in hand
        // still has some time.
        let rest = async {
            while let Some((acker, acknowledge)) = unsettled.next().await {
                answered(what, settle(&acker, acknowledge)).await?;
            }
            answered(what, channel.close(200, "done".into())).await
        };
        match timeout(ANSWER_TIMEOUT, rest).await {
            Ok(closed) => closed,
            Err(_) => Ok(()),
        }
    }

    /// Hands a delivery over; the returned future yields what is to become of it.
    fn hand_over(
        &self,
        raw: Raw,
    ) -> Result<impl Future<Output = (Acker, bool)> + use<>, BrokerError> {
        let (settle, settled) = oneshot::channel();
        let text = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
        let properties = &raw.properties;
        let delivery = Delivery {
            kind: text(properties.kind()).unwrap_or_default(),
            key: raw.routing_key.to_string(),
            exchange: raw.exchange.to_string(),
            reply: text(properties.reply_to()).map(|reply_to| {
                (
                    reply_to,
                    text(properties.correlation_id()).unwrap_or_default(),
                )
            }),
            is_redelivered: raw.redelivered,
            due: properties.headers().as_ref().and_then(due),
            given_up_by: properties.headers().as_ref().and_then(last_death),
            body: raw.data.into(),
            settle,
        };
        // There is room, but for what is left of an earlier connection: then it is tried again. If
        // nobody takes it any more, it is dropped, and so given back.
        if let Err(TrySendError::Full(_)) = self.sender.try_send(delivery) {
            return Err(BrokerError::Unreachable(
                "what came before is not taken yet".into(),
            ));
        }
        let acker = raw.acker;
        // Dropped without a word is given back.
        Ok(async move { (acker, settled.await.unwrap_or(false)) })
    }
}

async fn settle(acker: &Acker, acknowledge: bool) -> lapin::Result<bool> {
    if acknowledge {
        acker.ack(BasicAckOptions::default()).await
    } else {
        acker
            .nack(BasicNackOptions {
                requeue: true,
                multiple: false,
            })
            .await
    }
}

/// When a delivery was to come back, if its publisher said so.
fn due(headers: &FieldTable) -> Option<u64> {
    match headers.inner().get(DUE_HEADER)? {
        AMQPValue::LongLongInt(due) => u64::try_from(*due).ok(),
        _ => None,
    }
}

/// The queue that gave a delivery up last, and why: `x-death` has the newest first.
fn last_death(headers: &FieldTable) -> Option<(String, String)> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else {
        return None;
    };
    let text = |name: &str| match newest.inner().get(name) {
        Some(AMQPValue::LongString(text)) => {
            Some(String::from_utf8_lossy(text.as_bytes()).into_owned())
        }
        Some(AMQPValue::ShortString(text)) => Some(text.to_string()),
        _ => None,
    };
    Some((text("queue")?, text("reason")?))
}

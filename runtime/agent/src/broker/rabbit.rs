//! RabbitMQ. The only module of the agent that names `lapin`.
//!
//! One task owns both connections: one to publish, one to consume, because a broker that is short
//! of memory stops reading from connections that publish, acknowledgements and all. On any error
//! both are dropped and made anew, for ever, with a jittered back-off.
//!
//! # Invariants
//!
//! - One task publishes on the channel, and every confirm is awaited.
//! - Acknowledgements keep their order.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions,
    BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use towpath_protocol::message::{
    BATCH_CONTENT_TYPE, BATCH_COUNT_HEADER, BATCH_RETURNS_HEADER, BATCH_TYPE, DUE_HEADER,
};
use towpath_protocol::office::{
    DEAD_TYPE, FOUND_TYPE, LEDGER_TYPE, NEWS_TYPE, REPORT_TYPE, WAITING_TYPE,
};
use towpath_protocol::runs::RUNS_TYPE;
use towpath_protocol::start::{DELAY_UNIT_MS, delay_units};

use super::trouble::explain;
use super::{Addressed, Command, Content, Event, Origin, Publish};

/// The queue of direct answers: known to every RabbitMQ, and never declared.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The header in which the broker counts how often a delivery came back.
const RETURNS_HEADER: &str = "x-delivery-count";

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// How long closing one may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// The first wait before the next try.
const WAIT_FIRST: Duration = Duration::from_millis(200);

/// The longest.
const WAIT_LONGEST: Duration = Duration::from_secs(10);

/// How long a session must have lasted for the next try to come soon: a broker that accepts
/// connections and then drops them is not asked again and again at once.
const SESSION_LONG: Duration = Duration::from_secs(10);

/// How long to wait for the broker's own words when something ended without them: an
/// acknowledgement on a channel that was closed fails before the reason for the closing is read.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What a consumer that the broker cancelled means.
const CONSUMER_CANCELLED: &str = "the broker cancelled the consumer: the queue was deleted, moves to \
    another broker, or a delivery was not acknowledged in time";

/// What the agent needs of a broker.
#[derive(Clone)]
pub struct Rabbit {
    /// Where it is.
    pub url: String,
    /// What the connections are called in the broker's own tools.
    pub name: String,
    /// The queue to consume.
    pub queue: String,
    /// How many deliveries may be unacknowledged.
    pub prefetch: u16,
}

type Sent<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Outcome = lapin::Result<Option<(u64, bool)>>;

/// What went wrong in a session.
struct Trouble {
    text: String,
    /// It is what the broker said, not only what came of it.
    is_said: bool,
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        Self {
            text: explain(&say(&error)),
            is_said: error.is_amqp_error(),
        }
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            is_said: false,
        }
    }
}

/// Why a session ended.
enum End {
    /// Something went wrong: another follows.
    Broken(String),
    /// The agent wants no more.
    Closed,
}

/// Serves commands until the agent drops its end.
pub async fn serve(
    rabbit: Rabbit,
    mut commands: mpsc::Receiver<Addressed>,
    events: mpsc::Sender<Event>,
) {
    let url = with_defaults(&rabbit.url);
    let mut generation = 0;
    let mut failures = 0_u32;
    loop {
        let reason = match timeout(CONNECT_MAX, Session::open(&rabbit, &url)).await {
            Ok(Ok(session)) => {
                let began = Instant::now();
                generation += 1;
                if events.send(Event::Up { generation }).await.is_err() {
                    return;
                }
                let end = session
                    .run(generation, &rabbit, &mut commands, &events)
                    .await;
                if began.elapsed() >= SESSION_LONG {
                    failures = 0;
                }
                match end {
                    End::Broken(reason) => reason,
                    End::Closed => {
                        // The agent may be gone already.
                        drop(
                            events
                                .send(Event::Down {
                                    reason: "closed".to_owned(),
                                })
                                .await,
                        );
                        return;
                    }
                }
            }
            Ok(Err(error)) => explain(&say(&error)),
            Err(_) => format!("no answer within {} s", CONNECT_MAX.as_secs()),
        };
        if events.send(Event::Down { reason }).await.is_err() {
            return;
        }
        let wait = WAIT_FIRST
            .saturating_mul(1 << failures.min(8))
            .min(WAIT_LONGEST);
        failures = failures.saturating_add(1);
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Adds what makes lapin modest and attentive, unless the URL says otherwise: its buffers are
/// multiples of the largest frame, and a dead peer is noticed by its heartbeat.
fn with_defaults(url: &str) -> String {
    let mut url = url.to_owned();
    for (name, default) in [("frame_max=", "131072"), ("heartbeat=", "15")] {
        if !url.contains(name) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(name);
            url.push_str(default);
        }
    }
    url
}

/// Says an error with all its causes.
fn say(error: &lapin::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

struct Session {
    publishing: Connection,
    consuming: Connection,
    publish_channel: Channel,
    consume_channel: Channel,
    consumer: Option<Consumer>,
    answers: Consumer,
    alarms: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    consume_alarms: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    open: FuturesUnordered<Sent<Outcome>>,
    consumers: u32,
}

impl Session {
    async fn open(rabbit: &Rabbit, url: &str) -> lapin::Result<Self> {
        let publishing = connect(url, &format!("{} publishes", rabbit.name)).await?;
        let consuming = connect(url, &format!("{} consumes", rabbit.name)).await?;
        let publish_channel = publishing.create_channel().await?;
        publish_channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let answers = publish_channel
            .basic_consume(
                REPLY_TO.into(),
                "answers".into(),
                options,
                FieldTable::default(),
            )
            .await?;
        let consume_channel = consuming.create_channel().await?;
        consume_channel
            .basic_qos(rabbit.prefetch, BasicQosOptions::default())
            .await?;
        Ok(Self {
            alarms: Box::pin(publishing.events_listener()),
            consume_alarms: Box::pin(consuming.events_listener()),
            publishing,
            consuming,
            publish_channel,
            consume_channel,
            consumer: None,
            answers,
            open: FuturesUnordered::new(),
            consumers: 0,
        })
    }

    async fn run(
        mut self,
        generation: u64,
        rabbit: &Rabbit,
        commands: &mut mpsc::Receiver<Addressed>,
        events: &mpsc::Sender<Event>,
    ) -> End {
        loop {
            // Every branch is cancel-safe: channels and streams lose nothing when dropped mid-wait.
            let result = tokio::select! {
                command = commands.recv() => match command {
                    None => return End::Closed,
                    Some(addressed) if addressed.generation != generation => Ok(()),
                    Some(Addressed { command: Command::Close, .. }) => return self.close().await,
                    Some(addressed) => self.obey(addressed.command, rabbit, events).await,
                },
                Some(outcome) = self.open.next(), if !self.open.is_empty() => match outcome {
                    Ok(Some((number, accepted))) => send(events, Event::Confirmed { number, accepted }).await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error.into()),
                },
                delivery = next(self.consumer.as_mut()) => match delivery {
                    Some(Ok(delivery)) => send(events, delivered(delivery)).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Err(CONSUMER_CANCELLED.into()),
                },
                answer = self.answers.next() => match answer {
                    Some(Ok(answer)) => send(events, Event::Answer(Bytes::from(answer.data))).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Err("the broker stopped delivering answers".into()),
                },
                alarm = self.alarms.next() => heed(alarm, events).await,
                alarm = self.consume_alarms.next() => match alarm {
                    Some(lapin::Event::Error(error)) => Err(error.into()),
                    Some(_) => Ok(()),
                    None => Err("the connection ended".into()),
                },
            };
            if let Err(trouble) = result {
                return End::Broken(self.last_words(trouble).await);
            }
        }
    }

    /// Returns why the session ended: what the broker said of it, if it says it soon.
    async fn last_words(mut self, trouble: Trouble) -> String {
        if trouble.is_said {
            return trouble.text;
        }
        let said = async {
            loop {
                let error = tokio::select! {
                    Some(delivery) = next(self.consumer.as_mut()) => delivery.err(),
                    Some(answer) = self.answers.next() => answer.err(),
                    Some(event) = self.alarms.next() => error_of(event),
                    Some(event) = self.consume_alarms.next() => error_of(event),
                    else => return None,
                };
                if let Some(error) = error.filter(lapin::Error::is_amqp_error) {
                    return Some(Trouble::from(error).text);
                }
            }
        };
        // Without an answer in time, what came of it has to do.
        let said = timeout(LAST_WORDS, said).await.ok().flatten();
        said.unwrap_or(trouble.text)
    }

    async fn obey(
        &mut self,
        command: Command,
        rabbit: &Rabbit,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Trouble> {
        match command {
            Command::Publish(publish) => {
                self.start(publish_one(self.publish_channel.clone(), publish))
                    .await;
                Ok(())
            }
            Command::Ack { tag, multiple } => {
                let channel = self.consume_channel.clone();
                let ack = async move {
                    channel
                        .basic_ack(tag, BasicAckOptions { multiple })
                        .await
                        .map(|()| None)
                };
                self.start(ack).await;
                Ok(())
            }
            Command::Requeue { tag } => {
                let channel = self.consume_channel.clone();
                let options = BasicNackOptions {
                    multiple: false,
                    requeue: true,
                };
                self.start(async move { channel.basic_nack(tag, options).await.map(|()| None) })
                    .await;
                Ok(())
            }
            Command::Consume => in_time(self.consume(rabbit)).await,
            Command::Stop => in_time(self.stop(events)).await,
            Command::Recycle { reason } => Err(Trouble {
                text: reason,
                is_said: true,
            }),
            Command::Close => Ok(()),
        }
    }

    /// Polls a request once, at once: that is what puts it in order. Its answer comes later.
    async fn start(&mut self, request: impl Future<Output = Outcome> + Send + 'static) {
        let mut request: Sent<Outcome> = Box::pin(request);
        let first =
            std::future::poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
        match first {
            Poll::Ready(outcome) => self.open.push(Box::pin(std::future::ready(outcome))),
            Poll::Pending => self.open.push(request),
        }
    }

    async fn consume(&mut self, rabbit: &Rabbit) -> Result<(), Trouble> {
        self.consumers += 1;
        let tag: ShortString = format!("{} {}", rabbit.name, self.consumers).into();
        let queue = rabbit.queue.as_str().into();
        let options = BasicConsumeOptions::default();
        let consumer = self
            .consume_channel
            .basic_consume(queue, tag, options, FieldTable::default())
            .await?;
        self.consumer = Some(consumer);
        Ok(())
    }

    /// Cancels the consumer and hands over what it had already received.
    async fn stop(&mut self, events: &mpsc::Sender<Event>) -> Result<(), Trouble> {
        if let Some(mut consumer) = self.consumer.take() {
            let cancel = self
                .consume_channel
                .basic_cancel(consumer.tag(), BasicCancelOptions::default());
            cancel.await?;
            while let Some(delivery) = consumer.next().await {
                send(events, delivered(delivery?)).await?;
            }
        }
        send(events, Event::Stopped).await
    }

    async fn close(mut self) -> End {
        let finish = async {
            while self.open.next().await.is_some() {}
            for connection in [&self.consuming, &self.publishing] {
                // A connection that is broken needs no closing.
                drop(connection.close(200, "bye".into()).await);
            }
        };
        // What is not closed in time the broker notices by itself.
        drop(timeout(CLOSE_MAX, finish).await);
        End::Closed
    }
}

async fn connect(url: &str, name: &str) -> lapin::Result<Connection> {
    let name = LongString::from(name.as_bytes());
    Connection::connect(
        url,
        ConnectionProperties::default().with_connection_name(name),
    )
    .await
}

async fn next(consumer: Option<&mut Consumer>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Trouble> {
    events
        .send(event)
        .await
        .map_err(|_| "the agent is gone".into())
}

async fn heed(alarm: Option<lapin::Event>, events: &mpsc::Sender<Event>) -> Result<(), Trouble> {
    match alarm {
        Some(lapin::Event::ConnectionBlocked(_)) => send(events, Event::Blocked(true)).await,
        Some(lapin::Event::ConnectionUnblocked) => send(events, Event::Blocked(false)).await,
        Some(lapin::Event::Error(error)) => Err(error.into()),
        Some(_) => Ok(()),
        None => Err("the connection ended".into()),
    }
}

fn error_of(event: lapin::Event) -> Option<lapin::Error> {
    match event {
        lapin::Event::Error(error) => Some(error),
        _ => None,
    }
}

/// Waits for an answer of the broker, but not for ever: on a connection that is cut it never comes.
async fn in_time(request: impl Future<Output = Result<(), Trouble>>) -> Result<(), Trouble> {
    timeout(CONNECT_MAX, request)
        .await
        .unwrap_or_else(|_| Err("the broker does not answer".into()))
}

fn delivered(delivery: lapin::message::Delivery) -> Event {
    let is_batch = delivery
        .properties
        .kind()
        .as_ref()
        .is_some_and(|kind| kind.as_str() == BATCH_TYPE);
    let headers = delivery.properties.headers().as_ref();
    let number = |name: &str| {
        let value = headers.and_then(|headers| headers.inner().get(name));
        value.and_then(whole_number).unwrap_or(0)
    };
    Event::Delivery {
        tag: delivery.delivery_tag,
        is_batch,
        origin: Origin {
            is_redelivered: delivery.redelivered,
            returns: number(RETURNS_HEADER).saturating_add(number(BATCH_RETURNS_HEADER)),
        },
        payload: Bytes::from(delivery.data),
    }
}

/// Reads a count, in whichever of its integer types the broker writes it.
fn whole_number(value: &AMQPValue) -> Option<u32> {
    let number = match *value {
        AMQPValue::ShortShortInt(number) => i64::from(number),
        AMQPValue::ShortShortUInt(number) => i64::from(number),
        AMQPValue::ShortInt(number) => i64::from(number),
        AMQPValue::ShortUInt(number) => i64::from(number),
        AMQPValue::LongInt(number) => i64::from(number),
        AMQPValue::LongUInt(number) => i64::from(number),
        AMQPValue::LongLongInt(number) => number,
        _ => return None,
    };
    u32::try_from(number).ok()
}

async fn publish_one(channel: Channel, publish: Publish) -> Outcome {
    let properties = properties(&publish);
    let exchange = (&*publish.exchange).into();
    let key = (&*publish.key).into();
    let confirm = channel
        .basic_publish(
            exchange,
            key,
            BasicPublishOptions::default(),
            &publish.payload,
            properties,
        )
        .await?;
    let accepted = matches!(confirm.await?, Confirmation::Ack(_));
    Ok(Some((publish.number, accepted)))
}

/// When what is published with this key now comes back, in milliseconds since 1970, if that is with
/// a delay.
fn due(key: &str) -> Option<i64> {
    let delay = u64::from(delay_units(key)?) * DELAY_UNIT_MS;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(now.as_millis())
        .ok()?
        .checked_add_unsigned(delay)
}

fn properties(publish: &Publish) -> BasicProperties {
    let (kind, content_type) = match publish.content {
        Content::Batch | Content::Returned(_) => (BATCH_TYPE, BATCH_CONTENT_TYPE),
        Content::Dead => (DEAD_TYPE, BATCH_CONTENT_TYPE),
        Content::News => (NEWS_TYPE, "application/json"),
        Content::Ledger => (LEDGER_TYPE, "application/json"),
        Content::Runs => (RUNS_TYPE, "application/octet-stream"),
        Content::Report => (REPORT_TYPE, "application/json"),
        Content::Found => (FOUND_TYPE, "application/json"),
        Content::Waiting => (WAITING_TYPE, BATCH_CONTENT_TYPE),
    };
    let is_transient = matches!(
        publish.content,
        Content::Report | Content::Found | Content::Waiting
    );
    let delivery_mode = if is_transient { 1 } else { 2 };
    let mut properties = BasicProperties::default()
        .with_delivery_mode(delivery_mode)
        .with_type(kind.into())
        .with_content_type(content_type.into());
    if matches!(
        publish.content,
        Content::Batch | Content::Returned(_) | Content::Dead
    ) {
        let mut headers = FieldTable::default();
        if let Content::Returned(times) = publish.content {
            headers.insert(BATCH_RETURNS_HEADER.into(), AMQPValue::LongUInt(times));
        }
        headers.insert(
            BATCH_COUNT_HEADER.into(),
            AMQPValue::LongUInt(publish.count),
        );
        if let Some(due) = due(&publish.key) {
            headers.insert(DUE_HEADER.into(), AMQPValue::LongLongInt(due));
        }
        properties = properties.with_headers(headers);
    }
    if let Some(correlation) = &publish.answer {
        properties = properties
            .with_reply_to(REPLY_TO.into())
            .with_correlation_id((&**correlation).into());
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_whatever_its_type() {
        assert_eq!(whole_number(&AMQPValue::LongLongInt(3)), Some(3));
        assert_eq!(whole_number(&AMQPValue::ShortShortUInt(3)), Some(3));
        assert_eq!(whole_number(&AMQPValue::LongLongInt(-1)), None);
        assert_eq!(whole_number(&AMQPValue::Boolean(true)), None);
    }

    #[test]
    fn a_url_gets_defaults_and_keeps_what_it_says() {
        assert_eq!(
            with_defaults("amqp://u:p@h:1/v?heartbeat=3"),
            "amqp://u:p@h:1/v?heartbeat=3&frame_max=131072"
        );
        assert_eq!(
            with_defaults("amqp://h"),
            "amqp://h?frame_max=131072&heartbeat=15"
        );
    }
}

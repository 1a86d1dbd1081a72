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
//! - What goes into a partition goes by the channel that consumes: when the broker gives the intake to
//!   another, nothing more of this one can come before what that one puts there, or among it.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{BoxStream, FuturesUnordered, SelectAll};
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
use crate::deliveries::{INTAKE, QueueNumber};

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

/// How many deliveries of a partition may be unacknowledged: the one that is worked off, and the next.
const PARTITION_PREFETCH: u16 = 2;

/// How many deliveries of the intake may be unacknowledged.
const INTAKE_PREFETCH: u16 = 16;

/// The argument that says which consumer of a queue for one at a time is preferred.
const PRIORITY: &str = "x-priority";

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
    /// The partitions to consume as well, of a step that keeps an order.
    pub partitions: Vec<String>,
    /// The number of the replica: each has its own of several partitions.
    pub replica: u32,
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
    consumers: SelectAll<Consuming>,
    tags: Vec<ShortString>,
    answers: Consumer,
    alarms: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    consume_alarms: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    open: FuturesUnordered<Sent<Outcome>>,
    /// The same of the channel that consumes.
    taken: FuturesUnordered<Sent<Outcome>>,
    /// How often consuming began.
    rounds: u32,
}

/// What comes from one queue, with its number; in the end, nothing.
type Consuming = BoxStream<'static, (QueueNumber, Option<lapin::Result<lapin::message::Delivery>>)>;

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
        let consume_channel = open_to_consume(&consuming, rabbit).await?;
        Ok(Self {
            alarms: Box::pin(publishing.events_listener()),
            consume_alarms: Box::pin(consuming.events_listener()),
            publishing,
            consuming,
            publish_channel,
            consume_channel,
            consumers: SelectAll::new(),
            tags: Vec::new(),
            answers,
            open: FuturesUnordered::new(),
            taken: FuturesUnordered::new(),
            rounds: 0,
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
                Some(outcome) = self.open.next(), if !self.open.is_empty() => heed_outcome(outcome, events).await,
                Some(outcome) = self.taken.next(), if !self.taken.is_empty() => heed_outcome(outcome, events).await,
                Some((queue, delivery)) = self.consumers.next(), if !self.consumers.is_empty() => match delivery {
                    Some(Ok(delivery)) => send(events, delivered(queue, delivery)).await,
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
                    Some((_, Some(delivery))) = self.consumers.next() => delivery.err(),
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
            Command::Publish(publish) if publish.content == Content::Sorted => {
                let publishing = publish_one(self.consume_channel.clone(), publish);
                start(&mut self.taken, publishing).await;
                Ok(())
            }
            Command::Publish(publish) => {
                let publishing = publish_one(self.publish_channel.clone(), publish);
                start(&mut self.open, publishing).await;
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
                start(&mut self.taken, ack).await;
                Ok(())
            }
            Command::Requeue { tag } => {
                let channel = self.consume_channel.clone();
                let options = BasicNackOptions {
                    multiple: false,
                    requeue: true,
                };
                let nack = async move { channel.basic_nack(tag, options).await.map(|()| None) };
                start(&mut self.taken, nack).await;
                Ok(())
            }
            Command::Consume => in_time(self.consume(rabbit)).await,
            Command::Stop if !rabbit.partitions.is_empty() => {
                in_time(self.leave(rabbit, events)).await
            }
            Command::Stop => in_time(self.stop(events)).await,
            Command::Recycle { reason } => Err(Trouble {
                text: reason,
                is_said: true,
            }),
            Command::Close => Ok(()),
        }
    }

    async fn consume(&mut self, rabbit: &Rabbit) -> Result<(), Trouble> {
        self.rounds += 1;
        if rabbit.partitions.is_empty() {
            return self
                .consume_one(rabbit, INTAKE, &rabbit.queue, FieldTable::default())
                .await;
        }
        for queue in preferred(rabbit) {
            let number = usize::from(queue);
            let (name, prefetch) = match number.checked_sub(1) {
                None => (&rabbit.queue, INTAKE_PREFETCH),
                Some(partition) => (&rabbit.partitions[partition], PARTITION_PREFETCH),
            };
            // For the consumers that are made after it.
            self.consume_channel
                .basic_qos(prefetch, BasicQosOptions::default())
                .await?;
            let mut arguments = FieldTable::default();
            let priority = preference(name, rabbit.replica);
            arguments.insert(PRIORITY.into(), AMQPValue::LongInt(priority));
            self.consume_one(rabbit, queue, name, arguments).await?;
        }
        Ok(())
    }

    async fn consume_one(
        &mut self,
        rabbit: &Rabbit,
        queue: QueueNumber,
        name: &str,
        arguments: FieldTable,
    ) -> Result<(), Trouble> {
        let tag: ShortString = format!("{} {} {queue}", rabbit.name, self.rounds).into();
        let options = BasicConsumeOptions::default();
        let consumer = self
            .consume_channel
            .basic_consume(name.into(), tag.clone(), options, arguments)
            .await?;
        let end = futures_util::stream::iter([(queue, None)]);
        let deliveries = consumer.map(move |delivery| (queue, Some(delivery)));
        self.consumers.push(deliveries.chain(end).boxed());
        self.tags.push(tag);
        Ok(())
    }

    /// Cancels the consumer and hands over what it had already received.
    async fn stop(&mut self, events: &mpsc::Sender<Event>) -> Result<(), Trouble> {
        for tag in std::mem::take(&mut self.tags) {
            let options = BasicCancelOptions::default();
            self.consume_channel.basic_cancel(tag, options).await?;
        }
        while let Some((queue, delivery)) = self.consumers.next().await {
            if let Some(delivery) = delivery {
                send(events, delivered(queue, delivery?)).await?;
            }
        }
        send(events, Event::Stopped).await
    }

    /// Leaves all queues at once, and what is not acknowledged with them: a queue gives what a
    /// consumer has cancelled to the next one although the first still has something in hand.
    async fn leave(
        &mut self,
        rabbit: &Rabbit,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Trouble> {
        self.tags.clear();
        self.consumers = SelectAll::new();
        // The acknowledgements are on their way before the end of their channel.
        self.consume_channel.close(200, "bye".into()).await?;
        // What is not confirmed by now is void, and comes again.
        self.taken = FuturesUnordered::new();
        self.consume_channel = open_to_consume(&self.consuming, rabbit).await?;
        send(events, Event::Stopped).await
    }

    async fn close(mut self) -> End {
        let finish = async {
            while self.open.next().await.is_some() {}
            while self.taken.next().await.is_some() {}
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

/// Opens the channel that consumes.
async fn open_to_consume(consuming: &Connection, rabbit: &Rabbit) -> lapin::Result<Channel> {
    let channel = consuming.create_channel().await?;
    if rabbit.partitions.is_empty() {
        channel
            .basic_qos(rabbit.prefetch, BasicQosOptions::default())
            .await?;
    } else {
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
    }
    Ok(channel)
}

/// The queues of a step that keeps an order, those first that this replica prefers: where priorities
/// are not heeded (before RabbitMQ 4), a queue is given to whoever comes first.
fn preferred(rabbit: &Rabbit) -> Vec<QueueNumber> {
    let name = |queue: &QueueNumber| match usize::from(*queue).checked_sub(1) {
        None => &rabbit.queue,
        Some(partition) => &rabbit.partitions[partition],
    };
    let last = u16::try_from(rabbit.partitions.len()).unwrap_or(u16::MAX);
    let mut queues: Vec<QueueNumber> = (INTAKE..=last).collect();
    queues.sort_by_key(|queue| std::cmp::Reverse(preference(name(queue), rabbit.replica)));
    queues
}

/// How much a replica prefers a queue: nobody has to know how many replicas there are for each to
/// have its share, and only what a replica has moves when it goes.
fn preference(queue: &str, replica: u32) -> i32 {
    let share = towpath_protocol::start::partition_of(&format!("{queue} {replica}"), 1 << 20);
    i32::try_from(share).unwrap_or(i32::MAX)
}

/// Polls a request once, at once: that is what puts it in order. Its answer comes later.
async fn start(
    open: &mut FuturesUnordered<Sent<Outcome>>,
    request: impl Future<Output = Outcome> + Send + 'static,
) {
    let mut request: Sent<Outcome> = Box::pin(request);
    let first = std::future::poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
    match first {
        Poll::Ready(outcome) => open.push(Box::pin(std::future::ready(outcome))),
        Poll::Pending => open.push(request),
    }
}

async fn heed_outcome(outcome: Outcome, events: &mpsc::Sender<Event>) -> Result<(), Trouble> {
    match outcome {
        Ok(Some((number, accepted))) => send(events, Event::Confirmed { number, accepted }).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error.into()),
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

fn delivered(queue: QueueNumber, delivery: lapin::message::Delivery) -> Event {
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
        queue,
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
        Content::Batch | Content::Sorted | Content::Returned(_) => (BATCH_TYPE, BATCH_CONTENT_TYPE),
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
        Content::Batch | Content::Sorted | Content::Returned(_) | Content::Dead
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
    fn replicas_prefer_different_queues() {
        let prefers = |replica| {
            let rabbit = Rabbit {
                url: String::new(),
                name: String::new(),
                queue: "t.flow.f.s.in".into(),
                partitions: (0..16)
                    .map(|number| format!("t.flow.f.s.{number}"))
                    .collect(),
                replica,
                prefetch: 1,
            };
            let queues = preferred(&rabbit);
            assert_eq!(queues.len(), 17);
            queues
        };
        assert_ne!(prefers(1), prefers(2));
        let mut shares = [0; 4];
        for partition in 0..64 {
            let queue = format!("t.flow.f.s.{partition}");
            let replica = (1..=4).max_by_key(|replica| preference(&queue, *replica));
            shares[replica.expect("there are four") as usize - 1] += 1;
        }
        assert!(
            shares.iter().all(|share| (8..=24).contains(share)),
            "{shares:?}"
        );
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

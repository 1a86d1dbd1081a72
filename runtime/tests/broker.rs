//! The broker on a real RabbitMQ: set `TOWPATH_TEST_BROKER` to an AMQP URL.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath::broker::rabbit::Rabbit;
use towpath::broker::topology::{
    DELIVERY_LIMIT, Declaration, Destination, FlowTopology, Names, Queue, Topology, declarations,
};
use towpath::broker::{Broker, BrokerError, Delivery, Publication};
use towpath::schedule::system_clock;
use towpath::store::Store;
use towpath::sweep::{Fate, Order, Sweeper, Which};
use towpath_protocol::MessageId;
use towpath_protocol::message::BATCH_TYPE;

mod proxy;

/// How long anything may take that should take milliseconds.
const SOON: Duration = Duration::from_secs(60);

fn url() -> String {
    std::env::var("TOWPATH_TEST_BROKER").expect(
        "these tests need RabbitMQ: start one (`deploy/rabbitmq` says how) and set \
         TOWPATH_TEST_BROKER=amqp://user:password@host:port/vhost",
    )
}

/// An instance of its own on the broker, removed at the end.
struct Instance {
    rabbit: Rabbit,
    topology: Topology,
    shutdown: CancellationToken,
}

impl Instance {
    /// The routing key of a port of `poll`.
    fn key(&self, port: &str) -> String {
        self.topology.flows[0].port_key("poll", port)
    }

    async fn new(test: &str) -> Self {
        Self::at(&url(), test).await
    }

    async fn at(url: &str, test: &str) -> Self {
        let shutdown = CancellationToken::new();
        let resync = Duration::from_secs(2);
        let rabbit = Rabbit::start_with(url, resync, shutdown.clone()).unwrap();
        let instance = format!("test-{test}-{}", uuid::Uuid::new_v4().simple());
        let after = |step: &str| vec![(step.to_owned(), "out".to_owned())];
        let topology = Topology {
            names: Names::new(instance),
            flows: vec![FlowTopology {
                flow: "orders".into(),
                steps: vec![("poll".into(), vec![]), ("crm".into(), after("poll"))],
                aliases: vec![],
                ..FlowTopology::default()
            }],
        };
        let this = Self {
            rabbit,
            topology,
            shutdown,
        };
        eventually(async || this.rabbit.declare(&this.topology, &[]).await.ok()).await;
        this
    }

    fn names(&self) -> &Names {
        &self.topology.names
    }

    async fn publish(&self, exchange: &str, key: &str, body: &str) -> Result<(), BrokerError> {
        self.rabbit.publish(publication(exchange, key, body)).await
    }

    async fn consume(&self, queue: &str) -> mpsc::Receiver<Delivery> {
        self.rabbit.consume(queue, 8).await
    }

    async fn remove(self) {
        // Whoever still consumes what goes away has its channel closed by the broker, now and then
        // just while another is opened, which costs the connection: it is made again.
        let rabbit = &self.rabbit;
        for declaration in declarations(&self.topology) {
            match declaration {
                Declaration::Queue(queue) => {
                    eventually(async || rabbit.delete_queue(&queue.name, true).await.ok()).await;
                }
                Declaration::Exchange(exchange) => {
                    eventually(async || rabbit.delete_exchange(&exchange.name).await.ok()).await;
                }
                Declaration::Binding(_) => {}
            }
        }
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.rabbit.closed())
            .await
            .expect("everything ends");
    }
}

fn publication(exchange: &str, key: &str, body: &str) -> Publication {
    Publication {
        exchange: exchange.to_owned(),
        key: key.to_owned(),
        kind: BATCH_TYPE,
        body: Bytes::copy_from_slice(body.as_bytes()),
        count: 1,
    }
}

/// Waits until something gives a value.
async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "it did not come true within {SOON:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes and acknowledges the next delivery.
async fn take(deliveries: &mut mpsc::Receiver<Delivery>) -> String {
    let delivery = next(deliveries).await;
    let body = String::from_utf8(delivery.body.to_vec()).unwrap();
    delivery.settle.send(true).unwrap();
    body
}

async fn next(deliveries: &mut mpsc::Receiver<Delivery>) -> Delivery {
    tokio::time::timeout(SOON, deliveries.recv())
        .await
        .expect("a delivery comes")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_arrives_where_the_topology_says() {
    let instance = Instance::new("arrives").await;
    let names = instance.names().clone();
    let mut deliveries = instance.consume(&names.queue("orders", "crm")).await;

    instance
        .publish(&names.flow("orders"), &instance.key("out"), "by port")
        .await
        .unwrap();
    instance
        .publish(&names.steps(), "orders.crm", "by step")
        .await
        .unwrap();
    let mut bodies = vec![take(&mut deliveries).await, take(&mut deliveries).await];
    bodies.sort();
    assert_eq!(bodies, ["by port", "by step"]);

    // Declaring again changes nothing.
    instance
        .rabbit
        .declare(&instance.topology, &instance.topology.flows)
        .await
        .unwrap();
    instance
        .publish(&names.flow("orders"), &instance.key("out"), "still")
        .await
        .unwrap();
    let delivery = next(&mut deliveries).await;
    assert_eq!(
        (&delivery.body[..], delivery.kind.as_str()),
        (&b"still"[..], BATCH_TYPE)
    );
    assert_eq!(
        (delivery.exchange, delivery.key),
        (names.flow("orders"), instance.key("out"))
    );
    delivery.settle.send(true).unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_take_their_time_and_do_not_wait_for_one_another() {
    let instance = Instance::new("delays").await;
    let names = instance.names().clone();
    let mut deliveries = instance.consume(&names.queue("orders", "crm")).await;
    let began = Instant::now();
    // The long ones first: none waits behind another.
    for millis in [3_500, 1_250, 1_000, 250] {
        let (exchange, key) = names.delayed(Duration::from_millis(millis), "orders", "crm");
        instance
            .publish(&exchange, &key, &millis.to_string())
            .await
            .unwrap();
    }
    for expect in [250, 1_000, 1_250, 3_500] {
        assert_eq!(take(&mut deliveries).await, expect.to_string());
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(expect - 50),
            "{expect} came after {took:?}"
        );
        assert!(
            took < Duration::from_millis(expect + 1_500),
            "{expect} came after {took:?}"
        );
    }
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reaches_no_queue_is_found_with_the_lost() {
    let instance = Instance::new("lost").await;
    let names = instance.names().clone();
    let mut lost = instance.consume(&names.lost()).await;
    instance
        .publish(&names.flow("orders"), "crm.out", "by port")
        .await
        .unwrap();
    let delivery = next(&mut lost).await;
    assert_eq!(
        (delivery.exchange, delivery.key),
        (names.flow("orders"), "crm.out".into())
    );
    delivery.settle.send(true).unwrap();
    // Through the ladder as well.
    let (exchange, key) = names.delayed(Duration::from_millis(500), "orders", "gone");
    instance.publish(&exchange, &key, "delayed").await.unwrap();
    let delivery = next(&mut lost).await;
    assert_eq!(&delivery.body[..], b"delayed");
    assert!(delivery.key.ends_with(".orders.gone"), "{}", delivery.key);
    delivery.settle.send(true).unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_settled_is_found_with_the_dead() {
    let instance = Instance::new("dead").await;
    let names = instance.names().clone();
    let queue = names.queue("orders", "crm");
    let mut deliveries = instance.consume(&queue).await;
    let mut dead = instance.consume(&names.dead()).await;
    // By way of the ladder, so that it has been dead-lettered before.
    let (exchange, key) = names.delayed(Duration::from_millis(250), "orders", "crm");
    instance.publish(&exchange, &key, "poison").await.unwrap();
    let mut count = 0;
    let letter = loop {
        tokio::select! {
            delivery = next(&mut deliveries) => {
                count += 1;
                delivery.settle.send(false).unwrap();
            }
            letter = next(&mut dead) => break letter,
        }
    };
    assert_eq!(count, DELIVERY_LIMIT + 1);
    assert_eq!(
        letter.given_up_by,
        Some((queue, "delivery_limit".to_owned()))
    );
    assert_eq!(&letter.body[..], b"poison");
    letter.settle.send(true).unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_takes_again() {
    let instance = Instance::new("full").await;
    let names = instance.names().clone();
    // The same topology with a queue of another name that holds three.
    let mut all = declarations(&instance.topology);
    let queue = format!("{}.small", names.instance);
    for declaration in &mut all {
        match declaration {
            Declaration::Queue(small) if small.name == names.queue("orders", "crm") => {
                *small = Queue {
                    name: queue.clone(),
                    deliveries_max: 3,
                    ..small.clone()
                };
            }
            Declaration::Binding(binding)
                if binding.destination == Destination::Queue(names.queue("orders", "crm")) =>
            {
                binding.destination = Destination::Queue(queue.clone());
                binding.key = format!("{}x", binding.key);
            }
            _ => {}
        }
    }
    instance.rabbit.declare_all(all).await.unwrap();
    let key = format!("{}x", instance.key("out"));
    let publish = async || instance.publish(&names.flow("orders"), &key, "x").await;
    let mut taken = 0;
    let full = loop {
        match publish().await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 20, "the queue is never full");
    };
    assert!(matches!(full, BrokerError::Full { .. }), "{full:?}");
    assert!(taken >= 3, "{taken}");
    // Many at a time: as many are refused as are said to be.
    let outcomes = futures_util::future::join_all((0..200).map(|_| publish())).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Err(BrokerError::Full { .. })))
    );
    let depths = instance
        .rabbit
        .depths(std::slice::from_ref(&queue))
        .await
        .unwrap();
    assert_eq!(depths[&queue].ready, taken);
    let mut deliveries = instance.consume(&queue).await;
    for _ in 0..taken {
        take(&mut deliveries).await;
    }
    eventually(async || publish().await.ok()).await;
    instance.rabbit.delete_queue(&queue, true).await.unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_gets_its_answer() {
    let instance = Instance::new("reply").await;
    let names = instance.names().clone();
    let mut news = instance.consume(&names.news()).await;
    // An agent of its own.
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&url(), properties)
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = lapin::options::BasicConsumeOptions {
        no_ack: true,
        ..Default::default()
    };
    let mut answers = channel
        .basic_consume(
            "amq.rabbitmq.reply-to".into(),
            "".into(),
            options,
            lapin::types::FieldTable::default(),
        )
        .await
        .unwrap();
    let properties = lapin::BasicProperties::default()
        .with_reply_to("amq.rabbitmq.reply-to".into())
        .with_correlation_id("c1".into());
    channel
        .basic_publish(
            names.office().into(),
            "news".into(),
            lapin::options::BasicPublishOptions::default(),
            b"where was I?",
            properties,
        )
        .await
        .unwrap();
    let question = next(&mut news).await;
    let (reply_to, correlation) = question.reply.clone().expect("it says where to answer");
    question.settle.send(true).unwrap();
    instance
        .rabbit
        .reply(&reply_to, &correlation, Bytes::from_static(b"there"))
        .await
        .unwrap();
    let answer = tokio::time::timeout(SOON, answers.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(answer.data, b"there");
    assert_eq!(
        answer
            .properties
            .correlation_id()
            .as_ref()
            .unwrap()
            .as_str(),
        "c1"
    );
    // Nobody is there any more: not our trouble.
    connection.close(200, "bye".into()).await.unwrap();
    instance
        .rabbit
        .reply(&reply_to, &correlation, Bytes::from_static(b"again"))
        .await
        .unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_by_hand_comes_back() {
    let instance = Instance::new("hand").await;
    let names = instance.names().clone();
    let queue = names.queue("orders", "crm");
    let mut deliveries = instance.consume(&queue).await;
    let by_hand = lapin::Connection::connect(&url(), lapin::ConnectionProperties::default())
        .await
        .unwrap();
    let channel = by_hand.create_channel().await.unwrap();
    channel
        .queue_delete(
            queue.as_str().into(),
            lapin::options::QueueDeleteOptions::default(),
        )
        .await
        .unwrap();
    channel
        .exchange_delete(
            names.steps().into(),
            lapin::options::ExchangeDeleteOptions::default(),
        )
        .await
        .unwrap();
    eventually(async || {
        instance
            .publish(&names.steps(), "orders.crm", "again")
            .await
            .ok()
    })
    .await;
    // It may have been published while the exchange was there and the queue was not yet.
    eventually(async || {
        instance
            .publish(&names.steps(), "orders.crm", "again")
            .await
            .ok()?;
        tokio::time::timeout(Duration::from_millis(500), deliveries.recv())
            .await
            .ok()??
            .settle
            .send(true)
            .ok()
    })
    .await;
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_again_and_nothing_confirmed_is_lost() {
    let url = url();
    let (before, after) = url.split_once('@').expect("the URL has a user");
    let (host, vhost) = after.split_once('/').unwrap_or((after, "%2f"));
    let proxy = proxy::Proxy::start(host.to_owned()).await;
    let through = format!("{before}@127.0.0.1:{}/{vhost}", proxy.port);
    let instance = Instance::at(&through, "cut").await;
    let names = instance.names().clone();
    let mut deliveries = instance.consume(&names.queue("orders", "crm")).await;
    let mut confirmed = std::collections::BTreeSet::new();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..4 {
        for number in 0..50 {
            let body = format!("{round}-{number}");
            if number == 20 {
                proxy.cut();
            }
            if number == 40 {
                proxy.mend();
                eventually(async || instance.rabbit.is_up().await.then_some(())).await;
            }
            if (20..40).contains(&number) && number > 22 {
                continue;
            }
            if instance
                .publish(&names.flow("orders"), &instance.key("out"), &body)
                .await
                .is_ok()
            {
                confirmed.insert(body);
            }
        }
    }
    assert!(confirmed.len() >= 4 * 25, "{}", confirmed.len());
    while !confirmed.is_subset(&seen) {
        let delivery = next(&mut deliveries).await;
        seen.insert(String::from_utf8(delivery.body.to_vec()).unwrap());
        // Of a connection that is gone: it comes again.
        delivery.settle.send(true).ok();
    }
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_flow_loses_its_old_bindings_only() {
    let mut instance = Instance::new("stale").await;
    let names = instance.names().clone();
    let former = instance.topology.flows.clone();
    let old_key = instance.key("out");
    instance.topology.flows[0].steps[1].1 = vec![("poll".into(), "other".into())];
    instance
        .rabbit
        .declare(&instance.topology, &former)
        .await
        .unwrap();
    instance
        .publish(&names.flow("orders"), &old_key, "old")
        .await
        .unwrap();
    instance
        .publish(&names.flow("orders"), &instance.key("other"), "new")
        .await
        .unwrap();
    let mut deliveries = instance.consume(&names.queue("orders", "crm")).await;
    assert_eq!(take(&mut deliveries).await, "new");
    let mut lost = instance.consume(&names.lost()).await;
    assert_eq!(take(&mut lost).await, "old");
    // What was never there can be removed as well.
    let strange = FlowTopology {
        flow: "never".into(),
        steps: vec![("a".into(), vec![("b".into(), "out".into())])],
        aliases: vec![],
        ..FlowTopology::default()
    };
    instance
        .rabbit
        .declare(&instance.topology, &[strange])
        .await
        .unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_named_and_the_rest_is_declared() {
    let instance = Instance::new("other").await;
    let mut all = declarations(&instance.topology);
    let (mut changed, mut added) = (None, None);
    for declaration in &mut all {
        let Declaration::Queue(queue) = declaration else {
            continue;
        };
        if queue.name == instance.names().queue("orders", "poll") {
            queue.deliveries_max = 7;
            changed = Some(queue.name.clone());
            added = Some(Queue {
                name: format!("{}.added", instance.names().instance),
                ..queue.clone()
            });
        }
    }
    let (changed, added) = (changed.unwrap(), added.unwrap());
    all.push(Declaration::Queue(added.clone()));
    let error = instance.rabbit.declare_all(all).await.unwrap_err();
    let text = towpath::engine::chain(&error);
    assert!(
        text.contains(&changed) && text.contains("other arguments"),
        "{text}"
    );
    assert_eq!(
        instance
            .rabbit
            .depths(std::slice::from_ref(&added.name))
            .await
            .unwrap()
            .len(),
        1
    );
    instance
        .rabbit
        .delete_queue(&added.name, false)
        .await
        .unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_not_there_are_left_out_and_full_ones_are_kept() {
    let instance = Instance::new("depths").await;
    let names = instance.names().clone();
    let queue = names.queue("orders", "crm");
    instance
        .publish(&names.steps(), "orders.crm", "x")
        .await
        .unwrap();
    let ask = [
        queue.clone(),
        "no.such.queue".to_owned(),
        names.queue("orders", "poll"),
    ];
    let depths = eventually(async || {
        let depths = instance.rabbit.depths(&ask).await.unwrap();
        (depths.len() == 2 && depths[&queue].ready == 1).then_some(depths)
    })
    .await;
    assert_eq!(depths[&names.queue("orders", "poll")].ready, 0);
    let refused = instance
        .rabbit
        .delete_queue(&queue, false)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, BrokerError::Refused { .. }),
        "{refused:?}"
    );
    instance.rabbit.delete_queue(&queue, true).await.unwrap();
    instance.rabbit.delete_queue(&queue, false).await.unwrap();
    instance
        .rabbit
        .delete_exchange("no.such.exchange")
        .await
        .unwrap();
    instance.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_said_soon_and_waited_for() {
    let shutdown = CancellationToken::new();
    // Nobody listens at port 1.
    let rabbit = Rabbit::start("amqp://u:secret@127.0.0.1:1/%2f", shutdown.clone()).unwrap();
    let began = Instant::now();
    let error = rabbit
        .publish(publication("x", "y", "z"))
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Unreachable(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("secret"));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(!rabbit.is_up().await);
    shutdown.cancel();
    tokio::time::timeout(SOON, rabbit.closed())
        .await
        .expect("everything ends");
    let error = Rabbit::start("http://u:secret@x", CancellationToken::new()).unwrap_err();
    assert!(
        !towpath::engine::chain(&error).contains("secret"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_takes_what_is_wanted_out_of_the_ladder_and_the_rest_keeps_its_time() {
    const MESSAGES: u32 = 300;
    let instance = Instance::new("sweep").await;
    let names = instance.names().clone();
    let id = |number: u32| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        MessageId::from_bytes(bytes)
    };
    let line = |number: u32| {
        let id = id(number);
        format!(r#"{{"id":"{id}","lineage":{{"run":"{id}","version":1,"at":1}},"body":{number}}}"#)
    };
    let delay = async |millis: u64, body: String| {
        let delay = Duration::from_millis(millis);
        let (exchange, key) = names.delayed(delay, "orders", "crm");
        instance.publish(&exchange, &key, &body).await.unwrap();
    };
    for number in 0..MESSAGES {
        // Two in a delivery: one is wanted, one is not.
        let body = format!("{}\n{}", line(number), line(number + MESSAGES));
        delay(3_600_000 + u64::from(number % 7) * 1_250, body).await;
    }
    let began = Instant::now();
    delay(8_250, line(9_000)).await;
    let mut deliveries = instance.consume(&names.queue("orders", "crm")).await;
    let sweeper = Sweeper::new(
        Arc::new(instance.rabbit.clone()),
        Store::in_memory().unwrap(),
        names.clone(),
        system_clock(),
    );
    let order = Order {
        flow: "orders".into(),
        which: Which::Ids((0..MESSAGES).map(id).collect()),
        fate: Fate::Now,
    };
    let swept = sweeper.sweep(order).await.unwrap();
    println!("{swept:?} in {:?}", began.elapsed());
    assert_eq!(swept.moved, u64::from(MESSAGES));
    assert!(swept.not_found.is_empty());
    let mut came = BTreeSet::new();
    while came.len() <= MESSAGES as usize {
        let delivery = next(&mut deliveries).await;
        for line in delivery.body.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let message: serde_json::Value = serde_json::from_slice(line).unwrap();
            let number = message["body"].as_u64().unwrap();
            if number == 9_000 {
                let took = began.elapsed();
                assert!(took >= Duration::from_millis(8_250), "early: {took:?}");
                assert!(took < Duration::from_millis(18_250), "late: {took:?}");
            } else {
                assert!(number < u64::from(MESSAGES), "{number} was not asked for");
            }
            came.insert(number);
        }
        delivery.settle.send(true).unwrap();
    }
    // What was not wanted waits on, and can be given up.
    let order = || Order {
        flow: "orders".into(),
        which: Which::All,
        fate: Fate::Cancel,
    };
    let swept = sweeper.sweep(order()).await.unwrap();
    assert!(swept.moved >= u64::from(MESSAGES), "{swept:?}");
    // The broker now and then forgets the last acknowledgements of a channel that is closed right
    // after them, and delivers those messages again: to whoever sweeps next.
    eventually(async || {
        let ladder = instance.rabbit.depths(&names.delays()).await.unwrap();
        if ladder.values().all(|depth| depth.ready == 0) {
            return Some(());
        }
        sweeper.sweep(order()).await.unwrap();
        None
    })
    .await;
    let mut dead = instance.consume(&names.dead()).await;
    let letter = take(&mut dead).await;
    assert!(letter.contains(r#""cause":"cancelled""#), "{letter}");
    instance.remove().await;
}

//! The broker on a real RabbitMQ: set `TOWPATH_TEST_BROKER` to an AMQP URL.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath::broker::rabbit::Rabbit;
use towpath::broker::topology::{Declaration, FlowTopology, Names, Queue, Topology, declarations};
use towpath::broker::{Broker, BrokerError, Delivery, Publication};
use towpath_protocol::message::BATCH_TYPE;

mod proxy;

/// How long anything may take that should take milliseconds.
const SOON: Duration = Duration::from_secs(20);

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
            }],
        };
        let this = Self { rabbit, topology, shutdown };
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
        for declaration in declarations(&self.topology) {
            match declaration {
                Declaration::Queue(queue) => {
                    self.rabbit.delete_queue(&queue.name, true).await.unwrap();
                }
                Declaration::Exchange(exchange) => {
                    self.rabbit.delete_exchange(&exchange.name).await.unwrap();
                }
                Declaration::Binding(_) => {}
            }
        }
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.rabbit.closed()).await.expect("everything ends");
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
        assert!(Instant::now() < deadline, "it did not come true within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes and acknowledges the next delivery.
async fn take(deliveries: &mut mpsc::Receiver<Delivery>) -> (String, Delivery) {
    let delivery = tokio::time::timeout(SOON, deliveries.recv()).await.expect("a delivery").unwrap();
    let body = String::from_utf8(delivery.body.to_vec()).unwrap();
    let (settle, _) = tokio::sync::oneshot::channel();
    let settled = Delivery { settle, body: delivery.body, kind: delivery.kind, key: delivery.key, exchange: delivery.exchange, reply: delivery.reply, given_up_by: delivery.given_up_by };
    delivery.settle.send(true).unwrap();
    (body, settled)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_arrives_where_the_topology_says() {
    let instance = Instance::new("arrives").await;
    let names = instance.names().clone();
    let queue = names.queue("orders", "crm");
    let mut deliveries = instance.consume(&queue).await;

    instance.publish(&names.flow("orders"), "poll.out", "by port").await.unwrap();
    instance.publish(&names.steps(), "orders.crm", "by step").await.unwrap();
    let mut bodies = vec![take(&mut deliveries).await.0, take(&mut deliveries).await.0];
    bodies.sort();
    assert_eq!(bodies, ["by port", "by step"]);

    // Declaring again, and a hundred times over, changes nothing.
    instance.rabbit.declare(&instance.topology, &instance.topology.flows).await.unwrap();
    instance.publish(&names.flow("orders"), "poll.out", "still").await.unwrap();
    let (body, delivery) = take(&mut deliveries).await;
    assert_eq!((body.as_str(), delivery.kind.as_str()), ("still", BATCH_TYPE));
    instance.remove().await;
}

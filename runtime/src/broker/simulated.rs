//! A broker in memory, with faults: what RabbitMQ does with the same declarations, so that the
//! office, the scheduler, replay and the ingress can be tested, with a seed.
//!
//! # Invariants
//!
//! - What was confirmed is delivered until it is acknowledged; a fault may deliver it twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::routing::Router;
use super::topology::{Declaration, FlowTopology, Queue, Topology, declarations, stale_bindings};
use super::{Broker, BrokerError, Delivery, Depth, Publication};

/// A broker in memory. Clones are the same broker; its tasks end with the last of them.
#[derive(Clone)]
pub struct Simulated {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What goes wrong, each as a probability from 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A publish is not taken, and says that the broker cannot be reached.
    pub refused: f64,
    /// A publish is taken, but its confirm is lost.
    pub confirm_lost: f64,
    /// A delivery that was acknowledged comes again: the acknowledgement was lost.
    pub acknowledgement_lost: f64,
}

/// An answer that was sent over direct reply-to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Where.
    pub reply_to: String,
    /// To which question.
    pub correlation: String,
    /// What.
    pub body: Bytes,
}

struct World {
    router: Router,
    queues: BTreeMap<String, SimulatedQueue>,
    answers: Vec<Answer>,
    faults: Faults,
    random: StdRng,
    is_up: bool,
    full: BTreeSet<String>,
}

struct SimulatedQueue {
    declared: Queue,
    ready: VecDeque<Parcel>,
    consumers: u64,
}

#[derive(Debug, Clone)]
struct Parcel {
    kind: String,
    body: Bytes,
    key: String,
    exchange: String,
    reply: Option<(String, String)>,
    due: Option<u64>,
    given_up_by: Option<(String, String)>,
    returned: u64,
    leaves: Option<Instant>,
}

impl Simulated {
    /// Makes an empty broker; the same seed gives the same faults. Must be called in a runtime.
    pub fn new(seed: u64) -> Self {
        let world = World {
            router: Router::default(),
            queues: BTreeMap::new(),
            answers: Vec::new(),
            faults: Faults::default(),
            random: StdRng::seed_from_u64(seed),
            is_up: true,
            full: BTreeSet::new(),
        };
        let this = Self {
            world: Arc::new(Mutex::new(world)),
            changed: Arc::default(),
            tasks: Arc::default(),
        };
        this.spawn(move_what_waited(
            Arc::clone(&this.world),
            Arc::clone(&this.changed),
        ));
        this
    }

    /// From now on this goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// The broker goes away, or comes back. What it holds stays.
    pub fn set_up(&self, is_up: bool) {
        self.world().is_up = is_up;
        self.changed.notify_waiters();
    }

    /// A queue takes no more, or does again.
    pub fn set_full(&self, queue: &str, is_full: bool) {
        let mut world = self.world();
        if is_full {
            world.full.insert(queue.to_owned());
        } else {
            world.full.remove(queue);
        }
    }

    /// The answers that were sent, oldest first.
    pub fn answers(&self) -> Vec<Answer> {
        self.world().answers.clone()
    }

    /// The bodies that are ready in a queue, oldest first.
    pub fn ready(&self, queue: &str) -> Vec<Bytes> {
        let world = self.world();
        let ready = world
            .queues
            .get(queue)
            .into_iter()
            .flat_map(|queue| &queue.ready);
        ready.map(|parcel| parcel.body.clone()).collect()
    }

    /// Drops what is ready in a queue, as someone with the broker's own tools may.
    pub fn purge(&self, queue: &str) {
        if let Some(queue) = self.world().queues.get_mut(queue) {
            queue.ready.clear();
        }
    }

    /// Publishes a question that wants an answer, as an agent does.
    pub fn ask(&self, publication: Publication, reply_to: &str, correlation: &str) {
        let mut parcel = Parcel::new(publication);
        parcel.reply = Some((reply_to.to_owned(), correlation.to_owned()));
        self.world()
            .take(&parcel)
            .expect("the question reaches a queue");
        self.changed.notify_waiters();
    }

    async fn send(&self, parcel: Parcel) -> Result<(), BrokerError> {
        tokio::task::yield_now().await;
        let mut world = self.world();
        world.reachable()?;
        let Faults {
            refused,
            confirm_lost,
            ..
        } = world.faults;
        if world.chance(refused) {
            return Err(BrokerError::Unreachable("a fault".into()));
        }
        world.take(&parcel)?;
        let is_lost = world.chance(confirm_lost);
        drop(world);
        self.changed.notify_waiters();
        if is_lost {
            Err(BrokerError::TimedOut)
        } else {
            Ok(())
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(task);
    }
}

impl Parcel {
    fn new(publication: Publication) -> Self {
        Self {
            due: publication.due(crate::store::now_ms()),
            kind: publication.kind.to_owned(),
            body: publication.body,
            key: publication.key,
            exchange: publication.exchange,
            reply: None,
            given_up_by: None,
            returned: 0,
            leaves: None,
        }
    }
}

impl World {
    fn chance(&mut self, part: f64) -> bool {
        part > 0.0 && self.random.random_bool(part.min(1.0))
    }

    /// Routes a parcel into queues, all or none.
    fn take(&mut self, parcel: &Parcel) -> Result<(), BrokerError> {
        let Some(reached) = self.router.route(&parcel.exchange, &parcel.key) else {
            return Err(BrokerError::Refused {
                what: format!("take a message for exchange `{}`", parcel.exchange),
                source: "there is no such exchange".into(),
            });
        };
        let is_full = |name: &String| {
            self.full.contains(name)
                || self
                    .queues
                    .get(name)
                    .is_some_and(|queue| queue.ready.len() as u64 >= queue.declared.deliveries_max)
        };
        if reached.iter().any(is_full) {
            return Err(BrokerError::Full {
                key: parcel.key.clone(),
            });
        }
        for name in reached {
            if let Some(queue) = self.queues.get_mut(&name) {
                let leaves = queue.declared.wait.map(|wait| Instant::now() + wait);
                queue.ready.push_back(Parcel {
                    leaves,
                    returned: 0,
                    ..parcel.clone()
                });
            }
        }
        Ok(())
    }

    /// Puts a delivery back, or gives it up.
    fn give_back(&mut self, name: &str, mut parcel: Parcel) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        parcel.returned += 1;
        if parcel.returned <= queue.declared.delivery_limit {
            queue.ready.push_front(parcel);
            return;
        }
        let Some(exchange) = queue.declared.dead_letter_exchange.clone() else {
            return;
        };
        let given_up_by = Some((name.to_owned(), "delivery_limit".to_owned()));
        let letter = Parcel {
            exchange,
            given_up_by,
            ..parcel.clone()
        };
        if self.take(&letter).is_err() {
            // At least once: it stays until there is room.
            parcel.returned -= 1;
            self.queues
                .get_mut(name)
                .expect("it was there")
                .ready
                .push_front(parcel);
        }
    }

    /// Moves on what has waited long enough; returns when the next one has.
    fn move_due(&mut self, now: Instant) -> Option<Instant> {
        let names: Vec<String> = self.queues.keys().cloned().collect();
        for name in &names {
            loop {
                let queue = self.queues.get_mut(name).expect("nothing is removed here");
                let is_due = |parcel: &Parcel| parcel.leaves.is_some_and(|leaves| leaves <= now);
                if !queue.ready.front().is_some_and(is_due) {
                    break;
                }
                let parcel = queue.ready.pop_front().expect("it was just looked at");
                let exchange = queue
                    .declared
                    .dead_letter_exchange
                    .clone()
                    .unwrap_or_default();
                let given_up_by = Some((name.clone(), "expired".to_owned()));
                let moved = Parcel {
                    exchange,
                    given_up_by,
                    ..parcel.clone()
                };
                if self.take(&moved).is_err() {
                    self.queues
                        .get_mut(name)
                        .expect("it was there")
                        .ready
                        .push_front(parcel);
                    break;
                }
            }
        }
        self.queues
            .values()
            .filter_map(|queue| queue.ready.front()?.leaves)
            .min()
    }
}

async fn move_what_waited(world: Arc<Mutex<World>>, changed: Arc<Notify>) {
    loop {
        let notified = changed.notified();
        let next = world
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .move_due(Instant::now());
        let moment = std::time::Duration::from_millis(1);
        let next = next.map(|next| next.max(Instant::now() + moment));
        // Cancel-safe: both only wait.
        tokio::select! {
            () = notified => {}
            () = async { sleep_until(next.expect("guarded")).await }, if next.is_some() => {
                // Somebody may wait for what is moved now.
                world.lock().unwrap_or_else(PoisonError::into_inner).move_due(Instant::now());
                changed.notify_waiters();
            }
        }
    }
}

#[async_trait]
impl Broker for Simulated {
    async fn is_up(&self) -> bool {
        self.world().is_up
    }

    async fn declare(
        &self,
        topology: &Topology,
        former: &[FlowTopology],
    ) -> Result<(), BrokerError> {
        let mut world = self.world();
        world.reachable()?;
        for declaration in declarations(topology) {
            world.router.declare(&declaration);
            if let Declaration::Queue(queue) = declaration {
                world
                    .queues
                    .entry(queue.name.clone())
                    .or_insert(SimulatedQueue {
                        declared: queue,
                        ready: VecDeque::new(),
                        consumers: 0,
                    });
            }
        }
        for binding in stale_bindings(topology, former) {
            world.router.unbind(&binding);
        }
        drop(world);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn publish(&self, publication: Publication) -> Result<(), BrokerError> {
        self.send(Parcel::new(publication)).await
    }

    async fn publish_due(&self, publication: Publication, due: u64) -> Result<(), BrokerError> {
        let mut parcel = Parcel::new(publication);
        parcel.due = Some(due);
        self.send(parcel).await
    }

    async fn depths(&self, queues: &[String]) -> Result<BTreeMap<String, Depth>, BrokerError> {
        let world = self.world();
        world.reachable()?;
        let depth = |name: &String| {
            let queue = world.queues.get(name)?;
            let depth = Depth {
                ready: queue.ready.len() as u64,
                consumers: queue.consumers,
            };
            Some((name.clone(), depth))
        };
        Ok(queues.iter().filter_map(depth).collect())
    }

    async fn delete_queue(&self, queue: &str, even_if_full: bool) -> Result<(), BrokerError> {
        let mut world = self.world();
        world.reachable()?;
        let is_used = |found: &SimulatedQueue| !found.ready.is_empty() || found.consumers > 0;
        if !even_if_full && world.queues.get(queue).is_some_and(is_used) {
            return Err(BrokerError::Refused {
                what: format!("delete queue `{queue}`"),
                source: "it is in use".into(),
            });
        }
        world.queues.remove(queue);
        world.router.remove_queue(queue);
        Ok(())
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let mut world = self.world();
        world.reachable()?;
        world.router.remove_exchange(exchange);
        Ok(())
    }

    async fn consume(&self, queue: &str, window: u16) -> mpsc::Receiver<Delivery> {
        let (sender, receiver) = mpsc::channel(usize::from(window));
        let consumer = Consumer {
            world: Arc::clone(&self.world),
            changed: Arc::clone(&self.changed),
            queue: queue.to_owned(),
            window: usize::from(window),
            sender,
        };
        self.spawn(consumer.run());
        receiver
    }

    async fn reply(
        &self,
        reply_to: &str,
        correlation: &str,
        body: Bytes,
    ) -> Result<(), BrokerError> {
        let mut world = self.world();
        world.reachable()?;
        world.answers.push(Answer {
            reply_to: reply_to.to_owned(),
            correlation: correlation.to_owned(),
            body,
        });
        Ok(())
    }
}

impl World {
    fn reachable(&self) -> Result<(), BrokerError> {
        if self.is_up {
            Ok(())
        } else {
            Err(BrokerError::Unreachable("it is down".into()))
        }
    }
}

struct Consumer {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
    queue: String,
    window: usize,
    sender: mpsc::Sender<Delivery>,
}

impl Consumer {
    async fn run(self) {
        let mut unsettled = FuturesUnordered::new();
        loop {
            let notified = self.changed.notified();
            while unsettled.len() < self.window
                && let Some(parcel) = self.next()
            {
                let (settle, settled) = oneshot::channel::<bool>();
                let delivery = Delivery {
                    is_redelivered: false,
                    kind: parcel.kind.clone(),
                    body: parcel.body.clone(),
                    key: parcel.key.clone(),
                    exchange: parcel.exchange.clone(),
                    reply: parcel.reply.clone(),
                    due: parcel.due,
                    given_up_by: parcel.given_up_by.clone(),
                    settle,
                };
                // If nobody takes it any more, it is dropped, and so given back.
                drop(self.sender.try_send(delivery));
                unsettled.push(async move { (parcel, settled.await.unwrap_or(false)) });
            }
            // Cancel-safe: `next` loses nothing, the others only wait.
            tokio::select! {
                () = notified => {}
                () = self.sender.closed() => break,
                Some((parcel, acknowledged)) = unsettled.next() => self.settle(parcel, acknowledged),
            }
        }
        // What was not taken is dropped without a word, and so given back.
        while let Some((parcel, acknowledged)) = unsettled.next().await {
            self.settle(parcel, acknowledged);
        }
    }

    fn next(&self) -> Option<Parcel> {
        let mut world = self.world();
        if !world.is_up {
            return None;
        }
        world.queues.get_mut(&self.queue)?.ready.pop_front()
    }

    fn settle(&self, parcel: Parcel, acknowledged: bool) {
        let mut world = self.world();
        let lost = world.faults.acknowledgement_lost;
        if !acknowledged || world.chance(lost) {
            world.give_back(&self.queue, parcel);
            drop(world);
            self.changed.notify_waiters();
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::topology::Names;
    use super::*;

    async fn broker() -> (Simulated, Names) {
        let broker = Simulated::new(1);
        let names = Names::new("t");
        let flows = vec![FlowTopology {
            flow: "orders".into(),
            steps: vec![("crm".into(), vec![("poll".into(), "out".into())])],
            aliases: vec![],
            ..FlowTopology::default()
        }];
        broker
            .declare(
                &Topology {
                    names: names.clone(),
                    flows,
                },
                &[],
            )
            .await
            .unwrap();
        (broker, names)
    }

    fn publication(exchange: &str, key: &str) -> Publication {
        let (exchange, key) = (exchange.to_owned(), key.to_owned());
        Publication {
            exchange,
            key,
            kind: "k",
            body: Bytes::from_static(b"x"),
            count: 1,
        }
    }

    #[tokio::test]
    async fn a_delay_takes_its_time() {
        let (broker, names) = broker().await;
        let mut deliveries = broker.consume(&names.queue("orders", "crm"), 4).await;
        let began = Instant::now();
        for millis in [1_750, 250, 750] {
            let (exchange, key) = names.delayed(Duration::from_millis(millis), "orders", "crm");
            broker.publish(publication(&exchange, &key)).await.unwrap();
        }
        for expect in [250, 750, 1_750] {
            deliveries.recv().await.unwrap().settle.send(true).unwrap();
            let took = began.elapsed().as_millis();
            assert!((expect..expect + 200).contains(&took), "{took} {expect}");
        }
    }

    #[tokio::test]
    async fn what_is_given_back_too_often_is_a_dead_letter() {
        let (broker, names) = broker().await;
        broker
            .publish(publication(
                &names.flow("orders"),
                &Names::port_key("poll", "out", ["crm"]),
            ))
            .await
            .unwrap();
        let queue = names.queue("orders", "crm");
        let mut deliveries = broker.consume(&queue, 1).await;
        for _ in 0..=super::super::topology::DELIVERY_LIMIT {
            deliveries.recv().await.unwrap().settle.send(false).unwrap();
        }
        let mut dead = broker.consume(&names.dead(), 1).await;
        let letter = dead.recv().await.unwrap();
        assert_eq!(letter.given_up_by, Some((queue, "delivery_limit".into())));
    }
}

//! Removes the queues of steps and flows that are gone, once nothing uses them any more.
//!
//! # Invariants
//!
//! - A queue that holds something is never removed, unless whoever removed the step wanted its
//!   messages dropped. They go to the step that takes them, or to the dead letters: also those that
//!   come back from a replica that just ended.
//! - Nothing of an earlier version is taken away as long as a replica of one may use it.
//! - It goes on where it was after a restart: what is to be removed is in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use towpath_protocol::message::BATCH_TYPE;

use super::Control;
use crate::broker::topology::{FlowTopology, Handover, Names};
use crate::broker::{Delivery, Publication};
use crate::engine::chain;
use crate::live::LiveFlow;
use crate::store::flows::Removal;
use crate::store::now_ms;

/// How often what could not be removed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// How many deliveries are passed on at a time.
const WINDOW: u16 = 64;

/// How long nothing must come before a queue counts as empty. Acknowledgements are sent meanwhile.
const QUIET: Duration = Duration::from_millis(500);

/// How long a delivery is tried to be passed on before it is given back.
const PASS_ON: Duration = Duration::from_secs(30);

/// The flows whose former bindings are gone, as they were then: the version, and what it hands over.
type Tidied = BTreeMap<String, (u32, Vec<Handover>)>;

impl Control {
    /// Removes queues until `stop`.
    pub async fn run_removals(self: Arc<Self>, stop: CancellationToken) {
        let mut last_trouble = String::new();
        let mut tidied = Tidied::new();
        loop {
            let done = match self.remove_queues().await {
                Ok(0) => self.tidy(&mut tidied).await,
                other => other,
            };
            let rest = match done {
                Ok(0) => Duration::from_secs(60),
                Ok(_) => AGAIN,
                Err(trouble) => {
                    if trouble != last_trouble {
                        tracing::warn!("cannot remove queues: {trouble}");
                        last_trouble = trouble;
                    }
                    AGAIN
                }
            };
            // All are cancel-safe: a notification that is not taken is kept.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.removals.notified() => tokio::time::sleep(Duration::from_millis(200)).await,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Removes what can be removed now, and returns how many queues still wait.
    pub(super) async fn remove_queues(&self) -> Result<usize, String> {
        let removals = self
            .catalog
            .store
            .removals()
            .await
            .map_err(|error| chain(&error))?;
        let mut left = 0;
        let mut done = Vec::new();
        for removal in removals {
            let queue = self
                .catalog
                .ground
                .names
                .queue(&removal.flow, &removal.step);
            if removal.successor.is_some() {
                self.pass_on(&queue, &removal).await?;
            }
            if self.is_used(&removal).await? {
                left += 1;
                continue;
            }
            if !removal.drop_messages {
                self.pass_on(&queue, &removal).await?;
            }
            match self
                .broker
                .delete_queue(&queue, removal.drop_messages)
                .await
            {
                Ok(()) => {
                    tracing::info!(queue, "removed a queue, because its step is gone");
                    self.catalog
                        .store
                        .removed(&removal)
                        .await
                        .map_err(|error| chain(&error))?;
                    done.push(removal.flow.clone());
                }
                Err(error) => {
                    left += 1;
                    tracing::debug!(
                        queue,
                        error = chain(&error),
                        "a queue cannot be removed yet"
                    );
                }
            }
        }
        let is_new = !done.is_empty();
        self.remove_exchanges(done).await?;
        if is_new && left == 0 {
            // From now on the broker itself passes on what still comes out of the ladder.
            self.declare().await.map_err(|error| error.to_string())?;
        }
        Ok(left)
    }

    /// Passes on what is in the queue of a step that is gone: to the step that takes its messages, or
    /// to what was lost, which makes dead letters of it that say why.
    async fn pass_on(&self, queue: &str, removal: &Removal) -> Result<(), String> {
        let depths = self.broker.depths(&[queue.to_owned()]).await;
        let depths = depths.map_err(|error| chain(&error))?;
        if depths.get(queue).is_none_or(|depth| depth.ready == 0) {
            return Ok(());
        }
        let names = &self.catalog.ground.names;
        let own = Names::step_of_part(&removal.step).to_owned();
        let live = self.live.borrow().clone();
        let flow = live.get(&removal.flow);
        let is_there = flow.is_some_and(|flow| flow.steps.iter().any(|(step, _)| *step == own));
        let (exchange, step) = match &removal.successor {
            Some(successor) => (names.steps(), successor),
            // The step has other queues now: it keeps an order, or keeps one no more.
            None if is_there => (names.steps(), &own),
            None => (names.lost(), &own),
        };
        let key = Names::step_key(&removal.flow, step);
        let mut deliveries: mpsc::Receiver<Delivery> = self.broker.consume(queue, WINDOW).await;
        let mut count = 0;
        let mut batch = Vec::new();
        while let Ok(1..) =
            timeout(QUIET, deliveries.recv_many(&mut batch, usize::from(WINDOW))).await
        {
            let sent = join_all(
                batch
                    .drain(..)
                    .map(|delivery| self.send_on(delivery, &exchange, &key)),
            )
            .await;
            count += sent.iter().filter(|sent| **sent).count();
            if sent.contains(&false) {
                // Those that were acknowledged are said to be before the consumer goes.
                tokio::time::sleep(QUIET).await;
                return Err(format!("`{key}` does not take messages of `{queue}` now"));
            }
        }
        tracing::info!(
            queue,
            to = key,
            count,
            "passed on the messages of a step that is gone"
        );
        Ok(())
    }

    /// Sends one delivery on, and acknowledges it only then. Says whether it did.
    async fn send_on(&self, delivery: Delivery, exchange: &str, key: &str) -> bool {
        let lines = delivery.body.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.trim_ascii().is_empty()).count();
        let publication = Publication {
            exchange: exchange.to_owned(),
            key: key.to_owned(),
            kind: BATCH_TYPE,
            body: delivery.body.clone(),
            count: u32::try_from(lines).unwrap_or(u32::MAX),
        };
        let send = async {
            while let Err(error) = self.broker.publish(publication.clone()).await {
                tracing::debug!(key, error = chain(&error), "cannot pass on a message yet");
                tokio::time::sleep(QUIET).await;
            }
        };
        let is_sent = timeout(PASS_ON, send).await.is_ok();
        if delivery.settle.send(is_sent).is_err() {
            // At least once.
            tracing::debug!(
                key,
                "a message that was passed on comes again, and is passed on again"
            );
        }
        is_sent
    }

    /// Removes bindings of earlier versions, once nothing of them runs any more, and forgets steps
    /// for which nothing can come any more. Returns how many flows still wait for that.
    async fn tidy(&self, tidied: &mut Tidied) -> Result<usize, String> {
        let store = &self.catalog.store;
        let flows = self.catalog.live_flows().await;
        let flows = flows.map_err(|error| error.to_string())?;
        let mut left = 0;
        for (name, flow) in &flows {
            let is = (flow.version, flow.handovers.clone());
            if tidied.get(name) == Some(&is) {
                continue;
            }
            // A look at the newest version of those it hands messages to is one at what it sends to.
            let others = flow.handovers.iter().filter_map(|it| flows.get(&it.to));
            let mut seen = std::iter::once(flow).chain(others);
            if !seen.all(|it| self.is_of_one_version(&it.name, it.version)) {
                left += 1;
                continue;
            }
            let former = self.catalog.former_topologies().await;
            let mut former = former.map_err(|error| error.to_string())?;
            former.retain(|it| it.flow == *name);
            self.declare_without(&former).await?;
            tidied.insert(name.clone(), is);
        }
        for former in store.former_steps().await.map_err(|error| chain(&error))? {
            if former.until > now_ms() {
                continue;
            }
            let alias = former.successor.map(|to| (former.step.clone(), to));
            let gone = FlowTopology {
                flow: former.flow.clone(),
                steps: Vec::new(),
                aliases: alias.into_iter().collect(),
                ..FlowTopology::default()
            };
            store
                .forget_former_step(&former.flow, &former.step)
                .await
                .map_err(|error| chain(&error))?;
            self.declare_without(&[gone]).await?;
        }
        Ok(left)
    }

    async fn declare_without(&self, former: &[FlowTopology]) -> Result<(), String> {
        let topology = self.catalog.topology().await;
        let topology = topology.map_err(|error| error.to_string())?;
        let declared = self.broker.declare(&topology, former).await;
        declared.map_err(|error| chain(&error))
    }

    /// Whether all that runs of a flow is of this version, and that is known.
    fn is_of_one_version(&self, flow: &str, version: u32) -> bool {
        let status = self.reconciler.status.borrow();
        let Some(seen) = status.flows.get(flow) else {
            return false;
        };
        status.trouble.is_none()
            && seen.version == version
            && seen
                .steps
                .values()
                .flat_map(|step| &step.replicas)
                .all(|replica| replica.is_current || replica.container.is_none())
    }

    /// Removes the exchanges of flows that are gone with all their queues.
    pub(super) async fn remove_exchanges(&self, flows: Vec<String>) -> Result<(), String> {
        if flows.is_empty() {
            return Ok(());
        }
        let store = &self.catalog.store;
        let kept: BTreeSet<String> = store
            .flows()
            .await
            .map_err(|error| chain(&error))?
            .into_iter()
            .map(|flow| flow.name)
            .collect();
        let waiting: BTreeSet<String> = store
            .removals()
            .await
            .map_err(|error| chain(&error))?
            .into_iter()
            .map(|removal| removal.flow)
            .collect();
        let gone: BTreeSet<String> = flows
            .into_iter()
            .filter(|flow| !kept.contains(flow) && !waiting.contains(flow))
            .collect();
        for flow in gone {
            let exchange = self.catalog.ground.names.flow(&flow);
            self.broker
                .delete_exchange(&exchange)
                .await
                .map_err(|error| chain(&error))?;
            tracing::info!(exchange, "removed an exchange, because its flow is gone");
        }
        Ok(())
    }

    /// Whether a replica of the step is still there, or one of an earlier version of its flow, or of
    /// one that hands messages to it, that may send to it, or nobody knows.
    async fn is_used(&self, removal: &Removal) -> Result<bool, String> {
        if self.has_replicas(removal) {
            return Ok(true);
        }
        let flows = self.catalog.live_flows().await;
        let flows = flows.map_err(|error| error.to_string())?;
        let former = self.catalog.former_topologies().await;
        let former = former.map_err(|error| error.to_string())?;
        let hands = |flow: &FlowTopology| flow.handovers.iter().any(|it| it.to == removal.flow);
        let hands_to_it = |flow: &LiveFlow| {
            let mut former = former.iter().filter(|it| it.flow == flow.name);
            hands(&flow.topology()) || former.any(hands)
        };
        let mut senders = flows
            .values()
            .filter(|flow| flow.name == removal.flow || hands_to_it(flow));
        Ok(senders.any(|flow| !self.is_of_one_version(&flow.name, flow.version)))
    }

    fn has_replicas(&self, removal: &Removal) -> bool {
        let status = self.reconciler.status.borrow();
        if status.at == 0 || status.trouble.is_some() {
            return true;
        }
        let own = Names::step_of_part(&removal.step);
        let live = self.live.borrow();
        let flow = live.get(&removal.flow);
        if flow.is_some_and(|flow| flow.steps.iter().any(|(step, _)| step == own)) {
            // Another queue of a step that is there: those that use it are of an earlier version.
            return false;
        }
        let step = status
            .flows
            .get(&removal.flow)
            .and_then(|flow| flow.steps.get(own));
        step.is_some_and(|step| step.replicas.iter().any(|it| it.container.is_some()))
    }
}

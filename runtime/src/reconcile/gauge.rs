//! What waits for steps, as the loop needs it: the broker's counts, in messages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use crate::broker::Broker;
use crate::broker::topology::Names;
use crate::live::LiveFlows;
use crate::reports::{Reports, StepKey};
use crate::store::now_ms;

/// How long the broker may take to count.
const ANSWER: Duration = Duration::from_secs(3);

/// How often the queues of sleeping steps are looked at.
const WAKE: Duration = Duration::from_secs(1);

/// What there is for a step to do.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Deliveries that wait in its queue.
    pub deliveries: u64,
    /// Whether they are more than half of what the queue may hold.
    pub is_half_full: bool,
    /// Whether the step keeps an order: a replica may have nothing to do while others have.
    pub keeps_order: bool,
    /// About how many messages they hold.
    pub messages: u64,
    /// Messages that its agents take, a second.
    pub rate: f64,
}

/// What there is to do, by step.
pub type Loads = BTreeMap<StepKey, Load>;

/// What says how much there is to do.
#[async_trait]
pub trait Gauge: Send + Sync + 'static {
    /// Says what there is to do for each of these steps; none if the broker cannot be asked now.
    async fn read(&self, steps: &[StepKey]) -> Option<Loads>;
}

/// Asks the broker, and the agents' reports.
pub struct BrokerGauge {
    /// What carries messages.
    pub broker: Arc<dyn Broker>,
    /// What agents say.
    pub reports: Reports,
    /// Which steps keep an order: theirs are several queues.
    pub flows: LiveFlows,
    /// How queues are called.
    pub names: Names,
    /// The most deliveries that a step's queue holds.
    pub deliveries_max: u64,
}

#[async_trait]
impl Gauge for BrokerGauge {
    async fn read(&self, steps: &[StepKey]) -> Option<Loads> {
        if !timeout(ANSWER, self.broker.is_up()).await.ok()? {
            return None;
        }
        let flows = self.flows.borrow().clone();
        let partitions = |(flow, step): &StepKey| flows.get(flow)?.ordered.get(step).copied();
        let queues_of = |key: &StepKey| self.names.queues(&key.0, &key.1, partitions(key));
        let queues: Vec<String> = steps.iter().flat_map(queues_of).collect();
        let depths = if queues.is_empty() {
            BTreeMap::new()
        } else {
            timeout(ANSWER, self.broker.depths(&queues))
                .await
                .ok()?
                .ok()?
        };
        let now = now_ms();
        let load = |key: &StepKey| {
            let (flow, step) = key;
            let ready = |queue: &String| depths.get(queue).map_or(0, |depth| depth.ready);
            let ready: Vec<u64> = queues_of(key).iter().map(ready).collect();
            let deliveries = ready.iter().sum();
            let each = self.reports.messages_per_delivery(flow, step);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an estimate that is not negative, far below the limits of f64"
            )]
            let messages = (deliveries as f64 * each).round() as u64;
            Load {
                deliveries,
                is_half_full: ready.iter().any(|ready| *ready > self.deliveries_max / 2),
                keeps_order: partitions(key).is_some(),
                messages,
                rate: self.reports.rates(flow, step, now).received,
            }
        };
        Some(steps.iter().map(|key| (key.clone(), load(key))).collect())
    }
}

/// Waits until something waits for one of these steps; for ever if there are none.
pub async fn wake(gauge: &dyn Gauge, sleeping: &[StepKey]) {
    if sleeping.is_empty() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(WAKE).await;
        let loads = gauge.read(sleeping).await.unwrap_or_default();
        if loads.values().any(|load| load.deliveries > 0) {
            return;
        }
    }
}

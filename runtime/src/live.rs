//! The flows that are applied, as those see them who send messages into them: the scheduler, the
//! webhook ingress and replay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use towpath_flow::model::{Fires, Flow};

use crate::broker::topology::FlowTopology;
use crate::reconcile::FlowState;

/// All flows that are applied, by name; whoever changes a flow sends a new map.
pub type LiveFlows = watch::Receiver<Arc<BTreeMap<String, LiveFlow>>>;

/// A flow that is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFlow {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// What its trigger should be doing: ticks and requests.
    pub state: FlowState,
    /// Its trigger.
    pub trigger: LiveTrigger,
    /// Its steps that have a queue, each with the (step, port) it takes messages from.
    pub steps: Vec<(String, Vec<(String, String)>)>,
    /// Those of them that keep an order, each with its number of partitions.
    pub ordered: BTreeMap<String, u32>,
}

/// What brings messages into a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveTrigger {
    /// Its step.
    pub step: String,
    /// Whether it runs as containers: then it handles each request to a webhook first.
    pub has_image: bool,
    /// How often it is fired; none for a webhook.
    pub every: Option<Duration>,
}

impl LiveFlow {
    /// Takes from a checked flow what matters here.
    pub fn new(flow: &Flow, version: u32, state: FlowState) -> Self {
        Self {
            name: flow.name.clone(),
            version,
            state,
            trigger: LiveTrigger {
                step: flow.trigger_id.clone(),
                has_image: flow.steps.iter().any(|step| step.is_trigger),
                every: match flow.fires {
                    Fires::Every(every) => Some(every),
                    Fires::Webhook => None,
                },
            },
            steps: flow
                .steps
                .iter()
                .map(|step| (step.id.clone(), step.after.clone()))
                .collect(),
            ordered: ordered(flow),
        }
    }

    /// What it needs on the broker.
    pub fn topology(&self) -> FlowTopology {
        FlowTopology {
            flow: self.name.clone(),
            steps: self.steps.clone(),
            ordered: self.ordered.clone(),
            aliases: Vec::new(),
        }
    }

    /// The routing key of a step's port, in the flow's exchange.
    pub fn port_key(&self, step: &str, port: &str) -> String {
        self.topology().port_key(step, port)
    }
}

/// The steps of a flow that keep an order, each with its number of partitions.
pub fn ordered(flow: &Flow) -> BTreeMap<String, u32> {
    let steps = flow.steps.iter();
    steps
        .filter_map(|step| Some((step.id.clone(), step.order.as_ref()?.partitions)))
        .collect()
}

//! Which exchanges, queues and bindings there should be: pure, from names alone.
//!
//! The table is in ARCHITECTURE.md ("The broker").

use towpath_protocol::start::DELAY_LEVELS;

/// The names of one instance on its broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The instance.
    pub instance: String,
}

impl Names {
    /// Names what belongs to `instance`.
    pub fn new(instance: impl Into<String>) -> Self {
        Self { instance: instance.into() }
    }
    /// The exchange and the queue of what was published to nowhere.
    pub fn lost(&self) -> String {
        format!("{}.lost", self.instance)
    }
    /// The exchange and the queue of dead letters.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.instance)
    }
    /// The exchange of what agents tell the control plane.
    pub fn office(&self) -> String {
        format!("{}.office", self.instance)
    }
    /// The queue of news.
    pub fn news(&self) -> String {
        format!("{}.news", self.instance)
    }
    /// The queue of reports.
    pub fn reports(&self) -> String {
        format!("{}.reports", self.instance)
    }
    /// The exchange that delivers to a step by `<flow>.<step>`.
    pub fn steps(&self) -> String {
        format!("{}.steps", self.instance)
    }
    /// The exchange and the queue of a level of the delay ladder.
    pub fn delay(&self, level: usize) -> String {
        format!("{}.delay.{level}", self.instance)
    }
    /// The exchanges of all levels, finest first.
    pub fn delays(&self) -> Vec<String> {
        (0..DELAY_LEVELS).map(|level| self.delay(level)).collect()
    }
    /// The exchange that joins the steps of a flow.
    pub fn flow(&self, flow: &str) -> String {
        format!("{}.flow.{flow}", self.instance)
    }
    /// The queue of a step.
    pub fn queue(&self, flow: &str, step: &str) -> String {
        format!("{}.flow.{flow}.{step}", self.instance)
    }
    /// The flow and the step of a queue's name.
    pub fn parse_queue<'a>(&self, queue: &'a str) -> Option<(&'a str, &'a str)> {
        queue.strip_prefix(&self.instance)?.strip_prefix(".flow.")?.split_once('.')
    }
    /// The routing key of a step's port, in its flow's exchange.
    pub fn port_key(step: &str, port: &str) -> String {
        format!("{step}.{port}")
    }
    /// The routing key of a step, in the exchange of steps.
    pub fn step_key(flow: &str, step: &str) -> String {
        format!("{flow}.{step}")
    }
}

/// Everything that should be on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The instance's names.
    pub names: Names,
    /// The flows.
    pub flows: Vec<FlowTopology>,
}

/// What one flow needs on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowTopology {
    /// The flow.
    pub flow: String,
    /// Its steps that have a queue, each with the (step, port) it takes messages from.
    pub steps: Vec<(String, Vec<(String, String)>)>,
}

//! A flow that was checked. It cannot be built unchecked: only [`crate::check`] makes one.
//!
//! `with:` is kept as it was written: `${secrets.x}` and `${env.X}` are filled in by
//! [`crate::substitute`] when a replica is made, never before.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use towpath_protocol::handing::{Batch, Rate};
use towpath_protocol::start::{Mode, Retry};

use crate::cron::Cron;
use crate::webhook::Webhook;

/// A flow: one trigger and the actions that follow it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Flow {
    /// Its name.
    pub name: String,
    /// One sentence.
    pub description: String,
    /// What sets the trigger off.
    pub fires: Fires,
    /// What becomes of a firing while the trigger still runs.
    pub overlap: Overlap,
    /// What becomes of firings that nobody was there for.
    pub missed: Missed,
    /// Whether it is noted what comes of each run.
    pub track: bool,
    /// What its webhook asks of requests; none if it is fired in another way.
    pub webhook: Option<Webhook>,
    /// The trigger's step; none for a webhook trigger without an image, whose messages go straight
    /// to the actions that follow it.
    pub trigger_id: String,
    /// All steps that run as containers, in an order in which each comes after those it follows.
    /// The trigger is first, if it has an image.
    pub steps: Vec<Step>,
    /// The actions that hand messages to other flows, and run nowhere.
    pub handovers: Vec<Handover>,
}

/// An action that hands every message to another flow.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handover {
    /// Its id, unique in the flow.
    pub id: String,
    /// What it takes messages from, as (step, port).
    pub after: Vec<(String, String)>,
    /// Its condition.
    pub when: Option<String>,
    /// The other flow.
    pub to: String,
}

/// What sets a trigger off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fires {
    /// A schedule: `every: 30s`.
    Every(Duration),
    /// A schedule by the clock on the wall: `cron: "0 6 * * MON-FRI"`.
    Cron(Box<Cron>),
    /// It runs for ever: `stream: true`.
    Stream,
    /// A request to the flow's URL: `webhook`.
    Webhook,
    /// A message that another flow hands over: `from: flows`.
    Flows,
}

impl Fires {
    /// Whether the trigger is fired by ticks, and so has a checkpoint and runs.
    pub fn by_ticks(&self) -> bool {
        match self {
            Self::Every(_) | Self::Cron(_) | Self::Stream => true,
            Self::Webhook | Self::Flows => false,
        }
    }
}

/// What becomes of a firing while the trigger still runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It is left out.
    #[default]
    Skip,
    /// One is remembered, and fires when the run has ended.
    QueueOne,
}

/// What becomes of firings that nobody was there for, because the control plane was away or the
/// flow did not run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missed {
    /// They are left out.
    #[default]
    Skip,
    /// One run makes up for all of them.
    Once,
}

/// A step that runs as containers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Its id, unique in the flow.
    pub id: String,
    /// Whether it is the trigger.
    pub is_trigger: bool,
    /// What it takes messages from, as (step, port); empty for the trigger.
    pub after: Vec<(String, String)>,
    /// How its messages are kept in order (`order_by`); none if they are not.
    pub order: Option<Order>,
    /// A jq condition on the body: the step takes only what it holds for (`when`).
    pub when: Option<String>,
    /// The image.
    pub image: String,
    /// What to run in it; the image's own entrypoint and command when empty.
    pub command: Vec<String>,
    /// How the process is spoken to.
    pub mode: Mode,
    /// `with:`, as written: an object.
    pub with: Value,
    /// Environment variables of the step process, as written.
    pub env: BTreeMap<String, String>,
    /// How many replicas there are, unless an operator scaled it.
    pub replicas: Replicas,
    /// The most messages in the hands of one replica; the manifest's, or 16, when none.
    pub concurrency: Option<u32>,
    /// How long the step has for one message; zero is without limit.
    pub timeout: Duration,
    /// When a message that failed is tried again.
    pub retry: Retry,
    /// Whether a message that is settled is recognised and never handled again (`once: true`);
    /// false for triggers.
    pub once: bool,
    /// How messages are handed to it.
    pub handing: Handing,
    /// What a replica may use.
    pub limits: Limits,
}

/// How the messages of a step are kept in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A jq expression on the body: messages for which it gives the same have the same key, and are
    /// handled one after the other.
    pub by: String,
    /// How many parts the keys are divided into: so many messages are handled at a time.
    pub partitions: u32,
}

/// How messages are handed to a step.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Handing {
    /// Whether bodies are held against what the image says it takes.
    pub validate: Validate,
    /// How many messages all replicas together are handed, at most.
    pub rate: Option<Rate>,
    /// How many are handed over together, if several are.
    pub batch: Option<Batch>,
}

/// What becomes of a message whose body is not what its step takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Validate {
    /// Nobody looks: the step finds out.
    #[default]
    Off,
    /// It is logged and counted, and handed over.
    Warn,
    /// It is a dead letter, at once.
    DeadLetter,
}

/// How many replicas a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// Always so many.
    Fixed(u32),
    /// As many as the work needs.
    Auto(Autoscale),
}

/// When a step gets more replicas, and when fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscale {
    /// The fewest; 0 lets it sleep while there is nothing to do.
    pub min: u32,
    /// The most; at least 1, and not below the fewest.
    pub max: u32,
    /// What they are counted by.
    pub by: ScaleBy,
}

/// What replicas are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleBy {
    /// One replica for so many messages that wait or are in hand.
    Backlog {
        /// How many; at least 1.
        per_replica: u32,
    },
    /// So many that what waits is worked off within this time.
    Latency(Duration),
}

impl fmt::Display for Replicas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(count) => count.fmt(formatter),
            Self::Auto(auto) => auto.fmt(formatter),
        }
    }
}

impl fmt::Display for Autoscale {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}–{}", self.min, self.max)
    }
}

/// What one replica may use, and what it may do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processors: 0.5 is half of one.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// Whether the root file system can be written (`writable: true`).
    pub writable: bool,
    /// Whether the step keeps root and the engine's default capabilities (`privileges: image`).
    pub image_privileges: bool,
    /// The folders of the host that it finds in `/folders`, by the control plane's names for them.
    pub folders: BTreeMap<String, Access>,
}

/// What a step may do with a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

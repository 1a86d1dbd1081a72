//! What agents tell the control plane, through the broker.
//!
//! Two ways: [`NEWS_KEY`] leads to a durable queue, handled in order and exactly as often as needed
//! (checkpoints, ends of runs); [`REPORT_KEY`] leads to a short queue that forgets the oldest
//! (reports: each one is the whole truth, so losing some costs nothing). Dead letters go to an
//! exchange of their own. While the control plane is away all of them wait; nothing else does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::MessageId;
use crate::message::PastAttempt;
use crate::start::Identity;

/// The routing key of [`News`].
pub const NEWS_KEY: &str = "news";

/// The routing key of [`Report`]s.
pub const REPORT_KEY: &str = "report";

/// The AMQP `type` property of a delivery whose lines are [`DeadLetter`]s.
pub const DEAD_TYPE: &str = "towpath.dead.1";

/// Something the control plane must know, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// A trigger's agent begins (or, after a crash, begins again) a tick and asks for the
    /// checkpoint. Published with `reply_to` = `amq.rabbitmq.reply-to` and a correlation id; the
    /// answer is a [`CheckpointAnswer`]. Everything saved before is in the answer, because both
    /// wait in the same queue.
    AskCheckpoint {
        /// Who asks.
        identity: Identity,
        /// The tick.
        run: MessageId,
        /// The external account.
        connection: String,
    },
    /// A trigger's new position.
    Checkpoint {
        /// Whose.
        identity: Identity,
        /// The tick.
        run: MessageId,
        /// The external account.
        connection: String,
        /// Larger each time within one attempt at a tick.
        number: u64,
        /// The position.
        value: Box<RawValue>,
    },
    /// A tick was settled as done: all it emitted is confirmed.
    RunEnded {
        /// Whose.
        identity: Identity,
        /// The tick.
        run: MessageId,
        /// How many messages it emitted in this attempt.
        emitted: u64,
        /// When, in milliseconds since 1970.
        at: u64,
    },
    /// A tick is to be tried again.
    RunRetries {
        /// Whose.
        identity: Identity,
        /// The tick.
        run: MessageId,
        /// Why.
        reason: String,
        /// When, in milliseconds since 1970.
        next: u64,
    },
}

/// The answer to [`News::AskCheckpoint`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointAnswer {
    /// The tick.
    pub run: MessageId,
    /// The position; none if none was saved.
    pub checkpoint: Option<Box<RawValue>>,
}

/// How an agent is. Every number counts from the start of the agent, so that any report replaces
/// all before it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Who.
    #[schemars(skip)]
    pub identity: Identity,
    /// Different each time an agent starts: counters begin at zero again.
    pub incarnation: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What it is doing.
    pub state: AgentState,
    /// Why it is not simply working, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Messages in the hands of the step.
    pub in_hand: u64,
    /// Messages taken and not yet settled, those in hand included.
    pub held: u64,
    /// Deliveries taken and not yet acknowledged.
    pub unacknowledged: u64,
    /// What it has done since it started.
    pub counters: Counters,
    /// How long handlers took.
    pub latency: Latency,
    /// How often the step process was started again.
    pub restarts: u64,
    /// Resident memory of the step process in bytes, if it can be known.
    #[serde(default)]
    pub step_resident_bytes: u64,
    /// Resident memory of the agent in bytes.
    #[serde(default)]
    pub agent_resident_bytes: u64,
    /// The last lines that the step process wrote before it died, if it keeps dying.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
}

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// The step process is starting.
    Starting,
    /// Messages are taken as they come.
    Running,
    /// Told to stop consuming.
    Paused,
    /// Finishing what it holds, then leaving.
    Draining,
    /// The broker cannot be reached; tried again for ever.
    WaitingForBroker,
    /// The broker refuses what is published (a queue is full, or an alarm): waiting.
    HeldBack,
    /// The step process dies or refuses again and again; tried again after a back-off.
    StepFails,
}

/// What an agent has done since it started, in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// Taken from the queue.
    pub received: u64,
    /// Deliveries they came in.
    pub deliveries: u64,
    /// Outputs confirmed by the broker.
    pub emitted: u64,
    /// Outputs of ports that lead nowhere.
    pub unconnected: u64,
    /// Settled as done.
    pub done: u64,
    /// Attempts that failed, whatever came of them.
    pub failed: u64,
    /// Sent back to be tried again.
    pub retried: u64,
    /// Sent back because it was not yet time.
    pub rebounded: u64,
    /// Given up.
    pub dead: u64,
    /// Of the failed ones: took too long.
    pub timed_out: u64,
    /// Of the failed ones: the process died.
    pub crashed: u64,
}

/// A histogram of handler times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// How many took at most [`LATENCY_BOUNDS_US`]`[i]` and more than the bound before; one more
    /// at the end for those above all bounds.
    pub counts: Vec<u64>,
    /// The sum of all, in microseconds.
    pub sum_us: u64,
}

/// Upper bounds of the buckets of [`Latency`], in microseconds.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    100_000,
    250_000,
    1_000_000,
    5_000_000,
    30_000_000,
    120_000_000,
];

/// A message that a step gave up on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Who gave up.
    pub identity: Identity,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What kind of end it was.
    pub cause: DeadCause,
    /// Why, in a sentence.
    pub reason: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// All attempts that are remembered, the last one included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<PastAttempt>,
    /// The message as it was taken: a [`crate::message::Message`], or a JSON string with whatever
    /// it was if it cannot be read as one.
    pub message: Box<RawValue>,
}

/// Why a message is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadCause {
    /// The step said that it can never succeed.
    Permanent,
    /// The attempts are used up.
    Attempts,
    /// The rebounds are used up.
    Rebounds,
    /// It cannot be read.
    Undecodable,
    /// The step emitted something that cannot be sent on, such as a body above the limit.
    Output,
    /// It was delivered too often without being settled (the broker's delivery limit).
    Deliveries,
    /// It was published to where no queue is.
    Unroutable,
}

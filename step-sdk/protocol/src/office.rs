//! What agents tell the control plane, through the broker, and what it answers.
//!
//! | Key | Queue | Carries |
//! |---|---|---|
//! | [`NEWS_KEY`] | durable, in order | [`News`]: checkpoints, ends of runs |
//! | [`LEDGER_KEY`] | durable, in order | [`LedgerEntry`]: who has which message, and what is settled |
//! | [`REPORT_KEY`] | short, forgets the oldest | [`Report`]: each is the whole truth; [`Found`]: answers |
//! | [`WAITING_KEY`] | bounded, forgets the oldest | [`Waiting`]: what went into the delay ladder |
//! | [`RUNS_KEY`](crate::runs::RUNS_KEY) | durable, in order, bounded | [`crate::runs`]: what came of runs |
//!
//! Dead letters go to an exchange of their own. While the control plane is away all of them wait;
//! nothing else does, but for steps with `once: true`, which cannot claim messages without it.
//!
//! The other way there is one: a publish that has `reply_to` (direct reply-to) can be answered with
//! a [`ToAgent`]. Every report has it, so that a question can be asked of any agent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::MessageId;
use crate::handing::Rate;
use crate::message::PastAttempt;
use crate::start::Identity;

/// The routing key of [`News`].
pub const NEWS_KEY: &str = "news";

/// The routing key of [`Report`]s.
pub const REPORT_KEY: &str = "report";

/// The routing key of [`LedgerEntry`].
pub const LEDGER_KEY: &str = "ledger";

/// The routing key of [`Waiting`].
pub const WAITING_KEY: &str = "waiting";

/// The AMQP `type` property of a delivery that is one [`News`].
pub const NEWS_TYPE: &str = "towpath.news.1";

/// The AMQP `type` property of a delivery that is one [`Report`].
pub const REPORT_TYPE: &str = "towpath.report.1";

/// The AMQP `type` property of a delivery that is one [`Found`].
pub const FOUND_TYPE: &str = "towpath.found.1";

/// The AMQP `type` property of a delivery that is one [`LedgerEntry`].
pub const LEDGER_TYPE: &str = "towpath.ledger.1";

/// The AMQP `type` property of a delivery whose lines are [`Waiting`].
pub const WAITING_TYPE: &str = "towpath.waiting.1";

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
        /// The version of the checkpoint that it replaces: what was answered, and one more for each
        /// save since. It is not stored if there is another one by then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<u64>,
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
        /// It is not yet time, rather than that it failed.
        #[serde(default)]
        is_rebound: bool,
    },
    /// What came of a call to register: the answer to [`ToAgent::Register`].
    Registration {
        /// Who was called.
        identity: Identity,
        /// The call.
        call: MessageId,
        /// What came of it.
        outcome: RegistrationOutcome,
    },
    /// A tick was left because an operator cancelled its run: nothing more comes of it.
    RunCancelled {
        /// Whose.
        identity: Identity,
        /// The tick.
        run: MessageId,
        /// How many messages it emitted in this attempt.
        emitted: u64,
        /// When, in milliseconds since 1970.
        at: u64,
    },
}

/// What came of a call to register.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistrationOutcome {
    /// The URL is registered.
    Activated {
        /// What the step wants to be kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kept: Option<Box<RawValue>>,
    },
    /// Nothing is registered any more.
    Deactivated,
    /// Neither is known.
    Failed {
        /// Why, with the causes.
        reason: String,
        /// When the step wants to be called again, in milliseconds from now, if it says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delay_ms: Option<u64>,
        /// The step says that it can never succeed as it is configured now.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_permanent: bool,
    },
}

/// What the control plane says to an agent, at the direct reply-to of something the agent published.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// Where a trigger was.
    Checkpoint(CheckpointAnswer),
    /// Which messages may be handled.
    Claimed(Claimed),
    /// A question about one message; answered by [`Found`], to [`REPORT_KEY`].
    Find(Find),
    /// A run is cancelled: whoever has its tick leaves it, and says so with
    /// [`News::RunCancelled`]. Repeated until that is heard.
    Cancel(CancelRun),
    /// What its share of its step's rate is.
    Share(Share),
    /// Its trigger is to register the flow's URL at its source, or to take that back. Told by
    /// [`News::Registration`].
    Register(Register),
}

/// An entry of the **ledger**: the record of which messages of a step are in somebody's hands and
/// which are settled. A message is named by its id and by how often it was replayed.
///
/// Steps with `once: true` claim every message and record every settlement. Other steps claim only
/// messages that came back again and again because whoever had them died; see [`Claim::alone`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerEntry {
    /// An agent asks for messages. Published with `reply_to` and the correlation id of the question;
    /// the answer is [`Claimed`]. Everything settled before is in the answer, because both wait in
    /// the same queue.
    Claim(Claim),
    /// Messages are settled as done, or dead: published and confirmed before the message's delivery
    /// is acknowledged, after its outputs are confirmed.
    Settled(Handled),
    /// Messages are in nobody's hands any more and not settled: they go to the delay ladder, or
    /// back to the queue. Published like [`Self::Settled`].
    Released(Handled),
}

/// A question: may I handle these?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claim {
    /// Who asks.
    pub identity: Identity,
    /// The agent's [`Report::incarnation`].
    pub incarnation: String,
    /// Names the question; the answer has it as well.
    pub question: u64,
    /// How long the claims hold, in milliseconds: the step's time limit and what it takes to kill a
    /// step that does not keep it. After that, or as soon as it is known that whoever holds a claim
    /// is gone, somebody else may take it over.
    pub lease_ms: u64,
    /// The message is handed over alone, so that if the container dies, it was this message: only
    /// takeovers of such claims count as [`Grant::Yours`]`.deaths`.
    #[serde(default)]
    pub alone: bool,
    /// The messages: id and number of replays.
    pub messages: Vec<(MessageId, u32)>,
}

/// Messages of one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Handled {
    /// Whose.
    pub identity: Identity,
    /// The agent's [`Report::incarnation`].
    pub incarnation: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The messages: id and number of replays.
    pub messages: Vec<(MessageId, u32)>,
}

/// The answer to [`Claim`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claimed {
    /// The question.
    pub question: u64,
    /// One a message, in the order of the question.
    pub grants: Vec<Grant>,
}

/// Whether a message may be handled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// It may, by whoever asked.
    Yours {
        /// Somebody had claimed it before and is gone: it may have been handled.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        uncertain: bool,
        /// How many containers died while they had this message alone in their hands.
        #[serde(default, skip_serializing_if = "is_zero")]
        deaths: u32,
        /// How the last of them died, if that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        death: Option<String>,
    },
    /// It was settled: acknowledge it and forget it.
    Settled,
    /// Somebody else has it: ask again after so many milliseconds.
    Busy {
        /// How long to wait.
        again_ms: u64,
    },
}

/// That a run is cancelled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelRun {
    /// The run.
    pub run: MessageId,
}

/// A call to a trigger that registers by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Register {
    /// Names the call.
    pub call: MessageId,
    /// What it is to do.
    pub act: RegistrationAct,
    /// The URL: to be registered, or that was.
    pub url: String,
    /// What the step last wanted to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Box<RawValue>>,
}

/// What a trigger is called to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistrationAct {
    /// Register the URL.
    Activate,
    /// Take back what is registered.
    Deactivate,
}

/// How long a trigger has for a call to register, in milliseconds. After it the agent says that it
/// took too long.
pub const REGISTRATION_MS: u64 = 60_000;

/// A question about one message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Find {
    /// Names the question.
    pub question: u64,
    /// The message.
    pub id: MessageId,
}

/// What an agent knows about one message: the answer to [`Find`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// Who answers.
    pub identity: Identity,
    /// The question.
    pub question: u64,
    /// What it has of the message now, if anything.
    pub now: Option<Holding>,
    /// What it remembers that happened to the message and to its children, oldest first. An agent
    /// remembers the newest events only.
    pub events: Vec<Happened>,
    /// Since when it remembers everything, in milliseconds since 1970.
    pub reach: u64,
}

/// How an agent has a message.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Holding {
    /// Taken from the queue, and waiting for a place in the step's hands.
    Waiting,
    /// Kept by the agent until it is tried again, and those behind it with it: the step keeps an
    /// order.
    Held {
        /// When it is tried again, in milliseconds since 1970.
        due: u64,
        /// Which attempt comes next, from 1.
        attempt: u32,
    },
    /// In the step's hands.
    InHand {
        /// Since when, in milliseconds since 1970.
        since: u64,
        /// Which attempt, from 1.
        attempt: u32,
    },
    /// Decided, and waiting for the broker's confirms.
    Settling,
}

/// Something that happened to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Happened {
    /// The message.
    #[schemars(with = "String")]
    pub id: MessageId,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What.
    pub what: What,
}

/// What can happen to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The step emitted it, and the broker has it.
    Emitted {
        /// The message it was made from.
        #[schemars(with = "String")]
        parent: MessageId,
        /// The port it left by.
        port: String,
        /// The step it went to, if it went to this one alone; else it went to all that take
        /// everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    /// The step emitted it, and no condition of the steps after it held for it: it went nowhere.
    Unmatched {
        /// The message it was made from.
        #[schemars(with = "String")]
        parent: MessageId,
        /// The port it left by.
        port: String,
    },
    /// The step made an output from it together with other messages.
    Joined {
        /// The output.
        #[schemars(with = "String")]
        output: MessageId,
        /// The port it left by.
        port: String,
    },
    /// Settled as done.
    Done {
        /// The attempt that did it, from 1.
        attempt: u32,
    },
    /// Sent to the delay ladder.
    Delayed {
        /// The attempt that ended, from 1.
        attempt: u32,
        /// When it comes back, in milliseconds since 1970.
        due: u64,
    },
    /// Given up.
    Dead {
        /// The attempt that ended, from 1.
        attempt: u32,
    },
    /// Recognised as settled before, and not handled again.
    Repeated,
}

/// A message that went into the delay ladder, for people: a note that may be lost, unlike the
/// message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {
    /// Whose step it waits for.
    pub identity: Identity,
    /// The message.
    pub id: MessageId,
    /// Its run.
    pub run: MessageId,
    /// The external account.
    pub connection: String,
    /// The attempt that comes next, from 1.
    pub attempt: u32,
    /// How many attempts there are in all.
    pub attempts: u32,
    /// The rebounds so far.
    pub rebounds: u32,
    /// How often it was replayed.
    pub replays: u32,
    /// It is not yet time, rather than that it failed.
    pub is_rebound: bool,
    /// Why.
    pub reason: String,
    /// When its first attempt at this step failed or was put off, in milliseconds since 1970.
    pub since: u64,
    /// When it comes back, in milliseconds since 1970.
    pub due: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The answer to [`News::AskCheckpoint`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointAnswer {
    /// The tick.
    pub run: MessageId,
    /// The position; none if none was saved.
    pub checkpoint: Option<Box<RawValue>>,
    /// Its version, which each write raises by one; 0 if there never was one.
    #[serde(default)]
    pub version: u64,
    /// The run is cancelled: its tick is not handed over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
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
    /// How it keeps to its step's rate, if that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pacing: Option<Pacing>,
}

/// How an agent keeps to its step's rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pacing {
    /// The number of the report, from 1. Only an answer to the last one counts, so what is said here
    /// stays true until the next report, unless this one is answered.
    pub number: u64,
    /// The rate of the step.
    pub rate: Rate,
    /// Messages a second that this replica may hand over.
    pub share: f64,
    /// Messages waited for their turn since the report before.
    pub is_waiting: bool,
}

/// The answer to a report with [`Report::pacing`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// [`Pacing::number`] of the report.
    pub number: u64,
    /// Messages a second that the replica may hand over from now on.
    pub per_second: f64,
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
    /// Recognised as settled before, and not handled again (`once: true`).
    #[serde(default)]
    pub repeated: u64,
    /// Put into the partitions of their keys, of a step that keeps an order. Not counted as taken:
    /// that is when they come out of there.
    #[serde(default)]
    pub sorted: u64,
    /// Outputs that no condition of the steps after this one held for: they went nowhere.
    #[serde(default)]
    pub unmatched: u64,
    /// Bodies that are not what the step takes (`validate`), whatever came of them.
    #[serde(default)]
    pub invalid: u64,
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
    /// Its body is not what the step takes (`validate: dead-letter`).
    Invalid,
    /// The step emitted something that cannot be sent on, such as a body above the limit.
    Output,
    /// It was delivered too often without being settled (the broker's delivery limit).
    Deliveries,
    /// It was published to where no queue is.
    Unroutable,
    /// An operator took it out of the delay ladder.
    Cancelled,
    /// Its step was taken out of the flow.
    Removed,
    /// The step keeps an order, and no key to order it by can be computed.
    Key,
    /// The step's condition (`when`) failed for it, so nobody knows whether it goes there.
    Condition,
}

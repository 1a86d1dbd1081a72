//! What the office, the scheduler and replay put into the store and take out of it: the shapes of
//! runs and dead letters.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::frame::Why;
use towpath_protocol::message::PastAttempt;
use towpath_protocol::office::DeadCause;

/// One firing of a trigger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id, which is the id of its tick.
    pub id: MessageId,
    /// The flow.
    pub flow: String,
    /// The trigger's step.
    pub step: String,
    /// The external account.
    pub connection: String,
    /// The version of the flow.
    pub version: u32,
    /// Why it fired.
    pub why: Why,
    /// How far it is.
    pub state: RunState,
    /// When it was due, in milliseconds since 1970.
    pub due: u64,
    /// When it was recorded, in milliseconds since 1970.
    pub started_at: u64,
    /// When it ended, whatever the end was, in milliseconds since 1970.
    pub ended_at: Option<u64>,
    /// How many messages it brought in, if it ended well.
    pub emitted: Option<u64>,
    /// How often it was sent back to be tried again.
    pub attempts: u32,
    /// When it is tried again, in milliseconds since 1970, if it is to be.
    pub next_at: Option<u64>,
    /// Why it is tried again, failed or was abandoned.
    pub reason: Option<String>,
    /// What a person gave with `towpath run --payload`.
    pub payload: Option<Box<RawValue>>,
    /// Whether it is noted what comes of it.
    pub tracked: bool,
    /// Since when it is to be cancelled, in milliseconds since 1970.
    pub cancel_at: Option<u64>,
}

/// What is known of a run beside its record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunProgress {
    /// Whether it is noted what comes of it.
    pub tracked: bool,
    /// When its tick was taken first. All times are in milliseconds since 1970.
    pub began_at: Option<u64>,
    /// When something was heard of it last: a checkpoint, or a message.
    pub progress_at: Option<u64>,
    /// Since when everything that came of it is settled.
    pub finished_at: Option<u64>,
    /// Why not everything that came of it is known.
    pub lost: Option<String>,
    /// Since when it is to be cancelled.
    pub cancel_at: Option<u64>,
    /// It waits because it is not yet time, not because it failed.
    pub is_rebound: bool,
    /// Where its trigger was when it began; the beginning of it, if it is long.
    pub checkpoint_before: Option<String>,
    /// Where its trigger was last.
    pub checkpoint_after: Option<String>,
    /// How many of its messages wait to be tried again.
    pub retrying: u64,
    /// The steps that messages of it came to, in the order in which they did: first its trigger's,
    /// with the tick.
    pub steps: Vec<StepSums>,
}

/// How many messages of a run came to a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepSums {
    /// The step.
    pub step: String,
    /// Not settled.
    pub open: u64,
    /// Settled as done.
    pub done: u64,
    /// Given up.
    pub dead: u64,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Remembered: it begins when the one that is active has ended.
    Queued,
    /// Recorded; whether its tick was published is not known: it is published again.
    Recorded,
    /// Its tick is confirmed by the broker.
    Published,
    /// All it brought in is confirmed by the broker.
    Done,
    /// Its tick is a dead letter.
    Failed,
    /// Its tick is nowhere any more: given up, so that the next can fire.
    Abandoned,
    /// An operator cancelled it.
    Cancelled,
}

impl RunState {
    /// Says whether no other run of the trigger may begin.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Recorded | Self::Published)
    }
}

/// A message that was given up, until someone replays or discards it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetterRecord {
    /// The store's number; 0 before it is stored.
    pub id: u64,
    /// The flow; empty if that cannot be known.
    pub flow: String,
    /// The step that gave up; for [`DeadCause::Unroutable`] with a `port`, the step it came from.
    pub step: String,
    /// The port by which it left `step`, if it was lost on the way to the next: a replay sends it on
    /// from there.
    pub port: Option<String>,
    /// The version of the flow that it entered; 0 if it cannot be read.
    pub version: u32,
    /// The external account.
    pub connection: String,
    /// The run it belongs to, if it can be read.
    pub run: Option<MessageId>,
    /// The message's id; a hash of what it was if it cannot be read.
    pub message_id: MessageId,
    /// What kind of end it was.
    pub cause: DeadCause,
    /// Why, in a sentence.
    pub reason: String,
    /// The causes, outermost first.
    pub chain: Vec<String>,
    /// The failed attempts.
    pub attempts: Vec<PastAttempt>,
    /// Which replica gave up; 0 if it was the broker.
    pub replica: u32,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// How often it had been replayed before.
    pub replays: u32,
    /// What was done about it.
    pub state: DeadState,
    /// The message, or a JSON string with whatever it was.
    pub message: Box<RawValue>,
}

impl DeadLetterRecord {
    /// What makes it one and the same dead letter, however often it is delivered: the flow, the
    /// step, the port, the message and how often it was replayed.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [
            &self.flow,
            &self.step,
            self.port.as_deref().unwrap_or_default(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(self.message_id.as_bytes());
        hasher.update(&self.replays.to_le_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// What was done about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadState {
    /// Nothing yet.
    Open,
    /// It is being sent again just now, by a job if the letter has one.
    Replaying,
    /// It was sent again.
    Replayed,
    /// Someone decided that it is not needed.
    Discarded,
}

/// How many dead letters of a step are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDeadLetters {
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// The external account.
    pub connection: String,
    /// How many.
    pub count: u64,
}

//! The step protocol: frames of newline-delimited JSON between an agent and a step process.
//!
//! The step reads frames at descriptor 3 and writes frames at descriptor 4. Each line is an object
//! with one key, the kind of the frame. Keys inside have a fixed order, `body` last; a reader must
//! accept any order and ignore keys it does not know. `docs/step-protocol.md` is the manual.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::MessageId;
use crate::message::Message;

/// The descriptor a step reads frames at.
pub const STEP_READS_FD: i32 = 3;

/// The descriptor a step writes frames at.
pub const STEP_WRITES_FD: i32 = 4;

/// What an agent says to a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToStep<'a> {
    /// The first frame.
    #[serde(borrow)]
    Hello(Hello<'a>),
    /// The next messages are to be handled together (`batch` in the flow).
    Batch(Together),
    /// A message to handle: the line of the batch as it is.
    Message(Message<'a>),
    /// A trigger fires.
    Tick(Tick<'a>),
    /// A message's outcome is no longer wanted.
    Cancel(Cancel<'a>),
    /// A trigger is to register the flow's URL at its source.
    Activate(Activate<'a>),
    /// A trigger is to take back what it registered.
    Deactivate(Deactivate<'a>),
    /// A checkpoint is durable.
    Saved(Saved),
    /// A trigger that runs for ever is to come to an end: save a checkpoint and say `done`. The next
    /// tick goes on from there.
    Finish(Finish),
    /// No more will come: finish what is in hand and exit with 0.
    Drain(Drain),
}

/// What a step says to its agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromStep<'a> {
    /// The answer to hello: messages may come.
    #[serde(borrow)]
    Ready(Ready<'a>),
    /// The answer to hello: this configuration can never work. The step exits.
    Refused(Refused<'a>),
    /// An output.
    Emit(Emit<'a>),
    /// A message, or a tick, was handled.
    Done(Done),
    /// A message, a tick, or a call to register was not handled.
    Failed(Failed<'a>),
    /// The flow's URL is registered at the source.
    Activated(Activated<'a>),
    /// Nothing of the flow is registered at the source any more.
    Deactivated(Deactivated),
    /// A trigger's new position in its source.
    Checkpoint(Checkpoint<'a>),
    /// A log line that belongs to a message.
    Log(Log<'a>),
}

/// Who the step is, and what it is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// The version of this protocol that the agent speaks.
    pub contract: u32,
    /// The flow.
    #[serde(borrow)]
    pub flow: Cow<'a, str>,
    /// The step's id in the flow.
    #[serde(borrow)]
    pub step: Cow<'a, str>,
    /// The number of this replica, from 1.
    pub replica: u32,
    /// The most messages that are in the step's hands at a time.
    pub concurrency: u32,
    /// How long the step has for one message, in milliseconds; 0 is without limit.
    pub timeout_ms: u64,
    /// The largest body the step may emit, in bytes.
    pub body_bytes_max: usize,
    /// The step's `with:`, secrets filled in.
    #[serde(borrow)]
    pub config: &'a RawValue,
}

/// Messages that are to be handled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Together {
    /// How many of the next frames of kind `message` it is.
    pub count: u32,
}

/// The step is ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready<'a> {
    /// The version of this protocol that the step speaks.
    pub contract: u32,
    /// What made the step, for logs: `towpath-step 0.1.0`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sdk: Option<Cow<'a, str>>,
}

/// The step refuses its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused<'a> {
    /// Why, for the flow's author.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
}

/// A trigger fires.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tick<'a> {
    /// The id of the tick, which is the id of the run.
    pub id: MessageId,
    /// Which try at this tick this is, from 1.
    pub attempt: u32,
    /// Why it fires.
    pub why: Why,
    /// When it was due, in milliseconds since 1970.
    pub due: u64,
    /// The position that was saved last; none on the first run.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<&'a RawValue>,
    /// What a person gave with `towpath run --payload`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a RawValue>,
}

/// A tick is to come to an end, though there is always more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Finish {
    /// The tick.
    pub id: MessageId,
}

/// Why a trigger fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Its schedule says so.
    Schedule,
    /// A person asked for it.
    Manual,
    /// A request began it. Runs have this reason, and no tick.
    Webhook,
}

/// The body of a tick's message, from the control plane to a trigger's agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TickBody<'a> {
    /// Why it fires.
    pub why: Why,
    /// When it was due, in milliseconds since 1970.
    pub due: u64,
    /// What a person gave with `towpath run --payload`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a RawValue>,
}

/// A trigger with `registers` in its manifest is to register a URL at its source, so that the source
/// sends its events there. The answer is [`FromStep::Activated`], or `failed`: then it is called again
/// later, as often as it takes.
///
/// It must be possible to do it twice: whether the last call did it may not be known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Activate<'a> {
    /// Names the call.
    pub id: MessageId,
    /// The URL to which the source is to send its events.
    #[serde(borrow)]
    pub url: Cow<'a, str>,
    /// What the step last said is to be kept; none if it is not known to be registered.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<&'a RawValue>,
}

/// A trigger is to take back what it registered. The answer is [`FromStep::Deactivated`], or `failed`:
/// then it is called again later, as often as it takes. It must be possible to do it twice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deactivate<'a> {
    /// Names the call.
    pub id: MessageId,
    /// The URL that it was called with last to register.
    #[serde(borrow)]
    pub url: Cow<'a, str>,
    /// What the step last said is to be kept; none if nothing was heard of the call to register.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<&'a RawValue>,
}

/// The agent has given up waiting for a message. What the step says of it from now on is ignored,
/// but it counts as in the step's hands until the step says `done` or `failed` of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cancel<'a> {
    /// The message.
    pub id: MessageId,
    /// Why: `timeout`, or `claim` if somebody else may have the message by now.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
}

/// A checkpoint is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The tick.
    pub id: MessageId,
    /// The number that the step gave the checkpoint.
    pub number: u64,
}

/// Nothing more will come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {}

/// An output of a message or of a tick.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Emit<'a> {
    /// The message, or the tick, it was made from.
    pub id: MessageId,
    /// Further messages that it was made from. It leaves when all of them are done, and none of them
    /// is settled before the broker has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<MessageId>,
    /// The port it leaves by; [`crate::DEFAULT_PORT`] when left out.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Cow<'a, str>>,
    /// Its ordering key; the parent's when left out.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    /// Triggers only: what the source calls this state of this item. The same name gives the same
    /// message id, so that what is read twice is recognised. A time-ordered id when left out.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<Cow<'a, str>>,
    /// An object of strings that travels beside the body.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<&'a RawValue>,
    /// The data.
    #[serde(borrow)]
    pub body: &'a RawValue,
}

/// A message, or a tick, was handled; all its outputs were emitted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The message or the tick.
    pub id: MessageId,
}

/// A message, or a tick, was not handled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed<'a> {
    /// The message or the tick.
    pub id: MessageId,
    /// What is to become of it.
    pub fate: Fate,
    /// When to try again, in milliseconds from now; the flow's back-off when left out.
    /// A rebound without one waits as long as the flow's first retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Why, in a sentence.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// The causes, outermost first.
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Cow<'a, str>>,
}

/// The flow's URL is registered at the source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Activated<'a> {
    /// The call.
    pub id: MessageId,
    /// What the step needs to know of it later: any JSON, at most [`crate::KEPT_BYTES_MAX`] bytes. It is
    /// stored as secrets are.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<&'a RawValue>,
}

/// Nothing of the flow is registered at the source any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deactivated {
    /// The call.
    pub id: MessageId,
}

/// What is to become of a message that was not handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It failed; try it again after a back-off.
    Retry,
    /// It can never succeed: a dead letter, at once.
    Permanent,
    /// It is not yet time; try it again later. Not a failure.
    Rebound,
}

/// A trigger's new position in its source. It is saved once all that was emitted before it is
/// confirmed by the broker; then the agent answers [`ToStep::Saved`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint<'a> {
    /// The tick.
    pub id: MessageId,
    /// A number that the step chooses, larger each time.
    pub number: u64,
    /// The position: any JSON, at most [`crate::CHECKPOINT_BYTES_MAX`] bytes.
    #[serde(borrow)]
    pub value: &'a RawValue,
}

/// A log line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Log<'a> {
    /// The message it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<MessageId>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(borrow)]
    pub level: Cow<'a, str>,
    /// The line.
    #[serde(borrow)]
    pub text: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round_trip(line: &str) {
        let frame: FromStep<'_> = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&frame).unwrap(), line);
    }

    #[test]
    fn frames_from_a_step_keep_their_shape() {
        round_trip(r#"{"ready":{"contract":1}}"#);
        round_trip(r#"{"emit":{"id":"00000000000000000000000000000001","body":{"a":[1, 2]}}}"#);
        round_trip(
            r#"{"emit":{"id":"00000000000000000000000000000001","with":["00000000000000000000000000000002"],"body":1}}"#,
        );
        round_trip(r#"{"done":{"id":"00000000000000000000000000000001"}}"#);
        round_trip(
            r#"{"failed":{"id":"00000000000000000000000000000001","fate":"rebound","delay_ms":5,"reason":"not yet"}}"#,
        );
        round_trip(
            r#"{"checkpoint":{"id":"00000000000000000000000000000001","number":2,"value":"x"}}"#,
        );
    }

    #[test]
    fn unknown_keys_are_ignored() {
        let line = r#"{"done":{"new":1,"id":"00000000000000000000000000000001"}}"#;
        assert!(serde_json::from_str::<FromStep<'_>>(line).is_ok());
    }
}

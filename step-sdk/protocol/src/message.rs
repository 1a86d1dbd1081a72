//! One message as it travels: one line of a batch.
//!
//! An AMQP delivery is a **batch**: one message a line, each a compact JSON object whose keys have
//! this fixed order, `body` last:
//!
//! ```json
//! {"id":"…","lineage":{"run":"…","version":3,"at":1795222861000},"parent":"…","key":"…","attempt":2,"rebounds":1,"replays":1,"history":[…],"headers":{…},"body":{…}}
//! ```
//!
//! The order lets an agent find the id and the body without parsing either; a reader must still
//! accept any order. `lineage` is written once, where a message enters the flow, and copied byte
//! for byte from parent to child. Everything but `id`, `lineage` and `body` is left out when empty.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{DEFAULT_CONNECTION, MessageId};

/// The AMQP `type` property of a delivery that is a batch of [`Message`] lines.
pub const BATCH_TYPE: &str = "towpath.batch.1";

/// The AMQP `content-type` property of a batch.
pub const BATCH_CONTENT_TYPE: &str = "application/x-ndjson";

/// The AMQP header that carries the number of messages in a batch.
pub const BATCH_COUNT_HEADER: &str = "towpath-count";

/// The AMQP header that carries how often a delivery had come back when its messages were sent on one
/// by one; the broker counts their own returns from zero.
pub const BATCH_RETURNS_HEADER: &str = "towpath-returns";

/// The AMQP header of a delivery in the delay ladder that says when it comes back to its step, in
/// milliseconds since 1970: whoever takes it out before can put it back for the rest of its delay.
pub const DUE_HEADER: &str = "towpath-due";

/// The number of past attempts a message carries; older ones are dropped.
pub const HISTORY_MAX: usize = 10;

/// The number of log lines that are kept of one attempt.
pub const ATTEMPT_LINES_MAX: usize = 10;

/// The number of bytes that each of them is cut to.
pub const ATTEMPT_LINE_BYTES_MAX: usize = 300;

/// The number of bytes a reason in [`PastAttempt`] is cut to.
pub const REASON_BYTES_MAX: usize = 1024;

/// One message, borrowed from the line it was read from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message<'a> {
    /// Its id: derived from its parent, or given where it entered the flow.
    pub id: MessageId,
    /// What it inherits unchanged from the message that entered the flow; see [`Lineage`].
    #[serde(borrow)]
    pub lineage: &'a RawValue,
    /// The message it was made from; none for a message that entered the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<MessageId>,
    /// The ordering key, if the step that emitted it gave one.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    /// Which try of the current step at it this is, from 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub attempt: u32,
    /// How often the current step asked to see it later.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rebounds: u32,
    /// How often an operator replayed it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replays: u32,
    /// Somebody may have handled it before, in part or in whole, without anybody knowing: it was
    /// tried before, or it was taken by a replica that did not settle it. Said to a step by its
    /// agent; on the broker only a message has it that an agent sent back without handling it, which
    /// nothing else about it would tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncertain: bool,
    /// The failed attempts of the current step at it, oldest first, at most [`HISTORY_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<PastAttempt>,
    /// What the step that emitted it said beside the body: an object of strings.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<&'a RawValue>,
    /// The data: any JSON value, compact, at most [`crate::BODY_BYTES_MAX`] bytes.
    #[serde(borrow)]
    pub body: &'a RawValue,
}

impl<'a> Message<'a> {
    /// Makes a message that enters the flow now.
    pub fn root(id: MessageId, lineage: &'a RawValue, body: &'a RawValue) -> Self {
        Self {
            id,
            lineage,
            parent: None,
            key: None,
            attempt: 1,
            rebounds: 0,
            replays: 0,
            uncertain: false,
            history: Vec::new(),
            headers: None,
            body,
        }
    }
}

/// What every message inherits from the one that entered the flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The run it belongs to: the id of the tick or of the webhook's message.
    pub run: MessageId,
    /// The version of the flow that it entered.
    pub version: u32,
    /// The flow that it entered, if that hands messages to others: there it is the only one that
    /// does not follow from where the message is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// What comes of the run is reported by the flows that it is handed to, as by its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tracked: bool,
    /// When it entered, in milliseconds since 1970.
    pub at: u64,
    /// The external account it is about.
    #[serde(
        default = "default_connection",
        skip_serializing_if = "is_default_connection"
    )]
    pub connection: String,
    /// W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// One try that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PastAttempt {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it failed, in milliseconds since 1970.
    pub at: u64,
    /// Which replica tried.
    #[serde(default)]
    pub replica: u32,
    /// Why it failed.
    pub reason: String,
    /// The last lines that were logged during it, oldest first, at most [`ATTEMPT_LINES_MAX`]; only
    /// the newest attempts of a history keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

fn one() -> u32 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_one(count: &u32) -> bool {
    *count == 1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn default_connection() -> String {
    DEFAULT_CONNECTION.to_owned()
}

fn is_default_connection(connection: &str) -> bool {
    connection == DEFAULT_CONNECTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_keys_in_order_and_leaves_out_what_is_empty() {
        let lineage = RawValue::from_string(r#"{"run":"00"}"#.into()).unwrap();
        let body = RawValue::from_string(r#"{"a":1}"#.into()).unwrap();
        let message = Message::root(MessageId::from_bytes([0; 16]), &lineage, &body);
        let line = serde_json::to_string(&message).unwrap();
        assert_eq!(
            line,
            r#"{"id":"00000000000000000000000000000000","lineage":{"run":"00"},"body":{"a":1}}"#
        );
        let back: Message<'_> = serde_json::from_str(&line).unwrap();
        assert_eq!(back.attempt, 1);
        assert_eq!(back.body.get(), r#"{"a":1}"#);
    }
}

//! What a handler is given: a typed body, a body with what is known of its message, or a tick.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use towpath_protocol::MessageId;
pub use towpath_protocol::frame::Why;

use crate::context::About;
use crate::error::{Result, StepError};

/// What a handler takes: any type that can be read from JSON and has a schema, or an [`Item`].
///
/// Not to be implemented by steps.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the input of a step",
    note = "derive `serde::Deserialize` and `schemars::JsonSchema` for it"
)]
pub trait Input: Sized + 'static {
    #[doc(hidden)]
    fn schema(generator: &mut SchemaGenerator) -> Schema;

    #[doc(hidden)]
    fn read(raw: Raw<'_>) -> Result<Self>;
}

/// A message before its body is read.
#[doc(hidden)]
#[derive(Debug)]
pub struct Raw<'a> {
    pub(crate) body: &'a RawValue,
    pub(crate) about: &'a Arc<About>,
}

impl<T: DeserializeOwned + JsonSchema + 'static> Input for T {
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.root_schema_for::<T>()
    }

    fn read(raw: Raw<'_>) -> Result<Self> {
        decode(raw.body, "the body")
    }
}

/// A body together with what is known of its message: for a batch handler that needs the ids.
///
/// It reads like the body itself: `item.cents` is the field of the body.
#[derive(Debug)]
pub struct Item<T> {
    /// The body.
    pub body: T,
    about: Arc<About>,
}

impl<T> Item<T> {
    /// Returns the message's id.
    pub fn message_id(&self) -> MessageId {
        self.about.id
    }

    /// Returns a text that is the same whenever this step handles this message.
    pub fn idempotency_key(&self) -> String {
        self.about.id.to_string()
    }

    /// Returns which try at the message this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.about.attempt
    }

    /// Returns whether somebody may have handled the message before without anybody knowing; see
    /// [`Context::is_uncertain`](crate::Context::is_uncertain).
    pub fn is_uncertain(&self) -> bool {
        self.about.is_uncertain
    }

    /// Returns the message's ordering key.
    pub fn key(&self) -> Option<&str> {
        self.about.key.as_deref()
    }

    /// Returns what the step before said beside the body.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        self.about.headers()
    }
}

impl<T> Deref for Item<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.body
    }
}

impl<T: DeserializeOwned + JsonSchema + 'static> Input for Item<T> {
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.root_schema_for::<T>()
    }

    fn read(raw: Raw<'_>) -> Result<Self> {
        Ok(Self {
            body: decode(raw.body, "the body")?,
            about: Arc::clone(raw.about),
        })
    }
}

/// A trigger fires.
///
/// `K` is the type of its checkpoint: its durable position in the source.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick<K> {
    /// The position that was saved last; none on the first run.
    pub checkpoint: Option<K>,
    /// Why it fires.
    pub why: Why,
    /// When it was due, in milliseconds since 1970.
    pub due: u64,
    /// What a person gave with `towpath run --payload`.
    pub payload: Option<serde_json::Value>,
}

/// Reads JSON; what cannot be read can never be read, and the reason says where.
pub(crate) fn decode<T: DeserializeOwned>(json: &RawValue, what: &str) -> Result<T> {
    serde_json::from_str(json.get()).or_else(|plain| {
        // The path costs time, so it is looked for only when there is something to say.
        let mut reader = serde_json::Deserializer::from_str(json.get());
        match serde_path_to_error::deserialize::<_, T>(&mut reader) {
            Ok(value) => Ok(value),
            Err(error) => Err(unreadable(what, &error.path().to_string(), &plain)),
        }
    })
}

fn unreadable(what: &str, path: &str, error: &serde_json::Error) -> StepError {
    let text = error.to_string();
    // The body is one line, so a position in it says nothing that the path does not.
    let text = text.split(" at line ").next().unwrap_or(&text);
    let place = match path {
        "." | "" => Cow::Borrowed(what),
        path => Cow::Owned(format!("`{path}` of {what}")),
    };
    StepError::permanent(format!("cannot read {place}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Order {
        #[expect(dead_code, reason = "only reading it matters")]
        lines: Vec<Line>,
    }

    #[derive(Debug, Deserialize)]
    struct Line {
        #[expect(dead_code, reason = "only reading it matters")]
        cents: u64,
    }

    #[track_caller]
    fn check(json: &str, expect: &str) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        let error = decode::<Order>(&raw, "the body").unwrap_err();
        assert_eq!(error.fate(), crate::Fate::Permanent);
        assert_eq!(error.reason(), expect);
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        check(
            r#"{"lines":[{"cents":1},{"cents":"2"}]}"#,
            "cannot read `lines[1].cents` of the body: invalid type: string \"2\", expected u64",
        );
        check("{}", "cannot read the body: missing field `lines`");
        check(
            "7",
            "cannot read the body: invalid type: integer `7`, expected struct Order",
        );
    }
}

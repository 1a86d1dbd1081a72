//! What a step image says of itself: the JSON in its label [`MANIFEST_LABEL`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The label of an image that holds its manifest as JSON.
pub const MANIFEST_LABEL: &str = "io.towpath.manifest";

/// What a step is, what it takes, and what it gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// The version of the step protocol that the step speaks.
    pub contract: u32,
    /// Its name: `http-poll`.
    pub name: String,
    /// Its version: `1.0.0`.
    #[serde(default)]
    pub version: String,
    /// One sentence.
    #[serde(default)]
    pub description: String,
    /// What it is.
    pub kind: Kind,
    /// The JSON Schema of `with:`; none accepts anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// The JSON Schema of the bodies it takes; none takes anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// Its ports and the JSON Schema of what leaves by each; null is anything.
    #[serde(default = "default_ports")]
    pub ports: BTreeMap<String, Value>,
    /// The `concurrency` a flow gets when it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// It is a webhook trigger that registers the flow's URL at its source by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub registers: bool,
    /// The most messages that it handles together; it handles each by itself when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// It makes something of several messages, so a flow has to say with `batch` of which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_batch: bool,
}

fn default_ports() -> BTreeMap<String, Value> {
    BTreeMap::from([(crate::DEFAULT_PORT.to_owned(), Value::Null)])
}

/// What a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A trigger that is fired by ticks (`every`) and brings messages in.
    Poll,
    /// A trigger that is handed each request to a webhook URL.
    Webhook,
    /// A step that is handed each message.
    Action,
}

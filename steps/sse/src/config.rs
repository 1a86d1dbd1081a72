//! `with:` of the step.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step_json::Path;
use towpath_step_span::Span;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The URL of the stream.
    pub url: String,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The events to take, by their names; one without a name is `message`. All, if left out.
    #[serde(default)]
    pub events: BTreeSet<String>,
    /// What the data of an event is.
    #[serde(default)]
    pub data: Data,
    /// The path, in data that is JSON, to what tells an event from others. The id of the event, if
    /// left out.
    #[serde(default)]
    pub id: Option<Path>,
    /// How long one run listens; the next goes on after it. `0s` is for ever.
    #[serde(default = "default_for", rename = "for")]
    #[schemars(default = "default_for")]
    pub listen_for: Span,
    /// A connection on which nothing came for so long is made again.
    #[serde(default = "default_idle")]
    #[schemars(default = "default_idle")]
    pub idle: Span,
    /// How long the server may take to begin its answer.
    #[serde(default = "default_timeout")]
    #[schemars(default = "default_timeout")]
    pub timeout: Span,
    /// The `User-Agent`.
    #[serde(default = "default_user_agent")]
    #[schemars(default = "default_user_agent")]
    pub user_agent: String,
}

/// What the data of an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// JSON, which is the message's body. An event whose data is none ends the run with a reason.
    #[default]
    Json,
    /// JSON; an event whose data is none is left out, with a warning.
    JsonOrSkip,
    /// Text, which is the message's body as a string.
    Text,
}

fn default_for() -> Span {
    Span::seconds(0)
}

fn default_idle() -> Span {
    Span::seconds(60)
}

fn default_timeout() -> Span {
    Span::seconds(30)
}

fn default_user_agent() -> String {
    format!("towpath-sse/{}", env!("CARGO_PKG_VERSION"))
}

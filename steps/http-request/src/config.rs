//! `with:` of the step.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use towpath_step_span::Span;

/// `with:` of the step. `method`, `url`, the values of `headers` and the texts in `body` are
/// templates: `{{ .customer.name }}` is a field of the message's body.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The method.
    #[serde(default = "default_method")]
    #[schemars(default = "default_method")]
    pub method: String,
    /// The URL. What is filled in is encoded, so that it stays one part of a path or of a query;
    /// `{{ .url | safe }}` is taken as it is.
    pub url: String,
    /// Headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What to send: any JSON, with templates inside its texts; a text that is one `{{ … }}` and
    /// nothing else keeps the type of its value. The message's body if left out.
    #[serde(default)]
    pub body: Option<Value>,
    /// How long one request may take; less than the step has for a message, which is 30 seconds
    /// unless the flow says otherwise.
    #[serde(default = "default_timeout")]
    #[schemars(default = "default_timeout")]
    pub timeout: Span,
    /// Statuses beside 2xx that are a success, such as 409 for "is there already".
    #[serde(default)]
    pub success: Vec<u16>,
    /// What the step emits.
    #[serde(default)]
    pub emit: EmitWhat,
    /// Where to ask whether it was done already, for a target that cannot recognise a repetition.
    #[serde(default)]
    pub check: Option<Check>,
}

/// A question with `GET`, before a message is sent that may have been sent before: 2xx says that it
/// was, and its answer is what the step emits; 404 that it was not; after anything else the
/// message is tried again later.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The URL, a template like the other.
    pub url: String,
    /// Headers of the question; those of the request if left out.
    #[serde(default)]
    pub headers: Option<BTreeMap<String, String>>,
}

/// What the step emits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmitWhat {
    /// The answer: `{status, headers, body}`.
    #[default]
    Response,
    /// The message's body, unchanged.
    Input,
    /// Nothing.
    None,
}

fn default_method() -> String {
    "POST".to_owned()
}

fn default_timeout() -> Span {
    Span::seconds(25)
}

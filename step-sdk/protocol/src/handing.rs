//! How messages are handed to a step: what is looked at before, and how fast.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How messages are handed to a step. The default is: as they come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Handing {
    /// Bodies are held against a schema first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate: Option<Validation>,
}

/// What bodies are held against before they are handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// The JSON Schema of what the step takes, from its manifest.
    pub schema: Value,
    /// What becomes of a message whose body does not fit.
    pub misfit: Misfit,
}

/// What becomes of a message whose body is not what the step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Misfit {
    /// It is logged and counted, and handed over all the same.
    Warn,
    /// It is a dead letter, at once.
    DeadLetter,
}

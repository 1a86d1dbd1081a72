//! How messages are handed to a step: what is looked at before, and how fast.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How messages are handed to a step. The default is: as they come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Handing {
    /// Bodies are held against a schema first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate: Option<Validation>,
    /// No more than so many are handed over, by all replicas together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Several are handed over together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// How many messages are handed over together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// So many at most; at least 1.
    pub max: u32,
    /// How long the first of them waits for more, in milliseconds.
    pub wait_ms: u64,
}

/// How many messages may be handed to a step, by all its replicas together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// So many; at least 1.
    pub count: u32,
    /// In so many milliseconds; at least 1.
    pub per_ms: u64,
}

/// The part of what is handed over in a second that may be handed over at once, if nothing was for a
/// while; but one message by each replica always may.
pub const BURST_PART: f64 = 0.1;

impl Rate {
    /// Messages a second.
    pub fn per_second(self) -> f64 {
        f64::from(self.count) * 1_000.0 / self.per_ms.max(1) as f64
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count;
        match self.per_ms {
            1_000 => write!(formatter, "{count}/s"),
            60_000 => write!(formatter, "{count}/m"),
            3_600_000 => write!(formatter, "{count}/h"),
            other => write!(formatter, "{count} in {other} ms"),
        }
    }
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

//! One line of a step container's log: what an agent writes on its standard output.
//!
//! ```json
//! {"at":1795222861000,"level":"info","flow":"orders","step":"crm","replica":1,"source":"stdout","text":"hello"}
//! ```
//!
//! The agent's own events, the lines that the step process writes on its standard output and
//! standard error, and its `log` frames all have this one shape. Secrets are already `***`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::MessageId;

/// The most bytes of text in one [`LogLine`]; what is longer is cut.
pub const LOG_TEXT_BYTES_MAX: usize = 16 << 10;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine<'a> {
    /// When it was read, in milliseconds since 1970.
    pub at: u64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(borrow)]
    pub level: Cow<'a, str>,
    /// The flow.
    #[serde(borrow)]
    pub flow: Cow<'a, str>,
    /// The step's id in the flow.
    #[serde(borrow)]
    pub step: Cow<'a, str>,
    /// The number of the replica, from 1.
    pub replica: u32,
    /// The message it is about, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// Who wrote it.
    pub source: LogSource,
    /// What it says.
    #[serde(borrow)]
    pub text: Cow<'a, str>,
}

/// Who wrote a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The agent itself.
    Agent,
    /// The step process, on its standard output.
    Stdout,
    /// The step process, on its standard error.
    Stderr,
    /// The step process, with a `log` frame.
    Step,
}

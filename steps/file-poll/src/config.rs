//! `with:` of the step.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step_rows::Format;
use towpath_step_span::Span;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which files: a path with wildcards, such as `/folders/inbox/*.csv`; `**` is any number of
    /// folders.
    pub files: String,
    /// What is in them; by the end of each file's name if left out: `.csv`, `.tsv`, `.jsonl` or
    /// `.ndjson`.
    #[serde(default)]
    pub format: Option<Format>,
    /// For CSV: the character between two values; a tab for `.tsv`, a comma for all others, if left
    /// out.
    #[serde(default)]
    pub delimiter: Option<char>,
    /// For CSV without a line of names: the names of the columns.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// How long a file has to be as it is to be finished. Then its last row counts without the end
    /// of its line, and `then` happens.
    #[serde(default = "default_settled")]
    #[schemars(default = "default_settled")]
    pub settled: Span,
    /// What becomes of a file that is finished.
    #[serde(default)]
    pub then: Then,
    /// For `then: move`: the folder that finished files go to.
    #[serde(default)]
    pub move_to: Option<PathBuf>,
}

/// What becomes of a file that is finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It stays, and rows that are added to it later are brought in.
    #[default]
    Keep,
    /// It is removed.
    Delete,
    /// It goes to the folder `move_to`.
    Move,
}

fn default_settled() -> Span {
    Span::seconds(5)
}

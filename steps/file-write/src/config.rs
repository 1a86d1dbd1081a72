//! `with:` of the step.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step_rows::Format;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder, such as `/folders/outbox`.
    pub folder: PathBuf,
    /// The name of the file, a template: `orders-{{ .day }}.csv`.
    pub file: String,
    /// What is in it; by the end of `file` if left out: `.csv`, `.tsv`, `.jsonl`, `.ndjson` or
    /// `.json`.
    #[serde(default)]
    pub format: Option<Format>,
    /// For CSV: the fields of a message's body that are its columns, in their order.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// For CSV: the character between two values; a tab for `.tsv`, a comma for all others, if left
    /// out.
    #[serde(default)]
    pub delimiter: Option<char>,
    /// How a message gets into its file.
    #[serde(default)]
    pub mode: Mode,
}

/// How a message gets into its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// As a row at its end.
    #[default]
    Append,
    /// As all of it: the file is there whole or as it was before, never in part.
    Replace,
}

//! `with:` of the step.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step_json::Path;
use towpath_step_span::Span;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The database: `postgres://user@host:5432/database?sslmode=verify-full`.
    pub url: String,
    /// The password, if it is not in the URL: `${secrets.crm_password}`. Here it needs no escapes.
    #[serde(default)]
    pub password: Option<String>,
    /// Certificates to trust beside the authorities of the web, as PEM, for `sslmode=verify-full`.
    #[serde(default)]
    pub certificates: Option<String>,
    /// The table: `deals` or `crm.deals`.
    pub table: String,
    /// What is done with each message.
    #[serde(default)]
    pub mode: Mode,
    /// The columns that say which row a message is about; those of the primary key if left out.
    /// An upsert needs a unique index over exactly them.
    #[serde(default)]
    pub key: Option<Vec<String>>,
    /// Where in the body each column is: `{ id: id, city: address.city }`. If left out, the fields
    /// of the body are the columns.
    #[serde(default)]
    pub columns: Option<BTreeMap<String, Path>>,
    /// What becomes of a message whose body has a field that is no column. Not with `columns`.
    #[serde(default)]
    pub unknown: Unknown,
    /// For an insert: what becomes of a message whose row is there already.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// For an update or a delete: what becomes of a message whose row is not there. An update
    /// fails, and a delete ignores it, if left out.
    #[serde(default)]
    pub on_missing: Option<OnMissing>,
    /// For an upsert: a column that grows with every change of a row, such as `updated_at`. A
    /// message with a smaller value than the row has came late, and changes nothing.
    #[serde(default)]
    pub newest: Option<String>,
    /// What the step emits.
    #[serde(default)]
    pub emit: Emit,
    /// How long the database may take for one statement; less than the step has for a message,
    /// which is 30 seconds unless the flow says otherwise.
    #[serde(default = "default_statement_timeout")]
    #[schemars(default = "default_statement_timeout")]
    pub statement_timeout: Span,
}

/// What is done with each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A new row, or the columns of the message in the row that is there.
    #[default]
    Upsert,
    /// A new row.
    Insert,
    /// The columns of the message in the row that is there.
    Update,
    /// The row goes.
    Delete,
}

/// What becomes of a message whose body has a field that is no column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// It fails.
    #[default]
    Fail,
    /// The field is left out.
    Ignore,
}

/// What becomes of a message whose row is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// It fails.
    #[default]
    Fail,
    /// Nothing: the row stays as it is.
    Ignore,
}

/// What becomes of a message whose row is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// It fails.
    Fail,
    /// Nothing.
    Ignore,
}

/// What the step emits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Emit {
    /// Nothing.
    #[default]
    None,
    /// The message's body, unchanged, when it is written.
    Input,
}

impl Config {
    /// Says whether a message whose row is not there fails.
    pub(crate) fn missing_fails(&self) -> bool {
        match (self.on_missing, self.mode) {
            (Some(what), Mode::Update | Mode::Delete) => what == OnMissing::Fail,
            (None, Mode::Update) => true,
            _ => false,
        }
    }
}

fn default_statement_timeout() -> Span {
    Span::seconds(20)
}

//! `with:` of the step.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step_span::Span;

/// `with:` of the step: either a `table` or a `query`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The database: `postgres://user@host:5432/database?sslmode=verify-full`.
    pub url: String,
    /// The password, if it is not in the URL: `${secrets.shop_password}`. Here it needs no escapes.
    #[serde(default)]
    pub password: Option<String>,
    /// Certificates to trust beside the authorities of the web, as PEM, for `sslmode=verify-full`.
    #[serde(default)]
    pub certificates: Option<String>,
    /// The table or view: `orders` or `shop.orders`.
    #[serde(default)]
    pub table: Option<String>,
    /// A query in place of a table: one `SELECT`.
    #[serde(default)]
    pub query: Option<String>,
    /// The columns of a message's body; all if left out.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Which rows to bring in: a condition as after `WHERE`.
    #[serde(default, rename = "where")]
    pub filter: Option<String>,
    /// The column that says when a row changed or was made: a time, an integer that grows, a text
    /// or a UUID that grows.
    pub cursor: String,
    /// The columns that tell apart the rows of one cursor value; those of the primary key if left
    /// out. For a view or a query they have to be named.
    #[serde(default)]
    pub key: Option<Vec<String>>,
    /// Where the first run begins: the smallest value of the cursor; the beginning if left out.
    #[serde(default)]
    pub since: Option<Since>,
    /// How far each run looks back for rows that became visible late: as long as the longest
    /// transaction that writes them. A length of time, or a number for a cursor that is one.
    #[serde(default)]
    pub look_back: Option<LookBack>,
    /// How many rows are read at a time.
    #[serde(default = "default_page")]
    #[schemars(default = "default_page", range(min = 1, max = 10_000))]
    pub page: NonZeroU32,
    /// How `numeric` and `money` are written: as texts with every digit, or as numbers with every
    /// digit, which not everything that reads JSON keeps.
    #[serde(default)]
    pub numeric: Numbers,
    /// How long the database may take for one page.
    #[serde(default = "default_statement_timeout")]
    #[schemars(default = "default_statement_timeout")]
    pub statement_timeout: Span,
}

/// The smallest value of the cursor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Since {
    /// A number.
    Number(i64),
    /// A time or another text, as the database reads it.
    Text(String),
}

impl Since {
    /// Returns it as the database reads it.
    pub fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// How far a run looks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LookBack {
    /// So many numbers.
    Number(u32),
    /// So long.
    Span(Span),
}

/// How numbers without a bound on their digits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// `"12.50"`.
    #[default]
    Text,
    /// `12.50`.
    Number,
}

fn default_page() -> NonZeroU32 {
    NonZeroU32::new(1000).expect("1000 is not zero")
}

fn default_statement_timeout() -> Span {
    Span::seconds(60)
}

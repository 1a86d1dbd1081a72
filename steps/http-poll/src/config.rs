//! `with:` of the step.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step_json::Path;
use towpath_step_span::Span;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The URL of the list, or of its first page.
    pub url: String,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The path to the list of items in an answer, such as `data.items`. The answer itself, or its
    /// only list, if left out.
    #[serde(default)]
    pub items: Option<Path>,
    /// The path to an item's id.
    #[serde(default = "default_id")]
    #[schemars(default = "default_id")]
    pub id: Path,
    /// The path to what says when an item changed last, such as `updated_at`: a time, a number or
    /// a text that grows. Without it the whole list is read every time.
    #[serde(default)]
    pub cursor: Option<Path>,
    /// The parameter that asks for what changed since; sent once there is a checkpoint, or from the
    /// first time on with `since`.
    #[serde(default = "default_since_param")]
    #[schemars(default = "default_since_param")]
    pub since_param: String,
    /// How far the first run goes back, such as `90d`. Everything, if left out.
    #[serde(default)]
    pub since: Option<Span>,
    /// How the source writes the times that `since` is compared with.
    #[serde(default)]
    pub since_format: SinceFormat,
    /// How far each run goes back behind the last one, such as `5m`, for items that appear late, with
    /// an old time. What was brought in is recognised.
    #[serde(default)]
    pub look_back: Option<Span>,
    /// A jq condition on an item: one for which it gives nothing, or nothing but `false` and `null`,
    /// is left out.
    #[serde(default)]
    pub filter: Option<String>,
    /// The source lists items in the order of their `cursor`, oldest first. Then a long walk saves
    /// its place after every page; otherwise only at its end.
    #[serde(default)]
    pub sorted: bool,
    /// How to get from page to page.
    #[serde(default)]
    pub page: PageConfig,
    /// How long one request may take.
    #[serde(default = "default_timeout")]
    #[schemars(default = "default_timeout")]
    pub timeout: Span,
    /// A wait that the source asks for is waited out if it is at most this long; for a longer one
    /// the run is given back and goes on later.
    #[serde(default = "default_patience")]
    #[schemars(default = "default_patience")]
    pub patience: Span,
    /// The `User-Agent`.
    #[serde(default = "default_user_agent")]
    #[schemars(default = "default_user_agent")]
    pub user_agent: String,
    /// The most pages of one run.
    #[serde(default = "default_max_pages")]
    #[schemars(default = "default_max_pages")]
    pub max_pages: NonZeroU32,
    /// The largest page, in MiB. It is read as it comes, and never held.
    #[serde(default = "default_page_mib_max")]
    #[schemars(default = "default_page_mib_max", range(min = 1, max = 65536))]
    pub page_mib_max: u32,
}

/// How a source writes times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SinceFormat {
    /// As a text: `2026-11-21T10:00:00Z`.
    #[default]
    Time,
    /// As a text without a time of day: `2026-11-21`.
    Date,
    /// As a number: seconds since 1970.
    Seconds,
    /// As a number: milliseconds since 1970.
    Milliseconds,
}

/// How to get from page to page.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PageConfig {
    /// The way.
    #[serde(default)]
    pub style: Style,
    /// The parameter that names the page: `page` for numbers, `cursor` for cursors, `offset` for
    /// offsets.
    #[serde(default)]
    pub param: Option<String>,
    /// For cursors: the path to the cursor, or the URL, of the next page; `next_cursor` if left
    /// out. For URLs: the path to the URL; `next` if left out. Where nothing is, the list ends.
    #[serde(default)]
    pub next: Option<Path>,
    /// The parameter that asks for a number of items; `limit` for offsets if left out.
    #[serde(default)]
    pub size_param: Option<String>,
    /// The number of items to ask for.
    #[serde(default)]
    pub size: Option<NonZeroU32>,
    /// For numbers: the first page; 1 if left out. For offsets: the first item; 0 if left out.
    #[serde(default)]
    pub start: Option<u64>,
    /// The path to a marker of the end: the list ends with the page where it is true.
    #[serde(default)]
    pub end: Option<Path>,
    /// The path to a marker of more, such as `has_more`: the list ends with the page where it is
    /// there and not true.
    #[serde(default)]
    pub more: Option<Path>,
}

/// The way from page to page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// There is one page.
    None,
    /// The header `Link: <…>; rel="next"` leads to the next page; without one there is none.
    #[default]
    Link,
    /// Each answer has the cursor, or the URL, of the next page.
    Cursor,
    /// Each answer has the URL of the next page, whole or relative.
    Url,
    /// Pages are numbered; the first empty one is the end.
    Number,
    /// Each page is asked for by the number of items before it; the first empty one is the end.
    Offset,
}

fn default_id() -> Path {
    Path::from("id")
}

fn default_since_param() -> String {
    "updated_since".to_owned()
}

fn default_timeout() -> Span {
    Span::seconds(30)
}

fn default_patience() -> Span {
    Span::seconds(10)
}

fn default_user_agent() -> String {
    format!("towpath-http-poll/{}", env!("CARGO_PKG_VERSION"))
}

fn default_max_pages() -> NonZeroU32 {
    NonZeroU32::new(10_000).expect("10000 is not zero")
}

fn default_page_mib_max() -> u32 {
    1024
}

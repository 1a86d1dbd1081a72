//! Which dead letters: the same options for every command.

use clap::Args;

use super::super::words;
use crate::control::dead::view::DeadSelection;
use crate::store::now_ms;

/// Which ones: those for which everything that is given holds.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which dead letters")]
pub(super) struct Which {
    /// Of this group, as `towpath dead groups` shows it
    #[arg(long)]
    pub(super) group: Option<String>,
    /// Of this flow
    #[arg(long)]
    pub(super) flow: Option<String>,
    /// Of this step
    #[arg(long)]
    pub(super) step: Option<String>,
    /// That came to this kind of end, such as `permanent` or `attempts`
    #[arg(long)]
    pub(super) cause: Option<String>,
    /// That died since then: `2h`, `3d`, or a time in UTC such as `2026-11-21T03:00`
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) since: Option<u64>,
    /// That died before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) until: Option<u64>,
    /// For which this jq filter holds, such as `.body.total > 100`; `dead export` shows what it sees
    #[arg(long, value_name = "JQ")]
    pub(super) filter: Option<String>,
}

impl Which {
    /// As the API takes it.
    pub(super) fn selection(&self, ids: &[String], all: bool) -> DeadSelection {
        DeadSelection {
            ids: ids.to_vec(),
            group: self.group.clone(),
            flow: self.flow.clone(),
            step: self.step.clone(),
            cause: self.cause.clone(),
            since: self.since,
            until: self.until,
            filter: self.filter.clone(),
            all,
        }
    }

    /// As the API takes it in a URL.
    pub(super) fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        for (name, value) in [
            ("group", &self.group),
            ("flow", &self.flow),
            ("step", &self.step),
            ("cause", &self.cause),
            ("filter", &self.filter),
        ] {
            query.extend(value.iter().map(|value| (name, value.clone())));
        }
        for (name, value) in [("since", self.since), ("until", self.until)] {
            query.extend(value.map(|value| (name, value.to_string())));
        }
        query
    }

    /// Whether nothing but numbers may have been given.
    pub(super) fn is_empty(&self) -> bool {
        self.query().is_empty()
    }
}

/// Reads a time: how long ago, or a moment in UTC.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    if let Some(days) = text.strip_suffix('d')
        && let Ok(days) = days.parse::<u64>()
    {
        return Ok(now_ms().saturating_sub(days.saturating_mul(86_400_000)));
    }
    if let Ok(ago) = words::duration(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(now_ms().saturating_sub(ago));
    }
    let at = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    });
    at.and_then(|at| u64::try_from(at.as_millisecond()).ok())
        .ok_or_else(|| {
            "write how long ago, such as `2h` or `3d`, or a time in UTC such as `2026-11-21T03:00`"
                .to_owned()
        })
}

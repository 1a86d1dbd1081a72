//! What is made once, before the first run: or why `with:` cannot be used.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use towpath_step::{Result, StepError};
use towpath_step_http::{
    Client, HeaderMap, HeaderValue, Settings, Url, add_headers, header, read_url,
};
use towpath_step_jq::pool::{Pool, Settings as Filter};

use crate::config::{Config, SinceFormat};
use crate::fetch::Fetch;
use crate::read::Bounds;
use crate::value::{CursorValue, Position};

/// The largest answer that is read as a whole: one that is no page.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long the filter may take for one item.
const FILTER_TIMEOUT: Duration = Duration::from_secs(1);

/// The most values that a condition may give: more is a mistake.
const FILTER_OUTPUTS_MAX: u32 = 100;

/// How much memory the filter may use for one item.
const FILTER_MEMORY_MIB: u32 = 64;

/// What is made once.
#[derive(Debug)]
pub struct State {
    pub(crate) fetch: Fetch,
    pub(crate) url: Url,
    pub(crate) bounds: Bounds,
    pub(crate) filter: Option<Pool>,
    /// The hash of everything that says what is asked for, and what is made of the answer.
    pub(crate) question: u64,
}

/// Checks the configuration, makes the client, and has the filter compiled.
pub async fn setup(config: &Config) -> Result<State> {
    let url = read_url(&config.url).map_err(StepError::permanent)?;
    if config.cursor.is_none() {
        for (key, is_set) in [
            ("look_back", config.look_back.is_some()),
            ("since", config.since.is_some()),
        ] {
            if is_set {
                return Err(StepError::permanent(format!(
                    "`{key}` needs `cursor`, the path to what says when an item changed"
                )));
            }
        }
    }
    let client = Client::new(&Settings {
        timeout: config.timeout.duration(),
        user_agent: config.user_agent.clone(),
        answer_bytes_max: ANSWER_BYTES_MAX,
        certificates: std::env::var_os("SSL_CERT_FILE").map(Into::into),
    })?;
    let timeout = config.timeout.duration();
    Ok(State {
        fetch: Fetch {
            client,
            headers: read_headers(config)?,
            timeout,
        },
        bounds: Bounds {
            timeout,
            bytes_max: u64::from(config.page_mib_max.clamp(1, 65_536)) << 20,
        },
        filter: filter(config).await?,
        question: question(config),
        url,
    })
}

fn read_headers(config: &Config) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    add_headers(&mut headers, &config.headers).map_err(StepError::permanent)?;
    Ok(headers)
}

async fn filter(config: &Config) -> Result<Option<Pool>> {
    let Some(filter) = config.filter.clone() else {
        return Ok(None);
    };
    let program = std::env::current_exe()
        .map_err(|error| StepError::retry(format!("cannot find its own program: {error}")))?;
    let pool = Pool::start(Filter {
        program,
        filter,
        timeout: FILTER_TIMEOUT,
        outputs_max: FILTER_OUTPUTS_MAX,
        memory_mib: FILTER_MEMORY_MIB,
        workers: 1,
    });
    let pool = pool
        .await
        .map_err(|error| StepError::from(error).context("`filter` cannot be used"))?;
    Ok(Some(pool))
}

fn question(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    let paths = [
        Some(&config.id),
        config.items.as_ref(),
        config.cursor.as_ref(),
    ];
    let paths = paths.map(|path| path.map(ToString::to_string));
    (&config.url, &config.headers, paths, &config.filter).hash(&mut hasher);
    hasher.finish()
}

/// Returns where the first run begins.
pub(crate) fn beginning(config: &Config, now: Timestamp) -> Option<Position> {
    let since = SignedDuration::try_from(config.since?.duration()).ok()?;
    let time = now.checked_sub(since).unwrap_or(Timestamp::UNIX_EPOCH);
    let value = match config.since_format {
        SinceFormat::Time => CursorValue::Text(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        SinceFormat::Date => CursorValue::Text(time.strftime("%Y-%m-%d").to_string()),
        SinceFormat::Seconds => CursorValue::Number(time.as_second().into()),
        SinceFormat::Milliseconds => CursorValue::Number(time.as_millisecond().into()),
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_run_begins_where_the_source_can_read_it() {
        let now: Timestamp = "2026-03-01T12:00:00.7Z".parse().unwrap();
        let check = |format: &str, expect: serde_json::Value| {
            let config =
                json!({"url": "http://x", "cursor": "at", "since": "1d", "since_format": format});
            let config: Config = serde_json::from_value(config).unwrap();
            assert_eq!(json!(beginning(&config, now).unwrap().value()), expect);
        };
        check("time", json!("2026-02-28T12:00:00Z"));
        check("date", json!("2026-02-28"));
        check("seconds", json!(1_772_280_000));
        check("milliseconds", json!(1_772_280_000_700_i64));
        let config: Config = serde_json::from_value(json!({"url": "http://x"})).unwrap();
        assert!(beginning(&config, now).is_none());
    }
}

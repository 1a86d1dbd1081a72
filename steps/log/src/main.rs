//! The step `log`: logs each message, and passes it on unchanged.

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use towpath_step::{Context, Result, Step, tracing};

/// `with:` of the step.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// How important the lines are.
    level: Level,
    /// What each line begins with.
    label: String,
    /// The most bytes of a body in a line; 2048 if left out, and at most 8192.
    #[schemars(range(max = 8192))]
    bytes_max: Option<u32>,
}

/// How important a line is.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

const BYTES: u32 = 2048;
const BYTES_MAX: u32 = 8192;

async fn log(body: Box<RawValue>, ctx: &Context<Config>) -> Result<Box<RawValue>> {
    let config = &ctx.config;
    let line = line(
        &config.label,
        body.get(),
        config.bytes_max.unwrap_or(BYTES).min(BYTES_MAX),
    );
    match config.level {
        Level::Error => tracing::error!("{line}"),
        Level::Warn => tracing::warn!("{line}"),
        Level::Info => tracing::info!("{line}"),
        Level::Debug => tracing::debug!("{line}"),
    }
    Ok(body)
}

/// Makes a line, cut where a character ends.
fn line(label: &str, body: &str, bytes_max: u32) -> String {
    let end = body.floor_char_boundary(bytes_max as usize);
    let space = if label.is_empty() { "" } else { " " };
    let rest = body.len() - end;
    if rest == 0 {
        format!("{label}{space}{body}")
    } else {
        format!("{label}{space}{}… ({rest} bytes more)", &body[..end])
    }
}

fn main() -> ExitCode {
    Step::action(log)
        .about(
            "log",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .concurrency(256)
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use towpath_step::testing::TestRun;

    #[tokio::test]
    async fn a_message_is_logged_and_passed_on_unchanged() {
        let body = json!({"id": 7, "amount": 1.50, "name": "Ada"});
        let outcome = TestRun::action(log)
            .config(json!({"level": "warn", "label": "order"}))
            .input(body.clone())
            .await;
        assert_eq!(outcome.bodies(), [&body]);
        assert_eq!(outcome.logs.len(), 1);
        assert_eq!(outcome.logs[0].text, format!("order {body}"));
        assert_eq!(outcome.logs[0].level, "warn");
    }

    #[tokio::test]
    async fn nothing_needs_to_be_configured() {
        for config in [json!(null), json!({})] {
            let outcome = TestRun::action(log).config(config).input(json!([1])).await;
            assert!(outcome.is_done());
            assert_eq!(outcome.logs[0].text, "[1]");
        }
        let refusal = TestRun::action(log)
            .config(json!({"levl": "info"}))
            .refusal()
            .await;
        assert!(refusal.is_some_and(|reason| reason.contains("levl")));
    }

    #[test]
    fn a_line_is_bounded() {
        assert_eq!(line("", "abc", 3), "abc");
        assert_eq!(line("x", "abcd", 3), "x abc… (1 bytes more)");
        assert_eq!(line("", "üüü", 3), "ü… (4 bytes more)");
    }
}

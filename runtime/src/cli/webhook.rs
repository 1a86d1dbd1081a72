//! `towpath webhook`

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;

use super::problem::Problem;
use super::{Context, ExitStatus, words};
use crate::control::view::{RotateRequest, WebhookKeys};
use crate::store::now_ms;

/// What to do with webhooks.
#[derive(Debug, Subcommand)]
pub(super) enum Webhook {
    /// Gives a webhook a new URL; the one before stays good for a while
    Rotate(Rotate),
}

/// Which, and how.
#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// The flow
    flow: String,
    /// How long the URL before stays good; with `0s` no former URL is good any more
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = words::duration)]
    grace: Duration,
}

pub(super) async fn run(command: &Webhook, context: &Context) -> Result<ExitStatus, Problem> {
    let Webhook::Rotate(Rotate { flow, grace }) = command;
    let request = RotateRequest {
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    };
    let path = ["flows", flow.as_str(), "webhook", "rotate"];
    let keys: WebhookKeys = context
        .client()?
        .send(Method::POST, &path, &[], &request)
        .await?;
    let printer = context.printer;
    if printer.is_json() {
        printer.json(&keys);
        return Ok(ExitStatus::Done);
    }
    printer.line(&format!("webhook: {}", keys.webhook_url));
    for until in &keys.former_until {
        printer.line(&former(*until, now_ms()));
    }
    if keys.former_until.is_empty() {
        printer.line("no former URL is good any more");
    }
    Ok(ExitStatus::Done)
}

/// That a former URL is still good, and until when.
pub(super) fn former(until: u64, now: u64) -> String {
    format!(
        "a former URL is good until {} UTC ({})",
        words::moment(until),
        words::until(now, until)
    )
}

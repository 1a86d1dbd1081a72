//! `towpath versions`, `towpath diff`, `towpath rollback`

use std::time::Duration;

use clap::Args;
use reqwest::Method;

use super::choices::Choices;
use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::words::moment;
use super::{Context, ExitStatus, apply, words};
use crate::control::view::{DiffView, VersionList};

/// Lists the versions of a flow: when each was applied, what changed, and which one runs.
#[derive(Debug, Args)]
pub(super) struct Versions {
    /// The flow
    flow: String,
}

/// Shows what is different between two versions of a flow. Values of secrets and of the environment
/// are not shown.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The flow
    flow: String,
    /// The version on the left; the one before the newest when left out
    from: Option<u32>,
    /// The version on the right; the newest when left out
    to: Option<u32>,
}

/// Applies an earlier version of a flow again, as a new one: its file, its images and its
/// environment as they were then. What `towpath apply` refuses, this refuses as well.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The flow
    flow: String,
    /// The version; the one before the newest when left out
    #[arg(value_name = "VERSION")]
    to: Option<u32>,
    #[command(flatten)]
    choices: Choices,
    /// Does not wait until everything runs
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until everything runs
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = words::duration)]
    timeout: Duration,
}

pub(super) async fn list(command: &Versions, context: &Context) -> Result<ExitStatus, Problem> {
    let path = ["flows", command.flow.as_str(), "versions"];
    let list: VersionList = context.client()?.get(&path, &[]).await?;
    let printer = context.printer;
    if printer.is_json() {
        printer.json(&list);
        return Ok(ExitStatus::Done);
    }
    let rows = list.versions.iter().map(|version| {
        let runs = if version.current {
            printer.tone(&format!("{} replicas", version.running), Tone::Good)
        } else if version.running > 0 {
            printer.tone(&format!("{} replicas left", version.running), Tone::Fair)
        } else {
            String::new()
        };
        vec![
            version.version.to_string(),
            moment(version.applied_at),
            runs,
            version.summary.clone(),
        ]
    });
    let heads = [">VERSION", "APPLIED (UTC)", "RUNS", "CHANGED"];
    printer.line(&printer.table(&heads, rows.collect()));
    Ok(ExitStatus::Done)
}

pub(super) async fn diff(command: &Diff, context: &Context) -> Result<ExitStatus, Problem> {
    let versions = [("from", command.from), ("to", command.to)];
    let query: Vec<(&str, String)> = versions
        .iter()
        .filter_map(|(name, version)| Some((*name, (*version)?.to_string())))
        .collect();
    let path = ["flows", command.flow.as_str(), "diff"];
    let diff: DiffView = context.client()?.get(&path, &query).await?;
    if context.printer.is_json() {
        context.printer.json(&diff);
    } else {
        context.printer.line(&shown(&diff, context.printer));
    }
    Ok(ExitStatus::Done)
}

fn shown(diff: &DiffView, printer: Printer) -> String {
    let mut lines: Vec<String> = diff
        .diff
        .lines()
        .map(|line| match line.as_bytes().first() {
            _ if line.starts_with("---") || line.starts_with("+++") => {
                printer.tone(line, Tone::Strong)
            }
            Some(b'+') => printer.tone(line, Tone::Good),
            Some(b'-') => printer.tone(line, Tone::Bad),
            Some(b'@') => printer.tone(line, Tone::Faint),
            _ => line.to_owned(),
        })
        .collect();
    lines.extend(diff.notes.iter().cloned());
    if lines.is_empty() {
        return format!(
            "versions {} and {} of `{}` are the same",
            diff.from, diff.to, diff.flow
        );
    }
    lines.join("\n")
}

pub(super) async fn rollback(command: &Rollback, context: &Context) -> Result<ExitStatus, Problem> {
    let request = command.choices.request(command.to);
    let path = ["flows", command.flow.as_str(), "rollback"];
    let again = async || {
        context
            .client()?
            .send(Method::POST, &path, &[], &request)
            .await
    };
    let plan = apply::until_applied(again, context).await?;
    apply::finish(plan, command.no_wait, command.timeout, context).await
}

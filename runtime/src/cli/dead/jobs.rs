//! `towpath dead jobs`

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::super::problem::Problem;
use super::super::words::apart;
use super::super::{Context, ExitStatus};
use crate::control::dead::view::{JobList, JobView};
use crate::store::now_ms;
use crate::store::replay_jobs::JobState;

/// How often to look how far a job is.
const LOOK: Duration = Duration::from_millis(300);

/// Shows, watches and cancels replays of many. Without more: lists them, newest first.
#[derive(Debug, Args)]
pub(in crate::cli) struct Jobs {
    #[command(subcommand)]
    what: Option<What>,
}

/// What to do with a job.
#[derive(Debug, Subcommand)]
enum What {
    /// Waits until a job has ended
    Watch(Job),
    /// Ends a job after what it is just sending; the rest is open again
    Cancel(Job),
}

/// Which job.
#[derive(Debug, Args)]
struct Job {
    /// Its number
    job: String,
}

pub(super) async fn run(command: &Jobs, context: &Context) -> Result<ExitStatus, Problem> {
    match &command.what {
        None => list(context).await,
        Some(What::Watch(job)) => watch(&job.job, context).await,
        Some(What::Cancel(job)) => {
            let path = ["dead", "jobs", job.job.as_str()];
            let job: JobView = context
                .client()?
                .send(Method::DELETE, &path, &[], &json!({}))
                .await?;
            if context.printer.is_json() {
                context.printer.json(&job);
            } else if job.state == JobState::Cancelling {
                context.printer.line(&format!(
                    "job {} ends after what it is just sending; the rest is open again",
                    job.id
                ));
            } else {
                context.printer.line(&said(&job));
            }
            Ok(ExitStatus::Done)
        }
    }
}

async fn list(context: &Context) -> Result<ExitStatus, Problem> {
    let list: JobList = context.client()?.get(&["dead", "jobs"], &[]).await?;
    let printer = context.printer;
    if printer.is_json() {
        printer.json(&list);
        return Ok(ExitStatus::Done);
    }
    if list.jobs.is_empty() {
        printer.line("there are no replays of many");
        return Ok(ExitStatus::Done);
    }
    let now = now_ms();
    let rows = list.jobs.iter().map(|job| {
        let state = serde_json::to_value(job.state).unwrap_or_default();
        let why = job.waits.as_ref().map(|why| format!("waits: {why}"));
        let why = why.or_else(|| job.reason.clone().map(|why| format!("skipped: {why}")));
        vec![
            job.id.clone(),
            state.as_str().unwrap_or_default().to_owned(),
            format!("{} of {}", job.sent, job.total),
            job.skipped.to_string(),
            job.rate
                .map_or_else(|| "-".to_owned(), |rate| format!("{rate}/s")),
            format!("{} ago", apart(now, job.created_at)),
            job.what.clone(),
            why.unwrap_or_default(),
        ]
    });
    let heads = [
        ">JOB", "STATE", ">SENT", ">SKIPPED", ">RATE", ">BEGAN", "WHICH", "WHY",
    ];
    printer.line(&printer.table(&heads, rows.collect()));
    Ok(ExitStatus::Done)
}

/// Shows how far a job is until it has ended. Ending the command does not end the job.
pub(super) async fn watch(id: &str, context: &Context) -> Result<ExitStatus, Problem> {
    let path = ["dead", "jobs", id];
    let mut job: JobView = context.client()?.get(&path, &[]).await?;
    let bar = context.printer.bar(job.total);
    while !job.state.is_over() {
        let skipped = match job.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} skipped"),
        };
        let waits = job.waits.as_ref().map(|why| format!("; waits: {why}"));
        bar.at(
            job.sent + job.skipped,
            format!("job {id}{skipped}{}", waits.unwrap_or_default()),
        );
        tokio::time::sleep(LOOK).await;
        job = context.client()?.get(&path, &[]).await?;
    }
    drop(bar);
    if context.printer.is_json() {
        context.printer.json(&job);
    } else {
        context.printer.line(&said(&job));
    }
    Ok(if job.state == JobState::Done && job.skipped == 0 {
        ExitStatus::Done
    } else {
        ExitStatus::No
    })
}

/// What became of a job.
fn said(job: &JobView) -> String {
    let is = match job.state {
        JobState::Running => "is running",
        JobState::Cancelling => "is being cancelled",
        JobState::Done => "is done",
        JobState::Cancelled => "was cancelled",
    };
    let mut text = format!("job {} {is}: {} of {} sent", job.id, job.sent, job.total);
    if job.skipped > 0 {
        let why = job.reason.as_deref().unwrap_or("the log says why");
        text = format!(
            "{text}, {} cannot be sent and are open again; the last: {why}",
            job.skipped
        );
    }
    text
}

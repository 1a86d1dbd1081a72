//! `towpath dead replay`

use clap::Args;
use reqwest::Method;
use serde_json::value::RawValue;

use super::super::problem::Problem;
use super::super::{Context, ExitStatus, verbs};
use super::jobs;
use super::list::left_out;
use super::select::Which;
use crate::control::dead::view::{ReplayAnswer, ReplayManyRequest};
use crate::control::view::{Done, ReplayRequest};

/// So many that are named are sent one by one, and each is answered for.
const ONE_BY_ONE_MAX: usize = 20;

/// Sends dead letters to their steps again, as if for the first time: those that entered their flow
/// first come first. Many are a job of the control plane, which goes on when this command ends;
/// `towpath dead jobs` shows it.
#[derive(Debug, Args)]
pub(in crate::cli) struct Replay {
    /// Their numbers
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// All open ones
    #[arg(long)]
    all: bool,
    /// The step that gets them: the one that failed, which is the default, or one before it. It gets
    /// the body as it is here: edit it first, if that step takes another
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
    /// At most this many: `500/s`, `30/m` or `10/h`
    #[arg(long, value_name = "N/UNIT", value_parser = rate)]
    rate: Option<f64>,
    /// A body in place of its own: any JSON
    #[arg(long, value_name = "JSON", value_parser = body, conflicts_with_all = ["rate", "dry_run"])]
    body: Option<Box<RawValue>>,
    /// Only says what would be sent where
    #[arg(long)]
    dry_run: bool,
    /// Does not wait until all are sent
    #[arg(long)]
    no_wait: bool,
}

/// Reads a body.
pub(super) fn body(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

/// Reads a rate, as messages a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let wrong = || "write it like `500/s`, `30/m` or `10/h`".to_owned();
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    if number.is_finite() && number > 0.0 {
        Ok(number / seconds)
    } else {
        Err(wrong())
    }
}

pub(super) async fn run(command: &Replay, context: &Context) -> Result<ExitStatus, Problem> {
    let is_named = !command.ids.is_empty() && command.which.is_empty() && !command.all;
    let is_plain = command.rate.is_none() && !command.dry_run;
    if is_named && is_plain && command.ids.len() <= ONE_BY_ONE_MAX {
        return one_by_one(command, context).await;
    }
    if command.body.is_some() {
        return Err(Problem::no("a body is for dead letters that are named")
            .hint("`towpath dead edit --jq` changes the bodies of many"));
    }
    let request = ReplayManyRequest {
        select: command.which.selection(&command.ids, command.all),
        from: command.from.clone(),
        rate: command.rate,
        dry_run: command.dry_run,
    };
    let progress = context.printer.progress("choosing");
    let answer: Result<ReplayAnswer, Problem> = context
        .client()?
        .send(Method::POST, &["dead", "replay"], &[], &request)
        .await;
    drop(progress);
    let answer = answer?;
    if context.printer.is_json() && (command.dry_run || command.no_wait) {
        context.printer.json(&answer);
        return Ok(ExitStatus::Done);
    }
    for route in &answer.routes {
        let would = if command.dry_run { "would go" } else { "go" };
        let text = format!(
            "{} from `{}` of `{}` {would} to {}",
            route.count, route.step, route.flow, route.to
        );
        if command.dry_run {
            context.printer.line(&text);
        } else {
            context.printer.note(&text);
        }
    }
    left_out(&answer.left_out, context);
    let Some(job) = answer.job else {
        return Ok(ExitStatus::Done);
    };
    if command.no_wait {
        context.printer.line(&format!(
            "job {} sends {} dead letters; `towpath dead jobs` shows how far it is",
            job.id, job.total
        ));
        return Ok(ExitStatus::Done);
    }
    context.printer.note(&format!(
        "job {0}; it goes on without this command, and `towpath dead jobs cancel {0}` ends it",
        job.id
    ));
    jobs::watch(&job.id, context).await
}

/// The first that is refused ends it.
async fn one_by_one(command: &Replay, context: &Context) -> Result<ExitStatus, Problem> {
    for id in &command.ids {
        let request = ReplayRequest {
            body: command.body.clone(),
            from: command.from.clone(),
        };
        let path = ["dead", id.as_str(), "replay"];
        let done: Done = context
            .client()?
            .send(Method::POST, &path, &[], &request)
            .await?;
        verbs::done(&done, context);
    }
    Ok(ExitStatus::Done)
}

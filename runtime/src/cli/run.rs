//! `towpath run`

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::problem::Problem;
use super::{Context, ExitStatus, words};
use crate::control::view::{RunRequest, RunView};

/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(300);

/// Fires a flow's trigger now.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The flow
    flow: String,
    /// What the trigger is handed: any JSON
    #[arg(long, value_name = "JSON", value_parser = json)]
    payload: Option<Value>,
    /// Waits until the trigger has brought everything in
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = words::duration)]
    timeout: Duration,
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

pub(super) async fn run(command: &Run, context: &Context) -> Result<ExitStatus, Problem> {
    let request = RunRequest {
        payload: command.payload.clone(),
    };
    let path = ["flows", &command.flow, "run"];
    let mut run: RunView = context
        .client()?
        .send(Method::POST, &path, &[], &request)
        .await?;
    if command.wait {
        run = wait(run, command, context).await?;
    }
    if context.printer.is_json() {
        context.printer.json(&run);
    } else {
        let what = match run.tick.as_str() {
            "done" => format!("is done: {} messages", run.emitted.unwrap_or(0)),
            "queued" => "is remembered, and begins when the one before has ended".to_owned(),
            _ => "is under way".to_owned(),
        };
        context
            .printer
            .line(&format!("run {} of `{}` {what}", run.id, command.flow));
    }
    Ok(ExitStatus::Done)
}

async fn wait(mut run: RunView, command: &Run, context: &Context) -> Result<RunView, Problem> {
    let deadline = Instant::now() + command.timeout;
    let progress = context.printer.progress("the trigger is at work");
    loop {
        match run.tick.as_str() {
            "done" => return Ok(run),
            "cancelled" => return Err(Problem::no(format!("run {} was cancelled", run.id))),
            "failed" | "abandoned" => {
                let mut problem = Problem::no(format!("run {} {}", run.id, run.tick));
                problem.causes.extend(run.reason);
                return Err(problem.hint("`towpath dead list` shows what was given up"));
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            let mut problem = Problem::could_not(format!("run {} has not ended yet", run.id));
            problem.causes.extend(run.reason);
            return Err(problem.hint(format!(
                "it goes on by itself; look with `towpath runs show {}`",
                run.id
            )));
        }
        if let Some(reason) = &run.reason {
            progress.say(format!(
                "attempt {} failed, trying again: {reason}",
                run.attempts
            ));
        }
        tokio::time::sleep(LOOK).await;
        run = context.client()?.get(&["runs", &run.id], &[]).await?;
    }
}

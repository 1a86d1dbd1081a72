//! `towpath apply`

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use tokio::time::Instant;

use super::problem::Problem;
use super::{Context, ExitStatus, file, plan, words};
use crate::control::view::{FlowStatus, PlanView};
use crate::reconcile::FlowState;

/// How often to look whether everything runs.
const LOOK: Duration = Duration::from_millis(300);

/// Makes a flow file the newest version of its flow, and waits until it runs. Doing it again does
/// nothing. `${env.X}` is taken from the environment of this command.
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The flow file; `-` is standard input
    file: String,
    /// Drops messages that wait for a step that is no longer in the file
    #[arg(long)]
    drop_messages: bool,
    /// Does not wait until everything runs
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until everything runs
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = words::duration)]
    timeout: Duration,
}

pub(super) async fn run(command: &Apply, context: &Context) -> Result<ExitStatus, Problem> {
    let source = file::read(&command.file)?;
    let mut draft =
        file::draft(&source, context).map_err(|problem| file::shown(problem, &source, context))?;
    draft.drop_messages = command.drop_messages;
    let progress = context.printer.progress("checking and applying");
    let plan: Result<PlanView, Problem> = context
        .client()?
        .send(Method::POST, &["apply"], &[], &draft)
        .await;
    drop(progress);
    let plan = plan.map_err(|problem| file::shown(problem, &source, context))?;
    if !context.printer.is_json() {
        context.printer.findings(&source, plan.warnings.clone());
        plan::changes(context.printer, &plan);
    }
    let status = if command.no_wait {
        None
    } else {
        Some(wait(&plan, command.timeout, context).await?)
    };
    if context.printer.is_json() {
        context.printer.json(&plan);
        return Ok(ExitStatus::Done);
    }
    if let Some(status) = &status {
        let is = match status.state {
            FlowState::Running => "runs",
            FlowState::Draining => "is in place, and drains",
            FlowState::Paused => "is in place, and paused",
            FlowState::Stopped => "is in place, and stopped",
        };
        context
            .printer
            .line(&format!("`{}` version {} {is}", plan.flow, plan.version));
    }
    if let Some(url) = &plan.webhook_url {
        context.printer.line(&format!("webhook: {url}"));
    }
    Ok(ExitStatus::Done)
}

/// Waits until everything is as it should be.
async fn wait(plan: &PlanView, limit: Duration, context: &Context) -> Result<FlowStatus, Problem> {
    let deadline = Instant::now() + limit;
    let progress = context.printer.progress("waiting until everything runs");
    loop {
        let status: FlowStatus = context.client()?.get(&["flows", &plan.flow], &[]).await?;
        if status.version > plan.version || (status.converged && status.version == plan.version) {
            return Ok(status);
        }
        let late: Vec<String> = status
            .steps
            .iter()
            .filter(|step| step.state != "running" || step.running != step.desired)
            .map(|step| {
                let reason = step
                    .reason
                    .as_ref()
                    .map(|it| format!(", {it}"))
                    .unwrap_or_default();
                let state = step.state.replace('_', " ");
                format!(
                    "{} {}/{} {state}{reason}",
                    step.step, step.running, step.desired
                )
            })
            .collect();
        if Instant::now() >= deadline {
            drop(progress);
            let mut problem = Problem::could_not(format!(
                "`{}` is applied, but does not run yet after {}s",
                plan.flow,
                limit.as_secs()
            ));
            problem.causes = status.reason.into_iter().chain(late).collect();
            return Err(problem.hint(format!(
                "it goes on by itself; look with `towpath status {0}` and `towpath logs {0}`",
                plan.flow
            )));
        }
        progress.say(if late.is_empty() {
            "waiting until old replicas have finished".to_owned()
        } else {
            format!("waiting for {}", late.join("; "))
        });
        tokio::time::sleep(LOOK).await;
    }
}

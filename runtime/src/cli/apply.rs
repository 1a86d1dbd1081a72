//! `towpath apply`

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use tokio::time::Instant;

use super::choices::Choices;
use super::problem::Problem;
use super::{Context, ExitStatus, drain, file, plan, words};
use crate::control::view::{FlowStatus, PlanView};
use crate::reconcile::FlowState;

/// How often to look whether everything runs.
const LOOK: Duration = Duration::from_millis(300);

/// How often to ask whether steps that go away have finished.
const DRAINING: Duration = Duration::from_secs(1);

/// Makes a flow file the newest version of its flow, and waits until it runs. Doing it again does
/// nothing. `${env.X}` is taken from the environment of this command.
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The flow file; `-` is standard input
    file: String,
    #[command(flatten)]
    choices: Choices,
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
    command.choices.fill(&mut draft);
    let again = async || {
        context
            .client()?
            .send(Method::POST, &["apply"], &[], &draft)
            .await
    };
    let plan = until_applied(again, context).await;
    let plan = plan.map_err(|problem| file::shown(problem, &source, context))?;
    if !context.printer.is_json() {
        context.printer.findings(&source, plan.warnings.clone());
    }
    finish(plan, command.no_wait, command.timeout, context).await
}

/// Asks to apply again and again, while steps that go away finish what they have.
pub(super) async fn until_applied(
    again: impl AsyncFn() -> Result<PlanView, Problem>,
    context: &Context,
) -> Result<PlanView, Problem> {
    let mut progress = Some(context.printer.progress("checking and applying"));
    let mut is_said = false;
    loop {
        let plan = again().await?;
        if plan.applied {
            return Ok(plan);
        }
        let waiting: Vec<String> = plan
            .removed
            .iter()
            .map(|it| format!("`{}`: {}", it.step, drain::words_of(it.left)))
            .collect();
        if !is_said {
            is_said = true;
            progress = None;
            let steps: Vec<String> = plan.removed.iter().map(|it| it.step.clone()).collect();
            context.printer.note(&format!(
                "{} of `{}` finishes what it has, and what leads to it holds still; \
                 interrupted, that goes on until `towpath resume {} {}`",
                steps.join(", "),
                plan.flow,
                plan.flow,
                steps.join(" or ")
            ));
        }
        progress
            .get_or_insert_with(|| context.printer.progress("waiting"))
            .say(waiting.join("; "));
        tokio::time::sleep(DRAINING).await;
    }
}

/// Says what was applied, and waits until it runs.
pub(super) async fn finish(
    plan: PlanView,
    no_wait: bool,
    timeout: Duration,
    context: &Context,
) -> Result<ExitStatus, Problem> {
    if !context.printer.is_json() {
        plan::changes(context.printer, &plan);
    }
    let status = if no_wait {
        None
    } else {
        Some(wait(&plan, timeout, context).await?)
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
            .filter(|step| {
                let is_held = step.wanted != FlowState::Running;
                !is_held && (step.state != "running" || step.running != step.desired)
            })
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

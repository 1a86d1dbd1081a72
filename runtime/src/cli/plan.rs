//! `towpath plan`

use clap::Args;
use reqwest::Method;

use super::choices::Choices;
use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::{Context, ExitStatus, drain, file};
use crate::control::view::{ChangeAction, PlanView};

/// Shows what applying a flow file would do, and why. Changes nothing.
#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The flow file; `-` is standard input
    file: String,
    #[command(flatten)]
    choices: Choices,
}

pub(super) async fn run(command: &Plan, context: &Context) -> Result<ExitStatus, Problem> {
    let source = file::read(&command.file)?;
    let mut draft =
        file::draft(&source, context).map_err(|problem| file::shown(problem, &source, context))?;
    command.choices.fill(&mut draft);
    let progress = context.printer.progress("asking the control plane");
    let plan: Result<PlanView, Problem> = context
        .client()?
        .send(Method::POST, &["plan"], &[], &draft)
        .await;
    drop(progress);
    let plan = plan.map_err(|problem| file::shown(problem, &source, context))?;
    if context.printer.is_json() {
        context.printer.json(&plan);
    } else {
        context.printer.findings(&source, plan.warnings.clone());
        changes(context.printer, &plan);
    }
    Ok(ExitStatus::Done)
}

/// Prints what changes, each with its reason.
pub(super) fn changes(printer: Printer, plan: &PlanView) {
    if plan.unchanged {
        printer.line(&format!(
            "`{}` version {}: nothing to do",
            plan.flow, plan.version
        ));
        return;
    }
    printer.line(&format!("`{}` version {}:", plan.flow, plan.version));
    for change in &plan.changes {
        let (sign, tone) = match change.action {
            ChangeAction::Create => ("+ create ", Tone::Good),
            ChangeAction::Replace => ("~ replace", Tone::Fair),
            ChangeAction::Scale => ("~ scale  ", Tone::Fair),
            ChangeAction::Remove => ("- remove ", Tone::Bad),
            ChangeAction::Update => ("~ update ", Tone::Fair),
        };
        let sign = printer.tone(sign, tone);
        let step = change.step.as_deref().unwrap_or("the flow");
        printer.line(&format!("  {sign} {step}: {}", change.reason));
    }
    for step in &plan.removed {
        let has = drain::words_of(step.left);
        let tone = if step.refused { Tone::Bad } else { Tone::Fair };
        if step.left.queued + step.left.in_hand + step.left.waiting > 0 {
            let fate = printer.tone(&step.messages, tone);
            printer.line(&format!("  messages of {}: {has}; {fate}", step.step));
        }
    }
    if plan.removed.iter().any(|step| step.refused) {
        printer.line(
            "  choose with `--drain-first`, `--move OLD=NEW`, `--dead-letter` or `--drop-messages`",
        );
    }
}

//! `towpath dead discard`, and what became of many.

use clap::Args;
use reqwest::Method;

use super::super::problem::Problem;
use super::super::{Context, ExitStatus};
use super::list::left_out;
use super::select::Which;
use crate::control::dead::view::{DiscardRequest, ManyAnswer};

/// Says that dead letters are not needed. They are kept for 30 days, but are no longer open.
#[derive(Debug, Args)]
pub(in crate::cli) struct Discard {
    /// Their numbers
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// All open ones
    #[arg(long)]
    all: bool,
    /// Only says how many
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn discard(command: &Discard, context: &Context) -> Result<ExitStatus, Problem> {
    let request = DiscardRequest {
        select: command.which.selection(&command.ids, command.all),
        dry_run: command.dry_run,
    };
    let answer: ManyAnswer = context
        .client()?
        .send(Method::POST, &["dead", "discard"], &[], &request)
        .await?;
    let is = if command.dry_run { "would be" } else { "is" };
    let are = if command.dry_run { "would be" } else { "are" };
    done(
        &answer,
        &format!("{is} discarded"),
        &format!("{are} discarded"),
        context,
    );
    Ok(ExitStatus::Done)
}

/// Says how many changed.
pub(super) fn done(answer: &ManyAnswer, one: &str, many: &str, context: &Context) {
    if context.printer.is_json() {
        context.printer.json(answer);
        return;
    }
    for diff in &answer.diffs {
        context.printer.line(&format!("dead letter {}", diff.id));
        context.printer.line(diff.diff.trim_end());
    }
    context.printer.line(&match answer.changed {
        1 => format!("1 dead letter {one}"),
        changed => format!("{changed} dead letters {many}"),
    });
    left_out(&answer.left_out, context);
}

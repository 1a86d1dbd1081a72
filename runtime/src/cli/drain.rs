//! `towpath drain`

use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::problem::Problem;
use super::verbs::Target;
use super::{Context, ExitStatus, verbs, words};
use crate::control::view::{FlowStatus, Left};

/// How often to look whether it is drained.
const LOOK: Duration = Duration::from_millis(500);

/// Lets a flow finish what it has and takes in nothing new; or one step, while the steps before it
/// hold still. `towpath resume` undoes it.
#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    target: Target,
    /// Waits until nothing is left
    #[arg(long, short)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = words::duration)]
    timeout: Duration,
}

pub(super) async fn run(command: &Drain, context: &Context) -> Result<ExitStatus, Problem> {
    let target = &command.target;
    let done = target.tell("drain", context).await?;
    if !command.wait {
        return Ok(verbs::done(&done, context));
    }
    let name = match &target.step {
        None => format!("`{}`", target.flow),
        Some(step) => format!("`{step}` of `{}`", target.flow),
    };
    let deadline = Instant::now() + command.timeout;
    let progress = context.printer.progress(&done.message);
    loop {
        let status: FlowStatus = context.client()?.get(&["flows", &target.flow], &[]).await?;
        let left = match &target.step {
            None => status.left,
            Some(id) => {
                let step = status.steps.iter().find(|step| step.step == *id);
                step.and_then(|step| step.left)
            }
        };
        let said = match left {
            Some(left) if left.drained => {
                drop(progress);
                if context.printer.is_json() {
                    context.printer.json(&left);
                } else {
                    context.printer.line(&format!("{name} is drained"));
                }
                return Ok(ExitStatus::Done);
            }
            Some(left) => words_of(left),
            None if status.broker_up => {
                drop(progress);
                return Err(Problem::no(format!(
                    "{name} no longer drains: somebody said something else"
                )));
            }
            None => "it is not known what is left while the broker is away".to_owned(),
        };
        if Instant::now() >= deadline {
            drop(progress);
            let seconds = command.timeout.as_secs();
            let late = format!("{name} is not drained after {seconds}s: {said}");
            return Err(Problem::could_not(late).hint(format!(
                "it goes on by itself; `towpath status {0}` shows it, `towpath resume {0}` undoes it",
                target.flow
            )));
        }
        progress.say(format!("{name} drains: {said}"));
        tokio::time::sleep(LOOK).await;
    }
}

/// What is left, in words.
pub(super) fn words_of(left: Left) -> String {
    if left.drained {
        return "nothing is left".to_owned();
    }
    let parts = [
        (left.queued, "queued"),
        (left.in_hand, "in hand"),
        (left.waiting, "to be tried again"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", words::count(*count)))
        .collect();
    if parts.is_empty() {
        "nothing is seen any more, and the agents have yet to confirm it".to_owned()
    } else {
        format!("{} left", parts.join(", "))
    }
}

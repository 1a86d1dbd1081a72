//! `towpath delete`

use std::io::BufRead;

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::problem::Problem;
use super::{Context, ExitStatus, verbs};
use crate::control::view::Done;

/// Forgets a flow and removes all it made. Refused while messages wait in its queues.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The flow
    flow: String,
    /// One step is not deleted by itself: this says how it is done
    #[arg(hide = true)]
    step: Option<String>,
    /// Drops messages that wait in its queues
    #[arg(long)]
    drop_messages: bool,
    /// Does not wait until its trigger has taken back what it registered at its source: the source
    /// goes on sending, to a URL that is gone
    #[arg(long)]
    leave_registered: bool,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(command: &Delete, context: &Context) -> Result<ExitStatus, Problem> {
    if let Some(step) = &command.step {
        let path = ["flows", command.flow.as_str(), "steps", step];
        let done: Done = context
            .client()?
            .send(Method::DELETE, &path, &[], &json!({}))
            .await?;
        return Ok(verbs::done(&done, context));
    }
    if !command.yes {
        confirm(command, context)?;
    }
    let query = [
        ("drop_messages", command.drop_messages.to_string()),
        ("leave_registered", command.leave_registered.to_string()),
    ];
    let path = ["flows", command.flow.as_str()];
    let done: Done = context
        .client()?
        .send(Method::DELETE, &path, &query, &json!({}))
        .await?;
    Ok(verbs::done(&done, context))
}

fn confirm(command: &Delete, context: &Context) -> Result<(), Problem> {
    if !context.printer.can_ask() {
        return Err(Problem::no(format!(
            "`{}` is deleted only if someone says so",
            command.flow
        ))
        .hint("pass `--yes`"));
    }
    let messages = if command.drop_messages {
        " and all messages in its queues"
    } else {
        ""
    };
    context.printer.note(&format!(
        "delete `{}`, its checkpoints and its runs{messages}? [y/N]",
        command.flow
    ));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Problem::could_not("cannot read the answer").because(&error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Problem::no("nothing was deleted")),
    }
}

//! `towpath pause`, `towpath resume`, `towpath stop`, and what they share with `towpath drain`

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::problem::Problem;
use super::{Context, ExitStatus};
use crate::control::view::Done;

/// What is told something.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The flow
    pub(super) flow: String,
    /// One of its steps; the whole flow when left out
    pub(super) step: Option<String>,
}

impl Target {
    /// Asks the control plane to do something to it.
    pub(super) async fn tell(&self, verb: &str, context: &Context) -> Result<Done, Problem> {
        let path = match &self.step {
            None => vec!["flows", &self.flow, verb],
            Some(step) => vec!["flows", &self.flow, "steps", step, verb],
        };
        context
            .client()?
            .send(Method::POST, &path, &[], &json!({}))
            .await
    }
}

pub(super) async fn run(
    verb: &str,
    target: &Target,
    context: &Context,
) -> Result<ExitStatus, Problem> {
    let answer = target.tell(verb, context).await?;
    Ok(done(&answer, context))
}

/// Says what was done.
pub(super) fn done(done: &Done, context: &Context) -> ExitStatus {
    if context.printer.is_json() {
        context.printer.json(done);
    } else {
        context.printer.line(&done.message);
    }
    ExitStatus::Done
}

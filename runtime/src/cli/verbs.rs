//! `towpath pause`, `towpath resume`, `towpath stop`

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::problem::Problem;
use super::{Context, ExitStatus};
use crate::control::view::Done;

/// Which flow.
#[derive(Debug, Args)]
pub(super) struct Flow {
    /// The flow
    flow: String,
}

pub(super) async fn run(verb: &str, flow: &Flow, context: &Context) -> Result<ExitStatus, Problem> {
    let path = ["flows", &flow.flow, verb];
    let answer: Done = context
        .client()?
        .send(Method::POST, &path, &[], &json!({}))
        .await?;
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

//! `towpath scale`

use clap::Args;
use reqwest::Method;

use super::problem::Problem;
use super::{Context, ExitStatus, verbs};
use crate::control::view::{Done, ScaleRequest, ScaleTo};

/// Says how many replicas a step should have. It stays so until the file says something new.
#[derive(Debug, Args)]
pub(super) struct Scale {
    /// The flow
    flow: String,
    /// The step
    step: String,
    /// How many replicas, from 1 to 64; or `auto`: as many as the flow file says
    replicas: ScaleTo,
}

pub(super) async fn run(command: &Scale, context: &Context) -> Result<ExitStatus, Problem> {
    let path = ["flows", &command.flow, "steps", &command.step, "scale"];
    let request = ScaleRequest {
        replicas: command.replicas,
    };
    let done: Done = context
        .client()?
        .send(Method::PUT, &path, &[], &request)
        .await?;
    Ok(verbs::done(&done, context))
}

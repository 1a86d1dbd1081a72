//! The three fates of a message that was not handled.
use std::process::ExitCode;

use serde_json::Value;
use towpath_step::{Context, Result, ResultExt, StepError, secs};

async fn look(order: Value, ctx: &Context<()>) -> Result<()> {
    // `?` on any error: try again after the flow's back-off.
    let rate = std::fs::read_to_string("/tmp/rate").context("cannot read the rate")?;

    // It can never succeed: a dead letter, at once.
    let rate: u64 = rate.trim().parse().permanent()?;
    let cents = order["cents"]
        .as_u64()
        .ok_or_else(|| StepError::permanent("no `cents`"))?;

    // It is not yet time: again in 30 seconds, and not counted as a failure.
    if order["paid"] != true {
        return Err(StepError::rebound(secs(30), "the order is not paid yet"));
    }
    ctx.emit(cents * rate).await
}

fn main() -> ExitCode {
    towpath_step::action(look)
}

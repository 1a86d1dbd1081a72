//! A trigger that counts on from where it left off, and saves its position as it goes.
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step::{Context, Result, Tick};

#[derive(Deserialize, JsonSchema)]
struct Config {
    /// How many numbers each tick brings.
    count: u64,
}

async fn count(tick: Tick<u64>, ctx: &Context<Config>) -> Result<()> {
    let first = tick.checkpoint.unwrap_or(0);
    for number in first..first + ctx.config.count {
        // The same number gives the same message id, however often it is read.
        ctx.output(number)
            .source_id(&number.to_string())
            .send()
            .await?;
        if number % 100 == 99 {
            ctx.checkpoint(&(number + 1)).await?; // returns when it is durable
        }
    }
    ctx.checkpoint(&(first + ctx.config.count)).await
}

fn main() -> ExitCode {
    towpath_step::poll(count)
}

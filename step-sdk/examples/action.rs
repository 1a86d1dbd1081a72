//! The shortest step: adds tax to an order.
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_step::{Context, Result, StepError, secs};

#[derive(Deserialize, JsonSchema)]
struct Config {
    percent: u64,
}

#[derive(Deserialize, JsonSchema)]
struct Order {
    id: u64,
    cents: u64,
}

#[derive(Serialize, JsonSchema)]
struct Taxed {
    id: u64,
    cents: u64,
}

async fn tax(order: Order, ctx: &Context<Config>) -> Result<Taxed> {
    if order.cents == 0 {
        return Err(StepError::rebound(secs(30), "the order has no amount yet"));
    }
    Ok(Taxed {
        id: order.id,
        cents: order.cents * (100 + ctx.config.percent) / 100,
    })
}

fn main() -> ExitCode {
    towpath_step::action(tax)
}

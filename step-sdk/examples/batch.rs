//! A sink that writes in bulk: one call for many orders, a fate for each.
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step::{Context, Item, Result, Step, StepError};

#[derive(Deserialize, JsonSchema)]
struct Order {
    id: u64,
    cents: u64,
}

async fn write(orders: Vec<Item<Order>>, ctx: &Context<()>) -> Result<Vec<Result<()>>> {
    ctx.log_info(format!("{} orders in one call", orders.len()));
    // An error here, such as a lost connection, would be the fate of all of them. In a flow that
    // says `batch: { max: 500, wait: 1s }`, each would then be tried again alone.
    Ok(orders
        .iter()
        .map(|order| match order.cents {
            0 => Err(StepError::permanent(format!(
                "order {} has no amount",
                order.id
            ))),
            _ => Ok(()),
        })
        .collect())
}

fn main() -> ExitCode {
    Step::batch(write, 500).run()
}

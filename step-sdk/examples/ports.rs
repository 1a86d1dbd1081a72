//! Outputs by several ports: what is fine goes on, what is not goes to another step.
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_step::{Context, Outputs, Result, Step};

#[derive(Deserialize, Serialize, JsonSchema)]
struct Order {
    id: u64,
    cents: u64,
}

#[derive(Serialize, JsonSchema)]
struct Rejected {
    order: u64,
    why: String,
}

async fn sort(order: Order, _: &Context<()>) -> Result<Outputs> {
    if order.cents == 0 {
        let rejected = Rejected {
            order: order.id,
            why: "it has no amount".to_owned(),
        };
        return Ok(Outputs::to("rejected", rejected));
    }
    Ok(Outputs::one(order))
}

fn main() -> ExitCode {
    Step::action(sort)
        .port::<Order>("out")
        .port::<Rejected>("rejected")
        .run()
}

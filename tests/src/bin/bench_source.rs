//! The benchmark's trigger: emits as many orders as it is told to, as fast as they are taken.

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_step::{Context, Result, Tick};

#[derive(Deserialize, JsonSchema)]
struct Config {
    /// How many.
    messages: u64,
}

#[derive(Serialize)]
struct Order {
    id: u64,
    number: String,
    customer: Customer,
    currency: &'static str,
    total_cents: u64,
    paid: bool,
    tags: [&'static str; 2],
}

#[derive(Serialize)]
struct Customer {
    id: u64,
    name: &'static str,
    email: &'static str,
}

async fn orders(_tick: Tick<Value>, ctx: &Context<Config>) -> Result<()> {
    for id in 0..ctx.config.messages {
        let customer = Customer {
            id: id % 997,
            name: "Grace Hopper",
            email: "grace@example.com",
        };
        let order = Order {
            id,
            number: format!("SO-{id:07}"),
            customer,
            currency: "EUR",
            total_cents: 12_345 + id % 1000,
            paid: true,
            tags: ["web", "gift"],
        };
        ctx.emit(order).await?;
    }
    Ok(())
}

fn main() -> ExitCode {
    towpath_step::poll(orders)
}

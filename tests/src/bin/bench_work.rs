//! The benchmark's action (and, when idle, its trigger): reads an order, changes it, writes it.

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_step::{Context, Result};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    id: u64,
    number: String,
    customer: Customer,
    currency: String,
    total_cents: u64,
    paid: bool,
    tags: Vec<String>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Customer {
    id: u64,
    name: String,
    email: String,
}

async fn work(mut order: Order, _ctx: &Context<Value>) -> Result<Order> {
    order.total_cents += 1;
    Ok(order)
}

fn main() -> ExitCode {
    towpath_step::action(work)
}

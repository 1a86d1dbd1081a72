//! One output of many messages: the sum of the orders that came together, for each customer.
use std::collections::BTreeMap;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_step::{Context, Item, Result, Step};

#[derive(Deserialize, JsonSchema)]
struct Order {
    customer: String,
    cents: u64,
}

#[derive(Serialize)]
struct Sum {
    customer: String,
    cents: u64,
}

async fn sum(orders: Vec<Item<Order>>, ctx: &Context<()>) -> Result<Vec<Result<()>>> {
    let mut by_customer: BTreeMap<String, Vec<&Item<Order>>> = BTreeMap::new();
    for order in &orders {
        let of_customer = by_customer.entry(order.customer.clone()).or_default();
        of_customer.push(order);
    }
    for (customer, orders) in by_customer {
        let cents = orders.iter().map(|order| order.cents).sum();
        // None of the orders is settled before their sum is safe.
        let sum = ctx.output(Sum { customer, cents });
        sum.of(orders).send().await?;
    }
    Ok(orders.iter().map(|_| Ok(())).collect())
}

fn main() -> ExitCode {
    Step::batch(sum, 500).needs_batch().run()
}

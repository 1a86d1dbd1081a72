//! End to end: what Towpath promises, on real Docker and real RabbitMQ, with counted messages.
//!
//! `./test` starts what these need. A test that cannot find it fails, and says so.

mod back_pressure;
mod broker_trouble;
mod carrying;
mod changing;
mod dead_letters;
mod deploying;
mod engine;
mod faults;
mod handing;
mod isolation;
mod languages;
mod misbehaving;
mod mistakes;
mod once;
mod operating;
mod ordered;
mod postgres;
mod registration;
mod replies;
mod retries;
mod routing;
mod runs;
mod scaling;
mod schedules;
mod steps_aggregate;
mod steps_file;
mod steps_http_poll;
mod steps_split;
mod steps_sse;
mod webhooks;
mod why;

use std::time::Duration;

use towpath_tests::{Demo, eventually, holds};

/// Long enough for thousands of messages on two busy cores.
const LONG: Duration = Duration::from_secs(300);

/// Long enough for what happens at once, give or take a report.
const SOON: Duration = Duration::from_secs(60);

/// A shop and a CRM in which nothing goes wrong.
const NO_429: (&str, &str) = ("DEMO_429", "0");
const NO_500: (&str, &str) = ("DEMO_500", "0");
const NO_500_AFTER: (&str, &str) = ("DEMO_500_AFTER", "0");
const NOT_SLOW: (&str, &str) = ("DEMO_SLOW", "0");

/// Orders from the shop to the CRM by polling, as the demonstration does it.
fn orders_to_crm(crm_replicas: u32) -> String {
    format!(
        r#"
flow: orders-to-crm
trigger:
  id: orders
  image: towpath/http-poll:test
  every: 1s
  with:
    url: "http://shop:8080/orders"
    cursor: updated_at
    sorted: true
    page: {{ style: link, size_param: size, size: 100 }}
actions:
  - id: shape
    image: towpath/jq:test
    with: {{ filter: "{{id, deal: .number, amount: (.total_cents / 100)}}" }}
  - id: crm
    image: towpath/http-request:test
    replicas: {crm_replicas}
    concurrency: 16
    timeout: 30s
    retry: {{ attempts: 20, initial: 500ms, factor: 1.5, max: 5s }}
    with:
      method: PUT
      url: "http://crm:8080/deals/{{{{ .id }}}}"
      headers: {{ authorization: "Bearer ${{secrets.crm_token}}" }}
"#
    )
}

/// Waits until the CRM holds `orders` orders exactly once.
#[track_caller]
fn crm_holds_exactly(demo: &Demo, orders: u64, limit: Duration) {
    let stats = eventually("the CRM holds every order", limit, || {
        let stats = demo.crm_stats()?;
        holds(stats["deals"].as_u64() == Some(orders), || {
            stats.to_string()
        })?;
        Ok(stats)
    });
    assert_eq!(
        stats["idempotency_keys"].as_u64(),
        Some(orders),
        "one key an order: {stats}"
    );
    assert_eq!(
        stats["conflicting"].as_u64(),
        Some(0),
        "one order a key: {stats}"
    );
}

/// The flow that the README of a step shows first, with the images of this build.
fn flow_of_readme(readme: &str) -> String {
    let (_, flow) = readme.split_once("```yaml\n").expect("a flow");
    let (flow, _) = flow.split_once("```").expect("its end");
    flow.replace(":1\n", ":test\n")
}

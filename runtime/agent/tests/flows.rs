//! The real agent on a real broker: what comes of messages, one behaviour a test.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Agent, Bench};
use towpath_protocol::MessageId;

fn echo(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"number": number})).collect()
}

fn ids(lines: &[Value]) -> BTreeSet<String> {
    lines
        .iter()
        .map(|line| line["id"].as_str().expect("an id").to_owned())
        .collect()
}

fn derived(parents: &[MessageId]) -> BTreeSet<String> {
    parents
        .iter()
        .map(|parent| MessageId::derive(*parent, "step", "out", 0).to_string())
        .collect()
}

#[tokio::test]
async fn messages_flow_through() {
    let bench = Bench::new("through", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let parents = bench.publish(&echo(1000), 10).await;
    let lines = out.until("1000 outputs", |lines| lines.len() >= 1000).await;
    assert_eq!(lines.len(), 1000);
    assert_eq!(ids(lines), derived(&parents));
    assert_eq!(lines[0]["lineage"]["version"], 1);
    assert_eq!(lines[0]["parent"], lines[0]["lineage"]["run"]);
    agent.drain().await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 0);
    bench.clean().await;
}

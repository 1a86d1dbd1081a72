//! A slow action and a fast source: queues stay bounded, the trigger and the webhook are slowed
//! down, nobody's memory grows, and everything arrives when the action is fast again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use towpath_tests::{BrokerVersion, Condition, Demo, Instance, eventually, holds, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

/// Far more than the queues of the test hold.
const ORDERS: u64 = 20_000;

/// The bound of each queue, in deliveries.
const BOUND: &str = "10";

/// How long memory is watched while nothing moves.
const WATCHED: Duration = Duration::from_secs(15);

/// What memory may grow by while nothing moves: allocators and tables breathe.
const BREATH_BYTES: u64 = 12 << 20;

fn begin(instance: &Instance, orders: u64) -> Demo {
    let orders = orders.to_string();
    let world = [
        ("DEMO_ORDERS", orders.as_str()),
        NO_429,
        NO_500,
        NO_500_AFTER,
        NOT_SLOW,
    ];
    let demo = Demo::start(instance, &world);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    demo
}

/// The resident memory of the control plane, and of each agent and step process, in bytes.
fn memory(instance: &Instance) -> BTreeMap<String, u64> {
    let mut memory = BTreeMap::from([("control plane".to_owned(), instance.resident_bytes())]);
    let metrics = http::send("GET", &format!("{}/metrics", instance.url), None, None)
        .expect("the metrics can be read")
        .text;
    for line in metrics.lines() {
        let is_memory = [
            "towpath_agent_resident_bytes{",
            "towpath_step_resident_bytes{",
        ];
        if is_memory.iter().any(|name| line.starts_with(name))
            && let Some((name, bytes)) = line.rsplit_once(' ')
            && let Ok(bytes) = bytes.parse::<f64>()
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a size in bytes"
            )]
            memory.insert(name.to_owned(), bytes as u64);
        }
    }
    memory
}

#[test]
fn a_slow_action_holds_the_trigger_back_with_flat_memory_and_nothing_lost() {
    let instance = Instance::start_set(
        BrokerVersion::V40,
        &[("TOWPATH_BROKER__QUEUE_DELIVERIES_MAX", BOUND)],
    );
    let demo = begin(&instance, ORDERS);
    demo.post(&format!("{}/hold?how=wait", demo.crm));
    // Whoever waits for the CRM waits for longer than the test.
    let flow = orders_to_crm(1)
        .replace("timeout: 30s", "timeout: 10m")
        .replace("method: PUT", "timeout: 9m\n      method: PUT");
    instance.apply(&flow);
    let emitted = || {
        let status = instance.status("orders-to-crm");
        let emitted = status["steps"][0]["emitted"].as_u64().unwrap_or(0);
        (emitted, status)
    };
    eventually(
        "the trigger and the step before the slow one are held back",
        LONG,
        || {
            let (_, status) = emitted();
            let steps = status["steps"].as_array().cloned().unwrap_or_default();
            let held: Vec<bool> = steps
                .iter()
                .map(|step| step["state"] == "held_back")
                .collect();
            holds(held == [true, true, false], || status.to_string())
        },
    );
    let (before, status) = emitted();
    assert!(
        before < ORDERS,
        "the source is not read to its end: {status}"
    );
    let calm = eventually("three agents and steps report", SOON, || {
        let seen = memory(&instance);
        holds(seen.len() >= 7, || format!("{seen:?}")).map(|()| seen)
    });
    let began = Instant::now();
    let mut most = calm.clone();
    while began.elapsed() < WATCHED {
        std::thread::sleep(Duration::from_secs(1));
        for (name, bytes) in memory(&instance) {
            let peak = most.entry(name).or_default();
            *peak = bytes.max(*peak);
        }
    }
    for (name, peak) in &most {
        let at_first = calm.get(name).copied().unwrap_or(0);
        assert!(
            *peak <= at_first + BREATH_BYTES,
            "{name} grew from {at_first} to {peak} bytes"
        );
    }
    let (after, status) = emitted();
    assert_eq!(before, after, "the trigger has stopped: {status}");
    for step in status["steps"].as_array().expect("steps") {
        let queued = step["queued_deliveries"].as_u64().unwrap_or(0);
        assert!(
            queued <= 40,
            "a queue stays near its bound of {BOUND}: {status}"
        );
    }
    let text = instance.run(&["status", "orders-to-crm"]).ok().out;
    assert!(
        text.contains("a queue that this step publishes to is full"),
        "a person can read why: {text}"
    );
    demo.post(&format!("{}/release", demo.crm));
    crm_holds_exactly(&demo, ORDERS, LONG);
}

const BY_WEBHOOK: &str = r#"
flow: by-webhook
trigger: { id: pushed, webhook: true }
actions:
  - id: crm
    image: towpath/http-request:test
    concurrency: 2
    timeout: 10m
    with:
      timeout: 9m
      method: PUT
      url: "http://crm:8080/deals/{{ .id }}"
      headers: { authorization: "Bearer ${secrets.crm_token}" }
"#;

fn post(hook: &str, number: u64) -> http::Answer {
    let body = json!({ "id": format!("pushed-{number}"), "number": number }).to_string();
    http::send("POST", hook, None, Some(&body)).expect("an answer")
}

fn hook(instance: &Instance) -> String {
    instance.status("by-webhook")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned()
}

#[test]
fn a_webhook_to_a_full_flow_answers_429_and_what_was_taken_arrives() {
    let instance = Instance::start_set(
        BrokerVersion::V310,
        &[("TOWPATH_BROKER__QUEUE_DELIVERIES_MAX", BOUND)],
    );
    let demo = begin(&instance, 0);
    demo.post(&format!("{}/hold?how=wait", demo.crm));
    instance.apply(BY_WEBHOOK);
    let hook = hook(&instance);
    let mut taken = 0;
    let refused = loop {
        let answer = post(&hook, taken);
        if answer.status != 202 {
            break answer;
        }
        taken += 1;
        assert!(taken < 2_000, "it takes far more than it can hold");
    };
    assert_eq!(refused.status, 429, "{refused:?}");
    let wait: u64 = refused
        .retry_after
        .as_deref()
        .and_then(|seconds| seconds.parse().ok())
        .expect("it says when to come again");
    assert!(wait >= 1, "{refused:?}");
    demo.post(&format!("{}/release", demo.crm));
    crm_holds_exactly(&demo, taken, LONG);
    eventually("it takes requests again", SOON, || {
        let answer = post(&hook, taken);
        holds(answer.status == 202, || format!("{answer:?}"))
    });
    crm_holds_exactly(&demo, taken + 1, LONG);
}

#[test]
fn a_webhook_without_a_broker_answers_503_and_says_when_to_come_again() {
    let version = BrokerVersion::V40;
    let instance = Instance::start_linked(version, version.share(), "");
    let demo = begin(&instance, 0);
    instance.apply(BY_WEBHOOK);
    let hook = hook(&instance);
    assert_eq!(post(&hook, 1).status, 202);
    let links = instance.links.as_ref().expect("it was started with links");
    links.control.set(Condition::Cut);
    let refused = post(&hook, 2);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.retry_after.is_some(), "{refused:?}");
    links.control.set(Condition::Open);
    eventually("it takes requests again", SOON, || {
        let answer = post(&hook, 2);
        holds(answer.status == 202, || format!("{answer:?}"))
    });
    crm_holds_exactly(&demo, 2, LONG);
}

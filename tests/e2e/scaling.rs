//! More and fewer replicas, by hand and by the work, under load.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

#[test]
fn scale_out_restarts_none_and_scale_in_finishes_what_is_held() {
    let instance = Instance::start(BrokerVersion::V310);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "5000"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
            ("DEMO_DELAY_MS", "20"),
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(1));
    let count = |replicas: usize| {
        eventually("the number of replicas", SOON, || {
            let now = instance.containers("orders-to-crm", Some("crm"));
            holds(now.len() == replicas, || format!("{now:?}"))?;
            Ok(now)
        })
    };
    let one = count(1);
    instance.run(&["scale", "orders-to-crm", "crm", "4"]).ok();
    let four = count(4);
    for (name, id) in &one {
        assert_eq!(
            four.get(name),
            Some(id),
            "the first replica was not touched"
        );
    }
    eventually("all four work", SOON, || {
        let status = instance.status("orders-to-crm");
        let running = status["steps"].as_array().expect("steps")[2]["running"].as_u64();
        holds(running == Some(4), || status.to_string())
    });
    instance.run(&["scale", "orders-to-crm", "crm", "1"]).ok();
    assert_eq!(count(1), one, "the first replica stays");
    crm_holds_exactly(&demo, 5000, LONG);
    let stats = demo.crm_stats().expect("stats");
    assert_eq!(
        stats["repeated"].as_u64(),
        Some(0),
        "a drain finishes what it holds: {stats}"
    );
}

/// Long enough for the calm minute after which there are fewer replicas, and for their drains.
const CALM: Duration = Duration::from_secs(240);

fn step(status: &Value, number: usize) -> &Value {
    &status["steps"].as_array().expect("steps")[number]
}

#[test]
fn a_backlog_brings_more_replicas_and_calm_takes_them_away_without_interrupting_a_message() {
    const ORDERS: u64 = 4_000;
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "4000"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
            ("DEMO_DELAY_MS", "50"),
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    let flow = orders_to_crm(1)
        .replace(
            "replicas: 1",
            "replicas: { min: 1, max: 4, backlog_per_replica: 200 }",
        )
        .replace("concurrency: 16", "concurrency: 4");
    instance.apply(&flow);
    let why = eventually("there are four replicas", LONG, || {
        let status = instance.status("orders-to-crm");
        holds(step(&status, 2)["running"] == 4, || status.to_string())?;
        Ok(step(&status, 2)["scaling"].to_string())
    });
    assert!(why.contains("4 of 1–4: "), "it says why: {why}");
    assert!(
        why.contains(" waiting, 200 a replica"),
        "it says why: {why}"
    );
    // A message keeps coming now and then, while there are fewer replicas again.
    crm_holds_exactly(&demo, ORDERS, LONG);
    eventually("one replica is enough", CALM, || {
        demo.post(&format!("{}/orders?n=1", demo.shop));
        let status = instance.status("orders-to-crm");
        let left = instance.containers("orders-to-crm", Some("crm"));
        holds(step(&status, 2)["desired"] == 1 && left.len() == 1, || {
            status.to_string()
        })
    });
    let stats = eventually("what came meanwhile is there", LONG, || {
        let stats = demo.crm_stats()?;
        let status = instance.status("orders-to-crm");
        let done = step(&status, 2)["done"].as_u64();
        holds(done.is_some() && done == stats["deals"].as_u64(), || {
            format!("{stats} {status}")
        })?;
        Ok(stats)
    });
    assert!(stats["deals"].as_u64() > Some(ORDERS), "{stats}");
    assert_eq!(
        (&stats["repeated"], &stats["conflicting"]),
        (&json!(0), &json!(0)),
        "who leaves finishes what it holds: {stats}"
    );
}

/// A step with enough to do, before one that takes ten minutes for each message.
const NARROW: &str = r#"
flow: narrow
trigger: { id: hook, webhook: true }
actions:
  - id: wide
    image: towpath/test-step:test
    replicas: { min: 1, max: 4, backlog_per_replica: 3 }
  - id: narrow
    image: towpath/test-step:test
    concurrency: 1
    timeout: 1h
"#;

#[test]
fn a_step_is_not_scaled_while_the_one_after_it_is_the_bottleneck() {
    let bound = [("TOWPATH_BROKER__QUEUE_DELIVERIES_MAX", "10")];
    let instance = Instance::start_set(BrokerVersion::V40, &bound);
    instance.apply(NARROW);
    let hook = instance.status("narrow")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let slow = json!({ "do": "slow", "delay_ms": 600_000 });
    let body = json!({ "do": "pass", "pass": slow }).to_string();
    eventually("both queues are full", LONG, || {
        for _ in 0..10 {
            let answer = http::send("POST", &hook, None, Some(&body))?;
            if answer.status == 429 {
                return Ok(());
            }
        }
        Err(instance.status("narrow").to_string())
    });
    eventually("it says which step is the bottleneck", LONG, || {
        let status = instance.status("narrow");
        let why = step(&status, 0)["scaling"].to_string();
        holds(why.contains("`narrow` after it is the bottleneck"), || {
            status.to_string()
        })
    });
    let status = instance.status("narrow");
    assert_eq!(step(&status, 0)["desired"], 1, "{status}");
    let log = instance.log();
    assert!(!log.contains("before=1"), "one it stayed: {log}");
}

const SLEEPY: &str = r#"
flow: sleepy
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    replicas: { min: 0, max: 4, latency: 10s }
"#;

#[test]
fn a_step_that_sleeps_is_woken_by_a_message_and_an_operator_can_hold_its_number() {
    let instance = Instance::start(BrokerVersion::V310);
    instance.apply(SLEEPY);
    let seen = |what: &str, limit: Duration, look: &dyn Fn(&Value) -> bool| {
        eventually(what, limit, || {
            let status = instance.status("sleepy");
            holds(look(step(&status, 0)), || status.to_string())
        });
    };
    seen("it sleeps", SOON, &|step| {
        step["state"] == "asleep" && step["desired"] == 0
    });
    assert_eq!(instance.containers("sleepy", None).len(), 0);

    let said = instance.run(&["scale", "sleepy", "step", "2"]).ok();
    assert!(said.out.contains("from 0–4 to 2"), "{said:?}");
    seen("an operator says two", SOON, &|step| {
        step["running"] == 2 && step["scaling"].to_string().contains("2 by an operator")
    });
    let said = instance.run(&["scale", "sleepy", "step", "auto"]).ok();
    assert!(said.out.contains("0–4"), "{said:?}");
    seen("calm lets it sleep", CALM, &|step| {
        step["state"] == "asleep"
    });
    assert_eq!(
        instance.containers("sleepy", None).len(),
        0,
        "no container is left"
    );

    let hook = instance.status("sleepy")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let began = Instant::now();
    let body = json!({ "do": "ok" }).to_string();
    let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    seen("the first message wakes it", SOON, &|step| {
        step["desired"] == 1
    });
    let woken = began.elapsed();
    seen("the message is done", SOON, &|step| step["done"] == 1);
    eprintln_times(woken, began.elapsed());
    let said = instance.run(&["scale", "sleepy", "step", "many"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("`auto`"), "{said:?}");
}

#[expect(clippy::print_stderr, reason = "a measurement, for whoever reads it")]
fn eprintln_times(woken: Duration, done: Duration) {
    eprintln!("woken after {woken:?}, done and reported after {done:?}");
}

//! An operator's verbs.

use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

const FLOW: &str = r#"
flow: verbs
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    retry: { attempts: 1 }
  - id: log
    image: towpath/log:test
"#;

fn begin() -> (Instance, String) {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(FLOW);
    let hook = instance.status("verbs")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    (instance, hook)
}

fn post(hook: &str, body: &Value) {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

#[track_caller]
fn step_is(instance: &Instance, what: &str, look: impl Fn(&Value) -> bool) {
    eventually(what, SOON, || {
        let status = instance.status("verbs");
        holds(look(&status["steps"][0]), || status.to_string())
    });
}

#[test]
fn pause_keeps_everything_and_resume_goes_on() {
    let (mut instance, hook) = begin();
    let before = instance.containers("verbs", None);
    instance.run(&["pause", "verbs"]).ok();
    step_is(&instance, "the step is paused", |step| {
        step["state"] == "paused"
    });
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok" }));
    }
    step_is(&instance, "messages wait", |step| {
        step["queued"].as_u64() >= Some(1) && step["done"] == 0
    });
    // A pause outlives the control plane.
    instance.kill();
    instance.serve();
    step_is(&instance, "the step is still paused", |step| {
        step["state"] == "paused" && step["done"] == 0
    });
    instance.run(&["resume", "verbs"]).ok();
    step_is(&instance, "all are done", |step| step["done"] == 20);
    assert_eq!(
        instance.containers("verbs", None),
        before,
        "no container was replaced"
    );
}

#[test]
fn stop_removes_containers_and_keeps_messages_and_delete_asks_before_it_drops_them() {
    let (instance, hook) = begin();
    instance.run(&["pause", "verbs"]).ok();
    step_is(&instance, "the step is paused", |step| {
        step["state"] == "paused"
    });
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok" }));
    }
    instance.run(&["stop", "verbs"]).ok();
    eventually("no container is left", SOON, || {
        let left = instance.containers("verbs", None);
        holds(left.is_empty(), || format!("{left:?}"))
    });
    let said = instance.run(&["delete", "verbs", "--yes"]);
    assert_eq!(said.code, 1, "messages are kept: {said:?}");
    assert!(said.err.contains("--drop-messages"), "{said:?}");
    instance.run(&["resume", "verbs"]).ok();
    step_is(&instance, "all are done", |step| step["done"] == 20);
    instance.run(&["delete", "verbs", "--yes"]).ok();
    assert_eq!(instance.run(&["status", "verbs"]).code, 1);
    eventually("no container is left", SOON, || {
        let left = instance.containers("verbs", None);
        holds(left.is_empty(), || format!("{left:?}"))
    });
}

#[test]
fn one_step_is_paused_and_the_others_go_on() {
    let (mut instance, hook) = begin();
    let before = instance.containers("verbs", None);
    instance.run(&["pause", "verbs", "log"]).ok();
    let again = instance.run(&["pause", "verbs", "log"]).ok();
    assert!(again.out.contains("already"), "{again:?}");
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok" }));
    }
    let waits = |what: &str, instance: &Instance| {
        eventually(what, SOON, || {
            let status = instance.status("verbs");
            let (step, log) = (&status["steps"][0], &status["steps"][1]);
            let is = step["state"] == "running"
                && step["done"] == 20
                && log["state"] == "paused"
                && log["done"] == 0
                && log["because"] == "the step is paused";
            holds(is, || status.to_string())
        });
    };
    waits("only `log` is paused", &instance);
    instance.kill();
    instance.serve();
    eventually("`log` is still paused", SOON, || {
        let status = instance.status("verbs");
        let log = &status["steps"][1];
        holds(log["state"] == "paused" && log["done"] == 0, || {
            status.to_string()
        })
    });
    instance.run(&["resume", "verbs", "log"]).ok();
    eventually("`log` has had all", SOON, || {
        let status = instance.status("verbs");
        holds(status["steps"][1]["done"] == 20, || status.to_string())
    });
    assert_eq!(instance.containers("verbs", None), before);
    let said = instance.run(&["delete", "verbs", "log", "--yes"]);
    assert!(
        said.code == 1 && said.err.contains("take it out"),
        "{said:?}"
    );
}

#[test]
fn a_flow_that_drains_refuses_requests_and_finishes_what_it_has() {
    let (instance, hook) = begin();
    instance.run(&["pause", "verbs"]).ok();
    for _ in 0..50 {
        post(&hook, &json!({ "do": "ok" }));
    }
    post(&hook, &json!({ "do": "rebound" }));
    instance.run(&["drain", "verbs", "--wait"]).ok();
    let status = instance.status("verbs");
    assert_eq!(status["state"], "draining", "{status}");
    assert_eq!(status["left"]["drained"], true, "{status}");
    assert_eq!(
        status["steps"][0]["done"], 51,
        "also what was to be tried again: {status}"
    );
    let refused = http::send("POST", &hook, None, Some("{}")).expect("an answer");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.text.contains("flow_draining"), "{refused:?}");
    instance.run(&["resume", "verbs"]).ok();
    post(&hook, &json!({ "do": "ok" }));
    step_is(&instance, "it runs again", |step| step["done"] == 52);
}

#[test]
fn what_is_dead_can_be_listed_shown_replayed_and_discarded() {
    let (instance, hook) = begin();
    post(&hook, &json!({ "do": "permanent" }));
    post(&hook, &json!({ "do": "permanent", "second": true }));
    let list = || -> Vec<Value> {
        let letters = instance
            .run(&["dead", "list", "--output", "json"])
            .ok()
            .json();
        letters["dead"]
            .as_array()
            .cloned()
            .or_else(|| letters.as_array().cloned())
            .unwrap_or_default()
    };
    let wait = |count: usize| {
        eventually("dead letters", SOON, || {
            let letters = list();
            holds(letters.len() == count, || format!("{letters:?}"))?;
            Ok(letters)
        })
    };
    let letters = wait(2);
    let id = letters[0]["id"].as_str().expect("an id");
    // It fails again: a dead letter of its own, with its history.
    instance.run(&["dead", "replay", id]).ok();
    let again = eventually("the replayed one is dead again", SOON, || {
        list()
            .into_iter()
            .find(|letter| letter["replays"] == 1)
            .ok_or_else(|| format!("{:?}", list()))
    });
    assert_eq!(
        instance.run(&["dead", "replay", id]).code,
        1,
        "one that was replayed is not replayed twice"
    );
    instance
        .run(&["dead", "discard", again["id"].as_str().expect("an id")])
        .ok();
    wait(1);
    let said = instance.run(&["dead", "show", "no-such-id"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("no-such-id"), "{said:?}");
}

#[test]
fn run_fires_the_trigger_now_and_logs_show_what_steps_say() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "30"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(1).replace("every: 1s", "every: 12h"));
    crm_holds_exactly(&demo, 30, LONG);
    demo.post(&format!("{}/orders?n=5", demo.shop));
    instance.run(&["run", "orders-to-crm"]).ok();
    crm_holds_exactly(&demo, 35, LONG);
    let logs = instance
        .run(&["logs", "orders-to-crm", "--tail", "100"])
        .ok();
    assert!(logs.out.contains("orders"), "{logs:?}");
    let status = instance.run(&["status", "orders-to-crm"]).ok();
    for word in ["orders", "shape", "crm", "running"] {
        assert!(
            status.out.contains(word),
            "{word} is in the table: {}",
            status.out
        );
    }
}

#[test]
fn the_metrics_count_by_flow_and_step() {
    let (instance, hook) = begin();
    for _ in 0..7 {
        post(&hook, &json!({ "do": "ok" }));
    }
    post(&hook, &json!({ "do": "permanent" }));
    eventually("the metrics have counted", SOON, || {
        let text = http::send("GET", &format!("{}/metrics", instance.url), None, None)?.text;
        let line = |name: &str| {
            text.lines()
                .filter(|line| line.starts_with(name) && line.contains("step=\"step\""))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>()
        };
        let seen = (
            line("towpath_messages_received_total"),
            line("towpath_messages_dead_lettered_total"),
        );
        holds(seen == (8.0, 1.0), || format!("{seen:?}\n{text}"))
    });
}

#[test]
fn the_api_wants_its_token() {
    let instance = Instance::start(BrokerVersion::V310);
    let flows = format!("{}/api/v1/flows", instance.url);
    assert_eq!(
        http::send("GET", &flows, None, None)
            .expect("an answer")
            .status,
        401
    );
    assert_eq!(
        http::send("GET", &flows, Some("wrong"), None)
            .expect("an answer")
            .status,
        401
    );
    assert_eq!(
        http::send("GET", &flows, Some(&instance.token()), None)
            .expect("an answer")
            .status,
        200
    );
    assert!(
        http::get(&format!("{}/openapi.json", instance.url)).expect("a document")["paths"]
            .is_object()
    );
}

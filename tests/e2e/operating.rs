//! An operator's verbs.

use serde_json::{Value, json};
use towpath_tests::machine::docker;
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
    eventually("`log` is paused", SOON, || {
        let status = instance.status("verbs");
        holds(status["steps"][1]["state"] == "paused", || {
            status.to_string()
        })
    });
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

/// Waits until `step` and `log` have done so many, and `log` is in this state.
#[track_caller]
fn log_is(instance: &Instance, what: &str, state: &str, done: (u64, u64)) {
    eventually(what, LONG, || {
        let status = instance.status("verbs");
        let (step, log) = (&status["steps"][0], &status["steps"][1]);
        let is = log["state"] == state && step["done"] == done.0 && log["done"] == done.1;
        holds(is && status["dead_letters"] == 0, || status.to_string())
    });
}

/// Gives a verb that was given before: it says so, and changes nothing.
#[track_caller]
fn says_already(instance: &Instance, verb: &str) {
    let before = instance.containers("verbs", None);
    let arguments = [verb, "verbs", "log", "--output", "json"];
    let said = instance.run(&arguments).ok().json();
    assert_eq!(said["changed"], false, "{said}");
    let message = said["message"].as_str().expect("a message");
    assert!(message.contains("already"), "{said}");
    assert_eq!(instance.containers("verbs", None), before);
}

#[test]
fn a_step_that_drains_finishes_what_it_has_and_takes_no_more_until_it_is_resumed() {
    let (mut instance, hook) = begin();
    let before = instance.containers("verbs", None);
    instance.run(&["pause", "verbs", "log"]).ok();
    log_is(&instance, "`log` is paused", "paused", (0, 0));
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok" }));
    }
    log_is(&instance, "messages wait for `log`", "paused", (20, 0));
    let said = instance.run(&["drain", "verbs", "log", "--wait"]).ok();
    assert!(said.out.contains("is drained"), "{said:?}");
    log_is(&instance, "it finished what it had", "drained", (20, 20));
    for _ in 0..15 {
        post(&hook, &json!({ "do": "ok" }));
    }
    says_already(&instance, "drain");
    let step_waits = |what: &str, instance: &Instance| {
        log_is(instance, what, "drained", (20, 20));
        step_is(instance, "the step before it holds still", |step| {
            step["state"] == "paused" && step["queued"].as_u64() >= Some(1) && step["done"] == 20
        });
    };
    step_waits("it takes no more", &instance);
    instance.kill();
    instance.serve();
    step_waits("it is still drained", &instance);
    says_already(&instance, "drain");
    instance.run(&["resume", "verbs", "log"]).ok();
    log_is(&instance, "all are done", "running", (35, 35));
    assert_eq!(
        instance.containers("verbs", None),
        before,
        "no container was replaced"
    );
}

#[test]
fn a_step_that_is_stopped_has_no_container_and_keeps_its_messages_until_it_is_resumed() {
    let (mut instance, hook) = begin();
    let before = instance.containers("verbs", Some("step"));
    let only_step_is_there = |what: &str, instance: &Instance| {
        eventually(what, SOON, || {
            let left = instance.containers("verbs", None);
            holds(left == before, || format!("{left:?}"))
        });
    };
    instance.run(&["stop", "verbs", "log"]).ok();
    only_step_is_there("`log` has no container", &instance);
    says_already(&instance, "stop");
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok" }));
    }
    log_is(&instance, "messages wait for `log`", "stopped", (20, 0));
    instance.kill();
    instance.serve();
    log_is(&instance, "it is still stopped", "stopped", (20, 0));
    only_step_is_there("`log` has no container again", &instance);
    says_already(&instance, "stop");
    instance.run(&["resume", "verbs", "log"]).ok();
    log_is(&instance, "all are done", "running", (20, 20));
    let after = instance.containers("verbs", Some("step"));
    assert_eq!(after, before, "the other step was left alone");
}

/// The queues and exchanges of the flow on the broker.
fn of_the_flow_on_the_broker(instance: &Instance) -> Vec<String> {
    let mark = format!("{}.flow.verbs", instance.name);
    let broker = instance.broker.container.as_str();
    let list = |what: &str| {
        let ctl = ["exec", broker, "rabbitmqctl", "-q", what];
        docker(&[ctl.as_slice(), &["-p", &instance.name, "name"]].concat())
    };
    let all = [list("list_queues"), list("list_exchanges")].join("\n");
    let ours = all.lines().filter(|line| line.contains(&mark));
    ours.map(str::to_owned).collect()
}

#[test]
fn a_flow_is_not_deleted_while_messages_are_to_be_tried_again() {
    let (instance, hook) = begin();
    post(&hook, &json!({ "do": "later", "delay_ms": 600_000 }));
    eventually("a message waits", SOON, || {
        let list = instance.run(&["retries", "list", "verbs", "--output", "json"]);
        let list = list.ok().json();
        holds(list["total"] == 1, || list.to_string())
    });
    let refused = instance.run(&["delete", "verbs", "--yes"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let words = "1 that are to be tried again";
    assert!(refused.err.contains(words), "{refused:?}");
    instance.run(&["retries", "now", "verbs", "--all"]).ok();
    step_is(&instance, "it is done", |step| step["done"] == 1);
    eventually("nothing is left", SOON, || {
        let said = instance.run(&["delete", "verbs", "--yes"]);
        holds(said.code == 0, || format!("{said:?}"))
    });
}

#[test]
fn a_flow_that_is_deleted_with_its_messages_leaves_nothing_and_begins_empty_when_it_comes_again() {
    let (instance, hook) = begin();
    instance.run(&["pause", "verbs"]).ok();
    step_is(&instance, "the step is paused", |step| {
        step["state"] == "paused"
    });
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok" }));
    }
    step_is(&instance, "messages wait", |step| {
        step["queued"].as_u64() >= Some(1)
    });
    let refused = instance.run(&["delete", "verbs", "--yes"]);
    assert!(
        refused.code == 1 && refused.err.contains("`step` about"),
        "with the step and the count: {refused:?}"
    );
    let there = of_the_flow_on_the_broker(&instance);
    assert!(
        there.len() >= 2,
        "it is refused, so all is there: {there:?}"
    );
    instance
        .run(&["delete", "verbs", "--drop-messages", "--yes"])
        .ok();
    assert_eq!(instance.run(&["status", "verbs"]).code, 1);
    eventually("nothing of it is left", LONG, || {
        let left = (
            instance.containers("verbs", None),
            of_the_flow_on_the_broker(&instance),
        );
        holds(left.0.is_empty() && left.1.is_empty(), || {
            format!("{left:?}")
        })
    });
    let gone = http::send("POST", &hook, None, Some("{}")).expect("an answer");
    assert_eq!(gone.status, 404, "{gone:?}");

    instance.apply(FLOW);
    let status = instance.status("verbs");
    assert_eq!(status["state"], "running", "it is not paused: {status}");
    let hook = status["webhook_url"].as_str().expect("a URL");
    post(hook, &json!({ "do": "ok" }));
    eventually("the new message is done", SOON, || {
        let status = instance.status("verbs");
        holds(status["steps"][1]["done"] == 1, || status.to_string())
    });
    let status = instance.status("verbs");
    for step in [&status["steps"][0], &status["steps"][1]] {
        let counts = (&step["received"], &step["queued"], &step["dead_letters"]);
        let expected = (&json!(1), &json!(0), &json!(0));
        assert_eq!(counts, expected, "no message of before: {status}");
    }
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

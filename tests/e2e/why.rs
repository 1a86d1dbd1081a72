//! Where a message is, asked at every stage of its life.

use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::{LONG, SOON};

/// A webhook, a step that does what it is told, one at a time, and one that takes all it gets.
const FLOW: &str = r#"
flow: why
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    concurrency: 1
    timeout: 10m
    retry: { attempts: 3, initial: 10m, max: 10m, jitter: 0 }
  - id: log
    image: towpath/log:test
"#;

/// Sends a message and returns its id.
fn post(hook: &str, body: &Value) -> String {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer: Value = serde_json::from_str(&answer.text).expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

/// Asks until the message is there, and returns the answer.
#[track_caller]
fn is(instance: &Instance, id: &str, state: &str) -> Value {
    eventually(&format!("the message is {state}"), LONG, || {
        let said = instance.run(&["why", id, "--output", "json"]);
        let found = said.json();
        holds(found["state"] == state, || found.to_string())?;
        Ok(found)
    })
}

#[test]
fn why_says_where_a_message_is() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(FLOW);
    let hook = instance.status("why")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();

    // Settled, with a child that knows its parent.
    let id = post(&hook, &json!({ "do": "ok" }));
    let settled = is(&instance, &id, "settled");
    assert_eq!(settled["steps"][0]["step"], "step", "{settled}");
    assert_eq!(settled["attempts"][0]["outcome"], "done", "{settled}");
    let child = settled["children"][0]["id"].as_str().expect("a child");
    let child = is(&instance, child, "settled");
    assert_eq!(child["steps"][0]["step"], "log", "{child}");
    assert_eq!(child["parent"]["id"], id.as_str(), "{child}");
    assert_eq!(child["parent"]["port"], "out", "{child}");

    // Dead; then discarded.
    let id = post(&hook, &json!({ "do": "permanent" }));
    let dead = is(&instance, &id, "dead");
    let letter = eventually("its dead letter is stored", SOON, || {
        let found = instance.run(&["why", &id, "--output", "json"]).json();
        found["steps"][0]["letter"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| found.to_string())
    });
    assert!(!dead["attempts"].as_array().expect("attempts").is_empty());
    let text = instance.run(&["why", &id]).ok().out;
    assert!(text.contains("told to give up"), "{text}");
    assert!(
        text.contains(&format!("towpath dead replay {letter}")),
        "{text}"
    );
    instance.run(&["dead", "discard", &letter]).ok();
    is(&instance, &id, "discarded");

    // Waiting for its next attempt: the process died.
    let id = post(&hook, &json!({ "do": "exit" }));
    let waiting = is(&instance, &id, "waiting");
    assert_eq!(waiting["steps"][0]["attempt"], 2, "{waiting}");
    assert!(waiting["steps"][0]["until"].as_u64().is_some(), "{waiting}");

    // In the hands of a replica, and behind it one that was taken.
    let hangs = post(&hook, &json!({ "do": "hang" }));
    let in_hand = is(&instance, &hangs, "in_hand");
    assert_eq!(in_hand["steps"][0]["replica"], 1, "{in_hand}");
    let behind = post(&hook, &json!({ "do": "ok" }));
    is(&instance, &behind, "taken");

    // In the queue: what was taken and not begun goes back when the flow is paused.
    instance.run(&["pause", "why"]).ok();
    let queued = is(&instance, &behind, "queued");
    let next = queued["steps"][0]["next"].as_str().expect("a sentence");
    assert!(next.contains("as long as the flow is paused"), "{queued}");
    let late = post(&hook, &json!({ "do": "ok" }));
    is(&instance, &late, "queued");

    // Unknown, and no id at all.
    let nobody = instance.run(&["why", &"0".repeat(32)]);
    assert_eq!(nobody.code, 1, "{}", nobody.out);
    assert!(nobody.out.contains("unknown"), "{}", nobody.out);
    assert!(nobody.out.contains("remember"), "{}", nobody.out);
    let wrong = instance.run(&["why", "my-message"]);
    assert_eq!(wrong.code, 1, "{}", wrong.err);
    assert!(wrong.err.contains("32 hexadecimal digits"), "{}", wrong.err);
}

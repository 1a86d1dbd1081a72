//! What happens between the queue and the step's hands.

use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::SOON;

fn hook(instance: &Instance, flow: &str) -> String {
    let status = instance.status(flow);
    let hook = status["webhook_url"].as_str();
    hook.expect("a URL").to_owned()
}

fn post(hook: &str, body: &Value) {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// The step takes orders of what to do: an object with a text `do`.
fn checked(validate: &str) -> String {
    format!(
        r#"
flow: checked
trigger: {{ id: hook, webhook: true }}
actions:
  - id: step
    image: towpath/test-step:test
    validate: {validate}
    retry: {{ attempts: 5, initial: 10m, max: 10m }}
"#
    )
}

#[track_caller]
fn are(instance: &Instance, done: u64, invalid: u64) {
    eventually("the messages are settled", SOON, || {
        let status = instance.status("checked");
        holds(status["steps"][0]["done"].as_u64() == Some(done), || {
            status.to_string()
        })?;
        let metrics = http::send("GET", &format!("{}/metrics", instance.url), None, None)?.text;
        let line =
            format!("towpath_messages_invalid_total{{flow=\"checked\",step=\"step\"}} {invalid}\n");
        holds(metrics.contains(&line), || metrics)
    });
}

#[test]
fn a_body_that_is_not_what_the_step_takes_is_a_dead_letter_at_once_and_says_where() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(&checked("dead-letter"));
    let hook = hook(&instance, "checked");
    post(&hook, &json!({ "do": "ok" }));
    post(&hook, &json!({ "do": 7, "pass": "a value that is nobody's business" }));
    post(&hook, &json!({ "do": "ok" }));
    are(&instance, 2, 1);
    let list = eventually("there is a dead letter", SOON, || {
        let list = instance.run(&["dead", "list", "checked", "--output", "json"]);
        let list = list.ok().out;
        holds(list.contains("invalid"), || list.clone())?;
        Ok(list)
    });
    assert!(list.contains("`.do`"), "{list}");
    assert!(list.contains("string"), "{list}");
    assert!(!list.contains("nobody's business"), "{list}");
    let status = instance.status("checked");
    assert_eq!(status["steps"][0]["retrying"].as_u64().unwrap_or(0), 0, "{status}");
}

#[test]
fn a_body_that_is_not_what_the_step_takes_is_only_told_when_that_is_wanted() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(&checked("warn"));
    let hook = hook(&instance, "checked");
    // `count` is a number that is not negative: the schema says so, and the step looks at it only
    // when it needs it.
    post(&hook, &json!({ "do": "ok" }));
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok", "delays": "none" }));
    }
    eventually("the step was handed them, and gave them up", SOON, || {
        let list = instance.run(&["dead", "list", "checked", "--output", "json"]);
        let list = list.ok().out;
        holds(list.matches("\"permanent\"").count() >= 20, || list.clone())
    });
    are(&instance, 1, 20);
    let log = instance.run(&["logs", "checked", "--tail", "1000"]).ok().out;
    let warnings = log.matches("not what the step takes").count();
    assert!((1..=2).contains(&warnings), "one line, not twenty:\n{log}");
}

/// An image with a manifest of a test's own.
fn image(instance: &Instance, name: &str, manifest: &Value) -> String {
    let text = format!("FROM towpath/test-step:test\nLABEL io.towpath.manifest='{manifest}'\n");
    let file = instance.write(&format!("{name}.Dockerfile"), &text);
    let folder = file.rsplit_once('/').expect("a folder").0;
    let image = format!("towpath/{name}:{}", instance.name);
    docker(&["build", "--quiet", "--tag", &image, "--file", &file, folder]);
    image
}

#[test]
fn what_a_step_emits_is_held_against_what_the_next_one_takes_before_anything_runs() {
    let instance = Instance::start(BrokerVersion::V40);
    let object = |kind: &str| {
        json!({ "type": "object", "properties": { "cents": { "type": kind } }, "required": ["cents"] })
    };
    let manifest = |name: &str, input: Value, output: Value| {
        json!({ "contract": 1, "name": name, "kind": "action", "input": input, "ports": { "out": output, "late": {} } })
    };
    let text = image(
        &instance,
        "text",
        &manifest("text", json!(true), object("string")),
    );
    let crm = image(&instance, "crm", &manifest("crm", object("integer"), json!(null)));
    let flow = |after: &str| {
        format!(
            "flow: fitting\ntrigger: {{ id: hook, webhook: true }}\nactions:\n  - {{ id: make, image: \"{text}\" }}\n  - {{ id: take, image: \"{crm}\", after: {after} }}\n"
        )
    };
    let path = instance.write("fitting.yaml", &flow("make"));
    for verb in ["plan", "apply"] {
        let said = instance.run(&[verb, &path]);
        assert_eq!(said.code, 1, "{said:?}");
        for part in ["F105", "`make`", "`take`", "`.cents`", "fitting.yaml:5:"] {
            assert!(said.err.contains(part), "no {part} in {}", said.err);
        }
    }
    // Nothing is known of what leaves by the other port.
    let path = instance.write("fitting.yaml", &flow("make.late"));
    instance.run(&["plan", &path]).ok();
    for image in [&text, &crm] {
        docker(&["image", "rm", "--force", image]);
    }
}

//! Flow shapes: each message goes to exactly the steps whose conditions hold for it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON};

const ORDERS: u64 = 3_000;

/// Orders with an even number become deals `even-…`, every third one `third-…`; the rest goes nowhere.
const BY_NUMBER: &str = r#"
flow: by-number
trigger:
  id: orders
  image: towpath/http-poll:test
  every: 1s
  with:
    url: "http://shop:8080/orders"
    cursor: updated_at
    sorted: true
    page: { style: link, size_param: size, size: 100 }
actions:
  - id: shape
    image: towpath/jq:test
    replicas: 2
    with: { filter: "{id}" }
  - id: even
    image: towpath/jq:test
    after: shape
    when: .id % 2 == 0
    with: { filter: "{id: \"even-\\(.id)\"}" }
  - id: third
    image: towpath/jq:test
    after: shape
    when: .id % 3 == 0
    with: { filter: "{id: \"third-\\(.id)\"}" }
  - id: crm
    image: towpath/http-request:test
    after: [even, third]
    concurrency: 16
    retry: { attempts: 20, initial: 500ms, factor: 1.5, max: 5s }
    with:
      method: PUT
      url: "http://crm:8080/deals/{{ .id }}"
      headers: { authorization: "Bearer ${secrets.crm_token}" }
"#;

/// The keys of all deals.
fn deals(demo: &Demo) -> Result<BTreeSet<String>, String> {
    let mut keys = BTreeSet::new();
    loop {
        let after = keys.last().cloned().unwrap_or_default();
        let url = format!("{}/deals?size=1000&after={after}", demo.crm);
        let answer = http::send("GET", &url, Some("demo-token"), None)?;
        let page: Vec<Value> =
            serde_json::from_str(&answer.text).map_err(|error| format!("{error}: {answer:?}"))?;
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(
            page.iter()
                .filter_map(|it| Some(it["key"].as_str()?.to_owned())),
        );
    }
}

#[test]
fn every_message_goes_to_exactly_the_branches_it_matches_although_agents_are_killed() {
    let instance = Instance::start(BrokerVersion::V40);
    let orders = ORDERS.to_string();
    let quiet = [NO_429, NO_500, NO_500_AFTER, NOT_SLOW];
    let demo = Demo::start(
        &instance,
        &[&[("DEMO_ORDERS", orders.as_str())], &quiet[..]].concat(),
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(BY_NUMBER);
    for (round, step) in ["shape", "orders", "shape", "even"].into_iter().enumerate() {
        eventually("deals arrive", LONG, || {
            let stats = demo.crm_stats()?;
            let deals = stats["deals"].as_u64();
            holds(deals >= Some(300 * (round as u64 + 1)), || {
                stats.to_string()
            })
        });
        for container in instance.containers("by-number", Some(step)).values() {
            docker(&["kill", container]);
        }
    }
    let even = (1..=ORDERS).filter(|id| id % 2 == 0);
    let third = (1..=ORDERS).filter(|id| id % 3 == 0);
    let expect: BTreeSet<String> = even
        .map(|id| format!("even-{id}"))
        .chain(third.map(|id| format!("third-{id}")))
        .collect();
    eventually("every deal is there", LONG, || {
        let stats = demo.crm_stats()?;
        let count = expect.len() as u64;
        holds(stats["deals"].as_u64() >= Some(count), || stats.to_string())
    });
    let deals = deals(&demo).expect("the CRM says");
    assert_eq!(
        deals.difference(&expect).next(),
        None,
        "nothing went wrong ways"
    );
    assert_eq!(expect.difference(&deals).next(), None, "nothing is missing");
    let list = instance.run(&["dead", "list", "--output", "json"]).ok();
    assert_eq!(list.json()["dead"], json!([]), "{list:?}");
}

/// What is passed on by `pass` goes to `large`, if its total is.
const CONDITIONS: &str = r#"
flow: conditions
trigger: { id: hook, webhook: true }
actions:
  - { id: pass, image: "towpath/test-step:test", when: ".do == \"pass\"" }
  - { id: large, image: "towpath/log:test", when: .total.net > 100 }
"#;

/// Sends a request, and returns the id of its message.
fn post(instance: &Instance, body: &Value) -> String {
    let status = instance.status("conditions");
    let hook = status["webhook_url"].as_str().expect("a webhook");
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    let taken: Value = serde_json::from_str(&answer.text).expect("JSON");
    taken["id"].as_str().expect("an id").to_owned()
}

fn pass(instance: &Instance, body: &Value) -> String {
    post(instance, &json!({ "do": "pass", "pass": body }))
}

/// Waits until `why` says that a message is so.
#[track_caller]
fn is(instance: &Instance, id: &str, state: &str) -> Value {
    eventually(&format!("{id} is {state}"), SOON, || {
        let found = instance.run(&["why", id, "--output", "json"]).json();
        holds(found["state"] == state, || found.to_string())?;
        Ok(found)
    })
}

/// Waits until a step says so of itself.
#[track_caller]
fn step_says(instance: &Instance, index: usize, key: &str, number: u64) {
    eventually(&format!("step {index} has {number} {key}"), SOON, || {
        let status = instance.status("conditions");
        holds(status["steps"][index][key] == number, || status.to_string())
    });
}

#[test]
fn a_message_that_matches_no_branch_is_counted_and_why_says_so() {
    let instance = Instance::start(BrokerVersion::V310);
    instance.apply(CONDITIONS);
    pass(&instance, &json!({ "total": { "net": 500 } }));
    step_says(&instance, 1, "done", 1);

    // Of a step with an image its agent counts it.
    let parent = pass(&instance, &json!({ "total": { "net": 5 } }));
    step_says(&instance, 0, "unmatched", 1);
    let found = is(&instance, &parent, "settled");
    let child = found["children"][0]["id"].as_str().expect("its child");
    let found = is(&instance, child, "unmatched");
    assert_eq!(found["steps"][0]["step"], "pass", "{found}");

    // Of a webhook without one the control plane does.
    let nowhere = post(&instance, &json!({ "do": "nothing" }));
    is(&instance, &nowhere, "unmatched");
    let status = instance.status("conditions");
    assert_eq!(status["unmatched_requests"], 1, "{status}");
    let text = instance.run(&["status", "conditions"]).ok().out;
    for words in ["1 requests went nowhere", "pass: 1 messages went nowhere"] {
        assert!(text.contains(words), "{text}");
    }
    let list = instance.run(&["dead", "list", "--output", "json"]).ok();
    assert_eq!(list.json()["dead"], json!([]), "nobody failed: {list:?}");
}

#[test]
fn a_condition_that_fails_is_a_dead_letter_that_can_be_replayed() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(CONDITIONS);
    pass(&instance, &json!({ "total": 7 }));
    let letter = eventually("a dead letter", SOON, || {
        let list = instance.run(&["dead", "list", "--output", "json"]).json();
        let letters = list["dead"].as_array().cloned().unwrap_or_default();
        holds(letters.len() == 1, || list.to_string())?;
        Ok(letters[0].clone())
    });
    assert_eq!(letter["step"], "large", "the step whose condition it is");
    assert_eq!(letter["cause"], "condition");
    let reason = letter["reason"].as_str().expect("a reason");
    assert!(reason.contains("cannot index 7 with \"net\""), "{reason}");
    step_says(&instance, 0, "done", 1);
    step_says(&instance, 1, "received", 0);
    let id = letter["id"].to_string();
    instance.run(&["dead", "replay", id.trim_matches('"')]).ok();
    step_says(&instance, 1, "done", 1);
}

#[test]
fn a_condition_that_is_wrong_is_shown_with_its_place_and_changes_nothing() {
    let instance = Instance::start(BrokerVersion::V40);
    let path = instance.write(
        "wrong.yaml",
        &CONDITIONS.replace(".total.net > 100", ".total.net >"),
    );
    for command in ["check", "plan", "apply"] {
        let said = instance.run(&[command, &path]);
        assert_eq!(said.code, 1, "{said:?}");
        for words in [
            "F090",
            "wrong.yaml:6:",
            "the condition is wrong at line 1, column 13",
        ] {
            assert!(
                said.err.contains(words) || said.out.contains(words),
                "{words}: {said:?}"
            );
        }
    }
}

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

const HANDED: u64 = 3_000;

/// Hands every other message to [`TAKES`]. It is fired once.
fn hands() -> String {
    format!(
        r#"
flow: hands
trigger:
  id: start
  image: towpath/timer:test
  every: 365d
  with: {{ payload: {{ do: flood, count: {} }} }}
actions:
  - {{ id: open, image: "towpath/jq:test", with: {{ filter: .payload }} }}
  - {{ id: many, image: "towpath/test-step:test" }}
  - {{ id: shape, image: "towpath/jq:test", replicas: 2, with: {{ filter: "{{id: .number}}" }} }}
  - {{ id: over, to: flow/takes, when: .id % 2 == 0 }}
"#,
        2 * HANDED
    )
}

/// Its rate leaves the time to stop it in the middle.
const TAKES: &str = r#"
flow: takes
trigger: { id: given, from: flows }
actions:
  - { id: shape, image: "towpath/jq:test", replicas: 2, with: { filter: "{id: \"n-\\(.id)\"}" } }
  - id: crm
    image: towpath/http-request:test
    rate: 200/s
    retry: { attempts: 20, initial: 500ms, factor: 1.5, max: 5s }
    with:
      method: PUT
      url: "http://crm:8080/deals/{{ .id }}"
      headers: { authorization: "Bearer ${secrets.crm_token}" }
"#;

fn run_of(instance: &Instance, flow: &str) -> Value {
    let list = instance
        .run(&["runs", "list", flow, "--output", "json"])
        .ok();
    list.json()["runs"][0].clone()
}

#[test]
fn a_flow_hands_messages_to_another_that_is_killed_and_stopped_and_none_is_lost() {
    let instance = Instance::start(BrokerVersion::V40);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    let demo = Demo::start(&instance, &[NO_429, NO_500, NO_500_AFTER, NOT_SLOW]);
    let early = instance.run(&["apply", &instance.write("hands.yaml", &hands())]);
    assert_eq!(early.code, 1, "the other flow is not there: {early:?}");
    assert!(early.err.contains("F093"), "{early:?}");
    instance.apply(TAKES);
    instance.apply(&hands());
    let arrived = |count: u64| {
        eventually("deals arrive", LONG, || {
            let stats = demo.crm_stats()?;
            holds(stats["deals"].as_u64() >= Some(count), || stats.to_string())
        });
    };
    for (round, (flow, step)) in [("takes", "shape"), ("hands", "shape"), ("takes", "crm")]
        .into_iter()
        .enumerate()
    {
        arrived(200 * (round as u64 + 1));
        for container in instance.containers(flow, Some(step)).values() {
            docker(&["kill", container]);
        }
    }
    arrived(1_000);
    instance.run(&["stop", "takes"]).ok();
    let gone = instance.run(&["delete", "takes", "--drop-messages", "--yes"]);
    assert_eq!(gone.code, 1, "{gone:?}");
    assert!(
        gone.err.contains("`hands` hands messages to it"),
        "{gone:?}"
    );
    // What is handed over meanwhile waits, and the run says for what.
    eventually("the run waits for the other flow", LONG, || {
        let run = run_of(&instance, "hands");
        holds(run["state"] == "paused", || run.to_string())
    });
    let said = instance.run(&["status", "hands"]).ok().out;
    assert!(
        said.contains("over hands over to takes, which is stopped: it waits there"),
        "{said}"
    );
    instance.run(&["resume", "takes"]).ok();
    arrived(HANDED);
    let expect: BTreeSet<String> = (0..HANDED).map(|id| format!("n-{}", 2 * id)).collect();
    let deals = deals(&demo).expect("the CRM says");
    assert_eq!(deals, expect, "no more and no less");
    let run = eventually("the run is done", LONG, || {
        let run = run_of(&instance, "hands");
        holds(run["state"] == "done", || run.to_string())?;
        Ok(run)
    });
    let done = |step: &str| {
        let steps = run["steps"].as_array().expect("steps");
        let step = steps.iter().find(|it| it["step"] == step);
        step.map(|step| step["done"].clone())
    };
    for step in ["takes/shape", "takes/crm"] {
        assert_eq!(done(step), Some(json!(HANDED)), "{run}");
    }
    assert_eq!(done("shape"), Some(json!(2 * HANDED)), "{run}");
    let list = instance.run(&["dead", "list", "--output", "json"]).ok();
    assert_eq!(list.json()["dead"], json!([]), "{list:?}");
}

/// A webhook that hands over what `pass` passes on.
const PASSES: &str = r#"
flow: conditions
trigger: { id: hook, webhook: true }
actions:
  - { id: pass, image: "towpath/test-step:test" }
  - { id: over, to: flow/last, when: .total.net > 0 }
"#;

const LAST: &str = r#"
flow: last
trigger: { id: given, from: flows }
actions:
  - { id: end, image: "towpath/test-step:test" }
"#;

/// Waits for the only open dead letter.
fn dead_letter(instance: &Instance) -> Value {
    let list = eventually("a dead letter", SOON, || {
        let list = instance.run(&["dead", "list", "--output", "json"]).json();
        let count = list["dead"].as_array().map(Vec::len);
        holds(count == Some(1), || list.to_string())?;
        Ok(list)
    });
    list["dead"][0].clone()
}

fn replay(instance: &Instance, letter: &Value) {
    let id = letter["id"].as_str().expect("an id");
    instance.run(&["dead", "replay", id]).ok();
}

#[test]
fn what_was_handed_over_can_be_found_and_replayed_while_the_other_flow_changes() {
    let instance = Instance::start(BrokerVersion::V310);
    instance.apply(LAST);
    instance.apply(PASSES);
    let done = |step: &str, number: u64| {
        eventually(&format!("{step} is done with {number}"), LONG, || {
            let status = instance.status("last");
            let first = &status["steps"][0];
            let is = json!([first["step"], first["done"]]);
            holds(is == json!([step, number]), || status.to_string())
        });
    };
    // It dies there: the letter is of that flow, and says where the message came from.
    let parent = pass(
        &instance,
        &json!({ "do": "permanent", "total": { "net": 1 } }),
    );
    let letter = dead_letter(&instance);
    assert_eq!(
        (&letter["flow"], &letter["step"]),
        (&json!("last"), &json!("end"))
    );
    assert_eq!(letter["entered"], "conditions", "{letter}");
    let id = letter["id"].as_str().expect("an id");
    let page = instance.run(&["dead", "show", id]).ok().out;
    assert!(
        page.contains("conditions, version 1, which handed it over"),
        "{page}"
    );
    let found = is(&instance, &parent, "settled");
    let child = found["children"][0]["id"].as_str().expect("its child");
    let found = is(&instance, child, "dead");
    assert_eq!(found["steps"][0]["flow"], "last", "{found}");
    instance.run(&["dead", "discard", id]).ok();

    // Its condition fails: the letter is of the action, and is handed over when it is replayed.
    pass(&instance, &json!({ "do": "ok", "total": 7 }));
    let letter = dead_letter(&instance);
    assert_eq!(
        (&letter["flow"], &letter["step"]),
        (&json!("conditions"), &json!("over"))
    );
    assert_eq!(letter["cause"], "condition");
    replay(&instance, &letter);
    done("end", 1);

    // The other flow begins with another step: who sends to it is replaced, and nothing gets lost.
    let before = instance.containers("conditions", Some("pass"));
    let other = instance.write("other.yaml", &LAST.replace("id: end", "id: begin"));
    let said = instance.run(&["plan", &other]);
    assert!(said.out.contains("those of `conditions`"), "{said:?}");
    instance
        .run(&["apply", &other, "--move", "end=begin", "--timeout", "120s"])
        .ok();
    for _ in 0..20 {
        pass(&instance, &json!({ "do": "ok", "total": { "net": 1 } }));
    }
    done("begin", 20);
    eventually(
        "the container that handed over is another one",
        LONG,
        || {
            let now = instance.containers("conditions", Some("pass"));
            holds(now.len() == 1 && now != before, || format!("{now:?}"))
        },
    );
    let list = instance.run(&["dead", "list", "--output", "json"]).ok();
    assert_eq!(list.json()["dead"], json!([]), "{list:?}");

    // Once nothing is handed to it, it may go.
    instance.run(&["delete", "conditions", "--yes"]).ok();
    instance.run(&["delete", "last", "--yes"]).ok();
}

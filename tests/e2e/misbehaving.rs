//! A step that does everything wrong: each message ends in its fate, with the reason to be read,
//! and the step goes on.

use std::time::Duration;

use serde_json::{Value, json};
use towpath_tests::machine::try_docker;
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::LONG;

const FLOW: &str = r#"
flow: misbehaving
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    concurrency: 4
    timeout: 2s
    memory: 128MiB
    retry: { attempts: 2, initial: 250ms, max: 250ms, jitter: 0 }
  - id: log
    image: towpath/log:test
"#;

fn post(hook: &str, body: &Value) {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

fn begin() -> (Instance, String) {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(FLOW);
    let hook = instance.status("misbehaving")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    (instance, hook)
}

/// Sends a misbehaviour among well-behaved neighbours and waits for its dead letter.
#[track_caller]
fn dead_letter_of(instance: &Instance, hook: &str, body: &Value) -> Value {
    post(hook, &json!({ "do": "ok" }));
    post(hook, body);
    post(hook, &json!({ "do": "ok" }));
    let what = body["do"].as_str().expect("a misbehaviour").to_owned();
    let letter = eventually(&format!("`{what}` is a dead letter"), LONG, || {
        let letters = instance
            .run(&["dead", "list", "--flow", "misbehaving", "--output", "json"])
            .ok()
            .json();
        let letters = letters["dead"]
            .as_array()
            .cloned()
            .or_else(|| letters.as_array().cloned())
            .unwrap_or_default();
        let shown = letters.iter().map(|letter| {
            let id = letter["id"].as_str().expect("an id");
            instance
                .run(&["dead", "show", id, "--output", "json"])
                .ok()
                .json()
        });
        shown
            .into_iter()
            .find(|letter| letter["message"]["body"]["do"] == what.as_str())
            .ok_or_else(|| format!("{letters:?} {}", instance.status("misbehaving")))
    });
    let text = instance
        .run(&["dead", "show", letter["id"].as_str().expect("an id")])
        .ok()
        .out;
    assert!(
        text.contains(letter["reason"].as_str().expect("a reason")),
        "a person can read why: {text}"
    );
    letter
}

/// How many messages a step has settled as done.
fn done(instance: &Instance, step: usize) -> u64 {
    instance.status("misbehaving")["steps"][step]["done"]
        .as_u64()
        .unwrap_or(0)
}

#[test]
fn a_step_that_panics_exits_hangs_or_writes_garbage_goes_on_and_says_why() {
    let (instance, hook) = begin();
    let reason = |body: Value| {
        dead_letter_of(&instance, &hook, &body)["reason"]
            .as_str()
            .expect("a reason")
            .to_owned()
    };
    let panicked = reason(json!({ "do": "panic" }));
    assert!(panicked.contains("panic"), "{panicked}");
    let exited = reason(json!({ "do": "exit" }));
    assert!(exited.contains("17"), "the exit code is named: {exited}");
    let hung = reason(json!({ "do": "hang" }));
    assert!(
        hung.contains("2 s") || hung.contains("2s"),
        "the time limit is named: {hung}"
    );
    let garbage = reason(json!({ "do": "garbage" }));
    assert!(
        garbage.contains("this is not a frame"),
        "what it wrote is named: {garbage}"
    );
    let memory = reason(json!({ "do": "memory" }));
    assert!(
        memory.contains("killed by the memory limit, 128 MiB"),
        "the limit is named: {memory}"
    );
    eventually("all neighbours are done", LONG, || {
        let count = done(&instance, 0);
        holds(count == 10, || {
            format!("{count} {}", instance.status("misbehaving"))
        })
    });
    let letters = instance
        .run(&["dead", "list", "--output", "json"])
        .ok()
        .json();
    let count = letters["dead"]
        .as_array()
        .or(letters.as_array())
        .map(Vec::len);
    assert_eq!(count, Some(5), "only the culprits are dead: {letters}");
}

#[test]
fn a_message_that_ends_its_process_by_a_signal_is_found_and_its_neighbours_lose_no_attempt() {
    let instance = Instance::start(BrokerVersion::V40);
    // Whoever loses its only attempt is dead.
    let flow = FLOW
        .replace("timeout: 2s", "timeout: 10m")
        .replace("attempts: 2", "attempts: 1");
    instance.apply(&flow);
    let hook = instance.status("misbehaving")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    for _ in 0..3 {
        post(&hook, &json!({ "do": "slow", "delay_ms": 8_000 }));
    }
    let logs = || {
        instance
            .run(&["logs", "misbehaving", "step", "--tail", "1000"])
            .ok()
            .out
    };
    eventually("three neighbours are in hand", LONG, || {
        let logs = logs();
        let count = logs.matches("slow: handed over").count();
        holds(count == 3, || logs)
    });
    let letter = dead_letter_of(&instance, &hook, &json!({ "do": "signal" }));
    let log = logs();
    assert!(
        log.contains("messages were in its hands: they are tried one at a time"),
        "it took neighbours with it: {log}"
    );
    let reason = letter["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("signal 6 (SIGABRT)"),
        "the signal is named: {reason}"
    );
    assert_eq!(
        letter["attempts"].as_array().map(Vec::len),
        Some(1),
        "only the death that it died alone counts: {letter}"
    );
    // What is sent last is done last: whatever is done twice has been done by then.
    let all_done = |count: u64| {
        eventually("the neighbours are done, each once", LONG, || {
            let both = (done(&instance, 0), done(&instance, 1));
            holds(both == (count, count), || {
                format!("{both:?} {}", instance.status("misbehaving"))
            })
        });
    };
    all_done(5);
    post(&hook, &json!({ "do": "ok" }));
    all_done(6);
    let step = instance.status("misbehaving")["steps"][0].clone();
    assert_eq!(
        (&step["failed"], &step["dead"], &step["dead_letters"]),
        (&json!(1), &json!(1), &json!(1)),
        "only the culprit lost an attempt: {step}"
    );
}

#[test]
fn a_message_that_can_never_succeed_is_dead_at_once_and_one_that_is_early_comes_back() {
    let (instance, hook) = begin();
    let letter = dead_letter_of(&instance, &hook, &json!({ "do": "permanent" }));
    assert_eq!(
        letter["attempts"].as_array().map(Vec::len),
        Some(1),
        "{letter}"
    );
    post(&hook, &json!({ "do": "rebound" }));
    eventually("what was early is done", LONG, || {
        let count = done(&instance, 0);
        holds(count == 3, || count.to_string())
    });
}

#[test]
fn a_hundred_thousand_outputs_of_one_message_all_arrive() {
    let (instance, hook) = begin();
    post(&hook, &json!({ "do": "flood", "count": 100_000 }));
    eventually("all outputs arrive", Duration::from_secs(120), || {
        let count = done(&instance, 1);
        holds(count == 100_000, || {
            format!("{count} {}", instance.status("misbehaving"))
        })
    });
}

#[test]
fn a_body_above_the_limit_is_refused_by_name_and_the_step_goes_on() {
    let (instance, hook) = begin();
    let letter = dead_letter_of(&instance, &hook, &json!({ "do": "big" }));
    let reason = letter["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("1048576") || reason.contains("1 MiB"),
        "the limit is named: {reason}"
    );
    eventually("the neighbours are done", LONG, || {
        let count = done(&instance, 0);
        holds(count == 2, || count.to_string())
    });
}

#[test]
fn a_message_that_takes_its_container_with_it_each_time_is_found_and_its_neighbours_are_done() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(&FLOW.replace("timeout: 2s", "timeout: 10m"));
    let hook = instance.status("misbehaving")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    post(&hook, &json!({ "do": "hang" }));
    for _ in 0..3 {
        post(&hook, &json!({ "do": "ok" }));
    }
    let letters = || {
        instance
            .run(&["dead", "list", "--flow", "misbehaving", "--output", "json"])
            .ok()
            .json()
    };
    let count = |letters: &Value| {
        letters["dead"]
            .as_array()
            .or(letters.as_array())
            .map_or(0, Vec::len)
    };
    let mut kills = 0;
    eventually("it is a dead letter", Duration::from_secs(600), || {
        let found = letters();
        if count(&found) > 0 {
            return Ok(());
        }
        for container in instance.containers("misbehaving", Some("step")).values() {
            // It may be gone by now.
            let log = try_docker(&["logs", container]).unwrap_or_default();
            if log.contains("hang: handed over") && try_docker(&["kill", container]).is_ok() {
                kills += 1;
            }
        }
        Err(format!("{kills} kills, {}", instance.status("misbehaving")))
    });
    let found = letters();
    assert_eq!(count(&found), 1, "its neighbours are not dead: {found}");
    let id = found["dead"].as_array().or(found.as_array()).expect("one")[0]["id"].clone();
    let letter = instance
        .run(&[
            "dead",
            "show",
            id.as_str().expect("an id"),
            "--output",
            "json",
        ])
        .ok()
        .json();
    let reason = letter["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("its container died with it alone in hand"),
        "{reason}"
    );
    assert!(reason.ends_with("attempt 2"), "{reason}");
    eventually("its neighbours are done", LONG, || {
        let count = done(&instance, 1);
        holds(count == 3, || {
            format!("{count} {}", instance.status("misbehaving"))
        })
    });
}

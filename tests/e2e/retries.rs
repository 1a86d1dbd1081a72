//! What waits to be tried again: seen, brought back, given up, and on time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::{LONG, SOON};

/// Nothing comes back by itself while a test runs.
const PATIENT: &str = r#"
flow: patient
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    retry: { attempts: 5, initial: 10m, max: 10m, jitter: 0 }
"#;

fn begin(version: BrokerVersion) -> (Instance, String) {
    let instance = Instance::start(version);
    instance.apply(PATIENT);
    let hook = instance.status("patient")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    (instance, hook)
}

fn post(hook: &str, body: &Value) {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// Messages whose first attempt fails.
fn fail(hook: &str, count: usize) {
    for _ in 0..count {
        post(hook, &json!({ "do": "fail", "count": 1 }));
    }
}

/// Waits until so many messages wait, and lists them.
#[track_caller]
fn waiting(instance: &Instance, count: u64) -> Value {
    eventually(&format!("{count} messages wait"), SOON, || {
        let said = instance.run(&["retries", "list", "patient", "--output", "json"]);
        let list = said.ok().json();
        holds(list["total"].as_u64() == Some(count), || list.to_string())?;
        Ok(list)
    })
}

fn ids(list: &Value) -> Vec<String> {
    let waiting = list["waiting"].as_array().expect("a list").iter();
    let ids = waiting.map(|one| one["id"].as_str().expect("an id").to_owned());
    ids.collect()
}

#[track_caller]
fn are_done(instance: &Instance, count: u64) {
    eventually(&format!("{count} messages are done"), SOON, || {
        let status = instance.status("patient");
        let done = status["steps"][0]["done"].as_u64();
        holds(done == Some(count), || status.to_string())
    });
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("a clock").as_millis()).expect("a time")
}

#[test]
fn retries_are_listed_with_reason_and_time() {
    let (instance, hook) = begin(BrokerVersion::V40);
    fail(&hook, 3);
    let list = waiting(&instance, 3);
    assert_eq!(list["groups"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["groups"][0]["count"].as_u64(), Some(3), "{list}");
    let one = &list["waiting"][0];
    assert_eq!(one["attempt"].as_u64(), Some(2), "{one}");
    assert_eq!(one["attempts"].as_u64(), Some(5), "{one}");
    let reason = one["reason"].as_str().expect("a reason");
    assert!(reason.contains("told to fail"), "{one}");
    let due = one["due"].as_u64().expect("a time");
    let left = due.saturating_sub(now_ms());
    assert!((400_000..=601_000).contains(&left), "{left} ms: {one}");
    let text = instance.run(&["retries", "list", "patient"]).ok().out;
    for part in ["3 messages wait", "2 of 5", "told to fail"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let is_near = text.contains("in 9m 5") || text.contains("in 10m 0s");
    assert!(is_near, "{text}");
    let metrics = http::send("GET", &format!("{}/metrics", instance.url), None, None);
    let metrics = metrics.expect("an answer").text;
    let line = r#"towpath_retries_waiting{flow="patient",step="step"} 3"#;
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_rebound_of_days_counts_no_attempt_and_can_be_brought_back_now() {
    // Half an hour more, so that a minute does not matter in what a person reads.
    const DAYS_MS: u64 = 3 * 86_400_000 + 1_800_000;
    let (instance, hook) = begin(BrokerVersion::V40);
    let before = now_ms();
    post(&hook, &json!({ "do": "later", "delay_ms": DAYS_MS }));
    let list = waiting(&instance, 1);
    let after = now_ms();
    let one = &list["waiting"][0];
    assert_eq!(
        (&one["is_rebound"], &one["rebounds"], &one["attempt"]),
        (&json!(true), &json!(1), &json!(1)),
        "the first attempt is still ahead of it: {one}"
    );
    assert_eq!(one["reason"], "told to come later", "{one}");
    let due = one["due"].as_u64().expect("a time");
    // The ladder counts in quarters of a second, and rounds up.
    assert!(
        (before + DAYS_MS..=after + DAYS_MS + 250).contains(&due),
        "{due} is not three days after {before}: {one}"
    );
    let text = instance.run(&["retries", "list", "patient"]).ok().out;
    for part in ["1 message waits", "not yet", "rebound 1", "in 3d 0h"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let id = &ids(&list)[0];
    let said = instance.run(&["retries", "now", "patient", id]).ok();
    assert!(said.out.contains("1 message came back now"), "{said:?}");
    // The step gives it up if it comes as a second attempt.
    are_done(&instance, 1);
    waiting(&instance, 0);
    let step = instance.status("patient")["steps"][0].clone();
    assert_eq!(
        (&step["rebounded"], &step["failed"], &step["retried"]),
        (&json!(1), &json!(0), &json!(0)),
        "{step}"
    );
}

#[test]
fn the_back_off_is_what_the_flow_file_says() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(
        r#"
flow: backing-off
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    retry: { attempts: 4, initial: 500ms, factor: 2, max: 1s, jitter: 0 }
"#,
    );
    let hook = instance.status("backing-off")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    post(&hook, &json!({ "do": "fail", "count": 10 }));
    let letter = eventually("its attempts are used up", LONG, || {
        let list = instance.run(&["dead", "list", "--output", "json"]);
        let list = list.ok().json();
        let letter = list["dead"].as_array().and_then(|letters| letters.first());
        letter.cloned().ok_or_else(|| list.to_string())
    });
    assert_eq!(letter["cause"], "attempts", "{letter}");
    let attempts = letter["attempts"].as_array().expect("attempts");
    let numbers: Vec<_> = attempts.iter().map(|one| &one["attempt"]).collect();
    assert_eq!(numbers, [1, 2, 3, 4], "{letter}");
    let times = attempts.iter().map(|one| one["at"].as_u64());
    let times: Vec<u64> = times.map(|at| at.expect("a time")).collect();
    let logs = instance.run(&["logs", "backing-off", "step"]).ok().out;
    for (number, wait_ms) in [500, 1_000, 1_000].into_iter().enumerate() {
        let waited = times[number + 1].saturating_sub(times[number]);
        assert!(waited >= wait_ms, "{waited} ms, not {wait_ms}: {letter}");
        let text = format!("attempt {} failed, tried again in {wait_ms} ms", number + 1);
        assert!(logs.contains(&text), "no `{text}` in\n{logs}");
    }
}

fn retries_now(version: BrokerVersion) {
    let (instance, hook) = begin(version);
    fail(&hook, 4);
    let ids = ids(&waiting(&instance, 4));
    let said = instance.run(&["retries", "now", "patient", &ids[0]]).ok();
    assert!(said.out.contains("1 message came back now"), "{said:?}");
    are_done(&instance, 1);
    waiting(&instance, 3);
    let unknown = "0123456789abcdef".repeat(2);
    let said = instance.run(&["retries", "now", "patient", &ids[1], &unknown]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains(&unknown), "{said:?}");
    assert!(!said.err.contains(&ids[1]), "{said:?}");
    let said = instance.run(&["retries", "now", "patient", "--step", "stop"]);
    assert_eq!(said.code, 1, "{said:?}");
    let said = instance
        .run(&["retries", "now", "patient", "--all", "--dry-run"])
        .ok();
    assert!(said.out.contains("3 messages would"), "{said:?}");
    waiting(&instance, 3);
    instance
        .run(&["retries", "now", "patient", "--step", "step"])
        .ok();
    are_done(&instance, 4);
    waiting(&instance, 0);
}

#[test]
fn retries_now_brings_them_back_at_once() {
    retries_now(BrokerVersion::V40);
}

#[test]
fn retries_now_brings_them_back_at_once_on_rabbitmq_3_10() {
    retries_now(BrokerVersion::V310);
}

#[test]
fn a_cancelled_retry_becomes_a_dead_letter() {
    let (instance, hook) = begin(BrokerVersion::V40);
    fail(&hook, 2);
    let ids = ids(&waiting(&instance, 2));
    instance
        .run(&["retries", "cancel", "patient", &ids[0]])
        .ok();
    waiting(&instance, 1);
    let letter = eventually("a dead letter", SOON, || {
        let letters = instance.run(&["dead", "list", "--output", "json"]);
        let letters = letters.ok().json();
        let letters = letters["dead"].as_array().cloned().unwrap_or_default();
        holds(letters.len() == 1, || format!("{letters:?}"))?;
        Ok(letters[0].clone())
    });
    assert_eq!(letter["message_id"].as_str(), Some(&*ids[0]), "{letter}");
    assert_eq!(letter["cause"].as_str(), Some("cancelled"), "{letter}");
    let reason = letter["reason"].as_str().expect("a reason");
    assert!(reason.contains("by an operator"), "{letter}");
    assert!(reason.contains("attempt 2"), "{letter}");
    // It is not gone: it can be sent again.
    let number = letter["id"].as_str().expect("a number");
    instance.run(&["dead", "replay", number]).ok();
    let list = waiting(&instance, 2);
    let again = list["waiting"].as_array().expect("a list").iter();
    let again: Vec<_> = again
        .filter(|one| one["id"].as_str() == Some(&*ids[0]))
        .collect();
    assert_eq!(again.len(), 1, "{list}");
    assert_eq!(again[0]["replays"].as_u64(), Some(1), "{list}");
}

/// How many rounds there are to be on time in, on a machine that does other things too.
const ROUNDS: usize = 3;

/// How late a retry may come back.
const LATE_MS_MAX: f64 = 1_000.0;

#[test]
fn ten_thousand_retries_on_five_delays_come_back_on_time_and_none_behind_another() {
    let instance = Instance::start_alone(BrokerVersion::V40);
    instance.apply(
        r#"
flow: ladder
trigger: { id: hook, webhook: true }
actions:
  - id: spread
    image: towpath/test-step:test
  - id: step
    image: towpath/test-step:test
    concurrency: 64
    retry: { attempts: 3, jitter: 0 }
"#,
    );
    let hook = instance.status("ladder")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let figures = |instance: &Instance| -> Vec<Value> {
        let letters = instance.run(&["dead", "list", "--flow", "ladder", "--output", "json"]);
        let letters = letters.ok().json();
        let letters = letters["dead"].as_array().cloned().unwrap_or_default();
        let reasons = letters.iter().filter_map(|it| it["reason"].as_str());
        reasons
            .filter_map(|reason| serde_json::from_str(reason).ok())
            .collect()
    };
    let mut latest = f64::INFINITY;
    for round in 1..=ROUNDS {
        let spread = json!({
            "do": "spread", "count": 10_000, "delays": [2_000, 5_000, 9_000, 14_000, 20_000],
        });
        post(&hook, &spread);
        let done = 10_000 * round as u64;
        eventually("all retries are done", LONG, || {
            let status = instance.status("ladder");
            let count = status["steps"][1]["done"].as_u64();
            holds(count == Some(done), || status.to_string())
        });
        // The step says what it saw in the reason of a dead letter, the newest first.
        post(&hook, &json!({ "do": "pass", "pass": { "do": "figures" } }));
        let seen = eventually("the figures", SOON, || {
            let figures = figures(&instance);
            holds(figures.len() == round, || format!("{figures:?}"))?;
            Ok(figures[0].clone())
        });
        println!("round {round}: {seen}");
        assert_eq!(seen["count"].as_u64(), Some(10_000), "{seen}");
        assert_eq!(seen["early"].as_u64(), Some(0), "none is early: {seen}");
        latest = latest.min(seen["late_ms_max"].as_f64().expect("a time"));
        if latest < LATE_MS_MAX {
            return;
        }
    }
    panic!("in the best of {ROUNDS} rounds the last one was {latest} ms late");
}

#[test]
fn a_retry_of_a_day_does_not_hold_up_one_of_a_second() {
    let (instance, hook) = begin(BrokerVersion::V40);
    for _ in 0..20 {
        post(&hook, &json!({ "do": "wait", "delay_ms": 86_400_000 }));
    }
    waiting(&instance, 20);
    let began = std::time::Instant::now();
    post(&hook, &json!({ "do": "wait", "delay_ms": 1_000 }));
    are_done(&instance, 1);
    assert!(began.elapsed() < Duration::from_secs(60));
    let list = waiting(&instance, 20);
    let text = instance.run(&["retries", "list", "patient"]).ok().out;
    assert!(text.contains("in 23h 59m"), "{text}\n{list}");
}

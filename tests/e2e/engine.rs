//! A container engine that does what nobody asked for: what is wrong is said, with what is waited
//! for, and it comes right by itself as soon as it can.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use towpath_tests::machine::{docker, try_docker};
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::{LONG, SOON};

const FLOW: &str = r#"
flow: engine
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
  - id: log
    image: towpath/log:test
"#;

fn begin(flow: &str) -> Instance {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(flow);
    instance
}

fn post(instance: &Instance) {
    let hook = instance.status("engine")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let body = json!({ "do": "ok" }).to_string();
    let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

#[track_caller]
fn step_is(
    instance: &Instance,
    number: usize,
    limit: Duration,
    what: &str,
    look: impl Fn(&Value) -> bool,
) {
    eventually(what, limit, || {
        let status = instance.status("engine");
        holds(look(&status["steps"][number]), || status.to_string())
    });
}

#[test]
fn a_container_that_somebody_removes_is_made_again() {
    let instance = begin(FLOW);
    let before = instance.containers("engine", Some("step"));
    let (name, id) = before.iter().next().expect("a container");
    docker(&["rm", "-f", name]);
    post(&instance);
    step_is(&instance, 0, SOON, "the message is done", |step| {
        step["done"] == 1 && step["running"] == 1
    });
    let after = instance.containers("engine", Some("step"));
    assert_eq!(after.len(), 1);
    assert_ne!(after.get(name), Some(id), "it is another container");
    assert!(
        instance.log().contains("was removed, and not by us"),
        "it says why: {}",
        instance.log()
    );
}

#[test]
fn a_name_that_a_stranger_has_is_said_and_the_stranger_is_left_alone() {
    let instance = begin(FLOW);
    let name = instance
        .containers("engine", Some("step"))
        .into_keys()
        .next()
        .expect("a container");
    instance.run(&["stop", "engine"]).ok();
    eventually("the name is free", SOON, || {
        let left = instance.containers("engine", None);
        holds(
            left.is_empty() && try_docker(&["inspect", &name]).is_err(),
            || format!("{left:?}"),
        )
    });
    let stranger = docker(&["create", "--name", &name, "towpath/log:test"]);
    instance.run(&["resume", "engine"]).ok();
    step_is(
        &instance,
        0,
        SOON,
        "it says who has the name, and when it looks again",
        |step| {
            step["state"] == "backing_off"
                && step["reason"].to_string().contains(&stranger[..12])
                && step["next_at"].as_u64().is_some()
        },
    );
    assert!(
        try_docker(&["inspect", &stranger]).is_ok(),
        "the stranger is left alone"
    );
    step_is(&instance, 1, SOON, "the other step runs", |step| {
        step["state"] == "running"
    });
    docker(&["rm", &stranger]);
    step_is(
        &instance,
        0,
        LONG,
        "it runs once the name is free",
        |step| step["state"] == "running",
    );
}

#[test]
fn an_image_that_somebody_removes_is_said_and_comes_back_by_itself() {
    let instance = Instance::start(BrokerVersion::V40);
    // An image that nothing else uses.
    let image = format!("{}-log:1", instance.name);
    let made = docker(&["create", "towpath/log:test"]);
    docker(&["commit", &made, &image]);
    docker(&["rm", &made]);
    instance.apply(&FLOW.replace("towpath/log:test", &image));
    let saved = instance.data().join("image.tar");
    let saved = saved.to_str().expect("a path in UTF-8");
    docker(&["save", "-o", saved, &image]);
    instance.run(&["stop", "engine"]).ok();
    eventually("nothing uses the image", SOON, || {
        let left = instance.containers("engine", None);
        holds(
            left.is_empty() && try_docker(&["rmi", &image]).is_ok(),
            || format!("{left:?}"),
        )
    });
    instance.run(&["resume", "engine"]).ok();
    step_is(
        &instance,
        1,
        LONG,
        "it says that the image is gone",
        |step| {
            let reason = step["reason"].to_string();
            step["state"] == "blocked" && reason.contains(&image) && reason.contains("is gone")
        },
    );
    step_is(&instance, 0, SOON, "the other step runs", |step| {
        step["state"] == "running"
    });
    docker(&["load", "-i", saved]);
    step_is(
        &instance,
        1,
        LONG,
        "it runs once the image is there",
        |step| step["state"] == "running",
    );
    instance.run(&["delete", "engine", "--yes"]).ok();
    eventually("the image can go", LONG, || {
        try_docker(&["rmi", &image]).map(drop)
    });
}

/// A flow whose first step writes thirty lines, and ends.
const DIES_AT_ONCE: &str = r#"
flow: engine
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/demo-enrich:test
    command:
      - python3
      - -c
      - |
        for number in range(30):
            print("line", number)
        raise SystemExit(3)
  - id: log
    image: towpath/log:test
"#;

/// How long its agent said it would wait each time the step process ended, in milliseconds.
fn waits(log: &str) -> Vec<u64> {
    let parts = log.split("it is started again in ").skip(1);
    let numbers = parts.filter_map(|rest| rest.split(" ms").next()?.parse().ok());
    numbers.collect()
}

#[test]
fn a_step_that_ends_as_soon_as_it_starts_backs_off_and_status_shows_its_last_words() {
    let instance = Instance::start(BrokerVersion::V40);
    let path = instance.write("dies.yaml", DIES_AT_ONCE);
    instance.run(&["apply", &path, "--no-wait"]).ok();
    let expected: Vec<String> = (10..30).map(|number| format!("line {number}")).collect();
    step_is(
        &instance,
        0,
        LONG,
        "it says why, and what it wrote",
        |step| {
            let replica = &step["replicas"][0];
            let reason = step["reason"].as_str().unwrap_or_default();
            step["state"] == "step_fails"
                && reason.contains("exited with code 3")
                && replica["last_lines"] == json!(expected)
        },
    );
    let waits = eventually("it was started four times", LONG, || {
        let log = instance.run(&["logs", "engine", "step", "--tail", "1000"]);
        let waits = waits(&log.ok().out);
        holds(waits.len() >= 4, || format!("{waits:?}"))?;
        Ok(waits)
    });
    // Doubled each time, less up to a quarter, so that many do not come at once.
    let grows = waits.windows(2).all(|pair| pair[1] > pair[0]);
    assert!(grows && waits[3] > 4 * waits[0], "{waits:?}");
    // Not while it writes them again.
    eventually("a person is shown that, and twenty lines", SOON, || {
        let shown = instance.run(&["status", "engine"]).ok().out;
        let words = ["step fails", "exited with code 3", "| line 10", "| line 29"];
        let all = words.iter().all(|words| shown.contains(words));
        let lines = shown.matches("| line ").count();
        holds(all && lines == 20, || shown)
    });
    post(&instance);
    step_is(&instance, 0, SOON, "a message waits", |step| {
        step["queued"] == 1 || step["unacknowledged"] == 1
    });
    instance.apply(FLOW);
    step_is(&instance, 1, LONG, "it is done by a better one", |step| {
        step["done"] == 1 && step["dead_letters"] == 0
    });
}

/// Kills the container of `log` as soon as there is one that was not killed before.
#[track_caller]
fn kill_log(instance: &Instance, killed: &mut Vec<String>) {
    let id = log_container(instance, killed);
    docker(&["kill", &id]);
    killed.push(id);
}

#[track_caller]
fn log_container(instance: &Instance, killed: &[String]) -> String {
    eventually("another container runs", LONG, || {
        let mut ids = instance.containers("engine", Some("log")).into_values();
        ids.find(|id| !killed.contains(id))
            .ok_or_else(|| instance.status("engine").to_string())
    })
}

fn now_ms() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is later than 1970").as_millis()
}

#[test]
fn a_container_that_keeps_ending_backs_off_and_status_shows_why_until_when_and_its_last_lines() {
    let instance = begin(FLOW);
    let mut killed = Vec::new();
    for _ in 0..3 {
        kill_log(&instance, &mut killed);
    }
    // Each message is a line in the log of the next one.
    log_container(&instance, &killed);
    for _ in 0..30 {
        post(&instance);
    }
    step_is(&instance, 1, LONG, "all are done", |step| {
        step["done"] == 30
    });
    let killed_at = now_ms();
    kill_log(&instance, &mut killed);
    let status = eventually("it backs off", SOON, || {
        let status = instance.status("engine");
        let is = status["steps"][1]["state"] == "backing_off";
        holds(is, || status.to_string())?;
        Ok(status)
    });
    let shown = instance.run(&["status", "engine"]).ok().out;
    for words in ["backing off", "it was killed", "; again in ", "    | "] {
        assert!(shown.contains(words), "it shows `{words}`: {shown}");
    }
    let step = &status["steps"][1];
    let next_at = u128::from(step["next_at"].as_u64().expect("a time"));
    assert!(
        next_at >= killed_at + 8_000,
        "after 1, 2 and 4 s it waits for 8: from {killed_at} until {next_at}"
    );
    let reason = step["reason"].as_str().expect("a reason");
    assert!(reason.contains("it was killed (exit code 137)"), "{reason}");
    let lines = step["replicas"][0]["last_lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 20, "{lines:?}");
    let messages = lines.iter().filter(|line| line.to_string().contains("ok"));
    assert!(messages.count() >= 10, "what it wrote last: {lines:?}");
    log_container(&instance, &killed);
    let seen_at = now_ms();
    assert!(seen_at >= next_at, "too early: {seen_at}, not {next_at}");
    post(&instance);
    step_is(&instance, 1, LONG, "it runs again", |step| {
        step["state"] == "running" && step["done"] == 31
    });
}

#[test]
fn a_replica_that_hangs_is_noticed_and_replaced() {
    let instance = begin(FLOW);
    let hung = instance
        .containers("engine", Some("step"))
        .into_values()
        .next()
        .expect("a container");
    // It runs, as far as the engine can tell, and says nothing.
    docker(&["pause", &hung]);
    post(&instance);
    let limit = Duration::from_secs(400);
    // While it is given the time to go, which it cannot hear of.
    step_is(&instance, 0, limit, "`status` says why", |step| {
        let replicas = step["replicas"].as_array().cloned().unwrap_or_default();
        replicas.iter().any(|replica| {
            replica["container"] == hung.as_str()
                && replica["state"] == "draining"
                && replica["reason"]
                    .to_string()
                    .contains("its agent has said nothing for")
        })
    });
    step_is(
        &instance,
        0,
        limit,
        "the work is done, by one that runs",
        |step| step["done"] == 1 && step["running"] == 1,
    );
    assert!(try_docker(&["inspect", &hung]).is_err(), "it is gone");
    assert!(
        instance.log().contains("its agent has said nothing for"),
        "it says why: {}",
        instance.log()
    );
}

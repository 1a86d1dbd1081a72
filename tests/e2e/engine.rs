//! A container engine that does what nobody asked for: what is wrong is said, with what is waited
//! for, and it comes right by itself as soon as it can.

use std::time::Duration;

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

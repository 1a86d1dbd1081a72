//! What can be killed is killed, in the middle of 10,000 messages, and nothing is lost.

use std::time::Duration;

use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

const ORDERS: u64 = 10_000;

/// A shop with 10,000 orders and a CRM that takes each of them at once.
const KIND_WORLD: &[(&str, &str)] = &[
    ("DEMO_ORDERS", "10000"),
    NO_429,
    NO_500,
    NO_500_AFTER,
    NOT_SLOW,
];

fn begin(instance: &Instance) -> Demo {
    let demo = Demo::start(instance, KIND_WORLD);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(2));
    demo
}

/// Waits until at least `orders` orders are in the CRM, and says how many there are.
#[track_caller]
fn at_least(demo: &Demo, orders: u64) -> u64 {
    eventually("orders arrive", LONG, || {
        let stats = demo.crm_stats()?;
        let count = stats["deals"].as_u64().unwrap_or(0);
        holds(count >= orders, || stats.to_string())?;
        Ok(count)
    })
}

#[test]
fn docker_kill_of_every_step_container_loses_nothing() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = begin(&instance);
    for (round, step) in ["crm", "shape", "orders", "crm"].into_iter().enumerate() {
        at_least(&demo, 500 * (round as u64 + 1));
        for container in instance.containers("orders-to-crm", Some(step)).values() {
            docker(&["kill", container]);
        }
    }
    crm_holds_exactly(&demo, ORDERS, LONG);
}

#[test]
fn kill_9_of_the_control_plane_loses_nothing_and_messages_keep_flowing() {
    let mut instance = Instance::start(BrokerVersion::V310);
    let demo = begin(&instance);
    at_least(&demo, 300);
    let before = instance.containers("orders-to-crm", None);
    instance.kill();
    let seen = at_least(&demo, 0);
    at_least(&demo, (seen + 500).min(ORDERS));
    instance.serve();
    crm_holds_exactly(&demo, ORDERS, LONG);
    let after = instance.containers("orders-to-crm", None);
    assert_eq!(
        before, after,
        "running containers are adopted, not replaced"
    );
}

fn a_restart_of_the_broker_loses_nothing(version: BrokerVersion) {
    let instance = Instance::start_alone(version);
    let demo = begin(&instance);
    at_least(&demo, 300);
    docker(&["restart", "-t", "0", &instance.broker.container]);
    crm_holds_exactly(&demo, ORDERS, LONG);
    let before = instance.containers("orders-to-crm", None);
    assert_eq!(
        before.len(),
        4,
        "no container was replaced for it: {before:?}"
    );
    eventually("everything says that it runs", SOON, || {
        let status = instance.status("orders-to-crm");
        let states: Vec<&str> = status["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|step| step["state"].as_str())
            .collect();
        holds(
            !states.is_empty() && states.iter().all(|state| *state == "running"),
            || status.to_string(),
        )
    });
}

#[test]
fn a_restart_of_rabbitmq_3_10_loses_nothing() {
    a_restart_of_the_broker_loses_nothing(BrokerVersion::V310);
}

#[test]
fn a_restart_of_rabbitmq_4_0_loses_nothing() {
    a_restart_of_the_broker_loses_nothing(BrokerVersion::V40);
}

#[test]
fn a_target_that_is_down_is_tried_again_later() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "100"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    demo.post(&format!("{}/hold?how=refuse", demo.crm));
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(1));
    eventually("attempts fail", SOON, || {
        let status = instance.status("orders-to-crm");
        let step = &status["steps"].as_array().expect("steps")[2];
        holds(step["failed"].as_u64() > Some(50), || status.to_string())
    });
    demo.post(&format!("{}/release", demo.crm));
    crm_holds_exactly(&demo, 100, Duration::from_secs(60));
}

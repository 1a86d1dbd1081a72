//! `once: true`: what is settled is not handled again, whatever is killed, and a target that would
//! not notice a repetition is asked before anything is repeated.

use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, crm_holds_exactly, orders_to_crm};

const ORDERS: u64 = 3_000;

/// A shop with 3,000 orders and a CRM that takes each of them at once.
const KIND_WORLD: &[(&str, &str)] = &[
    ("DEMO_ORDERS", "3000"),
    NO_429,
    NO_500,
    NO_500_AFTER,
    NOT_SLOW,
];

/// Orders are posted, each once, and looked for before they may be posted again.
fn once_to_crm() -> String {
    orders_to_crm(2)
        .replace(
            "    concurrency: 16\n    timeout: 30s\n",
            "    concurrency: 16\n    once: true\n    timeout: 30s\n",
        )
        .replace(
            "      method: PUT\n",
            "      check: { url: \"http://crm:8080/deals/{{ .id }}\" }\n      method: PUT\n",
        )
}

fn begin(instance: &Instance) -> Demo {
    let demo = Demo::start(instance, KIND_WORLD);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&once_to_crm());
    demo
}

#[track_caller]
fn at_least(demo: &Demo, orders: u64) {
    eventually("orders arrive", LONG, || {
        let stats = demo.crm_stats()?;
        holds(stats["deals"].as_u64() >= Some(orders), || {
            stats.to_string()
        })
    });
}

/// Waits for every order, and looks whether the CRM was given any of them twice.
#[track_caller]
fn the_crm_was_given_each_once(demo: &Demo) {
    crm_holds_exactly(demo, ORDERS, LONG);
    let stats = demo.crm_stats().expect("it answers");
    assert_eq!(
        (stats["repeated"].as_u64(), stats["updates"].as_u64()),
        (Some(0), Some(0)),
        "nothing was sent twice: {stats}"
    );
}

#[test]
fn with_once_killed_containers_repeat_nothing_at_the_target() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = begin(&instance);
    for round in 1..=3 {
        at_least(&demo, 400 * round);
        for container in instance.containers("orders-to-crm", Some("crm")).values() {
            docker(&["kill", container]);
        }
    }
    the_crm_was_given_each_once(&demo);
}

#[test]
fn with_once_a_step_waits_for_the_control_plane_and_goes_on_by_itself() {
    let mut instance = Instance::start(BrokerVersion::V310);
    let demo = begin(&instance);
    at_least(&demo, 300);
    instance.kill();
    instance.serve();
    the_crm_was_given_each_once(&demo);
}

//! `once: true`: what is settled is not handled again, whatever is killed, and a target that would
//! not notice a repetition is asked before anything is repeated.

use std::time::{Duration, Instant};

use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

const ORDERS: u64 = 6_000;

/// How many messages both replicas of the CRM's step may have in their hands.
const IN_HAND: u64 = 2 * 16;

/// How many both may have claimed beyond that, so as not to wait for answers.
const CLAIMED_AHEAD: u64 = 2 * 1_024;

/// A shop with 6,000 orders and a CRM that takes all of them, some hundred a second.
const KIND_WORLD: &[(&str, &str)] = &[
    ("DEMO_ORDERS", "6000"),
    ("DEMO_DELAY_MS", "20"),
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

/// How often a replica was given a message that another one had, and that is gone.
fn taken_over(instance: &Instance) -> Result<u64, String> {
    let answer = http::send("GET", &format!("{}/metrics", instance.url), None, None)?;
    let lines = answer.text.lines().filter(|line| {
        line.starts_with("towpath_ledger_claims_total")
            && line.contains("step=\"crm\"")
            && line.contains("answer=\"taken_over\"")
    });
    lines
        .map(|line| {
            let number = line.rsplit(' ').next().unwrap_or_default();
            number.parse::<u64>().map_err(|_| line.to_owned())
        })
        .sum()
}

fn kill_the_replicas(instance: &Instance) {
    for container in instance.containers("orders-to-crm", Some("crm")).values() {
        docker(&["kill", container]);
    }
}

#[test]
fn with_once_killed_containers_repeat_nothing_at_the_target() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = begin(&instance);
    for round in 1..=2 {
        at_least(&demo, 400 * round);
        kill_the_replicas(&instance);
    }
    at_least(&demo, 1_200);
    // Now the hands of both are full when they die, and nobody knows of what the CRM was given
    // whether it took it.
    demo.post(&format!("{}/hold", demo.crm));
    eventually("all hands are full", LONG, || {
        let stats = demo.crm_stats()?;
        holds(stats["held"].as_u64() >= Some(IN_HAND), || {
            stats.to_string()
        })
    });
    kill_the_replicas(&instance);
    demo.post(&format!("{}/release", demo.crm));
    the_crm_was_given_each_once(&demo);
    let stats = demo.crm_stats().expect("stats");
    let count = |name: &str| stats[name].as_u64().expect("a count");
    assert!(
        count("requests") - count("stored") >= IN_HAND,
        "the CRM was asked before anything was sent again: {stats}"
    );
    eventually("the ledger knows who died", SOON, || {
        let taken_over = taken_over(&instance)?;
        holds(taken_over >= IN_HAND, || taken_over.to_string())
    });
}

#[test]
fn with_once_a_step_waits_for_the_control_plane_and_goes_on_by_itself() {
    let mut instance = Instance::start(BrokerVersion::V310);
    let demo = begin(&instance);
    at_least(&demo, 300);
    instance.kill();
    let deals = || -> Result<u64, String> {
        let stats = demo.crm_stats()?;
        stats["deals"].as_u64().ok_or_else(|| stats.to_string())
    };
    let before = deals().expect("a count");
    let mut last = (before, Instant::now());
    let after = eventually("the step waits for the control plane", LONG, || {
        let now = deals()?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        let still = last.1.elapsed();
        holds(still > Duration::from_secs(5), || {
            format!("{now} orders, none for {still:?}")
        })?;
        Ok(now)
    });
    assert!(
        after < ORDERS && after <= before + CLAIMED_AHEAD + IN_HAND,
        "only what was claimed before arrives: {before} before, {after} after"
    );
    instance.serve();
    the_crm_was_given_each_once(&demo);
}

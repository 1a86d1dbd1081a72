//! More and fewer replicas, under load.

use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

#[test]
fn scale_out_restarts_none_and_scale_in_finishes_what_is_held() {
    let instance = Instance::start(BrokerVersion::V310);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "5000"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
            ("DEMO_DELAY_MS", "20"),
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(1));
    let count = |replicas: usize| {
        eventually("the number of replicas", SOON, || {
            let now = instance.containers("orders-to-crm", Some("crm"));
            holds(now.len() == replicas, || format!("{now:?}"))?;
            Ok(now)
        })
    };
    let one = count(1);
    instance.run(&["scale", "orders-to-crm", "crm", "4"]).ok();
    let four = count(4);
    for (name, id) in &one {
        assert_eq!(
            four.get(name),
            Some(id),
            "the first replica was not touched"
        );
    }
    eventually("all four work", SOON, || {
        let status = instance.status("orders-to-crm");
        let running = status["steps"].as_array().expect("steps")[2]["running"].as_u64();
        holds(running == Some(4), || status.to_string())
    });
    instance.run(&["scale", "orders-to-crm", "crm", "1"]).ok();
    assert_eq!(count(1), one, "the first replica stays");
    crm_holds_exactly(&demo, 5000, LONG);
    let stats = demo.crm_stats().expect("stats");
    assert_eq!(
        stats["repeated"].as_u64(),
        Some(0),
        "a drain finishes what it holds: {stats}"
    );
}

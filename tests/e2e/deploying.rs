//! Applying a flow, again and changed.

use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

#[test]
fn an_unchanged_flow_changes_nothing_and_a_changed_one_replaces_only_what_must_change() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "50"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    let flow = orders_to_crm(2);
    instance.apply(&flow);
    crm_holds_exactly(&demo, 50, SOON);
    let first = instance.containers("orders-to-crm", None);
    assert_eq!(first.len(), 4, "{first:?}");

    let said = instance.apply(&flow);
    assert!(
        said.out.contains("nothing to do") || said.err.contains("nothing to do"),
        "{said:?}"
    );
    assert_eq!(instance.containers("orders-to-crm", None), first);

    let changed = flow.replace("deal: .number", "deal: .number, currency");
    let path = instance.write("changed.yaml", &changed);
    let plan = instance.run(&["plan", &path]).ok();
    assert!(
        plan.out.contains("shape"),
        "plan names what changes and why: {plan:?}"
    );
    assert_eq!(
        instance.containers("orders-to-crm", None),
        first,
        "a plan changes nothing"
    );

    instance.apply(&changed);
    eventually("only `shape` was replaced", SOON, || {
        let now = instance.containers("orders-to-crm", None);
        let kept = now
            .iter()
            .filter(|(name, id)| first.get(*name) == Some(*id))
            .count();
        holds(now.len() == 4 && kept == 3, || {
            format!("before {first:?}, now {now:?}")
        })
    });
    demo.post(&format!("{}/orders?n=10", demo.shop));
    crm_holds_exactly(&demo, 60, SOON);
}

#[test]
fn a_secret_is_in_no_inspect_no_log_and_no_file_and_a_new_one_replaces_what_uses_it() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "20"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    let secret = "demo-token";
    instance
        .run_with(&["secret", "set", "crm_token"], secret)
        .ok();
    instance.apply(&orders_to_crm(1));
    crm_holds_exactly(&demo, 20, SOON);
    let before = instance.containers("orders-to-crm", None);
    for id in before.values() {
        let inspect = towpath_tests::machine::docker(&["inspect", id]);
        assert!(!inspect.contains(secret), "docker inspect shows the secret");
        assert!(
            !inspect.contains(&instance.broker.login),
            "docker inspect shows the broker's password"
        );
        assert!(
            !towpath_tests::machine::docker(&["logs", id]).contains(secret),
            "a log shows the secret"
        );
    }
    assert!(
        !instance.log().contains(secret),
        "the control plane's log shows the secret"
    );
    for entry in std::fs::read_dir(instance.data()).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if let Ok(bytes) = std::fs::read(&path) {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds the secret in clear", path.display());
        }
    }
    instance
        .run_with(&["secret", "set", "crm_token"], "another-token")
        .ok();
    eventually(
        "what uses the secret is replaced, and nothing else",
        SOON,
        || {
            let now = instance.containers("orders-to-crm", None);
            let kept = now
                .iter()
                .filter(|(name, id)| before.get(*name) == Some(*id))
                .count();
            holds(now.len() == 3 && kept == 2, || {
                format!("before {before:?}, now {now:?}")
            })
        },
    );
}

//! Changing a flow that has messages: none is lost, none goes two ways.

use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

const FLOW: &str = "orders-to-crm";

/// A flow at work on `orders` orders, by a CRM that takes `delay` milliseconds for each.
fn begin(version: BrokerVersion, orders: &str, delay: &str) -> (Instance, Demo) {
    let instance = Instance::start(version);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", orders),
            ("DEMO_DELAY_MS", delay),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(2));
    (instance, demo)
}

#[track_caller]
fn some_arrive(demo: &Demo, orders: u64) {
    eventually("orders arrive", LONG, || {
        let stats = demo.crm_stats()?;
        holds(stats["deals"].as_u64() >= Some(orders), || {
            stats.to_string()
        })
    });
}

/// The flow with `crm` under another name.
fn renamed() -> String {
    orders_to_crm(2).replace("id: crm", "id: deals")
}

/// The flow with a step between `shape` and `crm`.
fn inserted() -> String {
    orders_to_crm(2).replace(
        "  - id: crm",
        "  - id: tag\n    image: towpath/jq:test\n    with: { filter: \".\" }\n  - id: crm",
    )
}

#[test]
fn a_renamed_step_takes_its_messages_along() {
    let (instance, demo) = begin(BrokerVersion::V40, "2000", "50");
    some_arrive(&demo, 50);
    instance.run(&["pause", FLOW, "crm"]).ok();
    let path = instance.write("renamed.yaml", &renamed());
    eventually("messages wait", SOON, || {
        let status = instance.status(FLOW);
        holds(status["steps"][2]["queued"].as_u64() > Some(0), || {
            status.to_string()
        })
    });
    let said = instance.run(&["apply", &path]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("queued"), "with the count: {said:?}");
    assert!(said.err.contains("--move"), "with the choices: {said:?}");
    let plan = instance.run(&["plan", &path]).ok();
    assert!(plan.out.contains("refused"), "{plan:?}");
    let wrong = instance.run(&["apply", &path, "--move", "crm=deal"]);
    assert!(wrong.err.contains("did you mean `deals`?"), "{wrong:?}");
    instance.run(&["apply", &path, "--move", "crm=deals"]).ok();
    crm_holds_exactly(&demo, 2000, LONG);
}

#[test]
fn an_inserted_step_gets_the_messages_from_then_on() {
    let (instance, demo) = begin(BrokerVersion::V310, "4000", "10");
    some_arrive(&demo, 200);
    instance.apply(&inserted());
    crm_holds_exactly(&demo, 4000, LONG);
    let status = instance.status(FLOW);
    let steps = status["steps"].as_array().expect("steps");
    let tag = steps.iter().find(|step| step["step"] == "tag");
    assert!(tag.is_some(), "{status}");
    demo.post(&format!("{}/orders?n=10", demo.shop));
    crm_holds_exactly(&demo, 4010, LONG);
    eventually("the new step has had the new ones", SOON, || {
        let status = instance.status(FLOW);
        let done = status["steps"][2]["done"].as_u64();
        holds(done >= Some(10), || status.to_string())
    });
}

#[test]
fn a_step_that_goes_finishes_first_and_nothing_is_lost() {
    let (instance, demo) = begin(BrokerVersion::V40, "2000", "0");
    some_arrive(&demo, 50);
    let path = instance.write("renamed.yaml", &renamed());
    instance.run(&["apply", &path, "--drain-first"]).ok();
    crm_holds_exactly(&demo, 2000, LONG);
    let status = instance.status(FLOW);
    assert_eq!(status["version"], 2, "{status}");
    assert!(
        instance.containers(FLOW, Some("crm")).is_empty(),
        "the old step is gone"
    );
}

#[test]
fn a_change_under_load_and_the_way_back_lose_nothing() {
    let (instance, demo) = begin(BrokerVersion::V40, "4000", "10");
    some_arrive(&demo, 200);
    let first = instance.containers(FLOW, Some("crm"));
    instance.apply(&orders_to_crm(2).replace("timeout: 30s", "timeout: 31s"));
    let second = instance.containers(FLOW, Some("crm"));
    assert!(
        first.values().all(|id| !second.values().any(|it| it == id)),
        "all replicas are new: {first:?} {second:?}"
    );
    let diff = instance.run(&["diff", FLOW]).ok();
    assert!(diff.out.contains("-    timeout: 30s"), "{diff:?}");
    assert!(diff.out.contains("+    timeout: 31s"), "{diff:?}");
    assert!(!diff.out.contains("demo-token"), "{diff:?}");
    instance.run(&["rollback", FLOW]).ok();
    let versions = instance.run(&["versions", FLOW]).ok();
    assert!(versions.out.contains("back to version 1"), "{versions:?}");
    crm_holds_exactly(&demo, 4000, LONG);
    let said = instance.run(&["rollback", FLOW, "9"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("1 to 3"), "{said:?}");
}

#[test]
fn dead_letters_say_which_version_their_message_was_made_by() {
    let instance = Instance::start(BrokerVersion::V40);
    let flow = |attempts: u32| {
        format!(
            "flow: verbs\ntrigger: {{ id: hook, webhook: true }}\nactions:\n  - id: step\n    image: towpath/test-step:test\n    retry: {{ attempts: {attempts} }}\n"
        )
    };
    instance.apply(&flow(1));
    let hook = instance.status("verbs")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let fail = || {
        let body = Some(r#"{"do":"permanent"}"#);
        let answer = towpath_tests::http::send("POST", &hook, None, body).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    };
    let versions = |count: usize| {
        eventually("dead letters", SOON, || {
            let list = instance.run(&["dead", "list", "--output", "json"]).ok();
            let list = list.json();
            let letters = list["dead"].as_array().cloned().unwrap_or_default();
            holds(letters.len() == count, || list.to_string())?;
            let mut versions: Vec<u64> = letters
                .iter()
                .filter_map(|letter| {
                    let id = letter["id"].as_str()?;
                    let shown = instance.run(&["dead", "show", id, "--output", "json"]);
                    shown.ok().json()["message"]["lineage"]["version"].as_u64()
                })
                .collect();
            versions.sort_unstable();
            Ok(versions)
        })
    };
    fail();
    assert_eq!(versions(1), [1]);
    instance.apply(&flow(2));
    fail();
    assert_eq!(versions(2), [1, 2]);
}

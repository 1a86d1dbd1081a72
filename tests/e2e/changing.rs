//! Changing a flow that has messages: none is lost, none goes two ways.

use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

const FLOW: &str = "orders-to-crm";

/// A flow at work on `orders` orders, by a CRM that takes `delay` milliseconds for each.
fn begin(version: BrokerVersion, orders: &str, delay: &str) -> (Instance, Demo) {
    let instance = Instance::start(version);
    let demo = shop_and_crm(&instance, orders, delay);
    instance.apply(&orders_to_crm(2));
    (instance, demo)
}

fn shop_and_crm(instance: &Instance, orders: &str, delay: &str) -> Demo {
    let demo = Demo::start(
        instance,
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
    demo
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

/// Waits until the step before `step`, which is paused, has done all `orders`, one or the other
/// perhaps twice; returns how many messages then wait in its queue.
#[track_caller]
fn all_wait(instance: &Instance, step: &str, orders: u64) -> u64 {
    eventually("all that is left waits", LONG, || {
        let status = instance.status(FLOW);
        let steps = status["steps"].as_array().cloned().unwrap_or_default();
        let at = steps.iter().position(|it| it["step"] == step);
        let (before, paused) = at
            .and_then(|at| Some((steps.get(at.checked_sub(1)?)?, &steps[at])))
            .ok_or_else(|| status.to_string())?;
        let is_quiet = before["done"].as_u64() >= Some(orders)
            && before["queued"] == 0
            && before["unacknowledged"] == 0
            && paused["state"] == "paused"
            && paused["unacknowledged"] == 0
            && paused["in_hand"] == 0;
        let queued = paused["queued"].as_u64().filter(|queued| *queued > 0);
        queued
            .filter(|_| is_quiet)
            .ok_or_else(|| status.to_string())
    })
}

/// Applies a file that lacks `step`, for which so many messages wait: refused, with their number
/// and with all that can be chosen.
#[track_caller]
fn refused(instance: &Instance, path: &str, step: &str, queued: u64) {
    let said = instance.run(&["apply", path]);
    assert_eq!(said.code, 1, "{said:?}");
    let count = format!("`{step}` has {queued} queued");
    for words in [&count, "--drain-first", "--move", "--dead-letter"] {
        assert!(said.err.contains(words), "it says `{words}`: {said:?}");
    }
    assert_eq!(instance.status(FLOW)["version"], 1, "nothing was applied");
}

#[test]
fn a_renamed_step_takes_its_messages_along() {
    let (instance, demo) = begin(BrokerVersion::V40, "4000", "100");
    some_arrive(&demo, 50);
    instance.run(&["pause", FLOW, "crm"]).ok();
    let path = instance.write("renamed.yaml", &renamed());
    let queued = all_wait(&instance, "crm", 4000);
    refused(&instance, &path, "crm", queued);
    let plan = instance.run(&["plan", &path]).ok();
    assert!(plan.out.contains("refused"), "{plan:?}");
    let wrong = instance.run(&["apply", &path, "--move", "crm=deal"]);
    assert!(wrong.err.contains("did you mean `deals`?"), "{wrong:?}");
    instance.run(&["apply", &path, "--move", "crm=deals"]).ok();
    crm_holds_exactly(&demo, 4000, LONG);
}

#[test]
fn a_step_that_is_taken_out_with_messages_waiting_is_refused_and_goes_when_it_has_finished() {
    let instance = Instance::start(BrokerVersion::V310);
    let demo = shop_and_crm(&instance, "500", "0");
    instance.apply(&inserted());
    crm_holds_exactly(&demo, 500, LONG);
    instance.run(&["pause", FLOW, "tag"]).ok();
    eventually("`tag` is paused", SOON, || {
        let status = instance.status(FLOW);
        holds(status["steps"][2]["state"] == "paused", || {
            status.to_string()
        })
    });
    demo.post(&format!("{}/orders?n=400", demo.shop));
    let queued = all_wait(&instance, "tag", 900);
    let path = instance.write("without.yaml", &orders_to_crm(2));
    refused(&instance, &path, "tag", queued);
    let stats = demo.crm_stats().expect("stats");
    assert_eq!(stats["deals"], 500, "they all wait: {stats}");
    instance.run(&["apply", &path, "--drain-first"]).ok();
    crm_holds_exactly(&demo, 900, LONG);
    let status = instance.status(FLOW);
    let steps = status["steps"].as_array().expect("steps");
    let ids: Vec<_> = steps.iter().map(|step| step["step"].as_str()).collect();
    assert_eq!(ids, [Some("orders"), Some("shape"), Some("crm")]);
    assert_eq!(status["dead_letters"], 0, "{status}");
    assert!(instance.containers(FLOW, Some("tag")).is_empty());
    demo.post(&format!("{}/orders?n=10", demo.shop));
    crm_holds_exactly(&demo, 910, LONG);
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
    let (instance, demo) = begin(BrokerVersion::V40, "4000", "50");
    some_arrive(&demo, 50);
    let path = instance.write("renamed.yaml", &renamed());
    eventually("messages wait", SOON, || {
        let status = instance.status(FLOW);
        holds(status["steps"][2]["queued"].as_u64() > Some(0), || {
            status.to_string()
        })
    });
    instance.run(&["apply", &path, "--drain-first"]).ok();
    crm_holds_exactly(&demo, 4000, LONG);
    let status = instance.status(FLOW);
    assert_eq!(status["version"], 2, "{status}");
    assert!(
        instance.containers(FLOW, Some("crm")).is_empty(),
        "the old step is gone"
    );
}

#[test]
fn a_step_that_goes_leaves_its_messages_as_dead_letters_if_it_is_told_to() {
    let (instance, demo) = begin(BrokerVersion::V310, "300", "1000");
    instance.run(&["pause", FLOW, "crm"]).ok();
    eventually("all that is left waits", SOON, || {
        let (status, stats) = (instance.status(FLOW), demo.crm_stats()?);
        let crm = &status["steps"][2];
        let queued = crm["queued"].as_u64().unwrap_or(0);
        let done = stats["deals"].as_u64().unwrap_or(0);
        holds(
            queued > 0 && status["steps"][1]["done"].as_u64() >= Some(300) && crm["in_hand"] == 0,
            || format!("{done} {status}"),
        )
    });
    let arrived = demo.crm_stats().expect("stats")["deals"]
        .as_u64()
        .expect("a count");
    let path = instance.write("renamed.yaml", &renamed());
    instance.run(&["apply", &path, "--dead-letter"]).ok();
    let letters = || {
        let lines = instance.run(&["dead", "export", "--cause", "removed"]);
        lines.ok().out.lines().count() as u64
    };
    eventually("each of them is a dead letter", LONG, || {
        let count = letters();
        holds(count == 300 - arrived, || {
            format!("{count} of {}", 300 - arrived)
        })
    });
    instance
        .run(&["dead", "replay", "--all", "--from", "deals"])
        .ok();
    crm_holds_exactly(&demo, 300, LONG);
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

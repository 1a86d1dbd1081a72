//! Real data from a polled API and from a webhook, through containers, exactly once at the target.

use serde_json::json;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, http};

use crate::{LONG, SOON, crm_holds_exactly, orders_to_crm};

/// A shop and a CRM like the real world: 429, 500, slow answers, a 500 after all was stored.
const REAL_WORLD: &[(&str, &str)] = &[("DEMO_ORDERS", "500")];

fn polled_orders_arrive_exactly_once(version: BrokerVersion) {
    let instance = Instance::start(version);
    let demo = Demo::start(&instance, REAL_WORLD);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(2));
    crm_holds_exactly(&demo, 500, LONG);
    demo.post(&format!("{}/orders?n=50", demo.shop));
    crm_holds_exactly(&demo, 550, LONG);
}

#[test]
fn polled_orders_arrive_exactly_once_on_rabbitmq_3_10() {
    polled_orders_arrive_exactly_once(BrokerVersion::V310);
}

#[test]
fn polled_orders_arrive_exactly_once_on_rabbitmq_4_0() {
    polled_orders_arrive_exactly_once(BrokerVersion::V40);
}

#[test]
fn orders_by_webhook_arrive_exactly_once() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(&instance, REAL_WORLD);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(
        r#"
flow: by-webhook
trigger: { id: pushed, webhook: true }
actions:
  - id: crm
    image: towpath/http-request:test
    retry: { attempts: 20, initial: 500ms, factor: 1.5, max: 5s }
    with:
      method: PUT
      url: "http://crm:8080/deals/{{ .id }}"
      headers: { authorization: "Bearer ${secrets.crm_token}" }
"#,
    );
    let hook = instance.status("by-webhook")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    for id in 0..200 {
        let body = json!({ "id": format!("pushed-{id}"), "number": id }).to_string();
        let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    crm_holds_exactly(&demo, 200, LONG);
}

#[test]
fn a_webhook_with_a_wrong_key_is_not_found_and_a_bad_body_is_refused() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(
        "flow: hooks\ntrigger: { id: hook, webhook: true }\nactions:\n  - { id: log, image: \"towpath/log:test\" }\n",
    );
    let hook = instance.status("hooks")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let post = |url: &str, body: &str| {
        http::send("POST", url, None, Some(body))
            .expect("an answer")
            .status
    };
    let (front, key) = hook.rsplit_once('/').expect("a key");
    assert!(key.len() >= 32, "the key cannot be guessed: {key}");
    assert_eq!(
        post(&format!("{front}/{}", "x".repeat(key.len())), "{}"),
        404
    );
    assert_eq!(
        post(&format!("{}/hooks/nosuch/{key}", instance.url), "{}"),
        404
    );
    assert_eq!(post(&hook, "{not json"), 400);
    // The refusal may come, and the connection close, before all of the body is written.
    let large = format!("\"{}\"", "x".repeat(3 << 20));
    let status = eventually("a refusal", SOON, || {
        Ok(http::send("POST", &hook, None, Some(&large))?.status)
    });
    assert_eq!(status, 413);
    assert_eq!(post(&hook, "{}"), 202);
    instance.run(&["stop", "hooks"]).ok();
    assert_eq!(post(&hook, "{}"), 409);
}

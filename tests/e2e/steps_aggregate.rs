//! The step `aggregate` in its container: what its README promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds, http};

use crate::{LONG, flow_of_readme};

/// What arrived, by the id of its message: what comes twice is the same.
#[derive(Clone, Default)]
struct Arrived(Arc<Mutex<BTreeMap<String, Value>>>);

impl Arrived {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, instance: &Instance) -> Source {
        let router = Router::new().route("/", post(arrive));
        Source::start(instance, router.with_state(self.clone()))
    }
}

async fn arrive(
    State(arrived): State<Arrived>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> StatusCode {
    let id = headers
        .get("idempotency-key")
        .and_then(|id| id.to_str().ok());
    let Some(id) = id else {
        return StatusCode::BAD_REQUEST;
    };
    let before = arrived.lock().insert(id.to_owned(), body.clone());
    match before {
        Some(before) if before != body => StatusCode::CONFLICT,
        _ => StatusCode::NO_CONTENT,
    }
}

fn target(source: &Source) -> String {
    format!(
        "  - id: target\n    image: towpath/http-request:test\n    with: {{ method: POST, url: \"{}/\" }}\n",
        source.url
    )
}

fn hook(instance: &Instance, flow: &str) -> String {
    let status = instance.status(flow);
    status["webhook_url"].as_str().expect("a URL").to_owned()
}

#[track_caller]
fn send(hook: &str, body: &Value) {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

#[test]
fn the_flow_of_the_readme_of_aggregate_runs_and_sums_up_by_shop() {
    let instance = Instance::start(BrokerVersion::V40);
    let arrived = Arrived::default();
    let source = arrived.receive(&instance);
    let flow = flow_of_readme(include_str!("../../steps/aggregate/README.md"));
    instance.apply(&format!("{flow}{}", target(&source)));
    let hook = hook(&instance, "sales-by-shop");
    for n in 0..30 {
        let shop = ["north", "south", "west"][n % 3];
        send(&hook, &json!({"shop": shop, "cents": n}));
    }
    let sum = |shop: &str, what: &str| -> u64 {
        let arrived = arrived.lock();
        let of_shop = arrived.values().filter(|body| body["shop"] == shop);
        of_shop.filter_map(|body| body[what].as_u64()).sum()
    };
    eventually("all is summed up", LONG, || {
        let sums: Vec<_> = ["north", "south", "west"]
            .iter()
            .map(|shop| (sum(shop, "sales"), sum(shop, "cents")))
            .collect();
        holds(sums == [(10, 135), (10, 145), (10, 155)], || {
            format!("{sums:?}")
        })
    });
    let outputs = arrived.lock().len();
    assert!(outputs < 30, "{outputs} outputs of 30 messages");
}

const ITEMS: u64 = 6_000;

#[test]
fn no_message_is_missing_in_what_was_made_of_many_though_the_step_is_killed_in_the_middle() {
    let instance = Instance::start(BrokerVersion::V310);
    let arrived = Arrived::default();
    let source = arrived.receive(&instance);
    instance.apply(&format!(
        r#"
flow: many-to-one
trigger: {{ id: lists, webhook: true }}
actions:
  - id: items
    image: towpath/split:test
  - id: sums
    image: towpath/aggregate:test
    batch: {{ max: 100, wait: 2s }}
    rate: 10/s
    with: {{ key: .key }}
{}"#,
        target(&source)
    ));
    let items: Vec<Value> = (0..ITEMS).map(|n| json!({"n": n, "key": n % 7})).collect();
    send(&hook(&instance, "many-to-one"), &json!(items));
    eventually("outputs arrive", LONG, || {
        let outputs = arrived.lock().len();
        holds(outputs >= 30, || format!("{outputs} outputs"))
    });
    let containers = instance.containers("many-to-one", Some("sums"));
    assert!(!containers.is_empty(), "it runs");
    for container in containers.values() {
        docker(&["kill", container]);
    }
    let numbers = || -> Vec<u64> {
        let arrived = arrived.lock();
        let items = arrived.values().filter_map(|body| body["items"].as_array());
        items.flatten().filter_map(|it| it["n"].as_u64()).collect()
    };
    let before = numbers().len() as u64;
    assert!(
        before < ITEMS,
        "it was killed in the middle: {before} items"
    );
    eventually("every item is in an output", LONG, || {
        let distinct: BTreeSet<u64> = numbers().into_iter().collect();
        holds(distinct.len() as u64 == ITEMS, || {
            format!("{} items", distinct.len())
        })
    });
    let arrived = arrived.lock();
    for body in arrived.values() {
        let items = body["items"].as_array().expect("a list");
        assert_eq!(body["count"], items.len());
        assert!(
            items.iter().all(|item| item["key"] == body["key"]),
            "{body}"
        );
    }
    let outputs = arrived.len() as u64;
    assert!(outputs < ITEMS / 5, "{outputs} outputs");
}

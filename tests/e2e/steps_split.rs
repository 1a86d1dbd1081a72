//! The step `split` in its container: what its README promises.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds, http};

use crate::{LONG, flow_of_readme};

/// What arrived: the body, and the key that says which message it was.
type Arrived = Arc<Mutex<Vec<(Value, String)>>>;

async fn arrive(
    State(arrived): State<Arrived>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> StatusCode {
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok());
    let key = key.unwrap_or_default().to_owned();
    arrived
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((body, key));
    StatusCode::NO_CONTENT
}

#[test]
fn the_flow_of_the_readme_of_split_runs_and_each_line_is_a_message() {
    let instance = Instance::start(BrokerVersion::V40);
    let arrived = Arrived::default();
    let router = Router::new()
        .route("/", post(arrive))
        .with_state(Arc::clone(&arrived));
    let source = Source::start(&instance, router);
    let flow = flow_of_readme(include_str!("../../steps/split/README.md"));
    instance.apply(&format!(
        "{flow}  - id: target\n    image: towpath/http-request:test\n    with: {{ method: POST, url: \"{}/\" }}\n",
        source.url
    ));
    let hook = instance.status("order-lines")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    // More than is held until a message is done.
    let lines: Vec<_> = (0..600)
        .map(|n| json!({"sku": format!("sku-{n}"), "n": n}))
        .collect();
    let order = json!({"order": {"id": 7, "lines": lines}}).to_string();
    let answer = http::send("POST", &hook, None, Some(&order)).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    eventually("every line arrives", LONG, || {
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers: Vec<_> = arrived
            .iter()
            .filter_map(|(body, _)| body["n"].as_u64())
            .collect();
        numbers.sort_unstable();
        holds(numbers == (0..600).collect::<Vec<_>>(), || {
            format!("{} lines", numbers.len())
        })
    });
    let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let ids: std::collections::BTreeSet<_> = arrived.iter().map(|(_, key)| key).collect();
    assert_eq!(ids.len(), 600, "each line is a message of its own");
}

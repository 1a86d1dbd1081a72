//! The step `sse` in its container, against a real stream: what its README promises.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde_json::Value;
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds};

use crate::{LONG, SOON, flow_of_readme};

/// How many prices there are, and after how many each connection breaks off.
const PRICES: u64 = 500;
const A_CONNECTION: u64 = 60;

/// An exchange that remembers its events, and a target that counts what arrives.
#[derive(Clone, Default)]
struct Exchange {
    /// How often each price arrived.
    arrived: Arc<Mutex<BTreeMap<u64, u32>>>,
    /// After which event each connection asked to go on.
    asked: Arc<Mutex<Vec<Option<u64>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn events(State(exchange): State<Exchange>, headers: HeaderMap) -> Response {
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    lock(&exchange.asked).push(last);
    let from = last.map_or(0, |last: u64| last + 1);
    let to = PRICES.min(from + A_CONNECTION);
    let prices = stream::unfold(from, move |n| async move {
        if n > to {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        let text = if n < to {
            format!(
                "retry: 100\nid: {n}\nevent: price\ndata: {{\"n\":{n}}}\n\nevent: other\ndata: x\n\n"
            )
        } else if n == PRICES {
            // Nothing more for now, and nobody hangs up.
            tokio::time::sleep(Duration::from_secs(5)).await;
            ": quiet\n\n".to_owned()
        } else {
            "event: price\ndata: {\"n\":".to_owned()
        };
        let next = if n == to && n == PRICES { n } else { n + 1 };
        Some((Ok::<_, std::io::Error>(text), next))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (kind, Body::from_stream(prices)).into_response()
}

async fn arrive(State(exchange): State<Exchange>, Json(price): Json<Value>) -> StatusCode {
    let n = price["n"].as_u64().unwrap_or(u64::MAX);
    *lock(&exchange.arrived).entry(n).or_default() += 1;
    StatusCode::NO_CONTENT
}

/// Ends the run that listens, and has the next one begin.
fn pause_and_resume(instance: &Instance) {
    instance.run(&["pause", "prices", "prices"]).ok();
    eventually("the run has ended", SOON, || {
        let status = instance.status("prices");
        let is_over =
            status["last_run"]["state"] == "done" && status["steps"][0]["state"] == "paused";
        holds(is_over, || status.to_string())
    });
    instance.run(&["resume", "prices", "prices"]).ok();
}

#[test]
fn the_flow_of_the_readme_of_sse_runs_and_misses_no_event_over_broken_connections() {
    let instance = Instance::start(BrokerVersion::V40);
    let exchange = Exchange::default();
    let router = Router::new()
        .route("/events", get(events))
        .route("/", post(arrive))
        .with_state(exchange.clone());
    let source = Source::start(&instance, router);
    let flow = flow_of_readme(include_str!("../../steps/sse/README.md"))
        .replace("https://exchange.example", &source.url);
    instance.apply(&format!(
        "{flow}  - id: target\n    image: towpath/http-request:test\n    with: {{ method: POST, url: \"{}/\" }}\n",
        source.url
    ));
    eventually("prices arrive", LONG, || {
        let count = lock(&exchange.arrived).len();
        holds(count >= 100, || format!("{count} prices"))
    });
    pause_and_resume(&instance);
    eventually("every price arrives", LONG, || {
        let arrived = lock(&exchange.arrived);
        let prices: Vec<_> = arrived.keys().copied().collect();
        holds(prices == (0..PRICES).collect::<Vec<_>>(), || {
            format!("{} prices", prices.len())
        })
    });
    let twice = lock(&exchange.arrived)
        .iter()
        .filter(|(_, times)| **times != 1)
        .count();
    assert_eq!(twice, 0, "each price arrives once");
    pause_and_resume(&instance);
    eventually("another run goes on after the last event", LONG, || {
        let asked = lock(&exchange.asked).clone();
        holds(asked.contains(&Some(PRICES - 1)), || format!("{asked:?}"))
    });
}

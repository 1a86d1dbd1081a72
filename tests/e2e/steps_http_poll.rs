//! The step `http-poll` in its container, against a real server: what its README promises.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds};

use crate::{LONG, SOON, flow_of_readme};

/// A shop whose orders are behind a cursor, and a target that counts what arrives.
#[derive(Clone, Default)]
struct Shop {
    state: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    orders: Vec<Value>,
    /// What arrived: how often, by id.
    arrived: BTreeMap<u64, u32>,
    /// How often the list was asked for, and how often nothing had changed.
    asked: u32,
    unchanged: u32,
    /// The positions that were asked from.
    since: Vec<String>,
    /// How often to say that it is busy.
    busy: u32,
}

impl Shop {
    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: u64, second: u64) {
        let at = format!("2099-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        let status = if id % 10 == 9 { "draft" } else { "open" };
        let order = json!({"id": id, "updated_at": at, "status": status});
        self.shelf().orders.push(order);
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/v2/orders", get(list))
            .route("/arrived", post(arrived))
            .with_state(self.clone())
    }
}

async fn list(
    State(shop): State<Shop>,
    Query(asked): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let mut shelf = shop.shelf();
    shelf.asked += 1;
    if shelf.busy > 0 {
        shelf.busy -= 1;
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response();
    }
    let since = asked.get("updated_since").cloned().unwrap_or_default();
    shelf.since.push(since.clone());
    let mut orders: Vec<_> = shelf.orders.clone();
    orders.retain(|order| order["updated_at"].as_str() >= Some(since.as_str()));
    orders.sort_by_key(|order| order["updated_at"].as_str().map(str::to_owned));
    let limit: usize = asked
        .get("limit")
        .and_then(|it| it.parse().ok())
        .unwrap_or(100);
    let from: usize = asked
        .get("cursor")
        .and_then(|it| it.parse().ok())
        .unwrap_or(0);
    let to = orders.len().min(from + limit);
    let etag = format!("\"{since}-{}-{from}\"", orders.len());
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|it| it.as_bytes() == etag.as_bytes())
    {
        shelf.unchanged += 1;
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let has_more = to < orders.len();
    let page = json!({
        "data": {"items": orders[from..to]},
        "next_cursor": has_more.then(|| to.to_string()),
        "has_more": has_more,
    });
    ([(header::ETAG, etag)], Json(page)).into_response()
}

async fn arrived(State(shop): State<Shop>, Json(order): Json<Value>) -> StatusCode {
    let id = order["id"].as_u64().unwrap_or(u64::MAX);
    *shop.shelf().arrived.entry(id).or_default() += 1;
    StatusCode::NO_CONTENT
}

#[test]
fn the_flow_of_the_readme_of_http_poll_runs_and_brings_each_order_in_once() {
    let instance = Instance::start(BrokerVersion::V40);
    let shop = Shop::default();
    for id in 0..1000 {
        // Three orders have one time, and pages of a hundred end between them.
        shop.add(id, id / 3 * 10);
    }
    shop.shelf().busy = 3;
    let source = Source::start(&instance, shop.router());
    let flow = flow_of_readme(include_str!("../../steps/http-poll/README.md"))
        .replace("https://shop.example", &source.url)
        .replace("every: 30s", "every: 1s");
    let flow = format!(
        "{flow}  - id: target\n    image: towpath/http-request:test\n    with: {{ method: POST, url: \"{}/arrived\" }}\n",
        source.url
    );
    instance.apply(&flow);
    let arrives = |wanted: Vec<u64>| {
        eventually("every order arrives", LONG, || {
            let shelf = shop.shelf();
            let arrived: Vec<u64> = shelf.arrived.keys().copied().collect();
            holds(arrived == wanted, || {
                format!("{} of {}", arrived.len(), wanted.len())
            })
        });
    };
    let mut wanted: Vec<u64> = (0..1000).filter(|id| id % 10 != 9).collect();
    arrives(wanted.clone());
    assert!(
        shop.shelf().since[0].starts_with("20"),
        "the first run goes back 90 days, not for ever: {:?}",
        shop.shelf().since[0]
    );

    // Late: two minutes behind the position, within the look back of five.
    shop.add(2000, 3210);
    wanted.push(2000);
    arrives(wanted.clone());
    // A quiet source is not read again and again.
    eventually("nothing changed", SOON, || {
        let unchanged = shop.shelf().unchanged;
        holds(unchanged >= 3, || format!("{unchanged} times"))
    });
    let shelf = shop.shelf();
    let twice: Vec<_> = shelf
        .arrived
        .iter()
        .filter(|(_, times)| **times != 1)
        .collect();
    assert!(twice.is_empty(), "each order arrives once: {twice:?}");
}

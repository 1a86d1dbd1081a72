//! The shop's API.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /orders?updated_since=&size=` | a list, and a `Link: <…>; rel="next"` while there is more |
//! | `GET /orders?page=2&size=` | the same by number: an empty list is the end |
//! | `GET /v2/orders?updated_since=&cursor=&limit=` | `{"data":{"items":[…]},"next_cursor":…,"has_more":…}` |
//! | `GET /orders/{id}` | one order |
//! | `POST /orders?n=10&listed=` | new orders, now: `{"ids":[…]}`; with `listed=false` they are in no list |
//! | `POST /change?n=10` | the first orders change, now |
//! | `POST /push?n=10&url=…` | new orders, each posted to a webhook until it is accepted |
//! | `GET /stats` | how many orders and requests there are, and what went wrong |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use towpath_step_http::{Client, HeaderMap, HeaderValue, Method, Request, Settings, Url, Verdict};

use crate::mischief::{Fate, Mischief};
use crate::orders::{After, Order, Orders, Query};

/// The largest page.
const PAGE_MAX: usize = 500;

/// A page, unless asked for another.
const PAGE: usize = 100;

/// How many orders are pushed at a time.
const PUSHES: usize = 16;

/// How often an order is pushed before the shop gives up: at one try a second, an hour.
const PUSH_TRIES_MAX: u32 = 3600;

#[derive(Debug)]
struct Shop {
    orders: Mutex<Orders>,
    mischief: Mischief,
    client: Client,
}

impl Shop {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a shop that begins with so many orders.
pub fn router(orders: u64, mischief: Mischief) -> Result<Router> {
    let client = Client::new(&Settings {
        timeout: Duration::from_secs(30),
        user_agent: "demo-shop".to_owned(),
        answer_bytes_max: 1 << 20,
        certificates: None,
    })?;
    let shop = Shop {
        orders: Mutex::new(Orders::new(orders)),
        mischief,
        client,
    };
    Ok(Router::new()
        .route("/orders", get(list).post(add))
        .route("/orders/{id}", get(one))
        .route("/v2/orders", get(list_by_cursor))
        .route("/change", post(change))
        .route("/push", post(push))
        .route("/stats", get(stats))
        .with_state(Arc::new(shop)))
}

#[derive(Debug, Deserialize)]
struct ListParameters {
    updated_since: Option<Timestamp>,
    after: Option<String>,
    cursor: Option<String>,
    page: Option<usize>,
    #[serde(alias = "limit")]
    size: Option<usize>,
}

impl ListParameters {
    fn query(&self) -> Option<Query> {
        let position = self.after.as_deref().or(self.cursor.as_deref());
        let position = position.filter(|text| !text.is_empty());
        let after = match position {
            Some(text) => Some(read_position(text)?),
            None => None,
        };
        let size = self.size.unwrap_or(PAGE).clamp(1, PAGE_MAX);
        Some(Query {
            since: self.updated_since,
            after,
            skip: self
                .page
                .unwrap_or(1)
                .saturating_sub(1)
                .saturating_mul(size),
            size,
        })
    }
}

fn read_position(text: &str) -> Option<After> {
    let (time, id) = text.rsplit_once('_')?;
    Some((time.parse().ok()?, id.parse().ok()?))
}

fn position_after(page: &[&Order]) -> Option<String> {
    let last = page.last()?;
    Some(format!("{}_{}", last.updated_at, last.id))
}

async fn list(
    State(shop): State<Arc<Shop>>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Response {
    if let Some(trouble) = trouble(&shop.mischief).await {
        return trouble;
    }
    let Some(query) = parameters.query() else {
        return lost();
    };
    let orders = shop.orders();
    let (page, more) = orders.list(&query);
    let mut response = Json(&page).into_response();
    let next = position_after(&page).filter(|_| more && parameters.page.is_none());
    if let Some(position) = next {
        let since = query.since.map(|since| format!("&updated_since={since}"));
        let since = since.unwrap_or_default();
        let link = format!(
            "</orders?after={position}&size={}{since}>; rel=\"next\"",
            query.size
        );
        if let Ok(link) = HeaderValue::try_from(link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    response
}

async fn list_by_cursor(
    State(shop): State<Arc<Shop>>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Response {
    if let Some(trouble) = trouble(&shop.mischief).await {
        return trouble;
    }
    let Some(query) = parameters.query() else {
        return lost();
    };
    let orders = shop.orders();
    let (page, more) = orders.list(&query);
    let next = position_after(&page).filter(|_| more);
    Json(json!({"data": {"items": page}, "next_cursor": next, "has_more": more})).into_response()
}

fn lost() -> Response {
    let error = json!({"error": "this is not a position in the list of orders"});
    (StatusCode::BAD_REQUEST, Json(error)).into_response()
}

async fn one(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Response {
    match shop.orders().get(id) {
        Some(order) => Json(order).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Debug, Deserialize)]
struct Count {
    #[serde(default = "ten")]
    n: u64,
}

fn ten() -> u64 {
    10
}

#[derive(Debug, Deserialize)]
struct Add {
    #[serde(default = "ten")]
    n: u64,
    #[serde(default = "yes")]
    listed: bool,
}

fn yes() -> bool {
    true
}

async fn add(State(shop): State<Arc<Shop>>, Parameters(add): Parameters<Add>) -> Json<Value> {
    let ids = shop.orders().add(add.n, add.listed, Timestamp::now());
    Json(json!({ "ids": ids }))
}

async fn change(
    State(shop): State<Arc<Shop>>,
    Parameters(count): Parameters<Count>,
) -> Json<Value> {
    let changed = shop.orders().change(count.n, Timestamp::now());
    Json(json!({ "changed": changed }))
}

async fn stats(State(shop): State<Arc<Shop>>) -> Json<Value> {
    Json(json!({
        "orders": shop.orders().count(),
        "requests": shop.mischief.requests(),
        "misbehaved": shop.mischief.misbehaved(),
    }))
}

#[derive(Debug, Deserialize)]
struct Push {
    #[serde(default = "ten")]
    n: u64,
    url: String,
}

async fn push(State(shop): State<Arc<Shop>>, Parameters(push): Parameters<Push>) -> Response {
    let Ok(url) = push.url.parse::<Url>() else {
        let error = json!({"error": "`url` is not a URL"});
        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
    };
    let orders: Vec<Order> = {
        let mut orders = shop.orders();
        let ids = orders.add(push.n, true, Timestamp::now());
        ids.iter()
            .filter_map(|id| orders.get(*id).cloned())
            .collect()
    };
    let pushes: Vec<_> = orders
        .iter()
        .cloned()
        .map(|order| accept(shop.client.clone(), url.clone(), order))
        .collect();
    let tries: Result<Vec<u32>, String> = stream::iter(pushes)
        .buffer_unordered(PUSHES)
        .try_collect()
        .await;
    match tries {
        Ok(tries) => {
            let total: u64 = tries.iter().map(|tries| u64::from(*tries)).sum();
            Json(json!({
                "pushed": tries.len(),
                "ids": orders.iter().map(|order| order.id).collect::<Vec<_>>(),
                "requests": total,
            }))
            .into_response()
        }
        Err(error) => (StatusCode::BAD_GATEWAY, Json(json!({ "error": error }))).into_response(),
    }
}

/// Posts an order until it is accepted, and returns how many requests that took.
async fn accept(client: Client, url: Url, order: Order) -> Result<u32, String> {
    let body = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
    let key = format!("order-{}-{}", order.id, order.revision);
    let headers: HeaderMap = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (
            HeaderName::from_static("idempotency-key"),
            HeaderValue::try_from(key).map_err(|error| error.to_string())?,
        ),
    ]
    .into_iter()
    .collect();
    let request = Request {
        method: Method::POST,
        url,
        headers,
        body: Some(body.into()),
    };
    for tries in 1..=PUSH_TRIES_MAX {
        let wait = match client.send(request.clone()).await {
            Ok(answer) => match answer.verdict(&[], SystemTime::now()) {
                Verdict::Done => return Ok(tries),
                Verdict::Retry { after } => after,
                Verdict::Permanent => return Err(answer.complaint()),
            },
            Err(failure) if failure.may_pass() => None,
            Err(failure) => return Err(failure.to_string()),
        };
        tokio::time::sleep(wait.unwrap_or(Duration::from_secs(1))).await;
    }
    Err(format!(
        "order {} was not accepted in {PUSH_TRIES_MAX} tries",
        order.id
    ))
}

/// What goes wrong with this request, if anything does.
async fn trouble(mischief: &Mischief) -> Option<Response> {
    match mischief.next().await {
        Fate::Fine | Fate::Slow => None,
        Fate::TooMany => Some(
            (
                StatusCode::TOO_MANY_REQUESTS,
                [(header::RETRY_AFTER, "1")],
                Json(json!({"error": "too many requests"})),
            )
                .into_response(),
        ),
        Fate::Error | Fate::ErrorAfter => Some(
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                Json(json!({"error": "something went wrong on our side"})),
            )
                .into_response(),
        ),
    }
}

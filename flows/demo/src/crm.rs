//! The CRM's API: it keeps deals by key, and counts what tells whether each came exactly once.
//!
//! | Request | Answer |
//! |---|---|
//! | `PUT /deals/{id}` | keeps the deal; 201 if it is new, 200 if not |
//! | `POST /deals` | the same, the key being the deal's `id` |
//! | `GET /deals/{id}`, `GET /deals?after=&size=` | one deal, the deals in the order of their keys |
//! | `POST /hold?how=wait` | from now on requests wait (or, with `how=refuse`, get 503) |
//! | `POST /release` | until now |
//! | `GET /stats` | see [`Stats`] |
//!
//! Writing and reading deals needs `Authorization: Bearer <token>`. A request with an
//! `Idempotency-Key` that was seen before is answered as it was then, and changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::mischief::{Fate, Misbehaved, Mischief};

/// The most deals that are kept.
const DEALS_MAX: usize = 2_000_000;

/// The most deals in a list.
const PAGE_MAX: usize = 1000;

/// The largest deal.
const DEAL_BYTES_MAX: usize = 1 << 20;

/// What `GET /stats` answers. Every delivery that was kept is counted in one of `deals`,
/// `updates`, `repeated` and `conflicting`, so `stored` is their sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Distinct keys: how many deals there are.
    pub deals: u64,
    /// Distinct idempotency keys.
    pub idempotency_keys: u64,
    /// Deliveries that were kept or recognised.
    pub stored: u64,
    /// Deliveries with a new idempotency key (or without one) for a deal that was there already.
    pub updates: u64,
    /// Deliveries with an idempotency key that was seen before, of the same deal and content.
    pub repeated: u64,
    /// Deliveries with an idempotency key that was seen before, but of another deal or content.
    pub conflicting: u64,
    /// Deliveries without an idempotency key.
    pub without_key: u64,
    /// Requests to write or read deals, the unanswered ones included.
    pub requests: u64,
    /// Requests without the right token.
    pub unauthorized: u64,
    /// Requests that are waiting now, or were refused, because the CRM is held.
    pub held: u64,
    /// What went wrong on purpose.
    pub misbehaved: Misbehaved,
}

#[derive(Debug)]
struct Deal {
    body: Value,
    updates: u64,
}

/// What was kept under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Delivery {
    deal: String,
    content: blake3::Hash,
    status: StatusCode,
}

#[derive(Debug, Default)]
struct Records {
    deals: BTreeMap<String, Deal>,
    deliveries: HashMap<String, Delivery>,
    updates: u64,
    repeated: u64,
    conflicting: u64,
    without_key: u64,
    unauthorized: u64,
    held: u64,
}

impl Records {
    /// Keeps a deal, or recognises it.
    fn store(
        &mut self,
        id: &str,
        idempotency_key: Option<&str>,
        body: Value,
        content: blake3::Hash,
    ) -> StatusCode {
        if let Some(before) = idempotency_key.and_then(|key| self.deliveries.get(key)) {
            if before.deal == id && before.content == content {
                self.repeated += 1;
                return before.status;
            }
            self.conflicting += 1;
            return StatusCode::UNPROCESSABLE_ENTITY;
        }
        if self.deals.len() >= DEALS_MAX || self.deliveries.len() >= 2 * DEALS_MAX {
            return StatusCode::INSUFFICIENT_STORAGE;
        }
        let status = if let Some(deal) = self.deals.get_mut(id) {
            deal.body = body;
            deal.updates += 1;
            self.updates += 1;
            StatusCode::OK
        } else {
            self.deals.insert(id.to_owned(), Deal { body, updates: 0 });
            StatusCode::CREATED
        };
        match idempotency_key {
            Some(key) => {
                let delivery = Delivery {
                    deal: id.to_owned(),
                    content,
                    status,
                };
                self.deliveries.insert(key.to_owned(), delivery);
            }
            None => self.without_key += 1,
        }
        status
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hold {
    /// Requests are answered.
    No,
    /// Requests wait until the CRM is released.
    Wait,
    /// Requests get 503.
    Refuse,
}

#[derive(Debug)]
struct Crm {
    records: Mutex<Records>,
    mischief: Mischief,
    authorization: String,
    hold: watch::Sender<Hold>,
}

impl Crm {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an empty CRM that wants a bearer token.
pub fn router(token: &str, mischief: Mischief) -> Router {
    let crm = Arc::new(Crm {
        records: Mutex::default(),
        mischief,
        authorization: format!("Bearer {token}"),
        hold: watch::Sender::new(Hold::No),
    });
    Router::new()
        .route("/deals", post(create).get(list))
        .route("/deals/{id}", put(replace).get(one))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&crm), guard))
        .route("/hold", post(hold))
        .route("/release", post(release))
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(DEAL_BYTES_MAX))
        .with_state(crm)
}

/// Lets a request through if it may pass and nothing goes wrong with it.
async fn guard(State(crm): State<Arc<Crm>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    if given.is_none_or(|given| given.as_bytes() != crm.authorization.as_bytes()) {
        crm.records().unauthorized += 1;
        return complain(StatusCode::UNAUTHORIZED, "a bearer token is needed");
    }
    let mut hold = crm.hold.subscribe();
    let held = *hold.borrow_and_update();
    if held != Hold::No {
        crm.records().held += 1;
    }
    if held == Hold::Refuse {
        return complain(StatusCode::SERVICE_UNAVAILABLE, "closed for the moment");
    }
    // The sender lives as long as the CRM, so this ends only by a release.
    if hold.wait_for(|hold| *hold != Hold::Wait).await.is_err() {
        return complain(StatusCode::SERVICE_UNAVAILABLE, "closed");
    }
    match crm.mischief.next().await {
        Fate::Fine | Fate::Slow => next.run(request).await,
        Fate::TooMany => {
            let mut response = complain(StatusCode::TOO_MANY_REQUESTS, "too many requests");
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            response
        }
        Fate::Error => complain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "something went wrong on our side",
        ),
        Fate::ErrorAfter => {
            next.run(request).await;
            complain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "something went wrong, but not everything",
            )
        }
    }
}

async fn replace(
    State(crm): State<Arc<Crm>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    keep(&crm, Some(id), &headers, &body)
}

async fn create(State(crm): State<Arc<Crm>>, headers: HeaderMap, body: Bytes) -> Response {
    keep(&crm, None, &headers, &body)
}

fn keep(crm: &Crm, id: Option<String>, headers: &HeaderMap, body: &Bytes) -> Response {
    let Ok(deal) = serde_json::from_slice::<Value>(body) else {
        return complain(StatusCode::BAD_REQUEST, "a deal is JSON");
    };
    let id = id.or_else(|| match deal.get("id")? {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    });
    let Some(id) = id else {
        return complain(StatusCode::UNPROCESSABLE_ENTITY, "a deal has an `id`");
    };
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok());
    let status = crm.records().store(&id, key, deal, blake3::hash(body));
    match status {
        StatusCode::UNPROCESSABLE_ENTITY => {
            complain(status, "this idempotency key was used for something else")
        }
        StatusCode::INSUFFICIENT_STORAGE => complain(status, "there is no room for more deals"),
        _ => (status, Json(json!({ "id": id }))).into_response(),
    }
}

async fn one(State(crm): State<Arc<Crm>>, Path(id): Path<String>) -> Response {
    match crm.records().deals.get(&id) {
        Some(deal) => Json(show(&id, deal)).into_response(),
        None => complain(StatusCode::NOT_FOUND, "there is no such deal"),
    }
}

#[derive(Debug, Deserialize)]
struct ListParameters {
    after: Option<String>,
    size: Option<usize>,
}

async fn list(
    State(crm): State<Arc<Crm>>,
    Query(parameters): Query<ListParameters>,
) -> Json<Value> {
    let after = parameters.after.map_or(Bound::Unbounded, Bound::Excluded);
    let size = parameters.size.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let records = crm.records();
    let page = records.deals.range((after, Bound::Unbounded)).take(size);
    Json(page.map(|(id, deal)| show(id, deal)).collect())
}

fn show(id: &str, deal: &Deal) -> Value {
    json!({"key": id, "updates": deal.updates, "deal": deal.body})
}

#[derive(Debug, Deserialize)]
struct HoldParameters {
    #[serde(default = "wait")]
    how: Hold,
}

fn wait() -> Hold {
    Hold::Wait
}

async fn hold(State(crm): State<Arc<Crm>>, Query(parameters): Query<HoldParameters>) -> StatusCode {
    crm.hold.send_replace(parameters.how);
    StatusCode::NO_CONTENT
}

async fn release(State(crm): State<Arc<Crm>>) -> StatusCode {
    crm.hold.send_replace(Hold::No);
    StatusCode::NO_CONTENT
}

async fn stats(State(crm): State<Arc<Crm>>) -> Json<Stats> {
    let records = crm.records();
    let deals = records.deals.len() as u64;
    Json(Stats {
        deals,
        idempotency_keys: records.deliveries.len() as u64,
        stored: deals + records.updates + records.repeated + records.conflicting,
        updates: records.updates,
        repeated: records.repeated,
        conflicting: records.conflicting,
        without_key: records.without_key,
        requests: crm.mischief.requests(),
        unauthorized: records.unauthorized,
        held: records.held,
        misbehaved: crm.mischief.misbehaved(),
    })
}

fn complain(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

//! The source and the target, as one HTTP server on a thread of its own.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::source;
use crate::target::{Answer, Branch, Target};

/// A server that runs until the program ends.
pub(crate) struct Web {
    /// Where it listens, on all addresses.
    pub(crate) port: u16,
}

struct World {
    messages: u64,
    clock: Arc<Clock>,
    target: Arc<Target>,
    /// What goes on although whoever asked is gone: a request that arrived is done.
    works: tokio::sync::Mutex<JoinSet<()>>,
}

/// Starts the server.
pub(crate) fn serve(messages: u64, clock: Arc<Clock>, target: Arc<Target>) -> Web {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port is free");
    listener
        .set_nonblocking(true)
        .expect("a listener can be made non-blocking");
    let port = listener.local_addr().expect("it has an address").port();
    let world = Arc::new(World {
        messages,
        clock,
        target,
        works: tokio::sync::Mutex::default(),
    });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is a listener");
            let router = Router::new()
                .route("/orders", get(orders))
                .route("/plain", post(plain))
                .route("/once", post(once))
                .route("/once/{key}", get(is_known))
                .with_state(world);
            axum::serve(listener, router)
                .await
                .expect("a server does not end by itself");
        });
    });
    Web { port }
}

async fn orders(
    State(world): State<Arc<World>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let number = |name: &str, default: u64| {
        query
            .get(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let released = world.clock.share_of(world.messages);
    let page = source::page(released, number("updated_since", 1), number("size", 100));
    let mut answer = axum::Json(page.orders).into_response();
    if let Some(next) = page.next
        && let Ok(link) = format!("<{next}>; rel=\"next\"").parse()
    {
        answer.headers_mut().insert(header::LINK, link);
    }
    answer
}

async fn plain(world: State<Arc<World>>, headers: HeaderMap, body: String) -> Response {
    take(Branch::Plain, world, &headers, &body).await
}

async fn once(world: State<Arc<World>>, headers: HeaderMap, body: String) -> Response {
    take(Branch::Once, world, &headers, &body).await
}

async fn take(
    branch: Branch,
    State(world): State<Arc<World>>,
    headers: &HeaderMap,
    body: &str,
) -> Response {
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok());
    let order: Option<u64> = serde_json::from_str::<serde_json::Value>(body)
        .ok()
        .and_then(|body| body["n"].as_u64());
    let (Some(key), Some(order)) = (key, order) else {
        return (StatusCode::BAD_REQUEST, "no key, or no order").into_response();
    };
    match world.target.arrives(branch, key) {
        Answer::Busy => (
            StatusCode::TOO_MANY_REQUESTS,
            [(header::RETRY_AFTER, "1")],
            "too many",
        )
            .into_response(),
        Answer::Down => (StatusCode::SERVICE_UNAVAILABLE, "not now").into_response(),
        Answer::Takes(delay) => {
            let (done, is_done) = tokio::sync::oneshot::channel();
            let (target, key) = (Arc::clone(&world.target), key.to_owned());
            let mut works = world.works.lock().await;
            while works.try_join_next().is_some() {}
            works.spawn(async move {
                tokio::time::sleep(delay).await;
                target.is_done(branch, &key, order);
                // Whoever asked may be gone; it is done all the same.
                done.send(()).ok();
            });
            drop(works);
            drop(is_done.await);
            StatusCode::CREATED.into_response()
        }
    }
}

/// What `check:` asks: whether a message that may have been handled was.
async fn is_known(State(world): State<Arc<World>>, Path(key): Path<String>) -> Response {
    let status = match world.target.knows(Branch::Once, &key) {
        Some(true) => StatusCode::OK,
        Some(false) => StatusCode::CONFLICT,
        None => StatusCode::NOT_FOUND,
    };
    status.into_response()
}

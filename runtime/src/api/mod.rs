//! The HTTP API: routes to verbs, and webhooks.
//!
//! # Invariants
//!
//! - Everything under `/api/v1` needs the token; nothing else does.
//! - Every error has the same shape, with a stable code; a panic is a clean 500.
//! - No SQL, no Docker, no AMQP here.

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;

use crate::control::Control;
use crate::ingress::Ingress;

mod auth;
mod dead;
mod error;
mod extract;
mod hooks;
mod openapi;
mod probes;
mod routes;

pub use auth::Token;
pub use error::{ErrorBody, ErrorView};
pub use openapi::ApiDoc;

use error::ApiError;

/// What handlers use.
#[derive(Clone)]
pub struct ApiState {
    /// The verbs.
    pub control: Arc<Control>,
    /// Where webhooks go.
    pub ingress: Ingress,
    /// Who may use the API.
    pub token: Token,
    /// The largest request, in bytes.
    pub body_bytes_max: usize,
    /// When the control plane ends.
    pub stop: CancellationToken,
}

/// All routes.
pub fn router(state: ApiState) -> Router {
    let body_limit = DefaultBodyLimit::max(state.body_bytes_max);
    let hook = post(hooks::hook).put(hooks::hook).get(hooks::hook);
    let hook_below = post(hooks::hook_below)
        .put(hooks::hook_below)
        .get(hooks::hook_below);
    let guard = middleware::from_fn_with_state(state.clone(), auth::require_token);
    Router::new()
        .nest("/api/v1", verbs().fallback(not_found).layer(guard))
        .route("/live", get(probes::live))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .route("/openapi.json", get(|| async { Json(ApiDoc::openapi()) }))
        .route("/hooks/{flow}/{key}", hook)
        .route("/hooks/{flow}/{key}/{*rest}", hook_below)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(body_limit)
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(state)
}

fn verbs() -> Router<ApiState> {
    Router::new()
        .route("/plan", post(routes::plan))
        .route("/apply", post(routes::apply))
        .route("/flows", get(routes::list))
        .route("/flows/{flow}", get(routes::status).delete(routes::delete))
        .route("/flows/{flow}/pause", post(routes::pause))
        .route("/flows/{flow}/resume", post(routes::resume))
        .route("/flows/{flow}/drain", post(routes::drain))
        .route("/flows/{flow}/stop", post(routes::stop))
        .route("/flows/{flow}/steps/{step}", delete(routes::delete_step))
        .route("/flows/{flow}/steps/{step}/pause", post(routes::pause_step))
        .route(
            "/flows/{flow}/steps/{step}/resume",
            post(routes::resume_step),
        )
        .route("/flows/{flow}/steps/{step}/drain", post(routes::drain_step))
        .route("/flows/{flow}/steps/{step}/stop", post(routes::stop_step))
        .route("/flows/{flow}/steps/{step}/scale", put(routes::scale))
        .route("/flows/{flow}/webhook/rotate", post(routes::rotate_webhook))
        .route("/flows/{flow}/versions", get(routes::versions))
        .route("/flows/{flow}/diff", get(routes::diff))
        .route("/flows/{flow}/rollback", post(routes::rollback))
        .route("/flows/{flow}/run", post(routes::run))
        .route("/flows/{flow}/runs", get(routes::runs))
        .route(
            "/flows/{flow}/checkpoint",
            get(routes::checkpoint)
                .put(routes::set_checkpoint)
                .delete(routes::reset_checkpoint),
        )
        .route("/flows/{flow}/logs", get(routes::logs))
        .route("/flows/{flow}/retries", get(routes::retries))
        .route("/flows/{flow}/retries/now", post(routes::retries_now))
        .route("/flows/{flow}/retries/cancel", post(routes::retries_cancel))
        .route("/runs/{run}", get(routes::run_by_id))
        .route("/runs/{run}/cancel", post(routes::run_cancel))
        .route("/dead", get(routes::dead_list))
        .route("/dead/groups", get(dead::groups))
        .route("/dead/export", get(dead::export))
        .route("/dead/replay", post(dead::replay))
        .route("/dead/discard", post(dead::discard))
        .route("/dead/edit", post(dead::edit))
        .route("/dead/jobs", get(dead::jobs))
        .route("/dead/jobs/{job}", get(dead::job).delete(dead::cancel))
        .route(
            "/dead/{id}/body",
            put(dead::set_body).delete(dead::undo_body),
        )
        .route(
            "/dead/{id}",
            get(routes::dead_show).delete(routes::dead_discard),
        )
        .route("/dead/{id}/replay", post(routes::dead_replay))
        .route("/messages/{id}", get(routes::why))
        .route("/secrets", get(routes::secrets))
        .route("/secrets/{name}", put(routes::set_secret))
        .route("/secrets/{name}", delete(routes::delete_secret))
        .route("/manifest", get(routes::manifest))
}

async fn not_found() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "there is nothing at this path",
    )
    .hint("`/openapi.json` lists all paths")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        "this path does not take this method",
    )
    .hint("`/openapi.json` lists all paths with their methods")
}

/// Answers in place of a handler that panicked. What it said goes to the log, not to the caller.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let what = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(panic = what, "a request handler panicked");
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the control plane failed; its log says why",
    )
    .into_response()
}

#[cfg(test)]
mod tests;

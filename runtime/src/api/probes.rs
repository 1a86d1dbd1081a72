//! Whether the control plane lives, whether it is ready, and what it counts.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::ApiState;
use crate::control::view::Readiness;
use crate::metrics::CONTENT_TYPE;

/// Says that the process answers.
#[utoipa::path(get, path = "/live", responses((status = 200, body = String)))]
pub(super) async fn live() -> &'static str {
    "live\n"
}

/// Says whether store, broker and engine answer, each by name.
#[utoipa::path(get, path = "/ready", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub(super) async fn ready(State(state): State<ApiState>) -> Response {
    let readiness = state.control.readiness().await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

/// Everything that is counted, as Prometheus reads it.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(state): State<ApiState>) -> Response {
    let text = state.control.metrics_text().await;
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

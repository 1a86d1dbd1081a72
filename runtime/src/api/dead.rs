//! The endpoints of many dead letters: groups, edits, replays, exports.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::ApiState;
use super::error::{ApiError, ErrorBody};
use super::extract::{JsonBody, Params};
use crate::control::DeadFilter;
use crate::control::dead::view::{
    DiscardRequest, EditManyRequest, EditRequest, GroupList, JobList, JobView, ManyAnswer,
    ReplayAnswer, ReplayManyRequest,
};
use crate::control::view::Done;

type Answer<T> = Result<Json<T>, ApiError>;

/// Groups of which steps.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GroupParams {
    /// Of this flow only.
    flow: Option<String>,
    /// Of this step only.
    step: Option<String>,
}

/// Counts open dead letters by what kind of failure they are, the largest group first.
#[utoipa::path(get, path = "/api/v1/dead/groups", params(GroupParams), security(("token" = [])),
    responses((status = 200, body = GroupList)))]
pub(super) async fn groups(
    State(state): State<ApiState>,
    params: Params<GroupParams>,
) -> Answer<GroupList> {
    let GroupParams { flow, step } = params.0;
    Ok(Json(state.control.dead_groups(flow, step).await?))
}

/// Writes dead letters with everything in them, newest first: lines of JSON. An answer that is cut
/// off is not whole.
#[utoipa::path(get, path = "/api/v1/dead/export", params(DeadFilter), security(("token" = [])), responses(
    (status = 200, content_type = "application/x-ndjson", body = String), (status = 400, body = ErrorBody)))]
pub(super) async fn export(
    State(state): State<ApiState>,
    params: Params<DeadFilter>,
) -> Result<Response, ApiError> {
    let lines = state.control.dead_export(&params.0).await?;
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Begins a job that sends dead letters to their steps again; or says what it would send.
#[utoipa::path(post, path = "/api/v1/dead/replay", request_body = ReplayManyRequest, security(("token" = [])),
    responses((status = 200, body = ReplayAnswer), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn replay(
    State(state): State<ApiState>,
    request: JsonBody<ReplayManyRequest>,
) -> Answer<ReplayAnswer> {
    Ok(Json(state.control.dead_replay_many(&request.0).await?))
}

/// Says that dead letters are not needed; or how many it would be.
#[utoipa::path(post, path = "/api/v1/dead/discard", request_body = DiscardRequest, security(("token" = [])),
    responses((status = 200, body = ManyAnswer), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn discard(
    State(state): State<ApiState>,
    request: JsonBody<DiscardRequest>,
) -> Answer<ManyAnswer> {
    Ok(Json(state.control.dead_discard_many(&request.0).await?))
}

/// Changes the bodies of dead letters by a jq expression, or brings their own back; or says what
/// would change.
#[utoipa::path(post, path = "/api/v1/dead/edit", request_body = EditManyRequest, security(("token" = [])),
    responses((status = 200, body = ManyAnswer), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn edit(
    State(state): State<ApiState>,
    request: JsonBody<EditManyRequest>,
) -> Answer<ManyAnswer> {
    Ok(Json(state.control.dead_edit_many(&request.0).await?))
}

/// Puts a body in place of a dead letter's own, which is kept.
#[utoipa::path(put, path = "/api/v1/dead/{id}/body", params(("id" = String, Path)),
    request_body = EditRequest, security(("token" = [])), responses((status = 200, body = Done),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn set_body(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    request: JsonBody<EditRequest>,
) -> Answer<Done> {
    Ok(Json(state.control.dead_edit(&id, Some(request.0)).await?))
}

/// Brings a dead letter's own body back.
#[utoipa::path(delete, path = "/api/v1/dead/{id}/body", params(("id" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn undo_body(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Answer<Done> {
    Ok(Json(state.control.dead_edit(&id, None).await?))
}

/// Lists replays of many dead letters, newest first.
#[utoipa::path(get, path = "/api/v1/dead/jobs", security(("token" = [])),
    responses((status = 200, body = JobList)))]
pub(super) async fn jobs(State(state): State<ApiState>) -> Answer<JobList> {
    Ok(Json(state.control.dead_jobs().await?))
}

/// Says how far a replay is.
#[utoipa::path(get, path = "/api/v1/dead/jobs/{job}", params(("job" = String, Path)), security(("token" = [])),
    responses((status = 200, body = JobView), (status = 404, body = ErrorBody)))]
pub(super) async fn job(State(state): State<ApiState>, Path(job): Path<String>) -> Answer<JobView> {
    Ok(Json(state.control.dead_job(&job).await?))
}

/// Ends a replay after what it is just sending; the rest is open again.
#[utoipa::path(delete, path = "/api/v1/dead/jobs/{job}", params(("job" = String, Path)), security(("token" = [])),
    responses((status = 200, body = JobView), (status = 404, body = ErrorBody)))]
pub(super) async fn cancel(
    State(state): State<ApiState>,
    Path(job): Path<String>,
) -> Answer<JobView> {
    Ok(Json(state.control.dead_job_cancel(&job).await?))
}

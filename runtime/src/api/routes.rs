//! The endpoints under `/api/v1`: each one calls one verb.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use super::ApiState;
use super::error::{ApiError, ErrorBody};
use super::extract::{JsonBody, Params};
use crate::control::view::{CheckpointChoice, CheckpointValue, CheckpointView};
use crate::control::view::{
    DeadList, DeadView, DiffView, Done, Draft, FlowList, FlowStatus, PlanView, ReplayRequest,
    RollbackRequest, RunList, RunRequest, RunView, ScaleRequest, ScaleTo, ScaleWord, SecretList,
    SecretValue, VersionList,
};
use crate::control::view::{RetriesMoved, RetryList, RetrySelection, RotateRequest, WebhookKeys};
use crate::control::{DeadFilter, DeleteChoices, LogFilter, Verb, Whereabouts};
use crate::control::{RetryFilter, RunFilter};
use crate::sweep::Fate;

type Answer<T> = Result<Json<T>, ApiError>;

/// How a flow is deleted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParams {
    /// Whether messages that wait may be dropped.
    #[serde(default)]
    drop_messages: bool,
    /// Whether what its trigger registered at its source may stay there.
    #[serde(default)]
    leave_registered: bool,
}

/// Which versions.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DiffParams {
    /// The version on the left; the one before the other when left out.
    from: Option<u32>,
    /// The version on the right; the newest when left out.
    to: Option<u32>,
}

/// Which image.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ImageParams {
    /// The image.
    image: String,
}

/// Says what applying a flow file would do, and changes nothing.
#[utoipa::path(post, path = "/api/v1/plan", request_body = Draft, security(("token" = [])), responses(
    (status = 200, body = PlanView), (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn plan(
    State(state): State<ApiState>,
    draft: JsonBody<Draft>,
) -> Answer<PlanView> {
    Ok(Json(state.control.plan(&draft.0).await?))
}

/// Makes a flow file the newest version of its flow. Doing it again does nothing.
#[utoipa::path(post, path = "/api/v1/apply", request_body = Draft, security(("token" = [])), responses(
    (status = 200, body = PlanView), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn apply(
    State(state): State<ApiState>,
    draft: JsonBody<Draft>,
) -> Answer<PlanView> {
    Ok(Json(state.control.apply(&draft.0).await?))
}

/// Lists all flows.
#[utoipa::path(get, path = "/api/v1/flows", security(("token" = [])), responses((status = 200, body = FlowList)))]
pub(super) async fn list(State(state): State<ApiState>) -> Answer<FlowList> {
    Ok(Json(state.control.list().await?))
}

/// Says how a flow is.
#[utoipa::path(get, path = "/api/v1/flows/{flow}", params(("flow" = String, Path)), security(("token" = [])),
    responses((status = 200, body = FlowStatus), (status = 404, body = ErrorBody)))]
pub(super) async fn status(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
) -> Answer<FlowStatus> {
    Ok(Json(state.control.status(&flow).await?))
}

/// Forgets a flow and removes all it made. If its trigger is registered at its source, it takes that
/// back first, and the flow goes when that is done.
#[utoipa::path(delete, path = "/api/v1/flows/{flow}", params(("flow" = String, Path), DeleteParams),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    params: Params<DeleteParams>,
) -> Answer<Done> {
    let DeleteParams {
        drop_messages,
        leave_registered,
    } = params.0;
    let choices = DeleteChoices {
        drop_messages,
        leave_registered,
    };
    Ok(Json(state.control.delete(&flow, choices).await?))
}

/// Stops consuming; containers and messages stay.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/pause", params(("flow" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody)))]
pub(super) async fn pause(State(state): State<ApiState>, Path(flow): Path<String>) -> Answer<Done> {
    Ok(Json(state.control.tell(&flow, Verb::Pause).await?))
}

/// Undoes pause, drain and stop.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/resume", params(("flow" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody)))]
pub(super) async fn resume(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
) -> Answer<Done> {
    Ok(Json(state.control.tell(&flow, Verb::Resume).await?))
}

/// Takes in nothing new and finishes what is there; webhooks are answered 503.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/drain", params(("flow" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody)))]
pub(super) async fn drain(State(state): State<ApiState>, Path(flow): Path<String>) -> Answer<Done> {
    Ok(Json(state.control.tell(&flow, Verb::Drain).await?))
}

/// Removes the containers; messages stay.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/stop", params(("flow" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody)))]
pub(super) async fn stop(State(state): State<ApiState>, Path(flow): Path<String>) -> Answer<Done> {
    Ok(Json(state.control.tell(&flow, Verb::Stop).await?))
}

/// The step stops consuming; its containers and messages stay.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/steps/{step}/pause",
    params(("flow" = String, Path), ("step" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Done), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn pause_step(
    State(state): State<ApiState>,
    Path((flow, step)): Path<(String, String)>,
) -> Answer<Done> {
    Ok(Json(
        state.control.tell_step(&flow, &step, Verb::Pause).await?,
    ))
}

/// Undoes pause, drain and stop of the step.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/steps/{step}/resume",
    params(("flow" = String, Path), ("step" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Done), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn resume_step(
    State(state): State<ApiState>,
    Path((flow, step)): Path<(String, String)>,
) -> Answer<Done> {
    Ok(Json(
        state.control.tell_step(&flow, &step, Verb::Resume).await?,
    ))
}

/// The steps before it hold still, and the step finishes what it has.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/steps/{step}/drain",
    params(("flow" = String, Path), ("step" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Done), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn drain_step(
    State(state): State<ApiState>,
    Path((flow, step)): Path<(String, String)>,
) -> Answer<Done> {
    Ok(Json(
        state.control.tell_step(&flow, &step, Verb::Drain).await?,
    ))
}

/// Removes the step's containers; its messages stay.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/steps/{step}/stop",
    params(("flow" = String, Path), ("step" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Done), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn stop_step(
    State(state): State<ApiState>,
    Path((flow, step)): Path<(String, String)>,
) -> Answer<Done> {
    Ok(Json(
        state.control.tell_step(&flow, &step, Verb::Stop).await?,
    ))
}

/// Says why one step is not deleted: it is taken out of the flow file.
#[utoipa::path(delete, path = "/api/v1/flows/{flow}/steps/{step}",
    params(("flow" = String, Path), ("step" = String, Path)), security(("token" = [])),
    responses((status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn delete_step(
    State(state): State<ApiState>,
    Path((flow, step)): Path<(String, String)>,
) -> Answer<Done> {
    Ok(Json(state.control.delete_step(&flow, &step).await?))
}

/// Says how many replicas a step should have.
#[utoipa::path(put, path = "/api/v1/flows/{flow}/steps/{step}/scale",
    params(("flow" = String, Path), ("step" = String, Path)), request_body = ScaleRequest,
    security(("token" = [])), responses((status = 200, body = Done), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn scale(
    State(state): State<ApiState>,
    Path((flow, step)): Path<(String, String)>,
    request: JsonBody<ScaleRequest>,
) -> Answer<Done> {
    let control = &state.control;
    Ok(Json(match request.0.replicas {
        ScaleTo::Number(replicas) => control.scale(&flow, &step, replicas).await?,
        ScaleTo::File(ScaleWord::Auto) => control.unscale(&flow, &step).await?,
    }))
}

/// Lists the versions of a flow, newest first.
#[utoipa::path(get, path = "/api/v1/flows/{flow}/versions", params(("flow" = String, Path)),
    security(("token" = [])), responses((status = 200, body = VersionList), (status = 404, body = ErrorBody)))]
pub(super) async fn versions(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
) -> Answer<VersionList> {
    Ok(Json(state.control.versions(&flow).await?))
}

/// Says what is different between two versions of a flow.
#[utoipa::path(get, path = "/api/v1/flows/{flow}/diff", params(("flow" = String, Path), DiffParams),
    security(("token" = [])), responses((status = 200, body = DiffView), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn diff(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    params: Params<DiffParams>,
) -> Answer<DiffView> {
    let DiffParams { from, to } = params.0;
    Ok(Json(state.control.diff(&flow, from, to).await?))
}

/// Applies an earlier version again, as a new one: its file, its images and its environment.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/rollback", params(("flow" = String, Path)),
    request_body = RollbackRequest, security(("token" = [])), responses((status = 200, body = PlanView),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn rollback(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    request: JsonBody<RollbackRequest>,
) -> Answer<PlanView> {
    Ok(Json(state.control.rollback(&flow, &request.0).await?))
}

/// Fires the trigger now.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/run", params(("flow" = String, Path)),
    request_body = RunRequest, security(("token" = [])), responses((status = 200, body = RunView),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn run(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    request: JsonBody<RunRequest>,
) -> Answer<RunView> {
    Ok(Json(state.control.run(&flow, request.0.payload).await?))
}

/// Says where the trigger is in its source.
#[utoipa::path(get, path = "/api/v1/flows/{flow}/checkpoint", params(("flow" = String, Path)),
    security(("token" = [])), responses((status = 200, body = CheckpointView), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn checkpoint(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
) -> Answer<CheckpointView> {
    Ok(Json(state.control.checkpoint(&flow).await?))
}

/// Says where the trigger is to go on from.
#[utoipa::path(put, path = "/api/v1/flows/{flow}/checkpoint", params(("flow" = String, Path), CheckpointChoice),
    request_body = CheckpointValue, security(("token" = [])), responses((status = 200, body = CheckpointView),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn set_checkpoint(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    choice: Params<CheckpointChoice>,
    value: JsonBody<CheckpointValue>,
) -> Answer<CheckpointView> {
    let value = Some(&value.0.value);
    Ok(Json(
        state
            .control
            .set_checkpoint(&flow, value, &choice.0)
            .await?,
    ))
}

/// Lets the trigger begin from the beginning.
#[utoipa::path(delete, path = "/api/v1/flows/{flow}/checkpoint", params(("flow" = String, Path), CheckpointChoice),
    security(("token" = [])), responses((status = 200, body = CheckpointView), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn reset_checkpoint(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    choice: Params<CheckpointChoice>,
) -> Answer<CheckpointView> {
    Ok(Json(
        state.control.set_checkpoint(&flow, None, &choice.0).await?,
    ))
}

/// Lists the last runs of a flow, newest first.
#[utoipa::path(get, path = "/api/v1/flows/{flow}/runs", params(("flow" = String, Path), RunFilter),
    security(("token" = [])), responses((status = 200, body = RunList), (status = 404, body = ErrorBody)))]
pub(super) async fn runs(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    filter: Params<RunFilter>,
) -> Answer<RunList> {
    Ok(Json(state.control.runs(&flow, &filter.0).await?))
}

/// Says how a run is.
#[utoipa::path(get, path = "/api/v1/runs/{run}", params(("run" = String, Path)), security(("token" = [])),
    responses((status = 200, body = RunView), (status = 404, body = ErrorBody)))]
pub(super) async fn run_by_id(
    State(state): State<ApiState>,
    Path(run): Path<String>,
) -> Answer<RunView> {
    Ok(Json(state.control.run_by_id(&run).await?))
}

/// Cancels a run: its trigger leaves it, and what it emitted goes on.
#[utoipa::path(post, path = "/api/v1/runs/{run}/cancel", params(("run" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Done), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn run_cancel(
    State(state): State<ApiState>,
    Path(run): Path<String>,
) -> Answer<Done> {
    Ok(Json(state.control.cancel_run(&run).await?))
}

/// Reads the logs of a flow's replicas: lines of JSON.
#[utoipa::path(get, path = "/api/v1/flows/{flow}/logs", params(("flow" = String, Path), LogFilter),
    security(("token" = [])), responses(
    (status = 200, content_type = "application/x-ndjson", body = String), (status = 404, body = ErrorBody)))]
pub(super) async fn logs(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    params: Params<LogFilter>,
) -> Result<Response, ApiError> {
    let lines = state.control.logs(&flow, &params.0).await?;
    // Who follows is let go when the control plane ends: else it would wait for them.
    let lines = lines
        .take_until(state.stop.clone().cancelled_owned())
        .map(Ok::<_, Infallible>);
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Lists dead letters, newest first.
#[utoipa::path(get, path = "/api/v1/dead", params(DeadFilter), security(("token" = [])),
    responses((status = 200, body = DeadList), (status = 400, body = ErrorBody)))]
pub(super) async fn dead_list(
    State(state): State<ApiState>,
    params: Params<DeadFilter>,
) -> Answer<DeadList> {
    Ok(Json(state.control.dead_list(&params.0).await?))
}

/// Shows a dead letter with its message.
#[utoipa::path(get, path = "/api/v1/dead/{id}", params(("id" = String, Path)), security(("token" = [])),
    responses((status = 200, body = DeadView), (status = 404, body = ErrorBody)))]
pub(super) async fn dead_show(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Answer<DeadView> {
    Ok(Json(state.control.dead_show(&id).await?))
}

/// Sends a dead letter's message to its step again, with another body if one is given.
#[utoipa::path(post, path = "/api/v1/dead/{id}/replay", params(("id" = String, Path)),
    request_body = ReplayRequest, security(("token" = [])), responses((status = 200, body = Done),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn dead_replay(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    request: JsonBody<ReplayRequest>,
) -> Answer<Done> {
    let ReplayRequest { body, from } = request.0;
    Ok(Json(state.control.dead_replay(&id, body, from).await?))
}

/// Says that a dead letter is not needed.
#[utoipa::path(delete, path = "/api/v1/dead/{id}", params(("id" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Done), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn dead_discard(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Answer<Done> {
    Ok(Json(state.control.dead_discard(&id).await?))
}

/// Says where a message is, what was tried, and what happens next.
#[utoipa::path(get, path = "/api/v1/messages/{id}", params(("id" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Whereabouts), (status = 400, body = ErrorBody)))]
pub(super) async fn why(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Answer<Whereabouts> {
    Ok(Json(state.control.why(&id).await?))
}

/// Lists what waits in the delay ladder for the steps of a flow.
#[utoipa::path(get, path = "/api/v1/flows/{flow}/retries", params(("flow" = String, Path), RetryFilter),
    security(("token" = [])), responses((status = 200, body = RetryList), (status = 404, body = ErrorBody)))]
pub(super) async fn retries(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    params: Params<RetryFilter>,
) -> Answer<RetryList> {
    Ok(Json(state.control.retries(&flow, &params.0).await?))
}

/// Brings messages that wait back to their step at once.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/retries/now", params(("flow" = String, Path)),
    request_body = RetrySelection, security(("token" = [])), responses((status = 200, body = RetriesMoved),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn retries_now(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    request: JsonBody<RetrySelection>,
) -> Answer<RetriesMoved> {
    let control = &state.control;
    Ok(Json(
        control.retries_move(&flow, &request.0, Fate::Now).await?,
    ))
}

/// Makes dead letters of messages that wait.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/retries/cancel", params(("flow" = String, Path)),
    request_body = RetrySelection, security(("token" = [])), responses((status = 200, body = RetriesMoved),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn retries_cancel(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    request: JsonBody<RetrySelection>,
) -> Answer<RetriesMoved> {
    let control = &state.control;
    Ok(Json(
        control
            .retries_move(&flow, &request.0, Fate::Cancel)
            .await?,
    ))
}

/// Lists the names of all secrets.
#[utoipa::path(get, path = "/api/v1/secrets", security(("token" = [])),
    responses((status = 200, body = SecretList)))]
pub(super) async fn secrets(State(state): State<ApiState>) -> Answer<SecretList> {
    Ok(Json(state.control.secrets().await?))
}

/// Sets a secret. What uses it is replaced.
#[utoipa::path(put, path = "/api/v1/secrets/{name}", params(("name" = String, Path)),
    request_body = SecretValue, security(("token" = [])), responses((status = 200, body = Done),
    (status = 400, body = ErrorBody)))]
pub(super) async fn set_secret(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    request: JsonBody<SecretValue>,
) -> Answer<Done> {
    Ok(Json(
        state.control.set_secret(&name, &request.0.value).await?,
    ))
}

/// Deletes a secret that no flow uses.
#[utoipa::path(delete, path = "/api/v1/secrets/{name}", params(("name" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Done), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn delete_secret(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Answer<Done> {
    Ok(Json(state.control.delete_secret(&name).await?))
}

/// Shows the manifest of an image.
#[utoipa::path(get, path = "/api/v1/manifest", params(ImageParams), security(("token" = [])),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody)))]
pub(super) async fn manifest(
    State(state): State<ApiState>,
    params: Params<ImageParams>,
) -> Answer<Value> {
    let manifest = state.control.manifest(&params.0.image).await?;
    Ok(Json(serde_json::to_value(manifest).unwrap_or(Value::Null)))
}

/// Gives a webhook another URL; the one before stays good for a while.
#[utoipa::path(post, path = "/api/v1/flows/{flow}/webhook/rotate", params(("flow" = String, Path)),
    request_body = RotateRequest, security(("token" = [])), responses((status = 200, body = WebhookKeys),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn rotate_webhook(
    State(state): State<ApiState>,
    Path(flow): Path<String>,
    request: JsonBody<RotateRequest>,
) -> Answer<WebhookKeys> {
    let grace = Duration::from_millis(request.0.grace_ms);
    Ok(Json(state.control.rotate_webhook(&flow, grace).await?))
}

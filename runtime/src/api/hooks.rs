//! Webhooks: requests that become messages.
//!
//! # Invariants
//!
//! - `a_wrong_key_looks_like_a_wrong_flow`: both are not found, in the same time.
//! - Nothing here logs a URL: there is a key in it.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use towpath_protocol::{MessageId, answer};
use utoipa::ToSchema;

use super::ApiState;
use super::error::{ApiError, ErrorBody};
use crate::engine::chain;
use crate::ingress::{self, Answer};

/// The header that says which run an answer of a flow is of.
const RUN_HEADER: HeaderName = HeaderName::from_static("towpath-run");

/// That a request was taken.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Taken {
    /// The id of its message, which is that of its run.
    id: String,
}

/// Takes a request into a flow. Answers once the broker has it on disk; if the flow is to answer, with
/// its answer, of any status, or after a time with 202. HEAD makes no message: it
/// asks whether one would be taken.
#[utoipa::path(method(post, put, get, head), path = "/hooks/{flow}/{key}",
    params(("flow" = String, Path), ("key" = String, Path)), request_body = String, responses(
    (status = 200, description = "The challenge of a handshake, or the answer to HEAD"),
    (status = 202, body = Taken), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
    (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn hook(
    State(state): State<ApiState>,
    Path((flow, key)): Path<(String, String)>,
    request: Request,
) -> Response {
    take(&state, &flow, &key, String::new(), request).await
}

/// The same, with more after the key.
pub(super) async fn hook_below(
    State(state): State<ApiState>,
    Path((flow, key, rest)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    take(&state, &flow, &key, format!("/{rest}"), request).await
}

async fn take(state: &ApiState, flow: &str, key: &str, path: String, request: Request) -> Response {
    let Some(gate) = state.ingress.gate(flow, key) else {
        let error = ApiError::new(
            StatusCode::NOT_FOUND,
            "no_such_webhook",
            "there is no webhook here",
        );
        return error.into_response();
    };
    let (method, uri, headers) = (
        request.method().clone(),
        request.uri().clone(),
        request.headers().clone(),
    );
    // Through the extractor, which knows the limit and says when it is passed.
    let body = match Bytes::from_request(request, state).await {
        Ok(body) => body,
        Err(rejection) => return ApiError::from(rejection).into_response(),
    };
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let request = ingress::Request {
        method: method.to_string(),
        path,
        query: uri.query().unwrap_or_default().to_owned(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
        body,
    };
    match state.ingress.accept(&gate, &request).await {
        Ok(Answer::Taken(id)) => {
            (StatusCode::ACCEPTED, Json(Taken { id: id.to_string() })).into_response()
        }
        Ok(Answer::Replied(run, answer)) => reply(run, &answer),
        // As text that no browser takes for a page: it is whatever the sender wrote.
        Ok(Answer::Challenge(challenge)) => (
            [
                (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ],
            challenge,
        )
            .into_response(),
        Ok(Answer::Open) => StatusCode::OK.into_response(),
        Err(error) => refusal(&error),
    }
}

/// The answer of a flow, and the run that gave it.
fn reply(run: MessageId, answer: &answer::Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let (content, is_json) = answer.content().unwrap_or_default();
    let mut response = (status, content).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    if is_json {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
    }
    // They were looked at when the answer was kept.
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    if let Ok(run) = HeaderValue::try_from(run.to_string()) {
        headers.insert(RUN_HEADER, run);
    }
    response
}

fn refusal(error: &ingress::IngressError) -> Response {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = ApiError::new(status, error.code(), chain(error)).into_response();
    if let Some(seconds) = error.retry_after() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let ingress::IngressError::NotAuthentic { challenge, .. } = error {
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(challenge),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request gets for an answer: the status, the headers, the body.
    async fn sent(answer: &str) -> (u16, String, String) {
        let answer: answer::Answer = serde_json::from_str(answer).unwrap();
        let response = reply(MessageId::from_bytes([1; 16]), &answer);
        let status = response.status().as_u16();
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let headers = headers.collect::<Vec<_>>().join("\n");
        let body = axum::body::to_bytes(response.into_body(), 1_000).await;
        let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
        (status, headers, body)
    }

    #[tokio::test]
    async fn an_answer_is_sent_as_the_flow_gave_it() {
        let run = format!("towpath-run: {}", "01".repeat(16));
        let json = sent(r#"{"status":201,"headers":{"location":"/7"},"body":{"b":1,"a":1.50}}"#);
        let headers = format!("content-type: application/json\nlocation: /7\n{run}");
        let expect = (201, headers, r#"{"b":1,"a":1.50}"#.to_owned());
        assert_eq!(json.await, expect);
        let text = sent(r#"{"headers":{"Content-Type":"text/plain"},"body":"a\nb"}"#);
        let headers = format!("content-type: text/plain\n{run}");
        assert_eq!(text.await, (200, headers, "a\nb".to_owned()));
        let nothing = sent(r#"{"status":204}"#);
        assert_eq!(nothing.await, (204, run, String::new()));
    }
}

//! What requests carry, with our errors in place of the framework's.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// A body of JSON. An empty one is `{}`.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await?;
        let text: &[u8] = if bytes.trim_ascii().is_empty() {
            b"{}"
        } else {
            &bytes
        };
        serde_json::from_slice(text).map(Self).map_err(|error| {
            // Not what was there: it may be a secret.
            let what = match error.classify() {
                serde_json::error::Category::Data => {
                    "the request has another shape than this expects"
                }
                _ => "the request is not JSON",
            };
            let place = format!("{what} (line {}, column {})", error.line(), error.column());
            ApiError::new(StatusCode::BAD_REQUEST, "bad_request", place)
                .hint("`/openapi.json` describes every request")
        })
    }
}

/// The query of a URL.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(params) = Query::from_request_parts(parts, state).await?;
        Ok(Self(params))
    }
}

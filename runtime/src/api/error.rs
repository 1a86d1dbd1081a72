//! Errors as they go over HTTP.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use towpath_flow::Finding;
use utoipa::ToSchema;

use crate::control::error::{ControlError, ErrorKind};

/// The body of every answer that is an error.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorView,
}

/// An error.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// A stable word for programs.
    pub code: String,
    /// Why, for people.
    pub message: String,
    /// What to do next, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What is wrong with a flow file, if that is it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub diagnostics: Vec<Finding>,
}

/// An error on its way out.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    view: ErrorView,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let view = ErrorView {
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            diagnostics: Vec::new(),
        };
        Self { status, view }
    }

    pub(super) fn hint(mut self, hint: &str) -> Self {
        self.view.hint = Some(hint.to_owned());
        self
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match error.kind {
            ErrorKind::Bad => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let view = ErrorView {
            code: error.code.to_owned(),
            message: error.message,
            hint: error.hint,
            diagnostics: error.diagnostics,
        };
        Self { status, view }
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "the request is too large",
            )
            .hint("the setting `body_bytes_max` is the limit");
        }
        Self::new(
            StatusCode::BAD_REQUEST,
            "unreadable",
            "the request cannot be read to its end",
        )
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_query", rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.view })).into_response()
    }
}

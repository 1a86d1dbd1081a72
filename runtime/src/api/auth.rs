//! Who may use the API: whoever has the token.
//!
//! # Invariants
//!
//! - The token is not in memory here, only its hash; hashes are compared in constant time.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiState;
use super::error::ApiError;

/// The hash of the token.
#[derive(Clone)]
pub struct Token(blake3::Hash);

impl Token {
    /// Takes the token.
    pub fn new(token: &str) -> Self {
        Self(blake3::hash(token.as_bytes()))
    }

    fn is(&self, token: &str) -> bool {
        // `blake3::Hash` compares in constant time.
        blake3::hash(token.as_bytes()) == self.0
    }
}

/// Lets a request with the token through.
pub(super) async fn require_token(
    State(state): State<ApiState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    match given {
        Some(token) if state.token.is(token) => Ok(next.run(request).await),
        Some(_) => Err(refused("the token is not the one of this control plane")),
        None => Err(refused("this needs a token")),
    }
}

fn refused(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
        .hint("send `Authorization: Bearer <token>`; the token is in the file `token` of the data directory")
}

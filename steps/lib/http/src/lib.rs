//! HTTP as the steps that speak it need it: one client with TLS that works in an empty image,
//! bounded answers, redirects that keep credentials at home, and `Retry-After`.
//!
//! # Invariants
//!
//! - `credentials_stay_at_their_origin`: a redirect to another scheme, host or port is refused.
//! - `a_method_is_never_changed`: a redirect that would turn a `POST` into a `GET` is refused.
//! - `an_answer_is_bounded`: no more than the limit is ever held of an answer.
//! - No error holds a URL's query, a header or a body that was sent.

mod answer;
mod client;
mod given;
mod wait;

pub use answer::{Answer, Verdict};
pub use client::{Client, Failure, Opened, Request, Settings, SetupError};
pub use given::{add_headers, read_url};
pub use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
pub use reqwest::{Method, StatusCode, Url};
pub use wait::{WAIT_MAX, retry_after};

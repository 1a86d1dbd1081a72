//! Templates that steps fill in for each message: texts, and JSON with texts in it.

mod block;
mod json;
mod template;

pub use json::Json;
pub use template::{Template, Templates, Values, values};

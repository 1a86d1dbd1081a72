//! Sends each message to an HTTP API: method, URL, headers and body from templates.

mod config;
mod plan;
mod step;

pub use config::{Config, EmitWhat};
pub use plan::Plan;
pub use step::{State, handle, setup};

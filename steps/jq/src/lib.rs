//! Shapes each message with a jq filter, bounded in time and memory: see [`towpath_step_jq`].

mod setup;

pub use setup::{Config, handle, setup};
pub use towpath_step_jq::{Program, WORKER, filter, pool, serve};

//! Brings in server-sent events: one message an event, and after a break from the last one on.

mod config;
mod event;
mod listen;

pub use config::{Config, Data};
pub use listen::{Checkpoint, State, listen, setup};

//! Brings in the items of a JSON API: page by page, only what is new, from where it left off.
//!
//! A **walk** reads a list from its first page to its last. Where the list says when each item
//! changed (`cursor`), a walk asks only for what changed since the last one; what it brings in is
//! known to be new by the [`Progress`] that is saved as the trigger's checkpoint.

mod config;
mod fetch;
mod link;
mod page;
mod progress;
mod step;
mod value;

pub use config::{Config, PageConfig, Style};
pub use progress::{Checkpoint, Progress};
pub use step::{State, poll, setup};
pub use value::CursorValue;

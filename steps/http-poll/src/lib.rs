//! Brings in the items of a JSON API: page by page, only what is new, from where it left off.
//!
//! A **walk** reads a list from its first page to its last. Where the list says when each item
//! changed (`cursor`), a walk asks only for what changed since the last one; what it brings in is
//! known to be new by the `Progress` that is saved as the trigger's checkpoint.

mod config;
mod fetch;
mod known;
mod link;
mod page;
mod progress;
mod read;
mod recent;
mod setup;
mod step;
mod validators;
mod value;

pub use config::{Config, PageConfig, SinceFormat, Style};
pub use progress::Checkpoint;
pub use setup::{State, setup};
pub use step::poll;
pub use towpath_step_jq::{WORKER, serve};

//! Writes messages to files in a folder.

mod config;
mod file;
mod row;
mod step;

pub use config::{Config, Mode};
pub use step::{BATCH_MAX, Setup, setup, write};

//! Brings in the rows of files in a folder.

mod config;
mod find;
mod finish;
mod progress;
mod rows;
mod step;

pub use config::{Config, Then};
pub use rows::Unreadable;
pub use step::{Setup, UNREADABLE, poll, setup};

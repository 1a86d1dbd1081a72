//! Shapes each message with a jq filter, bounded in time and memory.
//!
//! A filter is a program, and a program may never end. So filters run in worker processes of the
//! same binary, which hold one another's messages in no way: one that takes too long, or too much
//! memory, is killed and replaced, the message it was at is a dead letter, and its neighbours are
//! done again elsewhere.

pub mod filter;
pub mod pool;
mod program;
mod setup;
mod wire;
mod worker;

pub use program::Program;
pub use setup::{Config, handle, setup};
pub use worker::{WORKER, serve};

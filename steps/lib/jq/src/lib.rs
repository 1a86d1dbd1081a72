//! Runs jq filters in worker processes, bounded in time and memory: for the step `jq`, for whoever
//! filters dead letters, and for the conditions of steps ([`judge`]).
//!
//! A filter is a program, and a program may never end. So filters run in worker processes of the
//! same binary, which hold one another's values in no way: one that takes too long, or too much
//! memory, is killed and replaced, the value it was at has a reason in place of outputs, and its
//! neighbours are done again elsewhere.
//!
//! A binary that uses [`pool`] must call [`serve`] first of all when its first argument is
//! [`WORKER`].

pub mod filter;
pub mod judge;
pub mod pool;
mod program;
mod wire;
mod worker;

pub use program::Program;
pub use worker::{WORKER, serve};

//! The types that the control plane, the agent and a step share. Types only: nothing here does IO.
//!
//! | Module | Between | What |
//! |---|---|---|
//! | [`id`] | everyone | the id of a message, and how ids are derived |
//! | [`message`] | agent ⇄ agent, through the broker | one line of a batch |
//! | [`frame`] | agent ⇄ step process | the step protocol |
//! | [`manifest`] | step image → control plane | what a step is and takes |
//! | [`start`] | control plane → agent | everything an agent needs, once, on its standard input |
//! | [`handing`] | the same | how messages are handed to a step |
//! | [`log`] | agent → whoever reads a container's log | one line |
//! | [`office`] | agent → control plane, through the broker | reports, checkpoints, dead letters |
//! | [`answer`] | step → whoever waits, through the control plane | what a flow answers |
//! | [`runs`] | agent → control plane, through the broker | what came of runs |
//!
//! # Invariants
//!
//! - Only types that cross a boundary are here, and all of them are serializable.
//! - A reader ignores keys it does not know; a writer never changes the meaning of one that exists.
//!   What cannot be said that way is a new [`CONTRACT`].

pub mod answer;
pub mod frame;
pub mod handing;
pub mod id;
pub mod log;
pub mod manifest;
pub mod message;
pub mod office;
pub mod runs;
pub mod start;

pub use id::MessageId;

/// The version of the step protocol and of everything else in this crate.
///
/// An agent refuses a step that speaks another one, naming both.
pub const CONTRACT: u32 = 1;

/// The largest body of one message, in bytes of compact JSON, unless an operator lowers it: 1 MiB.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// The largest frame between agent and step, in bytes: a body, its headers and room for the rest.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + (64 << 10);

/// The largest checkpoint, in bytes of compact JSON: 64 KiB. A checkpoint is a position, not data.
pub const CHECKPOINT_BYTES_MAX: usize = 64 << 10;

/// The most that a trigger may have kept for it about its registration, in bytes of compact JSON:
/// 64 KiB.
pub const KEPT_BYTES_MAX: usize = 64 << 10;

/// The port that outputs leave by when a step names none.
pub const DEFAULT_PORT: &str = "out";

/// The connection a message belongs to until connections exist.
pub const DEFAULT_CONNECTION: &str = "default";

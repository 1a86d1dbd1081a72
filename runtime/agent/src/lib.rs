//! The agent: PID 1 of every step container. It alone talks to the broker, and it alone decides
//! the fate of a message; the step process is the author's code behind two pipes.
//!
//! | Module | What |
//! |---|---|
//! | [`run`] | the loop: the only place where broker, step process, signals and time meet |
//! | [`core`] | what to do about each of them: a state machine that does no IO |
//! | [`settle`], [`ladder`] | what becomes of a message, and how a delay is routed |
//! | [`envelope`], [`step_frame`] | reading messages and frames without parsing bodies |
//! | [`claims`] | questions to the ledger: may these be handled? |
//! | [`lanes`] | natural batching: what is published, when, and what waits for its confirm |
//! | [`deliveries`] | what was taken from the queue, and when it may be acknowledged |
//! | [`pace`] | this replica's share of the step's rate |
//! | [`validate`] | bodies held against what the step takes, for flows that want it |
//! | [`attempt_log`], [`journal`] | what is remembered: the lines of an attempt, what happened to messages |
//! | [`broker`] | commands and events; [`broker::rabbit`] alone names `lapin` |
//! | [`child`], [`reaper`], [`exit`], [`shim`] | the step process |
//!
//! # Invariants
//!
//! - The order never varies: take → hand to the step → publish every output → wait for every
//!   confirm → acknowledge. Cut anywhere, the worst case is the same outputs again with the same
//!   ids.
//! - It declares nothing on the broker.
//! - It never interprets a body: it checks that a step's output is JSON, and copies bytes. Only
//!   [`validate`] reads bodies, where the flow asks for it, and changes none; what the conditions of
//!   the steps after it say of a body, worker processes of this binary find out.

pub mod args;
pub mod attempt_log;
pub mod broker;
pub mod child;
pub mod claims;
pub mod clock;
pub mod core;
pub mod deliveries;
pub mod envelope;
pub mod exit;
pub mod finished;
pub mod journal;
pub mod ladder;
pub mod lanes;
pub mod limits;
pub mod line_reader;
pub mod log;
pub mod pace;
pub mod prefetch;
pub mod reaper;
pub mod record;
pub mod redact;
pub mod run;
pub mod settle;
pub mod shim;
pub mod start;
pub mod step_frame;
pub mod validate;

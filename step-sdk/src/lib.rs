//! Write a Towpath step: a typed async function.

mod context;
mod error;
mod handler;
mod input;
mod link;
mod local;
mod logs;
mod manifest;
mod outbox;
mod panics;
mod pipes;
mod rehearsal;
mod reply;
mod run;
mod serve;
mod step;
pub mod testing;
mod write;

use std::process::ExitCode;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

pub use context::{Context, Output};
pub use error::{Fate, Result, ResultExt, StepError};
pub use handler::{Action, Batch, Poll};
pub use input::{Input, Item, Tick, Why};
pub use reply::{Many, Outputs, Reply};
pub use step::{Made, NoSetup, Step, With};
pub use towpath_protocol::MessageId;
pub use towpath_protocol::manifest::{Kind, Manifest};
pub use {schemars, serde, serde_json, tokio, tracing};

/// Runs an action: a function that is handed each message.
pub fn action<F, In, R, C>(handler: F) -> ExitCode
where
    F: AsyncFn(In, &Context<C>) -> Result<R> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
{
    Step::action(handler).run()
}

/// Runs a poll trigger: a function that is fired by ticks.
pub fn poll<F, K, R, C>(handler: F) -> ExitCode
where
    F: AsyncFn(Tick<K>, &Context<C>) -> Result<R> + 'static,
    K: DeserializeOwned + 'static,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
{
    Step::poll(handler).run()
}

/// Runs a webhook trigger: a function that is handed each request.
pub fn webhook<F, In, R, C>(handler: F) -> ExitCode
where
    F: AsyncFn(In, &Context<C>) -> Result<R> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
{
    Step::webhook(handler).run()
}

/// Runs an action that is handed what is there, at most 256 messages at a time.
pub fn batch<F, In, R, C>(handler: F) -> ExitCode
where
    F: AsyncFn(Vec<In>, &Context<C>) -> Result<Vec<Result<R>>> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
{
    Step::batch(handler, 256).run()
}

/// Returns a number of seconds as a duration.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Returns a number of minutes as a duration.
pub const fn mins(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

//! Write a Towpath step: a typed async function.
//!
//! A step is one part of an integration flow, in a container of its own. It is handed messages and
//! makes others of them. Queues, retries, time limits, dead letters and scaling are not its
//! business: an agent beside it takes care of them.
//!
//! # A step
//!
//! ```
//! //! Adds tax to an order.
//! use std::process::ExitCode;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! use towpath_step::{Context, Result, StepError, secs};
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Config { percent: u64 }
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Order { id: u64, cents: u64 }
//!
//! #[derive(Serialize, JsonSchema)]
//! struct Taxed { id: u64, cents: u64 }
//!
//! async fn tax(order: Order, ctx: &Context<Config>) -> Result<Taxed> {
//!     if order.cents == 0 {
//!         return Err(StepError::rebound(secs(30), "the order has no amount yet"));
//!     }
//!     Ok(Taxed { id: order.id, cents: order.cents * (100 + ctx.config.percent) / 100 })
//! }
//!
//! fn main() -> ExitCode {
//! #   if true { return test() }
//!     towpath_step::action(tax)
//! }
//! # fn test() -> ExitCode {
//! #     use towpath_step::testing::TestRun;
//! #     let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//! #     let run = TestRun::action(tax).config(serde_json::json!({"percent": 19}));
//! #     let outcome = runtime.block_on(run.input(serde_json::json!({"id": 7, "cents": 100})).into_future());
//! #     assert_eq!(outcome.bodies(), [&serde_json::json!({"id": 7, "cents": 119})]);
//! #     ExitCode::SUCCESS
//! # }
//! ```
//!
//! That is all of it. The types are the contract: what `with:` in the flow must look like, what the
//! step takes and what it gives are in its manifest, made from the function's own signature
//! (`<step> manifest` prints it), and `towpath check` refuses a flow that does not fit.
//!
//! # What a handler is
//!
//! | Kind | Function | Begin with |
//! |---|---|---|
//! | action: handed each message | `async fn(In, &Context<C, S>) -> Result<Out>` | [`action`], [`Step::action`] |
//! | poll trigger: fired by a schedule | `async fn(Tick<K>, &Context<C, S>) -> Result<()>` | [`poll`], [`Step::poll`] |
//! | webhook trigger: handed each request | as an action | [`webhook`], [`Step::webhook`] |
//! | … that registers at its source | and two more | [`Step::registration`] |
//! | batch: handed several messages together | `async fn(Vec<In>, &Context<C, S>) -> Result<Vec<Result<Out>>>` | [`batch`], [`Step::batch`] |
//!
//! `In` is any type with `Deserialize` and `JsonSchema`: a struct, `serde_json::Value`, or
//! `Box<serde_json::value::RawValue>` to pass a body on untouched; an [`Item`] brings the message's
//! id and headers along. A body that cannot be read makes a dead letter that says where it is wrong.
//!
//! [`Step`] is the full form: state that is made once ([`Step::setup`]), further ports
//! ([`Step::port`]), a name and a default concurrency.
//!
//! # What it returns
//!
//! | `Ok(…)` | Emits |
//! |---|---|
//! | `()` or `None` | nothing |
//! | a value | one output |
//! | [`Many`] | many outputs |
//! | [`Outputs`] | outputs that name their ports |
//!
//! What is too much to return is emitted on the way, with back-pressure: [`Context::emit`],
//! [`Context::output`]. What a batch handler makes of several of its messages says which those were:
//! [`Output::of`].
//!
//! In a flow whose webhook waits (`reply`), what leaves by the port [`REPLY_PORT`] is answered to whoever
//! sent the request: an [`Answer`].
//!
//! # What can go wrong
//!
//! | Say | Means | Then |
//! |---|---|---|
//! | `?` on any error, [`StepError::retry`] | it failed, and may succeed later | again after the flow's back-off, [or when you say](StepError::after) |
//! | [`.permanent()?`](ResultExt::permanent), [`StepError::permanent`] | no retry can mend it | a dead letter, at once |
//! | [`.rebound(delay)?`](ResultExt::rebound), [`StepError::rebound`] | it is not yet time | again after the delay; not a failure |
//!
//! A panic is a retry, with its message and place; the process stays. A message that fails emits
//! nothing. The same message may come more than once, so what must not happen twice wants
//! [`Context::idempotency_key`].
//!
//! # How it runs
//!
//! Handlers run side by side on one thread, as many as the flow's `concurrency` says. So await what
//! waits, and move what computes for long to `tokio::task::spawn_blocking`. More processors: more
//! replicas. The frames to and from the agent have threads of their own. When a time limit has
//! passed, the handler is dropped at its next await.
//!
//! # Try it, test it
//!
//! `<step> run-local --config with.json` handles each line of standard input and prints the outputs.
//! [`testing`] runs a handler in a unit test. Neither needs a broker or a container.
//!
//! # More
//!
//! The `examples/` have one idea each: `action`, `poll`, `stream`, `errors`, `ports`, `state`, `batch`,
//! `join`, `testing`. What goes over the pipes is in `docs/step-protocol.md`.
//!
//! # What does not compile
//!
//! A state that nothing makes:
//!
//! ```compile_fail,E0277
//! # use towpath_step::{Context, Result, Step};
//! struct Client;
//! async fn handle(_: String, _: &Context<(), Client>) -> Result<()> { Ok(()) }
//! Step::action(handle).run(); // `.setup(…)` is missing
//! ```
//!
//! An output without a schema:
//!
//! ```compile_fail,E0277
//! # use towpath_step::{Context, Result, Step};
//! #[derive(serde::Serialize)]
//! struct Plain;
//! async fn handle(_: String, _: &Context<()>) -> Result<Plain> { Ok(Plain) }
//! towpath_step::action(handle); // `JsonSchema` is missing
//! ```

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
mod registration;
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
pub use registration::{Registering, Registration};
pub use reply::{Many, Outputs, Reply};
pub use step::{Made, NoSetup, Step, With};
pub use towpath_protocol::MessageId;
pub use towpath_protocol::answer::{Answer, REPLY_PORT};
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

//! A step, built from a function and run.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use towpath_protocol::manifest::{Kind, Manifest};

use crate::context::Context;
use crate::error::Result;
use crate::handler::{Action, Batch, Handler, Poll};
use crate::input::{Input, Tick};
use crate::manifest::{self, Description};
use crate::reply::Reply;
use crate::run;

/// A step: a function and what belongs to it.
///
/// ```no_run
/// use std::process::ExitCode;
/// use towpath_step::{Context, Result, Step};
///
/// struct State { greeting: String }
///
/// async fn greet(name: String, ctx: &Context<(), State>) -> Result<String> {
///     Ok(format!("{}, {name}", ctx.state.greeting))
/// }
///
/// fn main() -> ExitCode {
///     Step::action(greet)
///         .setup(async |_: &()| Ok(State { greeting: "Hello".to_owned() }))
///         .about(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), "Greets whoever comes")
///         .run()
/// }
/// ```
#[derive(Debug)]
#[must_use = "a step does something when it is `run`"]
pub struct Step<H, P = NoSetup> {
    pub(crate) handler: Rc<H>,
    pub(crate) setup: P,
    pub(crate) description: Description,
}

impl<F, In, R, C, S> Step<Action<F, In, R, C, S>>
where
    F: AsyncFn(In, &Context<C, S>) -> Result<R> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    /// A step that is handed each message.
    pub fn action(function: F) -> Self {
        Self::new(Action::new(function, Kind::Action))
    }

    /// A trigger that is handed each request to a webhook URL: the input is the request's body, its
    /// method, path, query and chosen headers are in [`Context::headers`].
    pub fn webhook(function: F) -> Self {
        Self::new(Action::new(function, Kind::Webhook))
    }
}

impl<F, K, R, C, S> Step<Poll<F, K, R, C, S>>
where
    F: AsyncFn(Tick<K>, &Context<C, S>) -> Result<R> + 'static,
    K: DeserializeOwned + 'static,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    /// A trigger that is fired by a schedule and brings messages in.
    pub fn poll(function: F) -> Self {
        Self::new(Poll::new(function))
    }
}

impl<F, In, R, C, S> Step<Batch<F, In, R, C, S>>
where
    F: AsyncFn(Vec<In>, &Context<C, S>) -> Result<Vec<Result<R>>> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    /// A step that is handed what is there, at most `max` messages at a time, and says what became
    /// of each, in their order. It waits for more to come only if the flow says so:
    /// `batch: { max: 500, wait: 1s }`. An error of the function is one of all the messages; where
    /// the flow says `batch`, each is then tried again alone, so the one at fault is found.
    pub fn batch(function: F, max: usize) -> Self {
        Self::new(Batch::new(function, max))
    }
}

impl<H: Handler> Step<H> {
    fn new(handler: H) -> Self {
        let name = std::env::args_os().next().and_then(|path| {
            Some(
                std::path::Path::new(&path)
                    .file_stem()?
                    .to_str()?
                    .to_owned(),
            )
        });
        let description = Description {
            name: name.unwrap_or_else(|| "step".to_owned()),
            version: String::new(),
            text: String::new(),
            concurrency: None,
            needs_batch: false,
            ports: BTreeMap::new(),
        };
        Self {
            handler: Rc::new(handler),
            setup: NoSetup,
            description,
        }
    }

    /// Makes the step's state from its configuration, once, before the first message.
    ///
    /// An error refuses the configuration, with its reason.
    pub fn setup<F>(self, setup: F) -> Step<H, With<F>>
    where
        F: AsyncFnOnce(&H::Config) -> Result<H::State>,
    {
        Step {
            handler: self.handler,
            setup: With(setup),
            description: self.description,
        }
    }
}

impl<H: Handler, P> Step<H, P> {
    /// Takes the state as it is, for tests.
    pub(crate) fn made(self, state: H::State) -> Step<H, Made<H::State>> {
        Step {
            handler: self.handler,
            setup: Made(state),
            description: self.description,
        }
    }

    /// Says what the step is, for its manifest: usually
    /// `env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_DESCRIPTION")`.
    pub fn about(mut self, name: &str, version: &str, description: &str) -> Self {
        name.clone_into(&mut self.description.name);
        version.clone_into(&mut self.description.version);
        description.clone_into(&mut self.description.text);
        self
    }

    /// Sets how many messages a flow hands over at a time when it says nothing itself.
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.description.concurrency = Some(concurrency);
        self
    }

    /// Says that it makes something of several messages: a flow that uses it has to say `batch`.
    pub fn needs_batch(mut self) -> Self {
        self.description.needs_batch = true;
        self
    }

    /// Names a further port, and what leaves by it.
    pub fn port<T: JsonSchema>(mut self, name: &str) -> Self {
        self.description
            .ports
            .insert(name.to_owned(), manifest::output_schema_of::<T>());
        self
    }

    /// Returns what the step says of itself.
    pub fn manifest(&self) -> Manifest {
        manifest::manifest(&*self.handler, &self.description)
    }
}

impl<H: Handler, P: Setup<H::Config, H::State>> Step<H, P> {
    /// Runs it: serves the agent that started it, or does what the command line says (`manifest`,
    /// `run-local`, `--help`).
    pub fn run(self) -> ExitCode {
        run::main(self)
    }
}

/// How a step's state is made. Not to be implemented by steps.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "the step has a state that nothing makes",
    note = "add `.setup(async |config: &Config| Ok(State {{ .. }}))` before `.run()`"
)]
pub trait Setup<C, S> {
    fn make(self, config: Arc<C>) -> impl Future<Output = Result<S>>;
}

/// The step has no state.
#[derive(Debug, Clone, Copy)]
pub struct NoSetup;

impl<C> Setup<C, ()> for NoSetup {
    async fn make(self, _: Arc<C>) -> Result<()> {
        Ok(())
    }
}

/// A function makes the step's state.
#[derive(Debug, Clone, Copy)]
pub struct With<F>(F);

impl<C, S, F: AsyncFnOnce(&C) -> Result<S>> Setup<C, S> for With<F> {
    async fn make(self, config: Arc<C>) -> Result<S> {
        (self.0)(&config).await
    }
}

/// The state is there already, in a test.
#[derive(Debug, Clone, Copy)]
pub struct Made<S>(S);

impl<C, S> Setup<C, S> for Made<S> {
    async fn make(self, _: Arc<C>) -> Result<S> {
        Ok(self.0)
    }
}

//! A step, built from a function and run.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use towpath_protocol::manifest::{Kind, Manifest};

use crate::context::Context;
use crate::error::Result;
use crate::handler::{Action, Batch, Handler, Poll};
use crate::input::{Input, Tick};
use crate::manifest::{self, Description};
use crate::registration::{Registering, Registration};
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

impl<F, In, R, C, S> Step<Action<F, In, R, C, S>>
where
    Action<F, In, R, C, S>: Handler<Config = C, State = S>,
{
    /// Makes it a webhook trigger that registers the flow's URL at its source by itself.
    ///
    /// `activate` is called when the flow is applied, and again when the URL or the configuration
    /// changes; what it returns is kept, encrypted, and given back to both functions. `deactivate` is
    /// called before the flow is deleted. Both are called again until they succeed, and both may be
    /// called though the call before succeeded, because nobody may have heard of it: look for what is
    /// there before you make anything. Each call has a minute. Nothing can be emitted.
    ///
    /// The URL takes requests before `activate` is called, so a source may try it at once.
    ///
    /// ```no_run
    /// # use std::process::ExitCode;
    /// # use towpath_step::{Context, Registration, Result, Step};
    /// # use serde_json::Value;
    /// # struct Shop;
    /// # impl Shop {
    /// #     async fn find(&self, _: &str) -> Result<Option<u64>> { Ok(None) }
    /// #     async fn subscribe(&self, _: &str) -> Result<u64> { Ok(1) }
    /// #     async fn change(&self, id: u64, _: &str) -> Result<u64> { Ok(id) }
    /// #     async fn cancel(&self, _: u64) -> Result<()> { Ok(()) }
    /// # }
    /// async fn activate(it: Registration<u64>, ctx: &Context<(), Shop>) -> Result<u64> {
    ///     match (ctx.state.find(&it.url).await?, it.kept) {
    ///         (Some(id), _) => Ok(id),
    ///         (None, Some(old)) => ctx.state.change(old, &it.url).await,
    ///         (None, None) => ctx.state.subscribe(&it.url).await,
    ///     }
    /// }
    ///
    /// async fn deactivate(it: Registration<u64>, ctx: &Context<(), Shop>) -> Result<()> {
    ///     match it.kept.or(ctx.state.find(&it.url).await?) {
    ///         Some(id) => ctx.state.cancel(id).await,
    ///         None => Ok(()),
    ///     }
    /// }
    ///
    /// # async fn event(event: Value, _: &Context<(), Shop>) -> Result<Value> { Ok(event) }
    /// fn main() -> ExitCode {
    ///     Step::webhook(event)
    ///         .registration(activate, deactivate)
    ///         .setup(async |_: &()| Ok(Shop))
    ///         .run()
    /// }
    /// ```
    #[expect(
        clippy::type_complexity,
        reason = "the handler, and the two functions beside it"
    )]
    pub fn registration<A, D, K>(
        self,
        activate: A,
        deactivate: D,
    ) -> Step<Registering<Action<F, In, R, C, S>, A, D, K>>
    where
        A: AsyncFn(Registration<K>, &Context<C, S>) -> Result<K> + 'static,
        D: AsyncFn(Registration<K>, &Context<C, S>) -> Result<()> + 'static,
        K: Serialize + DeserializeOwned + 'static,
    {
        Step {
            handler: Rc::new(Registering::new(self.handler, activate, deactivate)),
            setup: self.setup,
            description: self.description,
        }
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

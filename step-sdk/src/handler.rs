//! The kinds of handlers, behind one trait: how each reads its input and is called.

use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use towpath_protocol::frame;
use towpath_protocol::manifest::Kind;

use crate::context::{About, Context};
use crate::error::{Result, StepError};
use crate::input::{Input, Raw, Tick, decode};
use crate::link::Link;
use crate::registration::{Call, Kept};
use crate::reply::{Recipient, Reply};

/// A handler's work, on one message or on a batch.
#[doc(hidden)]
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T>>>;

/// What the agent hands over.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// A message's body.
    Body(&'a RawValue),
    /// A tick.
    Tick(&'a frame::Tick<'a>),
}

/// What every message of a step shares.
#[doc(hidden)]
#[derive(Debug)]
pub struct Shared<C, S> {
    pub(crate) config: Arc<C>,
    pub(crate) state: Arc<S>,
    pub(crate) link: Arc<Link>,
}

impl<C, S> Shared<C, S> {
    pub(crate) fn context(&self, about: Arc<About>, of_batch: bool) -> Context<C, S> {
        Context::new(
            Arc::clone(&self.config),
            Arc::clone(&self.state),
            Arc::clone(&self.link),
            about,
            of_batch,
        )
    }
}

/// A kind of handler. Implemented by [`Action`], [`Poll`], [`Batch`] and
/// [`Registering`](crate::Registering) only.
#[doc(hidden)]
pub trait Handler: 'static {
    /// `with:`.
    type Config: DeserializeOwned + JsonSchema + 'static;
    /// What setup made.
    type State: 'static;
    /// What is given to the function.
    type Input: 'static;

    fn kind(&self) -> Kind;
    fn input_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema>;
    fn output_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema>;

    /// How many messages are handled together, for a batch handler.
    fn batch_max(&self) -> Option<usize> {
        None
    }

    /// Whether it registers at its source.
    fn registers(&self) -> bool {
        false
    }

    /// Registers at the source, or takes that back.
    fn register(
        self: Rc<Self>,
        _: Call,
        _: Arc<About>,
        _: &Shared<Self::Config, Self::State>,
    ) -> Work<Result<Kept>> {
        let error = StepError::permanent("the step does not register at its source");
        Box::pin(std::future::ready(Err(error)))
    }

    /// Reads what the agent handed over.
    fn read(&self, given: Given<'_>, about: &Arc<About>) -> Result<Self::Input>;

    /// Handles one.
    fn handle(
        self: Rc<Self>,
        input: Self::Input,
        about: Arc<About>,
        shared: &Shared<Self::Config, Self::State>,
    ) -> Work<Result<()>>;

    /// Handles several; the results are in their order.
    fn handle_batch(
        self: Rc<Self>,
        inputs: Vec<Self::Input>,
        abouts: Vec<Arc<About>>,
        shared: &Shared<Self::Config, Self::State>,
    ) -> Work<Vec<Result<()>>> {
        let one_by_one: Vec<_> = inputs
            .into_iter()
            .zip(abouts)
            .map(|(input, about)| Rc::clone(&self).handle(input, about, shared))
            .collect();
        Box::pin(async move {
            let mut results = Vec::with_capacity(one_by_one.len());
            for work in one_by_one {
                results.push(work.await);
            }
            results
        })
    }
}

/// A function that handles each message; also the form of a webhook.
#[derive(Debug)]
pub struct Action<F, In, R, C, S> {
    function: F,
    kind: Kind,
    types: PhantomData<fn(In, C, S) -> R>,
}

impl<F, In, R, C, S> Action<F, In, R, C, S> {
    pub(crate) fn new(function: F, kind: Kind) -> Self {
        Self {
            function,
            kind,
            types: PhantomData,
        }
    }
}

impl<F, In, R, C, S> Handler for Action<F, In, R, C, S>
where
    F: AsyncFn(In, &Context<C, S>) -> Result<R> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    type Config = C;
    type State = S;
    type Input = In;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn input_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(In::schema(generator))
    }

    fn output_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        R::schema(generator)
    }

    fn read(&self, given: Given<'_>, about: &Arc<About>) -> Result<In> {
        match given {
            Given::Body(body) => In::read(Raw { body, about }),
            Given::Tick(_) => Err(StepError::permanent(
                "the step handles messages, and was given a tick: it is not a poll trigger",
            )),
        }
    }

    fn handle(
        self: Rc<Self>,
        input: In,
        about: Arc<About>,
        shared: &Shared<C, S>,
    ) -> Work<Result<()>> {
        let ctx = shared.context(about, false);
        Box::pin(async move {
            let reply = (self.function)(input, &ctx).await?;
            reply
                .send(Recipient {
                    link: &ctx.link,
                    about: &ctx.about,
                })
                .await
        })
    }
}

/// A function that is fired by ticks.
#[derive(Debug)]
pub struct Poll<F, K, R, C, S> {
    function: F,
    types: PhantomData<fn(K, C, S) -> R>,
}

impl<F, K, R, C, S> Poll<F, K, R, C, S> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            function,
            types: PhantomData,
        }
    }
}

impl<F, K, R, C, S> Handler for Poll<F, K, R, C, S>
where
    F: AsyncFn(Tick<K>, &Context<C, S>) -> Result<R> + 'static,
    K: DeserializeOwned + 'static,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    type Config = C;
    type State = S;
    type Input = Tick<K>;

    fn kind(&self) -> Kind {
        Kind::Poll
    }

    fn input_schema(&self, _: &mut SchemaGenerator) -> Option<Schema> {
        None
    }

    fn output_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        R::schema(generator)
    }

    fn read(&self, given: Given<'_>, _: &Arc<About>) -> Result<Tick<K>> {
        let Given::Tick(tick) = given else {
            return Err(StepError::permanent(
                "the step is a poll trigger, which takes ticks, and was given a message",
            ));
        };
        Ok(Tick {
            checkpoint: tick
                .checkpoint
                .map(|raw| decode(raw, "the checkpoint"))
                .transpose()?,
            why: tick.why,
            due: tick.due,
            payload: tick
                .payload
                .map(|raw| decode(raw, "the payload"))
                .transpose()?,
        })
    }

    fn handle(
        self: Rc<Self>,
        input: Tick<K>,
        about: Arc<About>,
        shared: &Shared<C, S>,
    ) -> Work<Result<()>> {
        let ctx = shared.context(about, false);
        Box::pin(async move {
            let reply = (self.function)(input, &ctx).await?;
            reply
                .send(Recipient {
                    link: &ctx.link,
                    about: &ctx.about,
                })
                .await
        })
    }
}

/// A function that handles several messages together, each with its own fate.
#[derive(Debug)]
pub struct Batch<F, In, R, C, S> {
    function: F,
    max: usize,
    types: PhantomData<fn(In, C, S) -> R>,
}

impl<F, In, R, C, S> Batch<F, In, R, C, S> {
    pub(crate) fn new(function: F, max: usize) -> Self {
        Self {
            function,
            max: max.max(1),
            types: PhantomData,
        }
    }
}

impl<F, In, R, C, S> Handler for Batch<F, In, R, C, S>
where
    F: AsyncFn(Vec<In>, &Context<C, S>) -> Result<Vec<Result<R>>> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    type Config = C;
    type State = S;
    type Input = In;

    fn kind(&self) -> Kind {
        Kind::Action
    }

    fn input_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(In::schema(generator))
    }

    fn output_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        R::schema(generator)
    }

    fn batch_max(&self) -> Option<usize> {
        Some(self.max)
    }

    fn read(&self, given: Given<'_>, about: &Arc<About>) -> Result<In> {
        match given {
            Given::Body(body) => In::read(Raw { body, about }),
            Given::Tick(_) => Err(StepError::permanent(
                "the step handles messages, and was given a tick: it is not a poll trigger",
            )),
        }
    }

    fn handle(
        self: Rc<Self>,
        input: In,
        about: Arc<About>,
        shared: &Shared<C, S>,
    ) -> Work<Result<()>> {
        let results = self.handle_batch(vec![input], vec![about], shared);
        Box::pin(async move { results.await.pop().unwrap_or(Ok(())) })
    }

    fn handle_batch(
        self: Rc<Self>,
        inputs: Vec<In>,
        abouts: Vec<Arc<About>>,
        shared: &Shared<C, S>,
    ) -> Work<Vec<Result<()>>> {
        let Some(first) = abouts.first() else {
            return Box::pin(async { Vec::new() });
        };
        let ctx = shared.context(Arc::clone(first), true);
        Box::pin(async move {
            let replies = (self.function)(inputs, &ctx).await;
            let replies = match replies {
                Ok(replies) if replies.len() == abouts.len() => replies,
                Ok(replies) => {
                    let error = StepError::retry(format!(
                        "the batch handler gave {} results for {} messages",
                        replies.len(),
                        abouts.len()
                    ));
                    return abouts.iter().map(|_| Err(error.clone())).collect();
                }
                Err(error) => return abouts.iter().map(|_| Err(error.clone())).collect(),
            };
            let mut results = Vec::with_capacity(abouts.len());
            for (reply, about) in replies.into_iter().zip(&abouts) {
                results.push(match reply {
                    Ok(reply) => {
                        reply
                            .send(Recipient {
                                link: &ctx.link,
                                about,
                            })
                            .await
                    }
                    Err(error) => Err(error),
                });
            }
            results
        })
    }
}

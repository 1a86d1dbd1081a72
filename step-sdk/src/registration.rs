//! A webhook trigger that registers the flow's URL at its source by itself.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use schemars::{Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use towpath_protocol::KEPT_BYTES_MAX;
use towpath_protocol::manifest::Kind;

use crate::context::{About, Context};
use crate::error::{Result, StepError};
use crate::handler::{Given, Handler, Shared, Work};
use crate::input::decode;

/// What is registered at the source, or is to be.
///
/// `K` is the type of what the step needs to know of it later: the id that the source gave it, a secret
/// with which the source signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration<K> {
    /// The URL to which the source is to send its events; of what is to be taken back, the one that
    /// was registered last.
    pub url: String,
    /// What the function that registered returned last; none if it never did, or if nobody heard of it.
    pub kept: Option<K>,
}

/// A call to register, or to take that back.
#[doc(hidden)]
#[derive(Debug)]
pub struct Call {
    pub(crate) act: Act,
    pub(crate) url: String,
    pub(crate) kept: Option<Box<RawValue>>,
}

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Register.
    Activate,
    /// Take back what is registered.
    Deactivate,
}

/// What is to be kept, of a call that registered.
pub(crate) type Kept = Option<Box<RawValue>>;

/// A handler with the two functions that register and take that back.
#[derive(Debug)]
pub struct Registering<H, A, D, K> {
    handler: Rc<H>,
    activate: A,
    deactivate: D,
    types: PhantomData<fn(K)>,
}

impl<H, A, D, K> Registering<H, A, D, K> {
    pub(crate) fn new(handler: Rc<H>, activate: A, deactivate: D) -> Self {
        Self {
            handler,
            activate,
            deactivate,
            types: PhantomData,
        }
    }
}

impl<H, A, D, K> Handler for Registering<H, A, D, K>
where
    H: Handler,
    A: AsyncFn(Registration<K>, &Context<H::Config, H::State>) -> Result<K> + 'static,
    D: AsyncFn(Registration<K>, &Context<H::Config, H::State>) -> Result<()> + 'static,
    K: Serialize + DeserializeOwned + 'static,
{
    type Config = H::Config;
    type State = H::State;
    type Input = H::Input;

    fn kind(&self) -> Kind {
        self.handler.kind()
    }

    fn input_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        self.handler.input_schema(generator)
    }

    fn output_schema(&self, generator: &mut SchemaGenerator) -> Option<Schema> {
        self.handler.output_schema(generator)
    }

    fn registers(&self) -> bool {
        true
    }

    fn read(&self, given: Given<'_>, about: &Arc<About>) -> Result<H::Input> {
        self.handler.read(given, about)
    }

    fn handle(
        self: Rc<Self>,
        input: H::Input,
        about: Arc<About>,
        shared: &Shared<H::Config, H::State>,
    ) -> Work<Result<()>> {
        Rc::clone(&self.handler).handle(input, about, shared)
    }

    fn register(
        self: Rc<Self>,
        call: Call,
        about: Arc<About>,
        shared: &Shared<H::Config, H::State>,
    ) -> Work<Result<Kept>> {
        let ctx = shared.context(about, false);
        Box::pin(async move {
            let kept = call.kept.as_deref();
            let registration = Registration {
                url: call.url,
                kept: kept.map(|kept| decode(kept, "what was kept")).transpose()?,
            };
            match call.act {
                Act::Activate => keep(&(self.activate)(registration, &ctx).await?),
                Act::Deactivate => {
                    (self.deactivate)(registration, &ctx).await?;
                    Ok(None)
                }
            }
        })
    }
}

fn keep<K: Serialize>(value: &K) -> Result<Kept> {
    let kept = to_raw_value(value).map_err(|error| {
        StepError::permanent(format!("what is to be kept cannot be JSON: {error}"))
    })?;
    let bytes = kept.get().len();
    if bytes > KEPT_BYTES_MAX {
        return Err(StepError::permanent(format!(
            "what is to be kept has {bytes} bytes, and at most {KEPT_BYTES_MAX} are allowed"
        )));
    }
    Ok((kept.get() != "null").then_some(kept))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::TestRun;
    use crate::{Fate, Step};

    const URL: &str = "http://here/hooks/f/k";

    async fn event(event: Value, _: &Context<()>) -> Result<Value> {
        Ok(event)
    }

    async fn activate(it: Registration<u64>, ctx: &Context<()>) -> Result<u64> {
        assert_eq!(it.url, URL);
        ctx.log_info("registering");
        it.kept.map_or(Ok(1), |kept| Ok(kept + 1))
    }

    async fn deactivate(it: Registration<u64>, _: &Context<()>) -> Result<()> {
        match it.kept {
            Some(13) => Err(StepError::permanent("the source says 401")),
            _ => Ok(()),
        }
    }

    #[tokio::test]
    async fn a_step_registers_keeps_what_it_needs_and_takes_it_back() {
        let step = || TestRun::of(Step::webhook(event).registration(activate, deactivate));
        assert!(step().activate(URL).await.is_done());
        let again = step().activate(URL).kept(json!(7)).await;
        assert_eq!(again.kept, Some(json!(8)));
        assert_eq!(again.logs[0].text, "registering");
        assert!(step().deactivate(URL).kept(json!(7)).await.is_done());
        let refused = step().deactivate(URL).kept(json!(13)).await;
        assert_eq!(refused.fate(), Some(Fate::Permanent));
        let odd = step().activate(URL).kept(json!("seven")).await;
        assert!(
            odd.reason().contains("cannot read what was kept"),
            "{odd:?}"
        );
        let handled = step().input(json!({"order": 7})).await;
        assert_eq!(handled.bodies(), [&json!({"order": 7})]);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let much = async |_: Registration<String>, _: &Context<()>| Ok("x".repeat(KEPT_BYTES_MAX));
        let nothing = async |_: Registration<String>, _: &Context<()>| Ok(());
        let step = Step::webhook(event).registration(much, nothing);
        let outcome = TestRun::of(step).activate(URL).await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent));
        assert!(outcome.reason().contains("at most 65536"), "{outcome:?}");
    }

    #[tokio::test]
    async fn the_manifest_says_which_step_registers() {
        let plain = Step::webhook(event);
        assert!(!plain.manifest().registers);
        assert!(
            plain
                .registration(activate, deactivate)
                .manifest()
                .registers
        );
        let outcome = TestRun::of(Step::webhook(event)).activate(URL).await;
        assert!(
            outcome.reason().contains("does not register"),
            "{outcome:?}"
        );
    }
}

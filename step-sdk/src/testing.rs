//! The test kit: runs a handler on inputs, with no broker and no container.
//!
//! The handler runs in the same loop as in a container, and every frame it writes is read back, so
//! what a test sees is what an agent would see. Everything is a value to assert on.
//!
//! ```
//! use serde_json::json;
//! use towpath_step::testing::TestRun;
//! use towpath_step::{Context, Fate, Result, ResultExt};
//!
//! async fn double(text: String, ctx: &Context<()>) -> Result<i64> {
//!     ctx.log_info(format!("doubling {text}"));
//!     Ok(2 * text.parse::<i64>().permanent()?)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let outcome = TestRun::action(double).input(json!("21")).await;
//! assert!(outcome.is_done());
//! assert_eq!(outcome.bodies(), [&json!(42)]);
//! assert_eq!(outcome.logs[0].text, "doubling 21");
//!
//! let outcome = TestRun::action(double).input(json!("x")).await;
//! assert_eq!(outcome.fate(), Some(Fate::Permanent));
//! # });
//! ```

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use towpath_protocol::frame::{Emit, Failed, Log};
use towpath_protocol::{DEFAULT_PORT, MessageId};
use tracing::instrument::WithSubscriber;

use crate::context::Context;
use crate::error::{Fate, Result};
use crate::handler::{Action, Batch, Handler, Poll};
use crate::input::{Input, Tick, Why};
use crate::logs;
use crate::outbox::Outbox;
use crate::rehearsal::{Line, Part, Said, rehearse};
use crate::reply::Reply;
use crate::step::{Made, NoSetup, Setup, Step};

/// A step on trial.
#[derive(Debug)]
#[must_use = "nothing runs until an input is given and awaited"]
pub struct TestRun<H, P = NoSetup> {
    step: Step<H, P>,
    part: Part,
}

impl<F, In, R, C, S> TestRun<Action<F, In, R, C, S>>
where
    F: AsyncFn(In, &Context<C, S>) -> Result<R> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    /// Tries an action, or the handler of a webhook.
    pub fn action(function: F) -> Self {
        Self::of(Step::action(function))
    }
}

impl<F, K, R, C, S> TestRun<Poll<F, K, R, C, S>>
where
    F: AsyncFn(Tick<K>, &Context<C, S>) -> Result<R> + 'static,
    K: DeserializeOwned + 'static,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    /// Tries a poll trigger.
    pub fn poll(function: F) -> Self {
        Self::of(Step::poll(function))
    }
}

impl<F, In, R, C, S> TestRun<Batch<F, In, R, C, S>>
where
    F: AsyncFn(Vec<In>, &Context<C, S>) -> Result<Vec<Result<R>>> + 'static,
    In: Input,
    R: Reply,
    C: DeserializeOwned + JsonSchema + 'static,
    S: 'static,
{
    /// Tries a batch handler.
    pub fn batch(function: F, max: usize) -> Self {
        Self::of(Step::batch(function, max))
    }
}

impl<H: Handler, P> TestRun<H, P> {
    /// Tries a step in its full form, with its setup and ports.
    pub fn of(step: Step<H, P>) -> Self {
        let part = Part {
            flow: "test".to_owned(),
            step: "test".to_owned(),
            concurrency: 64,
            config: RawValue::NULL.to_owned(),
        };
        Self { step, part }
    }

    /// Sets the configuration; `null` if not set.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is written as `json!({..})`"
    )]
    pub fn config(mut self, config: Value) -> Self {
        self.part.config = raw(&config);
        self
    }

    /// Gives the state instead of making it: a stand-in for a client.
    pub fn state(self, state: H::State) -> TestRun<H, Made<H::State>> {
        TestRun {
            step: self.step.made(state),
            part: self.part,
        }
    }

    /// Sets how many messages are in the step's hands at a time.
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.part.concurrency = concurrency.max(1);
        self
    }

    /// Names the flow and the step.
    pub fn named(mut self, flow: &str, step: &str) -> Self {
        flow.clone_into(&mut self.part.flow);
        step.clone_into(&mut self.part.step);
        self
    }

    /// Gives it one message. Await it for its [`Outcome`].
    pub fn input(self, body: Value) -> Trial<H, P> {
        Trial {
            run: self,
            given: Given::message(body),
        }
    }

    /// Calls it to register a URL at its source. Await it for its [`Outcome`].
    pub fn activate(self, url: &str) -> Trial<H, P> {
        Trial {
            run: self,
            given: Given::call("activate", url),
        }
    }

    /// Calls it to take back what it registered. Await it for its [`Outcome`].
    pub fn deactivate(self, url: &str) -> Trial<H, P> {
        Trial {
            run: self,
            given: Given::call("deactivate", url),
        }
    }

    /// Fires it. Await it for its [`Outcome`].
    pub fn tick(self) -> Trial<H, P> {
        Trial {
            run: self,
            given: Given::tick(),
        }
    }
}

impl<H: Handler, P: Setup<H::Config, H::State>> TestRun<H, P> {
    /// Gives it many messages, and returns what became of each. A batch handler is handed as many
    /// together as it takes and may have in its hands.
    pub async fn inputs(self, bodies: impl IntoIterator<Item = Value>) -> Vec<Outcome> {
        Box::pin(self.play(bodies.into_iter().map(Given::message).collect()))
            .await
            .unwrap_or_else(|reason| panic!("the step refused its configuration: {reason}"))
    }

    /// Returns why the step refuses its configuration; none if it takes it.
    pub async fn refusal(self) -> Option<String> {
        Box::pin(self.play(Vec::new())).await.err()
    }

    async fn play(self, given: Vec<Given>) -> Result<Vec<Outcome>, String> {
        let mut outcomes: Vec<_> = given.iter().map(|_| Outcome::default()).collect();
        let mut refused = None;
        let (sender, lines) = mpsc::channel(given.len().max(1));
        let together = self.step.handler.batch_max().unwrap_or(1);
        let together = together.min(self.part.concurrency as usize);
        let count = given.len();
        for (index, given) in given.into_iter().enumerate() {
            let id = id_of(index);
            let mut text = given.frame(id);
            let left = together.min(count - index);
            if index % together == 0 && left > 1 {
                text = format!("{}\n{text}", json!({"batch": {"count": left}}));
            }
            sender
                .try_send(Line { id, text })
                .expect("there is room for all of them");
        }
        drop(sender);
        let outbox = Arc::new(Outbox::default());
        let filter = logs::subscriber(&outbox, Some("trace"));
        let hear = |said: Said<'_>| match said {
            Said::Refused(reason) => refused = Some(reason.to_owned()),
            Said::Emit(emit) => outcome(&mut outcomes, emit.id).outputs.push(emit.into()),
            Said::Done(id) => outcome(&mut outcomes, id).settled = true,
            Said::Activated(activated) => {
                let outcome = outcome(&mut outcomes, activated.id);
                outcome.settled = true;
                outcome.kept = activated
                    .kept
                    .map(|kept| serde_json::from_str(kept.get()).expect("it was JSON"));
            }
            Said::Failed(failed) => {
                let outcome = outcome(&mut outcomes, failed.id);
                outcome.settled = true;
                outcome.failure = Some(failed.into());
            }
            Said::Checkpoint(checkpoint) => {
                let value = serde_json::from_str(checkpoint.value.get()).expect("it was JSON");
                outcome(&mut outcomes, checkpoint.id)
                    .checkpoints
                    .push(value);
            }
            Said::Log(log) => match log.id {
                Some(id) => outcome(&mut outcomes, id).logs.push(log.into()),
                None => outcomes
                    .iter_mut()
                    .for_each(|outcome| outcome.logs.push(log.into())),
            },
        };
        let playing = rehearse(self.step, &self.part, &outbox, lines, hear);
        // On the heap: a test would carry it on its stack.
        Box::pin(playing).with_subscriber(filter).await;
        refused.map_or(Ok(outcomes), Err)
    }
}

/// One message or tick for a step on trial. Await it for its [`Outcome`].
#[derive(Debug)]
#[must_use = "nothing runs until it is awaited"]
pub struct Trial<H, P> {
    run: TestRun<H, P>,
    given: Given,
}

impl<H, P> Trial<H, P> {
    /// Says which try it is; 1 if not said.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.given
            .fields
            .insert("attempt".to_owned(), attempt.into());
        self
    }

    /// Says that somebody may have handled the message before: the handler sees it as
    /// [`Context::is_uncertain`].
    pub fn uncertain(mut self) -> Self {
        self.given
            .fields
            .insert("uncertain".to_owned(), true.into());
        self
    }

    /// Adds a header of the message.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.given.headers.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the message's ordering key.
    pub fn key(mut self, key: &str) -> Self {
        self.given.fields.insert("key".to_owned(), key.into());
        self
    }

    /// Sets the checkpoint that a tick brings.
    pub fn checkpoint(mut self, checkpoint: Value) -> Self {
        self.given
            .fields
            .insert("checkpoint".to_owned(), checkpoint);
        self
    }

    /// Sets what was kept when the step registered before.
    pub fn kept(mut self, kept: Value) -> Self {
        self.given.fields.insert("kept".to_owned(), kept);
        self
    }

    /// Sets the payload of a tick, and says that a person asked for it.
    pub fn payload(mut self, payload: Value) -> Self {
        self.given.fields.insert("payload".to_owned(), payload);
        self.why(Why::Manual)
    }

    /// Says why a tick fires; its schedule if not said.
    pub fn why(mut self, why: Why) -> Self {
        self.given.fields.insert("why".to_owned(), json!(why));
        self
    }
}

impl<H: Handler, P: Setup<H::Config, H::State> + 'static> IntoFuture for Trial<H, P> {
    type Output = Outcome;
    type IntoFuture = Pin<Box<dyn Future<Output = Outcome>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let outcomes = self.run.play(vec![self.given]).await;
            outcomes
                .unwrap_or_else(|reason| panic!("the step refused its configuration: {reason}"))
                .pop()
                .expect("one outcome for one input")
        })
    }
}

/// What became of a message or a tick, and what the handler did meanwhile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What it emitted, in order. An agent drops the outputs of a message that failed.
    pub outputs: Vec<Emitted>,
    /// What it logged, in order.
    pub logs: Vec<LogLine>,
    /// What it saved as checkpoints, in order.
    pub checkpoints: Vec<Value>,
    /// What is to be kept, if it registered.
    pub kept: Option<Value>,
    /// Why it was not handled; none if it was.
    pub failure: Option<Failure>,
    settled: bool,
}

impl Outcome {
    /// Returns whether it was handled.
    pub fn is_done(&self) -> bool {
        self.settled && self.failure.is_none()
    }

    /// Returns the fate of what was not handled.
    pub fn fate(&self) -> Option<Fate> {
        self.failure.as_ref().map(|failure| failure.fate)
    }

    /// Returns why it was not handled, in a sentence; empty if it was.
    pub fn reason(&self) -> &str {
        self.failure.as_ref().map_or("", |failure| &failure.reason)
    }

    /// Returns the bodies of all outputs.
    pub fn bodies(&self) -> Vec<&Value> {
        self.outputs.iter().map(|output| &output.body).collect()
    }

    /// Returns the bodies of the outputs that left by a port.
    pub fn bodies_of(&self, port: &str) -> Vec<&Value> {
        let of_port = self.outputs.iter().filter(|output| output.port == port);
        of_port.map(|output| &output.body).collect()
    }
}

/// An output.
#[derive(Debug, Clone, PartialEq)]
pub struct Emitted {
    /// The port it left by.
    pub port: String,
    /// The data.
    pub body: Value,
    /// Its ordering key, if it named one.
    pub key: Option<String>,
    /// What the source calls it.
    pub source_id: Option<String>,
    /// What travels beside the body.
    pub headers: BTreeMap<String, String>,
    /// Which of the inputs it was made from, by their numbers from 0: the one it is an outcome of
    /// first.
    pub of: Vec<usize>,
}

impl From<&Emit<'_>> for Emitted {
    fn from(emit: &Emit<'_>) -> Self {
        let headers = emit.headers.map_or("{}", RawValue::get);
        Self {
            port: emit.port.as_deref().unwrap_or(DEFAULT_PORT).to_owned(),
            body: serde_json::from_str(emit.body.get()).expect("a body is JSON"),
            key: emit.key.as_deref().map(str::to_owned),
            source_id: emit.source_id.as_deref().map(str::to_owned),
            headers: serde_json::from_str(headers).expect("headers are strings"),
            of: std::iter::once(emit.id)
                .chain(emit.with.iter().copied())
                .map(index_of)
                .collect(),
        }
    }
}

/// A log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The line.
    pub text: String,
}

impl From<&Log<'_>> for LogLine {
    fn from(log: &Log<'_>) -> Self {
        Self {
            level: log.level.to_string(),
            text: log.text.to_string(),
        }
    }
}

/// Why a message was not handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What is to become of it.
    pub fate: Fate,
    /// When to try again, if it says so.
    pub delay: Option<Duration>,
    /// Why, in a sentence.
    pub reason: String,
    /// The causes, outermost first.
    pub chain: Vec<String>,
}

impl From<&Failed<'_>> for Failure {
    fn from(failed: &Failed<'_>) -> Self {
        Self {
            fate: failed.fate,
            delay: failed.delay_ms.map(Duration::from_millis),
            reason: failed.reason.to_string(),
            chain: failed.chain.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What a trial hands over.
#[derive(Debug)]
struct Given {
    kind: &'static str,
    fields: Map<String, Value>,
    headers: Map<String, Value>,
}

impl Given {
    fn message(body: Value) -> Self {
        let lineage = json!({"run": id_of(0), "version": 1, "at": 0});
        let fields = [("lineage".to_owned(), lineage), ("body".to_owned(), body)];
        Self {
            kind: "message",
            fields: Map::from_iter(fields),
            headers: Map::new(),
        }
    }

    fn tick() -> Self {
        let fields = [
            ("attempt", json!(1)),
            ("why", json!(Why::Schedule)),
            ("due", json!(0)),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        Self {
            kind: "tick",
            fields: Map::from_iter(fields),
            headers: Map::new(),
        }
    }

    fn call(kind: &'static str, url: &str) -> Self {
        Self {
            kind,
            fields: Map::from_iter([("url".to_owned(), url.into())]),
            headers: Map::new(),
        }
    }

    fn frame(self, id: MessageId) -> String {
        let mut fields = self.fields;
        fields.insert("id".to_owned(), json!(id));
        if !self.headers.is_empty() {
            fields.insert("headers".to_owned(), Value::Object(self.headers));
        }
        json!({self.kind: fields}).to_string()
    }
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).expect("a value is JSON")
}

fn id_of(index: usize) -> MessageId {
    MessageId::from_bytes((index as u128 + 1).to_be_bytes())
}

fn outcome(outcomes: &mut [Outcome], id: MessageId) -> &mut Outcome {
    &mut outcomes[index_of(id)]
}

fn index_of(id: MessageId) -> usize {
    let index = usize::try_from(u128::from_be_bytes(*id.as_bytes()) - 1);
    index.expect("ids are small numbers here")
}

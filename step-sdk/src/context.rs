//! What a handler knows beside its input, and what it can do while it works.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use towpath_protocol::MessageId;
use towpath_protocol::message::Lineage;

use crate::error::{Result, StepError};
use crate::input::Item;
use crate::link::Link;
use crate::write::Envelope;

/// What a handler is given beside its input.
///
/// `C` is the type of the step's configuration (the flow's `with:`), `S` of its state, which
/// [`Step::setup`](crate::Step::setup) made once.
#[derive(Debug)]
pub struct Context<C, S = ()> {
    /// The step's configuration: `with:` in the flow, secrets filled in.
    pub config: Arc<C>,
    /// What [`Step::setup`](crate::Step::setup) made: clients, pools, compiled expressions.
    pub state: Arc<S>,
    pub(crate) link: Arc<Link>,
    pub(crate) about: Arc<About>,
    /// A batch has one context for many messages.
    pub(crate) of_batch: bool,
    checkpoints: AtomicU64,
}

/// What is known of one message.
#[doc(hidden)]
#[derive(Debug)]
pub struct About {
    pub(crate) id: MessageId,
    pub(crate) attempt: u32,
    pub(crate) rebounds: u32,
    pub(crate) is_uncertain: bool,
    pub(crate) key: Option<Box<str>>,
    pub(crate) lineage: Option<Box<str>>,
    pub(crate) headers_raw: Option<Box<str>>,
    /// How many outputs it has emitted.
    pub(crate) emitted: AtomicU64,
    headers: OnceLock<BTreeMap<String, String>>,
}

impl About {
    pub(crate) fn new(id: MessageId, attempt: u32) -> Self {
        Self {
            id,
            attempt,
            rebounds: 0,
            is_uncertain: false,
            key: None,
            lineage: None,
            headers_raw: None,
            emitted: AtomicU64::new(0),
            headers: OnceLock::new(),
        }
    }

    pub(crate) fn headers(&self) -> &BTreeMap<String, String> {
        self.headers.get_or_init(|| {
            let raw = self.headers_raw.as_deref().unwrap_or("{}");
            serde_json::from_str(raw).unwrap_or_default()
        })
    }
}

impl<C, S> Context<C, S> {
    pub(crate) fn new(
        config: Arc<C>,
        state: Arc<S>,
        link: Arc<Link>,
        about: Arc<About>,
        of_batch: bool,
    ) -> Self {
        Self {
            config,
            state,
            link,
            about,
            of_batch,
            checkpoints: AtomicU64::new(0),
        }
    }

    /// Emits an output while working, instead of returning it.
    ///
    /// Waits while the agent is held back, so memory stays bounded however much is emitted.
    /// A value that is `null` as JSON emits nothing.
    pub async fn emit<T: Serialize>(&self, value: T) -> Result<()> {
        self.output(value).send().await
    }

    /// Emits an output by a port.
    pub async fn emit_to<T: Serialize>(&self, port: &str, value: T) -> Result<()> {
        self.output(value).port(port).send().await
    }

    /// Begins an output that says more than its body.
    ///
    /// ```
    /// # use towpath_step::{Context, Result};
    /// # async fn handle(_: (), ctx: &Context<()>) -> Result<()> {
    /// ctx.output("Ada").key("customer-7").source_id("customer-7@2026-11-21").send().await
    /// # }
    /// ```
    pub fn output<T: Serialize>(&self, value: T) -> Output<'_, T> {
        Output {
            link: &self.link,
            about: &self.about,
            lead: (!self.of_batch).then_some(self.about.id),
            with: Vec::new(),
            envelope: Envelope::default(),
            headers: Vec::new(),
            value,
        }
    }

    /// Saves a trigger's position in its source, and returns when it is durable.
    ///
    /// It is saved after everything emitted before it is confirmed by the broker, so a trigger that
    /// is cut off begins again where nothing is missing. At most 64 KiB of JSON.
    pub async fn checkpoint<K: Serialize + ?Sized>(&self, value: &K) -> Result<()> {
        let number = self.checkpoints.fetch_add(1, Ordering::Relaxed) + 1;
        self.link.checkpoint(self.about.id, number, value).await
    }

    /// Returns the message's id. For a tick it is the id of the run.
    pub fn message_id(&self) -> MessageId {
        self.about.id
    }

    /// Returns a text that is the same whenever this step handles this message, and different for
    /// every other message: what to send as `Idempotency-Key`.
    pub fn idempotency_key(&self) -> String {
        self.about.id.to_string()
    }

    /// Returns which try at the message this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.about.attempt
    }

    /// Returns how often this step said "later" of the message.
    pub fn rebounds(&self) -> u32 {
        self.about.rebounds
    }

    /// Returns whether somebody may have handled the message before, in part or in whole, without
    /// anybody knowing: an attempt failed half-way, a person replayed it, or a container died with
    /// it in hand. That is so for few messages, so what is done about it costs little.
    ///
    /// A step that writes to something that cannot recognise a repetition by itself (see
    /// [`Self::idempotency_key`]) asks the target first when this is true, and writes only what is
    /// not there. Together with `once: true` in the flow, each message is then written exactly
    /// once.
    ///
    /// ```
    /// # use towpath_step::{Context, Result};
    /// # async fn is_there(_: &str) -> Result<bool> { Ok(true) }
    /// # async fn create(_: &str) -> Result<()> { Ok(()) }
    /// async fn handle(order: String, ctx: &Context<()>) -> Result<()> {
    ///     if ctx.is_uncertain() && is_there(&ctx.idempotency_key()).await? {
    ///         return Ok(());
    ///     }
    ///     create(&order).await
    /// }
    /// ```
    pub fn is_uncertain(&self) -> bool {
        self.about.is_uncertain
    }

    /// Returns the message's ordering key.
    pub fn key(&self) -> Option<&str> {
        self.about.key.as_deref()
    }

    /// Returns what the step before said beside the body. For a webhook: `http.method`,
    /// `http.path`, `http.query` and the chosen headers of the request.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        self.about.headers()
    }

    /// Returns where the message comes from: run, version of the flow, connection, time of entry.
    /// None for a tick, which is where a run begins.
    pub fn lineage(&self) -> Option<Lineage> {
        self.about
            .lineage
            .as_deref()
            .and_then(|raw| serde_json::from_str(raw).ok())
    }

    /// Returns the name of the flow.
    pub fn flow(&self) -> &str {
        &self.link.hello.flow
    }

    /// Returns the step's id in the flow.
    pub fn step(&self) -> &str {
        &self.link.hello.step
    }

    /// Returns the number of this replica, from 1.
    pub fn replica(&self) -> u32 {
        self.link.hello.replica
    }

    /// Returns how many bytes an output may have as JSON.
    pub fn body_bytes_max(&self) -> usize {
        self.link.hello.body_bytes_max
    }

    /// Returns how long the step has for one message; none is without limit.
    pub fn timeout(&self) -> Option<Duration> {
        let timeout_ms = self.link.hello.timeout_ms;
        (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms))
    }

    /// Returns whether the replica is to leave, or the trigger to come to an end: one that saves
    /// checkpoints may stop early and return, the next tick goes on where it left off.
    pub fn is_draining(&self) -> bool {
        self.link.is_ending()
    }

    /// Waits until [`Self::is_draining`] is true: what a trigger that runs for ever (`stream: true`
    /// in the flow) waits for beside its source.
    ///
    /// ```
    /// # use towpath_step::{Context, Result, Tick};
    /// # struct Source;
    /// # impl Source { async fn next(&mut self) -> Result<u64> { Ok(7) } }
    /// # async fn follow(tick: Tick<u64>, ctx: &Context<()>, mut source: Source) -> Result<()> {
    /// loop {
    ///     let change = tokio::select! {
    ///         change = source.next() => change?,
    ///         () = ctx.draining() => return Ok(()),
    ///     };
    ///     ctx.output(change).source_id(&change.to_string()).send().await?;
    ///     ctx.checkpoint(&change).await?;
    /// }
    /// # }
    /// ```
    pub async fn draining(&self) {
        self.link.ending().await;
    }

    /// Logs an error that belongs to this message. The macros of `tracing` do the same.
    pub fn log_error(&self, text: impl std::fmt::Display) {
        self.link
            .log(Some(self.about.id), "error", &text.to_string());
    }

    /// Logs a warning that belongs to this message.
    pub fn log_warn(&self, text: impl std::fmt::Display) {
        self.link
            .log(Some(self.about.id), "warn", &text.to_string());
    }

    /// Logs a line that belongs to this message.
    pub fn log_info(&self, text: impl std::fmt::Display) {
        self.link
            .log(Some(self.about.id), "info", &text.to_string());
    }

    /// Logs a detail that belongs to this message.
    pub fn log_debug(&self, text: impl std::fmt::Display) {
        self.link
            .log(Some(self.about.id), "debug", &text.to_string());
    }
}

/// An output that is about to be emitted; see [`Context::output`].
#[derive(Debug)]
#[must_use = "an output is emitted by `.send().await`"]
pub struct Output<'a, T> {
    link: &'a Link,
    about: &'a About,
    /// The message it was made from; none if that is still to be said, in a batch.
    lead: Option<MessageId>,
    /// Further messages that it was made from.
    with: Vec<MessageId>,
    envelope: Envelope<'a>,
    headers: Vec<(String, String)>,
    value: T,
}

impl<'a, T: Serialize> Output<'a, T> {
    /// Says which messages of a batch it was made from: it leaves when all of them are done, and none
    /// of them is settled before it is safe. If one of them fails, it is void, and the others are
    /// handed over once more. Its lineage, and its key unless it has its own, are those of the first.
    ///
    /// ```
    /// # use towpath_step::{Context, Item, Result};
    /// async fn total(orders: Vec<Item<u64>>, ctx: &Context<()>) -> Result<Vec<Result<()>>> {
    ///     let cents: u64 = orders.iter().map(|order| order.body).sum();
    ///     ctx.output(cents).of(&orders).send().await?;
    ///     Ok(orders.iter().map(|_| Ok(())).collect())
    /// }
    /// ```
    pub fn of<'i, B: 'i>(mut self, items: impl IntoIterator<Item = &'i Item<B>>) -> Self {
        let mut ids = items.into_iter().map(Item::message_id);
        self.lead = ids.next();
        self.with = ids.collect();
        self
    }

    /// Names the port it leaves by; `out` if not named.
    pub fn port(mut self, port: &'a str) -> Self {
        self.envelope.port = Some(port);
        self
    }

    /// Sets its ordering key; the parent's if not set.
    pub fn key(mut self, key: &'a str) -> Self {
        self.envelope.key = Some(key);
        self
    }

    /// For triggers: what the source calls this state of this item, `order-7@2026-11-21T10:00:00Z`.
    /// The same name gives the same message id, so that what is read twice is recognised.
    pub fn source_id(mut self, source_id: &'a str) -> Self {
        self.envelope.source_id = Some(source_id);
        self
    }

    /// Adds a header, which travels beside the body.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Emits it. Waits while the agent is held back.
    pub async fn send(self) -> Result<()> {
        let Some(lead) = self.lead else {
            return Err(StepError::permanent(
                "a batch has many messages: return the outputs of each one, or say which an output was made from with `.of(…)`",
            ));
        };
        let envelope = Envelope {
            with: &self.with,
            headers: &self.headers,
            ..self.envelope
        };
        self.link
            .emit(lead, &self.about.emitted, &envelope, &self.value)
            .await
    }
}

//! Takes requests to webhooks: from a request to a message that the broker has confirmed.
//!
//! # Invariants
//!
//! - `no_id_without_a_confirm`: whoever gets an id can forget the request.
//! - `one_request_alone_waits_for_nothing`; many at a time travel in batches.
//! - `what_cannot_be_taken_now_is_said_at_once`: full, away, draining or stopped, with when to come again.
//! - `a_request_goes_to_exactly_the_branches_that_hold_for_it`, if no step handles it first.
//! - `whoever_does_not_show_who_they_are_learns_nothing` of the flow: not even whether it is stopped.
//! - `a_repeated_request_is_answered_as_the_first_was_and_makes_no_second_message`, also if both come
//!   at the same instant, and if the control plane was started again in between.
//! - `a_request_that_waits_gets_the_answer_of_its_flow`, or learns that there will be none, or after a
//!   time that it was taken.
//! - No credentials of a request travel on: neither its `authorization` nor the key in its URL.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use towpath_flow::Fires;
use towpath_protocol::message::{BATCH_TYPE, Lineage, Message};
use towpath_protocol::{DEFAULT_CONNECTION, DEFAULT_PORT, MessageId, answer};

use crate::broker::BrokerError;
use crate::broker::topology::Names;
use crate::engine::chain;
use crate::live::{LiveFlow, LiveFlows};
use crate::metrics::Metrics;
use crate::reconcile::FlowState;
use crate::schedule::{Clock, trace_of};
use crate::store::Store;
use crate::store::tracking::{RequestRun, WebhookRuns};

mod auth;
mod body;
mod branches;
mod gate;
mod handshake;
mod headers;
mod id;
mod query;
mod rate;
mod recent;
mod reply;
mod turns;
mod waiters;
mod worker;

pub use auth::Refusal;
use branches::{Branches, Way};
pub use gate::{Gate, Gates, KEYS_MAX, UrlKey};
pub use recent::{Entered, Recent};
use turns::{Turn, Turns};
pub use waiters::Waiters;
pub use worker::Worker;
use worker::{Item, Route};

/// The most requests that wait for their confirm. More are asked to come again.
const WAITING_MAX: usize = 1024;

/// How long an answered request is remembered, in milliseconds: a day. Senders that got no answer try
/// again within minutes or hours; later than that the id of the message is still the same.
pub const ANSWERED_MS: u64 = 24 * 3_600_000;

/// A request to a webhook's URL.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// What follows the flow's URL: not the key that is a part of it.
    pub path: String,
    /// Its query, without the question mark.
    pub query: String,
    /// Its headers; names in any case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
}

impl Request {
    /// The value of a header; of one that is there several times, the first.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// What a request is answered with, if it is not refused.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It is a message now, and the broker has it.
    Taken(MessageId),
    /// It waited for what its flow answers: this, in this run.
    Replied(MessageId, answer::Answer),
    /// It only asked whether the URL is ours: this is its challenge.
    Challenge(String),
    /// It only asked whether requests are taken: they are.
    Open,
}

impl Answer {
    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::Taken(_) => 202,
            Self::Replied(_, answer) => answer.status,
            Self::Challenge(_) | Self::Open => 200,
        }
    }
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// There is no such flow, or its trigger is no webhook.
    #[error("there is no webhook here")]
    NoWebhook,
    /// It does not show who sent it.
    #[error("the request does not show who sent it")]
    NotAuthentic {
        /// Why not.
        #[source]
        why: Refusal,
        /// How it would, for `WWW-Authenticate`.
        challenge: &'static str,
    },
    /// A handshake does not know the token.
    #[error("`hub.verify_token` is not the one that the flow has")]
    HandshakeRefused,
    /// Requests cannot be checked.
    #[error("the webhook cannot check requests now; the log of the control plane says why")]
    CannotCheck,
    /// There are more than the flow wants in a time.
    #[error("the flow takes no more than {count} requests in {seconds}s")]
    OverRate {
        /// How many.
        count: u32,
        /// In which time.
        seconds: u64,
        /// In how many seconds there may be another one.
        again: u32,
    },
    /// The flow is stopped.
    #[error("the flow is stopped")]
    Stopped,
    /// The flow takes in nothing new until an operator lets it run again.
    #[error("the flow finishes what it has, and takes in nothing new until it is resumed")]
    Draining,
    /// The body is too large.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// What it may be.
        limit: usize,
    },
    /// The body is not what it says it is.
    #[error("the body is not {what}")]
    NotReadable {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The body is of a kind that cannot be taken.
    #[error("the flow takes no body of type `{content_type}`")]
    UnknownType {
        /// What it is.
        content_type: String,
    },
    /// The flow cannot keep up.
    #[error("the flow has more than it can keep up with")]
    Full,
    /// Too many wait for answers.
    #[error("too many requests wait for their answers")]
    TooManyWait,
    /// It was taken, and its flow gave up what came of it before anything was answered.
    #[error("the flow gave up before it answered; run {run} says why")]
    GivenUp {
        /// The run.
        run: MessageId,
    },
    /// The broker is away, or does not confirm; the request may have been taken.
    #[error("the request cannot be stored now")]
    Unavailable(#[source] Option<BrokerError>),
}

impl IngressError {
    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoWebhook => 404,
            Self::NotAuthentic { .. } => 401,
            Self::HandshakeRefused => 403,
            Self::Stopped => 409,
            Self::TooLarge { .. } => 413,
            Self::NotReadable { .. } => 400,
            Self::UnknownType { .. } => 415,
            Self::Full | Self::OverRate { .. } => 429,
            Self::GivenUp { .. } => 502,
            Self::Draining | Self::CannotCheck | Self::TooManyWait | Self::Unavailable(_) => 503,
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoWebhook => "no_such_webhook",
            Self::NotAuthentic { .. } => "not_authentic",
            Self::HandshakeRefused => "handshake_refused",
            Self::CannotCheck => "webhook_cannot_check",
            Self::OverRate { .. } => "over_rate",
            Self::Stopped => "flow_stopped",
            Self::Draining => "flow_draining",
            Self::TooLarge { .. } => "body_too_large",
            Self::NotReadable { .. } => "body_not_readable",
            Self::UnknownType { .. } => "unknown_content_type",
            Self::Full => "flow_full",
            Self::TooManyWait => "too_many_wait",
            Self::GivenUp { .. } => "given_up",
            Self::Unavailable(_) => "broker_unavailable",
        }
    }

    /// What to say in `Retry-After`, in seconds, if coming again may help.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            // A queue of a hundred thousand is not empty in a moment.
            Self::Full => Some(10),
            Self::TooManyWait | Self::Unavailable(_) => Some(5),
            Self::OverRate { again, .. } => Some(*again),
            // A person decides when it goes on.
            Self::Draining | Self::CannotCheck => Some(60),
            _ => None,
        }
    }
}

/// What the worker says of something that was published.
type Confirm = oneshot::Receiver<Result<(), IngressError>>;

async fn confirmed(answer: Confirm) -> Result<(), IngressError> {
    answer.await.unwrap_or(Err(IngressError::Unavailable(None)))
}

/// Takes requests. Clones share the queue to the [`Worker`].
#[derive(Clone)]
pub struct Ingress {
    names: Names,
    gates: Gates,
    flows: LiveFlows,
    metrics: Metrics,
    clock: Clock,
    body_bytes_max: usize,
    items: mpsc::Sender<Item>,
    recent: Recent,
    branches: Branches,
    store: Store,
    turns: Turns,
    waiters: Waiters,
}

impl Ingress {
    /// Makes an ingress and the worker that publishes for it, which somebody must run. `program` is
    /// the binary that evaluates conditions when it is told to by its first argument: this one.
    #[expect(
        clippy::too_many_arguments,
        reason = "it is made in one place, of all that it needs"
    )]
    pub fn new(
        names: Names,
        gates: Gates,
        flows: LiveFlows,
        metrics: Metrics,
        store: Store,
        clock: Clock,
        body_bytes_max: usize,
        program: PathBuf,
    ) -> (Self, Worker) {
        let (items, receiver) = mpsc::channel(WAITING_MAX);
        let this = Self {
            names,
            gates,
            flows,
            metrics,
            clock,
            body_bytes_max,
            items,
            recent: Recent::default(),
            branches: Branches::new(program),
            store,
            turns: Turns::default(),
            waiters: Waiters::default(),
        };
        let worker = Worker::new(receiver, this.store.clone(), this.clock.clone());
        (this, worker)
    }

    /// What was taken in of late.
    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }

    /// Those who wait for what their flows answer.
    pub fn waiters(&self) -> Waiters {
        self.waiters.clone()
    }

    /// What stands in front of the webhook that a URL leads to; none if the key is wrong.
    pub fn gate(&self, flow: &str, key: &str) -> Option<Arc<Gate>> {
        self.gates.open(flow, key, (self.clock)())
    }

    /// Takes a request in that came through a gate, and answers once the broker has it; if the flow is
    /// to answer, once it did, or after the time that the request waits for that.
    pub async fn accept(&self, gate: &Gate, request: &Request) -> Result<Answer, IngressError> {
        let outcome = self.answer(gate, request).await;
        let status = match &outcome {
            Ok(answer) => answer.status(),
            Err(error) => error.status(),
        };
        self.metrics.webhook(&gate.flow, DEFAULT_CONNECTION, status);
        outcome
    }

    async fn answer(&self, gate: &Gate, request: &Request) -> Result<Answer, IngressError> {
        let until = gate.reply.map(|wait| Instant::now() + wait);
        if request.method == "HEAD" {
            let flow = self.webhook(&gate.flow).ok_or(IngressError::NoWebhook)?;
            return takes(&flow).map(|()| Answer::Open);
        }
        if gate.trouble.is_some() {
            return Err(IngressError::CannotCheck);
        }
        let handshake = gate.handshake.as_ref();
        if let Some(outcome) = handshake.and_then(|it| it.of_meta(request)) {
            return match outcome {
                Ok(challenge) => Ok(Answer::Challenge(challenge)),
                Err(()) => Err(IngressError::HandshakeRefused),
            };
        }
        if let Some(auth) = &gate.auth {
            auth.verify(request, (self.clock)())
                .map_err(|why| IngressError::NotAuthentic {
                    why,
                    challenge: auth.challenge(),
                })?;
        }
        if let Some(challenge) = handshake.and_then(|it| it.of_slack(request)) {
            return Ok(Answer::Challenge(challenge));
        }
        let flow = self.webhook(&gate.flow).ok_or(IngressError::NoWebhook)?;
        let draft = self.draft(&flow, gate, request)?;
        let (id, is_named) = (draft.id, draft.is_named);
        // From here on it is told of every change.
        let waits = match until {
            Some(until) => Some((
                self.waiters.enter(id).ok_or(IngressError::TooManyWait)?,
                until,
            )),
            None => None,
        };
        let turn = if is_named {
            let turn = self.turns.take(id).await;
            if self.is_answered(id).await {
                drop(turn);
                return self.reply(id, waits, true).await;
            }
            Some(turn)
        } else {
            None
        };
        takes(&flow)?;
        self.pass(gate)?;
        let is_taken = self.publish(&flow, draft, turn, waits.is_some()).await?;
        self.reply(id, waits.filter(|_| is_taken), is_named).await
    }

    /// Whether a request was answered before.
    async fn is_answered(&self, id: MessageId) -> bool {
        match self.store.answered(id).await {
            Ok(at) => at.is_some_and(|at| (self.clock)() < at.saturating_add(ANSWERED_MS)),
            Err(error) => {
                // It is taken then: at worst its message is there a second time, with the same id.
                tracing::warn!("cannot look for an answered request: {}", chain(&error));
                false
            }
        }
    }

    fn webhook(&self, flow: &str) -> Option<LiveFlow> {
        self.flows
            .borrow()
            .get(flow)
            .filter(|flow| flow.trigger.fires == Fires::Webhook)
            .cloned()
    }

    fn pass(&self, gate: &Gate) -> Result<(), IngressError> {
        let Some(limiter) = &gate.limiter else {
            return Ok(());
        };
        limiter
            .pass((self.clock)())
            .map_err(|again| IngressError::OverRate {
                count: limiter.rate.count,
                seconds: limiter.rate.per.as_secs(),
                again,
            })
    }

    /// Publishes a message by all of its ways, and remembers a request that has a name. Whoever stops
    /// waiting here does not stop what is published last: its turn lasts until that is remembered.
    /// The run of a request that waits begins before. Returns whether there is a way.
    async fn publish(
        &self,
        flow: &LiveFlow,
        draft: Draft,
        turn: Option<Turn>,
        waits: bool,
    ) -> Result<bool, IngressError> {
        let mut ways = self.ways(flow, draft.line).await?;
        let to: Vec<String> = ways.iter().flat_map(|way| way.steps.clone()).collect();
        let run = waits.then(|| {
            Arc::new(RequestRun {
                run: draft.id,
                flow: flow.name.clone(),
                of: WebhookRuns {
                    version: flow.version,
                    trigger: flow.trigger.step.clone(),
                    takers: to.clone(),
                },
            })
        });
        // The last one has the turn: what is remembered is nowhere missing.
        let last = ways.pop();
        let mut answers = Vec::with_capacity(ways.len());
        for way in ways {
            answers.push(self.send(flow, draft.id, way, None, run.clone())?);
        }
        for answer in answers {
            confirmed(answer).await?;
        }
        match last {
            Some(way) => confirmed(self.send(flow, draft.id, way, turn, run)?).await?,
            None => self.metrics.webhook_unmatched(&flow.name),
        }
        self.recent.push(draft.id, &flow.name, &to, (self.clock)());
        Ok(!to.is_empty())
    }

    fn send(
        &self,
        flow: &LiveFlow,
        id: MessageId,
        way: Way,
        turn: Option<Turn>,
        run: Option<Arc<RequestRun>>,
    ) -> Result<Confirm, IngressError> {
        let (outcome, answer) = oneshot::channel();
        let item = Item {
            route: way.route,
            flow: flow.name.clone(),
            id,
            line: way.line,
            turn,
            run,
            outcome,
        };
        // Not awaited: whoever cannot be served soon is told so now.
        self.items.try_send(item).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => IngressError::Full,
            mpsc::error::TrySendError::Closed(_) => IngressError::Unavailable(None),
        })?;
        Ok(answer)
    }

    /// With an image the trigger's step handles the request first; without one it goes straight to
    /// the steps that follow.
    async fn ways(&self, flow: &LiveFlow, line: String) -> Result<Vec<Way>, IngressError> {
        if !flow.trigger.has_image {
            let now = (self.clock)();
            return self.branches.ways(&self.names, flow, &line, now).await;
        }
        let step = &flow.trigger.step;
        Ok(vec![Way {
            steps: vec![step.clone()],
            route: Route {
                exchange: self.names.steps(),
                key: Names::step_key(&flow.name, step),
                kind: BATCH_TYPE,
            },
            line,
        }])
    }

    fn draft(
        &self,
        flow: &LiveFlow,
        gate: &Gate,
        request: &Request,
    ) -> Result<Draft, IngressError> {
        let body = body::read(
            request.header("content-type"),
            &request.body,
            gate.types.as_ref(),
            self.body_bytes_max,
        )?;
        // The same name again is the same message: a sender that got no answer can ask again.
        let name = id::of(gate.id.as_ref(), request, body.json.get());
        let id = match &name {
            Some(name) => {
                MessageId::from_source(&flow.name, &flow.trigger.step, DEFAULT_PORT, name)
            }
            None => MessageId::from_bytes(uuid::Uuid::now_v7().into_bytes()),
        };
        let trace = request.header("traceparent");
        let trace = trace.filter(|trace| headers::is_traceparent(trace));
        let lineage = Lineage {
            run: id,
            version: flow.version,
            at: (self.clock)(),
            connection: DEFAULT_CONNECTION.to_owned(),
            trace: Some(trace.map_or_else(|| trace_of(id), ToOwned::to_owned)),
        };
        let lineage = raw(&lineage);
        let headers = raw(&headers::of(request, gate.auth.as_ref(), body.is_base64));
        let mut message = Message::root(id, &lineage, &body.json);
        message.headers = Some(&headers);
        let line = serde_json::to_string(&message).expect("a message is JSON");
        Ok(Draft {
            id,
            is_named: name.is_some(),
            line,
        })
    }
}

/// A message that is not yet published.
struct Draft {
    id: MessageId,
    /// Whether its sender gave it a name.
    is_named: bool,
    line: String,
}

/// Whether a flow takes requests now.
fn takes(flow: &LiveFlow) -> Result<(), IngressError> {
    match flow.state {
        FlowState::Running | FlowState::Paused => Ok(()),
        FlowState::Draining => Err(IngressError::Draining),
        FlowState::Stopped => Err(IngressError::Stopped),
    }
}

fn raw<T: serde::Serialize>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("maps of strings and plain structs are JSON")
}

#[cfg(test)]
#[path = "ingress/tests.rs"]
mod tests;

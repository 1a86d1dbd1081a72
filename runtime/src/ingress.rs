//! Takes requests to webhooks: from a request to a message that the broker has confirmed.
//!
//! # Invariants
//!
//! - `no_id_without_a_confirm`: whoever gets an id can forget the request.
//! - `one_request_alone_waits_for_nothing`; many at a time travel in batches.
//! - `what_cannot_be_taken_now_is_said_at_once`: full, away, draining or stopped, with when to come again.
//! - `a_request_goes_to_exactly_the_branches_that_hold_for_it`, if no step handles it first.
//! - No credentials of a request travel on: neither its `authorization` nor the key in its URL.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use towpath_protocol::message::{BATCH_TYPE, Lineage, Message};
use towpath_protocol::{DEFAULT_CONNECTION, DEFAULT_PORT, MessageId};

use crate::broker::BrokerError;
use crate::broker::topology::Names;
use crate::live::{LiveFlow, LiveFlows};
use crate::metrics::Metrics;
use crate::reconcile::FlowState;
use crate::schedule::{Clock, trace_of};

mod body;
mod branches;
mod headers;
mod recent;
mod worker;

use branches::{Branches, Way};
pub use recent::{Entered, Recent};
pub use worker::Worker;
use worker::{Item, Route};

/// The most requests that wait for their confirm. More are asked to come again.
const WAITING_MAX: usize = 1024;

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

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// There is no such flow, or its trigger is no webhook.
    #[error("there is no webhook here")]
    NoWebhook,
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
    #[error("a body of type `{content_type}` cannot be taken: send JSON, a form or text")]
    UnknownType {
        /// What it is.
        content_type: String,
    },
    /// The flow cannot keep up.
    #[error("the flow has more than it can keep up with")]
    Full,
    /// The broker is away, or does not confirm; the request may have been taken.
    #[error("the request cannot be stored now")]
    Unavailable(#[source] Option<BrokerError>),
}

impl IngressError {
    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoWebhook => 404,
            Self::Stopped => 409,
            Self::TooLarge { .. } => 413,
            Self::NotReadable { .. } => 400,
            Self::UnknownType { .. } => 415,
            Self::Full => 429,
            Self::Draining | Self::Unavailable(_) => 503,
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoWebhook => "no_such_webhook",
            Self::Stopped => "flow_stopped",
            Self::Draining => "flow_draining",
            Self::TooLarge { .. } => "body_too_large",
            Self::NotReadable { .. } => "body_not_readable",
            Self::UnknownType { .. } => "unknown_content_type",
            Self::Full => "flow_full",
            Self::Unavailable(_) => "broker_unavailable",
        }
    }

    /// What to say in `Retry-After`, in seconds, if coming again may help.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            // A queue of a hundred thousand is not empty in a moment.
            Self::Full => Some(10),
            Self::Unavailable(_) => Some(5),
            // A person decides when it goes on.
            Self::Draining => Some(60),
            _ => None,
        }
    }
}

/// Takes requests. Clones share the queue to the [`Worker`].
#[derive(Clone)]
pub struct Ingress {
    names: Names,
    flows: LiveFlows,
    metrics: Metrics,
    clock: Clock,
    body_bytes_max: usize,
    items: mpsc::Sender<Item>,
    recent: Recent,
    branches: Branches,
}

impl Ingress {
    /// Makes an ingress and the worker that publishes for it, which somebody must run. `program` is
    /// the binary that evaluates conditions when it is told to by its first argument: this one.
    pub fn new(
        names: Names,
        flows: LiveFlows,
        metrics: Metrics,
        clock: Clock,
        body_bytes_max: usize,
        program: PathBuf,
    ) -> (Self, Worker) {
        let (items, receiver) = mpsc::channel(WAITING_MAX);
        let this = Self {
            names,
            flows,
            metrics,
            clock,
            body_bytes_max,
            items,
            recent: Recent::default(),
            branches: Branches::new(program),
        };
        (this, Worker::new(receiver))
    }

    /// What was taken in of late.
    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }

    /// Takes a request in, and returns the id of its message once the broker has it.
    pub async fn accept(&self, flow: &str, request: &Request) -> Result<MessageId, IngressError> {
        let Some(flow) = self.webhook(flow) else {
            return Err(IngressError::NoWebhook);
        };
        let outcome = self.take(&flow, request).await;
        let status = outcome.as_ref().map_or_else(IngressError::status, |_| 202);
        self.metrics.webhook(&flow.name, DEFAULT_CONNECTION, status);
        outcome
    }

    fn webhook(&self, flow: &str) -> Option<LiveFlow> {
        self.flows
            .borrow()
            .get(flow)
            .filter(|flow| flow.trigger.every.is_none() && !flow.trigger.takes_flows)
            .cloned()
    }

    async fn take(&self, flow: &LiveFlow, request: &Request) -> Result<MessageId, IngressError> {
        match flow.state {
            FlowState::Running | FlowState::Paused => {}
            FlowState::Draining => return Err(IngressError::Draining),
            FlowState::Stopped => return Err(IngressError::Stopped),
        }
        let (id, line) = self.message(flow, request)?;
        let ways = self.ways(flow, line).await?;
        if ways.is_empty() {
            self.metrics.webhook_unmatched(&flow.name);
        }
        let to: Vec<String> = ways.iter().flat_map(|way| way.steps.clone()).collect();
        let mut answers = Vec::with_capacity(ways.len());
        for way in ways {
            let (outcome, answer) = oneshot::channel();
            let item = Item {
                route: way.route,
                line: way.line,
                outcome,
            };
            // Not awaited: whoever cannot be served soon is told so now.
            self.items.try_send(item).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => IngressError::Full,
                mpsc::error::TrySendError::Closed(_) => IngressError::Unavailable(None),
            })?;
            answers.push(answer);
        }
        for answer in answers {
            answer
                .await
                .unwrap_or(Err(IngressError::Unavailable(None)))?;
        }
        self.recent.push(id, &flow.name, &to, (self.clock)());
        Ok(id)
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

    fn message(
        &self,
        flow: &LiveFlow,
        request: &Request,
    ) -> Result<(MessageId, String), IngressError> {
        let header = |name: &str| {
            let is_it = |(found, _): &&(String, String)| found.eq_ignore_ascii_case(name);
            request
                .headers
                .iter()
                .find(is_it)
                .map(|(_, value)| value.as_str())
        };
        let body = body::read(header("content-type"), &request.body, self.body_bytes_max)?;
        // The same key again is the same message: a sender that got no answer can ask again.
        let id = match header("idempotency-key").filter(|key| !key.is_empty()) {
            Some(key) => MessageId::from_source(&flow.name, &flow.trigger.step, DEFAULT_PORT, key),
            None => MessageId::from_bytes(uuid::Uuid::now_v7().into_bytes()),
        };
        let trace = header("traceparent").filter(|trace| headers::is_traceparent(trace));
        let lineage = Lineage {
            run: id,
            version: flow.version,
            at: (self.clock)(),
            connection: DEFAULT_CONNECTION.to_owned(),
            trace: Some(trace.map_or_else(|| trace_of(id), ToOwned::to_owned)),
        };
        let lineage = raw(&lineage);
        let headers = raw(&headers::of(request));
        let mut message = Message::root(id, &lineage, &body);
        message.headers = Some(&headers);
        Ok((
            id,
            serde_json::to_string(&message).expect("a message is JSON"),
        ))
    }
}

fn raw<T: serde::Serialize>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("maps of strings and plain structs are JSON")
}

#[cfg(test)]
#[path = "ingress/tests.rs"]
mod tests;

//! What carries messages, as the control plane uses it.
//!
//! # Invariants
//!
//! - `declare` may be repeated; it removes bindings that a flow no longer has, nothing else, and never
//!   drops a message.
//! - `publish` returns only after the broker's confirm.
//! - What was declared last is declared again by the broker's own loop: a queue that was deleted by
//!   hand, or a broker that lost everything, comes back without anybody asking.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub mod rabbit;
pub mod routing;
pub mod simulated;
pub mod topology;

use topology::{FlowTopology, Topology};

/// What carries messages: RabbitMQ, or a simulation with faults.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Says whether the broker answers now.
    async fn is_up(&self) -> bool;
    /// Says why the broker takes nothing now, for people; nothing if it does.
    async fn trouble(&self) -> Option<String> {
        (!self.is_up().await).then(|| "the broker cannot be reached".to_owned())
    }
    /// Lists the queues that were gone from the broker although nobody here deleted them, and were
    /// made again: what was in them is lost. With the time, in milliseconds since 1970.
    fn remade(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
    /// Declares what is not there yet, then removes the bindings that `former` needed and
    /// `topology` does not. `former` is what may have been declared earlier: the earlier versions
    /// of the flows, and flows that are gone; too much of it does no harm.
    async fn declare(
        &self,
        topology: &Topology,
        former: &[FlowTopology],
    ) -> Result<(), BrokerError>;
    /// Publishes one batch and waits for its confirm.
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError>;
    /// Publishes one batch that has waited before, for the rest of its delay: `due` is what the header
    /// says from now on too, so that being put back again and again makes nothing later.
    async fn publish_due(&self, publication: Publication, due: u64) -> Result<(), BrokerError>;
    /// Counts what is ready in each of the queues, in deliveries. A queue that is not there is left out.
    async fn depths(&self, queues: &[String]) -> Result<BTreeMap<String, Depth>, BrokerError>;
    /// Deletes a queue, if it is there; refused if it holds deliveries or has consumers and
    /// `even_if_full` is not said.
    async fn delete_queue(&self, queue: &str, even_if_full: bool) -> Result<(), BrokerError>;
    /// Deletes an exchange, if it is there.
    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError>;
    /// Consumes a queue for ever, through any trouble, one delivery after the other; each must be
    /// settled through its [`Delivery::settle`] before more than `window` others come.
    async fn consume(&self, queue: &str, window: u16) -> mpsc::Receiver<Delivery>;
    /// Answers a question that was asked over direct reply-to.
    async fn reply(
        &self,
        reply_to: &str,
        correlation: &str,
        body: Bytes,
    ) -> Result<(), BrokerError>;
}

/// One batch to publish: one message a line. What goes to the delay ladder gets a header that says
/// when it is due, from the delay in its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub key: String,
    /// The AMQP `type`, such as [`towpath_protocol::message::BATCH_TYPE`].
    pub kind: &'static str,
    /// Lines.
    pub body: Bytes,
    /// How many.
    pub count: u32,
}

impl Publication {
    /// When it comes back to its step, if it is published with a delay at `now`; both in
    /// milliseconds since 1970.
    pub fn due(&self, now: u64) -> Option<u64> {
        let units = towpath_protocol::start::delay_units(&self.key)?;
        Some(now + u64::from(units) * towpath_protocol::start::DELAY_UNIT_MS)
    }
}

/// What a queue holds, in deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Ready to be taken.
    pub ready: u64,
    /// How many consumers it has.
    pub consumers: u64,
}

/// A delivery to the control plane.
#[derive(Debug)]
pub struct Delivery {
    /// The AMQP `type`.
    pub kind: String,
    /// The lines.
    pub body: Bytes,
    /// The routing key it was published with.
    pub key: String,
    /// The exchange it was published to.
    pub exchange: String,
    /// Where to answer, and as what.
    pub reply: Option<(String, String)>,
    /// Somebody was given it before, an earlier control plane for instance.
    pub is_redelivered: bool,
    /// When it was to come back to its step, in milliseconds since 1970, if it was published with a
    /// delay: from [`towpath_protocol::message::DUE_HEADER`].
    pub due: Option<u64>,
    /// The queue that gave it up and why, if the broker dead-lettered it: from `x-death`.
    pub given_up_by: Option<(String, String)>,
    /// To settle it: `true` acknowledges, `false` gives it back.
    pub settle: tokio::sync::oneshot::Sender<bool>,
}

/// What the broker would not do.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It does not answer.
    #[error("the broker cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refuses what is published: a queue is full.
    #[error("the broker takes no more for `{key}` now")]
    Full {
        /// The routing key.
        key: String,
    },
    /// It refuses.
    #[error("the broker refuses to {what}")]
    Refused {
        /// What it was asked to do.
        what: String,
        /// Why it does not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The confirm did not come in time; the batch may have been taken.
    #[error("the broker did not confirm in time")]
    TimedOut,
}

//! The broker as the agent sees it: commands go in, events come out, over two bounded channels.
//! [`rabbit`] is the real one; tests use a simulated one.

pub mod rabbit;
pub mod trouble;

use bytes::Bytes;
use std::sync::Arc;

use crate::deliveries::QueueNumber;

/// What a body is, for its AMQP properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Lines of messages.
    Batch,
    /// Lines of messages on their way into a partition of their own step. They go by the connection
    /// that consumes: whoever may no longer take them from the intake cannot put them there either.
    Sorted,
    /// One message of a delivery that came back so often.
    Returned(u32),
    /// Lines of dead letters.
    Dead,
    /// One piece of news.
    News,
    /// One entry of the ledger.
    Ledger,
    /// One report of what came of runs.
    Runs,
    /// One report: transient.
    Report,
    /// The answer to a question: transient.
    Found,
    /// Notes about messages that wait: transient.
    Waiting,
}

/// Something to publish.
#[derive(Debug, Clone)]
pub struct Publish {
    /// A number for its confirm.
    pub number: u64,
    /// The exchange.
    pub exchange: Arc<str>,
    /// The routing key.
    pub key: Arc<str>,
    /// What it is.
    pub content: Content,
    /// How many lines it has.
    pub count: u32,
    /// The body.
    pub payload: Bytes,
    /// The answer is wanted at the direct reply-to, with this correlation id.
    pub answer: Option<Arc<str>>,
}

/// What the agent tells the broker.
#[derive(Debug, Clone)]
pub enum Command {
    /// Publishes; answered by [`Event::Confirmed`].
    Publish(Publish),
    /// Acknowledges a delivery.
    Ack {
        /// Its tag.
        tag: u64,
        /// All up to it as well.
        multiple: bool,
    },
    /// Gives a delivery back.
    Requeue {
        /// Its tag.
        tag: u64,
    },
    /// Begins to consume.
    Consume,
    /// Stops consuming; answered by [`Event::Stopped`] after the last delivery.
    Stop,
    /// Drops the connections and makes them anew; answered by [`Event::Down`] with the reason.
    Recycle {
        /// Why.
        reason: String,
    },
    /// Closes the connections, once all before is sent; answered by [`Event::Down`].
    Close,
}

/// A command, for one connection only: what was meant for an earlier one is void.
#[derive(Debug, Clone)]
pub struct Addressed {
    /// The connection's number, from [`Event::Up`].
    pub generation: u64,
    /// The command.
    pub command: Command,
}

/// What the broker knows of a delivery's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// Somebody had it before.
    pub is_redelivered: bool,
    /// How often it came back because whoever had it died, lost its connection or gave it back.
    pub returns: u32,
}

/// What the broker tells the agent.
#[derive(Debug)]
pub enum Event {
    /// There is a connection.
    Up {
        /// Its number.
        generation: u64,
    },
    /// There is none; another try follows. Everything that was open on it is void.
    Down {
        /// Why.
        reason: String,
    },
    /// Something from a queue.
    Delivery {
        /// The number of the queue.
        queue: QueueNumber,
        /// Its tag.
        tag: u64,
        /// Whether its type says that it is a batch of messages.
        is_batch: bool,
        /// What the broker knows of its past.
        origin: Origin,
        /// The body.
        payload: Bytes,
    },
    /// What was published is durable, or was refused.
    Confirmed {
        /// The number of the publish.
        number: u64,
        /// Durable.
        accepted: bool,
    },
    /// An answer at the direct reply-to.
    Answer(Bytes),
    /// Consuming has stopped.
    Stopped,
    /// The broker accepts nothing (an alarm), or does again.
    Blocked(bool),
}

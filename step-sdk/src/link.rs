//! The step's side of the connection to its agent: what every context shares.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{oneshot, watch};
use towpath_protocol::frame::Saved;
use towpath_protocol::{DEFAULT_PORT, MessageId};

use crate::error::{Result, StepError};
use crate::outbox::Outbox;
use crate::registration::{Act, Kept};
use crate::write::{self, Envelope};

thread_local! {
    /// A frame is written here first: serializing calls the author's code, which may log.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back after use.
const KEEP_CAPACITY: usize = 64 << 10;

/// After this many outputs a handler lets others have a turn, though there is room for more.
const EMITS_PER_TURN: u64 = 256;

/// What every context shares.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) hello: Greeting,
    pub(crate) outbox: Arc<Outbox>,
    ports: BTreeSet<String>,
    /// Only a poll trigger has a position.
    has_checkpoints: bool,
    saves: Mutex<HashMap<(MessageId, u64), oneshot::Sender<()>>>,
    draining: AtomicBool,
    /// What is in hand is to come to an end, though there may be more to read.
    ending: watch::Sender<bool>,
}

/// What of the agent's hello is needed later.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) flow: String,
    pub(crate) step: String,
    pub(crate) replica: u32,
    pub(crate) timeout_ms: u64,
    pub(crate) body_bytes_max: usize,
}

impl Link {
    pub(crate) fn new(
        hello: Greeting,
        outbox: Arc<Outbox>,
        ports: BTreeSet<String>,
        has_checkpoints: bool,
    ) -> Self {
        Self {
            hello,
            outbox,
            ports,
            has_checkpoints,
            saves: Mutex::default(),
            draining: AtomicBool::new(false),
            ending: watch::Sender::new(false),
        }
    }

    /// Emits an output of a message when there is room for it. `emitted` counts the outputs, so that
    /// who emits many lets others have a turn.
    pub(crate) async fn emit<T: Serialize + ?Sized>(
        &self,
        id: MessageId,
        emitted: &AtomicU64,
        envelope: &Envelope<'_>,
        value: &T,
    ) -> Result<()> {
        if let Some(port) = envelope.port
            && port != DEFAULT_PORT
            && !self.ports.contains(port)
        {
            return Err(StepError::permanent(format!(
                "the step has no port `{port}`: name it with `.port::<T>(\"{port}\")`"
            )));
        }
        let mut frame = SCRATCH.take();
        frame.clear();
        let written = write::emit(&mut frame, id, envelope, value, self.hello.body_bytes_max);
        if matches!(written, Ok(true)) {
            self.outbox.push_when_room(&frame).await;
        }
        give_back(frame);
        if emitted.fetch_add(1, Ordering::Relaxed) % EMITS_PER_TURN == EMITS_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        written.map(|_| ())
    }

    /// Writes what became of a message.
    pub(crate) fn settle(&self, id: MessageId, result: &Result<()>) {
        let mut frame = SCRATCH.take();
        frame.clear();
        match result {
            Ok(()) => write::done(&mut frame, id),
            Err(error) => write::failed(&mut frame, id, error),
        }
        self.outbox.push(&frame);
        give_back(frame);
    }

    /// Writes what became of a call to register.
    pub(crate) fn registered(&self, id: MessageId, act: Act, result: &Result<Kept>) {
        let mut frame = Vec::new();
        match (act, result) {
            (Act::Activate, Ok(kept)) => write::activated(&mut frame, id, kept.as_deref()),
            (Act::Deactivate, Ok(_)) => write::deactivated(&mut frame, id),
            (_, Err(error)) => write::failed(&mut frame, id, error),
        }
        self.outbox.push(&frame);
    }

    /// Saves a position and waits until it is durable.
    pub(crate) async fn checkpoint<K: Serialize + ?Sized>(
        &self,
        id: MessageId,
        number: u64,
        value: &K,
    ) -> Result<()> {
        if !self.has_checkpoints {
            return Err(StepError::permanent(
                "only a poll trigger saves checkpoints",
            ));
        }
        let mut frame = Vec::new();
        write::checkpoint(&mut frame, id, number, value)?;
        let (saved, is_saved) = oneshot::channel();
        self.saves().insert((id, number), saved);
        self.outbox.push_when_room(&frame).await;
        is_saved
            .await
            .map_err(|_| StepError::retry("the agent left before the checkpoint was saved"))
    }

    /// A position is durable.
    pub(crate) fn saved(&self, saved: Saved) {
        // The handler that waits may have been cancelled meanwhile.
        self.saves()
            .remove(&(saved.id, saved.number))
            .map(|waiting| waiting.send(()));
    }

    /// Writes a log line, unless too many wait already.
    pub(crate) fn log(&self, id: Option<MessageId>, level: &str, text: &str) {
        let mut frame = Vec::new();
        write::log(&mut frame, id, level, text);
        self.outbox.push_log(&frame);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.ending.send_replace(true);
    }

    /// A tick begins: what the one before it was told is no longer meant.
    pub(crate) fn begin_tick(&self) {
        self.ending.send_replace(self.is_draining());
    }

    /// The tick in hand is to come to an end.
    pub(crate) fn finish(&self) {
        self.ending.send_replace(true);
    }

    pub(crate) fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Returns when what is in hand is to come to an end.
    pub(crate) async fn ending(&self) {
        // It cannot fail: the sender lives as long as this.
        let mut ending = self.ending.subscribe();
        let _ended = ending.wait_for(|ending| *ending).await;
    }

    /// Nobody waits any more for a position to be saved.
    pub(crate) fn forget_saves(&self, id: MessageId) {
        self.saves().retain(|(of, _), _| *of != id);
    }

    fn saves(&self) -> MutexGuard<'_, HashMap<(MessageId, u64), oneshot::Sender<()>>> {
        self.saves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn give_back(frame: Vec<u8>) {
    if frame.capacity() <= KEEP_CAPACITY {
        SCRATCH.set(frame);
    }
}

//! The main loop: takes frames, starts handlers, lets frames leave when input runs dry.
//!
//! # Invariants
//!
//! - A handler that needs no waiting costs no task: it is polled where it is read.
//! - Fates are written by the handler's own task, after its outputs.
//! - Every message and every tick is answered exactly once, cancelled or not.
//! - A batch is gathered while the one before it is worked on, and never waits for more than the
//!   agent announced.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use towpath_protocol::MessageId;
use towpath_protocol::frame::{Deactivate, Tick, ToStep};
use towpath_protocol::message::Message;

use crate::context::About;
use crate::error::{Result, StepError};
use crate::handler::{Given, Handler, Shared};
use crate::panics::{Guarded, guard};
use crate::registration::{Act, Call};

/// How long messages are worked on before those that wait for something have a turn.
const TURN: Duration = Duration::from_millis(2);

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Told to, and everything in hand is finished.
    Drained,
    /// The agent is gone.
    AgentGone,
}

/// Serves an agent until it is told to leave or the agent is gone.
///
/// `first` and what `input` brings are chunks of whole lines.
pub(crate) async fn serve<H: Handler>(
    handler: Rc<H>,
    shared: Shared<H::Config, H::State>,
    first: &[u8],
    input: &mut mpsc::Receiver<Vec<u8>>,
) -> Ending {
    let mut server = Server {
        batch_max: handler.batch_max(),
        handler,
        shared,
        tasks: JoinSet::new(),
        in_hand: HashMap::new(),
        gathered: Gathered {
            inputs: Vec::new(),
            abouts: Vec::new(),
        },
        announced: 0,
        running: None,
    };
    let mut is_closed = false;
    server.take(first).await;
    loop {
        if input.is_empty() {
            if server.announced == 0 {
                server.start_batch();
            }
            server.shared.link.outbox.flush();
        }
        if server.shared.link.outbox.is_gone() {
            return Ending::AgentGone;
        }
        if server.shared.link.is_draining() && server.is_idle() {
            return Ending::Drained;
        }
        // Each branch is cancel-safe: `recv`, `join_next` and `notified` lose nothing when dropped
        // (a notification that was not consumed stays).
        tokio::select! {
            biased;
            Some(finished) = server.tasks.join_next(), if !server.tasks.is_empty() => {
                if let Ok(ids) = finished {
                    server.finished(&ids);
                }
            }
            chunk = input.recv(), if !is_closed => match chunk {
                Some(chunk) => server.take(&chunk).await,
                // An agent that says nothing more after `drain` may still listen.
                None if server.shared.link.is_draining() => is_closed = true,
                None => return Ending::AgentGone,
            },
            () = server.shared.link.outbox.dirtied() => {}
        }
    }
}

struct Server<H: Handler> {
    handler: Rc<H>,
    shared: Shared<H::Config, H::State>,
    batch_max: Option<usize>,
    /// Handlers that wait for something. Each returns the messages it settled.
    tasks: JoinSet<Finished>,
    /// How to cancel each of them.
    in_hand: HashMap<MessageId, AbortHandle>,
    gathered: Gathered<H::Input>,
    /// How many of the messages that are to be handled together are still to be read.
    announced: u32,
    running: Option<Running>,
}

/// The batch that is worked on.
struct Running {
    task: AbortHandle,
    /// Its messages, but those that were cancelled.
    wanted: Vec<MessageId>,
    cancelled: Vec<MessageId>,
}

/// Messages that wait to be handled together.
struct Gathered<I> {
    inputs: Vec<I>,
    abouts: Vec<Arc<About>>,
}

enum Finished {
    One(MessageId),
    Batch,
}

impl<H: Handler> Server<H> {
    fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.gathered.inputs.is_empty()
    }

    /// Handles each line of a chunk.
    async fn take(&mut self, chunk: &[u8]) {
        let mut turn = Instant::now();
        for line in chunk.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<ToStep<'_>>(line) {
                Ok(frame) => self.on_frame(&frame),
                Err(error) => self.shared.link.log(
                    None,
                    "warn",
                    &format!("a frame from the agent is not understood and ignored: {error}"),
                ),
            }
            if turn.elapsed() > TURN {
                self.shared.link.outbox.flush();
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
        }
    }

    fn on_frame(&mut self, frame: &ToStep<'_>) {
        match frame {
            ToStep::Message(message) => {
                self.start(Given::Body(message.body), about_message(message));
                if self.announced > 0 {
                    self.announced -= 1;
                    if self.announced == 0 {
                        self.start_batch();
                    }
                }
            }
            ToStep::Batch(together) => {
                if self.batch_max.is_some() {
                    self.announced = together.count;
                }
            }
            ToStep::Tick(tick) => {
                self.shared.link.begin_tick();
                self.start(Given::Tick(tick), about_tick(tick));
            }
            ToStep::Activate(activate) => {
                self.register(activate.id, Act::Activate, &activate.url, activate.kept);
            }
            ToStep::Deactivate(deactivate) => {
                let Deactivate { id, url, kept } = deactivate;
                self.register(*id, Act::Deactivate, url, *kept);
            }
            ToStep::Cancel(cancel) => self.cancel(cancel.id),
            ToStep::Saved(saved) => self.shared.link.saved(*saved),
            ToStep::Finish(_) => self.shared.link.finish(),
            ToStep::Drain(_) => self.shared.link.drain(),
            ToStep::Hello(_) => {}
        }
    }

    fn start(&mut self, given: Given<'_>, about: About) {
        let about = Arc::new(about);
        let id = about.id;
        let read = guard(|| self.handler.read(given, &about)).and_then(|input| input);
        let input = match read {
            Ok(input) => input,
            Err(error) => return self.shared.link.settle(id, &Err(error)),
        };
        if let Some(max) = self.batch_max {
            self.gathered.inputs.push(input);
            self.gathered.abouts.push(about);
            if self.gathered.inputs.len() >= max {
                self.start_batch();
            }
            return;
        }
        let handler = Rc::clone(&self.handler);
        // Calling the function runs nothing of it, so a panic can only be in the work.
        let mut work = Guarded::new(Some(id), handler.handle(input, about, &self.shared));
        // Work that needs no waiting is done at once. If it waits, its task polls it again with a
        // waker of its own, so that no wake-up is lost.
        let mut ctx = std::task::Context::from_waker(Waker::noop());
        match std::pin::Pin::new(&mut work).poll(&mut ctx) {
            Poll::Ready(result) => self
                .shared
                .link
                .settle(id, &result.and_then(|result| result)),
            Poll::Pending => {
                let link = Arc::clone(&self.shared.link);
                let task = self.tasks.spawn_local(async move {
                    let result = work.await;
                    link.settle(id, &result.and_then(|result| result));
                    Finished::One(id)
                });
                self.in_hand.insert(id, task);
            }
        }
    }

    /// Starts to register, or to take that back: beside the messages.
    fn register(&mut self, id: MessageId, act: Act, url: &str, kept: Option<&RawValue>) {
        let call = Call {
            act,
            url: url.to_owned(),
            kept: kept.map(ToOwned::to_owned),
        };
        let about = Arc::new(About::new(id, 1));
        let handler = Rc::clone(&self.handler);
        let work = Guarded::new(Some(id), handler.register(call, about, &self.shared));
        let link = Arc::clone(&self.shared.link);
        let task = self.tasks.spawn_local(async move {
            let result = work.await.and_then(|result| result);
            link.registered(id, act, &result);
            Finished::One(id)
        });
        self.in_hand.insert(id, task);
    }

    /// Starts a batch with what was gathered, unless one is being worked on.
    fn start_batch(&mut self) {
        let Some(max) = self.batch_max else { return };
        if self.running.is_some() || self.gathered.inputs.is_empty() {
            return;
        }
        let count = self.gathered.inputs.len().min(max);
        let inputs: Vec<_> = self.gathered.inputs.drain(..count).collect();
        let abouts: Vec<_> = self.gathered.abouts.drain(..count).collect();
        let ids: Vec<_> = abouts.iter().map(|about| about.id).collect();
        let handler = Rc::clone(&self.handler);
        let work = Guarded::new(
            ids.first().copied(),
            handler.handle_batch(inputs, abouts, &self.shared),
        );
        let link = Arc::clone(&self.shared.link);
        let wanted = ids.clone();
        let task = self.tasks.spawn_local(async move {
            match work.await {
                Ok(results) => {
                    for (id, result) in ids.iter().zip(&results) {
                        link.settle(*id, result);
                    }
                }
                Err(panic) => {
                    let result: Result<()> = Err(panic);
                    for id in ids {
                        link.settle(id, &result);
                    }
                }
            }
            Finished::Batch
        });
        self.running = Some(Running {
            task,
            wanted,
            cancelled: Vec::new(),
        });
    }

    fn finished(&mut self, finished: &Finished) {
        match finished {
            Finished::One(id) => {
                self.in_hand.remove(id);
            }
            Finished::Batch => self.running = None,
        }
    }

    /// Aborts the handler of a message. The agent waits for an answer all the same: until then the
    /// message counts as in hand. One in a batch that runs is answered with its batch, unless all of
    /// the batch is cancelled.
    fn cancel(&mut self, id: MessageId) {
        let link = &self.shared.link;
        link.forget_saves(id);
        let mut is_stopped = false;
        if let Some(task) = self.in_hand.remove(&id)
            && !task.is_finished()
        {
            task.abort();
            is_stopped = true;
        }
        if let Some(index) = self.gathered.abouts.iter().position(|about| about.id == id) {
            self.gathered.abouts.remove(index);
            self.gathered.inputs.remove(index);
            is_stopped = true;
        }
        let cancelled = || Err(StepError::retry("cancelled"));
        if is_stopped {
            link.settle(id, &cancelled());
        } else if let Some(all) = self.cancel_in_batch(id) {
            for id in all {
                self.shared.link.settle(id, &cancelled());
            }
        }
    }

    /// Notes that a message of the batch that runs is cancelled. Once all of them are, the batch is
    /// aborted, and they are returned.
    fn cancel_in_batch(&mut self, id: MessageId) -> Option<Vec<MessageId>> {
        let running = self.running.as_mut()?;
        let index = running.wanted.iter().position(|it| *it == id)?;
        running.cancelled.push(running.wanted.swap_remove(index));
        if !running.wanted.is_empty() || running.task.is_finished() {
            return None;
        }
        running.task.abort();
        self.running.take().map(|running| running.cancelled)
    }
}

fn about_message(message: &Message<'_>) -> About {
    let mut about = About::new(message.id, message.attempt);
    about.rebounds = message.rebounds;
    about.is_uncertain = message.uncertain;
    about.key = message.key.as_deref().map(Into::into);
    about.lineage = Some(message.lineage.get().into());
    about.headers_raw = message.headers.map(|raw| raw.get().into());
    about
}

fn about_tick(tick: &Tick<'_>) -> About {
    About::new(tick.id, tick.attempt)
}

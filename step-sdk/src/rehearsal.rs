//! A step without broker, container and agent: the real loop, its frames answered in this process.
//!
//! Both the test kit and `run-local` stand on it.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::value::RawValue;
use tokio::sync::mpsc;
use towpath_protocol::frame::{
    Activated, Checkpoint, Drain, Emit, Failed, FromStep, Hello, Log, Saved, ToStep,
};
use towpath_protocol::{CONTRACT, MessageId};

use crate::handler::Handler;
use crate::outbox::Outbox;
use crate::run::attend;
use crate::step::{Setup, Step};

/// How many frames wait in each direction.
const FRAMES_WAITING: usize = 4;

/// Who the step is told it is.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) flow: String,
    pub(crate) step: String,
    pub(crate) concurrency: u32,
    pub(crate) config: Box<RawValue>,
}

/// What is handed to the step: the id, and the line of its frame.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) id: MessageId,
    pub(crate) text: String,
}

/// Something that the step said.
#[derive(Debug)]
pub(crate) enum Said<'a> {
    /// It refuses its configuration.
    Refused(&'a str),
    /// An output.
    Emit(&'a Emit<'a>),
    /// A message was handled.
    Done(MessageId),
    /// A message was not handled.
    Failed(&'a Failed<'a>),
    /// The URL is registered.
    Activated(&'a Activated<'a>),
    /// A new position.
    Checkpoint(&'a Checkpoint<'a>),
    /// A log line.
    Log(&'a Log<'a>),
}

/// Runs a step on lines until there are no more and all are settled.
pub(crate) async fn rehearse<H: Handler, P: Setup<H::Config, H::State>>(
    step: Step<H, P>,
    part: &Part,
    outbox: &Arc<Outbox>,
    lines: mpsc::Receiver<Line>,
    hear: impl FnMut(Said<'_>),
) {
    let (chunks, mut input) = mpsc::channel(FRAMES_WAITING);
    let step = async {
        attend(step, outbox, &mut input).await;
        outbox.flush();
        outbox.close();
    };
    let agent = Agent {
        outbox,
        chunks,
        in_hand: HashSet::new(),
        drained: false,
        hear,
    };
    tokio::task::LocalSet::new()
        .run_until(async { tokio::join!(step, agent.run(part, lines)) })
        .await;
}

struct Agent<'a, F> {
    outbox: &'a Outbox,
    chunks: mpsc::Sender<Vec<u8>>,
    in_hand: HashSet<MessageId>,
    drained: bool,
    hear: F,
}

impl<F: FnMut(Said<'_>)> Agent<'_, F> {
    async fn run(mut self, part: &Part, mut lines: mpsc::Receiver<Line>) {
        self.send(&ToStep::Hello(Hello {
            contract: CONTRACT,
            flow: part.flow.as_str().into(),
            step: part.step.as_str().into(),
            replica: 1,
            concurrency: part.concurrency,
            timeout_ms: 0,
            body_bytes_max: towpath_protocol::BODY_BYTES_MAX,
            config: &part.config,
        }))
        .await;
        let mut frames = Vec::new();
        let mut exhausted = false;
        loop {
            let may_take = !exhausted && self.in_hand.len() < part.concurrency as usize;
            // Both branches are cancel-safe: `recv` loses nothing, and what `take_async` has not
            // taken stays in the outbox.
            tokio::select! {
                more = self.outbox.take_async(&mut frames) => {
                    if !more {
                        return;
                    }
                    self.listen(&frames).await;
                }
                line = lines.recv(), if may_take => match line {
                    Some(line) => {
                        self.in_hand.insert(line.id);
                        self.send_text(line.text).await;
                    }
                    None => exhausted = true,
                },
            }
            if exhausted && self.in_hand.is_empty() && !self.drained {
                self.drained = true;
                self.send(&ToStep::Drain(Drain {})).await;
            }
        }
    }

    async fn listen(&mut self, frames: &[u8]) {
        for line in frames
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let frame: FromStep<'_> =
                serde_json::from_slice(line).expect("what this crate writes is a frame");
            match &frame {
                FromStep::Ready(_) => {}
                FromStep::Refused(refused) => (self.hear)(Said::Refused(&refused.reason)),
                FromStep::Emit(emit) => (self.hear)(Said::Emit(emit)),
                FromStep::Log(log) => (self.hear)(Said::Log(log)),
                FromStep::Done(done) => {
                    self.in_hand.remove(&done.id);
                    (self.hear)(Said::Done(done.id));
                }
                FromStep::Activated(activated) => {
                    self.in_hand.remove(&activated.id);
                    (self.hear)(Said::Activated(activated));
                }
                FromStep::Deactivated(deactivated) => {
                    self.in_hand.remove(&deactivated.id);
                    (self.hear)(Said::Done(deactivated.id));
                }
                FromStep::Failed(failed) => {
                    self.in_hand.remove(&failed.id);
                    (self.hear)(Said::Failed(failed));
                }
                FromStep::Checkpoint(checkpoint) => {
                    (self.hear)(Said::Checkpoint(checkpoint));
                    let saved = Saved {
                        id: checkpoint.id,
                        number: checkpoint.number,
                    };
                    self.send(&ToStep::Saved(saved)).await;
                }
            }
        }
    }

    async fn send(&self, frame: &ToStep<'_>) {
        let text = serde_json::to_string(frame).expect("a frame is JSON");
        self.send_text(text).await;
    }

    async fn send_text(&self, text: String) {
        let mut chunk = text.into_bytes();
        chunk.push(b'\n');
        // A step that refused reads no more; what it said is heard all the same.
        drop(self.chunks.send(chunk).await);
    }
}

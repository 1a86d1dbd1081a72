//! Where log lines go: one JSON object a line on standard output, written by a thread of its own,
//! because a full pipe there must never hold up data. What does not fit is counted and said.

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_protocol::MessageId;
use towpath_protocol::log::{LOG_TEXT_BYTES_MAX, LogLine, LogSource};
use towpath_protocol::start::Identity;

use crate::clock::Now;
use crate::redact::{Redact, cut};

/// How many lines may wait to be written.
const WAITING_MAX: usize = 1024;

/// How long the last lines may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Writes log lines.
#[derive(Clone)]
pub struct Logger {
    sender: Option<SyncSender<Vec<u8>>>,
    lost: Arc<AtomicU64>,
    identity: Arc<Identity>,
    redact: Arc<Redact>,
}

/// The thread that writes.
pub struct Writer {
    thread: JoinHandle<()>,
}

impl Writer {
    /// Waits until all is written; every [`Logger`] must be gone. Not for long: nobody may read.
    pub fn join(self) {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Logger {
    /// Starts the thread that writes to standard output.
    pub fn start(identity: &Identity, redact: Redact) -> std::io::Result<(Self, Writer)> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("log".into())
            .stack_size(128 << 10)
            .spawn(move || write_all(&receiver))?;
        let logger = Self {
            sender: Some(sender),
            lost: Arc::default(),
            identity: Arc::new(identity.clone()),
            redact: Arc::new(redact),
        };
        Ok((logger, Writer { thread }))
    }

    /// Makes a logger that writes nothing.
    pub fn silent(identity: &Identity, redact: Redact) -> Self {
        Self {
            sender: None,
            lost: Arc::default(),
            identity: Arc::new(identity.clone()),
            redact: Arc::new(redact),
        }
    }

    /// Writes a line of the agent itself.
    pub fn agent(&self, level: &str, message_id: Option<MessageId>, text: &str) {
        self.line(level, LogSource::Agent, message_id, text);
    }

    /// Writes a line.
    pub fn line(&self, level: &str, source: LogSource, message_id: Option<MessageId>, text: &str) {
        let Some(sender) = &self.sender else { return };
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let said = self.encode(
                "warn",
                LogSource::Agent,
                None,
                &format!("{lost} log lines were dropped: nobody reads fast enough"),
            );
            if sender.try_send(said).is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        let line = self.encode(level, source, message_id, text);
        if let Err(TrySendError::Full(_)) = sender.try_send(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn encode(
        &self,
        level: &str,
        source: LogSource,
        message_id: Option<MessageId>,
        text: &str,
    ) -> Vec<u8> {
        let line = LogLine {
            at: Now::read().wall_ms,
            level: Cow::Borrowed(match level {
                "error" | "warn" | "debug" | "trace" => level,
                _ => "info",
            }),
            flow: Cow::Borrowed(&self.identity.flow),
            step: Cow::Borrowed(&self.identity.step),
            replica: self.identity.replica,
            message_id,
            source,
            text: cut(&self.redact.apply(text), LOG_TEXT_BYTES_MAX).into(),
        };
        let mut bytes = serde_json::to_vec(&line).expect("strings and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }
}

fn write_all(receiver: &Receiver<Vec<u8>>) {
    let mut out = std::io::stdout();
    while let Ok(line) = receiver.recv() {
        let written = out.write_all(&line).and_then(|()| out.flush());
        if written.is_err() {
            // Nobody reads any more: there is nobody to tell.
            return;
        }
    }
}

//! The pipes of the step process, and its end.

use std::io;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use towpath_protocol::FRAME_BYTES_MAX;
use towpath_protocol::log::{LOG_TEXT_BYTES_MAX, LogSource};

use crate::child::{self, Child};
use crate::clock::Now;
use crate::core::Core;
use crate::exit;
use crate::line_reader::{LineReader, Next};
use crate::reaper::Ended;

/// How long a process may live on after it closed a pipe of its frames.
const CLOSED_MAX: Duration = Duration::from_secs(2);

/// How much is read from the pipes of a process that ended: grandchildren may go on writing.
const LAST_BYTES_MAX: usize = 1 << 20;

/// How a frame begins that says that a message failed.
const FAILED: &[u8] = b"{\"failed\":";

/// A pipe that is read line by line.
pub(super) struct Source {
    pipe: pipe::Receiver,
    lines: LineReader,
}

impl Source {
    fn new(pipe: pipe::Receiver, line_max: usize) -> Self {
        Self {
            pipe,
            lines: LineReader::new(line_max),
        }
    }

    /// Reads what is there without waiting; returns whether there was something. It asks the pipe
    /// itself: the runtime may not have been told yet of what a process wrote right before its end,
    /// and `try_read` would not look.
    fn read_now(&mut self) -> bool {
        let room = spare_capacity(self.lines.room());
        matches!(rustix::io::read(&self.pipe, room), Ok(read) if read > 0)
    }
}

/// The step process, if there is one.
#[derive(Default)]
pub(super) struct Process {
    pid: Option<i32>,
    pub(super) frames: Option<Source>,
    pub(super) input: Option<pipe::Sender>,
    pub(super) stdout: Option<Source>,
    pub(super) stderr: Option<Source>,
    memory_kills: u64,
    closed_at: Option<Instant>,
}

impl Process {
    pub(super) fn new(child: Child) -> Self {
        Self {
            pid: Some(child.pid),
            frames: Some(Source::new(child.output, FRAME_BYTES_MAX)),
            input: Some(child.input),
            stdout: Some(Source::new(child.stdout, LOG_TEXT_BYTES_MAX)),
            stderr: Some(Source::new(child.stderr, LOG_TEXT_BYTES_MAX)),
            memory_kills: exit::memory_kills(),
            closed_at: None,
        }
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }

    pub(super) fn kill(&self) {
        if let Some(pid) = self.pid {
            child::kill(pid);
        }
    }

    /// It closed a pipe of its frames: its end is near, or it must be brought about.
    pub(super) fn pipe_closed(&mut self, now: Now) {
        self.closed_at.get_or_insert(now.instant);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.closed_at.map(|at| at + CLOSED_MAX)
    }

    /// Returns whether it closed the pipe of its frames and lives on; once.
    pub(super) fn is_closed_too_long(&mut self, now: Now) -> bool {
        let is_late = self
            .next_deadline()
            .is_some_and(|deadline| now.instant >= deadline);
        if is_late {
            self.closed_at = None;
        }
        is_late
    }

    /// Hands the frames that were read to the core.
    pub(super) fn note_frames(&mut self, core: &mut Core, now: Now) {
        let Self {
            frames,
            stdout,
            stderr,
            ..
        } = self;
        let Some(Source { lines, .. }) = frames else {
            return;
        };
        loop {
            match lines.take_next() {
                Next::Line(line) => {
                    let line = lines.bytes(line);
                    if line.starts_with(FAILED) {
                        read_logs(stdout.as_mut(), stderr.as_mut(), core);
                    }
                    core.on_step_line(line, now);
                }
                Next::TooLong(begin) => core.on_step_overlong(lines.bytes(begin)),
                Next::More => break,
            }
        }
        lines.shrink();
    }

    /// A child ended: if it was the step, reads the last it wrote and says how it ended.
    pub(super) fn note_end(&mut self, ended: Ended, core: &mut Core, memory_bytes: u64, now: Now) {
        if self.pid != Some(ended.pid) {
            return;
        }
        let mut budget = LAST_BYTES_MAX / (64 << 10);
        while budget > 0 && self.frames.as_mut().is_some_and(Source::read_now) {
            self.note_frames(core, now);
            budget -= 1;
        }
        for (source, from) in [
            (&mut self.stdout, LogSource::Stdout),
            (&mut self.stderr, LogSource::Stderr),
        ] {
            let Some(source) = source else { continue };
            let mut budget = LAST_BYTES_MAX / (64 << 10);
            while budget > 0 && source.read_now() {
                log_lines(source, from, false, core);
                budget -= 1;
            }
            log_lines(source, from, true, core);
        }
        // What it left behind in its group must not go on working.
        child::kill_group(ended.pid);
        let memory_kills = exit::memory_kills().saturating_sub(self.memory_kills);
        *self = Self::default();
        core.on_step_exit(
            &exit::describe(ended.status, memory_kills, memory_bytes),
            now,
        );
    }
}

/// Reads what a step wrote on its other pipes before it said that a message failed: the lines go with
/// the message.
fn read_logs(stdout: Option<&mut Source>, stderr: Option<&mut Source>, core: &mut Core) {
    for (source, from) in [(stdout, LogSource::Stdout), (stderr, LogSource::Stderr)] {
        if let Some(source) = source
            && source.read_now()
        {
            log_lines(source, from, false, core);
        }
    }
}

/// Logs the lines that were read.
pub(super) fn log_lines(source: &mut Source, from: LogSource, is_last: bool, core: &mut Core) {
    let lines = &mut source.lines;
    let mut log =
        |text: &[u8]| core.on_log_line(from, String::from_utf8_lossy(text).trim_end_matches('\r'));
    while let Next::Line(line) | Next::TooLong(line) = lines.take_next() {
        log(lines.bytes(line));
    }
    if is_last && let Some(rest) = lines.take_rest() {
        log(lines.bytes(rest));
    }
}

/// Reads some bytes; waits for ever where there is no pipe.
pub(super) async fn fill(source: &mut Option<Source>) -> io::Result<usize> {
    match source {
        Some(Source { pipe, lines }) => pipe.read_buf(lines.room()).await,
        None => std::future::pending().await,
    }
}

/// Writes some bytes; waits for ever where there is no pipe.
pub(super) async fn write(input: &mut Option<pipe::Sender>, bytes: &[u8]) -> io::Result<usize> {
    match input {
        Some(input) => input.write(bytes).await,
        None => std::future::pending().await,
    }
}

//! Frames on their way to the agent: a bounded buffer between handlers and the writer thread.
//!
//! Frames gather while there is input to work on, and leave together when it runs dry; at the latest
//! after [`LINGER`], so that a handler that blocks does not keep back what others have done.
//!
//! # Invariants
//!
//! - `memory_is_bounded`: outputs wait until the buffer is below [`ROOM_BELOW`]; what may not wait
//!   (fates) is bounded by the messages in hand; logs above [`LOG_BELOW`] are counted and dropped.
//! - `order_is_kept`: frames leave in the order they were pushed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Above this many bytes the writer is woken without being asked: the capacity of a pipe.
const LEAVE_AT: usize = 64 << 10;

/// The longest that a frame waits for others.
const LINGER: Duration = Duration::from_millis(2);

/// Outputs wait until fewer bytes than this wait to be written.
const ROOM_BELOW: usize = 128 << 10;

/// Log lines are dropped while more bytes than this wait to be written.
const LOG_BELOW: usize = 1 << 20;

/// A buffer larger than this is given back after use.
const KEEP_CAPACITY: usize = 256 << 10;

/// The buffer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Something is to be written: wakes the writer thread.
    leave: Condvar,
    /// The same for a reader in the same runtime (the test kit).
    leave_async: Notify,
    /// There is room again: wakes who waits to emit.
    room: Notify,
    /// The buffer was empty and is not: wakes the main loop, which lets it leave when idle.
    dirty: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: Vec<u8>,
    leave: bool,
    closed: bool,
    /// Nobody reads any more.
    gone: bool,
    logs_dropped: u64,
}

impl Outbox {
    /// Adds a frame that may not wait.
    pub(crate) fn push(&self, frame: &[u8]) {
        self.append(self.lock(), frame);
    }

    /// Adds a frame when there is room. Never returns when nobody reads any more: the main loop
    /// ends then.
    pub(crate) async fn push_when_room(&self, frame: &[u8]) {
        loop {
            {
                let state = self.lock();
                if !state.gone && state.frames.len() < ROOM_BELOW {
                    self.append(state, frame);
                    return;
                }
            }
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if !self.is_full() {
                continue;
            }
            room.await;
        }
    }

    /// Adds a log line, unless too much is waiting.
    pub(crate) fn push_log(&self, frame: &[u8]) {
        let mut state = self.lock();
        if state.frames.len() > LOG_BELOW {
            state.logs_dropped += 1;
        } else {
            self.append(state, frame);
        }
    }

    /// Lets everything leave.
    pub(crate) fn flush(&self) {
        let mut state = self.lock();
        if !state.frames.is_empty() && !state.leave {
            state.leave = true;
            self.wake_writer();
        }
    }

    /// Waits until the buffer is no longer empty.
    pub(crate) async fn dirtied(&self) {
        self.dirty.notified().await;
    }

    /// Says that nothing more will come.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake_writer();
    }

    /// Says that nobody reads any more.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.frames = Vec::new();
        drop(state);
        self.dirty.notify_one();
    }

    /// Returns whether nobody reads any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.lock().gone
    }

    /// Waits until frames are to leave, and exchanges them for the empty `frames`.
    /// Returns false when it is closed and empty.
    pub(crate) fn take(&self, frames: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        while !state.ready() {
            if state.frames.is_empty() {
                state = self
                    .leave
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (after, waited) = self
                .leave
                .wait_timeout(state, LINGER)
                .unwrap_or_else(PoisonError::into_inner);
            state = after;
            if waited.timed_out() {
                break;
            }
        }
        self.exchange(state, frames)
    }

    /// The same as [`Outbox::take`] for a reader in the same runtime.
    pub(crate) async fn take_async(&self, frames: &mut Vec<u8>) -> bool {
        loop {
            let leave = self.leave_async.notified();
            {
                let state = self.lock();
                if state.ready() {
                    return self.exchange(state, frames);
                }
            }
            leave.await;
        }
    }

    fn exchange(&self, mut state: MutexGuard<'_, State>, frames: &mut Vec<u8>) -> bool {
        frames.clear();
        if frames.capacity() > KEEP_CAPACITY {
            *frames = Vec::new();
        }
        std::mem::swap(&mut state.frames, frames);
        state.leave = false;
        let dropped = std::mem::take(&mut state.logs_dropped);
        drop(state);
        self.room.notify_waiters();
        if dropped > 0 {
            frames.extend_from_slice(
                format!(
                    "{{\"log\":{{\"level\":\"warn\",\"text\":\"{dropped} log lines were dropped: \
                     they came faster than they could be written\"}}}}\n"
                )
                .as_bytes(),
            );
        }
        !frames.is_empty()
    }

    fn append(&self, mut state: MutexGuard<'_, State>, frame: &[u8]) {
        if state.gone {
            return;
        }
        let was_empty = state.frames.is_empty();
        state.frames.extend_from_slice(frame);
        let leaves = state.frames.len() >= LEAVE_AT && !state.leave;
        state.leave |= leaves;
        drop(state);
        if leaves {
            self.wake_writer();
        } else if was_empty {
            self.leave.notify_one();
        }
        if was_empty {
            self.dirty.notify_one();
        }
    }

    fn is_full(&self) -> bool {
        let state = self.lock();
        state.gone || state.frames.len() >= ROOM_BELOW
    }

    fn wake_writer(&self) {
        self.leave.notify_one();
        self.leave_async.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ready(&self) -> bool {
        self.closed || self.leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn order_is_kept() {
        let outbox = Outbox::default();
        outbox.push(b"a\n");
        outbox.push_log(b"b\n");
        outbox.push(b"c\n");
        outbox.close();
        let mut frames = Vec::new();
        assert!(outbox.take(&mut frames));
        assert_eq!(frames, b"a\nb\nc\n");
        assert!(!outbox.take(&mut frames));
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let outbox = Arc::new(Outbox::default());
        let line = vec![b'x'; 1 << 10];
        for _ in 0..ROOM_BELOW >> 10 {
            outbox.push_when_room(&line).await;
        }
        let blocked = tokio::time::timeout(Duration::from_millis(20), outbox.push_when_room(&line));
        assert!(blocked.await.is_err(), "the buffer is full");
        for _ in 0..2 * (LOG_BELOW >> 10) {
            outbox.push_log(&line);
        }
        let mut frames = Vec::new();
        assert!(outbox.take(&mut frames));
        assert!(frames.len() < LOG_BELOW + (2 << 10));
        assert!(
            String::from_utf8(frames)
                .unwrap()
                .contains("log lines were dropped")
        );
        outbox.push_when_room(&line).await;
    }
}

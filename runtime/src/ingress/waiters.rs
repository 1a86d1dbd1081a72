//! Those who wait for what the flow answers their requests. What came of a request is in the store;
//! here they are only told when to look.
//!
//! # Invariants
//!
//! - `whoever_is_told_before_they_wait_does_not_wait`.
//! - `nothing_is_left_of_those_who_went`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use towpath_protocol::MessageId;

/// The most requests that wait at a time: each holds a connection.
const WAITERS_MAX: usize = 4_096;

/// The requests that wait. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Waiters {
    inner: Arc<Mutex<Waiting>>,
    /// Nobody is to wait any more.
    released: CancellationToken,
}

#[derive(Debug, Default)]
struct Waiting {
    runs: HashMap<MessageId, watch::Sender<()>>,
    /// How many there are, of all runs together.
    count: usize,
}

/// One request that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    all: Waiters,
    run: MessageId,
    changes: watch::Receiver<()>,
}

impl Waiters {
    /// Says that there is something new to know of a run.
    pub fn wake(&self, run: MessageId) {
        if let Some(changed) = self.lock().runs.get(&run) {
            changed.send_replace(());
        }
    }

    /// Lets all of them go, and those who come later.
    pub fn release(&self) {
        self.released.cancel();
    }

    /// Begins to wait; none if there are too many.
    pub(super) fn enter(&self, run: MessageId) -> Option<Waiter> {
        let mut waiting = self.lock();
        if waiting.count == WAITERS_MAX {
            return None;
        }
        waiting.count += 1;
        let changed = waiting
            .runs
            .entry(run)
            .or_insert_with(|| watch::Sender::new(()));
        Some(Waiter {
            all: self.clone(),
            run,
            changes: changed.subscribe(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Waits until there is something new to know. Returns false if nobody is to wait any more.
    /// Cancel-safe: what is new stays new until this returns.
    pub(super) async fn changed(&mut self) -> bool {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = self.all.released.cancelled() => false,
            changed = self.changes.changed() => changed.is_ok(),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.all.lock();
        waiting.count -= 1;
        // This one is still among them.
        let is_last = |changed: &watch::Sender<()>| changed.receiver_count() == 1;
        if waiting.runs.get(&self.run).is_some_and(is_last) {
            waiting.runs.remove(&self.run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: MessageId = MessageId::from_bytes([1; 16]);

    #[tokio::test]
    async fn whoever_is_told_before_they_wait_does_not_wait() {
        let waiters = Waiters::default();
        let (mut one, mut other) = (waiters.enter(RUN).unwrap(), waiters.enter(RUN).unwrap());
        waiters.wake(RUN);
        assert!(one.changed().await && other.changed().await);
        assert!(futures_util::poll!(Box::pin(one.changed())).is_pending());
        waiters.release();
        assert!(!one.changed().await);
        assert!(!waiters.enter(RUN).unwrap().changed().await);
    }

    #[tokio::test]
    async fn nothing_is_left_of_those_who_went() {
        let waiters = Waiters::default();
        let one = waiters.enter(RUN).unwrap();
        drop(waiters.enter(RUN));
        waiters.wake(RUN);
        drop(one);
        let waiting = waiters.lock();
        assert!(waiting.runs.is_empty());
        assert_eq!(waiting.count, 0);
    }

    #[test]
    fn too_many_are_not_let_in() {
        let waiters = Waiters::default();
        let all: Vec<_> = (0..WAITERS_MAX).map(|_| waiters.enter(RUN)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(waiters.enter(RUN).is_none());
        drop(all);
        assert!(waiters.enter(RUN).is_some());
    }
}

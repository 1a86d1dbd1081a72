//! Requests of the same name, one after the other.
//!
//! # Invariants
//!
//! - `two_of_one_name_never_have_their_turn_at_a_time`.
//! - `nothing_is_left_of_a_turn`: only names that somebody holds or waits for are remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;
use towpath_protocol::MessageId;

/// Who has a turn, and who waits for one. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    inner: Arc<Mutex<HashMap<MessageId, Arc<tokio::sync::Mutex<()>>>>>,
}

/// The turn of a request, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    id: MessageId,
    turns: Turns,
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits until nobody else of this name has a turn. Whoever stops waiting leaves nothing behind.
    pub(super) async fn take(&self, id: MessageId) -> Turn {
        let lock = Arc::clone(self.lock().entry(id).or_default());
        let mut turn = Turn {
            id,
            turns: self.clone(),
            lock: Some(Arc::clone(&lock)),
            guard: None,
        };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MessageId, Arc<tokio::sync::Mutex<()>>>> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.turns.lock();
        self.guard = None;
        self.lock = None;
        // Clones are made under the same lock: what is alone here stays alone.
        if turns
            .get(&self.id)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            turns.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    fn id(number: u128) -> MessageId {
        MessageId::from_bytes(number.to_be_bytes())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_of_one_name_never_have_their_turn_at_a_time() {
        let turns = Turns::default();
        let inside: Arc<[AtomicU32; 3]> = Arc::default();
        let mut tasks = JoinSet::new();
        for number in 0..300_usize {
            let (turns, inside) = (turns.clone(), Arc::clone(&inside));
            tasks.spawn(async move {
                let name = number % 3;
                let _turn = turns.take(id(name as u128)).await;
                assert_eq!(inside[name].fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside[name].fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert_eq!(tasks.join_all().await.len(), 300);
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_turn() {
        let turns = Turns::default();
        let first = turns.take(id(1)).await;
        {
            let mut second = Box::pin(turns.take(id(1)));
            assert!(futures_util::poll!(&mut second).is_pending());
            // A caller that goes away.
        }
        drop(first);
        assert!(turns.lock().is_empty());
    }
}

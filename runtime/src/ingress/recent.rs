//! The newest messages that webhooks took in: until an agent takes one, nobody else knows of it.
//!
//! # Invariants
//!
//! - `the_newest_are_remembered`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towpath_protocol::MessageId;

/// How many are remembered: about 1.5 MiB at the most.
const RECENT_MAX: usize = 32_768;

/// A message that entered a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The message.
    pub id: MessageId,
    /// The flow.
    pub flow: Arc<str>,
    /// The steps it went to; none if no condition held for it.
    pub to: Arc<[String]>,
    /// When the broker had it, in milliseconds since 1970.
    pub at: u64,
}

/// What was taken in of late. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    inner: Arc<Mutex<VecDeque<Entered>>>,
}

impl Recent {
    /// Remembers a message that the broker has.
    pub fn push(&self, id: MessageId, flow: &str, to: &[String], at: u64) {
        let mut recent = self.lock();
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        let last = recent.back();
        let flow = match last {
            Some(last) if &*last.flow == flow => Arc::clone(&last.flow),
            _ => flow.into(),
        };
        let to = match last {
            Some(last) if &*last.to == to => Arc::clone(&last.to),
            _ => to.into(),
        };
        recent.push_back(Entered { id, flow, to, at });
    }

    /// When a message entered last, and where.
    pub fn find(&self, id: MessageId) -> Option<Entered> {
        let recent = self.lock();
        recent
            .iter()
            .rev()
            .find(|entered| entered.id == id)
            .cloned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entered>> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered() {
        let recent = Recent::default();
        let id = |number: usize| MessageId::from_bytes((number as u128).to_be_bytes());
        for number in 0..=RECENT_MAX {
            recent.push(id(number), "orders", &["crm".to_owned()], number as u64);
        }
        assert_eq!(recent.find(id(0)), None);
        let last = recent.find(id(RECENT_MAX)).unwrap();
        assert_eq!((&*last.flow, last.at), ("orders", RECENT_MAX as u64));
        assert_eq!(recent.lock().len(), RECENT_MAX);
    }
}

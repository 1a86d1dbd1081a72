//! Messages that were settled after the connection they came by was lost, or that an output was made from
//! together with others: when the broker delivers them again, they are acknowledged instead of handled
//! twice.

use std::collections::{HashSet, VecDeque};

use towpath_protocol::MessageId;

/// One handling of a message: a retry or a replay of it is another one.
pub type Handling = (MessageId, u32, u32, u32);

/// How many are remembered.
const MAX: usize = 16_384;

/// The handlings that are remembered.
#[derive(Default)]
pub struct Finished {
    order: VecDeque<Handling>,
    set: HashSet<Handling>,
}

impl Finished {
    /// Remembers a handling.
    pub fn insert(&mut self, handling: Handling) {
        if self.set.insert(handling) {
            self.order.push_back(handling);
        }
        while self.order.len() > MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.set.remove(&oldest);
            }
        }
    }

    /// Returns whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Returns whether a handling is remembered.
    pub fn contains(&self, handling: &Handling) -> bool {
        self.set.contains(handling)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.order.clear();
        self.set.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_the_newest() {
        let mut finished = Finished::default();
        let handling = |number: usize| {
            (
                MessageId::from_bytes((number as u128).to_le_bytes()),
                1,
                0,
                0,
            )
        };
        for number in 0..=MAX {
            finished.insert(handling(number));
        }
        assert!(!finished.contains(&handling(0)));
        assert!(finished.contains(&handling(MAX)));
        finished.clear();
        assert!(finished.is_empty());
    }
}

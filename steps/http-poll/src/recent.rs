//! A memory of hashes that forgets the oldest: what a walk has seen lately.

use std::collections::HashSet;

/// How many hashes are remembered at least; twice as many at most. A set of them is about a
/// megabyte.
const REMEMBERED_MIN: usize = 32_768;

/// A bounded set of hashes.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Recent {
    /// Remembers a hash, and says whether it was not known.
    pub(crate) fn insert(&mut self, hash: u64) -> bool {
        if self.old.contains(&hash) || !self.young.insert(hash) {
            return false;
        }
        if self.young.len() >= REMEMBERED_MIN {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_lately_is_known_and_memory_is_bounded() {
        let mut recent = Recent::default();
        for hash in 0..10 * REMEMBERED_MIN as u64 {
            assert!(recent.insert(hash));
            let back = hash.saturating_sub(REMEMBERED_MIN as u64 - 1);
            assert!(!recent.insert(back), "{back} at {hash}");
            assert!(recent.young.len() + recent.old.len() <= 2 * REMEMBERED_MIN);
        }
    }
}

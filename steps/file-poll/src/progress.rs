//! How far each file was read: what a checkpoint holds. Pure.
//!
//! # Invariants
//!
//! - `a_row_has_the_same_id_at_every_try`: a file gets its number, which the ids of its rows begin
//!   with, in a checkpoint before its first row is emitted.
//! - `another_file_of_the_same_name_is_read_from_its_beginning`, and so is one that became shorter.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::find::{Found, Look};

/// The most files that are remembered: a checkpoint has 64 KiB, and a file takes 188 bytes at most.
pub(crate) const FILES_MAX: usize = 300;

/// The longest name of a file that is read, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 100;

/// What is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The files that were begun and are still there, by name.
    pub files: BTreeMap<String, Known>,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// The file system's number of it.
    pub inode: u64,
    /// When it was begun, in milliseconds since 1970: what its rows are told apart by from those of
    /// another file of that name.
    pub begun: u64,
    /// Up to where it was read, in bytes.
    pub at: u64,
}

impl Known {
    /// The id of the row that begins at `start`.
    pub fn row_id(&self, name: &str, start: u64) -> String {
        format!("{name}@{}:{start}", self.begun)
    }
}

impl Progress {
    /// Forgets files that are not there any more.
    pub fn keep(&mut self, found: &[Found]) {
        let there: BTreeSet<&str> = found.iter().map(|file| &*file.name).collect();
        self.files.retain(|name, _| there.contains(&**name));
    }

    /// What is known of a file, if it is still the same.
    pub fn of(&self, name: &str, look: &Look) -> Option<Known> {
        let known = self.files.get(name)?;
        (known.inode == look.inode && known.at <= look.length).then_some(*known)
    }

    /// Begins a file; false if too many are known already.
    pub fn begin(&mut self, name: &str, look: &Look, now: u64) -> bool {
        if !self.files.contains_key(name) && self.files.len() >= FILES_MAX {
            return false;
        }
        // Never the same number twice for one name, whatever the clock does.
        let before = self.files.get(name).map(|known| known.begun + 1);
        let known = Known {
            inode: look.inode,
            begun: now.max(before.unwrap_or_default()),
            at: 0,
        };
        self.files.insert(name.to_owned(), known);
        true
    }

    /// Notes up to where a file was read.
    pub fn advance(&mut self, name: &str, at: u64) {
        if let Some(known) = self.files.get_mut(name) {
            known.at = at;
        }
    }

    /// Forgets a file.
    pub fn forget(&mut self, name: &str) {
        self.files.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn look(inode: u64, length: u64) -> Look {
        Look {
            inode,
            length,
            unchanged: Duration::ZERO,
        }
    }

    #[test]
    fn another_file_of_the_same_name_is_read_from_its_beginning() {
        let mut progress = Progress::default();
        assert!(progress.begin("a", &look(1, 10), 5));
        progress.advance("a", 8);
        assert_eq!(progress.of("a", &look(1, 10)).map(|it| it.at), Some(8));
        assert_eq!(progress.of("a", &look(1, 7)), None, "it became shorter");
        assert_eq!(progress.of("a", &look(2, 10)), None, "another one");
        assert!(progress.begin("a", &look(2, 10), 5));
        let known = progress.of("a", &look(2, 10));
        assert_eq!(known.map(|it| (it.begun, it.at)), Some((6, 0)));
    }

    #[test]
    fn files_that_are_gone_are_forgotten_and_the_rest_has_a_bound() {
        let mut progress = Progress::default();
        for number in 0..FILES_MAX {
            assert!(progress.begin(&format!("{number}"), &look(1, 1), 1));
        }
        assert!(!progress.begin("more", &look(1, 1), 1));
        assert!(progress.begin("7", &look(2, 1), 1), "it is known");
        let found = [Found {
            name: "7".to_owned(),
            path: "/7".into(),
        }];
        progress.keep(&found);
        assert_eq!(progress.files.len(), 1);
    }

    #[test]
    fn the_largest_checkpoint_has_room() {
        let mut progress = Progress::default();
        for number in 0..FILES_MAX {
            let name = format!("{number:0>NAME_BYTES_MAX$}");
            progress.begin(&name, &look(u64::MAX, 1), u64::MAX - 1);
            progress.advance(&name, u64::MAX);
        }
        let text = serde_json::to_string(&progress).expect("JSON");
        assert!(text.len() <= 64 << 10, "{}", text.len());
    }
}

//! What was brought in already, and what is to be remembered of it.
//!
//! # Invariants
//!
//! - `ties_are_neither_skipped_nor_repeated`: of several items with the same cursor value, each is
//!   brought in once, however pages and runs fall between them.
//! - `nothing_is_passed_over`: the position never goes beyond an item that was not emitted: in the
//!   middle of a walk it is moved only if the source is sorted, else at the end of the walk.
//! - `what_is_remembered_is_bounded`: beyond the bound an item may be brought in again, under the
//!   same source id, but never be left out.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::value::CursorValue;

/// The most items that a checkpoint remembers: it has to stay far below 64 KiB.
const REMEMBERED_MAX: usize = 1500;

/// What is saved between runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The largest cursor value of all items that were brought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<CursorValue>,
    /// The items with exactly that value (or, without cursors, all of the last walk): the hash of
    /// the id, and the hash of the content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen: BTreeMap<String, String>,
}

/// One item, as the walk sees it.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Its id, as text.
    pub id: &'a str,
    /// When it changed, if the source says so.
    pub cursor: Option<&'a CursorValue>,
    /// Its content.
    pub body: &'a RawValue,
}

/// What a walk knows of what was brought in.
#[derive(Debug)]
pub struct Progress {
    /// Where the walk began.
    before: Checkpoint,
    /// Where the next one may begin, once everything up to here is emitted.
    after: Checkpoint,
    /// What this walk has brought in, so that pages that overlap repeat nothing. Bounded.
    walked: HashSet<(u64, u64)>,
    sorted: bool,
    /// The source said it was sorted, and was not.
    disordered: bool,
}

/// How many items of one walk are remembered to recognise repeats in overlapping pages: the older
/// half is forgotten by then.
const WALKED_MAX: usize = 100_000;

impl Progress {
    /// Begins a walk where the last one ended.
    pub fn new(before: Option<Checkpoint>, sorted: bool) -> Self {
        let before = before.unwrap_or_default();
        let after = Checkpoint {
            cursor: before.cursor.clone(),
            // With cursors, what is at the same value stays known; without, each walk is whole.
            seen: if before.cursor.is_some() {
                before.seen.clone()
            } else {
                BTreeMap::new()
            },
        };
        Self {
            before,
            after,
            walked: HashSet::new(),
            sorted,
            disordered: false,
        }
    }

    /// Returns the position that the source is asked to begin at.
    pub fn since(&self) -> Option<&CursorValue> {
        self.before.cursor.as_ref()
    }

    /// Takes an item in. Returns the source id to emit it under; none if it was brought in before.
    pub fn take(&mut self, item: Item<'_>) -> Option<String> {
        let (id_hash, content_hash) = (hash(item.id), hash(item.body.get()));
        let content = text(content_hash);
        let known = self.before.seen.get(&text(id_hash));
        let is_same = known == Some(&content);
        let was_other = known.is_some_and(|known| *known != content);
        let order = match (item.cursor, &self.before.cursor) {
            (Some(cursor), Some(before)) => cursor.compare(before),
            (Some(_), None) => Ordering::Greater,
            (None, _) => Ordering::Equal,
        };
        let is_new = match order {
            Ordering::Less => false,
            Ordering::Equal => !is_same,
            Ordering::Greater => true,
        };
        if is_new || item.cursor.is_none() {
            self.remember(item.cursor, id_hash, content);
        }
        if self.walked.len() >= WALKED_MAX {
            self.walked.clear();
        }
        if !is_new || !self.walked.insert((id_hash, content_hash)) {
            return None;
        }
        Some(match item.cursor {
            // The same time, but not the same item: the source's clock is too coarse to tell.
            Some(cursor) if was_other && order == Ordering::Equal => {
                format!("{}@{cursor}#{}", item.id, text(content_hash))
            }
            Some(cursor) => format!("{}@{cursor}", item.id),
            None => format!("{}@{}", item.id, text(content_hash)),
        })
    }

    /// Returns the position to save in the middle of a walk, when everything that was taken is
    /// emitted; none if the source is not sorted.
    pub fn midway(&self) -> Option<&Checkpoint> {
        let may = self.sorted && !self.disordered && self.after.cursor.is_some();
        (may && self.after != self.before).then_some(&self.after)
    }

    /// Returns the position to save at the end of a walk; none if it has not moved.
    pub fn end(&self) -> Option<&Checkpoint> {
        (self.after != self.before).then_some(&self.after)
    }

    /// Returns whether the source said it was sorted, and was not.
    pub fn is_disordered(&self) -> bool {
        self.disordered
    }

    fn remember(&mut self, cursor: Option<&CursorValue>, id_hash: u64, content: String) {
        if let Some(cursor) = cursor {
            let order = self
                .after
                .cursor
                .as_ref()
                .map(|after| cursor.compare(after));
            match order {
                Some(Ordering::Less) => {
                    self.disordered |= self.sorted;
                    return;
                }
                Some(Ordering::Equal) => {}
                Some(Ordering::Greater) | None => {
                    self.after.cursor = Some(cursor.clone());
                    self.after.seen.clear();
                }
            }
        }
        if self.after.seen.len() < REMEMBERED_MAX {
            self.after.seen.insert(text(id_hash), content);
        }
    }
}

fn hash(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(bytes)
}

fn text(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Takes items of the form (id, cursor, content) and returns the source ids.
    fn take(progress: &mut Progress, items: &[(&str, i64, &str)]) -> Vec<String> {
        let mut taken = Vec::new();
        for (id, cursor, content) in items {
            let body = RawValue::from_string(json!(content).to_string()).unwrap();
            let cursor = CursorValue::Number((*cursor).into());
            taken.extend(progress.take(Item {
                id,
                cursor: Some(&cursor),
                body: &body,
            }));
        }
        taken
    }

    fn walk(before: Option<Checkpoint>, items: &[(&str, i64, &str)]) -> (Vec<String>, Checkpoint) {
        let mut progress = Progress::new(before.clone(), false);
        let taken = take(&mut progress, items);
        (
            taken,
            progress.end().cloned().or(before).unwrap_or_default(),
        )
    }

    #[test]
    fn ties_are_neither_skipped_nor_repeated() {
        let (taken, saved) = walk(None, &[("a", 1, ""), ("b", 2, ""), ("c", 2, "")]);
        assert_eq!(taken, ["a@1", "b@2", "c@2"]);
        // An item that came later with the same time is new; those that were there are not.
        let (taken, saved) = walk(Some(saved), &[("b", 2, ""), ("c", 2, ""), ("d", 2, "")]);
        assert_eq!(taken, ["d@2"]);
        let (taken, saved) = walk(
            Some(saved),
            &[("b", 2, ""), ("c", 2, ""), ("d", 2, ""), ("e", 3, "")],
        );
        assert_eq!(taken, ["e@3"]);
        let (taken, same) = walk(Some(saved.clone()), &[("e", 3, "")]);
        assert_eq!((taken.len(), same), (0, saved));
    }

    #[test]
    fn a_change_within_one_time_is_seen() {
        let (_, saved) = walk(None, &[("a", 1, "one")]);
        let (taken, saved) = walk(Some(saved), &[("a", 1, "two")]);
        assert_eq!(taken.len(), 1);
        assert!(
            taken[0].starts_with("a@1#"),
            "it needs a name of its own: {taken:?}"
        );
        assert_eq!(walk(Some(saved), &[("a", 1, "two")]).0.len(), 0);
    }

    #[test]
    fn what_is_older_than_the_position_was_brought_in() {
        let (_, saved) = walk(None, &[("a", 1, ""), ("b", 5, "")]);
        assert_eq!(
            walk(Some(saved), &[("a", 1, ""), ("b", 5, ""), ("c", 6, "")]).0,
            ["c@6"]
        );
    }

    #[test]
    fn pages_that_overlap_repeat_nothing() {
        assert_eq!(
            walk(
                None,
                &[("a", 1, ""), ("b", 2, ""), ("b", 2, ""), ("c", 3, "")]
            )
            .0
            .len(),
            3
        );
    }

    #[test]
    fn nothing_is_passed_over() {
        let mut unsorted = Progress::new(None, false);
        take(&mut unsorted, &[("b", 9, "")]);
        assert_eq!(unsorted.midway(), None);
        take(&mut unsorted, &[("a", 1, "")]);
        assert_eq!(
            unsorted.end().unwrap().cursor,
            Some(CursorValue::Number(9.into()))
        );

        let mut sorted = Progress::new(None, true);
        take(&mut sorted, &[("a", 1, "")]);
        assert_eq!(
            sorted.midway().unwrap().cursor,
            Some(CursorValue::Number(1.into()))
        );
        take(&mut sorted, &[("b", 9, ""), ("c", 3, "")]);
        assert!(sorted.is_disordered());
        assert_eq!(
            sorted.midway(),
            None,
            "c shows that more below 9 may follow"
        );
        assert_eq!(
            sorted.end().unwrap().cursor,
            Some(CursorValue::Number(9.into()))
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let ids: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
        let items: Vec<_> = ids.iter().map(|id| (id.as_str(), 7, "")).collect();
        let (taken, saved) = walk(None, &items);
        assert_eq!(taken.len(), 5000);
        assert!(serde_json::to_vec(&saved).unwrap().len() < 60 << 10);
        let (again, _) = walk(Some(saved), &items);
        assert_eq!(
            again,
            taken[REMEMBERED_MAX..],
            "the rest comes again by the same names"
        );
    }

    #[test]
    fn without_cursors_what_changed_comes() {
        let read = |before: Option<Checkpoint>, items: &[(&str, &str)]| {
            let mut progress = Progress::new(before.clone(), false);
            let mut taken = Vec::new();
            for (id, content) in items {
                let body = RawValue::from_string(json!(content).to_string()).unwrap();
                taken.extend(progress.take(Item {
                    id,
                    cursor: None,
                    body: &body,
                }));
            }
            assert_eq!(progress.midway(), None);
            (taken, progress.end().cloned().or(before))
        };
        let (first, saved) = read(None, &[("a", "1"), ("b", "1")]);
        assert_eq!(first.len(), 2);
        let (second, saved) = read(saved, &[("a", "1"), ("b", "2"), ("c", "1")]);
        assert_eq!(second.len(), 2);
        assert!(second[0].starts_with("b@") && second[1].starts_with("c@"));
        assert_eq!(
            read(saved, &[("a", "1"), ("b", "2"), ("c", "1")]).0.len(),
            0
        );
    }
}

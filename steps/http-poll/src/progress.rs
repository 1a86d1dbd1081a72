//! What was brought in already, and what is to be remembered of it.
//!
//! # Invariants
//!
//! - `ties_are_neither_skipped_nor_repeated`: of several items with the same cursor value, each is
//!   brought in once, however pages and runs fall between them.
//! - `late_items_are_brought_in_once`: what is not older than `look_back` is looked at again, and what
//!   of it was brought in is recognised.
//! - `nothing_is_passed_over`: the position never goes beyond an item that was not emitted: in the
//!   middle of a walk it is moved only if the source is sorted, else at the end of the walk.
//! - `what_is_remembered_is_bounded`: beyond the bound an item may be brought in again, under the
//!   same source id, but never be left out.

use std::cmp::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::known::{KNOWN_MAX, Knowledge, Known, Marks};
use crate::recent::Recent;
use crate::validators::Validators;
use crate::value::{CursorValue, Position};

/// What is saved between runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The largest cursor value of all items that were brought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<CursorValue>,
    /// The items that the next run will see again: those with that value or up to `look_back` before
    /// it (or, without cursors, all of the last walk).
    #[serde(default, skip_serializing_if = "Known::is_empty")]
    pub(crate) known: Known,
    /// What says that nothing changed since, if the source gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) validators: Option<Validators>,
}

/// One item, as the walk sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    /// Its id, as text.
    pub(crate) id: &'a str,
    /// When it changed, if the source says so.
    pub(crate) cursor: Option<&'a Position>,
    /// Its content.
    pub(crate) body: &'a RawValue,
}

/// What a walk is to look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// The source lists the oldest change first.
    pub(crate) sorted: bool,
    /// How far back from the last position it begins.
    pub(crate) look_back: Duration,
    /// Where it begins when there is no last position.
    pub(crate) since: Option<Position>,
}

/// What a walk knows of what was brought in.
#[derive(Debug)]
pub(crate) struct Progress {
    scope: Scope,
    /// Where the last walk ended.
    before: Checkpoint,
    before_at: Option<Position>,
    /// Where this one begins.
    floor: Option<Position>,
    /// The largest cursor of all items: where the next one ends its look back.
    after: Option<Position>,
    /// The largest cursor of this walk.
    highest: Option<Position>,
    /// What the next walk may see again.
    seen: Vec<(Option<Position>, Marks)>,
    /// What this walk has brought in, so that pages that overlap repeat nothing. Bounded.
    walked: Recent,
    /// The source said it was sorted, and was not.
    disordered: bool,
    /// More was to be remembered than can be.
    overflowed: bool,
}

/// The cursor is no time, so that nothing can be so much earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoTime(String);

impl std::fmt::Display for NoTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`look_back` needs a `cursor` that is a time, and `{}` is none",
            self.0
        )
    }
}

impl std::error::Error for NoTime {}

impl Progress {
    /// Begins a walk where the last one ended.
    pub(crate) fn new(before: Option<Checkpoint>, scope: Scope) -> Result<Self, NoTime> {
        let before = before.unwrap_or_default();
        let before_at: Option<Position> = before.cursor.clone().map(Position::from);
        let floor = match &before_at {
            Some(at) => Some(
                at.minus(scope.look_back)
                    .ok_or_else(|| NoTime(at.to_string()))?,
            ),
            None => scope.since.clone(),
        };
        Ok(Self {
            after: before_at.clone(),
            scope,
            before,
            before_at,
            floor,
            highest: None,
            seen: Vec::new(),
            walked: Recent::default(),
            disordered: false,
            overflowed: false,
        })
    }

    /// Returns the position that the source is asked to begin at.
    pub(crate) fn since(&self) -> Option<&CursorValue> {
        self.floor.as_ref().map(Position::value)
    }

    /// Says whether an item can be compared with where the first walk is told to begin.
    pub(crate) fn is_comparable(&self, cursor: &Position) -> bool {
        let told = self.floor.as_ref().filter(|_| self.before_at.is_none());
        told.is_none_or(|told| told.is_like(cursor))
    }

    /// Takes an item in. Returns the source id to emit it under; none if it was brought in before.
    pub(crate) fn take(&mut self, item: Item<'_>) -> Option<String> {
        let name = match item.cursor {
            Some(cursor) => format!("{}@{cursor}", item.id),
            None => item.id.to_owned(),
        };
        let marks = Marks::of(&name, item.body.get());
        if let (Some(cursor), Some(floor)) = (item.cursor, &self.floor)
            && cursor.compare(floor) == Ordering::Less
        {
            return None;
        }
        if !self.walked.insert(marks.hash()) {
            return None;
        }
        self.remember(item.cursor, marks);
        let knowledge = self.before.known.look(marks);
        if knowledge == Knowledge::Same {
            return None;
        }
        Some(match (item.cursor, knowledge) {
            // The same time, but not the same item: the source's clock is too coarse to tell.
            (Some(_), Knowledge::Changed) => format!("{name}#{}", marks.content()),
            (Some(_), _) => name,
            (None, _) => format!("{name}@{}", marks.content()),
        })
    }

    /// Says that what comes next was in part read before: a page that broke off is read again.
    pub(crate) fn again(&mut self) {
        self.highest = None;
    }

    /// Returns the position to save in the middle of a walk, when everything that was taken is
    /// emitted; none if the source is not sorted, or nothing has moved.
    pub(crate) fn midway(&mut self) -> Option<Checkpoint> {
        if !self.scope.sorted || self.disordered || self.highest.is_none() {
            return None;
        }
        let checkpoint = self.checkpoint(false, None);
        (checkpoint != self.before).then_some(checkpoint)
    }

    /// Returns the position to save at the end of a walk; none if it has not moved.
    pub(crate) fn end(&mut self, validators: Option<Validators>) -> Option<Checkpoint> {
        let checkpoint = self.checkpoint(true, validators);
        (checkpoint != self.before).then_some(checkpoint)
    }

    /// Returns whether the source said it was sorted, and was not.
    pub(crate) fn is_disordered(&self) -> bool {
        self.disordered
    }

    /// Returns whether there was more to remember than can be remembered.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    fn remember(&mut self, cursor: Option<&Position>, marks: Marks) {
        if let Some(cursor) = cursor {
            let order = |at: &Option<Position>| {
                let order = at.as_ref().map(|at| cursor.compare(at));
                order.unwrap_or(Ordering::Greater)
            };
            self.disordered |= self.scope.sorted && order(&self.highest) == Ordering::Less;
            if order(&self.highest) == Ordering::Greater {
                self.highest = Some(cursor.clone());
            }
            if order(&self.after) == Ordering::Greater {
                self.after = Some(cursor.clone());
                if self.scope.look_back.is_zero() {
                    self.seen.clear();
                    self.overflowed = false;
                }
            }
            // Without a look back only what is at the last position is seen again.
            if self.scope.look_back.is_zero() && order(&self.after) == Ordering::Less {
                return;
            }
        }
        if self.seen.len() >= 2 * KNOWN_MAX {
            self.forget();
        }
        self.seen.push((cursor.cloned(), marks));
    }

    /// Forgets what the next walk will not see, and of the rest what is oldest.
    fn forget(&mut self) {
        let floor = self.next_floor();
        self.seen
            .retain(|(cursor, _)| is_seen_again(cursor.as_ref(), floor.as_ref()));
        if self.seen.len() > KNOWN_MAX {
            self.overflowed = true;
            // Of what is equal the first stay, so that it is the same ones each time.
            self.seen.sort_by(|(one, _), (two, _)| match (one, two) {
                (Some(one), Some(two)) => two.compare(one),
                _ => Ordering::Equal,
            });
            self.seen.truncate(KNOWN_MAX);
        }
    }

    fn next_floor(&self) -> Option<Position> {
        self.after.as_ref()?.minus(self.scope.look_back)
    }

    fn checkpoint(&mut self, is_end: bool, validators: Option<Validators>) -> Checkpoint {
        if self.seen.len() > KNOWN_MAX {
            self.forget();
        }
        let floor = self.next_floor();
        let mut known = Known::default();
        for (cursor, marks) in &self.seen {
            if is_seen_again(cursor.as_ref(), floor.as_ref()) && !known.insert(*marks) {
                self.overflowed = true;
            }
        }
        // What this walk has not seen again may still come: in the middle of it, and from a source
        // that leaves out what has exactly the time that it was asked for.
        if let (Some(before), Some(floor), Some(after)) = (&self.before_at, &floor, &self.after)
            && before.compare(floor) != Ordering::Less
            && (!is_end || before.compare(after) == Ordering::Equal)
        {
            for marks in self.before.known.marks() {
                if known.look(marks) == Knowledge::New {
                    known.insert(marks);
                }
            }
        }
        Checkpoint {
            cursor: self.after.as_ref().map(|after| after.value().clone()),
            known,
            validators,
        }
    }
}

/// Says whether a walk that begins at `floor` sees what is at `cursor`.
fn is_seen_again(cursor: Option<&Position>, floor: Option<&Position>) -> bool {
    match (cursor, floor) {
        (Some(cursor), Some(floor)) => cursor.compare(floor) != Ordering::Less,
        _ => true,
    }
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
            let cursor = Position::from(CursorValue::Number((*cursor).into()));
            taken.extend(progress.take(Item {
                id,
                cursor: Some(&cursor),
                body: &body,
            }));
        }
        taken
    }

    fn new(before: Option<Checkpoint>, sorted: bool, look_back: u64) -> Progress {
        let scope = Scope {
            sorted,
            look_back: Duration::from_secs(look_back),
            since: None,
        };
        Progress::new(before, scope).unwrap()
    }

    /// Walks to the end with a look back of so many seconds.
    fn walk_back(
        before: Option<Checkpoint>,
        look_back: u64,
        items: &[(&str, i64, &str)],
    ) -> (Vec<String>, Checkpoint) {
        let mut progress = new(before.clone(), false, look_back);
        let taken = take(&mut progress, items);
        (taken, progress.end(None).or(before).unwrap_or_default())
    }

    fn walk(before: Option<Checkpoint>, items: &[(&str, i64, &str)]) -> (Vec<String>, Checkpoint) {
        walk_back(before, 0, items)
    }

    fn number(number: i64) -> CursorValue {
        CursorValue::Number(number.into())
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
        assert_eq!((taken.len(), &same), (0, &saved));
        // A source that leaves out what it was asked from changes nothing of that.
        let (_, same) = walk(Some(saved.clone()), &[]);
        assert_eq!(same, saved);
    }

    #[test]
    fn ties_at_the_end_of_a_page_survive_a_cut() {
        let mut first = new(None, true, 0);
        take(&mut first, &[("a", 1, ""), ("b", 2, "")]);
        let saved = first.midway().unwrap();
        let mut second = new(Some(saved), true, 0);
        let taken = take(&mut second, &[("b", 2, ""), ("c", 2, ""), ("d", 3, "")]);
        assert_eq!(taken, ["c@2", "d@3"]);
    }

    #[test]
    fn late_items_are_brought_in_once() {
        let (taken, saved) = walk_back(None, 10, &[("a", 100, ""), ("b", 105, ""), ("c", 110, "")]);
        assert_eq!((taken.len(), &saved.cursor), (3, &Some(number(110))));
        // `late` was written with an old time after the last run; `older` is too late.
        let again = [
            ("older", 99, ""),
            ("a", 100, ""),
            ("late", 103, ""),
            ("b", 105, ""),
            ("c", 110, ""),
        ];
        let (taken, saved) = walk_back(Some(saved), 10, &again);
        assert_eq!(taken, ["late@103"]);
        let (taken, same) = walk_back(Some(saved.clone()), 10, &again);
        assert_eq!((taken.len(), &same), (0, &saved));
        // The window moves on, and what is before it is forgotten.
        let (taken, saved) = walk_back(Some(saved), 10, &[("c", 110, ""), ("d", 118, "")]);
        assert_eq!(taken, ["d@118"]);
        let size = serde_json::to_string(&saved.known).unwrap().len();
        assert!(size <= 2 + 27, "two items are remembered, not six: {size}");
        let (taken, _) = walk_back(Some(saved), 10, &[("late", 109, ""), ("c", 110, "")]);
        assert_eq!(taken, ["late@109"]);
    }

    #[test]
    fn a_walk_that_is_cut_in_the_middle_of_its_look_back_repeats_nothing() {
        let (_, saved) = walk_back(None, 10, &[("a", 100, ""), ("b", 105, ""), ("c", 110, "")]);
        let mut cut = new(Some(saved), true, 10);
        assert_eq!(
            take(&mut cut, &[("a", 100, ""), ("late", 101, "")]),
            ["late@101"]
        );
        let saved = cut.midway().unwrap();
        assert_eq!(
            saved.cursor,
            Some(number(110)),
            "the position never goes back"
        );
        let all = [
            ("a", 100, ""),
            ("late", 101, ""),
            ("b", 105, ""),
            ("c", 110, ""),
        ];
        assert_eq!(walk_back(Some(saved), 10, &all).0, Vec::<String>::new());
    }

    #[test]
    fn a_look_back_needs_a_time() {
        let before = Checkpoint {
            cursor: Some(CursorValue::Text("abc".into())),
            ..Checkpoint::default()
        };
        let scope = Scope {
            look_back: Duration::from_secs(1),
            ..Scope::default()
        };
        let error = Progress::new(Some(before), scope).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`look_back` needs a `cursor` that is a time, and `abc` is none"
        );
    }

    #[test]
    fn the_first_walk_begins_where_it_is_told() {
        let scope = Scope {
            since: Some(number(50).into()),
            ..Scope::default()
        };
        let mut progress = Progress::new(None, scope.clone()).unwrap();
        assert_eq!(progress.since(), Some(&number(50)));
        let taken = take(
            &mut progress,
            &[("a", 49, ""), ("b", 50, ""), ("c", 60, "")],
        );
        assert_eq!(taken, ["b@50", "c@60"]);
        let saved = progress.end(None);
        let progress = Progress::new(saved, scope).unwrap();
        assert_eq!(progress.since(), Some(&number(60)));
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
        let mut unsorted = new(None, false, 0);
        take(&mut unsorted, &[("b", 9, "")]);
        assert_eq!(unsorted.midway(), None);
        take(&mut unsorted, &[("a", 1, "")]);
        assert_eq!(unsorted.end(None).unwrap().cursor, Some(number(9)));

        let mut sorted = new(None, true, 0);
        take(&mut sorted, &[("a", 1, "")]);
        assert_eq!(sorted.midway().unwrap().cursor, Some(number(1)));
        take(&mut sorted, &[("b", 9, ""), ("c", 3, "")]);
        assert!(sorted.is_disordered());
        assert_eq!(
            sorted.midway(),
            None,
            "c shows that more below 9 may follow"
        );
        assert_eq!(sorted.end(None).unwrap().cursor, Some(number(9)));
    }

    #[test]
    fn a_page_that_is_read_again_is_not_out_of_order() {
        let mut sorted = new(None, true, 0);
        take(&mut sorted, &[("a", 1, ""), ("b", 9, "")]);
        sorted.again();
        let taken = take(&mut sorted, &[("a", 1, ""), ("b", 9, ""), ("c", 9, "")]);
        assert_eq!(taken, ["c@9"]);
        assert!(!sorted.is_disordered());
        assert_eq!(sorted.midway().unwrap().cursor, Some(number(9)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let ids: Vec<String> = (0..5 * KNOWN_MAX).map(|n| n.to_string()).collect();
        for look_back in [0, 60] {
            let items: Vec<_> = ids.iter().map(|id| (id.as_str(), 7, "")).collect();
            let mut progress = new(None, false, look_back);
            let taken = take(&mut progress, &items);
            assert_eq!(taken.len(), ids.len());
            let saved = progress.end(None).unwrap();
            assert!(progress.has_overflowed());
            assert!(serde_json::to_vec(&saved).unwrap().len() < 60 << 10);
            let (again, _) = walk_back(Some(saved), look_back, &items);
            assert_eq!(
                again,
                taken[KNOWN_MAX..],
                "the rest comes again by the same names"
            );
        }
    }

    #[test]
    fn without_cursors_what_changed_comes() {
        let read = |before: Option<Checkpoint>, items: &[(&str, &str)]| {
            let mut progress = new(before.clone(), false, 0);
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
            (taken, progress.end(None).or(before))
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

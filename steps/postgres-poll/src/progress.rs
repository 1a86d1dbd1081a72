//! What was brought in already, where to go on, and what is to be remembered.
//!
//! # Invariants
//!
//! - `ties_are_neither_skipped_nor_repeated`: a position is a cursor value and a key, so it lies
//!   between two rows even where many have one cursor value.
//! - `what_becomes_visible_late_is_brought_in`: every walk begins as far back as a transaction may
//!   have been open, and what was brought in before is left out.
//! - `a_position_is_saved_only_beyond_the_window`: not while a part of the window is unread.
//! - `what_is_remembered_is_bounded`: beyond the bound a row may come again, under the same source
//!   id, but never be left out.

use std::collections::{HashSet, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

/// The most rows that a checkpoint remembers, 11 bytes each: it has to stay far below 64 KiB.
const REMEMBERED_MAX: usize = 4000;

/// What is saved between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What the position is one of: source, cursor and key.
    pub of: String,
    /// The cursor of the last row, as the database writes it.
    pub cursor: String,
    /// The key of the last row.
    pub key: Vec<String>,
    /// The cursor of the last row as a number, if its type has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<i64>,
    /// When the walk began, by the database's clock, in microseconds since 1970.
    #[serde(default)]
    pub read_at: i64,
    /// Hashes of the rows in the window that were brought in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seen: String,
}

/// How far back a walk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its length: microseconds, or whatever the cursor counts.
    pub length: i64,
    /// Whether the cursor is a time that compares with the database's clock. Then the window goes
    /// back from when the last walk began, and is over when nothing happens; else from the last row.
    pub by_clock: bool,
}

/// Where a walk, or a page of it, begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With the first row.
    First,
    /// With the rows whose cursor is at least this number.
    From(i64),
    /// After the row with this cursor and this key.
    After {
        /// The cursor.
        cursor: String,
        /// The key.
        key: Vec<String>,
    },
}

/// One row, as the walk sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its cursor, as the database writes it.
    pub cursor: String,
    /// Its key.
    pub key: Vec<String>,
    /// Its cursor as a number, if its type has one.
    pub ordinal: Option<i64>,
    /// The body, as JSON.
    pub body: String,
}

impl Row {
    /// Returns its key as one text.
    pub fn key_text(&self) -> String {
        self.key.join(",")
    }

    /// Returns the name of this state of the row.
    pub fn source_id(&self) -> String {
        format!("{}@{}", self.key_text(), self.cursor)
    }

    /// Returns where the page after it begins.
    pub fn after(&self) -> Start {
        Start::After {
            cursor: self.cursor.clone(),
            key: self.key.clone(),
        }
    }
}

/// What a walk knows of what was brought in.
#[derive(Debug)]
pub struct Progress {
    before: Option<Checkpoint>,
    of: String,
    window: Option<Window>,
    /// When this walk began, by the database's clock.
    now: i64,
    /// The last row so far, without its body.
    last: Option<Row>,
    /// What was brought in by walks before this one.
    known: HashSet<u64>,
    /// What is in the window and was brought in, oldest first: ordinal and hash.
    seen: VecDeque<(i64, u64)>,
    /// The window is behind: every row is new from here on.
    is_beyond: bool,
    forgot: bool,
}

impl Progress {
    /// Begins a walk where the last one ended.
    pub fn new(before: Option<Checkpoint>, of: String, window: Option<Window>, now: i64) -> Self {
        let before = before.filter(|before| before.of == of);
        let last = before.as_ref().map(|before| Row {
            cursor: before.cursor.clone(),
            key: before.key.clone(),
            ordinal: before.ordinal,
            body: String::new(),
        });
        let mut progress = Self {
            known: before
                .as_ref()
                .map(|before| read(&before.seen))
                .unwrap_or_default(),
            before,
            of,
            window,
            now,
            last,
            seen: VecDeque::new(),
            is_beyond: false,
            forgot: false,
        };
        progress.is_beyond = !matches!(progress.start(), Start::From(_));
        progress
    }

    /// Returns where the walk begins.
    pub fn start(&self) -> Start {
        let Some(before) = &self.before else {
            return Start::First;
        };
        let after = Start::After {
            cursor: before.cursor.clone(),
            key: before.key.clone(),
        };
        let (Some(window), Some(ordinal)) = (self.window, before.ordinal) else {
            return after;
        };
        if !window.by_clock {
            return Start::From(ordinal.saturating_sub(window.length));
        }
        let from = before.read_at.saturating_sub(window.length);
        // Whatever is not newer than that was visible when the last walk began.
        if from > ordinal {
            after
        } else {
            Start::From(from)
        }
    }

    /// Takes a row in. Returns the source id to emit it under; none if it was brought in before.
    pub fn take(&mut self, row: &Row) -> Option<String> {
        let source_id = row.source_id();
        let hash = hash(&source_id);
        self.is_beyond = self.is_beyond
            || self
                .last
                .as_ref()
                .is_none_or(|last| row.ordinal > last.ordinal);
        if self.is_beyond {
            self.last = Some(Row {
                body: String::new(),
                ..row.clone()
            });
            self.remember(row.ordinal, hash);
            return Some(source_id);
        }
        let is_last = self
            .last
            .as_ref()
            .is_some_and(|last| last.cursor == row.cursor && last.key == row.key);
        self.is_beyond = is_last;
        self.remember(row.ordinal, hash);
        (!is_last && !self.known.contains(&hash)).then_some(source_id)
    }

    /// Returns the position to save in the middle of a walk, when everything that was taken is
    /// emitted; none while the window is not behind.
    pub fn midway(&self) -> Option<Checkpoint> {
        self.is_beyond.then(|| self.checkpoint()).flatten()
    }

    /// Returns the position to save at the end of a walk; none if there is nothing new to it.
    pub fn end(&self) -> Option<Checkpoint> {
        let after = self.checkpoint()?;
        let Some(before) = &self.before else {
            return Some(after);
        };
        let has_open_window = matches!(self.start(), Start::From(_))
            && self.window.is_some_and(|window| window.by_clock);
        let is_same = Checkpoint {
            read_at: before.read_at,
            ..after.clone()
        } == *before;
        (has_open_window || !is_same).then_some(after)
    }

    /// Returns whether more rows were in the window than can be remembered.
    pub fn forgot(&self) -> bool {
        self.forgot
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        let last = self.last.as_ref()?;
        Some(Checkpoint {
            of: self.of.clone(),
            cursor: last.cursor.clone(),
            key: last.key.clone(),
            ordinal: last.ordinal,
            read_at: self.now,
            seen: write(&self.seen),
        })
    }

    fn remember(&mut self, ordinal: Option<i64>, hash: u64) {
        let (Some(window), Some(ordinal)) = (self.window, ordinal) else {
            return;
        };
        let last = self
            .last
            .as_ref()
            .and_then(|last| last.ordinal)
            .unwrap_or(ordinal);
        let end = if window.by_clock { self.now } else { last };
        let horizon = end.saturating_sub(window.length);
        self.seen.push_back((ordinal, hash));
        while self
            .seen
            .front()
            .is_some_and(|(oldest, _)| *oldest < horizon)
        {
            self.seen.pop_front();
        }
        if self.seen.len() > REMEMBERED_MAX {
            self.seen.pop_front();
            self.forgot = true;
        }
    }
}

fn hash(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(bytes)
}

fn write(seen: &VecDeque<(i64, u64)>) -> String {
    let bytes: Vec<u8> = seen
        .iter()
        .flat_map(|(_, hash)| hash.to_be_bytes())
        .collect();
    STANDARD_NO_PAD.encode(bytes)
}

fn read(seen: &str) -> HashSet<u64> {
    let bytes = STANDARD_NO_PAD.decode(seen).unwrap_or_default();
    let hashes = bytes.chunks_exact(8);
    hashes
        .map(|hash| u64::from_be_bytes(hash.try_into().expect("a chunk has 8 bytes")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Option<Window> = None;
    const CLOCK: Option<Window> = Some(Window {
        length: 10,
        by_clock: true,
    });
    const COUNT: Option<Window> = Some(Window {
        length: 10,
        by_clock: false,
    });

    fn row(cursor: i64, key: u32) -> Row {
        Row {
            cursor: cursor.to_string(),
            key: vec![key.to_string()],
            ordinal: Some(cursor),
            body: "{}".to_owned(),
        }
    }

    /// Walks over a table of (cursor, key), as the database would give its rows.
    fn walk(
        before: Option<Checkpoint>,
        window: Option<Window>,
        now: i64,
        table: &[(i64, u32)],
    ) -> (Vec<String>, Option<Checkpoint>) {
        let mut progress = Progress::new(before.clone(), "t".to_owned(), window, now);
        let start = progress.start();
        let mut rows: Vec<_> = table.to_vec();
        rows.sort_unstable();
        let mut taken = Vec::new();
        for (cursor, key) in rows {
            let is_in = match &start {
                Start::First => true,
                Start::From(from) => cursor >= *from,
                Start::After {
                    cursor: at,
                    key: of,
                } => (cursor, key) > (at.parse().unwrap(), of[0].parse().unwrap()),
            };
            if is_in {
                taken.extend(progress.take(&row(cursor, key)));
            }
        }
        (taken, progress.end().or(before))
    }

    #[test]
    fn ties_are_neither_skipped_nor_repeated() {
        let (taken, saved) = walk(None, NONE, 0, &[(1, 1), (2, 1), (2, 2)]);
        assert_eq!(taken, ["1@1", "1@2", "2@2"]);
        let (taken, saved) = walk(saved, NONE, 0, &[(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]);
        assert_eq!(taken, ["3@2", "1@3"]);
        assert_eq!(walk(saved, NONE, 0, &[(2, 3), (3, 1)]).0.len(), 0);
    }

    #[test]
    fn what_becomes_visible_late_is_brought_in() {
        for window in [CLOCK, COUNT] {
            let (taken, saved) = walk(None, window, 105, &[(98, 1), (104, 2)]);
            assert_eq!(taken.len(), 2);
            // A transaction that began before commits after: 99 and 104 appear behind the position.
            let table = [(98, 1), (99, 3), (104, 1), (104, 2), (106, 4)];
            let (taken, saved) = walk(saved, window, 107, &table);
            assert_eq!(taken, ["3@99", "1@104", "4@106"], "{window:?}");
            let (taken, _) = walk(saved, window, 108, &table);
            assert_eq!(taken.len(), 0, "{window:?}");
        }
    }

    #[test]
    fn a_window_by_the_clock_is_over_when_nothing_happens() {
        let table = [(98, 1), (104, 2)];
        let (_, saved) = walk(None, CLOCK, 105, &table);
        let (taken, saved) = walk(saved, CLOCK, 200, &table);
        assert_eq!(taken.len(), 0);
        let progress = Progress::new(saved.clone(), "t".to_owned(), CLOCK, 300);
        assert!(matches!(progress.start(), Start::After { .. }));
        assert_eq!(
            progress.end(),
            None,
            "nothing is saved while nothing happens"
        );
        let (taken, _) = walk(saved, CLOCK, 300, &[(98, 1), (104, 2), (299, 1)]);
        assert_eq!(taken, ["1@299"]);
    }

    #[test]
    fn a_position_is_saved_only_beyond_the_window() {
        let (_, saved) = walk(None, COUNT, 0, &[(95, 1), (100, 1)]);
        let mut progress = Progress::new(saved, "t".to_owned(), COUNT, 0);
        assert_eq!(progress.take(&row(93, 9)).as_deref(), Some("9@93"));
        assert_eq!(progress.midway(), None);
        assert_eq!(progress.take(&row(95, 1)), None);
        assert_eq!(progress.take(&row(100, 1)), None);
        assert_eq!(progress.midway().unwrap().cursor, "100");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let table: Vec<(i64, u32)> = (0..9000).map(|key| (100, key)).collect();
        let (taken, saved) = walk(None, COUNT, 0, &table);
        assert_eq!(taken.len(), 9000);
        assert!(serde_json::to_vec(&saved).unwrap().len() < 50 << 10);
        let (again, _) = walk(saved, COUNT, 0, &table);
        assert_eq!(
            again,
            taken[..5000],
            "the rest comes again by the same names"
        );
    }

    #[test]
    fn a_position_of_something_else_says_nothing() {
        let (_, saved) = walk(None, NONE, 0, &[(5, 1)]);
        let progress = Progress::new(saved, "another".to_owned(), NONE, 0);
        assert_eq!(progress.start(), Start::First);
    }

    #[test]
    fn a_cursor_without_an_order_of_ours_goes_on_after_its_last_row() {
        let text = |cursor: &str| Row {
            ordinal: None,
            cursor: cursor.to_owned(),
            ..row(0, 1)
        };
        let mut progress = Progress::new(None, "t".to_owned(), NONE, 0);
        assert!(progress.take(&text("b")).is_some() && progress.take(&text("c")).is_some());
        let progress = Progress::new(progress.end(), "t".to_owned(), NONE, 0);
        assert_eq!(progress.start(), text("c").after());
    }
}

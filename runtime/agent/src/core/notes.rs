//! Notes about messages that went into the delay ladder, for people. They may be lost, unlike the
//! messages: none is waited for, and none is kept while the broker is away.

use std::time::Instant;

use bytes::Bytes;
use towpath_protocol::office::{WAITING_KEY, Waiting};

use super::Core;
use crate::broker::{Command, Content, Publish};
use crate::clock::Now;

/// Notes that are gathered.
#[derive(Default)]
pub(super) struct Notes {
    lines: Vec<u8>,
    count: u32,
    /// When the oldest of them was written.
    since: Option<Instant>,
}

impl Core {
    /// Notes that a message waits.
    pub(super) fn note_waiting(&mut self, note: &Waiting, now: Now) {
        if !self.is_up || self.is_blocked {
            return;
        }
        serde_json::to_writer(&mut self.notes.lines, note)
            .expect("a note is JSON, and a buffer takes it");
        self.notes.lines.push(b'\n');
        self.notes.count += 1;
        self.notes.since.get_or_insert(now.instant);
    }

    /// Sends the notes if there are enough of them, or if they are old enough.
    pub(super) fn send_notes(&mut self, now: Now) {
        let is_due = self
            .next_note_deadline()
            .is_some_and(|deadline| now.instant >= deadline);
        if !is_due && self.notes.lines.len() < self.setup.limits.note_bytes {
            return;
        }
        let notes = std::mem::take(&mut self.notes);
        let publish = Publish {
            number: self.lanes.take_number(),
            exchange: self.setup.routes.office_exchange.as_str().into(),
            key: WAITING_KEY.into(),
            content: Content::Waiting,
            count: notes.count,
            payload: Bytes::from(notes.lines),
            answer: None,
        };
        self.tell(Command::Publish(publish));
    }

    pub(super) fn forget_notes(&mut self) {
        self.notes = Notes::default();
    }

    /// Returns when the notes are to be sent.
    pub(super) fn next_note_deadline(&self) -> Option<Instant> {
        self.notes
            .since
            .map(|since| since + self.setup.limits.note_age)
    }
}

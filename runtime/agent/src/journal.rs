//! What happened to messages here, the newest of it: so that `towpath why` can be answered.
//!
//! A ring of small events without an index: writing one costs a copy, and only a question, which
//! is rare, looks through all of them.
//!
//! # Invariants
//!
//! - `it_remembers_the_newest_and_says_how_far_back`.
//! - `it_takes_no_memory_until_something_happens`.

use towpath_protocol::MessageId;
use towpath_protocol::office::{Happened, What};

/// How many events are remembered: 1.5 MiB at the most.
const EVENTS_MAX: usize = 32_768;

/// How many events of one message are told, and how many of its children: the newest.
const TOLD_MAX: usize = 100;

/// What can happen, as it is kept: ports and branches are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The broker has an output.
    Emitted {
        /// The message it was made from.
        parent: MessageId,
        /// The number of the port, or of the branch: see [`crate::lanes::Lanes::way`].
        way: u16,
    },
    /// An output that no condition held for.
    Unmatched {
        /// The message it was made from.
        parent: MessageId,
        /// The number of the port.
        port: u16,
    },
    /// An output was made from it, among others.
    Joined {
        /// The output.
        output: MessageId,
        /// The number of the port.
        port: u16,
    },
    /// Settled as done.
    Done {
        /// The attempt.
        attempt: u32,
    },
    /// Sent to the delay ladder.
    Delayed {
        /// The attempt that ended.
        attempt: u32,
        /// When it comes back, in milliseconds since 1970.
        due: u64,
    },
    /// Given up.
    Dead {
        /// The attempt that ended.
        attempt: u32,
    },
    /// Recognised as settled before.
    Repeated,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: MessageId,
    at: u64,
    event: Event,
}

/// The newest events.
pub struct Journal {
    /// A ring once it is full.
    entries: Vec<Entry>,
    /// Where the oldest is, once it is full.
    oldest: usize,
    started_at: u64,
}

impl Journal {
    /// Begins to remember, at a time in milliseconds since 1970.
    pub fn new(now_ms: u64) -> Self {
        Self {
            entries: Vec::new(),
            oldest: 0,
            started_at: now_ms,
        }
    }

    /// Remembers what happened to a message.
    pub fn push(&mut self, id: MessageId, at: u64, event: Event) {
        let entry = Entry { id, at, event };
        if self.entries.len() < EVENTS_MAX {
            self.entries.push(entry);
            return;
        }
        self.entries[self.oldest] = entry;
        self.oldest = (self.oldest + 1) % EVENTS_MAX;
    }

    /// Returns since when everything is remembered, in milliseconds since 1970.
    pub fn reach(&self) -> u64 {
        if self.entries.len() < EVENTS_MAX {
            self.started_at
        } else {
            self.entries[self.oldest].at
        }
    }

    /// Returns what happened to a message and that its children were emitted, oldest first.
    /// `way_name` says the port of a way and the step it leads to, if it leads to one alone.
    pub fn of(
        &self,
        id: MessageId,
        way_name: impl Fn(u16) -> (String, Option<String>),
    ) -> Vec<Happened> {
        let (newer, older) = self.entries.split_at(self.oldest);
        let (mut own, mut children) = (0, 0);
        let mut told: Vec<Happened> = older
            .iter()
            .chain(newer)
            .rev()
            .filter(|entry| {
                let is_child = matches!(
                    entry.event,
                    Event::Emitted { parent, .. } | Event::Unmatched { parent, .. } if parent == id
                );
                let count = if entry.id == id {
                    &mut own
                } else if is_child {
                    &mut children
                } else {
                    return false;
                };
                *count += 1;
                *count <= TOLD_MAX
            })
            .map(|entry| Happened {
                id: entry.id,
                at: entry.at,
                what: match entry.event {
                    Event::Emitted { parent, way } => {
                        let (port, to) = way_name(way);
                        What::Emitted { parent, port, to }
                    }
                    Event::Unmatched { parent, port } => What::Unmatched {
                        parent,
                        port: way_name(port).0,
                    },
                    Event::Joined { output, port } => What::Joined {
                        output,
                        port: way_name(port).0,
                    },
                    Event::Done { attempt } => What::Done { attempt },
                    Event::Delayed { attempt, due } => What::Delayed { attempt, due },
                    Event::Dead { attempt } => What::Dead { attempt },
                    Event::Repeated => What::Repeated,
                },
            })
            .collect();
        told.reverse();
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> MessageId {
        MessageId::from_bytes((number as u128).to_be_bytes())
    }

    fn port(_: u16) -> (String, Option<String>) {
        ("out".into(), None)
    }

    #[test]
    fn it_remembers_the_newest_and_says_how_far_back() {
        let mut journal = Journal::new(7);
        assert_eq!(journal.reach(), 7);
        for number in 0..EVENTS_MAX + 2 {
            journal.push(id(number), 1000 + number as u64, Event::Done { attempt: 1 });
        }
        assert_eq!(journal.reach(), 1002);
        assert_eq!(journal.of(id(1), port), []);
        let newest = journal.of(id(EVENTS_MAX + 1), port);
        assert_eq!(newest.len(), 1);
        assert_eq!(newest[0].what, What::Done { attempt: 1 });
    }

    #[test]
    fn a_message_and_its_children_are_told_in_order_and_not_without_end() {
        let mut journal = Journal::new(0);
        journal.push(id(1), 1, Event::Delayed { attempt: 1, due: 9 });
        for child in 0..300 {
            let event = Event::Emitted {
                parent: id(1),
                way: 0,
            };
            journal.push(id(1000 + child), 10, event);
        }
        journal.push(id(1), 11, Event::Done { attempt: 2 });
        journal.push(id(2), 12, Event::Dead { attempt: 1 });
        let told = journal.of(id(1), port);
        assert_eq!(told.len(), TOLD_MAX + 2);
        assert_eq!(told[0].what, What::Delayed { attempt: 1, due: 9 });
        assert_eq!(told[TOLD_MAX].id, id(1299), "the newest children");
        assert_eq!(told[TOLD_MAX + 1].what, What::Done { attempt: 2 });
    }

    #[test]
    fn it_takes_no_memory_until_something_happens() {
        assert_eq!(Journal::new(0).entries.capacity(), 0);
        assert!(size_of::<Entry>() <= 48, "{}", size_of::<Entry>());
    }
}

//! The control plane's questions about one message: `towpath why`.

use bytes::Bytes;
use memchr::memmem;
use towpath_protocol::MessageId;
use towpath_protocol::office::{Find, Found, Holding, REPORT_KEY};

use super::Core;
use crate::broker::{Command, Content, Publish};
use crate::clock::Now;
use crate::record::State;

impl Core {
    /// Answers a question.
    pub(super) fn on_find(&mut self, find: &Find, now: Now) {
        if !self.is_up {
            return;
        }
        let found = Found {
            identity: self.setup.identity.clone(),
            question: find.question,
            now: self.holding(find.id, now),
            events: self.journal.of(find.id, |way| {
                let (port, to) = self.lanes.way_name(way);
                (port.to_owned(), to.map(ToOwned::to_owned))
            }),
            reach: self.journal.reach(),
        };
        let payload = serde_json::to_vec(&found).expect("an answer is JSON");
        let publish = Publish {
            number: self.lanes.take_number(),
            exchange: self.setup.routes.office_exchange.as_str().into(),
            key: REPORT_KEY.into(),
            content: Content::Found,
            count: 1,
            payload: Bytes::from(payload),
            answer: None,
        };
        self.tell(Command::Publish(publish));
    }

    /// Returns how a message is held, if it is.
    fn holding(&mut self, id: MessageId, now: Now) -> Option<Holding> {
        let Some(number) = self.records.find(id) else {
            let is_deferred = self.deferred.iter().any(|one| one.envelope.id == id);
            let is_sorted = self.records.iter().any(|(_, it)| it.id == Some(id));
            return (is_deferred || is_sorted || self.is_unread(id)).then_some(Holding::Waiting);
        };
        let record = self.records.get(number);
        Some(match record.state {
            State::Asking | State::Sorting | State::Claiming | State::Ready => Holding::Waiting,
            State::Held => {
                let wait = record.not_before.map_or(0, |at| {
                    at.saturating_duration_since(now.instant).as_millis()
                });
                Holding::Held {
                    due: now.wall_ms + u64::try_from(wait).unwrap_or(u64::MAX),
                    attempt: record.tries(),
                }
            }
            State::InHand => {
                let took = record.handed_at.map_or(0, |at| {
                    now.instant.saturating_duration_since(at).as_millis()
                });
                Holding::InHand {
                    since: now
                        .wall_ms
                        .saturating_sub(u64::try_from(took).unwrap_or(u64::MAX)),
                    attempt: record.tries(),
                }
            }
            State::Bound | State::Settling | State::Parked | State::Abandoned => Holding::Settling,
        })
    }

    /// Returns whether a message is among the lines that were not read. They are all written by
    /// agents or by the control plane, with the id first.
    fn is_unread(&self, id: MessageId) -> bool {
        let begin = format!("{{\"id\":\"{id}\"");
        let finder = memmem::Finder::new(begin.as_bytes());
        self.deliveries.unread().any(|rest| {
            finder
                .find_iter(rest)
                .any(|at| at == 0 || rest[at - 1] == b'\n')
        })
    }
}

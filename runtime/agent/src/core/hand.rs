//! Taking lines from deliveries, and handing messages to the step.

use bytes::Bytes;
use towpath_protocol::manifest::Kind;

use super::{Core, Deferred, Step};
use crate::clock::Now;
use crate::deliveries::Sequence;
use crate::envelope::{self, Envelope};
use crate::journal;
use crate::record::State;
use crate::settle::Outcome;

impl Core {
    /// Hands over as many messages as the step may have in its hands.
    pub(super) fn hand(&mut self, now: Now) {
        if self.step != Step::Ready {
            return;
        }
        while self.to_step.len() < self.setup.limits.step_input_bytes {
            if self.in_hand as usize >= self.places() {
                break;
            }
            if let Some(number) = self.suspects.pop_front() {
                self.suspect = Some(number);
                self.give(number, now);
            } else if let Some(number) = self.again.pop_front() {
                self.give(number, now);
            } else if !self.take(now) {
                break;
            }
        }
    }

    /// Returns how many messages may be in the step's hands: one alone while it is not known which
    /// of several killed the process; and one tick at a time, because they share a checkpoint.
    pub(super) fn places(&self) -> usize {
        if self.setup.kind == Kind::Poll || self.suspect.is_some() || !self.suspects.is_empty() {
            1
        } else {
            self.setup.settings.concurrency as usize
        }
    }

    /// Takes the next line. Returns whether there was one.
    fn take(&mut self, now: Now) -> bool {
        let Some((delivery, line)) = self.deliveries.next_line() else {
            return false;
        };
        self.counters.received += 1;
        match envelope::read(&line) {
            Ok(envelope) => self.admit(delivery, line, envelope, now),
            Err(reason) => {
                let number = self.records.insert_unreadable(line, delivery);
                self.fail(number, Outcome::Undecodable, &reason, &[], now);
            }
        }
        true
    }

    /// Decides about a line that was taken: mostly, that it is handed over now.
    fn admit(&mut self, delivery: Sequence, line: Bytes, envelope: Envelope, now: Now) {
        let handling = (
            envelope.id,
            envelope.attempt,
            envelope.rebounds,
            envelope.replays,
        );
        if !self.finished.is_empty() && self.finished.contains(&handling) {
            self.journal
                .push(envelope.id, now.wall_ms, journal::Event::Repeated);
            self.deliveries.settle(delivery);
            return;
        }
        if let Some(number) = self.records.find(envelope.id)
            && self.records.get(number).line == line
        {
            self.attach(number, delivery, now);
            return;
        }
        let is_blocked = self.records.find(envelope.id).is_some()
            || (self.setup.kind == Kind::Poll && !self.records.is_empty());
        if is_blocked {
            self.deferred.push(Deferred {
                delivery,
                line,
                envelope,
            });
            return;
        }
        let number = self.records.insert(envelope, line, delivery);
        if self.setup.kind == Kind::Poll {
            self.begin_tick(number, now);
        } else if (self.in_hand as usize) < self.places() {
            self.give(number, now);
        } else {
            self.again.push_back(number);
        }
    }

    /// The same message came once more: after the connection was lost, or because a step before
    /// emitted it twice. One handling settles all of its deliveries.
    fn attach(&mut self, number: u32, delivery: Sequence, now: Now) {
        let record = self.records.get(number);
        record.deliveries.push(delivery);
        if record.state == State::Parked {
            self.issue(number, now);
        }
    }

    /// Lets lines be taken that waited for a message that is settled now.
    pub(super) fn release_deferred(&mut self, now: Now) {
        if self.deferred.is_empty() {
            return;
        }
        for Deferred {
            delivery,
            line,
            envelope,
        } in std::mem::take(&mut self.deferred)
        {
            self.admit(delivery, line, envelope, now);
        }
    }

    /// Hands a message over.
    fn give(&mut self, number: u32, now: Now) {
        let timeout_ms = self.setup.settings.timeout_ms;
        let elapsed = (timeout_ms > 0).then(|| self.stopwatch.elapsed(now.instant));
        let record = self.records.get(number);
        record.state = State::InHand;
        record.handed_at = Some(now.instant);
        record.deadline =
            elapsed.map(|elapsed| elapsed + std::time::Duration::from_millis(timeout_ms));
        if let Some(deadline) = record.deadline {
            self.next_timeout = Some(
                self.next_timeout
                    .map_or(deadline, |next| next.min(deadline)),
            );
        }
        self.in_hand += 1;
        self.moved_at = now.instant;
        if record.tick.is_some() {
            self.write_tick(number);
            return;
        }
        self.to_step.extend_from_slice(b"{\"message\":");
        self.to_step.extend_from_slice(&record.line);
        self.to_step.extend_from_slice(b"}\n");
    }
}

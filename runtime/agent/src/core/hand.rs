//! Taking lines from deliveries, and handing messages to the step.

use bytes::Bytes;
use towpath_protocol::manifest::Kind;

use super::{Consuming, Core, Deferred, Step};
use crate::clock::Now;
use crate::deliveries::{INTAKE, Sequence};
use crate::envelope::{self, Envelope};
use crate::journal;
use crate::lanes::LaneId;
use crate::record::{Record, Resolution, State};
use crate::settle::Outcome;

impl Core {
    /// Hands over as many messages as the step may have in its hands.
    pub(super) fn hand(&mut self, now: Now) {
        let is_leaving = self.order.is_some() && self.consuming == Consuming::Stopping;
        if self.step != Step::Ready || is_leaving {
            return;
        }
        self.claim_ahead(now);
        if let Some(batch) = self.setup.batch {
            self.gather(batch, now);
        }
        while self.to_step.len() < self.setup.limits.step_input_bytes {
            if self.in_hand as usize >= self.places() || !self.pace_is_open(now) {
                break;
            }
            if let Some(number) = self.suspects.front().copied() {
                if !self.may_hand_alone(number, now) {
                    break;
                }
                self.suspects.pop_front();
                self.suspect = Some(number);
                self.give(number, now);
            } else if let Some(batch) = self.setup.batch {
                self.hand_batch(batch, now);
                break;
            } else if let Some(number) = self.again.pop_front() {
                if self.is_once() && !self.is_granted(number, now) {
                    self.claim(number, now);
                } else {
                    self.give(number, now);
                }
            } else if self.order.is_some() {
                if !self.take_ordered(now) {
                    break;
                }
            } else if self.is_once() || !self.take(now) {
                break;
            }
        }
    }

    /// Returns how many messages may be in the step's hands: one alone while it is not known which
    /// of several killed the process or made a batch fail; one tick at a time, because they share a
    /// checkpoint; and no second batch.
    pub(super) fn places(&self) -> usize {
        if self.setup.kind == Kind::Poll
            || self.suspect.is_some()
            || !self.suspects.is_empty()
            || self.setup.batch.is_some()
        {
            1
        } else {
            self.setup.settings.concurrency as usize
        }
    }

    /// Takes the next line. Returns whether there was one.
    pub(super) fn take(&mut self, now: Now) -> bool {
        self.split_suspects(now);
        self.split_for_pace(now);
        let Some((delivery, line)) = self.deliveries.next_line(INTAKE) else {
            return false;
        };
        if !self.is_once() {
            self.deliveries.begin(delivery);
        }
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
            self.deliveries.begin(delivery);
            self.deliveries.settle(delivery);
            return;
        }
        if let Some(number) = self.records.find(envelope.id)
            && self.records.get(number).state != State::Abandoned
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
                partition: None,
            });
            return;
        }
        let origin = self.deliveries.origin(delivery);
        let number = self.records.insert(envelope, line, delivery);
        self.records.get(number).is_uncertain |= origin.is_redelivered || origin.returns > 0;
        if self.setup.kind == Kind::Poll {
            self.begin_tick(number, now);
        } else if origin.returns >= self.setup.limits.suspect_returns {
            self.records.get(number).is_suspect = true;
            self.suspects.push_back(number);
        } else if self.is_once() && !self.goes_alone(number) {
            self.claim(number, now);
        } else if self.setup.batch.is_none()
            && self.step == Step::Ready
            && (self.in_hand as usize) < self.places()
            && self.pace_is_open(now)
        {
            self.give(number, now);
        } else {
            self.line_up(number, now);
        }
    }

    /// The same message came once more: after the connection was lost, or because a step before
    /// emitted it twice. One handling settles all of its deliveries.
    pub(super) fn attach(&mut self, number: u32, delivery: Sequence, now: Now) {
        let record = self.records.get(number);
        record.deliveries.push(delivery);
        if !matches!(record.state, State::Claiming | State::Ready) {
            self.deliveries.begin(delivery);
        }
        match (record.state, record.bond) {
            (State::Parked, _) => self.issue(number, now),
            (State::Bound, Some(bond)) => self.decide_bond(bond, now),
            _ => {}
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
            partition,
        } in std::mem::take(&mut self.deferred)
        {
            match partition {
                Some(partition) => {
                    self.admit_ordered(partition.into(), delivery, line, envelope, now);
                }
                None => self.admit(delivery, line, envelope, now),
            }
        }
    }

    /// Hands a message over.
    fn give(&mut self, number: u32, now: Now) {
        if !self.looks_right(number, now) {
            return;
        }
        if let Some(pace) = &mut self.pace {
            pace.take(now.instant);
        }
        self.records.get(number).is_in_company = false;
        self.put_in_hands(number, now);
    }

    pub(super) fn put_in_hands(&mut self, number: u32, now: Now) {
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
        for delivery in &record.deliveries {
            self.deliveries.begin(*delivery);
        }
        if record.tick.is_some() {
            self.write_tick(number);
            return;
        }
        self.to_step.extend_from_slice(b"{\"message\":");
        let is_uncertain = record.is_uncertain;
        write_line(&mut self.to_step, record, is_uncertain);
        self.to_step.extend_from_slice(b"}\n");
    }

    /// Sends on the messages of deliveries that came back again and again, each by itself: if one
    /// of them kills its container, the others get away from it. What this agent has in hand or
    /// settled came back because a connection was lost, not because anybody died.
    fn split_suspects(&mut self, now: Now) {
        let returns_min = self.setup.limits.suspect_returns;
        if self.setup.kind == Kind::Poll {
            return;
        }
        while let Some((delivery, returns, payload)) = self.deliveries.next_returned(returns_min) {
            let lines = || payload.split(|byte| *byte == b'\n');
            let is_known = lines().any(|line| {
                envelope::read(line).is_ok_and(|it| self.records.find(it.id).is_some())
            });
            if is_known {
                self.deliveries.trust(delivery);
                return;
            }
            self.deliveries.take_whole(delivery);
            let number = self.records.insert_unreadable(payload.clone(), delivery);
            let mut count = 0;
            for line in lines() {
                count += 1;
                self.publish_settlement(number, LaneId::Apart, &[line, b"\n"].concat(), now);
            }
            self.logger.agent(
                "warn",
                None,
                &format!("a delivery came back {returns} times: its {count} messages are taken one by one, because one of them may kill whoever has it"),
            );
            let record = self.records.get(number);
            record.resolution = Some(Resolution::Split);
            record.state = State::Settling;
        }
    }
}

/// Appends the line of a message, and that it may have been handled before.
pub(super) fn write_line(bytes: &mut Vec<u8>, record: &Record, is_uncertain: bool) {
    let mut line = &record.line[..];
    if is_uncertain
        && !record.says_uncertain
        && let Some(brace) = memchr::memchr(b'{', line)
    {
        bytes.extend_from_slice(b"{\"uncertain\":true,");
        line = &line[brace + 1..];
    }
    bytes.extend_from_slice(line);
}

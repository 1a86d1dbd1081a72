//! Handing over several messages together (`batch`).
//!
//! Messages are gathered in `again`, also while the batch before is worked on; what failed before
//! waits in `suspects` instead, and is handed over alone.
//!
//! # Invariants
//!
//! - `as_many_as_there_are_are_handed_over_together_and_no_more_than_the_most`.
//! - `a_lone_message_waits_for_others_no_longer_than_it_may`.
//! - `who_is_to_leave_waits_for_no_more_messages`.
//! - `what_fails_in_a_batch_is_tried_alone_before_it_is_given_up`: nobody knows which of several was
//!   to blame, and nobody fails a second time because of a neighbour.
//! - `a_batch_that_kills_the_process_is_taken_apart_and_costs_its_neighbours_no_attempt`.
//!
//! All of them are in tests/batches.rs.

use std::time::{Duration, Instant};

use towpath_protocol::frame::{ToStep, Together};
use towpath_protocol::handing::Batch;

use super::{Core, Step};
use crate::clock::Now;

impl Core {
    /// Lines a message up for the step: what failed before stands apart from what is handed over
    /// together.
    pub(super) fn line_up(&mut self, number: u32, now: Now) {
        if self.goes_alone(number) {
            self.suspects.push_back(number);
        } else {
            self.records.get(number).lined_up_at = Some(now.instant);
            self.again.push_back(number);
        }
    }

    /// Returns whether a message is not to be handed over together with others.
    pub(super) fn goes_alone(&mut self, number: u32) -> bool {
        self.setup.batch.is_some() && self.records.get(number).tries() > 1
    }

    /// Takes lines for the next batch, and notes since when the first of them waits.
    pub(super) fn gather(&mut self, batch: Batch, now: Now) {
        let most = batch.max as usize;
        // With `once` they are taken to be claimed, and come here when they are granted.
        while !self.is_once() && self.again.len() + self.suspects.len() < most && self.take(now) {}
        self.note_first();
    }

    fn note_first(&mut self) {
        let first = self.again.front().copied();
        self.gathering_since = first.and_then(|number| self.records.get(number).lined_up_at);
    }

    /// Hands over what was gathered if it is enough, or has waited long enough for more.
    pub(super) fn hand_batch(&mut self, batch: Batch, now: Now) {
        let Some(since) = self.gathering_since else {
            return;
        };
        let is_complete = self.again.len() >= batch.max as usize
            || now.instant >= since + Duration::from_millis(batch.wait_ms)
            || self.has_all_it_can_hold()
            || self.is_paused
            || self.drain.is_some();
        if !is_complete {
            return;
        }
        let members = self.next_batch(batch.max as usize, now);
        self.note_first();
        if members.is_empty() {
            return;
        }
        // One batch is one request to what the rate is there for.
        if let Some(pace) = &mut self.pace {
            pace.take(now.instant);
        }
        let are_several = members.len() > 1;
        if are_several {
            let count = u32::try_from(members.len()).expect("a batch has at most a thousand");
            let frame = ToStep::Batch(Together { count });
            serde_json::to_writer(&mut self.to_step, &frame).expect("a frame is JSON");
            self.to_step.push(b'\n');
        }
        for number in members {
            self.records.get(number).is_in_company = are_several;
            self.put_in_hands(number, now);
        }
    }

    /// Returns whether no more messages can come, because all that are here wait for others.
    fn has_all_it_can_hold(&self) -> bool {
        self.deliveries.unacknowledged() >= u64::from(self.prefetch)
            && !self.deliveries.is_waiting()
            && self.records.len() == self.again.len()
    }

    /// Takes those that are handed over together from those that were gathered.
    fn next_batch(&mut self, max: usize, now: Now) -> Vec<u32> {
        let bytes_max = self.setup.limits.together_bytes;
        let mut members = Vec::new();
        let mut bytes = 0;
        while members.len() < max
            && let Some(number) = self.again.front().copied()
        {
            bytes += self.records.get(number).line.len();
            if bytes > bytes_max && !members.is_empty() {
                break;
            }
            self.again.pop_front();
            if self.is_once() && !self.is_granted(number, now) {
                self.claim(number, now);
            } else if self.looks_right(number, now) {
                members.push(number);
            }
        }
        members
    }

    /// Returns when what was gathered is handed over at the latest.
    pub(super) fn next_batch_deadline(&self, now: Now) -> Option<Instant> {
        let batch = self.setup.batch.filter(|_| self.step == Step::Ready)?;
        let end = self.gathering_since? + Duration::from_millis(batch.wait_ms);
        // Afterwards it waits for the batch before, and needs no clock.
        (end > now.instant).then_some(end)
    }

    /// Says that messages wait here for others, if they do.
    pub(super) fn waits_for_others(&self, now: Now) -> Option<String> {
        let end = self
            .next_batch_deadline(now)
            .filter(|_| self.in_hand == 0)?;
        Some(format!(
            "gathers a batch: it has {} of {} messages, and waits {} s at most",
            self.again.len(),
            self.setup.batch?.max,
            end.saturating_duration_since(now.instant).as_secs() + 1
        ))
    }
}

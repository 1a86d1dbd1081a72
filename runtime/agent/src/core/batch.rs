//! Handing over several messages together (`batch`).
//!
//! # Invariants
//!
//! - `as_many_as_there_are_are_handed_over_together_and_no_more_than_the_most`.
//! - `the_first_waits_for_others_no_longer_than_it_may`.
//! - `one_that_fails_in_a_batch_is_tried_again_alone`: what was tried before is handed over by itself,
//!   so that nobody fails a second time because of a neighbour.

use std::time::{Duration, Instant};

use towpath_protocol::frame::{ToStep, Together};
use towpath_protocol::handing::Batch;

use super::Core;
use crate::clock::Now;

impl Core {
    /// Hands over the next batch, if there is nothing in the step's hands, and if it is complete or
    /// its first message has waited long enough.
    pub(super) fn hand_batch(&mut self, batch: Batch, now: Now) {
        if self.in_hand > 0 {
            return;
        }
        let max = batch.max as usize;
        while self.again.len() < max && !self.is_once() && self.take(now) {}
        if self.again.is_empty() {
            self.gathering_since = None;
            return;
        }
        let since = *self.gathering_since.get_or_insert(now.instant);
        let is_complete = self.again.len() >= max
            || now.instant >= since + Duration::from_millis(batch.wait_ms)
            || self.deliveries.unacknowledged() >= u64::from(self.prefetch)
            || self.is_paused
            || self.drain.is_some();
        if !is_complete || !self.pace_is_open(now) {
            return;
        }
        let members = self.next_batch(max, now);
        if members.is_empty() {
            return;
        }
        self.gathering_since = None;
        if let Some(pace) = &mut self.pace {
            pace.take(now.instant);
        }
        let count = u32::try_from(members.len()).expect("a batch has at most a thousand");
        serde_json::to_writer(&mut self.to_step, &ToStep::Batch(Together { count }))
            .expect("a frame is JSON, and a buffer takes it");
        self.to_step.push(b'\n');
        for number in members {
            self.put_in_hands(number, now);
        }
    }

    /// Takes those that are handed over together: one that was tried before is alone.
    fn next_batch(&mut self, max: usize, now: Now) -> Vec<u32> {
        let mut members = Vec::new();
        let mut later = Vec::new();
        while members.len() < max
            && let Some(number) = self.again.pop_front()
        {
            if self.is_once() && !self.is_granted(number, now) {
                self.claim(number, now);
                continue;
            }
            let is_alone = self.records.get(number).tries() > 1;
            if is_alone && !members.is_empty() {
                later.push(number);
                continue;
            }
            if !self.looks_right(number, now) {
                continue;
            }
            members.push(number);
            if is_alone {
                break;
            }
        }
        for number in later.into_iter().rev() {
            self.again.push_front(number);
        }
        members
    }

    /// Returns when the first message has waited long enough for others.
    pub(super) fn next_batch_deadline(&self) -> Option<Instant> {
        let batch = self.setup.batch.filter(|_| self.in_hand == 0)?;
        Some(self.gathering_since? + Duration::from_millis(batch.wait_ms))
    }
}

//! A connection over which nothing moves, although something should, is made again.
//!
//! # Invariants
//!
//! - `a_consumer_that_makes_no_progress_is_recycled`, and the report says so.
//! - `whoever_works_or_waits_for_a_reason_is_not_recycled`.

use std::time::Instant;

use towpath_protocol::office::AgentState;

use super::{Core, Step};
use crate::broker::Command;
use crate::clock::Now;
use crate::exit::duration;

/// Why the connection was lost while it was used.
#[derive(Debug, Clone)]
pub(super) struct Mishap {
    at: Instant,
    text: String,
}

impl Core {
    /// Returns what the broker owes, if it is the broker's turn.
    fn owed(&self, now: Now) -> Option<String> {
        let is_excused = !self.is_up
            || self.is_blocked
            || self.lanes.is_refused()
            || self.is_paused
            || self.drain.is_some();
        if is_excused {
            return None;
        }
        if self.lanes.is_open() {
            return Some("the broker did not confirm what was published".to_owned());
        }
        if self.claims.waiting() > 0 || !self.suspects.is_empty() {
            // It is the control plane's turn.
            return None;
        }
        if self.holds().0 > 0 {
            // It is what was asked for.
            return None;
        }
        if self.branching.is_waiting() {
            // It is ours.
            return None;
        }
        if self
            .pace
            .as_ref()
            .is_some_and(|pace| pace.is_closed(now.instant))
        {
            // What is held waits for its turn.
            return None;
        }
        if self.next_batch_deadline(now).is_some() {
            // What is held waits for others.
            return None;
        }
        let held = self.deliveries.unacknowledged();
        (held > 0 && self.step == Step::Ready && self.in_hand == 0)
            .then(|| format!("{held} deliveries were held and none of them handled"))
    }

    /// Has the connection made again if nothing moves. Nothing wakes the agent for this: while there
    /// is a connection it reports every few seconds anyway.
    pub(super) fn check_stall(&mut self, now: Now) {
        let limit = self.setup.limits.stall;
        if now.instant < self.moved_at + limit {
            return;
        }
        if let Some(owed) = self.owed(now) {
            let limit = duration(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
            self.moved_at = now.instant;
            self.tell(Command::Recycle {
                reason: format!("nothing moved for {limit}: {owed}"),
            });
        }
    }

    /// Notes that a connection that was there is lost.
    pub(super) fn note_mishap(&mut self, reason: &str, now: Now) {
        let text = format!("the connection to the broker is made again: {reason}");
        self.logger.agent("warn", None, &text);
        self.mishap = Some(Mishap {
            at: now.instant,
            text: reason.to_owned(),
        });
    }

    /// Returns why the connection was made again, for a while.
    pub(super) fn recent_mishap(&self, state: AgentState, now: Now) -> Option<String> {
        let mishap = self.mishap.as_ref()?;
        let ago = now.instant.saturating_duration_since(mishap.at);
        let is_told = state == AgentState::Running && ago < self.setup.limits.mishap_told;
        is_told.then(|| {
            format!(
                "the connection to the broker was made again {} s ago: {}",
                ago.as_secs(),
                mishap.text
            )
        })
    }
}

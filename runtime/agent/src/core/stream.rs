//! A trigger that runs for ever (`stream: true`) is told when it is to come to an end.
//!
//! Its tick is never done by itself, so a pause or a drain that waited for that would wait for ever.
//! It is told to finish; if it does not, it is cancelled; if it does not come back from that, its
//! process is killed. Whichever it is, nothing has failed: its run ends well, and the next one goes
//! on from the checkpoint that was saved last.
//!
//! # Invariants
//!
//! - `a_stream_that_is_told_to_finish_ends_its_run_well` (tests/streams.rs).
//! - `a_stream_that_does_not_listen_is_cancelled_and_its_run_ends_well`.
//! - `what_a_stream_emitted_after_its_last_checkpoint_comes_again_with_the_next_run`.

use std::time::Instant;

use towpath_protocol::MessageId;
use towpath_protocol::frame::{Finish, ToStep};

use super::Core;
use crate::clock::Now;
use crate::record::Resolution;

/// The tick that was told to come to an end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finishing {
    id: MessageId,
    /// When it is cancelled; none if it was.
    cancel_at: Option<Instant>,
}

impl Core {
    /// Tells the tick in hand to come to an end if that is wanted, and cancels it if it does not.
    pub(super) fn check_stream(&mut self, now: Now) {
        if !self.setup.settings.stream {
            return;
        }
        let Some(number) = self.only_in_hand() else {
            self.finishing = None;
            return;
        };
        let Some(id) = self.records.get(number).id else {
            return;
        };
        match self.finishing {
            Some(finishing) if finishing.id == id => {
                if finishing.cancel_at.is_some_and(|at| now.instant >= at) {
                    self.finishing = Some(Finishing {
                        id,
                        cancel_at: None,
                    });
                    self.cancel(number, "finish", now);
                }
            }
            _ => {
                let Some(why) = self.why_to_finish() else {
                    return;
                };
                let text = format!("the stream is told to come to an end: {why}");
                self.logger.agent("info", Some(id), &text);
                let frame = ToStep::Finish(Finish { id });
                serde_json::to_writer(&mut self.to_step, &frame).expect("a frame is JSON");
                self.to_step.push(b'\n');
                self.finishing = Some(Finishing {
                    id,
                    cancel_at: Some(now.instant + self.setup.limits.finish),
                });
            }
        }
    }

    fn why_to_finish(&mut self) -> Option<&'static str> {
        if self.drain.is_some() {
            return Some("the replica is to leave");
        }
        if self.is_paused {
            return Some("the step is paused");
        }
        // While a tick is in hand no other is taken: what came back is the first that waits.
        let returns = self.deliveries.next_returns()?;
        (returns >= self.setup.limits.stream_returns)
            .then_some("its tick came back from the broker so often that it is better a new one")
    }

    /// Returns whether a tick was told to come to an end.
    pub(super) fn is_finishing(&mut self, number: u32) -> bool {
        let id = self.records.get(number).id;
        self.finishing
            .is_some_and(|finishing| Some(finishing.id) == id)
    }

    /// Ends the run of a tick that was told to come to an end, and did not say `done`: what it
    /// emitted since its last checkpoint is dropped, because the next run emits it again.
    pub(super) fn end_stream(&mut self, number: u32, now: Now) {
        self.finishing = None;
        self.spoil_held(number);
        self.resolve(number, Resolution::Done, now);
    }

    /// Returns when a tick that was told to come to an end is cancelled.
    pub(super) fn next_finish_deadline(&self) -> Option<Instant> {
        self.finishing?.cancel_at
    }
}

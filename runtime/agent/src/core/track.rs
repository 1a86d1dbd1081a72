//! Reporting what came of runs: which messages were emitted, and which are done.
//!
//! # Invariants
//!
//! - `a_run_is_finished_exactly_when_everything_that_came_of_it_is_settled` (tests/tracking.rs): what
//!   was emitted is reported after the broker has it, what is done after everything emitted for it
//!   is reported, and both before its delivery is acknowledged and before a checkpoint after it is
//!   saved.
//! - `a_full_queue_of_reports_stops_no_message`: a report that the broker refuses is given up, and
//!   that it was lost is said of its runs as soon as it can be.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use towpath_protocol::MessageId;
use towpath_protocol::message::Lineage;
use towpath_protocol::runs::Entry;

use super::Core;
use crate::clock::Now;
use crate::lanes::{Member, NOBODY, SETTLEMENT};
use crate::record::{Record, Resolution};

/// How long to wait before it is said again that reports were lost: the queue that refused them is
/// full until the control plane comes back.
const AGAIN: Duration = Duration::from_secs(5);

/// The most runs of which it is remembered that a report was lost. Those beyond are found by the
/// control plane: a run that nothing moves any more and that is not finished.
const LOST_MAX: usize = 1024;

/// How a lineage begins that was written by Towpath: with its run.
const RUN_BEGIN: &[u8] = b"{\"run\":\"";

/// The runs of which a report was lost, and that is not told.
#[derive(Default)]
pub(super) struct Untold {
    runs: BTreeSet<MessageId>,
    /// Those that are being told.
    telling: Vec<MessageId>,
    /// When it is told next.
    at: Option<Instant>,
}

impl Untold {
    fn add(&mut self, run: MessageId) {
        self.runs.insert(run);
        if self.runs.len() > LOST_MAX {
            self.runs.pop_first();
        }
    }

    /// The broker has it.
    pub(super) fn is_told(&mut self) {
        for run in self.telling.drain(..) {
            self.runs.remove(&run);
        }
    }
}

impl Core {
    /// Returns the run of a message, if what comes of it is reported.
    pub(super) fn run_of(&mut self, number: u32) -> Option<MessageId> {
        if !self.setup.settings.track {
            return None;
        }
        run_in(self.records.get(number))
    }

    /// Reports an output that the broker has: its member is confirmed when the report is.
    pub(super) fn report_output(
        &mut self,
        run: MessageId,
        id: MessageId,
        way: u16,
        member: Member,
        now: Now,
    ) {
        let of_replayed = self.records.get(member.record).replays > 0;
        let entry = Entry::Emitted {
            id,
            way,
            of_replayed,
        };
        let member = Member { count: 1, ..member };
        self.lanes.report(run, entry, member, now.instant);
    }

    /// Reports that a message is done. Returns whether that still has to be confirmed.
    pub(super) fn report_done(&mut self, number: u32, now: Now) -> bool {
        let Some(run) = self.run_of(number) else {
            return false;
        };
        let record = self.records.get(number);
        let is_end = matches!(
            record.resolution,
            Some(Resolution::Done | Resolution::Cancelled)
        );
        let Some(id) = record.id.filter(|_| is_end && !record.is_reported) else {
            return false;
        };
        record.is_reported = true;
        record.unconfirmed += 1;
        let entry = Entry::Done {
            id,
            replays: record.replays,
        };
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes.report(run, entry, member, now.instant);
        true
    }

    /// The broker refused a report: its queue is full, because the control plane is away or far
    /// behind. Messages go on without it.
    pub(super) fn report_is_lost(&mut self, number: u64, now: Now) {
        self.moved_at = now.instant;
        let Some(lost) = self.lanes.accepted(number) else {
            return;
        };
        if self.untold.runs.is_empty() {
            self.logger.agent(
                "warn",
                None,
                "what came of runs cannot be reported, their queue is full: messages go on, and the runs say that not all is known of them",
            );
        }
        self.untold.telling.clear();
        self.untold.at = Some(now.instant + AGAIN);
        for member in lost.members {
            if member.record == NOBODY {
                continue;
            }
            if let Some(run) = self.run_of(member.record) {
                self.untold.add(run);
            }
            self.on_confirmed(member, now);
        }
    }

    /// Says of which runs a report was lost.
    pub(super) fn tell_lost(&mut self, now: Now) {
        if self.untold.at.is_none_or(|at| now.instant < at) {
            return;
        }
        self.untold.at = None;
        self.untold.telling = self.untold.runs.iter().copied().collect();
        let nobody = Member {
            record: NOBODY,
            epoch: SETTLEMENT,
            count: 1,
        };
        for run in &self.untold.telling {
            self.lanes.report(*run, Entry::Lost, nobody, now.instant);
        }
    }

    pub(super) fn next_lost_deadline(&self) -> Option<Instant> {
        self.untold.at.filter(|_| self.is_up)
    }
}

/// Reads the run in a message's lineage.
fn run_in(record: &Record) -> Option<MessageId> {
    let lineage = record.line.get(record.lineage.clone())?;
    let known = lineage
        .strip_prefix(RUN_BEGIN)
        .and_then(|rest| rest.get(..MessageId::TEXT_LEN))
        .and_then(MessageId::decode);
    known.or_else(|| Some(serde_json::from_slice::<Lineage>(lineage).ok()?.run))
}

//! When a trigger is due: pure.
//!
//! What is due follows from what the flow says and from its runs in the store, each time anew:
//! nothing is counted and nothing is remembered, so nothing can be lost or left over.
//!
//! # Invariants
//!
//! - `a_trigger_has_at_most_one_active_run`.
//! - `what_was_due_during_a_run_is_left_out_or_comes_once`.
//! - `what_was_due_while_nobody_looked_is_left_out_or_comes_once`.
//! - `a_thousand_flows_with_the_same_interval_are_spread_over_seconds`.

use std::time::Duration;

use towpath_flow::{Cron, Fires, Missed, Overlap};
use towpath_protocol::MessageId;

use crate::live::LiveFlow;
use crate::reconcile::FlowState;
use crate::store::records::{RunRecord, RunState};

/// The longest that a flow's ticks are moved to spread the flows: what is more is not small.
const OFFSET_MS_MAX: u64 = 10_000;

/// Up to how late a firing is late and not missed: longer than the control plane takes to start.
const LATE_MS_MAX: u64 = 60_000;

/// A run of a stream that ends before this is not what a stream is for: the next one waits.
const QUICK_MS: u64 = 10_000;

/// How long the run after the first such run of a stream waits; each further one doubles it.
const STREAM_WAIT_MS: u64 = 1_000;

/// The longest that it waits: a source that is back is not left alone for long.
const STREAM_WAIT_MS_MAX: u64 = 60_000;

/// How many runs of a stream are looked at: enough of them to reach the longest wait.
pub(super) const STREAM_RUNS: u32 = 8;

/// What to do about a trigger now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Fire it.
    Fire {
        /// When it was due, in milliseconds since 1970.
        due: u64,
    },
    /// Wait until it is due.
    Wait {
        /// When that is, in milliseconds since 1970.
        until: u64,
    },
    /// Wait for its active run to end.
    Busy {
        /// The run.
        run: MessageId,
        /// When it is due next; before now if it is as soon as the run has ended.
        then: Option<u64>,
    },
    /// It does not fire by itself: it is a webhook, or the flow is paused or stopped.
    Off,
}

/// Decides what to do about a trigger. `runs` are its active run, or else its last ones, the newest
/// first; of all but streams only the first is looked at.
///
/// A trigger with an interval that never fired is due at once, and so is a stream. From then on an
/// interval is due at the points of a grid, moved by a small offset that is the flow's own, so that
/// a hundred flows with `every: 1m` do not all fire in the same instant. A cron expression is due
/// when it says; what was before the flow was applied does not count.
pub fn due(flow: &LiveFlow, runs: &[RunRecord], now: u64) -> Decision {
    if flow.state != FlowState::Running {
        return Decision::Off;
    }
    match &flow.trigger.fires {
        Fires::Webhook => Decision::Off,
        Fires::Stream => stream(runs, now),
        Fires::Every(every) => {
            let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1);
            let grid = Grid {
                every,
                offset: offset(&flow.name, every),
            };
            let Some(last) = runs.first() else {
                return Decision::Fire { due: now };
            };
            // Half an interval after the last one, so that the first grid point after a start that
            // was not on the grid is not a moment later.
            let since = last.due.saturating_add(every / 2);
            by_points(&grid, flow, Some(last), since, now)
        }
        Fires::Cron(cron) => {
            let last = runs.first();
            let since = last.map_or(0, |last| last.due.max(last.started_at) + 1);
            let since = since.max(flow.applied_at);
            by_points(cron.as_ref(), flow, last, since, now)
        }
    }
}

/// The points in time of a schedule.
trait Points {
    /// The first one that is not before this time.
    fn at_or_after(&self, time: u64) -> Option<u64>;

    /// When a firing was due that makes up for all points from `first` to `now`.
    fn due_of(&self, first: u64, now: u64) -> u64;
}

impl Points for Cron {
    fn at_or_after(&self, time: u64) -> Option<u64> {
        self.next_after(time.saturating_sub(1))
    }

    fn due_of(&self, first: u64, _: u64) -> u64 {
        first
    }
}

struct Grid {
    every: u64,
    offset: u64,
}

impl Points for Grid {
    fn at_or_after(&self, time: u64) -> Option<u64> {
        let steps = time.saturating_sub(self.offset).div_ceil(self.every);
        Some(steps.saturating_mul(self.every).saturating_add(self.offset))
    }

    // The newest, so that the next one is a whole interval after it.
    fn due_of(&self, _: u64, now: u64) -> u64 {
        let steps = now.saturating_sub(self.offset) / self.every;
        steps.saturating_mul(self.every).saturating_add(self.offset)
    }
}

/// What to do about a trigger that is due at certain points, of which those from `since` on count.
fn by_points(
    points: &impl Points,
    flow: &LiveFlow,
    last: Option<&RunRecord>,
    since: u64,
    now: u64,
) -> Decision {
    let queues = flow.trigger.overlap == Overlap::QueueOne;
    if let Some(last) = last.filter(|last| last.state.is_active()) {
        let then = if queues { since } else { since.max(now) };
        return Decision::Busy {
            run: last.id,
            then: points.at_or_after(then),
        };
    }
    let ended = last.map_or(0, |last| last.ended_at.unwrap_or(last.due));
    let Some(first) = points.at_or_after(since) else {
        return Decision::Off;
    };
    if queues && first <= ended {
        return Decision::Fire {
            due: points.due_of(first, now),
        };
    }
    let Some(next) = points.at_or_after(since.max(ended)) else {
        return Decision::Off;
    };
    let missed_before = now.saturating_sub(LATE_MS_MAX);
    let next = if flow.trigger.missed == Missed::Skip && next < missed_before {
        points.at_or_after(missed_before)
    } else {
        Some(next)
    };
    match next {
        None => Decision::Off,
        Some(next) if now < next => Decision::Wait { until: next },
        Some(next) => Decision::Fire {
            due: points.due_of(next, now),
        },
    }
}

/// A stream is fired whenever it does not run; after runs that failed or were quick it waits.
fn stream(runs: &[RunRecord], now: u64) -> Decision {
    let Some(last) = runs.first() else {
        return Decision::Fire { due: now };
    };
    if last.state.is_active() {
        return Decision::Busy {
            run: last.id,
            then: None,
        };
    }
    let ended = |run: &RunRecord| run.ended_at.unwrap_or(run.started_at);
    let is_bad = |run: &&RunRecord| {
        run.state != RunState::Done || ended(run).saturating_sub(run.started_at) < QUICK_MS
    };
    let bad = runs.iter().take_while(is_bad).count();
    let wait = match u32::try_from(bad).unwrap_or(u32::MAX) {
        0 => 0,
        bad => (STREAM_WAIT_MS << (bad - 1).min(16)).min(STREAM_WAIT_MS_MAX),
    };
    let at = ended(last).saturating_add(wait);
    if now < at {
        Decision::Wait { until: at }
    } else {
        Decision::Fire { due: now }
    }
}

/// How long a stream may be under way without its checkpoint moving before that is worth a word:
/// longer than a source that has anything to say is silent.
pub const STILL_AFTER: Duration = Duration::from_secs(15 * 60);

/// A flow's own offset: always the same, below a fifth of the interval and below ten seconds.
fn offset(flow: &str, every: u64) -> u64 {
    let hash = blake3::hash(flow.as_bytes());
    let number = u64::from_le_bytes(
        hash.as_bytes()[..8]
            .try_into()
            .expect("a hash has 32 bytes"),
    );
    number % (every / 5).clamp(1, OFFSET_MS_MAX)
}

#[cfg(test)]
#[path = "due_tests.rs"]
pub(super) mod tests;

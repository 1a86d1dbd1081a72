//! How a run is, from all that is known of it: pure.
//!
//! # Invariants
//!
//! - `a_run_says_what_it_waits_for`.
//! - `a_run_is_done_only_when_everything_that_came_of_it_is`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::store::records::{RunProgress, RunRecord, RunState, StepSums};

/// After how long without a checkpoint or a message a run is said to be stalled, unless the settings
/// say otherwise: longer than a slow page of a slow source takes.
pub const STALLED_AFTER_SECONDS: u64 = 600;

/// How a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Its trigger has not taken it yet.
    Queued,
    /// Its trigger is at work, or messages of it are under way.
    Running,
    /// Its trigger asked to be fired later.
    RateLimited,
    /// What it waits for is paused or stopped.
    Paused,
    /// Nothing has been heard of it for long, and nothing that is known holds it up.
    Stalled,
    /// Everything that came of it is done.
    Done,
    /// Everything that came of it is settled, and some of it was given up.
    DoneWithDeadLetters,
    /// Its trigger gave it up.
    Failed,
    /// An operator cancelled it.
    Cancelled,
    /// Not everything that came of it is known.
    Unknown,
}

/// What is around a run.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The steps of its flow that are not running.
    pub paused: BTreeSet<String>,
    /// The time, in milliseconds since 1970.
    pub now: u64,
    /// After how long without a word it is stalled, in milliseconds.
    pub stalled_after: u64,
}

/// The steps that messages came to: not the trigger's, whose one message is the tick.
pub fn message_steps<'a>(
    run: &'a RunRecord,
    progress: &'a RunProgress,
) -> impl Iterator<Item = &'a StepSums> {
    let has_tick = run.why != towpath_protocol::frame::Why::Webhook;
    progress
        .steps
        .iter()
        .filter(move |sums| !has_tick || sums.step != run.step)
}

/// Says how a run is, and what is behind that.
pub fn status(
    run: &RunRecord,
    progress: &RunProgress,
    around: &Around,
) -> (RunStatus, Option<String>) {
    let sum = |count: fn(&StepSums) -> u64| message_steps(run, progress).map(count).sum::<u64>();
    let (open, dead) = (sum(|it| it.open), sum(|it| it.dead));
    let under_way = (open > 0).then(|| format!("{open} of its messages are under way"));
    match run.state {
        RunState::Failed | RunState::Abandoned => (RunStatus::Failed, run.reason.clone()),
        RunState::Cancelled => (RunStatus::Cancelled, under_way),
        RunState::Queued => (
            RunStatus::Queued,
            Some("it begins when the run before it has ended".to_owned()),
        ),
        RunState::Recorded | RunState::Published => of_tick(run, progress, around),
        RunState::Done if !progress.tracked => (RunStatus::Done, None),
        RunState::Done => {
            if let Some(lost) = &progress.lost {
                (RunStatus::Unknown, Some(lost.clone()))
            } else if progress.finished_at.is_none() {
                of_messages(run, progress, around, open)
            } else if dead > 0 {
                let note = format!("`towpath dead list --flow {}` shows them", run.flow);
                (RunStatus::DoneWithDeadLetters, Some(note))
            } else {
                (RunStatus::Done, None)
            }
        }
    }
}

/// Its trigger has not ended.
fn of_tick(
    run: &RunRecord,
    progress: &RunProgress,
    around: &Around,
) -> (RunStatus, Option<String>) {
    if run.cancel_at.is_some() {
        let note = "it is cancelled as soon as its trigger leaves it".to_owned();
        return (RunStatus::Running, Some(note));
    }
    if around.paused.contains(&run.step) {
        return (
            RunStatus::Paused,
            Some(format!("`{}` is not running", run.step)),
        );
    }
    let reason = run.reason.clone();
    if run.next_at.is_some_and(|next| next > around.now) {
        return if progress.is_rebound {
            (RunStatus::RateLimited, reason)
        } else {
            (RunStatus::Running, reason)
        };
    }
    let Some(began_at) = progress.began_at else {
        return (RunStatus::Queued, None);
    };
    let heard_at = progress.progress_at.unwrap_or(began_at);
    if around.now.saturating_sub(heard_at) >= around.stalled_after {
        let note = format!(
            "`{}` has it, and has neither emitted a message nor saved a checkpoint since",
            run.step
        );
        return (RunStatus::Stalled, Some(note));
    }
    (RunStatus::Running, reason)
}

/// Its trigger has ended, and not everything that came of it is settled.
fn of_messages(
    run: &RunRecord,
    progress: &RunProgress,
    around: &Around,
    open: u64,
) -> (RunStatus, Option<String>) {
    let waits: Vec<&str> = message_steps(run, progress)
        .filter(|sums| sums.open > 0)
        .map(|sums| sums.step.as_str())
        .collect();
    let steps = || {
        let quoted: Vec<String> = waits.iter().map(|step| format!("`{step}`")).collect();
        quoted.join(", ")
    };
    if !waits.is_empty() && waits.iter().all(|step| around.paused.contains(*step)) {
        let note = format!("{open} of its messages wait for {}, not running", steps());
        return (RunStatus::Paused, Some(note));
    }
    let retrying = progress.retrying.min(open);
    if retrying > 0 {
        let note = format!("{retrying} of its {open} open messages wait to be tried again");
        return (RunStatus::Running, Some(note));
    }
    let heard_at = progress.progress_at.unwrap_or(run.started_at);
    if around.now.saturating_sub(heard_at) >= around.stalled_after {
        let note = format!("nothing was heard since of {open} messages at {}", steps());
        return (RunStatus::Stalled, Some(note));
    }
    (RunStatus::Running, None)
}

#[cfg(test)]
mod tests {
    use towpath_protocol::MessageId;
    use towpath_protocol::frame::Why;

    use super::*;

    const NOW: u64 = 10_000_000;

    fn run(state: RunState) -> RunRecord {
        RunRecord {
            id: MessageId::from_bytes([1; 16]),
            flow: "orders".into(),
            step: "poll".into(),
            connection: "default".into(),
            version: 1,
            why: Why::Schedule,
            state,
            due: 1,
            started_at: NOW - 700_000,
            ended_at: None,
            emitted: None,
            attempts: 0,
            next_at: None,
            reason: None,
            payload: None,
            tracked: true,
            cancel_at: None,
        }
    }

    fn sums(step: &str, open: u64, done: u64, dead: u64) -> StepSums {
        StepSums {
            step: step.into(),
            open,
            done,
            dead,
        }
    }

    fn heard(ago: u64) -> RunProgress {
        RunProgress {
            tracked: true,
            began_at: Some(NOW - ago),
            progress_at: Some(NOW - ago),
            ..RunProgress::default()
        }
    }

    fn around(paused: &[&str]) -> Around {
        Around {
            paused: paused.iter().map(|step| (*step).to_owned()).collect(),
            now: NOW,
            stalled_after: 600_000,
        }
    }

    #[track_caller]
    fn check(run: &RunRecord, progress: &RunProgress, paused: &[&str], expect: RunStatus) {
        let (is, note) = status(run, progress, &around(paused));
        assert_eq!(is, expect, "{note:?}");
    }

    #[test]
    fn a_run_says_what_it_waits_for() {
        let published = run(RunState::Published);
        let queued = RunProgress {
            began_at: None,
            ..heard(1)
        };
        check(&published, &queued, &[], RunStatus::Queued);
        check(&published, &heard(1_000), &[], RunStatus::Running);
        check(&published, &heard(1_000), &["crm"], RunStatus::Running);
        check(&published, &heard(700_000), &["poll"], RunStatus::Paused);
        check(&published, &heard(600_000), &[], RunStatus::Stalled);
        let later = RunRecord {
            next_at: Some(NOW + 1),
            reason: Some("429".into()),
            ..run(RunState::Published)
        };
        let rebound = RunProgress {
            is_rebound: true,
            ..heard(700_000)
        };
        check(&later, &rebound, &[], RunStatus::RateLimited);
        check(&later, &heard(700_000), &[], RunStatus::Running);
        check(&run(RunState::Failed), &heard(1), &[], RunStatus::Failed);
        check(&run(RunState::Abandoned), &heard(1), &[], RunStatus::Failed);
        check(
            &run(RunState::Cancelled),
            &heard(1),
            &[],
            RunStatus::Cancelled,
        );
    }

    #[test]
    fn a_run_is_done_only_when_everything_that_came_of_it_is() {
        let done = run(RunState::Done);
        let mut progress = heard(1_000);
        progress.steps = vec![sums("poll", 0, 1, 0), sums("crm", 3, 5, 1)];
        check(&done, &progress, &[], RunStatus::Running);
        check(&done, &progress, &["crm"], RunStatus::Paused);
        progress.progress_at = Some(NOW - 700_000);
        check(&done, &progress, &[], RunStatus::Stalled);
        progress.retrying = 3;
        check(&done, &progress, &[], RunStatus::Running);
        progress.lost = Some("the queue was full".into());
        check(&done, &progress, &[], RunStatus::Unknown);
        progress.lost = None;
        progress.steps[1] = sums("crm", 0, 8, 1);
        progress.finished_at = Some(NOW);
        check(&done, &progress, &[], RunStatus::DoneWithDeadLetters);
        progress.steps[1] = sums("crm", 0, 9, 0);
        check(&done, &progress, &[], RunStatus::Done);
        let untracked = RunProgress::default();
        check(&done, &untracked, &[], RunStatus::Done);
    }
}

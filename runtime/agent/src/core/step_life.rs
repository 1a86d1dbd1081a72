//! The step process starts, works, dies, hangs, leaves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use towpath_protocol::CONTRACT;
use towpath_protocol::frame::{Cancel, Drain, Hello, ToStep};
use towpath_protocol::log::LogSource;

use super::Core;
use crate::clock::Now;
use crate::record::State;
use crate::redact::cut;
use crate::settle::Outcome;

/// Where the step process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is none.
    Absent,
    /// It was started and has not said `ready`.
    Greeting {
        /// When it is too late.
        deadline: Instant,
    },
    /// It takes messages.
    Ready,
    /// It was told to leave.
    Leaving {
        /// When it is killed.
        deadline: Instant,
    },
    /// It is being killed.
    Dying,
}

/// Why the step process is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kill {
    /// It wrote something that is not the protocol.
    Garbage(String),
    /// It does not come back with what was cancelled.
    Hangs,
    /// It did not say `ready` in time.
    Mute,
    /// It speaks another version.
    Contract(String),
    /// It did not leave when told to.
    Stays,
}

/// Deaths in a row from which on the step counts as failing.
const FAILING_DEATHS: u32 = 3;

/// How many of its last lines are kept.
const LAST_LINES_MAX: usize = 20;

/// How many bytes of each.
const LAST_LINE_BYTES_MAX: usize = 500;

/// The history of the step process.
#[derive(Default)]
pub(super) struct Life {
    pub(super) starts: u64,
    pub(super) deaths: u32,
    pub(super) has_been_ready: bool,
    pub(super) restart_at: Option<Instant>,
    pub(super) last_death: Option<String>,
    pub(super) last_lines: VecDeque<String>,
    /// It wrote a line since it was started; before, `last_lines` are those of the one before it.
    has_written: bool,
    kill: Option<Kill>,
    kill_asked: bool,
    refusal: Option<String>,
}

impl Life {
    /// It handled a message: whatever was wrong is over.
    pub(super) fn has_worked(&mut self) {
        self.deaths = 0;
    }

    pub(super) fn is_failing(&self) -> bool {
        self.deaths >= FAILING_DEATHS || (self.deaths > 0 && !self.has_been_ready)
    }
}

impl Core {
    /// Returns whether a step process is to be started now.
    pub fn wants_start(&self, now: Now) -> bool {
        self.step == Step::Absent
            && self.drain.is_none()
            && self
                .life
                .restart_at
                .is_none_or(|restart_at| now.instant >= restart_at)
    }

    /// A step process was started: greets it.
    pub fn on_step_start(&mut self, now: Now) {
        self.life.starts += 1;
        self.life.has_written = false;
        self.life.refusal = None;
        self.step = Step::Greeting {
            deadline: now.instant + self.setup.limits.hello,
        };
        let (identity, settings) = (&self.setup.identity, &self.setup.settings);
        let hello = ToStep::Hello(Hello {
            contract: CONTRACT,
            flow: identity.flow.as_str().into(),
            step: identity.step.as_str().into(),
            replica: identity.replica,
            concurrency: settings.concurrency,
            timeout_ms: settings.timeout_ms,
            body_bytes_max: settings.body_bytes_max,
            config: &self.setup.config,
        });
        self.to_step.clear();
        serde_json::to_writer(&mut self.to_step, &hello)
            .expect("a frame is JSON, and a buffer takes it");
        self.to_step.push(b'\n');
    }

    /// The step process could not be started.
    pub fn on_step_start_failed(&mut self, reason: &str, now: Now) {
        self.life.starts += 1;
        self.step = Step::Dying;
        self.on_step_exit(reason, now);
    }

    pub(super) fn step_is_ready(&mut self, sdk: &str, now: Now) {
        self.step = Step::Ready;
        self.life.has_been_ready = true;
        let text = format!(
            "the step is ready ({sdk}, start number {})",
            self.life.starts
        );
        self.logger.agent("info", None, &text);
        if self.drain.is_some() {
            self.finish_drain(now);
        }
        self.hand_call();
    }

    pub(super) fn refused(&mut self, reason: &str) {
        self.life.refusal = Some(format!("the step refuses its configuration: {reason}"));
    }

    /// Returns whether messages are to be taken for it.
    pub(super) fn step_is_usable(&self) -> bool {
        self.life.has_been_ready && (self.step == Step::Ready || !self.life.is_failing())
    }

    /// Has the step process killed.
    pub(super) fn kill(&mut self, why: Kill) {
        if self.step != Step::Absent && self.step != Step::Dying {
            self.step = Step::Dying;
            self.life.kill = Some(why);
            self.life.kill_asked = true;
        }
    }

    /// The step closed a pipe of its frames, and lives on.
    pub fn on_step_closed_its_pipe(&mut self) {
        self.kill(Kill::Garbage(
            "the step closed the pipe of its frames and lived on".to_owned(),
        ));
    }

    /// Returns whether the step process is to be killed; once.
    pub fn wants_kill(&mut self) -> bool {
        std::mem::take(&mut self.life.kill_asked)
    }

    /// Notes a line that the step process wrote on its standard output or standard error.
    pub fn on_log_line(&mut self, source: LogSource, text: &str) {
        let in_hand = self.only_in_hand();
        let message_id = in_hand.and_then(|number| self.records.get(number).id);
        let level = if source == LogSource::Stderr {
            "warn"
        } else {
            "info"
        };
        self.logger.line(level, source, message_id, text);
        if let Some(number) = in_hand {
            self.note_line(number, text);
        }
        if !std::mem::replace(&mut self.life.has_written, true) {
            self.life.last_lines.clear();
        }
        if self.life.last_lines.len() == LAST_LINES_MAX {
            self.life.last_lines.pop_front();
        }
        self.life
            .last_lines
            .push_back(cut(&self.setup.redact.apply(text), LAST_LINE_BYTES_MAX));
    }

    /// Keeps a line in case the attempt at a message fails.
    pub(super) fn note_line(&mut self, number: u32, text: &str) {
        let text = self.setup.redact.apply(text);
        let bytes_max = self.setup.limits.attempt_log_bytes_all;
        self.records.log(number, &text, bytes_max);
    }

    /// Returns the message in the step's hands, if there is but one.
    pub(super) fn only_in_hand(&self) -> Option<u32> {
        if self.in_hand != 1 {
            return None;
        }
        let mut in_hand = self
            .records
            .iter()
            .filter(|(_, record)| record.state == State::InHand);
        in_hand.next().map(|(number, _)| number)
    }

    /// The step process is gone; `how` says how it ended.
    pub fn on_step_exit(&mut self, how: &str, now: Now) {
        let was_leaving = matches!(self.step, Step::Leaving { .. });
        let kill = self.life.kill.take();
        self.life.kill_asked = false;
        self.step = Step::Absent;
        self.to_step.clear();
        self.cancelled.clear();
        self.next_timeout = None;
        self.suspect = None;
        let reason = match (&kill, self.life.refusal.take()) {
            (Some(Kill::Garbage(reason) | Kill::Contract(reason)), _) => reason.clone(),
            (Some(Kill::Hangs), _) => format!(
                "{}, did not come back when told to, and was killed",
                self.too_long()
            ),
            (Some(Kill::Mute), _) => {
                format!(
                    "the step did not say `ready` within {} s",
                    self.setup.limits.hello.as_secs()
                )
            }
            (Some(Kill::Stays), _) => "the step did not leave when told to".to_owned(),
            (None, Some(refusal)) => refusal,
            (None, None) => format!("the step process {how}"),
        };
        let reason = self.setup.redact.apply(&reason);
        if !was_leaving && kill != Some(Kill::Stays) {
            self.note_death(&reason, now);
        }
        let outcome = match kill {
            Some(Kill::Hangs) => Outcome::TimedOut,
            _ => Outcome::Crashed,
        };
        self.forget_calls(&reason);
        self.take_back(outcome, &reason, now);
        self.release_deferred(now);
    }

    fn note_death(&mut self, reason: &str, now: Now) {
        self.life.deaths += 1;
        let chance = self.chance();
        let limits = &self.setup.limits;
        let wait = limits
            .restart_first
            .saturating_mul(1 << (self.life.deaths - 1).min(16))
            .min(limits.restart_longest);
        let wait = wait.mul_f64(0.75 + chance / 4.0);
        self.life.restart_at = Some(now.instant + wait);
        self.life.last_death = Some(reason.to_owned());
        if self.drain.is_none() {
            let text = format!("{reason}; it is started again in {} ms", wait.as_millis());
            self.logger.agent("error", None, &text);
        }
    }

    /// Takes back what the dead process had in its hands. One message alone is to blame; of several
    /// nobody knows which, so they are handed over again one at a time before anything is counted.
    fn take_back(&mut self, outcome: Outcome, reason: &str, now: Now) {
        let mut live = self.records.in_state(State::InHand);
        live.sort_by_key(|number| self.records.get(*number).handed_at);
        self.in_hand = 0;
        for number in &live {
            self.spoil_held(*number);
            self.leave_bond(*number, now);
            let record = self.records.get(*number);
            record.state = State::Ready;
            record.is_uncertain = true;
            record.start_again();
        }
        // Somebody else may have those, and it is not for this agent to say what they did.
        let (lost, live): (Vec<u32>, Vec<u32>) = live
            .into_iter()
            .partition(|number| self.records.get(*number).claim.is_lost);
        for number in lost {
            self.abandon(number, now);
        }
        if let [guilty] = live.as_slice() {
            if self.is_finishing(*guilty) {
                self.end_stream(*guilty, now);
                return;
            }
            self.blame(*guilty, outcome, reason, now);
            return;
        }
        if live.len() > 1 {
            let text = format!(
                "{} messages were in its hands: they are tried one at a time",
                live.len()
            );
            self.logger.agent("warn", None, &text);
        }
        for number in live.into_iter().rev() {
            self.records.forget_log(number);
            let record = self.records.get(number);
            if record.deliveries.is_empty() && record.tick.is_none() {
                self.abandon(number, now);
            } else if record.tick.is_some() {
                self.ask(number, now);
            } else {
                self.suspects.push_front(number);
            }
        }
    }

    fn blame(&mut self, number: u32, outcome: Outcome, reason: &str, now: Now) {
        let lines = self
            .life
            .last_lines
            .iter()
            .filter(|_| self.life.has_written);
        let chain: Vec<String> = lines.cloned().collect();
        let bytes_max = self.setup.limits.attempt_log_bytes_all;
        self.records.log_before(number, chain.iter(), bytes_max);
        self.fail(number, outcome, reason, &chain, now);
    }

    /// Tells the step that no more will come.
    pub(super) fn dismiss_step(&mut self, now: Now) {
        self.step = Step::Leaving {
            deadline: now.instant + self.setup.limits.leave,
        };
        serde_json::to_writer(&mut self.to_step, &ToStep::Drain(Drain {}))
            .expect("a frame is JSON");
        self.to_step.push(b'\n');
    }

    /// Looks at everything that waits for a time.
    pub(super) fn check_time(&mut self, now: Now) {
        match self.step {
            Step::Greeting { deadline } if now.instant >= deadline => self.kill(Kill::Mute),
            Step::Leaving { deadline } if now.instant >= deadline => self.kill(Kill::Stays),
            _ => {}
        }
        self.check_timeouts(now);
        self.check_hanging(now);
        self.check_stream(now);
        self.check_call(now);
        self.check_asking(now);
        self.check_reattach(now);
        self.check_held(now);
        self.check_claims(now);
    }

    fn check_timeouts(&mut self, now: Now) {
        let elapsed = self.stopwatch.elapsed(now.instant);
        if self.next_timeout.is_none_or(|next| elapsed < next) {
            return;
        }
        let mut next = None;
        let mut late = Vec::new();
        for (number, record) in self
            .records
            .iter()
            .filter(|(_, record)| record.state == State::InHand)
        {
            match record.deadline {
                Some(deadline) if deadline <= elapsed => late.push(number),
                Some(deadline) => {
                    next = Some(next.map_or(deadline, |next: Duration| next.min(deadline)));
                }
                None => {}
            }
        }
        self.next_timeout = next;
        for number in late {
            self.cancel(number, "timeout", now);
        }
    }

    /// Tells the step that a message took too long. It stays in the step's hands until the step
    /// comes back with it: only then is it known that this message, and not one beside it that
    /// blocks the whole process, is the one that took so long.
    pub(super) fn cancel(&mut self, number: u32, reason: &str, now: Now) {
        let record = self.records.get(number);
        record.deadline = None;
        if let Some(id) = record.id {
            let frame = ToStep::Cancel(Cancel {
                id,
                reason: reason.into(),
            });
            serde_json::to_writer(&mut self.to_step, &frame).expect("a frame is JSON");
            self.to_step.push(b'\n');
            self.cancelled.insert(id, now.instant);
        }
    }

    /// The step came back with a message that was cancelled.
    pub(super) fn come_back(&mut self, number: u32, now: Now) {
        self.leave_hands(number, now);
        if self.records.get(number).claim.is_lost {
            self.abandon(number, now);
            self.release_deferred(now);
            return;
        }
        if self.is_finishing(number) {
            self.end_stream(number, now);
            return;
        }
        let reason = self.too_long();
        self.fail(number, Outcome::TimedOut, &reason, &[], now);
    }

    fn too_long(&self) -> String {
        let limit = self.setup.settings.timeout_ms;
        if limit == 0 {
            return "the step has what somebody else may have by now".to_owned();
        }
        format!("the step took longer than {}", crate::exit::duration(limit))
    }

    /// Returns when a step that does not come back with cancelled messages is killed.
    fn hanging_deadline(&self) -> Option<Instant> {
        let oldest = self.cancelled.values().min()?;
        Some(*oldest + self.setup.limits.cancel_grace)
    }

    fn check_hanging(&mut self, now: Now) {
        if self
            .hanging_deadline()
            .is_some_and(|deadline| now.instant >= deadline)
        {
            self.kill(Kill::Hangs);
        }
    }

    pub(super) fn next_step_deadline(&self) -> Option<Instant> {
        let own = match self.step {
            Step::Greeting { deadline } | Step::Leaving { deadline } => Some(deadline),
            Step::Absent if self.drain.is_none() => self.life.restart_at,
            _ => None,
        };
        let hanging = if self.step == Step::Dying {
            None
        } else {
            self.hanging_deadline()
        };
        own.into_iter().chain(hanging).min()
    }
}

//! Settling: a message is done, comes again, or is dead.

use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};
use towpath_protocol::message::{HISTORY_MAX, Lineage, Message, PastAttempt, REASON_BYTES_MAX};
use towpath_protocol::office::{DeadLetter, LATENCY_BOUNDS_US, Waiting};
use towpath_protocol::start::DELAY_UNIT_MS;

use super::{Core, Setup};
use crate::clock::Now;
use crate::envelope;
use crate::journal;
use crate::lanes::{LaneId, Member, SETTLEMENT};
use crate::record::{Record, Resolution, State};
use crate::redact::cut;
use crate::settle::{Decision, Outcome, not_yet_dead, settle};
use crate::{ladder, record::Epoch};

/// How many causes are kept.
const CHAIN_MAX: usize = 16;

/// How many attempts of a history keep what was logged during them: the newest, so that a message
/// that fails again and again stays small.
const HISTORY_LOGS_MAX: usize = 3;

impl Core {
    /// Notes that a message is no longer in the step's hands.
    pub(super) fn leave_hands(&mut self, number: u32, now: Now) {
        self.in_hand -= 1;
        self.moved_at = now.instant;
        if self.suspect == Some(number) {
            self.suspect = None;
        }
        self.forget_cancelled(number);
        let record = self.records.get(number);
        record.state = State::Ready;
        let Some(handed_at) = record.handed_at else {
            return;
        };
        let took = now.instant.saturating_duration_since(handed_at).as_micros();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < took);
        self.latency.counts[bucket] += 1;
        self.latency.sum_us += took;
    }

    fn forget_cancelled(&mut self, number: u32) {
        if !self.cancelled.is_empty()
            && let Some(id) = self.records.get(number).id
        {
            self.cancelled.remove(&id);
        }
    }

    /// The step handled a message.
    pub(super) fn succeed(&mut self, number: u32, now: Now) {
        self.life.has_worked();
        match self.records.get(number).bond {
            Some(bond) => self.wait_for_bond(number, bond, now),
            None => self.resolve(number, Resolution::Done, now),
        }
    }

    /// An attempt at a message failed, or the message cannot even be tried.
    pub(super) fn fail(
        &mut self,
        number: u32,
        outcome: Outcome,
        reason: &str,
        chain: &[String],
        now: Now,
    ) {
        self.spoil_held(number);
        self.leave_bond(number, now);
        if self.is_run_cancelled(number) {
            self.resolve(number, Resolution::Cancelled, now);
            return;
        }
        let settings = &self.setup.settings;
        let record = self.records.get(number);
        let (attempt, rebounds, delivery, is_in_company) = (
            record.tries(),
            record.rebounds,
            record.deliveries.first().copied(),
            record.is_in_company,
        );
        let chance = self.chance_of(delivery, attempt + rebounds);
        let mut decision = settle(outcome, attempt, rebounds, settings, chance);
        if is_in_company {
            decision = not_yet_dead(decision, settings, chance);
        }
        let reason = cut(&self.setup.redact.apply(reason), REASON_BYTES_MAX);
        let at = now.wall_ms;
        let again = |delay_ms, is_rebound, reason| Resolution::Again {
            units: ladder::units(delay_ms),
            is_rebound,
            at,
            due: 0,
            reason,
        };
        let is_failure = !matches!(decision, Decision::Rebound { .. });
        self.counters.failed += u64::from(is_failure);
        self.counters.timed_out += u64::from(outcome == Outcome::TimedOut);
        self.counters.crashed += u64::from(outcome == Outcome::Crashed);
        let id = self.records.get(number).id;
        let resolution = match decision {
            Decision::Done => Resolution::Done,
            Decision::Retry { delay_ms } => {
                let text =
                    format!("attempt {attempt} failed, tried again in {delay_ms} ms: {reason}");
                self.logger.agent("warn", id, &text);
                again(delay_ms, false, reason)
            }
            Decision::Rebound { delay_ms } => {
                self.logger.agent(
                    "debug",
                    id,
                    &format!("not yet, seen again in {delay_ms} ms: {reason}"),
                );
                again(delay_ms, true, reason)
            }
            Decision::Dead { cause } => {
                self.logger.agent(
                    "error",
                    id,
                    &format!("given up after attempt {attempt}: {reason}"),
                );
                let redact =
                    |cause: &String| cut(&self.setup.redact.apply(cause), REASON_BYTES_MAX);
                let chain = chain.iter().take(CHAIN_MAX).map(redact).collect();
                Resolution::Dead {
                    cause,
                    at,
                    reason,
                    chain,
                }
            }
        };
        self.resolve(number, resolution, now);
    }

    /// Carries out what was decided, or keeps it until the message is delivered again: whoever
    /// gets it then decides, and only one may.
    pub(super) fn resolve(&mut self, number: u32, resolution: Resolution, now: Now) {
        let record = self.records.get(number);
        let is_end = matches!(resolution, Resolution::Done | Resolution::Cancelled);
        let goes_on = record.tick.is_some() && is_end;
        record.resolution = Some(resolution);
        if !record.deliveries.is_empty() || goes_on {
            self.issue(number, now);
            return;
        }
        if self.waits_for_lost() {
            self.records.get(number).state = State::Parked;
            if self.order.is_some() {
                // The next of its partition may wait for it: then it does not come again.
                self.release_deferred(now);
            }
        } else {
            self.abandon(number, now);
            self.release_deferred(now);
        }
    }

    /// Returns whether what was lost with its connection may be delivered to this agent again.
    pub(super) fn waits_for_lost(&self) -> bool {
        let is_late = self.is_up && self.reconnected_at.is_none();
        self.drain.is_none() && !is_late
    }

    /// Publishes what a decision needs.
    pub(super) fn issue(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        record.state = State::Settling;
        match record
            .resolution
            .clone()
            .expect("only what is decided is issued")
        {
            Resolution::Done => self.publish_held(number, now),
            Resolution::Again {
                units,
                is_rebound,
                at,
                reason,
                ..
            } => {
                let next = now.wall_ms + u64::from(units) * DELAY_UNIT_MS;
                if let Some(Resolution::Again { due, .. }) = &mut record.resolution {
                    *due = next;
                }
                let past = PastAttempt {
                    attempt: record.tries(),
                    at,
                    replica: self.setup.identity.replica,
                    reason: reason.clone(),
                    log: record.log(),
                };
                if is_rebound {
                    self.counters.rebounded += 1;
                } else {
                    self.counters.retried += 1;
                }
                if record.partition.is_some() {
                    self.hold_again(number, past, is_rebound, units, now);
                    return;
                }
                let (line, note) = put_off(record, past, is_rebound, next, &self.setup);
                self.publish_settlement(number, LaneId::Delay(units), &line, now);
                if let Some(note) = note {
                    self.note_waiting(&note, now);
                }
                self.tell_run_retries(number, reason, next, is_rebound, now);
            }
            Resolution::Dead {
                cause,
                at,
                reason,
                chain,
            } => {
                let replica = self.setup.identity.replica;
                let (message, mut attempts) = message_of(record);
                let past = PastAttempt {
                    attempt: record.tries(),
                    at,
                    replica,
                    reason: reason.clone(),
                    log: record.log(),
                };
                attempts.extend(deaths_of(record, at));
                remember(&mut attempts, past);
                let identity = self.setup.identity.clone();
                let letter = DeadLetter {
                    identity,
                    at,
                    cause,
                    reason,
                    chain,
                    attempts,
                    message,
                };
                let mut line = serde_json::to_vec(&letter).expect("a dead letter is JSON");
                line.push(b'\n');
                self.publish_settlement(number, LaneId::Dead, &line, now);
                self.counters.dead += 1;
            }
            Resolution::Busy { units } => {
                // Whoever has it may be handling it now, or have died of it.
                let lane = if record.is_suspect {
                    LaneId::Suspect(units)
                } else {
                    LaneId::Delay(units)
                };
                let mut line = Vec::with_capacity(record.line.len() + 20);
                super::hand::write_line(&mut line, record, true);
                line.push(b'\n');
                self.publish_settlement(number, lane, &line, now);
            }
            Resolution::Cancelled => {
                self.spoil_held(number);
                self.tell_run_cancelled(number, now);
            }
            Resolution::Repeated | Resolution::Sorted | Resolution::Split => {}
        }
        self.try_complete(number, now);
    }

    /// Keeps a message of a step that keeps an order here until it is tried again: on its way through
    /// the ladder those behind it would overtake it.
    fn hold_again(
        &mut self,
        number: u32,
        past: PastAttempt,
        is_rebound: bool,
        units: u32,
        now: Now,
    ) {
        let delay_ms = u64::from(units) * DELAY_UNIT_MS;
        let due = now.wall_ms + delay_ms;
        let attempt = past.attempt;
        let record = self.records.get(number);
        let id = record.id;
        // Deaths are counted by the ledger, which says them again.
        let deaths = std::mem::take(&mut record.claim.deaths);
        let (mut line, _) = put_off(record, past, is_rebound, due, &self.setup);
        record.claim.deaths = deaths;
        line.truncate(line.trim_ascii_end().len());
        self.hold(number, line, Duration::from_millis(delay_ms), now);
        if let Some(id) = id {
            let event = journal::Event::Delayed { attempt, due };
            self.journal.push(id, now.wall_ms, event);
        }
    }

    pub(super) fn publish_settlement(&mut self, number: u32, lane: LaneId, line: &[u8], now: Now) {
        self.records.get(number).unconfirmed += 1;
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes.push(lane, line, member, now.instant);
    }

    /// Ends a message if all that was published for it is confirmed.
    pub(super) fn try_complete(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        if record.unconfirmed > 0 {
            return;
        }
        match record.state {
            State::Abandoned => {
                let record = self.records.remove(number);
                self.leave_partition(number, record.partition);
                self.release_deferred(now);
            }
            State::Settling => {
                if let Some(bond) = record.bond {
                    self.complete_bond(bond, now);
                    return;
                }
                let is_done = matches!(record.resolution, Some(Resolution::Done));
                let is_end_told = is_done && self.tell_run_ended(number, now);
                if self.report_done(number, now) || is_end_told {
                    return;
                }
                if self.tell_ledger(number, now) {
                    return;
                }
                let record = self.records.remove(number);
                let is_repeated = matches!(record.resolution, Some(Resolution::Repeated));
                self.counters.done += u64::from(is_done);
                self.counters.repeated += u64::from(is_repeated);
                self.note_end(&record, now);
                self.settled_ordered(&record);
                self.leave_partition(number, record.partition);
                for delivery in &record.deliveries {
                    self.deliveries.settle_line(*delivery, record.id);
                }
                if let Some(id) = record.id
                    && (record.deliveries.is_empty() || record.is_joined)
                {
                    self.finished
                        .insert((id, record.attempt, record.rebounds, record.replays));
                }
                self.release_deferred(now);
            }
            State::Asking
            | State::Sorting
            | State::Claiming
            | State::Held
            | State::Ready
            | State::InHand
            | State::Bound
            | State::Parked => {}
        }
    }

    /// Remembers how a message ended here.
    fn note_end(&mut self, record: &Record, now: Now) {
        let (Some(id), Some(resolution)) = (record.id, &record.resolution) else {
            return;
        };
        let attempt = record.tries();
        let event = match *resolution {
            Resolution::Done => journal::Event::Done { attempt },
            Resolution::Again { due, .. } => journal::Event::Delayed { attempt, due },
            Resolution::Dead { .. } => journal::Event::Dead { attempt },
            Resolution::Repeated => journal::Event::Repeated,
            Resolution::Cancelled
            | Resolution::Busy { .. }
            | Resolution::Sorted
            | Resolution::Split => return,
        };
        self.journal.push(id, now.wall_ms, event);
    }

    /// Leaves a message to whoever gets it next.
    pub(super) fn abandon(&mut self, number: u32, now: Now) {
        self.spoil_held(number);
        self.leave_bond(number, now);
        self.forget_cancelled(number);
        let record = self.records.get(number);
        if record.state == State::InHand {
            self.in_hand -= 1;
        }
        record.state = State::Abandoned;
        let partition = record.partition;
        self.leave_partition(number, partition);
        if !self.tell_released(number, now) {
            self.records.forget_id(number);
        }
        if self.records.get(number).unconfirmed == 0 {
            self.records.remove(number);
        }
    }

    /// Forgets the outputs that a message holds.
    pub(super) fn spoil_held(&mut self, number: u32) {
        let record = self.records.get(number);
        self.held_bytes = self.held_bytes.saturating_sub(record.held.len());
        record.held.clear();
        record.held_lines.clear();
        if let Some(tick) = &mut record.tick {
            tick.epochs
                .iter_mut()
                .for_each(|epoch: &mut Epoch| epoch.checkpoint = None);
        }
    }
}

/// Writes a message for its next attempt, and a note about it.
fn put_off(
    record: &Record,
    past: PastAttempt,
    is_rebound: bool,
    due: u64,
    setup: &Setup,
) -> (Vec<u8>, Option<Waiting>) {
    let mut message = envelope::parse(&record.line).expect("what was handed over was read before");
    let (at, reason) = (past.at, past.reason.clone());
    // A later attempt says it by its number.
    message.uncertain = is_rebound && record.is_uncertain;
    message.attempt = record.tries();
    message.history.extend(deaths_of(record, past.at));
    if is_rebound {
        message.rebounds += 1;
    } else {
        message.attempt += 1;
        remember(&mut message.history, past);
    }
    let mut line = serde_json::to_vec(&message).expect("a message is JSON");
    line.push(b'\n');
    let note = serde_json::from_str::<Lineage>(message.lineage.get()).ok();
    let note = note.map(|lineage| Waiting {
        identity: setup.identity.clone(),
        id: message.id,
        run: lineage.run,
        connection: lineage.connection,
        attempt: message.attempt,
        attempts: setup.settings.retry.attempts,
        rebounds: message.rebounds,
        replays: message.replays,
        is_rebound,
        reason,
        since: since(&message, at),
        due,
    });
    (line, note)
}

/// Returns when the first attempt failed that is remembered, or now.
fn since(message: &Message<'_>, now_ms: u64) -> u64 {
    message.history.first().map_or(now_ms, |first| first.at)
}

/// The deaths of containers as one past attempt: when each of them was, nobody wrote down.
fn deaths_of(record: &Record, at: u64) -> Option<PastAttempt> {
    (record.claim.deaths > 0).then(|| PastAttempt {
        attempt: record.tries() - 1,
        at,
        replica: 0,
        reason: super::claim::death(record.claim.death.as_deref(), record.tries() - 1),
        log: Vec::new(),
    })
}

fn remember(history: &mut Vec<PastAttempt>, past: PastAttempt) {
    history.push(past);
    if history.len() > HISTORY_MAX {
        history.drain(..history.len() - HISTORY_MAX);
    }
    for old in history.iter_mut().rev().skip(HISTORY_LOGS_MAX) {
        old.log = Vec::new();
    }
}

/// Returns a message as JSON, and its history; as a string if it cannot be read.
fn message_of(record: &Record) -> (Box<RawValue>, Vec<PastAttempt>) {
    if record.id.is_some()
        && let Ok(text) = std::str::from_utf8(&record.line)
        && let Ok(message) = RawValue::from_string(text.to_owned())
    {
        let history = envelope::parse(&record.line)
            .map(|message| message.history)
            .unwrap_or_default();
        return (message, history);
    }
    let text = String::from_utf8_lossy(&record.line);
    (to_raw_value(&text).expect("a string is JSON"), Vec::new())
}

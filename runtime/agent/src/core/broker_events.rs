//! The broker's side: the connection comes and goes; deliveries, confirms and answers arrive.

use std::time::Instant;

use bytes::Bytes;
use towpath_protocol::office::ToAgent;

use super::{Consuming, Core};
use crate::broker::{Command, Event};
use crate::clock::Now;
use crate::deliveries::INTAKE;
use crate::journal;
use crate::lanes::{CHECKPOINT, Member, NOBODY, SETTLEMENT};
use crate::record::{Resolution, State};
use crate::settle::Outcome;

impl Core {
    /// Notes what the broker says.
    pub fn on_broker(&mut self, event: Event, now: Now) {
        match event {
            Event::Up { generation } => self.on_up(generation, now),
            Event::Down { reason } => self.on_down(&reason, now),
            Event::Delivery {
                queue,
                tag,
                is_batch,
                origin,
                payload,
            } if is_batch => {
                self.moved_at = now.instant;
                // What comes into the intake comes once more, into a partition.
                self.counters.deliveries += u64::from(self.order.is_none() || queue != INTAKE);
                self.deliveries.add(queue, tag, payload, origin);
            }
            Event::Delivery { tag, payload, .. } => self.on_odd_delivery(tag, payload, now),
            Event::Confirmed {
                number,
                accepted: true,
            } => self.on_accepted(number, now),
            Event::Confirmed {
                number,
                accepted: false,
            } if self.lanes.is_report(number) => self.report_is_lost(number, now),
            Event::Confirmed {
                number,
                accepted: false,
            } => {
                let chance = self.chance();
                let was_refused = self.lanes.is_refused();
                self.lanes.refused(number, now.instant, chance);
                if !was_refused && self.lanes.is_refused() {
                    self.logger.agent(
                        "warn",
                        None,
                        "held back: the broker refuses messages, a queue is full",
                    );
                }
            }
            Event::Answer(answer) => self.on_answer(&answer, now),
            Event::Stopped => {
                self.moved_at = now.instant;
                self.consuming = Consuming::No;
                if self.order.is_some() {
                    self.has_left(now);
                }
            }
            Event::Blocked(is_blocked) => {
                if is_blocked && !self.is_blocked {
                    self.logger.agent(
                        "warn",
                        None,
                        "held back: the broker has an alarm and takes no messages",
                    );
                }
                self.moved_at = now.instant;
                self.is_blocked = is_blocked;
            }
        }
    }

    fn on_up(&mut self, generation: u64, now: Now) {
        self.moved_at = now.instant;
        self.generation = generation;
        self.is_up = true;
        self.reconnected_at = (generation > 1).then_some(now.instant);
        self.is_blocked = false;
        self.broker_reason = None;
        self.consuming = Consuming::No;
        self.logger.agent("info", None, "connected to the broker");
    }

    /// Everything that was open on the connection is void: the broker will deliver again. What the
    /// step has in hand stays there, and is recognised when it comes again.
    fn on_down(&mut self, reason: &str, now: Now) {
        let reason = self.setup.redact.apply(reason);
        if self.is_up {
            self.note_mishap(&reason, now);
        } else if self.broker_reason.as_ref() != Some(&reason) {
            let text = format!("the broker cannot be reached, tried again for ever: {reason}");
            self.logger.agent("warn", None, &text);
        }
        self.broker_reason = Some(reason);
        if !self.is_up {
            return;
        }
        self.is_up = false;
        self.consuming = Consuming::No;
        self.commands.clear();
        self.forget_notes();
        self.deliveries.forget();
        self.deferred.clear();
        self.again.clear();
        self.suspects.clear();
        self.claims.forget();
        self.has_detached = self.is_once();
        self.forget_order();
        for member in self.lanes.disconnected() {
            self.records.get(member.record).unconfirmed -= u64::from(member.count);
        }
        let all: Vec<u32> = self.records.iter().map(|(number, _)| number).collect();
        for number in all {
            let record = self.records.get(number);
            record.deliveries.clear();
            // What has no id is not recognised when it comes again.
            let is_known = record.id.is_some();
            match (record.state, &record.resolution) {
                (
                    State::Asking | State::Sorting | State::Claiming | State::Held | State::Ready,
                    _,
                )
                | (State::Settling, Some(Resolution::Busy { .. } | Resolution::Sorted)) => {
                    self.abandon(number, now);
                }
                // All is done but for the word to the ledger, which is said again.
                (State::Settling, _) if record.claim.is_told => {}
                (State::Settling, _) if !is_known => self.abandon(number, now),
                (State::Settling, Some(Resolution::Again { .. } | Resolution::Dead { .. })) => {
                    record.state = State::Parked;
                }
                _ => {}
            }
        }
    }

    fn on_odd_delivery(&mut self, tag: u64, payload: Bytes, now: Now) {
        self.moved_at = now.instant;
        self.counters.deliveries += 1;
        if self.is_paused || self.drain.is_some() {
            self.tell(Command::Requeue { tag });
            return;
        }
        self.counters.received += 1;
        let delivery = self.deliveries.add_whole(tag, payload.clone());
        let number = self.records.insert_unreadable(payload, delivery);
        let reason = "it is no batch of messages: its type is not `towpath.batch.1`".to_owned();
        self.fail(number, Outcome::Undecodable, &reason, &[], now);
    }

    fn on_accepted(&mut self, number: u64, now: Now) {
        let was_refused = self.lanes.is_refused();
        let Some(accepted) = self.lanes.accepted(number) else {
            return;
        };
        self.moved_at = now.instant;
        if was_refused && !self.lanes.is_refused() {
            self.logger.agent("info", None, "no longer held back");
        }
        self.counters.emitted += u64::from(accepted.firsts);
        let way = self.lanes.way(accepted.lane);
        let mut outputs = accepted.outputs.into_iter();
        for member in accepted.members {
            if let Some(way) = way {
                let parent = self.records.get(member.record).id;
                let tracked = self.run_of_way(member.record, way);
                for id in outputs.by_ref().take(member.count as usize) {
                    let parent = parent.unwrap_or(id);
                    let event = journal::Event::Emitted { parent, way };
                    self.journal.push(id, now.wall_ms, event);
                    if let Some(run) = tracked {
                        self.report_output(run, id, way, member, now);
                    }
                }
                // An output counts as confirmed once its report is.
                if tracked.is_some() {
                    continue;
                }
            }
            if member.record == NOBODY {
                self.untold.is_told();
            } else {
                self.on_confirmed(member, now);
            }
        }
    }

    pub(super) fn on_confirmed(&mut self, member: Member, now: Now) {
        let record = self.records.get(member.record);
        record.unconfirmed -= u64::from(member.count);
        if record.tick.is_some() && member.epoch != SETTLEMENT {
            if member.epoch == CHECKPOINT {
                self.checkpoint_is_saved(member.record);
            } else {
                self.epoch_confirmed(member.record, member.epoch, member.count);
            }
            self.save_checkpoint(member.record, now);
        }
        self.try_complete(member.record, now);
    }

    fn on_answer(&mut self, answer: &[u8], now: Now) {
        self.moved_at = now.instant;
        match serde_json::from_slice::<ToAgent>(answer) {
            Ok(ToAgent::Checkpoint(answer)) => self.checkpoint_is_known(answer, now),
            Ok(ToAgent::Find(find)) => self.on_find(&find, now),
            Ok(ToAgent::Claimed(answer)) => self.on_claimed(&answer, now),
            Ok(ToAgent::Cancel(cancel)) => self.cancel_run(cancel.run, now),
            Ok(ToAgent::Share(share)) => self.on_share(&share, now),
            Ok(ToAgent::Register(register)) => self.on_register(register, now),
            Err(error) => {
                let text = format!("what the control plane says is not understood: {error}");
                self.logger.agent("error", None, &text);
            }
        }
    }

    /// Returns when outcomes whose message was not delivered again are given up.
    pub(super) fn next_reattach_deadline(&self) -> Option<Instant> {
        self.reconnected_at
            .filter(|_| self.is_up)
            .map(|since| since + self.setup.limits.reattach)
    }

    /// Gives up what waited too long for its message to be delivered again: someone else has it.
    pub(super) fn check_reattach(&mut self, now: Now) {
        if self
            .next_reattach_deadline()
            .is_some_and(|deadline| now.instant >= deadline)
        {
            self.reconnected_at = None;
            self.finished.clear();
            self.abandon_all(State::Parked, now);
            self.abandon_bound(now);
            self.release_deferred(now);
        }
    }

    pub(super) fn abandon_all(&mut self, state: State, now: Now) {
        for number in self.records.in_state(state) {
            self.abandon(number, now);
        }
    }
}

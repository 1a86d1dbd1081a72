//! Triggers that are fired by ticks: the question for the checkpoint, checkpoints, ends of runs.
//!
//! # Invariants
//!
//! - A checkpoint is saved only after everything emitted before it is confirmed.
//! - `a_cancelled_run_is_not_tried_again`, and what it emitted goes on.
//! - A tick is acknowledged only after its outputs, its checkpoints and the end of its run are.

use serde_json::value::RawValue;
use towpath_protocol::frame::{Checkpoint, Saved, Tick, TickBody, ToStep};
use towpath_protocol::manifest::Kind;
use towpath_protocol::message::Lineage;
use towpath_protocol::office::{CheckpointAnswer, News};
use towpath_protocol::{CHECKPOINT_BYTES_MAX, MessageId};

use super::Core;
use crate::clock::Now;
use crate::envelope;
use crate::lanes::{CHECKPOINT, LaneId, Member, SETTLEMENT};
use crate::record::{Epoch, Resolution, State, TickState};
use crate::settle::Outcome;

impl TickState {
    /// Counts outputs; returns the number of the open epoch.
    pub(super) fn grow_epoch(&mut self, count: u64) -> u32 {
        if self.epochs.is_empty() {
            self.epochs.push_back(Epoch::default());
        }
        let index = self.epochs.len() - 1;
        self.epochs[index].unconfirmed += count;
        self.first_epoch + u32::try_from(index).expect("checkpoints that wait are few")
    }

    /// Counts more outputs of an epoch that awaits others.
    pub(super) fn grow_epoch_of(&mut self, epoch: u32, count: u64) {
        if let Some(index) = epoch.checked_sub(self.first_epoch)
            && let Some(epoch) = self.epochs.get_mut(index as usize)
        {
            epoch.unconfirmed += count;
        }
    }

    /// Takes the newest checkpoint before which all is confirmed, and the numbers of all that it
    /// makes needless.
    fn take_ready(&mut self) -> Option<(u64, Box<str>, Vec<u64>)> {
        let mut newest = None;
        let mut numbers = Vec::new();
        // The last epoch is open: outputs may be added to it.
        while self.epochs.len() > 1 && self.epochs[0].unconfirmed == 0 {
            let epoch = self.epochs.pop_front().expect("there is more than one");
            self.first_epoch += 1;
            if let Some((number, value)) = epoch.checkpoint {
                numbers.push(number);
                newest = Some((number, value));
            }
        }
        newest.map(|(number, value)| (number, value, numbers))
    }
}

impl Core {
    /// A tick was taken: asks where the trigger was.
    pub(super) fn begin_tick(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        let lineage = serde_json::from_slice::<Lineage>(&record.line[record.lineage.clone()]);
        let body =
            envelope::parse(&record.line).and_then(|message| parse_body(message.body).map(|_| ()));
        match (lineage, body) {
            (Ok(lineage), Ok(())) => {
                record.tick = Some(Box::new(TickState {
                    connection: lineage.connection,
                    ..TickState::default()
                }));
                self.ask(number, now);
            }
            (Err(error), _) => {
                self.fail(number, Outcome::Undecodable, &error.to_string(), &[], now);
            }
            (_, Err(reason)) => self.fail(number, Outcome::Undecodable, &reason, &[], now),
        }
    }

    /// Asks for the checkpoint (again).
    pub(super) fn ask(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        let run = record.id.expect("a tick was read");
        let tick = record.tick.as_mut().expect("only ticks have checkpoints");
        record.state = State::Asking;
        record.unconfirmed += 1;
        tick.ask_at = Some(now.instant + self.setup.limits.ask_again);
        let connection = tick.connection.clone();
        let identity = self.setup.identity.clone();
        let news = encode(&News::AskCheckpoint {
            identity,
            run,
            connection,
        });
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes
            .ask(&news, member, Self::correlation(run), now.instant);
    }

    /// The answer came.
    pub(super) fn checkpoint_is_known(&mut self, answer: CheckpointAnswer, now: Now) {
        let Some(number) = self.records.find(answer.run) else {
            return;
        };
        let record = self.records.get(number);
        if record.state != State::Asking {
            return;
        }
        let tick = record.tick.as_mut().expect("only ticks ask");
        tick.checkpoint = answer.checkpoint.map(|value| value.get().into());
        tick.version = answer.version;
        tick.ask_at = None;
        record.state = State::Ready;
        if answer.cancelled {
            tick.cancelled = true;
            self.resolve(number, Resolution::Cancelled, now);
            return;
        }
        self.again.push_back(number);
    }

    /// An operator cancelled a run: its tick is taken from the step as when it takes too long.
    pub(super) fn cancel_run(&mut self, run: MessageId, now: Now) {
        let Some(number) = self.records.find(run) else {
            return;
        };
        let record = self.records.get(number);
        let state = record.state;
        let Some(tick) = record.tick.as_mut().filter(|tick| !tick.cancelled) else {
            return;
        };
        match state {
            State::InHand => {
                tick.cancelled = true;
                self.cancel(number, "cancelled", now);
            }
            State::Ready => {
                tick.cancelled = true;
                self.again.retain(|other| *other != number);
                self.suspects.retain(|other| *other != number);
                self.resolve(number, Resolution::Cancelled, now);
            }
            // The answer to its question says so; or it is decided; or somebody else gets it.
            State::Asking
            | State::Sorting
            | State::Claiming
            | State::Held
            | State::Bound
            | State::Settling
            | State::Parked
            | State::Abandoned => {}
        }
    }

    pub(super) fn is_run_cancelled(&mut self, number: u32) -> bool {
        let tick = &self.records.get(number).tick;
        tick.as_ref().is_some_and(|tick| tick.cancelled)
    }

    /// Says that a tick was left because its run is cancelled.
    pub(super) fn tell_run_cancelled(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        let (Some(run), Some(tick)) = (record.id, &record.tick) else {
            return;
        };
        record.unconfirmed += 1;
        let news = encode(&News::RunCancelled {
            identity: self.setup.identity.clone(),
            run,
            emitted: tick.emitted,
            at: now.wall_ms,
        });
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes.push(LaneId::News, &news, member, now.instant);
    }

    pub(super) fn write_tick(&mut self, number: u32) {
        let record = self.records.get(number);
        let tick = record
            .tick
            .as_mut()
            .expect("only ticks are handed over as ticks");
        tick.emitted = 0;
        tick.epochs
            .iter_mut()
            .for_each(|epoch| epoch.checkpoint = None);
        let message = envelope::parse(&record.line).expect("what was handed over was read before");
        let body = parse_body(message.body).expect("it was read when it was taken");
        let checkpoint: Option<&RawValue> = tick
            .checkpoint
            .as_deref()
            .and_then(|value| serde_json::from_str(value).ok());
        let frame = ToStep::Tick(Tick {
            id: message.id,
            attempt: record.attempt,
            why: body.why,
            due: body.due,
            checkpoint,
            payload: body.payload,
        });
        serde_json::to_writer(&mut self.to_step, &frame)
            .expect("a frame is JSON, and a buffer takes it");
        self.to_step.push(b'\n');
    }

    pub(super) fn add_checkpoint(
        &mut self,
        number: u32,
        checkpoint: &Checkpoint<'_>,
        now: Now,
    ) -> Result<(), String> {
        if self.setup.kind != Kind::Poll {
            return Err("the step wrote a checkpoint, but it is no trigger that polls".to_owned());
        }
        let size = checkpoint.value.get().len();
        if size > CHECKPOINT_BYTES_MAX {
            let reason = format!(
                "the step's checkpoint has {size} bytes; the limit is {CHECKPOINT_BYTES_MAX}"
            );
            self.spoil(number, reason);
            return Ok(());
        }
        if self.records.get(number).bad_output.is_some() {
            return Ok(());
        }
        self.publish_held(number, now);
        let tick = self
            .records
            .get(number)
            .tick
            .as_mut()
            .expect("a trigger that polls has ticks");
        tick.grow_epoch(0);
        let open = tick.epochs.back_mut().expect("there is one now");
        open.checkpoint = Some((checkpoint.number, checkpoint.value.get().into()));
        tick.epochs.push_back(Epoch::default());
        self.save_checkpoint(number, now);
        Ok(())
    }

    pub(super) fn epoch_confirmed(&mut self, number: u32, epoch: u32, count: u32) {
        let tick = self
            .records
            .get(number)
            .tick
            .as_mut()
            .expect("only ticks have epochs");
        if let Some(index) = epoch.checked_sub(tick.first_epoch)
            && let Some(epoch) = tick.epochs.get_mut(index as usize)
        {
            epoch.unconfirmed = epoch.unconfirmed.saturating_sub(u64::from(count));
        }
    }

    /// Saves the newest checkpoint that may be saved, one at a time.
    pub(super) fn save_checkpoint(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        let Some(run) = record.id else { return };
        let tick = record.tick.as_mut().expect("only ticks have checkpoints");
        if !tick.saving.is_empty() || record.state == State::Abandoned {
            return;
        }
        let Some((checkpoint, value, numbers)) = tick.take_ready() else {
            return;
        };
        let Ok(value) = RawValue::from_string(value.into()) else {
            return;
        };
        tick.saving = numbers;
        record.unconfirmed += 1;
        let connection = tick.connection.clone();
        let follows = Some(tick.version);
        tick.version += 1;
        let identity = self.setup.identity.clone();
        let news = encode(&News::Checkpoint {
            identity,
            run,
            connection,
            number: checkpoint,
            follows,
            value,
        });
        let member = Member {
            record: number,
            epoch: CHECKPOINT,
            count: 1,
        };
        self.lanes.push(LaneId::News, &news, member, now.instant);
    }

    pub(super) fn checkpoint_is_saved(&mut self, number: u32) {
        let record = self.records.get(number);
        let Some(id) = record.id else { return };
        let tick = record.tick.as_mut().expect("only ticks have checkpoints");
        for number in std::mem::take(&mut tick.saving) {
            if record.state == State::InHand {
                let frame = ToStep::Saved(Saved { id, number });
                serde_json::to_writer(&mut self.to_step, &frame)
                    .expect("a frame is JSON, and a buffer takes it");
                self.to_step.push(b'\n');
            }
        }
    }

    /// Says that a run has ended. Returns whether that still has to be confirmed.
    pub(super) fn tell_run_ended(&mut self, number: u32, now: Now) -> bool {
        let record = self.records.get(number);
        let Some(run) = record.id else { return false };
        let Some(tick) = record.tick.as_mut().filter(|tick| !tick.ended) else {
            return false;
        };
        tick.ended = true;
        record.unconfirmed += 1;
        let emitted = tick.emitted;
        let identity = self.setup.identity.clone();
        let news = encode(&News::RunEnded {
            identity,
            run,
            emitted,
            at: now.wall_ms,
        });
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes.push(LaneId::News, &news, member, now.instant);
        true
    }

    pub(super) fn tell_run_retries(
        &mut self,
        number: u32,
        reason: String,
        next: u64,
        is_rebound: bool,
        now: Now,
    ) {
        let record = self.records.get(number);
        let Some(run) = record.id.filter(|_| record.tick.is_some()) else {
            return;
        };
        record.unconfirmed += 1;
        let identity = self.setup.identity.clone();
        let news = encode(&News::RunRetries {
            identity,
            run,
            reason,
            next,
            is_rebound,
        });
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes.push(LaneId::News, &news, member, now.instant);
    }

    pub(super) fn next_tick_deadline(&self) -> Option<std::time::Instant> {
        if self.setup.kind != Kind::Poll || !self.is_up {
            return None;
        }
        let asks = self
            .records
            .iter()
            .filter(|(_, record)| record.state == State::Asking);
        asks.filter_map(|(_, record)| record.tick.as_ref()?.ask_at)
            .min()
    }

    /// Asks again where no answer came: nobody may have been there.
    pub(super) fn check_asking(&mut self, now: Now) {
        if self.setup.kind != Kind::Poll || !self.is_up {
            return;
        }
        for number in self.records.in_state(State::Asking) {
            let record = self.records.get(number);
            let ask_at = record.tick.as_ref().and_then(|tick| tick.ask_at);
            let is_said = record.unconfirmed == 0;
            if ask_at.is_some_and(|at| now.instant >= at) {
                if is_said {
                    self.ask(number, now);
                } else if let Some(tick) = &mut self.records.get(number).tick {
                    tick.ask_at = Some(now.instant + self.setup.limits.ask_again);
                }
            }
        }
    }
}

fn parse_body(body: &RawValue) -> Result<TickBody<'_>, String> {
    serde_json::from_str(body.get()).map_err(|error| format!("it is not a tick: {error}"))
}

fn encode(news: &News) -> Vec<u8> {
    serde_json::to_vec(news).expect("news are JSON")
}

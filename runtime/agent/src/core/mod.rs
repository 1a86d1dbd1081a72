//! What to do about everything that happens: a state machine that does no IO.
//!
//! The loop in [`crate::run`] tells it what happened ([`Core::on_broker`], [`Core::on_step_line`],
//! [`Core::on_step_exit`], …), then calls [`Core::advance`], then carries out what it wants:
//! [`Core::take_command`], [`Core::to_step`], [`Core::wants_kill`], [`Core::wants_start`].
//! Time and chance come in, so that a test owns both.
//!
//! | File | What |
//! |---|---|
//! | `broker_events` | the connection comes and goes; deliveries, confirms, answers |
//! | `branching` | which of the steps after this one an output goes to |
//! | `claim` | the ledger: asking for messages, and telling what became of them |
//! | `order` | a step that keeps an order: sorting, partitions, holding |
//! | `hand` | taking lines, and handing messages to the step |
//! | `batch` | handing over several messages together |
//! | `pace` | keeping to the step's rate |
//! | `look` | bodies held against what the step takes |
//! | `step_frames` | what the step says |
//! | `joint` | outputs that were made from several messages |
//! | `outcome` | settling: done, again, dead |
//! | `tick` | triggers: checkpoints and ends of runs |
//! | `stream` | triggers that run for ever: when they come to an end |
//! | `registration` | triggers that register at their source |
//! | `track` | reporting what came of runs |
//! | `step_life` | the step process starts, dies, hangs, leaves |
//! | `stall` | a connection over which nothing moves is made again |
//! | `status` | reports |
//! | `notes`, `inquiry` | what people may know of single messages |
//!
//! # Invariants
//!
//! - `nothing_is_lost_wherever_it_is_cut` (tests/cut_everywhere.rs).
//! - `neighbours_of_a_poison_message_lose_no_attempt` (tests/simulation.rs).

mod batch;
mod branching;
mod broker_events;
mod claim;
mod hand;
mod inquiry;
mod joint;
mod look;
mod notes;
mod order;
mod outcome;
mod pace;
mod registration;
mod stall;
mod status;
mod step_frames;
mod step_life;
mod stream;
mod tick;
mod track;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::value::RawValue;
use towpath_protocol::handing::{Batch, Validation};
use towpath_protocol::manifest::Kind;
use towpath_protocol::office::{Counters, LATENCY_BOUNDS_US, Latency};
use towpath_protocol::start::{Identity, Routes, Settings, Start};

use crate::broker::{Addressed, Command};
use crate::claims::Claims;
use crate::clock::{Now, Stopwatch};
use crate::deliveries::{Ack, Deliveries, Sequence};
use crate::envelope::Envelope;
use crate::finished::Finished;
use crate::journal::Journal;
use crate::lanes::Lanes;
use crate::limits::Limits;
use crate::log::Logger;
use crate::pace::Pace;
use crate::prefetch::prefetch;
use crate::record::{IdMap, Records, State};
use crate::redact::Redact;
use crate::validate::{Seldom, Validator};

pub use branching::{Question, conditions};
pub use order::{KeyQuestion, key_of};
pub use status::Memory;
pub use step_life::{Kill, Step};

/// What an agent is for.
pub(crate) struct Setup {
    pub(crate) identity: Identity,
    pub(crate) kind: Kind,
    pub(crate) routes: Routes,
    pub(crate) settings: Settings,
    pub(crate) batch: Option<Batch>,
    pub(crate) config: Box<RawValue>,
    pub(crate) redact: Redact,
    pub(crate) limits: Limits,
    pub(crate) incarnation: String,
}

/// Whether messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consuming {
    No,
    Yes,
    Stopping,
}

/// Leaving.
#[derive(Debug, Clone, Copy)]
struct Drain {
    deadline: Instant,
}

/// A line that was taken and has to wait until another message with its id is settled.
struct Deferred {
    delivery: Sequence,
    line: Bytes,
    envelope: Envelope,
    /// The partition it came by, of a step that keeps an order.
    partition: Option<u16>,
}

/// The agent's mind.
pub struct Core {
    setup: Setup,
    logger: Logger,
    rng: StdRng,
    seed: u64,

    generation: u64,
    is_up: bool,
    /// Since when there is a connection again; none on the first, and when it is long ago.
    reconnected_at: Option<Instant>,
    is_blocked: bool,
    broker_reason: Option<String>,
    /// When something moved between broker, agent and step for the last time.
    moved_at: Instant,
    mishap: Option<stall::Mishap>,
    consuming: Consuming,
    commands: VecDeque<Addressed>,
    deliveries: Deliveries,
    lanes: Lanes,
    branching: branching::Branching,
    finished: Finished,
    journal: Journal,
    notes: notes::Notes,
    untold: track::Untold,

    records: Records,
    claims: Claims,
    /// When claims are looked through for those to ask for once more.
    renew_at: Option<Instant>,
    /// The step may have something in hand whose delivery was lost, and whose claim may run out.
    has_detached: bool,
    again: VecDeque<u32>,
    suspects: VecDeque<u32>,
    suspect: Option<u32>,
    deferred: Vec<Deferred>,
    /// Of a step that keeps an order.
    order: Option<order::Order>,
    in_hand: u32,
    /// The tick that was told to come to an end, of a trigger that runs for ever.
    finishing: Option<stream::Finishing>,
    /// What the trigger is called to register.
    registering: registration::Registering,
    /// Those of the messages in hand that took too long, and since when the step has been told.
    cancelled: IdMap<Instant>,
    held_bytes: usize,
    /// Messages that share outputs.
    bonds: joint::Bonds,

    step: Step,
    life: step_life::Life,
    to_step: Vec<u8>,
    stopwatch: Stopwatch,
    next_timeout: Option<Duration>,

    is_paused: bool,
    drain: Option<Drain>,
    has_drained: bool,

    /// Since when the first message of the next batch waits for others.
    gathering_since: Option<Instant>,
    /// How many deliveries may be unacknowledged.
    prefetch: u16,
    /// If the step has a rate.
    pace: Option<Pace>,
    validator: Option<Validator>,
    misfits: Seldom,

    counters: Counters,
    latency: Latency,
}

/// What bodies are held against. The document was checked: that it cannot be made is for tests alone.
fn validator(validation: Option<&Validation>, logger: &Logger) -> Option<Validator> {
    Validator::new(validation?)
        .inspect_err(|why| {
            logger.agent("error", None, &format!("bodies are not looked at: {why}"));
        })
        .ok()
}

impl Core {
    /// Makes the mind of an agent that has just started.
    pub fn new(start: Start, mut limits: Limits, logger: Logger, seed: u64, now: Now) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let incarnation = format!("{:016x}", rng.random::<u64>());
        let pace = start.handing.rate.map(|rate| Pace::new(rate, now.instant));
        if pace.as_ref().is_some_and(Pace::is_slow) {
            limits.delay_batch = 1;
        }
        let prefetch = prefetch(&start);
        let validator = validator(start.handing.validate.as_ref(), &logger);
        let lanes = Lanes::new(&start.routes, &limits, &start.identity, &incarnation);
        let order = start.routes.order.as_ref();
        let order = order.map(|order| order::Order::new(order.partitions.len()));
        let branching = branching::Branching::new(&start.routes, &lanes);
        Self {
            setup: Setup {
                redact: Redact::new(&start.redact),
                identity: start.identity,
                kind: start.kind,
                routes: start.routes,
                settings: start.settings,
                batch: start.handing.batch,
                config: start.config,
                limits,
                incarnation,
            },
            logger,
            rng,
            seed,
            generation: 0,
            is_up: false,
            reconnected_at: None,
            is_blocked: false,
            broker_reason: None,
            moved_at: now.instant,
            mishap: None,
            consuming: Consuming::No,
            commands: VecDeque::new(),
            deliveries: if order.is_some() {
                Deliveries::keeping_past()
            } else {
                Deliveries::default()
            },
            lanes,
            branching,
            finished: Finished::default(),
            journal: Journal::new(now.wall_ms),
            notes: notes::Notes::default(),
            untold: track::Untold::default(),
            records: Records::default(),
            claims: Claims::default(),
            renew_at: None,
            has_detached: false,
            again: VecDeque::new(),
            suspects: VecDeque::new(),
            suspect: None,
            deferred: Vec::new(),
            order,
            in_hand: 0,
            finishing: None,
            registering: registration::Registering::default(),
            cancelled: IdMap::default(),
            held_bytes: 0,
            bonds: joint::Bonds::default(),
            step: Step::Absent,
            life: step_life::Life::default(),
            to_step: Vec::new(),
            stopwatch: Stopwatch::start(now.instant),
            next_timeout: None,
            is_paused: start.paused,
            drain: None,
            has_drained: false,
            gathering_since: None,
            prefetch,
            pace,
            validator,
            misfits: Seldom::default(),
            counters: Counters::default(),
            latency: Latency {
                counts: vec![0; LATENCY_BOUNDS_US.len() + 1],
                sum_us: 0,
            },
        }
    }

    /// Does whatever can be done now. To be called after every event, or after several.
    pub fn advance(&mut self, now: Now) {
        self.stopwatch.set_running(self.reads_step(), now.instant);
        self.check_time(now);
        self.want_deliveries(now);
        self.sort(now);
        self.hand(now);
        self.finish_drain(now);
        self.check_stall(now);
        if self.is_up {
            self.send_notes(now);
            self.ask_ledger(now);
            self.tell_lost(now);
            let (lanes, commands, generation) =
                (&mut self.lanes, &mut self.commands, self.generation);
            let moved_at = &mut self.moved_at;
            lanes.send(now.instant, |publish| {
                *moved_at = now.instant;
                commands.push_back(Addressed {
                    generation,
                    command: Command::Publish(publish),
                });
            });
            // After `Stop` they would be for a channel that is gone.
            let has_left = self.order.is_some() && self.consuming == Consuming::Stopping;
            let acknowledge = |ack: Ack| {
                let command = Command::Ack {
                    tag: ack.tag,
                    multiple: ack.multiple,
                };
                commands.push_back(Addressed {
                    generation,
                    command,
                });
            };
            if !has_left {
                self.deliveries.acks(acknowledge);
            }
            self.leave_if_wanted(now);
        }
        self.stopwatch.set_running(self.reads_step(), now.instant);
    }

    /// Takes the next thing to tell the broker.
    pub fn take_command(&mut self) -> Option<Addressed> {
        self.commands.pop_front()
    }

    /// Returns whether there is something to tell the broker.
    pub fn has_command(&self) -> bool {
        !self.commands.is_empty()
    }

    /// Returns the bytes to write to the step. What was written is to be removed from the front.
    pub fn to_step(&mut self) -> &mut Vec<u8> {
        &mut self.to_step
    }

    /// Returns whether the step's frames are to be read: not while the broker holds us back.
    pub fn reads_step(&self) -> bool {
        !self.lanes.is_full(self.branching.bytes())
    }

    /// Returns when to call [`Self::advance`] if nothing happens before.
    pub fn next_deadline(&self, now: Now) -> Option<Instant> {
        let timeout = self.next_timeout.filter(|_| self.reads_step()).map(|at| {
            now.instant
                + at.saturating_sub(self.stopwatch.elapsed(now.instant))
                + Duration::from_millis(1)
        });
        let lanes = if self.is_up {
            self.lanes.next_deadline()
        } else {
            None
        };
        let drain = self
            .drain
            .filter(|_| !self.has_drained)
            .map(|drain| drain.deadline);
        [
            timeout,
            lanes,
            drain,
            self.next_step_deadline(),
            self.next_tick_deadline(),
            self.next_claim_deadline(),
            self.next_reattach_deadline(),
            self.next_note_deadline(),
            self.holds().1,
            self.next_batch_deadline(now),
            self.next_finish_deadline(),
            self.next_call_deadline(),
            self.next_lost_deadline(),
            self.pace
                .as_ref()
                .and_then(Pace::next)
                .filter(|at| *at > now.instant),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Stops consuming and finishes what is held.
    pub fn pause(&mut self) {
        self.is_paused = true;
        self.logger.agent(
            "info",
            None,
            "paused: no message is taken until it is resumed",
        );
    }

    /// Consumes again.
    pub fn resume(&mut self) {
        self.is_paused = false;
        self.logger.agent("info", None, "resumed");
    }

    /// Finishes what is started, then leaves.
    pub fn drain(&mut self, now: Now) {
        if self.drain.is_none() {
            let wait = Duration::from_millis(self.setup.settings.drain_ms);
            self.drain = Some(Drain {
                deadline: now.instant + wait,
            });
            self.logger.agent(
                "info",
                None,
                &format!("draining: {} messages to finish", self.records.len()),
            );
            self.leave_call();
        }
    }

    /// Returns whether all is finished: the agent can exit.
    pub fn has_drained(&self) -> bool {
        self.has_drained
    }

    /// Returns whether the drain took too long: the step is to be killed.
    pub fn drain_is_late(&self, now: Now) -> bool {
        self.drain
            .is_some_and(|drain| now.instant >= drain.deadline)
            && !self.has_drained
    }

    /// Returns whether there is a connection to the broker.
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Has the connections closed, after everything that was said before.
    pub fn close(&mut self) {
        self.tell(Command::Close);
    }

    fn tell(&mut self, command: Command) {
        self.commands.push_back(Addressed {
            generation: self.generation,
            command,
        });
    }

    /// Begins or stops consuming, as is wanted, and gives back what was taken too much.
    fn want_deliveries(&mut self, now: Now) {
        let is_leaving = self.is_paused || self.drain.is_some();
        let wanted = self.wants_deliveries() && self.pace_takes(now);
        if self.is_up {
            match (wanted, self.consuming) {
                (true, Consuming::No) => {
                    self.consuming = Consuming::Yes;
                    self.tell(Command::Consume);
                }
                // At the end of a turn, after what is acknowledged.
                (false, Consuming::Yes) if self.order.is_some() => {}
                (false, Consuming::Yes) => {
                    self.consuming = Consuming::Stopping;
                    self.tell(Command::Stop);
                }
                _ => {}
            }
        }
        if is_leaving && self.is_up && self.order.is_none() {
            self.give_back(now);
        }
    }

    fn wants_deliveries(&self) -> bool {
        !self.is_paused && self.drain.is_none() && self.step_is_usable()
    }

    /// A step that keeps an order stops consuming only when nothing is in its hands.
    fn leave_if_wanted(&mut self, now: Now) {
        if self.order.is_some() && self.consuming == Consuming::Yes && !self.wants_deliveries() {
            self.leave_order(now);
        }
    }

    /// Gives back the deliveries nothing of which was begun, with what was claimed of them.
    fn give_back(&mut self, now: Now) {
        let mut back = Vec::new();
        self.deliveries
            .give_back_unbegun(|sequence, tag| back.push((sequence, tag)));
        if back.is_empty() {
            return;
        }
        let is_back = |sequence: &Sequence| back.binary_search_by_key(sequence, |it| it.0).is_ok();
        self.deferred
            .retain(|deferred| !is_back(&deferred.delivery));
        let numbers: Vec<u32> = self.records.iter().map(|(number, _)| number).collect();
        for number in numbers {
            let record = self.records.get(number);
            let count = record.deliveries.len();
            record.deliveries.retain(|sequence| !is_back(sequence));
            let is_left = count > 0 && record.deliveries.is_empty();
            if is_left && matches!(record.state, State::Claiming | State::Ready) {
                self.abandon(number, now);
            }
        }
        self.forget_abandoned();
        for (_, tag) in back {
            self.tell(Command::Requeue { tag });
        }
    }

    /// Takes what was abandoned from those that wait to be handed over.
    fn forget_abandoned(&mut self) {
        let records = &mut self.records;
        let mut waits = |number: &u32| {
            records.exists(*number)
                && matches!(records.get(*number).state, State::Claiming | State::Ready)
        };
        self.again.retain(&mut waits);
        self.suspects.retain(&mut waits);
    }

    fn finish_drain(&mut self, now: Now) {
        if self.drain.is_none() || self.has_drained {
            return;
        }
        if self.order.is_some() && self.is_up && self.consuming != Consuming::No {
            return;
        }
        // What cannot be finished without taking more, or without an answer, goes back to the queue
        // when the connection closes.
        self.deferred.clear();
        self.abandon_all(State::Parked, now);
        self.abandon_bound(now);
        self.abandon_all(State::Asking, now);
        self.abandon_all(State::Claiming, now);
        self.abandon_all(State::Held, now);
        self.claims.forget();
        self.forget_abandoned();
        let is_settled = self.records.is_empty() && !self.deliveries.is_waiting();
        if !is_settled && self.step != Step::Absent {
            return;
        }
        match self.step {
            Step::Absent => self.has_drained = !self.is_up || self.consuming == Consuming::No,
            Step::Greeting { .. } | Step::Ready => self.dismiss_step(now),
            Step::Leaving { .. } | Step::Dying => {}
        }
    }

    fn chance(&mut self) -> f64 {
        self.rng.random()
    }

    /// Returns the same chance for all messages of one delivery that fail at the same attempt, so
    /// that they travel back as one batch.
    fn chance_of(&self, delivery: Option<Sequence>, attempt: u32) -> f64 {
        let seed =
            self.seed ^ delivery.unwrap_or(0).rotate_left(20) ^ u64::from(attempt).rotate_left(50);
        StdRng::seed_from_u64(seed).random()
    }

    fn correlation(id: towpath_protocol::MessageId) -> Arc<str> {
        id.to_string().into()
    }
}

//! Order: a step whose messages of one key are handled one after the other, by any number of replicas.
//!
//! What comes for the step comes into its **intake**. The broker gives that to one replica at a time,
//! which has the key of each message computed and puts the message into the partition of its key:
//! sorting. Each partition the broker gives to one replica at a time, too, and of each partition one
//! message at a time is handed over: the next one when this one is settled. A message that is tried
//! again is held here until then, and its partition with it; the other partitions go on.
//!
//! # Invariants
//!
//! - `messages_of_one_key_are_handled_in_order_one_at_a_time` (tests/ordering.rs), whatever breaks.
//!   What was handled and not acknowledged is handled again, and then all after it as well, in order.
//! - `a_retry_holds_its_partition_and_no_other`.
//! - What is left is left all at once, with the connection's channel: a queue gives what one consumer
//!   has cancelled to the next while something of it is still in the hands of the first.
//! - A batch under way into a partition is void when the connection is lost: who sorts next takes it
//!   from the intake again, and what came later than its successor would be out of order.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;
use towpath_protocol::start::partition_of;

use super::{Consuming, Core, Deferred, Step};
use crate::broker::Command;
use crate::clock::Now;
use crate::deliveries::{INTAKE, QueueNumber, Sequence};
use crate::envelope::{self, Envelope};
use crate::finished::Handling;
use crate::journal;
use crate::lanes::LaneId;
use crate::record::{IdMap, Record, Resolution, State};
use crate::settle::Outcome;

/// The longest key that is kept with its message; a longer one is hashed all the same.
const KEY_BYTES_MAX: usize = 256;

/// A message whose key is to be computed.
#[derive(Debug, Clone)]
pub struct KeyQuestion {
    /// Names the question.
    pub number: u64,
    /// The message, which is JSON.
    pub message: Bytes,
}

/// A message on its way from the intake to its partition.
struct Sorting {
    record: u32,
    question: u64,
    key: Option<Result<String, String>>,
}

/// What a step that keeps an order has to remember.
pub(super) struct Order {
    /// In the order of the intake.
    sorting: VecDeque<Sorting>,
    questions: VecDeque<KeyQuestion>,
    numbers: u64,
    /// Messages whose key is not known, or whose way into their partition is not confirmed.
    under_way: usize,
    /// Keys cannot be computed now.
    has_trouble: bool,
    /// By partition: the message that is being handled, or held.
    current: Vec<Option<u32>>,
    /// The partition that is looked at first, so that each has its turn.
    turn: usize,
    /// Messages as they are after the attempts that failed here; the broker has them as they were
    /// before.
    tried: IdMap<Tried>,
}

/// A message that failed here and is tried again.
struct Tried {
    /// What the broker has of it.
    before: Handling,
    /// Its line now.
    line: Bytes,
}

/// How many of them are remembered: one a partition, and those that others have by now.
const TRIED_MAX: usize = 1_024;

impl Order {
    pub(super) fn new(partitions: usize) -> Self {
        Self {
            sorting: VecDeque::new(),
            questions: VecDeque::new(),
            numbers: 0,
            under_way: 0,
            has_trouble: false,
            current: vec![None; partitions],
            turn: 0,
            tried: IdMap::default(),
        }
    }
}

/// The queue of a partition.
fn queue_of(partition: usize) -> QueueNumber {
    u16::try_from(partition + 1).expect("a step has few partitions")
}

impl Core {
    /// Takes the next question for a key. They are to be answered in any order, by
    /// [`Self::on_key`]; those of a connection that is lost need not be.
    pub fn take_key_question(&mut self) -> Option<KeyQuestion> {
        self.order.as_mut()?.questions.pop_front()
    }

    /// Notes why keys cannot be computed now.
    pub fn on_no_keys(&mut self, why: &str) {
        let why = self.setup.redact.apply(why);
        self.logger.agent("error", None, &why);
        if let Some(order) = &mut self.order {
            order.has_trouble = true;
        }
    }

    /// A key was computed, or cannot be.
    pub fn on_key(&mut self, question: u64, key: Result<String, String>) {
        let Some(order) = &mut self.order else {
            return;
        };
        order.has_trouble = false;
        // They come nearly in order.
        if let Some(it) = order.sorting.iter_mut().find(|it| it.question == question) {
            it.key = Some(key);
        }
    }

    /// Takes lines from the intake and has their keys computed; puts those whose keys are known into
    /// their partitions, in the order of the intake.
    pub(super) fn sort(&mut self, now: Now) {
        if self.order.is_none() {
            return;
        }
        while self.consuming == Consuming::Yes
            && (self.may_take_more() || self.deliveries.is_in_the_middle(INTAKE))
            && self
                .order
                .as_ref()
                .is_some_and(|it| it.under_way < self.setup.limits.sort_ahead)
            && let Some((delivery, line)) = self.deliveries.next_line(INTAKE)
        {
            self.deliveries.begin(delivery);
            self.begin_sorting(delivery, line, now);
        }
        while self.consuming == Consuming::Yes
            && let Some(order) = &mut self.order
            && let Some(first) = order.sorting.pop_front_if(|it| it.key.is_some())
        {
            match first.key.expect("it is known") {
                Ok(key) => self.put_into_partition(first.record, &key, now),
                Err(reason) => {
                    order.under_way -= 1;
                    let reason = format!("no key to order it by: {reason}");
                    self.fail(first.record, Outcome::NoKey, &reason, &[], now);
                }
            }
        }
    }

    fn begin_sorting(&mut self, delivery: Sequence, line: Bytes, now: Now) {
        let envelope = match envelope::read(&line) {
            Ok(envelope) => envelope,
            Err(reason) => {
                let number = self.records.insert_unreadable(line, delivery);
                self.fail(number, Outcome::Undecodable, &reason, &[], now);
                return;
            }
        };
        let order = self.order.as_mut().expect("only a step with order sorts");
        if self.deliveries.was_settled(delivery, envelope.id) {
            self.deliveries.settle_line(delivery, Some(envelope.id));
            return;
        }
        let is_message = envelope::parse(&line).map(drop);
        let message = line.clone();
        let record = self.records.insert_apart(envelope, line, delivery);
        order.numbers += 1;
        order.under_way += 1;
        let question = order.numbers;
        let key = match is_message {
            Ok(()) => {
                order.questions.push_back(KeyQuestion {
                    number: question,
                    message,
                });
                None
            }
            Err(reason) => Some(Err(reason)),
        };
        order.sorting.push_back(Sorting {
            record,
            question,
            key,
        });
    }

    fn put_into_partition(&mut self, number: u32, key: &str, now: Now) {
        let order = self.order.as_ref().expect("only a step with order sorts");
        let partition = partition_of(key, order.current.len());
        let record = self.records.get(number);
        let mut message = envelope::parse(&record.line).expect("it was read before");
        message.key = (key.len() <= KEY_BYTES_MAX).then(|| key.into());
        let mut line = serde_json::to_vec(&message).expect("a message is JSON");
        line.push(b'\n');
        record.resolution = Some(Resolution::Sorted);
        record.state = State::Settling;
        let lane = LaneId::Partition(u16::try_from(partition).expect("a step has few partitions"));
        self.publish_settlement(number, lane, &line, now);
    }

    /// Takes the next message of a partition of which none is being handled. Returns whether there
    /// was one.
    pub(super) fn take_ordered(&mut self, now: Now) -> bool {
        let count = self.order.as_ref().map_or(0, |order| order.current.len());
        for offset in 0..count {
            let order = self.order.as_mut().expect("it is there");
            let partition = (order.turn + offset) % count;
            if order.current[partition].is_some() || self.is_deferred(partition) {
                continue;
            }
            let queue = queue_of(partition);
            // What leaves finishes the deliveries that it has begun.
            if !self.may_take_more() && !self.deliveries.is_in_the_middle(queue) {
                continue;
            }
            if self.consuming != Consuming::Yes {
                continue;
            }
            let Some((delivery, line)) = self.deliveries.next_line(queue) else {
                continue;
            };
            self.order.as_mut().expect("it is there").turn = partition + 1;
            self.deliveries.begin(delivery);
            self.counters.received += 1;
            match envelope::read(&line) {
                Ok(envelope) => self.admit_ordered(partition, delivery, line, envelope, now),
                Err(reason) => {
                    let number = self.records.insert_unreadable(line, delivery);
                    self.occupy(partition, number);
                    self.fail(number, Outcome::Undecodable, &reason, &[], now);
                }
            }
            return true;
        }
        false
    }

    fn may_take_more(&self) -> bool {
        self.consuming == Consuming::Yes && !self.is_paused && self.drain.is_none()
    }

    /// Whether the next message of a partition waits for another that is still here.
    fn is_deferred(&self, partition: usize) -> bool {
        let mut partitions = self.deferred.iter().map(|deferred| deferred.partition);
        partitions.any(|other| other.map(usize::from) == Some(partition))
    }

    fn occupy(&mut self, partition: usize, number: u32) {
        let order = self
            .order
            .as_mut()
            .expect("only a step with order has partitions");
        order.current[partition] = Some(number);
        let partition = u16::try_from(partition).expect("a step has few partitions");
        self.records.get(number).partition = Some(partition);
    }

    /// Lets the next message of a partition be taken, if this one was the last.
    pub(super) fn leave_partition(&mut self, number: u32, partition: Option<u16>) {
        if let (Some(order), Some(partition)) = (&mut self.order, partition)
            && let Some(current) = order.current.get_mut(usize::from(partition))
            && *current == Some(number)
        {
            *current = None;
        }
    }

    /// Decides about a line of a partition.
    pub(super) fn admit_ordered(
        &mut self,
        partition: usize,
        delivery: Sequence,
        line: Bytes,
        envelope: Envelope,
        now: Now,
    ) {
        if self.deliveries.was_settled(delivery, envelope.id) {
            let event = journal::Event::Repeated;
            self.journal.push(envelope.id, now.wall_ms, event);
            self.deliveries.settle_line(delivery, Some(envelope.id));
            return;
        }
        // It came by a connection that was lost, and comes again.
        if let Some(number) = self.records.find(envelope.id) {
            let record = self.records.get(number);
            if record.state != State::Abandoned && record.replays == envelope.replays {
                self.occupy(partition, number);
                self.attach(number, delivery, now);
                return;
            }
        }
        // Another of this partition did, and it does not come again: somebody else has settled it.
        let mut lost = Vec::new();
        let mut is_blocked = self.records.find(envelope.id).is_some();
        for (number, other) in self.records.iter() {
            if other.partition.map(usize::from) != Some(partition) {
                continue;
            }
            match other.state {
                State::Parked => lost.push(number),
                State::Bound if other.deliveries.is_empty() => lost.push(number),
                State::Abandoned | State::Sorting => {}
                _ => is_blocked = true,
            }
        }
        for number in lost {
            self.abandon(number, now);
        }
        if is_blocked {
            self.deferred.push(Deferred {
                delivery,
                line,
                envelope,
                partition: u16::try_from(partition).ok(),
            });
            return;
        }
        self.begin_ordered(partition, delivery, line, envelope, now);
    }

    fn begin_ordered(
        &mut self,
        partition: usize,
        delivery: Sequence,
        mut line: Bytes,
        mut envelope: Envelope,
        now: Now,
    ) {
        let order = self
            .order
            .as_mut()
            .expect("only a step with order has partitions");
        if let Some(tried) = order.tried.get(&envelope.id)
            && tried.before == handling(&envelope)
            && let Ok(known) = envelope::read(&tried.line)
        {
            line = tried.line.clone();
            envelope = known;
        }
        let origin = self.deliveries.origin(delivery);
        let number = self.records.insert(envelope, line, delivery);
        self.occupy(partition, number);
        let record = self.records.get(number);
        record.is_uncertain |= origin.is_redelivered || origin.returns > 0;
        record.is_suspect = origin.returns >= self.setup.limits.suspect_returns;
        self.line_up_ordered(number, now);
    }

    /// Has a message handed over as soon as may be.
    fn line_up_ordered(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        record.state = State::Ready;
        record.not_before = None;
        if record.is_suspect {
            self.suspects.push_back(number);
        } else if self.is_once() && !self.is_granted(number, now) {
            self.claim(number, now);
        } else {
            self.again.push_back(number);
        }
    }

    /// Keeps a message until it is tried again: its attempt ended with this line.
    pub(super) fn hold(&mut self, number: u32, line: Vec<u8>, wait: Duration, now: Now) {
        let record = self.records.get(number);
        let line = Bytes::from(line);
        let envelope = envelope::read(&line).expect("it was written by this agent");
        let id = envelope.id;
        let before = (id, record.attempt, record.rebounds, record.replays);
        record.lineage = envelope.lineage;
        record.attempt = envelope.attempt;
        record.rebounds = envelope.rebounds;
        record.says_uncertain = envelope.uncertain;
        record.is_uncertain = envelope.uncertain || envelope.attempt > 1 || record.replays > 0;
        record.line = line.clone();
        record.start_again();
        self.records.forget_log(number);
        if let Some(order) = &mut self.order {
            if order.tried.len() >= TRIED_MAX {
                order.tried.clear();
            }
            let new = Tried {
                before,
                line: line.clone(),
            };
            order.tried.entry(id).or_insert(new).line = line;
        }
        self.hold_as_it_is(number, wait, now);
    }

    /// Keeps a message that somebody else has until that is over.
    pub(super) fn hold_as_it_is(&mut self, number: u32, wait: Duration, now: Now) {
        let record = self.records.get(number);
        record.resolution = None;
        record.claim.since = None;
        record.state = State::Held;
        record.not_before = Some(now.instant + wait.min(self.setup.limits.held_longest));
    }

    /// Hands over again what was held long enough.
    pub(super) fn check_held(&mut self, now: Now) {
        for number in self.held() {
            let record = self.records.get(number);
            if record.not_before.is_none_or(|at| now.instant >= at) {
                self.line_up_ordered(number, now);
            }
        }
    }

    fn held(&self) -> Vec<u32> {
        let current = self.order.iter().flat_map(|order| &order.current);
        current
            .copied()
            .flatten()
            .filter(|number| {
                self.records
                    .peek(*number)
                    .is_some_and(|record| record.state == State::Held)
            })
            .collect()
    }

    /// How many messages are held until they are tried again, and until when the first is.
    pub(super) fn holds(&self) -> (usize, Option<Instant>) {
        let held = self.held();
        let due = held
            .iter()
            .filter_map(|number| self.records.peek(*number)?.not_before);
        (held.len(), due.min())
    }

    /// Notes that a message is in its partition, or settled.
    pub(super) fn settled_ordered(&mut self, record: &Record) {
        let (Some(order), Some(id)) = (&mut self.order, record.id) else {
            return;
        };
        match record.resolution {
            Some(Resolution::Sorted) => {
                order.under_way -= 1;
                self.counters.sorted += 1;
            }
            _ if record.partition.is_some() => drop(order.tried.remove(&id)),
            _ => {}
        }
    }

    /// The connection is lost, or left: nothing is being sorted, and no partition is this replica's.
    pub(super) fn forget_order(&mut self) {
        if let Some(order) = &mut self.order {
            order.sorting.clear();
            order.questions.clear();
            order.under_way = 0;
            order.current.fill(None);
        }
    }

    /// Leaves what this replica has, once nothing of it is being handled or under way.
    pub(super) fn leave_order(&mut self, now: Now) {
        // A partition that is full gets room only by whoever is not leaving.
        let is_stuck =
            self.lanes.is_refused() || self.order.as_ref().is_some_and(|order| order.has_trouble);
        let is_under_way = self.records.iter().any(|(_, record)| match record.state {
            _ if record.deliveries.is_empty() => false,
            State::InHand | State::Bound => true,
            State::Sorting => !is_stuck,
            State::Settling => !is_stuck || !matches!(record.resolution, Some(Resolution::Sorted)),
            // The step may come to it yet.
            State::Ready => self.step == Step::Ready,
            _ => false,
        });
        let is_begun = self.step == Step::Ready && self.has_begun_deliveries()
            || !is_stuck && self.deliveries.is_in_the_middle(INTAKE);
        if !is_under_way && !is_begun && !self.deliveries.has_acks() {
            self.consuming = Consuming::Stopping;
            self.void_sorting(now);
            self.tell(Command::Stop);
        }
    }

    /// Forgets what is on its way into partitions: whoever has the intake next takes it from there.
    fn void_sorting(&mut self, now: Now) {
        for member in self.lanes.void_partitions() {
            self.records.get(member.record).unconfirmed -= u64::from(member.count);
        }
        let is_sorted = |record: &Record| {
            record.state == State::Sorting || matches!(record.resolution, Some(Resolution::Sorted))
        };
        let sorted = self.records.iter().filter(|(_, record)| is_sorted(record));
        let sorted: Vec<u32> = sorted.map(|(number, _)| number).collect();
        for number in sorted {
            self.abandon(number, now);
        }
        if let Some(order) = &mut self.order {
            order.sorting.clear();
            order.questions.clear();
            order.under_way = 0;
        }
    }

    /// Whether a delivery was begun whose next line could be handed over.
    fn has_begun_deliveries(&mut self) -> bool {
        let count = self.order.as_ref().map_or(0, |order| order.current.len());
        (0..count).any(|partition| {
            let order = self.order.as_ref().expect("it is there");
            order.current[partition].is_none()
                && !self.is_deferred(partition)
                && self.deliveries.is_in_the_middle(queue_of(partition))
        })
    }

    /// What this replica had goes back to its queues.
    pub(super) fn has_left(&mut self, now: Now) {
        self.deliveries.forget();
        self.deferred.clear();
        self.again.clear();
        self.suspects.clear();
        self.claims.forget();
        let all: Vec<u32> = self.records.iter().map(|(number, _)| number).collect();
        for number in &all {
            self.records.get(*number).deliveries.clear();
        }
        for number in all {
            // Whoever shared an output with another one may have gone with it.
            let is_left = self.records.peek(number).is_some_and(|record| {
                !matches!(
                    record.state,
                    State::InHand | State::Settling | State::Abandoned
                )
            });
            if is_left {
                self.abandon(number, now);
            }
        }
        self.forget_order();
    }
}

fn handling(envelope: &Envelope) -> Handling {
    (
        envelope.id,
        envelope.attempt,
        envelope.rebounds,
        envelope.replays,
    )
}

/// Reads the key in what an expression gave: a text as it is, anything else as compact JSON. A key
/// must be there: messages without one would all be ordered among each other.
pub fn key_of(outputs: &[Box<RawValue>]) -> Result<String, String> {
    match outputs {
        [] => Err("the expression gives nothing".to_owned()),
        [one] => match one.get() {
            "null" => Err("the expression gives null".to_owned()),
            text if text.starts_with('"') => {
                serde_json::from_str(text).map_err(|error| error.to_string())
            }
            other => Ok(other.to_owned()),
        },
        several => Err(format!(
            "the expression gives {} values, and a key is one",
            several.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outputs: &[&str], expect: Result<&str, &str>) {
        let outputs: Vec<Box<RawValue>> = outputs
            .iter()
            .map(|output| RawValue::from_string((*output).to_owned()).unwrap())
            .collect();
        let key = key_of(&outputs);
        assert_eq!(key.as_deref().map_err(String::as_str), expect);
    }

    #[test]
    fn a_key_is_one_value_that_is_there() {
        check(&["\"a\\nb\""], Ok("a\nb"));
        check(&["4711"], Ok("4711"));
        check(&["[\"a\",1]"], Ok("[\"a\",1]"));
        check(&["false"], Ok("false"));
        check(&["null"], Err("the expression gives null"));
        check(&[], Err("the expression gives nothing"));
        check(
            &["1", "2"],
            Err("the expression gives 2 values, and a key is one"),
        );
    }
}

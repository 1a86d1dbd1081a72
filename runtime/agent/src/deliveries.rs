//! What was taken from the queue and is not yet acknowledged.
//!
//! # Invariants
//!
//! - `nothing_is_acknowledged_before_all_of_it_is_settled`.
//! - `only_what_was_not_begun_is_given_back`: what the step had in its hands is not handed to another.
//! - `several_are_acknowledged_at_once_only_up_to_the_first_gap`, and of several queues never: their
//!   deliveries come in another order than that of their tags.
//! - `what_was_settled_is_known_when_it_comes_back_and_nobody_else_had_it`: for a step that keeps an
//!   order it matters who else did. What another replica began and lost, it may have handled in part,
//!   and what came after that has to be handled again as well.

use std::collections::{BTreeMap, VecDeque};

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use towpath_protocol::MessageId;

use crate::broker::Origin;

/// The number of a delivery, counted by this agent over all connections.
pub type Sequence = u64;

/// The number of the queue that a delivery came from: [`INTAKE`], or one more than that of the
/// partition of a step that keeps an order.
pub type QueueNumber = u16;

/// The step's own queue.
pub const INTAKE: QueueNumber = 0;

struct Delivery {
    tag: u64,
    queue: QueueNumber,
    payload: Bytes,
    origin: Origin,
    cursor: usize,
    /// Something of it was handed to the step, or decided.
    is_begun: bool,
    /// Lines read and not settled.
    open: u32,
    /// Acknowledged, or given back.
    gone: bool,
    /// Its lines that are settled, where the past is kept.
    done: Vec<MessageId>,
    /// What was settled of it by this agent before it came back.
    before: Done,
}

/// What of a delivery was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Done {
    All,
    These(Vec<MessageId>),
}

/// A delivery as it was when the connection was lost.
struct Past {
    hash: u64,
    returns: u32,
    done: Done,
}

/// How many acknowledged deliveries of a queue are remembered: as many as may be on their way to the
/// broker, which delivers no more before they are there.
const PAST_MAX: usize = 16;

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

impl Delivery {
    fn settled(&self) -> bool {
        self.cursor == self.payload.len() && self.open == 0
    }
}

/// What is to be said to the broker about deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The delivery's tag.
    pub tag: u64,
    /// All up to it as well.
    pub multiple: bool,
}

/// The deliveries of the current connection.
#[derive(Default)]
pub struct Deliveries {
    held: VecDeque<Delivery>,
    /// The sequence of the first in `held`.
    first: Sequence,
    /// Those with lines that were not read, by queue; none of them is empty.
    waiting: BTreeMap<QueueNumber, VecDeque<Sequence>>,
    waiting_lines: u64,
    /// Those settled since the acknowledgements were asked for, somewhere in `held`.
    settled: Vec<Sequence>,
    /// Whether the past is kept.
    keeps_past: bool,
    /// Those that were acknowledged lately, by queue.
    past: BTreeMap<QueueNumber, VecDeque<Past>>,
    /// Those that may come back, by queue, in their order.
    expected: BTreeMap<QueueNumber, VecDeque<Past>>,
}

impl Deliveries {
    /// Keeps the past: of what comes back it is known then what was settled.
    pub fn keeping_past() -> Self {
        Self {
            keeps_past: true,
            ..Self::default()
        }
    }

    /// What was settled of a delivery by this agent, if nobody else had it since: it came back once.
    fn before(&mut self, queue: QueueNumber, payload: &[u8], returns: u32) -> Done {
        let none = Done::These(Vec::new());
        let Some(expected) = self.expected.get_mut(&queue) else {
            return none;
        };
        let hash = hash_of(payload);
        let is_it = |past: &Past| past.hash == hash && past.returns + 1 == returns;
        let Some(index) = expected.iter().position(is_it) else {
            // Something else came in between: what follows has to be handled again.
            self.expected.remove(&queue);
            return none;
        };
        expected
            .drain(..=index)
            .next_back()
            .map_or(none, |past| past.done)
    }

    /// Returns whether a line of a delivery was settled by this agent before it came back.
    pub fn was_settled(&mut self, sequence: Sequence, id: MessageId) -> bool {
        self.get(sequence)
            .is_some_and(|delivery| match &delivery.before {
                Done::All => true,
                Done::These(ids) => ids.contains(&id),
            })
    }

    /// Notes that a line was settled; see [`Self::settle`].
    pub fn settle_line(&mut self, sequence: Sequence, id: Option<MessageId>) {
        if self.keeps_past
            && let Some(delivery) = self.get(sequence)
        {
            delivery.done.extend(id);
        }
        self.settle(sequence);
    }

    fn remember(past: &mut BTreeMap<QueueNumber, VecDeque<Past>>, delivery: &Delivery) {
        let kept = past.entry(delivery.queue).or_default();
        if kept.len() == PAST_MAX {
            kept.pop_front();
        }
        kept.push_back(Past {
            hash: hash_of(&delivery.payload),
            returns: delivery.origin.returns,
            done: Done::All,
        });
    }

    /// Adds a delivery; returns the number of lines in it.
    pub fn add(&mut self, queue: QueueNumber, tag: u64, payload: Bytes, origin: Origin) -> u64 {
        let payload = match payload.last() {
            Some(b'\n') => payload.slice(..payload.len() - 1),
            _ => payload,
        };
        let sequence = self.first + self.held.len() as u64;
        let lines = count_lines(&payload);
        let empty = payload.is_empty();
        let before = self.before(queue, &payload, origin.returns);
        self.held.push_back(Delivery {
            tag,
            queue,
            payload,
            origin,
            cursor: 0,
            is_begun: false,
            open: 0,
            gone: false,
            done: Vec::new(),
            before,
        });
        if empty {
            self.settled.push(sequence);
            return 0;
        }
        self.waiting.entry(queue).or_default().push_back(sequence);
        self.waiting_lines += lines;
        lines
    }

    /// Adds a delivery that is no batch: it is one open line.
    pub fn add_whole(&mut self, tag: u64, payload: Bytes) -> Sequence {
        let sequence = self.first + self.held.len() as u64;
        let cursor = payload.len();
        self.held.push_back(Delivery {
            tag,
            queue: INTAKE,
            payload,
            origin: Origin::default(),
            cursor,
            is_begun: true,
            open: 1,
            gone: false,
            done: Vec::new(),
            before: Done::These(Vec::new()),
        });
        sequence
    }

    /// Takes the next line of a queue that was not read. It is open until [`Self::settle`] is called.
    pub fn next_line(&mut self, queue: QueueNumber) -> Option<(Sequence, Bytes)> {
        let sequence = *self.waiting.get(&queue)?.front()?;
        let delivery = self.get(sequence).expect("what waits is held");
        let rest = delivery.payload.slice(delivery.cursor..);
        let line = if let Some(end) = memchr::memchr(b'\n', &rest) {
            delivery.cursor += end + 1;
            rest.slice(..end)
        } else {
            delivery.cursor = delivery.payload.len();
            rest
        };
        delivery.open += 1;
        if delivery.cursor == delivery.payload.len() {
            self.read_to_end(queue, sequence);
        }
        self.waiting_lines = self.waiting_lines.saturating_sub(1);
        Some((sequence, line))
    }

    /// Forgets that a delivery has lines that were not read.
    fn read_to_end(&mut self, queue: QueueNumber, sequence: Sequence) {
        if let Some(waiting) = self.waiting.get_mut(&queue) {
            waiting.retain(|other| *other != sequence);
            if waiting.is_empty() {
                self.waiting.remove(&queue);
            }
        }
    }

    /// Returns whether the next line of a queue is of a delivery of which lines were read before.
    pub fn is_in_the_middle(&mut self, queue: QueueNumber) -> bool {
        let next = self.waiting.get(&queue).and_then(|it| it.front()).copied();
        next.and_then(|sequence| self.get(sequence))
            .is_some_and(|delivery| delivery.cursor > 0)
    }

    /// Returns the delivery that the next line is of, if it came back so often, none of its lines
    /// was read, and there are several.
    pub fn next_returned(&mut self, returns_min: u32) -> Option<(Sequence, u32, Bytes)> {
        let sequence = *self.waiting.get(&INTAKE)?.front()?;
        let delivery = self.get(sequence).expect("what waits is held");
        let returns = delivery.origin.returns;
        let is_whole =
            returns >= returns_min && delivery.cursor == 0 && delivery.payload.contains(&b'\n');
        is_whole.then(|| (sequence, returns, delivery.payload.clone()))
    }

    /// Returns how often the delivery that the next line is of came back.
    pub fn next_returns(&mut self) -> Option<u32> {
        let sequence = *self.waiting.get(&INTAKE)?.front()?;
        Some(self.origin(sequence).returns)
    }

    /// Takes all lines of the next delivery as one. It is open until [`Self::settle`] is called.
    pub fn take_whole(&mut self, sequence: Sequence) {
        self.begin(sequence);
        let delivery = self.get(sequence).expect("what waits is held");
        let lines = count_lines(&delivery.payload[delivery.cursor..]);
        delivery.cursor = delivery.payload.len();
        delivery.open = 1;
        let queue = delivery.queue;
        self.read_to_end(queue, sequence);
        self.waiting_lines = self.waiting_lines.saturating_sub(lines);
    }

    /// Forgets that a delivery came back: whoever had it lives.
    pub fn trust(&mut self, sequence: Sequence) {
        if let Some(delivery) = self.get(sequence) {
            delivery.origin.returns = 0;
        }
    }

    /// Returns what the broker knows of a delivery's past.
    pub fn origin(&mut self, sequence: Sequence) -> Origin {
        self.get(sequence)
            .map(|delivery| delivery.origin)
            .unwrap_or_default()
    }

    /// Notes that something of a delivery is handed to the step, or decided: it is not given back.
    pub fn begin(&mut self, sequence: Sequence) {
        if let Some(delivery) = self.get(sequence) {
            delivery.is_begun = true;
        }
    }

    /// Returns whether something is settled and its acknowledgement was not asked for.
    pub fn has_acks(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Returns whether there are lines that were not read.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notes that a line was settled. Deliveries of an earlier connection are not known any more.
    pub fn settle(&mut self, sequence: Sequence) {
        let Some(delivery) = self.get(sequence) else {
            return;
        };
        delivery.open = delivery.open.saturating_sub(1);
        if delivery.settled() {
            self.settled.push(sequence);
        }
    }

    /// Returns what may be acknowledged now.
    pub fn acks(&mut self, mut ack: impl FnMut(Ack)) {
        if self.settled.is_empty() {
            return;
        }
        let mut last = None;
        let mut count = 0;
        while let Some(front) = self
            .held
            .front()
            .filter(|front| front.gone || front.settled())
        {
            if !front.gone && self.keeps_past {
                // What comes from several queues does not come in the order of the tags.
                ack(Ack {
                    tag: front.tag,
                    multiple: false,
                });
                Self::remember(&mut self.past, front);
            } else if !front.gone {
                last = Some(front.tag);
                count += 1;
            }
            self.held.pop_front();
            self.first += 1;
        }
        if let Some(tag) = last {
            ack(Ack {
                tag,
                multiple: count > 1,
            });
        }
        let mut settled = std::mem::take(&mut self.settled);
        if self.keeps_past {
            settled = self.in_order(settled);
        }
        for sequence in settled {
            let Some(index) = self.index(sequence) else {
                continue;
            };
            if let Some(delivery) = self.held.get_mut(index).filter(|delivery| !delivery.gone) {
                delivery.gone = true;
                ack(Ack {
                    tag: delivery.tag,
                    multiple: false,
                });
                if self.keeps_past {
                    Self::remember(&mut self.past, delivery);
                }
            }
        }
    }

    /// Of what is settled, what may be acknowledged: of the intake nothing before what came before it.
    /// Whoever sorts next begins with what was not acknowledged, and all that came after it must come
    /// again as well.
    fn in_order(&self, settled: Vec<Sequence>) -> Vec<Sequence> {
        let of_intake = |sequence: &Sequence| {
            let delivery = self.index(*sequence).and_then(|index| self.held.get(index));
            delivery.is_some_and(|delivery| delivery.queue == INTAKE)
        };
        let mut may: Vec<Sequence> = settled.into_iter().filter(|it| !of_intake(it)).collect();
        let intake = (self.first..).zip(&self.held);
        let intake = intake.filter(|(_, delivery)| delivery.queue == INTAKE && !delivery.gone);
        let oldest = intake.take_while(|(_, delivery)| delivery.settled());
        may.extend(oldest.map(|(sequence, _)| sequence));
        may
    }

    /// Gives back the deliveries nothing of which was begun: calls with each and its tag.
    pub fn give_back_unbegun(&mut self, mut requeue: impl FnMut(Sequence, u64)) {
        let mut lines = 0;
        let mut back = Vec::new();
        for (index, delivery) in self.held.iter_mut().enumerate() {
            if delivery.is_begun || delivery.gone || delivery.settled() {
                continue;
            }
            if delivery.cursor < delivery.payload.len() {
                lines += count_lines(&delivery.payload[delivery.cursor..]);
            }
            delivery.gone = true;
            delivery.cursor = delivery.payload.len();
            let sequence = self.first + index as u64;
            back.push(sequence);
            requeue(sequence, delivery.tag);
        }
        self.waiting_lines = self.waiting_lines.saturating_sub(lines);
        for waiting in self.waiting.values_mut() {
            waiting.retain(|sequence| back.binary_search(sequence).is_err());
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
    }

    /// Forgets all: the connection they came by is gone, and the broker delivers them again.
    pub fn forget(&mut self) {
        if self.keeps_past {
            self.expect_back();
        }
        self.first += self.held.len() as u64;
        self.held.clear();
        self.waiting.clear();
        self.settled.clear();
        self.waiting_lines = 0;
    }

    /// Remembers what may come back, and what of it is settled. What was expected of a queue of which
    /// nothing came may still come.
    fn expect_back(&mut self) {
        let mut back = std::mem::take(&mut self.past);
        for delivery in self.held.iter_mut().filter(|delivery| !delivery.gone) {
            let mut done = std::mem::take(&mut delivery.done);
            if let Done::These(before) = &delivery.before {
                done.extend(before);
            }
            let done = match delivery.before {
                Done::All => Done::All,
                Done::These(_) => Done::These(done),
            };
            back.entry(delivery.queue).or_default().push_back(Past {
                hash: hash_of(&delivery.payload),
                returns: delivery.origin.returns,
                done,
            });
        }
        self.expected.extend(back);
    }

    /// Goes through what was not read: the rest of each delivery.
    pub fn unread(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.first;
        self.waiting.values().flatten().filter_map(move |sequence| {
            let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
            let delivery = self.held.get(index)?;
            Some(&delivery.payload[delivery.cursor..])
        })
    }

    /// Returns the number of lines that were not read.
    pub fn waiting_lines(&self) -> u64 {
        self.waiting_lines
    }

    /// Returns the number of deliveries that are not acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        self.held.iter().filter(|delivery| !delivery.gone).count() as u64
    }

    fn get(&mut self, sequence: Sequence) -> Option<&mut Delivery> {
        let index = self.index(sequence)?;
        self.held.get_mut(index)
    }

    fn index(&self, sequence: Sequence) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.first)?).ok()
    }
}

fn count_lines(payload: &[u8]) -> u64 {
    if payload.is_empty() {
        return 0;
    }
    payload
        .iter()
        .map(|byte| u64::from(*byte == b'\n'))
        .sum::<u64>()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(deliveries: &mut Deliveries) -> Vec<(u64, bool)> {
        let mut all = Vec::new();
        deliveries.acks(|ack| all.push((ack.tag, ack.multiple)));
        all
    }

    fn three() -> Deliveries {
        let mut deliveries = Deliveries::default();
        assert_eq!(
            deliveries.add(INTAKE, 11, Bytes::from_static(b"a\nb\n"), Origin::default()),
            2
        );
        assert_eq!(
            deliveries.add(INTAKE, 12, Bytes::from_static(b"c"), Origin::default()),
            1
        );
        assert_eq!(
            deliveries.add(INTAKE, 13, Bytes::from_static(b"d\n"), Origin::default()),
            1
        );
        deliveries
    }

    #[test]
    fn nothing_is_acknowledged_before_all_of_it_is_settled() {
        let mut deliveries = three();
        let (first, line) = deliveries.next_line(INTAKE).unwrap();
        assert_eq!(&line[..], b"a");
        deliveries.settle(first);
        assert_eq!(acks(&mut deliveries), []);
        let (second, line) = deliveries.next_line(INTAKE).unwrap();
        assert_eq!((first, &line[..]), (second, &b"b"[..]));
        assert_eq!(acks(&mut deliveries), []);
        deliveries.settle(second);
        assert_eq!(acks(&mut deliveries), [(11, false)]);
    }

    #[test]
    fn several_are_acknowledged_at_once_only_up_to_the_first_gap() {
        let mut deliveries = three();
        let lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line(INTAKE))
            .map(|(sequence, _)| sequence)
            .collect();
        deliveries.settle(lines[3]);
        assert_eq!(
            acks(&mut deliveries),
            [(13, false)],
            "13 alone: 11 and 12 are open"
        );
        deliveries.settle(lines[2]);
        assert_eq!(acks(&mut deliveries), [(12, false)]);
        deliveries.settle(lines[0]);
        deliveries.settle(lines[1]);
        assert_eq!(
            acks(&mut deliveries),
            [(11, false)],
            "the others are gone already"
        );
        let mut deliveries = three();
        let lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line(INTAKE))
            .map(|(sequence, _)| sequence)
            .collect();
        for sequence in lines {
            deliveries.settle(sequence);
        }
        assert_eq!(acks(&mut deliveries), [(13, true)]);
        assert_eq!(deliveries.unacknowledged(), 0);
    }

    #[test]
    fn only_what_was_not_begun_is_given_back() {
        let mut deliveries = three();
        let (first, _) = deliveries.next_line(INTAKE).unwrap();
        deliveries.begin(first);
        let mut back = Vec::new();
        deliveries.give_back_unbegun(|_, tag| back.push(tag));
        assert_eq!(back, [12, 13]);
        assert_eq!(deliveries.waiting_lines(), 1);
        let (second, _) = deliveries.next_line(INTAKE).unwrap();
        assert!(deliveries.next_line(INTAKE).is_none());
        deliveries.settle(first);
        deliveries.settle(second);
        assert_eq!(acks(&mut deliveries), [(11, false)]);
    }

    #[test]
    fn what_was_read_and_not_begun_is_given_back_as_well() {
        let mut deliveries = three();
        let lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line(INTAKE))
            .map(|(sequence, _)| sequence)
            .collect();
        deliveries.begin(lines[2]);
        let mut back = Vec::new();
        deliveries.give_back_unbegun(|sequence, tag| back.push((sequence, tag)));
        assert_eq!(back, [(lines[0], 11), (lines[3], 13)]);
        for line in lines {
            deliveries.settle(line);
        }
        assert_eq!(acks(&mut deliveries), [(12, false)]);
        assert_eq!(
            (deliveries.unacknowledged(), deliveries.waiting_lines()),
            (0, 0)
        );
    }

    #[test]
    fn all_lines_of_a_delivery_can_be_taken_as_one() {
        let mut deliveries = three();
        assert!(deliveries.next_returned(1).is_none());
        let (first, _, payload) = deliveries.next_returned(0).unwrap();
        assert_eq!(&payload[..], b"a\nb");
        deliveries.take_whole(first);
        assert_eq!(deliveries.waiting_lines(), 2);
        assert!(deliveries.next_returned(0).is_none(), "12 is one line");
        assert_eq!(acks(&mut deliveries), []);
        deliveries.settle(first);
        assert_eq!(acks(&mut deliveries), [(11, false)]);
    }

    #[test]
    fn what_was_settled_is_known_when_it_comes_back_and_nobody_else_had_it() {
        let id = |number: u8| MessageId::from_bytes([number; 16]);
        let returned = |returns| Origin {
            is_redelivered: returns > 0,
            returns,
        };
        let settled = |deliveries: &mut Deliveries, sequence| {
            [1, 2, 3].map(|number| deliveries.was_settled(sequence, id(number)))
        };
        let (first, second) = (Bytes::from_static(b"1\n2"), Bytes::from_static(b"3"));
        let mut deliveries = Deliveries::keeping_past();
        deliveries.add(4, 1, first.clone(), returned(0));
        deliveries.add(4, 2, second.clone(), returned(0));
        let (sequence, _) = deliveries.next_line(4).unwrap();
        assert_eq!(settled(&mut deliveries, sequence), [false; 3]);
        deliveries.settle_line(sequence, Some(id(1)));
        deliveries.forget();
        deliveries.forget();
        deliveries.add(4, 1, first.clone(), returned(1));
        let (sequence, _) = deliveries.next_line(4).unwrap();
        assert_eq!(settled(&mut deliveries, sequence), [true, false, false]);
        deliveries.settle_line(sequence, Some(id(1)));
        let (sequence, _) = deliveries.next_line(4).unwrap();
        deliveries.settle_line(sequence, Some(id(2)));
        // The acknowledgement is lost.
        assert_eq!(acks(&mut deliveries), [(1, false)]);
        deliveries.forget();
        deliveries.add(4, 1, first.clone(), returned(2));
        deliveries.add(4, 2, second.clone(), returned(1));
        let (sequence, _) = deliveries.next_line(4).unwrap();
        assert_eq!(settled(&mut deliveries, sequence), [true; 3], "all of it");
        deliveries.forget();
        // Somebody else had it, and may have handled a part of it.
        deliveries.add(4, 1, first, returned(4));
        deliveries.add(4, 2, second, returned(2));
        for _ in 0..3 {
            let (sequence, _) = deliveries.next_line(4).unwrap();
            assert_eq!(settled(&mut deliveries, sequence), [false; 3]);
        }
    }

    #[test]
    fn of_an_intake_nothing_is_acknowledged_before_what_came_before_it() {
        let mut deliveries = Deliveries::keeping_past();
        deliveries.add(3, 1, Bytes::from_static(b"p"), Origin::default());
        for (tag, payload) in [(2, "a"), (3, "b"), (4, "c")] {
            deliveries.add(INTAKE, tag, payload.into(), Origin::default());
        }
        let mut lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line(INTAKE)).collect();
        deliveries.settle(lines.remove(1).0);
        assert_eq!(acks(&mut deliveries), []);
        deliveries.settle(lines.remove(0).0);
        assert_eq!(acks(&mut deliveries), [(2, false), (3, false)]);
        deliveries.settle(lines.remove(0).0);
        assert_eq!(acks(&mut deliveries), [(4, false)]);
    }

    #[test]
    fn an_empty_delivery_is_acknowledged() {
        let mut deliveries = Deliveries::default();
        assert_eq!(
            deliveries.add(INTAKE, 5, Bytes::new(), Origin::default()),
            0
        );
        assert_eq!(acks(&mut deliveries), [(5, false)]);
    }

    #[test]
    fn a_lost_connection_forgets_all() {
        let mut deliveries = three();
        let (old, _) = deliveries.next_line(INTAKE).unwrap();
        deliveries.forget();
        deliveries.add(INTAKE, 1, Bytes::from_static(b"x"), Origin::default());
        deliveries.settle(old);
        assert_eq!(acks(&mut deliveries), []);
        let (new, _) = deliveries.next_line(INTAKE).unwrap();
        deliveries.settle(new);
        assert_eq!(acks(&mut deliveries), [(1, false)]);
    }
}

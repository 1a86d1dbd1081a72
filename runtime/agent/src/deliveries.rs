//! What was taken from the queue and is not yet acknowledged.
//!
//! # Invariants
//!
//! - `nothing_is_acknowledged_before_all_of_it_is_settled`.
//! - `only_what_was_not_begun_is_given_back`: what the step had in its hands is not handed to another.
//! - `several_are_acknowledged_at_once_only_up_to_the_first_gap`.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::broker::Origin;

/// The number of a delivery, counted by this agent over all connections.
pub type Sequence = u64;

struct Delivery {
    tag: u64,
    payload: Bytes,
    origin: Origin,
    cursor: usize,
    /// Something of it was handed to the step, or decided.
    is_begun: bool,
    /// Lines read and not settled.
    open: u32,
    /// Acknowledged, or given back.
    gone: bool,
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
    /// Those with lines that were not read.
    waiting: VecDeque<Sequence>,
    waiting_lines: u64,
    /// Those settled since the acknowledgements were asked for, somewhere in `held`.
    settled: Vec<Sequence>,
}

impl Deliveries {
    /// Adds a delivery; returns the number of lines in it.
    pub fn add(&mut self, tag: u64, payload: Bytes, origin: Origin) -> u64 {
        let payload = match payload.last() {
            Some(b'\n') => payload.slice(..payload.len() - 1),
            _ => payload,
        };
        let sequence = self.first + self.held.len() as u64;
        let lines = count_lines(&payload);
        let empty = payload.is_empty();
        self.held.push_back(Delivery {
            tag,
            payload,
            origin,
            cursor: 0,
            is_begun: false,
            open: 0,
            gone: false,
        });
        if empty {
            self.settled.push(sequence);
            return 0;
        }
        self.waiting.push_back(sequence);
        self.waiting_lines += lines;
        lines
    }

    /// Adds a delivery that is no batch: it is one open line.
    pub fn add_whole(&mut self, tag: u64, payload: Bytes) -> Sequence {
        let sequence = self.first + self.held.len() as u64;
        let cursor = payload.len();
        self.held.push_back(Delivery {
            tag,
            payload,
            origin: Origin::default(),
            cursor,
            is_begun: true,
            open: 1,
            gone: false,
        });
        sequence
    }

    /// Takes the next line that was not read. It is open until [`Self::settle`] is called.
    pub fn next_line(&mut self) -> Option<(Sequence, Bytes)> {
        let sequence = *self.waiting.front()?;
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
            self.waiting.pop_front();
        }
        self.waiting_lines = self.waiting_lines.saturating_sub(1);
        Some((sequence, line))
    }

    /// Returns the delivery that the next line is of, if it came back so often, none of its lines
    /// was read, and there are several.
    pub fn next_returned(&mut self, returns_min: u32) -> Option<(Sequence, u32, Bytes)> {
        let sequence = *self.waiting.front()?;
        let delivery = self.get(sequence).expect("what waits is held");
        let returns = delivery.origin.returns;
        let is_whole =
            returns >= returns_min && delivery.cursor == 0 && delivery.payload.contains(&b'\n');
        is_whole.then(|| (sequence, returns, delivery.payload.clone()))
    }

    /// Returns how often the delivery that the next line is of came back.
    pub fn next_returns(&mut self) -> Option<u32> {
        let sequence = *self.waiting.front()?;
        Some(self.origin(sequence).returns)
    }

    /// Takes all lines of the next delivery as one. It is open until [`Self::settle`] is called.
    pub fn take_whole(&mut self, sequence: Sequence) {
        self.begin(sequence);
        let delivery = self.get(sequence).expect("what waits is held");
        let lines = count_lines(&delivery.payload[delivery.cursor..]);
        delivery.cursor = delivery.payload.len();
        delivery.open = 1;
        self.waiting.retain(|other| *other != sequence);
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
            if !front.gone {
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
        for sequence in std::mem::take(&mut self.settled) {
            if let Some(delivery) = self.get(sequence).filter(|delivery| !delivery.gone) {
                delivery.gone = true;
                ack(Ack {
                    tag: delivery.tag,
                    multiple: false,
                });
            }
        }
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
        self.waiting
            .retain(|sequence| back.binary_search(sequence).is_err());
    }

    /// Forgets all: the connection they came by is gone, and the broker delivers them again.
    pub fn forget(&mut self) {
        self.first += self.held.len() as u64;
        self.held.clear();
        self.waiting.clear();
        self.settled.clear();
        self.waiting_lines = 0;
    }

    /// Goes through what was not read: the rest of each delivery.
    pub fn unread(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.first;
        self.waiting.iter().filter_map(move |sequence| {
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
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.held.get_mut(index)
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
            deliveries.add(11, Bytes::from_static(b"a\nb\n"), Origin::default()),
            2
        );
        assert_eq!(
            deliveries.add(12, Bytes::from_static(b"c"), Origin::default()),
            1
        );
        assert_eq!(
            deliveries.add(13, Bytes::from_static(b"d\n"), Origin::default()),
            1
        );
        deliveries
    }

    #[test]
    fn nothing_is_acknowledged_before_all_of_it_is_settled() {
        let mut deliveries = three();
        let (first, line) = deliveries.next_line().unwrap();
        assert_eq!(&line[..], b"a");
        deliveries.settle(first);
        assert_eq!(acks(&mut deliveries), []);
        let (second, line) = deliveries.next_line().unwrap();
        assert_eq!((first, &line[..]), (second, &b"b"[..]));
        assert_eq!(acks(&mut deliveries), []);
        deliveries.settle(second);
        assert_eq!(acks(&mut deliveries), [(11, false)]);
    }

    #[test]
    fn several_are_acknowledged_at_once_only_up_to_the_first_gap() {
        let mut deliveries = three();
        let lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line())
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
        let lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line())
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
        let (first, _) = deliveries.next_line().unwrap();
        deliveries.begin(first);
        let mut back = Vec::new();
        deliveries.give_back_unbegun(|_, tag| back.push(tag));
        assert_eq!(back, [12, 13]);
        assert_eq!(deliveries.waiting_lines(), 1);
        let (second, _) = deliveries.next_line().unwrap();
        assert!(deliveries.next_line().is_none());
        deliveries.settle(first);
        deliveries.settle(second);
        assert_eq!(acks(&mut deliveries), [(11, false)]);
    }

    #[test]
    fn what_was_read_and_not_begun_is_given_back_as_well() {
        let mut deliveries = three();
        let lines: Vec<_> = std::iter::from_fn(|| deliveries.next_line())
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
    fn an_empty_delivery_is_acknowledged() {
        let mut deliveries = Deliveries::default();
        assert_eq!(deliveries.add(5, Bytes::new(), Origin::default()), 0);
        assert_eq!(acks(&mut deliveries), [(5, false)]);
    }

    #[test]
    fn a_lost_connection_forgets_all() {
        let mut deliveries = three();
        let (old, _) = deliveries.next_line().unwrap();
        deliveries.forget();
        deliveries.add(1, Bytes::from_static(b"x"), Origin::default());
        deliveries.settle(old);
        assert_eq!(acks(&mut deliveries), []);
        let (new, _) = deliveries.next_line().unwrap();
        deliveries.settle(new);
        assert_eq!(acks(&mut deliveries), [(1, false)]);
    }
}

//! The messages that the agent is responsible for: handed to the step, or being settled.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use towpath_protocol::MessageId;
use towpath_protocol::office::DeadCause;

use crate::attempt_log::AttemptLog;
use crate::deliveries::Sequence;

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A tick: asks for its checkpoint.
    Asking,
    /// Waits for its key to be computed, to be put into the partition of it.
    Sorting,
    /// Waits for the ledger to say whether it may be handled.
    Claiming,
    /// Kept until it is tried again, and its partition with it.
    Held,
    /// To be handed to the step (again).
    Ready,
    /// In the step's hands.
    InHand,
    /// The step is done with it, and it waits for those that it shares an output with.
    Bound,
    /// Its fate is decided; waits for confirms.
    Settling,
    /// Its fate is decided, but the delivery it came by was lost: waits for the next.
    Parked,
    /// Left to whoever gets it next; only its outputs on their way are still counted, and the word
    /// to the ledger that it is left.
    Abandoned,
}

/// What was decided.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// Done.
    Done,
    /// Tried or seen again.
    Again {
        /// The delay in ladder units.
        units: u32,
        /// Not counted as a failure.
        is_rebound: bool,
        /// When it failed, in milliseconds since 1970.
        at: u64,
        /// When it comes back, in milliseconds since 1970; known when it is issued.
        due: u64,
        /// Why.
        reason: String,
    },
    /// Given up.
    Dead {
        /// What kind of end it was.
        cause: DeadCause,
        /// When, in milliseconds since 1970.
        at: u64,
        /// Why.
        reason: String,
        /// The causes.
        chain: Vec<String>,
    },
    /// Not handled: it was settled before.
    Repeated,
    /// A tick whose run an operator cancelled.
    Cancelled,
    /// Not handled: somebody else has it. It comes back as it is, and nothing is counted.
    Busy {
        /// The delay in ladder units.
        units: u32,
    },
    /// Not handled, but put into the partition of its key.
    Sorted,
    /// Not one message but a delivery that came back again and again: its messages were sent on one
    /// by one.
    Split,
}

/// What the ledger knows of a message, as far as this agent knows.
#[derive(Debug, Default)]
pub struct Claim {
    /// It was asked whether the message may be handled, so it may have noted that this agent has it.
    pub is_asked: bool,
    /// Since when it is asked.
    pub since: Option<Instant>,
    /// When the question was asked that it said yes to, last.
    pub granted_at: Option<Instant>,
    /// The claim is for the message alone in the step's hands.
    pub is_alone: bool,
    /// It was told that the message is settled or left, or is being told.
    pub is_told: bool,
    /// It does not answer: the message is handed over all the same.
    pub is_waived: bool,
    /// It ran out while the delivery was lost: somebody else may have the message.
    pub is_lost: bool,
    /// How many containers died with the message alone in hand.
    pub deaths: u32,
    /// How the last of them died.
    pub death: Option<Box<str>>,
}

/// A trigger's outputs between two checkpoints.
#[derive(Debug, Default)]
pub struct Epoch {
    /// Not confirmed.
    pub unconfirmed: u64,
    /// The checkpoint that ends it.
    pub checkpoint: Option<(u64, Box<str>)>,
}

/// What a tick has beside a message.
#[derive(Debug, Default)]
pub struct TickState {
    /// The external account.
    pub connection: String,
    /// The answer to the question for the checkpoint.
    pub checkpoint: Option<Box<str>>,
    /// The version of the checkpoint that the next one replaces.
    pub version: u64,
    /// When the question is asked again.
    pub ask_at: Option<Instant>,
    /// The number of the first of `epochs`.
    pub first_epoch: u32,
    /// Not saved; the last one is open.
    pub epochs: VecDeque<Epoch>,
    /// The checkpoints whose saving awaits its confirm.
    pub saving: Vec<u64>,
    /// How many messages it emitted in this attempt.
    pub emitted: u64,
    /// The end of the run is said.
    pub ended: bool,
    /// An operator cancelled the run.
    pub cancelled: bool,
}

/// An output that is held.
#[derive(Debug, Clone, Copy)]
pub struct HeldLine {
    /// The number of its port.
    pub port: u16,
    /// The length of its line.
    pub len: u32,
    /// Its id.
    pub id: MessageId,
}

/// One message.
#[derive(Debug)]
pub struct Record {
    /// Its id; none if it cannot be read.
    pub id: Option<MessageId>,
    /// Its line.
    pub line: Bytes,
    /// Where its lineage is in the line.
    pub lineage: Range<usize>,
    /// Its ordering key.
    pub key: Option<Box<str>>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How often it was rebounded.
    pub rebounds: u32,
    /// How often it was replayed.
    pub replays: u32,
    /// It may have been handled before, in part or in whole.
    pub is_uncertain: bool,
    /// Its line says so already.
    pub says_uncertain: bool,
    /// It came back again and again: whoever had it may have died of it. It is handed over alone.
    pub is_suspect: bool,
    /// It was handed over together with others.
    pub is_in_company: bool,
    /// What the ledger knows of it.
    pub claim: Claim,
    /// The deliveries it came by: more than one if it was published more than once.
    pub deliveries: Vec<Sequence>,
    /// The number of the partition it came by, of a step that keeps an order.
    pub partition: Option<u16>,
    /// Not to be tried before.
    pub not_before: Option<Instant>,
    /// Where it is.
    pub state: State,
    /// Since when it waits to be handed over together with others.
    pub lined_up_at: Option<Instant>,
    /// When it was handed over.
    pub handed_at: Option<Instant>,
    /// When it has taken too long, on the clock that stands still.
    pub deadline: Option<Duration>,
    /// Its encoded outputs, one line after the other.
    pub held: Vec<u8>,
    /// What each of them is.
    pub held_lines: Vec<HeldLine>,
    /// The number of outputs so far, by port.
    pub outputs: Vec<(u16, u64)>,
    /// Outputs are published as they come.
    pub is_streaming: bool,
    /// The number of what binds it to those that it shares an output with.
    pub bond: Option<u32>,
    /// It was settled with those. Delivered again, because its neighbours in the delivery were not
    /// settled, it would be in another output.
    pub is_joined: bool,
    /// Outputs, settlements and news that await their confirm.
    pub unconfirmed: u64,
    /// Why its outputs cannot be sent on.
    pub bad_output: Option<String>,
    /// It is reported that it is done.
    pub is_reported: bool,
    /// What was decided.
    pub resolution: Option<Resolution>,
    /// If it is a tick.
    pub tick: Option<Box<TickState>>,
    /// What was logged during this attempt; written by [`Records::log`].
    log: AttemptLog,
}

impl Record {
    /// Returns which attempt this is when the deaths of containers count, from 1.
    pub fn tries(&self) -> u32 {
        self.attempt.saturating_add(self.claim.deaths)
    }

    /// Returns the number of the next output by a port.
    pub fn next_index(&mut self, port: u16) -> u64 {
        if let Some((_, count)) = self.outputs.iter_mut().find(|(other, _)| *other == port) {
            *count += 1;
            return *count - 1;
        }
        self.outputs.push((port, 1));
        0
    }

    /// Returns the newest lines that were logged during this attempt.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Forgets what the step emitted, as it will emit it again.
    pub fn start_again(&mut self) {
        self.held.clear();
        self.held_lines.clear();
        self.outputs.clear();
        self.is_streaming = false;
        self.bad_output = None;
        self.handed_at = None;
        self.deadline = None;
    }
}

/// Ids are hashes or hold random bits at their end: those are the hash.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*last);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

/// A map from ids.
pub type IdMap<V> = HashMap<MessageId, V, BuildHasherDefault<IdHasher>>;

/// Emptied buffers of a record that is gone, for the next.
#[derive(Default)]
struct Buffers {
    held: Vec<u8>,
    held_lines: Vec<HeldLine>,
    outputs: Vec<(u16, u64)>,
    deliveries: Vec<Sequence>,
}

/// All of them.
#[derive(Default)]
pub struct Records {
    slots: Vec<Option<Record>>,
    free: Vec<u32>,
    by_id: IdMap<u32>,
    count: usize,
    spare: Vec<Buffers>,
    /// The bytes of all attempts' lines.
    log_bytes: usize,
}

/// How many emptied buffers are kept for the next messages.
const SPARE_MAX: usize = 1024;

/// The largest buffer that is kept.
const SPARE_BYTES_MAX: usize = 16 << 10;

impl Records {
    /// Adds a message.
    pub fn insert(
        &mut self,
        envelope: crate::envelope::Envelope,
        line: Bytes,
        delivery: Sequence,
    ) -> u32 {
        let number = self.put(None, line, delivery);
        let record = self.get(number);
        record.id = Some(envelope.id);
        record.lineage = envelope.lineage;
        record.key = envelope.key;
        record.attempt = envelope.attempt;
        record.rebounds = envelope.rebounds;
        record.replays = envelope.replays;
        record.says_uncertain = envelope.uncertain;
        record.is_uncertain = envelope.uncertain || envelope.attempt > 1 || envelope.replays > 0;
        self.by_id.insert(envelope.id, number);
        number
    }

    /// Adds a message that is not to be handled here: its id is not found.
    pub fn insert_apart(
        &mut self,
        envelope: crate::envelope::Envelope,
        line: Bytes,
        delivery: Sequence,
    ) -> u32 {
        let number = self.put(Some(envelope.id), line, delivery);
        let record = self.get(number);
        record.lineage = envelope.lineage;
        record.attempt = envelope.attempt;
        record.rebounds = envelope.rebounds;
        record.replays = envelope.replays;
        record.state = State::Sorting;
        number
    }

    /// Adds a line that cannot be read.
    pub fn insert_unreadable(&mut self, line: Bytes, delivery: Sequence) -> u32 {
        self.put(None, line, delivery)
    }

    fn put(&mut self, id: Option<MessageId>, line: Bytes, delivery: Sequence) -> u32 {
        let Buffers {
            held,
            held_lines,
            outputs,
            mut deliveries,
        } = self.spare.pop().unwrap_or_default();
        deliveries.push(delivery);
        let record = Record {
            id,
            line,
            lineage: 0..0,
            key: None,
            attempt: 1,
            rebounds: 0,
            replays: 0,
            is_uncertain: false,
            says_uncertain: false,
            is_suspect: false,
            is_in_company: false,
            claim: Claim::default(),
            deliveries,
            partition: None,
            not_before: None,
            state: State::Ready,
            lined_up_at: None,
            handed_at: None,
            deadline: None,
            held,
            held_lines,
            outputs,
            is_streaming: false,
            bond: None,
            is_joined: false,
            unconfirmed: 0,
            bad_output: None,
            is_reported: false,
            resolution: None,
            tick: None,
            log: AttemptLog::default(),
        };
        self.count += 1;
        if let Some(number) = self.free.pop() {
            self.slots[number as usize] = Some(record);
            return number;
        }
        self.slots.push(Some(record));
        u32::try_from(self.slots.len() - 1)
            .expect("the broker's prefetch bounds the number of messages")
    }

    /// Returns a message that is known to be there.
    pub fn get(&mut self, number: u32) -> &mut Record {
        self.slots[number as usize]
            .as_mut()
            .expect("a record stays while something refers to it")
    }

    /// Looks at a message, if it is there.
    pub fn peek(&self, number: u32) -> Option<&Record> {
        self.slots.get(number as usize)?.as_ref()
    }

    /// Returns a message if it is there.
    pub fn find(&self, id: MessageId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Returns whether a number is in use.
    pub fn exists(&self, number: u32) -> bool {
        self.slots.get(number as usize).is_some_and(Option::is_some)
    }

    /// Adds a line to what was logged during the attempt at a message. All messages together keep at
    /// most so many bytes: beyond, a message's oldest lines are forgotten for its newest.
    pub fn log(&mut self, number: u32, line: &str, bytes_max: usize) {
        self.change_log(number, bytes_max, |log| log.push(line));
    }

    /// Adds lines that were written before those that are there.
    pub fn log_before<'a>(
        &mut self,
        number: u32,
        lines: impl DoubleEndedIterator<Item = &'a String>,
        bytes_max: usize,
    ) {
        self.change_log(number, bytes_max, |log| log.precede(lines));
    }

    /// Forgets what was logged: the attempt does not count.
    pub fn forget_log(&mut self, number: u32) {
        self.change_log(number, 0, |log| *log = AttemptLog::default());
    }

    fn change_log(&mut self, number: u32, bytes_max: usize, change: impl FnOnce(&mut AttemptLog)) {
        let mut log = std::mem::take(&mut self.get(number).log);
        self.log_bytes -= log.bytes();
        change(&mut log);
        log.shrink_to(bytes_max.saturating_sub(self.log_bytes));
        self.log_bytes += log.bytes();
        self.get(number).log = log;
    }

    /// Removes a message.
    pub fn remove(&mut self, number: u32) -> Record {
        self.forget_id(number);
        let mut record = self.slots[number as usize]
            .take()
            .expect("a record stays while something refers to it");
        self.free.push(number);
        self.count -= 1;
        self.log_bytes -= record.log.bytes();
        if self.spare.len() < SPARE_MAX && record.held.capacity() <= SPARE_BYTES_MAX {
            let mut buffers = Buffers {
                held: std::mem::take(&mut record.held),
                held_lines: std::mem::take(&mut record.held_lines),
                outputs: std::mem::take(&mut record.outputs),
                deliveries: Vec::new(),
            };
            buffers.held.clear();
            buffers.held_lines.clear();
            buffers.outputs.clear();
            self.spare.push(buffers);
        }
        record
    }

    /// Lets go of a message's id, so that it may come again.
    pub fn forget_id(&mut self, number: u32) {
        if let Some(id) = self.get(number).id
            && self.by_id.get(&id) == Some(&number)
        {
            self.by_id.remove(&id);
        }
    }

    /// Returns the numbers of all messages in a state.
    pub fn in_state(&self, state: State) -> Vec<u32> {
        self.iter()
            .filter(|(_, record)| record.state == state)
            .map(|(number, _)| number)
            .collect()
    }

    /// Goes through all messages.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Record)> {
        let number = |index| u32::try_from(index).expect("numbers are 32 bits");
        self.slots
            .iter()
            .enumerate()
            .filter_map(move |(index, slot)| Some((number(index), slot.as_ref()?)))
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

//! Natural batching: everything that is published waits in the lane of its routing key.
//!
//! A lane sends at once when nothing of it awaits a confirm; while something does, the next batch
//! grows, bounded by count, bytes and age. So one message alone waits for nothing, and a backlog
//! travels in batches.
//!
//! # Invariants
//!
//! - `an_idle_lane_sends_at_once`, `a_busy_lane_lets_the_next_batch_grow`.
//! - `a_refused_batch_is_sent_again_before_anything_newer`.
//! - `news_keep_their_order`: their lane has one open publish at most.
//! - `a_partition_keeps_its_order`, for the same reason: of two batches under way the first may be
//!   refused and the second not.
//! - `news_keep_their_order`, and so do reports of runs: their lanes have one open publish at most.
//! - `every_report_of_runs_can_be_read_by_itself`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use towpath_protocol::MessageId;
use towpath_protocol::office::{LEDGER_KEY, NEWS_KEY};
use towpath_protocol::runs::{ENTRY_BYTES_MAX, Entry, Head, RUNS_KEY, write_run};
use towpath_protocol::start::{Identity, Output, Routes};

use crate::broker::{Content, Publish};
use crate::clock::Now;
use crate::ladder;
use crate::limits::Limits;

/// What something that was published belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The record of the message.
    pub record: u32,
    /// A trigger's outputs: between which checkpoints. [`SETTLEMENT`] is a record's own end.
    pub epoch: u32,
    /// How many.
    pub count: u32,
}

/// The epoch of what is not an output: a retry, a dead letter, the end of a run.
pub const SETTLEMENT: u32 = u32::MAX;

/// The epoch of a checkpoint.
pub const CHECKPOINT: u32 = u32::MAX - 1;

/// The record of what belongs to no record: that a report was lost.
pub const NOBODY: u32 = u32::MAX;

/// How many entries there are in one report of runs: the control plane writes some reports in one
/// transaction, and others wait for it.
const RUNS_BATCH_MAX: u32 = 4096;

/// How many messages that go apart may await their confirms.
const APART_OPEN_MAX: u32 = 64;

/// Names a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaneId {
    /// The outputs of a port, to all steps that take everything; by its number in [`Lanes::port`].
    Port(u16),
    /// Into a partition of this step.
    Partition(u16),
    /// Outputs to one branch of a port; by its number in [`Lanes::branches`].
    Branch(u16),
    /// Outputs that a condition failed for, as dead letters of the step that has it.
    Astray,
    /// Back to this step after a delay, in units.
    Delay(u32),
    /// The same for a message that may kill whoever has it: whoever gets it next must know.
    Suspect(u32),
    /// Back to this step at once, each message by itself.
    Apart,
    /// Dead letters.
    Dead,
    /// News.
    News,
    /// To the ledger: messages that are settled.
    Settled,
    /// To the ledger: messages that are in nobody's hands any more, and not settled.
    Released,
    /// What came of runs.
    Runs,
}

impl LaneId {
    fn delay((units, is_suspect): (u32, bool)) -> Self {
        if is_suspect {
            Self::Suspect(units)
        } else {
            Self::Delay(units)
        }
    }

    fn of_delay(self) -> Option<(u32, bool)> {
        match self {
            Self::Delay(units) => Some((units, false)),
            Self::Suspect(units) => Some((units, true)),
            _ => None,
        }
    }

    /// Whether what waits in it holds the step back. What is on its way into a partition must not: a
    /// partition that is full gets room only by what the step does.
    fn holds_back(self) -> bool {
        !matches!(self, Self::Partition(_))
    }

    /// Whether what waits in it is still wanted when the connection is lost: a message that was to
    /// be retried or given up is delivered again, and decided on again.
    fn survives(self) -> bool {
        matches!(
            self,
            Self::Port(_)
                | Self::Branch(_)
                | Self::Astray
                | Self::News
                | Self::Settled
                | Self::Released
                | Self::Runs
        )
    }
}

/// What is known of an output that goes by a lane.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    /// Its id.
    pub id: MessageId,
    /// Whether it goes by no other lane before: an output is counted once.
    pub is_first: bool,
}

#[derive(Default)]
struct Batch {
    payload: Vec<u8>,
    count: u32,
    members: Vec<Member>,
    /// The ids of the lines, if they are outputs.
    ids: Vec<MessageId>,
    /// How many of them are the first copy of an output.
    firsts: u32,
    answer: Option<Arc<str>>,
}

impl Batch {
    fn push(&mut self, line: &[u8], member: Member, output: Option<Copy>) {
        self.payload.extend_from_slice(line);
        self.count += 1;
        if let Some(copy) = output {
            self.ids.push(copy.id);
            self.firsts += u32::from(copy.is_first);
        }
        match self.members.last_mut() {
            Some(last) if last.record == member.record && last.epoch == member.epoch => {
                last.count += 1;
            }
            _ => self.members.push(Member { count: 1, ..member }),
        }
    }
}

struct Sealed {
    number: u64,
    payload: Bytes,
    /// Of its lines.
    bytes: usize,
    count: u32,
    members: Vec<Member>,
    ids: Vec<MessageId>,
    firsts: u32,
    answer: Option<Arc<str>>,
}

/// A batch that is durable.
#[derive(Debug)]
pub struct Accepted {
    /// Its lane.
    pub lane: LaneId,
    /// What it belonged to, in the order of its lines.
    pub members: Vec<Member>,
    /// The ids of its lines, if they are outputs.
    pub outputs: Vec<MessageId>,
    /// How many of them are the first copy of an output.
    pub firsts: u32,
}

/// What makes one document of the lines of a batch.
struct Frame {
    before: Vec<u8>,
    /// When the newest line was added, in milliseconds since 1970.
    at: u64,
    /// Whether it is an entry of the ledger; else it is a report of runs, which needs no end.
    is_entry: bool,
}

impl Frame {
    /// Begins as [`towpath_protocol::office::LedgerEntry`] does; the messages are its lines.
    fn new(entry: &str, identity: &Identity, incarnation: &str) -> Self {
        #[derive(Serialize)]
        struct Head<'a> {
            identity: &'a Identity,
            incarnation: &'a str,
        }
        let head = Head {
            identity,
            incarnation,
        };
        let head = serde_json::to_string(&head).expect("an identity is JSON");
        let open = head.strip_suffix('}').expect("an object ends so");
        Self {
            before: format!(r#"{{"{entry}":{open},"messages":["#).into_bytes(),
            at: 0,
            is_entry: true,
        }
    }

    /// Begins as a report of runs does.
    fn of_runs(routes: &Routes, identity: &Identity) -> Self {
        let head = Head {
            identity: identity.clone(),
            // In the order of [`Lanes::way`]: the ports, then the branches of each; then those of them
            // that hand messages over, which dead letters are of.
            ways: {
                let outputs = routes.outputs.values();
                let branches = outputs.clone().flat_map(|it| &it.branches);
                outputs
                    .map(|it| it.steps.clone())
                    .chain(branches.clone().map(|it| match &it.handed_to[..] {
                        [] => vec![it.step.clone()],
                        steps => steps.to_vec(),
                    }))
                    .chain(
                        branches
                            .filter(|it| !it.handed_to.is_empty())
                            .map(|it| vec![it.step.clone()]),
                    )
                    .collect()
            },
        };
        let mut before = Vec::new();
        head.write(&mut before);
        Self {
            before,
            at: 0,
            is_entry: false,
        }
    }

    fn close(&self, lines: &[u8]) -> Vec<u8> {
        if !self.is_entry {
            return [self.before.as_slice(), lines].concat();
        }
        let lines = lines.strip_suffix(b",").unwrap_or(lines);
        let after = format!(r#"],"at":{}}}}}"#, self.at);
        [self.before.as_slice(), lines, after.as_bytes()].concat()
    }
}

struct Lane {
    exchange: Arc<str>,
    key: Arc<str>,
    content: Content,
    frame: Option<Frame>,
    batch_max: u32,
    open_max: u32,
    growing: Batch,
    since: Option<Instant>,
    sealed: VecDeque<Sealed>,
    open: u32,
    refusals: u32,
    not_before: Option<Instant>,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.growing.count == 0 && self.sealed.is_empty() && self.open == 0
    }

    fn seal(&mut self, numbers: &mut u64) {
        if self.growing.count == 0 {
            return;
        }
        let mut batch = std::mem::take(&mut self.growing);
        let bytes = batch.payload.len();
        if let Some(frame) = &self.frame {
            batch.payload = frame.close(&batch.payload);
        }
        // The next batch is probably as large as this one.
        self.growing
            .payload
            .reserve(batch.payload.len().min(64 << 10));
        self.since = None;
        *numbers += 1;
        self.sealed.push_back(Sealed {
            number: *numbers,
            payload: batch.payload.into(),
            bytes,
            count: batch.count,
            members: batch.members,
            ids: batch.ids,
            firsts: batch.firsts,
            answer: batch.answer,
        });
    }

    /// Takes the next batch that may be sent now.
    fn next(&mut self, now: Instant, age: Duration, numbers: &mut u64) -> Option<Sealed> {
        if self.not_before.is_some_and(|not_before| now < not_before) || self.open >= self.open_max
        {
            return None;
        }
        self.not_before = None;
        if self.sealed.is_empty() {
            let is_old = self.since.is_some_and(|since| now >= since + age);
            if self.open == 0 || is_old {
                self.seal(numbers);
            }
        }
        self.sealed.pop_front()
    }
}

/// The lane of a branch.
struct BranchLane {
    /// The number of its port.
    port: u16,
    /// The step it leads to.
    step: Box<str>,
    /// If that step hands messages to another flow: how many before it do.
    handover: Option<u16>,
    lane: Lane,
}

impl Lane {
    fn new(exchange: &str, key: &str, content: Content, batch_max: u32, open_max: u32) -> Self {
        Self {
            exchange: exchange.into(),
            key: key.into(),
            content,
            frame: None,
            batch_max,
            open_max,
            growing: Batch::default(),
            since: None,
            sealed: VecDeque::new(),
            open: 0,
            refusals: 0,
            not_before: None,
        }
    }
}

/// The lanes of a step's outputs: of each port to those that take everything, and of each branch.
fn ways_out(routes: &Routes, limits: &Limits) -> (Ports, Vec<BranchLane>) {
    let lane = |output: &Output, key: &str, batch_max: u32, in_order: bool| {
        Lane::new(
            output.exchange.as_ref().unwrap_or(&routes.outputs_exchange),
            key,
            Content::Batch,
            batch_max.max(1),
            // Of two the first may be refused, and the second not.
            if in_order { 1 } else { limits.open_batches },
        )
    };
    let mut ports = Vec::new();
    let mut branches = Vec::new();
    let mut handovers = 0;
    for (number, (port, output)) in (0..).zip(&routes.outputs) {
        let all = output.key.as_deref();
        let all = all.map(|key| lane(output, key, output.batch_max, output.in_order));
        ports.push((port.as_str().into(), all));
        for branch in &output.branches {
            branches.push(BranchLane {
                port: number,
                step: branch.step.as_str().into(),
                handover: (!branch.handed_to.is_empty()).then(|| {
                    handovers += 1;
                    handovers - 1
                }),
                lane: lane(output, &branch.key, branch.batch_max, branch.in_order),
            });
        }
    }
    (ports, branches)
}

/// The ports of a step: the lane of each is to the steps that take everything, if there are such.
type Ports = Vec<(Box<str>, Option<Lane>)>;

/// All lanes of an agent.
pub struct Lanes {
    ports: Ports,
    /// Those of one port are together.
    branches: Vec<BranchLane>,
    /// Into the partitions of this step, if it keeps an order.
    partitions: Vec<Lane>,
    dead: Lane,
    astray: Lane,
    news: Lane,
    apart: Lane,
    settled: Lane,
    released: Lane,
    runs: Lane,
    /// Of which run the newest entry in the lane of runs is.
    newest_run: Option<MessageId>,
    /// By units, and whether it is for suspects.
    delays: BTreeMap<(u32, bool), Lane>,
    open: HashMap<u64, (LaneId, Sealed)>,
    outstanding_bytes: usize,
    numbers: u64,
    routes: Routes,
    limits: Limits,
}

impl Lanes {
    /// Makes the lanes of a step.
    pub fn new(routes: &Routes, limits: &Limits, identity: &Identity, incarnation: &str) -> Self {
        let (ports, branches) = ways_out(routes, limits);
        let lane = Lane::new;
        let order = routes.order.as_ref();
        let batch_max = order.map_or(1, |order| order.batch_max.max(1));
        let partitions = order.map_or(&[][..], |order| &order.partitions);
        let partitions = partitions.iter().map(|partition| {
            let (exchange, key) = (&routes.outputs_exchange, &partition.key);
            lane(exchange, key, Content::Sorted, batch_max, 1)
        });
        let partitions = partitions.collect();
        let dead = || {
            lane(
                &routes.dead_exchange,
                "",
                Content::Dead,
                64,
                limits.open_batches,
            )
        };
        let ledger = |entry| Lane {
            frame: Some(Frame::new(entry, identity, incarnation)),
            ..lane(
                &routes.office_exchange,
                LEDGER_KEY,
                Content::Ledger,
                u32::try_from(limits.claim_batch).unwrap_or(u32::MAX),
                limits.open_batches,
            )
        };
        Self {
            ports,
            branches,
            partitions,
            apart: lane(
                &routes.steps_exchange,
                &routes.own_key,
                Content::Returned(limits.suspect_returns),
                1,
                APART_OPEN_MAX,
            ),
            settled: ledger("settled"),
            released: ledger("released"),
            runs: Lane {
                frame: Some(Frame::of_runs(routes, identity)),
                ..lane(
                    &routes.office_exchange,
                    RUNS_KEY,
                    Content::Runs,
                    RUNS_BATCH_MAX,
                    1,
                )
            },
            newest_run: None,
            dead: dead(),
            astray: dead(),
            news: lane(&routes.office_exchange, NEWS_KEY, Content::News, 1, 1),
            delays: BTreeMap::new(),
            open: HashMap::new(),
            outstanding_bytes: 0,
            numbers: 0,
            routes: routes.clone(),
            limits: limits.clone(),
        }
    }

    /// Returns the number of a port that leads somewhere.
    pub fn port(&self, name: &str) -> Option<u16> {
        let index = self.ports.iter().position(|(port, _)| &**port == name)?;
        u16::try_from(index).ok()
    }

    /// Returns the name of a port.
    pub fn port_name(&self, port: u16) -> &str {
        self.ports
            .get(usize::from(port))
            .map_or("", |(name, _)| name)
    }

    /// Returns whether there are steps that take everything that leaves by a port.
    pub fn has_all(&self, port: u16) -> bool {
        self.ports[usize::from(port)].1.is_some()
    }

    /// Returns the numbers of a port's branches, in the order of [`Output::branches`].
    ///
    /// [`Output::branches`]: towpath_protocol::start::Output::branches
    pub fn branches(&self, port: u16) -> Range<u16> {
        let begin = self.branches.partition_point(|it| it.port < port);
        let end = self.branches.partition_point(|it| it.port <= port);
        let number = |index| u16::try_from(index).expect("a step has few branches");
        number(begin)..number(end)
    }

    /// Returns the number of the way that a lane of outputs is: of a port, or, after all ports, of a
    /// branch.
    pub fn way(&self, lane: LaneId) -> Option<u16> {
        match lane {
            LaneId::Port(port) => Some(port),
            LaneId::Branch(branch) => u16::try_from(self.ports.len() + usize::from(branch)).ok(),
            _ => None,
        }
    }

    /// Returns the number of the way by which dead letters of a branch go: they are of the branch
    /// itself, also if that hands messages to another flow.
    pub fn way_of_letters(&self, lane: LaneId) -> Option<u16> {
        let way = self.way(lane)?;
        let Some(handover) = self.branch_of(way).and_then(|branch| branch.handover) else {
            return Some(way);
        };
        let before = self.ports.len() + self.branches.len();
        u16::try_from(before + usize::from(handover)).ok()
    }

    /// Returns whether what goes this way goes to another flow.
    pub fn leaves_the_flow(&self, way: u16) -> bool {
        self.branch_of(way)
            .is_some_and(|branch| branch.handover.is_some())
    }

    fn branch_of(&self, way: u16) -> Option<&BranchLane> {
        let branch = usize::from(way).checked_sub(self.ports.len())?;
        self.branches.get(branch)
    }

    /// Returns the name of a way's port, and the step it leads to, if it is that of a branch.
    pub fn way_name(&self, way: u16) -> (&str, Option<&str>) {
        match self.branch_of(way) {
            Some(branch) => (self.port_name(branch.port), Some(&branch.step)),
            None => (self.port_name(way), None),
        }
    }

    /// Adds a line (with its line end) to a lane.
    pub fn push(&mut self, id: LaneId, line: &[u8], member: Member, now: Instant) {
        self.add(id, line, member, None, now);
    }

    /// Adds a copy of an output to the lane of its port, or of a branch.
    pub fn push_output(
        &mut self,
        id: LaneId,
        line: &[u8],
        member: Member,
        output: Copy,
        now: Instant,
    ) {
        self.add(id, line, member, Some(output), now);
    }

    fn add(&mut self, id: LaneId, line: &[u8], member: Member, output: Option<Copy>, now: Instant) {
        if id.holds_back() {
            self.outstanding_bytes += line.len();
        }
        let batch_bytes = self.limits.batch_bytes;
        let mut numbers = self.numbers;
        let lane = self.lane(id);
        if lane.growing.count >= lane.batch_max
            || (lane.growing.count > 0 && lane.growing.payload.len() + line.len() > batch_bytes)
        {
            lane.seal(&mut numbers);
        }
        lane.growing.push(line, member, output);
        lane.since.get_or_insert(now);
        if lane.growing.count >= lane.batch_max {
            lane.seal(&mut numbers);
        }
        self.numbers = numbers;
    }

    /// Adds a message to one of the lanes to the ledger.
    pub fn tell(&mut self, id: LaneId, message: (MessageId, u32), member: Member, now: Now) {
        let mut line = serde_json::to_vec(&message).expect("an id and a number are JSON");
        line.push(b',');
        if let Some(frame) = &mut self.lane(id).frame {
            frame.at = now.wall_ms;
        }
        self.push(id, &line, member, now.instant);
    }

    /// Adds what is said of a run.
    pub fn report(&mut self, run: MessageId, entry: Entry, member: Member, now: Instant) {
        let batch_bytes = self.limits.batch_bytes;
        let mut numbers = self.numbers;
        let is_full = self.runs.growing.payload.len() + ENTRY_BYTES_MAX > batch_bytes;
        if is_full {
            self.runs.seal(&mut numbers);
        }
        self.numbers = numbers;
        let mut line = Vec::with_capacity(ENTRY_BYTES_MAX);
        // Every report is read by itself.
        if self.runs.growing.count == 0 || self.newest_run != Some(run) {
            write_run(run, &mut line);
            self.newest_run = Some(run);
        }
        entry.write(&mut line);
        self.push(LaneId::Runs, &line, member, now);
    }

    /// Says whether something that was sent is a report of runs.
    pub fn is_report(&self, number: u64) -> bool {
        matches!(self.open.get(&number), Some((LaneId::Runs, _)))
    }

    /// Adds a question to the lane of news; the answer has this correlation id.
    pub fn ask(&mut self, document: &[u8], member: Member, correlation: Arc<str>, now: Instant) {
        let mut numbers = self.numbers;
        self.news.seal(&mut numbers);
        self.news.growing.answer = Some(correlation);
        self.numbers = numbers;
        self.push(LaneId::News, document, member, now);
    }

    /// Takes everything that is to be sent now.
    pub fn send(&mut self, now: Instant, mut send: impl FnMut(Publish)) {
        let age = self.limits.batch_age;
        let mut numbers = self.numbers;
        let open = &mut self.open;
        let ports = (0..).zip(&mut self.ports);
        let ports =
            ports.filter_map(|(port, (_, lane))| Some((LaneId::Port(port), lane.as_mut()?)));
        let branches = (0..).zip(&mut self.branches);
        let branches = branches.map(|(branch, it)| (LaneId::Branch(branch), &mut it.lane));
        let partitions = (0..).zip(&mut self.partitions);
        let partitions = partitions.map(|(partition, lane)| (LaneId::Partition(partition), lane));
        let all = ports
            .chain(branches)
            .chain(partitions)
            .chain(
                self.delays
                    .iter_mut()
                    .map(|(kind, lane)| (LaneId::delay(*kind), lane)),
            )
            .chain([
                (LaneId::Apart, &mut self.apart),
                (LaneId::Dead, &mut self.dead),
                (LaneId::Astray, &mut self.astray),
                (LaneId::News, &mut self.news),
                (LaneId::Settled, &mut self.settled),
                (LaneId::Released, &mut self.released),
                (LaneId::Runs, &mut self.runs),
            ]);
        for (id, lane) in all {
            while let Some(batch) = lane.next(now, age, &mut numbers) {
                lane.open += 1;
                send(Publish {
                    number: batch.number,
                    exchange: lane.exchange.clone(),
                    key: lane.key.clone(),
                    content: lane.content,
                    count: batch.count,
                    payload: batch.payload.clone(),
                    answer: batch.answer.clone(),
                });
                open.insert(batch.number, (id, batch));
            }
        }
        self.numbers = numbers;
    }

    /// Notes that a batch is durable: returns what it belonged to.
    pub fn accepted(&mut self, number: u64) -> Option<Accepted> {
        let (id, batch) = self.open.remove(&number)?;
        if id.holds_back() {
            self.outstanding_bytes = self.outstanding_bytes.saturating_sub(batch.bytes);
        }
        let lane = self.lane(id);
        lane.open = lane.open.saturating_sub(1);
        lane.refusals = 0;
        lane.not_before = None;
        if let Some(kind) = id.of_delay()
            && lane.is_empty()
        {
            self.delays.remove(&kind);
        }
        Some(Accepted {
            lane: id,
            members: batch.members,
            outputs: batch.ids,
            firsts: batch.firsts,
        })
    }

    /// Notes that the broker refused a batch: it is sent again after a back-off.
    pub fn refused(&mut self, number: u64, now: Instant, chance: f64) {
        let Some((id, batch)) = self.open.remove(&number) else {
            return;
        };
        let (first, longest) = (self.limits.refused_first, self.limits.refused_longest);
        let lane = self.lane(id);
        lane.open = lane.open.saturating_sub(1);
        // Several open batches that are refused together are one refusal.
        if lane.not_before.is_none_or(|not_before| now >= not_before) {
            let wait = first
                .saturating_mul(1 << lane.refusals.min(16))
                .min(longest);
            lane.refusals += 1;
            lane.not_before = Some(now + wait.mul_f64(0.5 + chance / 2.0));
        }
        // Refused batches come back in any order; the oldest goes first.
        let index = lane
            .sealed
            .iter()
            .position(|other| other.number > batch.number)
            .unwrap_or(lane.sealed.len());
        lane.sealed.insert(index, batch);
    }

    /// Notes that the connection is gone: what awaited a confirm is sent again on the next one,
    /// except settlements, whose members are returned.
    pub fn disconnected(&mut self) -> Vec<Member> {
        let mut open: Vec<_> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_by_key(|(_, batch)| std::cmp::Reverse(batch.number));
        for (id, batch) in open {
            let lane = self.lane(id);
            lane.open = 0;
            lane.sealed.push_front(batch);
        }
        let mut void = Vec::new();
        let mut bytes = 0;
        let partitions = self.partitions.iter_mut().enumerate().map(|(index, lane)| {
            let index = u16::try_from(index).expect("a step has few partitions");
            (LaneId::Partition(index), lane)
        });
        for (id, lane) in self
            .delays
            .iter_mut()
            .map(|(kind, lane)| (LaneId::delay(*kind), lane))
            .chain(partitions)
            .chain([
                (LaneId::Apart, &mut self.apart),
                (LaneId::Dead, &mut self.dead),
            ])
        {
            debug_assert!(!id.survives(), "ports, news and the ledger survive");
            lane.open = 0;
            lane.since = None;
            let growing = std::mem::take(&mut lane.growing);
            if id.holds_back() {
                let sealed = lane.sealed.iter().map(|batch| batch.bytes);
                bytes += growing.payload.len() + sealed.sum::<usize>();
            }
            void.extend(growing.members);
            void.extend(lane.sealed.drain(..).flat_map(|batch| batch.members));
        }
        self.delays.clear();
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
        void
    }

    /// Forgets what is on its way into partitions: returns what it belonged to.
    pub fn void_partitions(&mut self) -> Vec<Member> {
        let is_partition = |id: &LaneId| matches!(id, LaneId::Partition(_));
        let open = self.open.extract_if(|_, (id, _)| is_partition(id));
        let mut void: Vec<Member> = open.flat_map(|(_, (_, batch))| batch.members).collect();
        for lane in &mut self.partitions {
            lane.open = 0;
            lane.since = None;
            lane.refusals = 0;
            lane.not_before = None;
            void.extend(std::mem::take(&mut lane.growing).members);
            void.extend(lane.sealed.drain(..).flat_map(|batch| batch.members));
        }
        void
    }

    /// Returns whether the broker refuses what is published.
    pub fn is_refused(&self) -> bool {
        self.all().any(|lane| lane.refusals > 0)
    }

    /// Returns whether something awaits its confirm.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns whether the step is to be held back, if so many bytes are to come beside.
    pub fn is_full(&self, to_come: usize) -> bool {
        self.outstanding_bytes + to_come > self.limits.outstanding_bytes
    }

    /// Returns when to look again without an event.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.all()
            .filter(|lane| lane.open < lane.open_max)
            .filter_map(|lane| match lane.not_before {
                Some(not_before) => Some(not_before),
                None => lane.since.map(|since| since + self.limits.batch_age),
            })
            .min()
    }

    fn all(&self) -> impl Iterator<Item = &Lane> {
        let ports = self.ports.iter().filter_map(|(_, lane)| lane.as_ref());
        let branches = self.branches.iter().map(|it| &it.lane);
        let outputs = ports.chain(branches).chain(&self.partitions);
        outputs.chain(self.delays.values()).chain([
            &self.apart,
            &self.dead,
            &self.astray,
            &self.news,
            &self.settled,
            &self.released,
            &self.runs,
        ])
    }

    /// Returns a number for something that is published outside all lanes.
    pub fn take_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn lane(&mut self, id: LaneId) -> &mut Lane {
        match id {
            LaneId::Port(port) => self.ports[usize::from(port)]
                .1
                .as_mut()
                .expect("nothing goes to all where nobody takes all"),
            LaneId::Branch(branch) => &mut self.branches[usize::from(branch)].lane,
            LaneId::Partition(partition) => &mut self.partitions[usize::from(partition)],
            LaneId::Astray => &mut self.astray,
            LaneId::Dead => &mut self.dead,
            LaneId::News => &mut self.news,
            LaneId::Apart => &mut self.apart,
            LaneId::Settled => &mut self.settled,
            LaneId::Released => &mut self.released,
            LaneId::Runs => &mut self.runs,
            LaneId::Delay(units) | LaneId::Suspect(units) => {
                let (routes, limits) = (&self.routes, &self.limits);
                let is_suspect = matches!(id, LaneId::Suspect(_));
                let (content, batch_max) = if is_suspect {
                    (Content::Returned(limits.suspect_returns), 1)
                } else {
                    (Content::Batch, limits.delay_batch)
                };
                self.delays.entry((units, is_suspect)).or_insert_with(|| {
                    let (exchange, key) = match ladder::level(units) {
                        Some(level) => {
                            let level = level.min(routes.delay_exchanges.len().saturating_sub(1));
                            (
                                routes.delay_exchanges[level].as_str(),
                                ladder::routing_key(units, &routes.own_key),
                            )
                        }
                        None => (routes.steps_exchange.as_str(), routes.own_key.clone()),
                    };
                    Lane::new(exchange, &key, content, batch_max, limits.open_batches)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use towpath_protocol::office::LedgerEntry;
    use towpath_protocol::start::{Order, Partition};

    fn lanes() -> Lanes {
        let routes = Routes {
            queue: "q".into(),
            outputs_exchange: "x".into(),
            outputs: BTreeMap::from([(
                "out".to_owned(),
                Output {
                    exchange: None,
                    key: Some("s.out".into()),
                    batch_max: 3,
                    in_order: false,
                    branches: vec![],
                    steps: vec!["t".into()],
                },
            )]),
            own_key: "f.s".into(),
            steps_exchange: "steps".into(),
            delay_exchanges: (0..24).map(|level| format!("delay.{level}")).collect(),
            dead_exchange: "dead".into(),
            office_exchange: "office".into(),
            order: Some(Order {
                by: ".key".into(),
                partitions: (0..2)
                    .map(|number| Partition {
                        queue: format!("q.{number}"),
                        key: format!("s.partition.{number}"),
                    })
                    .collect(),
                batch_max: 16,
            }),
        };
        let identity = Identity {
            instance: "i".into(),
            flow: "f".into(),
            step: "s".into(),
            replica: 1,
            spec: "0".into(),
        };
        Lanes::new(&routes, &Limits::default(), &identity, "once upon a time")
    }

    const OUT: LaneId = LaneId::Port(0);
    const MEMBER: Member = Member {
        record: 1,
        epoch: 0,
        count: 1,
    };

    fn sent(lanes: &mut Lanes, now: Instant) -> Vec<Publish> {
        let mut all = Vec::new();
        lanes.send(now, |publish| all.push(publish));
        all
    }

    #[test]
    fn a_partition_keeps_its_order() {
        let (mut lanes, now) = (lanes(), Instant::now());
        let partition = LaneId::Partition(1);
        for line in ["a\n", "b\n", "c\n"] {
            lanes.push(partition, line.as_bytes(), MEMBER, now);
            lanes.push(partition, &vec![b'x'; 600 << 10], MEMBER, now);
        }
        let first = sent(&mut lanes, now).remove(0);
        assert_eq!(
            (&first.payload[..], &*first.key),
            (&b"a\n"[..], "s.partition.1")
        );
        let later = now + Duration::from_secs(60);
        assert!(sent(&mut lanes, later).is_empty(), "one is under way");
        lanes.refused(first.number, later, 0.5);
        let again = sent(&mut lanes, later + Duration::from_secs(60));
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].number, first.number);
        assert!(!lanes.is_full(0), "the step is to go on");
        let void: u32 = lanes.disconnected().iter().map(|member| member.count).sum();
        assert_eq!(void, 6, "it is taken from the intake again");
        assert!(
            lanes.next_deadline().is_none_or(|at| at > later),
            "nothing waits"
        );
    }

    #[test]
    fn an_output_goes_where_its_port_leads() {
        let mut made = lanes();
        let answers = Output {
            exchange: Some("office".into()),
            key: Some(RUNS_KEY.into()),
            batch_max: 16,
            in_order: false,
            steps: vec![],
            branches: vec![],
        };
        made.routes.outputs.insert("reply".into(), answers);
        let identity = serde_json::from_str(
            r#"{"instance":"i","flow":"f","step":"s","replica":1,"spec":"0"}"#,
        );
        let mut lanes = Lanes::new(&made.routes, &made.limits, &identity.unwrap(), "");
        let now = Instant::now();
        for port in ["out", "reply"] {
            let lane = LaneId::Port(lanes.port(port).unwrap());
            lanes.push(lane, b"a\n", MEMBER, now);
        }
        let ways = sent(&mut lanes, now);
        let ways: Vec<_> = ways.iter().map(|it| (&*it.exchange, &*it.key)).collect();
        assert_eq!(ways, [("x", "s.out"), ("office", "runs")]);
    }

    #[test]
    fn an_idle_lane_sends_at_once() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(OUT, b"a\n", MEMBER, now);
        let publishes = sent(&mut lanes, now);
        assert_eq!(publishes.len(), 1);
        assert_eq!(&publishes[0].payload[..], b"a\n");
    }

    #[test]
    fn a_busy_lane_lets_the_next_batch_grow() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(OUT, b"a\n", MEMBER, now);
        let first = sent(&mut lanes, now).remove(0).number;
        lanes.push(OUT, b"b\n", MEMBER, now);
        lanes.push(OUT, b"c\n", MEMBER, now);
        assert!(sent(&mut lanes, now).is_empty());
        assert!(lanes.next_deadline().is_some(), "it must not wait for ever");
        lanes.push(OUT, b"d\n", MEMBER, now);
        lanes.push(OUT, b"e\n", MEMBER, now);
        let full = sent(&mut lanes, now);
        assert_eq!(
            full.iter()
                .map(|publish| &publish.payload[..])
                .collect::<Vec<_>>(),
            [b"b\nc\nd\n"]
        );
        assert_eq!(lanes.accepted(first).unwrap().members, [MEMBER]);
        assert!(sent(&mut lanes, now).is_empty(), "one is open still");
        let later = now + Duration::from_secs(1);
        assert_eq!(sent(&mut lanes, later).len(), 1, "it is old");
    }

    #[test]
    fn a_refused_batch_is_sent_again_before_anything_newer() {
        let (mut lanes, now) = (lanes(), Instant::now());
        for line in [b"a\n", b"b\n", b"c\n", b"d\n", b"e\n", b"f\n"] {
            lanes.push(OUT, line, MEMBER, now);
        }
        let numbers: Vec<_> = sent(&mut lanes, now)
            .iter()
            .map(|publish| publish.number)
            .collect();
        assert_eq!(numbers.len(), 2);
        lanes.refused(numbers[1], now, 1.0);
        lanes.refused(numbers[0], now, 1.0);
        lanes.push(OUT, b"g\n", MEMBER, now);
        assert!(lanes.is_refused());
        assert!(sent(&mut lanes, now).is_empty());
        let later = now + Duration::from_secs(10);
        let again: Vec<_> = sent(&mut lanes, later)
            .iter()
            .map(|publish| publish.number)
            .collect();
        assert_eq!(again[..2], numbers[..]);
        lanes.accepted(numbers[0]);
        assert!(!lanes.is_refused());
    }

    #[test]
    fn news_keep_their_order() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(LaneId::News, b"1", MEMBER, now);
        lanes.ask(b"2", MEMBER, "c".into(), now);
        lanes.push(LaneId::News, b"3", MEMBER, now);
        let mut seen = Vec::new();
        loop {
            let publishes = sent(&mut lanes, now);
            assert!(publishes.len() <= 1);
            let Some(publish) = publishes.into_iter().next() else {
                break;
            };
            lanes.accepted(publish.number);
            seen.push((publish.payload, publish.answer.is_some()));
        }
        let expect = [(&b"1"[..], false), (b"2", true), (b"3", false)];
        assert_eq!(
            seen.iter()
                .map(|(payload, asks)| (&payload[..], *asks))
                .collect::<Vec<_>>(),
            expect
        );
    }

    #[test]
    fn a_lost_connection_sends_outputs_again_and_forgets_settlements() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(OUT, b"a\n", MEMBER, now);
        let settlement = Member {
            record: 7,
            epoch: SETTLEMENT,
            count: 1,
        };
        lanes.push(LaneId::Delay(5), b"r\n", settlement, now);
        let publishes = sent(&mut lanes, now);
        assert_eq!(publishes.len(), 2);
        assert_eq!(&*publishes[1].exchange, "delay.2");
        assert_eq!(lanes.disconnected(), [settlement]);
        let again = sent(&mut lanes, now);
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].number, publishes[0].number);
    }

    #[test]
    fn what_the_ledger_is_told_is_one_document() {
        let (mut lanes, now) = (lanes(), Now::read());
        let id = |number: u8| MessageId::from_bytes([number; 16]);
        lanes.tell(LaneId::Settled, (id(0), 0), MEMBER, now);
        let first = sent(&mut lanes, now.instant).remove(0);
        lanes.tell(LaneId::Settled, (id(1), 0), MEMBER, now);
        lanes.tell(LaneId::Settled, (id(2), 7), MEMBER, now);
        lanes.tell(LaneId::Released, (id(3), 0), MEMBER, now);
        let released = sent(&mut lanes, now.instant).remove(0);
        lanes.accepted(first.number);
        let second = sent(&mut lanes, now.instant).remove(0);
        for (publish, expect) in [
            (&first, vec![(id(0), 0)]),
            (&second, vec![(id(1), 0), (id(2), 7)]),
            (&released, vec![(id(3), 0)]),
        ] {
            let entry: LedgerEntry = serde_json::from_slice(&publish.payload).unwrap();
            let (LedgerEntry::Settled(told) | LedgerEntry::Released(told)) = entry else {
                panic!("it is no claim");
            };
            assert_eq!(told.messages, expect);
            assert_eq!(
                (told.at, told.incarnation.as_str()),
                (now.wall_ms, "once upon a time")
            );
            assert_eq!((&*publish.exchange, &*publish.key), ("office", "ledger"));
        }
        assert!(lanes.disconnected().is_empty(), "it is told again");
        assert_eq!(sent(&mut lanes, now.instant).len(), 2);
    }

    #[test]
    fn every_report_of_runs_can_be_read_by_itself() {
        let (mut lanes, now) = (lanes(), Instant::now());
        let id = |number: u32| {
            let mut bytes = [7; 16];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            MessageId::from_bytes(bytes)
        };
        let total = 2 * RUNS_BATCH_MAX + 10;
        let mut said = Vec::new();
        for number in 0..total {
            let done = Entry::Done {
                id: id(number),
                replays: 0,
            };
            let run = id(number / 5000);
            lanes.report(run, done, MEMBER, now);
            said.push((run, done));
        }
        let mut read = Vec::new();
        loop {
            let publishes = sent(&mut lanes, now);
            assert!(publishes.len() <= 1, "they keep their order");
            let Some(publish) = publishes.into_iter().next() else {
                break;
            };
            let (head, entries) = towpath_protocol::runs::read(&publish.payload).unwrap();
            assert_eq!(head.ways, [["t"]]);
            read.extend(entries);
            assert!(lanes.is_report(publish.number));
            lanes.accepted(publish.number);
        }
        assert_eq!(read, said);
        assert!(lanes.disconnected().is_empty());
    }

    #[test]
    fn what_goes_apart_is_not_merged() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(LaneId::Apart, b"a\n", MEMBER, now);
        lanes.push(LaneId::Apart, b"b\n", MEMBER, now);
        let publishes = sent(&mut lanes, now);
        assert_eq!(publishes.len(), 2);
        assert_eq!(
            (&*publishes[0].exchange, &*publishes[0].key),
            ("steps", "f.s")
        );
        assert_eq!(publishes[0].content, Content::Returned(2));
        assert_eq!(lanes.disconnected().len(), 2, "the delivery comes again");
    }

    #[test]
    fn a_suspect_that_somebody_else_has_stays_one() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(LaneId::Delay(4), b"r\n", MEMBER, now);
        lanes.push(LaneId::Suspect(4), b"s\n", MEMBER, now);
        lanes.push(LaneId::Suspect(4), b"t\n", MEMBER, now);
        let publishes = sent(&mut lanes, now);
        let contents: Vec<_> = publishes.iter().map(|it| it.content).collect();
        let returned = Content::Returned(2);
        assert_eq!(contents, [Content::Batch, returned, returned]);
        assert!(publishes.iter().all(|it| it.key == publishes[0].key));
        for publish in &publishes {
            lanes.accepted(publish.number).expect("it was sent");
        }
        assert!(lanes.delays.is_empty(), "nothing is kept for it");
    }

    #[test]
    fn without_a_delay_a_message_comes_straight_back() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.push(LaneId::Delay(0), b"r\n", MEMBER, now);
        let publish = sent(&mut lanes, now).remove(0);
        assert_eq!((&*publish.exchange, &*publish.key), ("steps", "f.s"));
    }
}

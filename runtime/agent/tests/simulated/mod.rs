//! The agent's real mind in a simulated world: a broker that keeps what it confirmed, steps that
//! answer, a control plane that keeps the ledger, and a clock that jumps. Whoever holds the world may
//! cut anything off at any call.
#![expect(dead_code, reason = "each test file uses a part of it")]

mod ledger;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ledger::Ledger;
use serde_json::{Value, json};
use towpath_agent::broker::{Addressed, Command, Content, Event, Origin, Publish};
use towpath_agent::clock::Now;
use towpath_agent::core::{Core, Memory};
use towpath_agent::limits::Limits;
use towpath_agent::log::Logger;
use towpath_agent::prefetch::prefetch;
use towpath_agent::redact::Redact;
use towpath_protocol::MessageId;
use towpath_protocol::handing::Handing;
use towpath_protocol::manifest::Kind;
use towpath_protocol::office::Report;
use towpath_protocol::runs::Entry;
use towpath_protocol::start::{
    Branch, DELAY_LEVELS, Identity, Mode, Output, Retry, Routes, Settings, Start,
};
use towpath_step_jq::judge::Holds;

/// What goes wrong, and when: the number of the call before which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing.
    Never,
    /// The agent is killed, and its step with it.
    Agent(usize),
    /// The connection is lost.
    Connection(usize),
    /// The step process dies.
    Step(usize),
    /// Some of each, by chance.
    Chance(u64),
}

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) cut: Cut,
    pub(crate) kind: Kind,
    pub(crate) concurrency: u32,
    /// Messages in a delivery.
    pub(crate) batch: usize,
    pub(crate) replicas: u32,
    pub(crate) once: bool,
    /// Its outputs go to branches: see [`branches`].
    pub(crate) branches: bool,
    pub(crate) track: bool,
    /// Messages come from another flow.
    pub(crate) from_flows: bool,
    /// Their lineage says that other flows report what comes of them.
    pub(crate) tracked: bool,
}

impl Setting {
    pub(crate) fn tracked(cut: Cut, kind: Kind, replicas: u32) -> Self {
        Self {
            cut,
            kind,
            concurrency: if kind == Kind::Poll { 1 } else { 4 },
            batch: 3,
            replicas,
            once: false,
            branches: false,
            track: true,
            from_flows: false,
            tracked: false,
        }
    }

    pub(crate) fn once(cut: Cut, replicas: u32) -> Self {
        Self {
            cut,
            kind: Kind::Action,
            concurrency: 4,
            batch: 3,
            replicas,
            once: true,
            branches: false,
            track: false,
            from_flows: false,
            tracked: false,
        }
    }
}

/// Everything but the agents.
pub(crate) struct World {
    pub(crate) broker: Broker,
    replicas: Vec<Replica>,
    start: Start,
    now: Now,
    cut: Cut,
    pub(crate) calls: usize,
    chance: u64,
    lives: u64,
    most_in_hand: usize,
    /// How often each message was written to what is outside: once is right.
    pub(crate) target: BTreeMap<String, u32>,
    /// How many of them were handed over as uncertain.
    pub(crate) uncertain: u32,
    /// What an agent that has no share of its step's rate is told, in messages a second.
    pub(crate) share: Option<f64>,
    /// The ids of what was handed over together, in the order of time.
    pub(crate) together: Vec<Vec<String>>,
}

/// A container.
struct Replica {
    core: Core,
    step: Step,
    /// The connection does not come back before.
    down_until: Instant,
    /// What is known of the outputs that it asked about.
    verdicts: Option<Vec<Vec<Holds>>>,
}

/// A delivery in a queue.
#[derive(Clone)]
struct Queued {
    payload: Bytes,
    origin: Origin,
}

/// A broker: what it confirmed, it keeps.
#[derive(Default)]
pub(crate) struct Broker {
    queue: VecDeque<Queued>,
    /// Deliveries that one agent may hold.
    prefetch: usize,
    links: Vec<Link>,
    /// The lines of outputs, as often as they were published.
    pub(crate) outputs: Vec<Value>,
    /// The same, by their routing keys.
    pub(crate) to: BTreeMap<String, Vec<Value>>,
    /// The dead letters.
    pub(crate) dead: Vec<Value>,
    /// News.
    pub(crate) news: Vec<Value>,
    /// Answers to questions.
    pub(crate) found: Vec<Value>,
    /// Notes about what went into the ladder.
    pub(crate) waiting: Vec<Value>,
    /// How often an agent wanted the connection made again, and why.
    pub(crate) recycled: Vec<String>,
    /// Nothing comes back any more: no confirms and no deliveries.
    pub(crate) is_mute: bool,
    /// What is published is refused.
    pub(crate) refuses: bool,
    /// Reports of runs are refused.
    pub(crate) refuses_reports: bool,
    /// The runs that an operator cancelled.
    cancelled: BTreeSet<String>,
    /// What was said of runs, and checkpoints, in their order.
    pub(crate) told: Vec<Told>,
    /// What the control plane knows.
    pub(crate) ledger: Ledger,
}

/// What the control plane was told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told {
    Run((MessageId, Entry)),
    Checkpoint(u64),
}

/// The connection of one agent.
#[derive(Default)]
struct Link {
    unacknowledged: BTreeMap<u64, Queued>,
    tag: u64,
    generation: u64,
    is_up: bool,
    is_consuming: bool,
    answers: VecDeque<Event>,
}

/// A step that answers one message at a time, the newest first.
#[derive(Default)]
struct Step {
    is_there: bool,
    in_hand: Vec<Value>,
    /// How many of the next messages were announced as a batch.
    announced: u64,
    /// What was handed over together since anybody looked.
    together: Vec<Vec<String>>,
    says: VecDeque<Value>,
    /// It does nothing.
    is_idle: bool,
    turns: u64,
    /// When each slow message was handed over.
    slow: BTreeMap<String, u64>,
    /// The stream in hand has emitted what there was.
    has_streamed: bool,
    /// It was told to finish.
    is_to_finish: bool,
    /// The calls to register that it has: the frames.
    calls: Vec<Value>,
}

/// How many turns a slow message takes.
const SLOW_TURNS: u64 = 40;

impl World {
    pub(crate) fn new(
        cut: Cut,
        kind: Kind,
        concurrency: u32,
        bodies: &[Value],
        batch: usize,
    ) -> (Self, Vec<MessageId>) {
        let setting = Setting {
            cut,
            kind,
            concurrency,
            batch,
            replicas: 1,
            once: false,
            branches: false,
            track: false,
            from_flows: false,
            tracked: false,
        };
        Self::of(setting, bodies)
    }

    pub(crate) fn of(setting: Setting, bodies: &[Value]) -> (Self, Vec<MessageId>) {
        Self::handing(setting, Handing::default(), bodies)
    }

    /// The same, with messages that are handed over in a certain way.
    pub(crate) fn handing(
        setting: Setting,
        handing: Handing,
        bodies: &[Value],
    ) -> (Self, Vec<MessageId>) {
        let mut start = start(setting.kind, setting.concurrency);
        start.settings.once = setting.once;
        if setting.branches {
            start.routes.outputs.insert("out".into(), branches());
        }
        start.settings.track = setting.track;
        start.settings.from_flows = setting.from_flows;
        let tracked = if setting.tracked {
            r#","tracked":true"#
        } else {
            ""
        };
        start.handing = handing;
        let now = Now::read();
        let mut broker = Broker {
            prefetch: match start.handing.batch {
                Some(_) => prefetch(&start).into(),
                None => 4,
            },
            ..Broker::default()
        };
        let mut ids = Vec::new();
        for (index, chunk) in bodies.chunks(setting.batch).enumerate() {
            let mut payload = String::new();
            for (offset, body) in chunk.iter().enumerate() {
                let mut bytes = [9; 16];
                bytes[..8]
                    .copy_from_slice(&((index * setting.batch + offset) as u64).to_be_bytes());
                let id = MessageId::from_bytes(bytes);
                writeln!(
                    payload,
                    r#"{{"id":"{id}","lineage":{{"run":"{id}","version":1{tracked},"at":1}},"body":{body}}}"#
                )
                .expect("a string takes it");
                ids.push(id);
            }
            broker.queue.push_back(Queued {
                payload: payload.into(),
                origin: Origin::default(),
            });
        }
        let chance = if let Cut::Chance(seed) = setting.cut {
            seed
        } else {
            0
        };
        let mut world = Self {
            broker,
            replicas: Vec::new(),
            start,
            now,
            cut: setting.cut,
            calls: 0,
            chance,
            lives: 0,
            most_in_hand: 0,
            target: BTreeMap::new(),
            uncertain: 0,
            share: None,
            together: Vec::new(),
        };
        for number in 1..=setting.replicas {
            let core = world.mind(number);
            world.replicas.push(Replica {
                core,
                step: Step::default(),
                down_until: now.instant,
                verdicts: None,
            });
            world.broker.links.push(Link::default());
        }
        (world, ids)
    }

    /// A trigger that runs for ever, and its ticks; see [`Step::stream`].
    pub(crate) fn stream(ticks: &[Value]) -> (Self, Vec<MessageId>) {
        let (mut world, ids) = Self::new(Cut::Never, Kind::Poll, 1, ticks, 1);
        world.start.settings.stream = true;
        world.replicas[0].core = world.mind(1);
        (world, ids)
    }

    pub(crate) fn pause(&mut self) {
        self.replicas[0].core.pause();
    }

    pub(crate) fn resume(&mut self) {
        self.replicas[0].core.resume();
    }

    pub(crate) fn drain(&mut self) {
        self.replicas[0].core.drain(self.now);
    }

    pub(crate) fn has_drained(&self) -> bool {
        self.replicas[0].core.has_drained()
    }

    /// The first agent loses its connection, and has a new one at once.
    pub(crate) fn reconnect(&mut self) {
        self.lose_connection(0, 0);
    }

    /// Starts an agent.
    fn mind(&mut self, replica: u32) -> Core {
        self.lives += 1;
        let limits = Limits {
            held_outputs: 10,
            claim_ahead: 12,
            claim_batch: 5,
            claim_probe: 2,
            claim_again: Duration::from_millis(200),
            claim_again_longest: Duration::from_millis(400),
            claim_margin: Duration::from_millis(900),
            claim_renew: Duration::from_millis(300),
            claim_lease: Duration::from_millis(1500),
            cancel_grace: Duration::from_millis(200),
            finish: Duration::from_millis(200),
            suspect_patience: Duration::from_millis(1000),
            reattach: Duration::from_secs(2),
            ..Limits::default()
        };
        let mut start = self.start.clone();
        start.identity.replica = replica;
        let logger = Logger::silent(&start.identity, Redact::default());
        Core::new(start, limits, logger, self.lives, self.now)
    }

    /// Lets everything run until nothing is left to do.
    pub(crate) fn run(&mut self) {
        let mut quiet = 0;
        for _ in 0..200_000 {
            let is_busy = self.turn();
            quiet = if is_busy { 0 } else { quiet + 1 };
            if quiet > 200 && self.is_settled() {
                return;
            }
        }
        let links = self.broker.links.iter();
        let stuck: Vec<Queued> = links
            .flat_map(|link| link.unacknowledged.values().cloned())
            .collect();
        let mut known = String::new();
        for queued in stuck {
            for line in queued.payload.split(|byte| *byte == b'\n') {
                let Ok(message) = serde_json::from_slice::<Value>(line) else {
                    continue;
                };
                let id = serde_json::from_value(message["id"].clone()).expect("an id");
                let found = self.find(id);
                writeln!(known, "{:?} {message} {found}", queued.origin)
                    .expect("a string takes it");
            }
        }
        let links = self.broker.links.iter();
        let unacknowledged: Vec<usize> = links.map(|link| link.unacknowledged.len()).collect();
        let replicas = self.replicas.iter();
        let in_hand: Vec<usize> = replicas.map(|it| it.step.in_hand.len()).collect();
        panic!(
            "it does not come to rest: {} in the queue, {unacknowledged:?} unacknowledged, {in_hand:?} in hand, {:?} {:#?}\n{known}",
            self.broker.queue.len(),
            self.cut,
            self.replicas
                .iter()
                .map(|it| it.core.report(Memory::default(), self.now))
                .collect::<Vec<_>>(),
        );
    }

    /// Lets everything run for so many turns of 20 ms.
    pub(crate) fn run_for(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.broker.queue.is_empty()
            && self
                .broker
                .links
                .iter()
                .all(|link| link.unacknowledged.is_empty())
    }

    pub(crate) fn most_in_hand(&self) -> usize {
        self.most_in_hand
    }

    /// What the agents' counters add up to, of those that live.
    pub(crate) fn repeated(&self) -> u64 {
        let reports = self
            .replicas
            .iter()
            .map(|it| it.core.report(Memory::default(), self.now));
        reports.map(|report| report.counters.repeated).sum()
    }

    /// What the first agent reports now.
    pub(crate) fn report(&self) -> Report {
        self.replicas[0].core.report(Memory::default(), self.now)
    }

    /// Asks the first agent what it knows of a message.
    pub(crate) fn find(&mut self, id: MessageId) -> Value {
        let find = json!({"find": {"question": 7, "id": id}}).to_string();
        let core = &mut self.replicas[0].core;
        core.on_broker(Event::Answer(find.into()), self.now);
        while let Some(command) = core.take_command() {
            self.broker.obey(0, command, self.now);
        }
        self.broker.found.pop().expect("it answers")
    }

    /// An operator cancels a run: the control plane tells whoever is there, and whoever asks.
    pub(crate) fn cancel(&mut self, run: MessageId) {
        self.broker.cancelled.insert(run.to_string());
        let cancel = json!({"cancel": {"run": run}}).to_string();
        for replica in &mut self.replicas {
            let answer = Event::Answer(cancel.clone().into());
            replica.core.on_broker(answer, self.now);
        }
    }

    /// The control plane calls the trigger of the first agent.
    pub(crate) fn register(&mut self, register: &Value) {
        let call = json!({"register": register}).to_string();
        let core = &mut self.replicas[0].core;
        core.on_broker(Event::Answer(call.into()), self.now);
    }

    /// The calls to register that the first step has.
    pub(crate) fn calls_of_step(&self) -> &[Value] {
        &self.replicas[0].step.calls
    }

    /// The first step says something of its own accord.
    pub(crate) fn step_says(&mut self, frame: Value) {
        self.replicas[0].step.says.push_back(frame);
    }

    /// Somebody kills the first step process.
    pub(crate) fn kill_first_step(&mut self) {
        self.kill_step(0);
    }

    /// The first step takes no notice of what it has in hand.
    pub(crate) fn set_step_idle(&mut self, is_idle: bool) {
        self.replicas[0].step.is_idle = is_idle;
    }

    fn random(&mut self) -> u64 {
        // Xorshift: any numbers do, as long as a seed gives them again.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    /// Counts a call, and breaks what is to break before it.
    fn call(&mut self, replica: usize) {
        self.calls += 1;
        match self.cut {
            Cut::Agent(at) if at == self.calls => self.kill_agent(replica),
            Cut::Connection(at) if at == self.calls => self.lose_connection(replica, 0),
            Cut::Step(at) if at == self.calls => self.kill_step(replica),
            // So rarely that it gets somewhere in between.
            Cut::Chance(_) if self.calls < 3_000 => match self.random() % 400 {
                0 => self.kill_agent(replica),
                1 => self.lose_connection(replica, 0),
                2 => {
                    let turns = self.random() % 200;
                    self.lose_connection(replica, turns);
                }
                3 => self.kill_step(replica),
                4 => self.broker.refuses = true,
                5..20 => self.broker.refuses = false,
                20 | 21 => self.broker.ledger.is_away = true,
                22..30 => self.return_control_plane(),
                _ => {}
            },
            Cut::Chance(_) => {
                self.broker.refuses = false;
                self.return_control_plane();
            }
            _ => {}
        }
    }

    /// The control plane takes up what waited for it.
    pub(crate) fn return_control_plane(&mut self) {
        self.broker.ledger.is_away = false;
        for waiting in self.broker.ledger.take_waiting() {
            self.broker.note(waiting, self.now);
        }
    }

    fn kill_agent(&mut self, replica: usize) {
        let report = self.replicas[replica]
            .core
            .report(Memory::default(), self.now);
        self.broker.ledger.is_gone(&report.incarnation);
        self.broker.disconnect(replica);
        let number = u32::try_from(replica + 1).expect("there are few");
        let core = self.mind(number);
        let container = &mut self.replicas[replica];
        container.step = container.step.successor();
        container.verdicts = None;
        container.core = core;
    }

    fn lose_connection(&mut self, replica: usize, turns: u64) {
        let container = &mut self.replicas[replica];
        if self.broker.links[replica].is_up {
            container.down_until = self.now.instant + TURN * u32::try_from(turns).expect("few");
            self.broker.disconnect(replica);
            container.core.on_broker(
                Event::Down {
                    reason: "cut".into(),
                },
                self.now,
            );
        }
    }

    fn kill_step(&mut self, replica: usize) {
        let container = &mut self.replicas[replica];
        if container.step.is_there {
            container.step = container.step.successor();
            container
                .core
                .on_step_exit("was killed by the test", self.now);
        }
    }

    /// One round of everybody. Returns whether something happened.
    fn turn(&mut self) -> bool {
        self.now.instant += TURN;
        self.now.wall_ms += 20;
        let before = self.calls;
        for replica in 0..self.replicas.len() {
            self.turn_of(replica);
        }
        self.calls > before
    }

    fn turn_of(&mut self, replica: usize) {
        let now = self.now;
        let container = &mut self.replicas[replica];
        let link = &mut self.broker.links[replica];
        if !link.is_up && now.instant >= container.down_until {
            link.is_up = true;
            link.generation += 1;
            let generation = link.generation;
            container.core.on_broker(Event::Up { generation }, now);
        }
        if let Some(share) = self.share
            && link.is_up
            && container.core.wants_a_share()
        {
            let report = container.core.report(Memory::default(), now);
            container.core.send_report(&report);
            let number = report.pacing.expect("it has a rate").number;
            let answer = json!({"share": {"number": number, "per_second": share}});
            container
                .core
                .on_broker(Event::Answer(answer.to_string().into()), now);
        }
        container.core.advance(now);
        if container.core.wants_kill() {
            self.kill_step(replica);
        }
        let container = &mut self.replicas[replica];
        if container.core.wants_start(now) {
            container.step.is_there = true;
            container.core.on_step_start(now);
        }
        while let Some(command) = self.replicas[replica].core.take_command() {
            // What was on its way on a connection that is cut is void; see `obey`.
            self.call(replica);
            let recycled = self.broker.recycled.len();
            self.broker.obey(replica, command, now);
            if self.broker.recycled.len() > recycled {
                self.broker.is_mute = false;
                self.lose_connection(replica, 0);
            }
        }
        if self.replicas[replica].verdicts.is_some() {
            self.call(replica);
            // They are gone if the agent is.
            let container = &mut self.replicas[replica];
            if let Some(verdicts) = container.verdicts.take() {
                container.core.on_verdicts(verdicts, now);
            }
        }
        let container = &mut self.replicas[replica];
        if let Some(questions) = container.core.take_questions() {
            container.verdicts = Some(questions.iter().map(|it| judge(&it.message)).collect());
        }
        if self.broker.has_event(replica) {
            self.call(replica);
            if let Some(event) = self.broker.next_event(replica) {
                self.replicas[replica].core.on_broker(event, now);
            }
        }
        let container = &mut self.replicas[replica];
        let written = std::mem::take(container.core.to_step());
        let handed = container.step.read(&written);
        self.together.append(&mut container.step.together);
        self.look(replica, &handed);
        let container = &mut self.replicas[replica];
        if container.core.reads_step() && container.step.has_something_to_say() {
            self.call(replica);
            let target = &mut self.target;
            match self.replicas[replica].step.next(target) {
                Some(Said::Line(line)) => {
                    let core = &mut self.replicas[replica].core;
                    let line = line
                        .as_str()
                        .map_or_else(|| line.to_string(), str::to_owned);
                    core.on_step_line(line.as_bytes(), now);
                }
                Some(Said::Dies) => self.kill_step(replica),
                Some(Said::KillsContainer) => self.kill_agent(replica),
                None => {}
            }
        }
    }

    /// Looks whether what was handed over should have been.
    fn look(&mut self, replica: usize, handed: &[Value]) {
        let in_hand = &self.replicas[replica].step.in_hand;
        self.most_in_hand = self.most_in_hand.max(in_hand.len());
        for message in handed {
            self.uncertain += u32::from(message["uncertain"] == true);
            if !self.start.settings.once {
                continue;
            }
            let id = message["id"].as_str().expect("an id");
            // Whoever was cut off for longer than a lease may say late that it is settled: somebody
            // else has taken it over by then, and knows that it is uncertain.
            let is_taken_over = self.replicas.len() > 1 && message["uncertain"] == true;
            assert!(
                is_taken_over || !self.broker.ledger.is_settled(id),
                "{id} is settled, and handed over again ({:?})",
                self.cut
            );
            let others = self.replicas.iter().enumerate();
            let mut others = others.filter(|(other, _)| *other != replica);
            assert!(
                others.all(|(_, it)| it.step.in_hand.iter().all(|other| other["id"] != id)),
                "{id} is in the hands of two replicas ({:?})",
                self.cut
            );
        }
    }
}

/// How long a turn takes.
const TURN: Duration = Duration::from_millis(20);

impl Broker {
    fn disconnect(&mut self, replica: usize) {
        let link = &mut self.links[replica];
        link.is_up = false;
        link.is_consuming = false;
        link.answers.clear();
        for queued in std::mem::take(&mut link.unacknowledged).into_values().rev() {
            self.give_back(queued);
        }
    }

    /// Everything in the queue was published twice.
    pub(crate) fn deliver_all_twice(&mut self) {
        let copies: Vec<Queued> = self.queue.iter().cloned().collect();
        self.queue.extend(copies);
    }

    fn give_back(&mut self, mut queued: Queued) {
        queued.origin.is_redelivered = true;
        queued.origin.returns += 1;
        self.queue.push_front(queued);
    }

    fn obey(
        &mut self,
        replica: usize,
        Addressed {
            generation,
            command,
        }: Addressed,
        now: Now,
    ) {
        let link = &mut self.links[replica];
        if generation != link.generation || !link.is_up {
            return;
        }
        match command {
            Command::Publish(publish) => self.publish(replica, &publish, now),
            Command::Ack { tag, multiple } => {
                let unacknowledged = &mut link.unacknowledged;
                assert!(
                    multiple || unacknowledged.contains_key(&tag),
                    "{tag} was acknowledged twice: the broker closes the channel"
                );
                let first = if multiple { 0 } else { tag };
                let gone: Vec<u64> = unacknowledged
                    .range(first..=tag)
                    .map(|(tag, _)| *tag)
                    .collect();
                assert!(!gone.is_empty(), "up to {tag} nothing is unacknowledged");
                for tag in gone {
                    unacknowledged.remove(&tag);
                }
            }
            Command::Requeue { tag } => {
                let queued = link
                    .unacknowledged
                    .remove(&tag)
                    .expect("only what is held is given back");
                self.give_back(queued);
            }
            Command::Consume => link.is_consuming = true,
            Command::Stop => {
                link.is_consuming = false;
                link.answers.push_back(Event::Stopped);
            }
            Command::Recycle { reason } => self.recycled.push(reason),
            Command::Close => {}
        }
    }

    fn publish(&mut self, replica: usize, publish: &Publish, now: Now) {
        let number = publish.number;
        let is_refused = match publish.content {
            Content::Report => false,
            // Refused, it is given up.
            Content::Runs => self.refuses_reports,
            _ => self.refuses,
        };
        if is_refused {
            self.links[replica].answers.push_back(Event::Confirmed {
                number,
                accepted: false,
            });
            return;
        }
        let lines = publish
            .payload
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let values = lines.map(|line| serde_json::from_slice(line).expect("lines are JSON"));
        match publish.content {
            Content::Dead => self.dead.extend(values),
            Content::News => {
                let news: Vec<Value> = values.collect();
                if let Some(run) = news[0]["ask_checkpoint"]["run"].as_str() {
                    let saved = self
                        .news
                        .iter()
                        .rev()
                        .find_map(|news| news["checkpoint"]["value"].as_u64());
                    let cancelled = self.cancelled.contains(run);
                    let answer = json!({"checkpoint": {
                        "run": run, "checkpoint": saved, "cancelled": cancelled}})
                    .to_string();
                    self.links[replica]
                        .answers
                        .push_back(Event::Answer(answer.into()));
                }
                if let Some(value) = news[0]["checkpoint"]["value"].as_u64() {
                    self.told.push(Told::Checkpoint(value));
                }
                self.news.extend(news);
            }
            Content::Ledger => {
                let entry = serde_json::from_slice(&publish.payload).expect("an entry");
                let generation = self.links[replica].generation;
                self.note((replica, generation, entry), now);
            }
            Content::Runs => {
                let (head, entries) =
                    towpath_protocol::runs::read(&publish.payload).expect("a report");
                let branches: &[&str] = &["", "odd", "other/small", "other/torn", "small", "torn"];
                let ways = [&["next,other"], branches];
                let said: Vec<String> = head.ways.iter().map(|steps| steps.join(",")).collect();
                assert!(ways.iter().any(|ways| *ways == said), "{said:?}");
                self.told.extend(entries.into_iter().map(Told::Run));
            }
            Content::Report => {}
            Content::Found => self.found.extend(values),
            Content::Waiting => self.waiting.extend(values),
            Content::Batch if &*publish.exchange == "outputs" => {
                let values: Vec<Value> = values.collect();
                let to = self.to.entry(publish.key.to_string()).or_default();
                to.extend(values.iter().cloned());
                self.outputs.extend(values);
            }
            Content::Sorted => panic!("this step keeps no order"),
            // A delay: it is over at once.
            Content::Batch | Content::Returned(_) => {
                let returns = match publish.content {
                    Content::Returned(returns) => returns,
                    _ => 0,
                };
                self.queue.push_back(Queued {
                    payload: publish.payload.clone(),
                    origin: Origin {
                        is_redelivered: false,
                        returns,
                    },
                });
            }
        }
        self.links[replica].answers.push_back(Event::Confirmed {
            number,
            accepted: true,
        });
    }

    /// The control plane takes an entry from the ledger's queue, and answers if its asker is there.
    fn note(&mut self, waiting: ledger::Waiting, now: Now) {
        let (replica, generation, _) = waiting;
        let Some(answer) = self.ledger.note(waiting, now.instant) else {
            return;
        };
        let link = &mut self.links[replica];
        if link.is_up && link.generation == generation {
            let answer = serde_json::to_vec(&answer).expect("an answer is JSON");
            link.answers.push_back(Event::Answer(answer.into()));
        }
    }

    fn has_event(&self, replica: usize) -> bool {
        let link = &self.links[replica];
        let delivers = link.is_consuming
            && link.unacknowledged.len() < self.prefetch
            && !self.queue.is_empty();
        !self.is_mute && (!link.answers.is_empty() || delivers)
    }

    fn next_event(&mut self, replica: usize) -> Option<Event> {
        if !self.has_event(replica) {
            return None;
        }
        let link = &mut self.links[replica];
        if let Some(event) = link.answers.pop_front() {
            return Some(event);
        }
        let queued = self.queue.pop_front()?;
        link.tag += 1;
        link.unacknowledged.insert(link.tag, queued.clone());
        Some(Event::Delivery {
            queue: 0,
            tag: link.tag,
            is_batch: true,
            origin: queued.origin,
            payload: queued.payload,
        })
    }
}

enum Said {
    Line(Value),
    Dies,
    KillsContainer,
}

impl Step {
    /// The process that is started in its place.
    fn successor(&self) -> Self {
        Self {
            is_idle: self.is_idle,
            ..Self::default()
        }
    }

    /// What it has in hand is a tick of a trigger that hears nothing.
    fn is_deaf(&self) -> bool {
        let first = self.in_hand.first();
        first.is_some_and(|message| message["payload"]["deaf"] == true)
    }

    fn has_call(&self, id: &Value) -> bool {
        let mut calls = self.calls.iter();
        calls.any(|call| call["activate"]["id"] == *id || call["deactivate"]["id"] == *id)
    }

    /// Takes what the agent wrote; returns the messages that were handed over.
    fn read(&mut self, bytes: &[u8]) -> Vec<Value> {
        self.turns += 1;
        let mut handed = Vec::new();
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let frame: Value = serde_json::from_slice(line).expect("frames are JSON");
            let (kind, value) = frame
                .as_object()
                .and_then(|frame| frame.iter().next())
                .expect("one key");
            match kind.as_str() {
                "hello" => self.says.push_back(json!({"ready": {"contract": 1}})),
                "batch" => {
                    assert!(self.in_hand.is_empty(), "one batch at a time");
                    assert_eq!(self.announced, 0, "the batch before is not complete");
                    self.announced = value["count"].as_u64().expect("a number");
                    self.together.push(Vec::new());
                }
                "message" | "tick" => {
                    if self.announced == 0 {
                        self.together.push(Vec::new());
                    }
                    self.announced = self.announced.saturating_sub(1);
                    let id = value["id"].as_str().expect("an id").to_owned();
                    self.together.last_mut().expect("one").push(id);
                    self.slow.insert(value["id"].to_string(), self.turns);
                    self.has_streamed = false;
                    self.is_to_finish = false;
                    self.in_hand.push(value.clone());
                    handed.push(value.clone());
                }
                "finish" => self.is_to_finish = true,
                "activate" | "deactivate" => self.calls.push(frame.clone()),
                "cancel" if self.has_call(&value["id"]) => {
                    self.calls.clear();
                    let failed = json!({"id": value["id"], "fate": "retry", "reason": "cancelled"});
                    self.says.push_back(json!({"failed": failed}));
                }
                "cancel" if self.is_deaf() => {}
                // Every other one is deaf.
                "cancel" if self.turns.is_multiple_of(2) => {
                    self.in_hand.retain(|message| message["id"] != value["id"]);
                    let id = &value["id"];
                    self.says.push_back(
                        json!({"failed": {"id": id, "fate": "retry", "reason": "cancelled"}}),
                    );
                }
                _ => {}
            }
        }
        let mut ids = BTreeSet::new();
        for message in &self.in_hand {
            assert!(
                ids.insert(message["id"].to_string()),
                "{} is in hand twice",
                message["id"]
            );
        }
        handed
    }

    fn has_something_to_say(&self) -> bool {
        !self.says.is_empty()
            || (!self.is_idle && self.in_hand.iter().any(|message| self.is_ripe(message)))
    }

    fn is_ripe(&self, message: &Value) -> bool {
        if message["payload"]["do"] == "stream" {
            let listens = message["payload"]["listens"] == true;
            return !self.has_streamed || (listens && self.is_to_finish);
        }
        let since = self.slow.get(&message["id"].to_string());
        message["body"]["do"] != "slow"
            || since.is_none_or(|since| self.turns >= since + SLOW_TURNS)
    }

    /// A stream has seven items more than where it was, saves its position after five of them, and
    /// then stays where it is until it is told to finish.
    fn stream(&mut self, index: usize) -> Option<Value> {
        let tick = self.in_hand[index].clone();
        let (id, from) = (&tick["id"], tick["checkpoint"].as_u64().unwrap_or(0));
        let checkpoint = |number: u64, value: u64| json!({"checkpoint": {"id": id, "number": number, "value": value}});
        if self.is_to_finish {
            self.in_hand.remove(index);
            self.says.push_back(checkpoint(2, from + 7));
            self.says.push_back(json!({"done": {"id": id}}));
            return self.says.pop_front();
        }
        self.has_streamed = true;
        for number in from..from + 7 {
            let source_id = number.to_string();
            self.says
                .push_back(json!({"emit": {"id": id, "source_id": source_id, "body": number}}));
            if number == from + 4 {
                self.says.push_back(checkpoint(1, number + 1));
            }
        }
        self.says.pop_front()
    }

    /// Makes one message of those that have the same `key` and were handed over together: its body
    /// says which. Of those with a `chain`, one of each two neighbours.
    fn join(&mut self, target: &mut BTreeMap<String, u32>) -> bool {
        if self.announced > 0 {
            return false;
        }
        let all = std::mem::take(&mut self.in_hand);
        let (joined, rest): (Vec<Value>, Vec<Value>) =
            all.into_iter().partition(|it| it["body"]["key"].is_u64());
        self.in_hand = rest;
        let mut groups: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for message in joined {
            let key = message["body"]["key"].as_u64().expect("a number");
            groups.entry(key).or_default().push(message);
        }
        let mut answers = Vec::new();
        let has_any = !groups.is_empty();
        for group in groups.into_values() {
            let ids: Vec<Value> = group.iter().map(|it| it["id"].clone()).collect();
            let is_chain = group[0]["body"]["chain"] == true;
            let parts: Vec<&[Value]> = if is_chain && ids.len() > 1 {
                ids.windows(2).collect()
            } else {
                ids.chunks(ids.len()).collect()
            };
            for part in parts {
                let mut with = part[1..].to_vec();
                if group.iter().any(|it| it["body"]["do"] == "stranger") {
                    with.push(json!(MessageId::from_bytes([0xff; 16])));
                }
                // As a line, because the order of its keys matters.
                let padding = group.iter().any(|it| it["body"]["do"] == "large");
                let padding = "x".repeat(if padding && part.len() > 1 { 2_000 } else { 0 });
                let (with, body) = (json!(with), json!([part, padding]));
                let emit = format!(
                    r#"{{"emit":{{"id":{},"with":{with},"body":{body}}}}}"#,
                    part[0]
                );
                self.says.push_back(Value::String(emit));
            }
            for message in group {
                let id = message["id"].clone();
                let name = id.as_str().expect("an id").to_owned();
                *target.entry(name).or_default() += 1;
                answers.push(match message["body"]["do"].as_str() {
                    Some("fail_once") if message["attempt"].as_u64().unwrap_or(1) == 1 => {
                        json!({"failed": {"id": id, "fate": "retry", "reason": "once"}})
                    }
                    Some("permanent") => {
                        json!({"failed": {"id": id, "fate": "permanent", "reason": "never"}})
                    }
                    _ => json!({"done": {"id": id}}),
                });
            }
            // Some say first all that they made, others answer as they go.
            if self.turns.is_multiple_of(2) {
                self.says.extend(answers.drain(..));
            }
        }
        self.says.extend(answers);
        has_any
    }

    /// Handles a message: what it writes outside is in `target`, which it asks first if the message
    /// may have been handled before.
    fn next(&mut self, target: &mut BTreeMap<String, u32>) -> Option<Said> {
        if let Some(frame) = self.says.pop_front() {
            return Some(Said::Line(frame));
        }
        if self
            .in_hand
            .iter()
            .any(|message| message["body"]["do"] == "poison")
        {
            return Some(Said::Dies);
        }
        if self
            .in_hand
            .iter()
            .any(|message| message["body"]["do"] == "kill_container")
        {
            return Some(Said::KillsContainer);
        }
        if self.join(target) {
            return self.says.pop_front().map(Said::Line);
        }
        // The target refuses all of a batch for the sake of one.
        if self.in_hand.len() > 1 && self.in_hand.iter().any(|it| it["body"]["do"] == "spoils") {
            for message in self.in_hand.drain(..) {
                let id = &message["id"];
                self.says.push_back(
                    json!({"failed": {"id": id, "fate": "permanent", "reason": "one of you"}}),
                );
            }
            return self.says.pop_front().map(Said::Line);
        }
        let index = self.in_hand.iter().rposition(|it| self.is_ripe(it))?;
        if self.in_hand[index]["payload"]["do"] == "stream" {
            return self.stream(index).map(Said::Line);
        }
        let message = self.in_hand.remove(index);
        let name = message["id"].as_str().expect("an id").to_owned();
        let is_there = target.contains_key(&name);
        if message["uncertain"] != true || !is_there {
            *target.entry(name).or_default() += 1;
        }
        let id = message["id"].clone();
        let attempt = message["attempt"].as_u64().unwrap_or(1);
        let mut say = |frame: Value| self.says.push_back(frame);
        if message.get("why").is_some() {
            let from = message["checkpoint"].as_u64().unwrap_or(0);
            for number in from..30 {
                say(json!({"emit": {"id": id, "source_id": number.to_string(), "body": number}}));
                if number % 5 == 4 {
                    say(
                        json!({"checkpoint": {"id": id, "number": number + 1, "value": number + 1}}),
                    );
                }
            }
            say(json!({"done": {"id": id}}));
            return self.says.pop_front().map(Said::Line);
        }
        match message["body"]["do"].as_str() {
            Some("fail_once") if attempt == 1 => {
                say(json!({"emit": {"id": id, "body": "void"}}));
                say(json!({"log": {"id": id, "level": "info", "text": "not yet"}}));
                say(json!({"failed": {"id": id, "fate": "retry", "reason": "once"}}));
            }
            Some("permanent" | "spoils") => {
                say(json!({"log": {"id": id, "level": "info", "text": "I shall not"}}));
                say(json!({"failed": {"id": id, "fate": "permanent", "reason": "never"}}));
            }
            Some("flood") => {
                for number in 0..40 {
                    say(json!({"emit": {"id": id, "body": number}}));
                }
                say(json!({"done": {"id": id}}));
            }
            _ => {
                say(json!({"emit": {"id": id, "body": 1}}));
                say(json!({"emit": {"id": id, "body": 2}}));
                say(json!({"done": {"id": id}}));
            }
        }
        self.says.pop_front().map(Said::Line)
    }
}

/// A port that leads to nobody but branches: to `odd` what is odd, to `small` what is below 5, and to
/// `torn` nothing, because its condition fails for what is 2. The last two hand messages to another
/// flow.
fn branches() -> Output {
    let branch = |step: &str| Branch {
        step: step.into(),
        key: step.into(),
        batch_max: 2,
        in_order: false,
        when: Some(step.into()),
        handed_to: match step {
            "odd" => Vec::new(),
            step => vec![format!("other/{step}")],
        },
    };
    Output {
        exchange: None,
        key: None,
        batch_max: 3,
        in_order: false,
        steps: Vec::new(),
        branches: ["odd", "small", "torn"].map(branch).into(),
    }
}

/// What the conditions of [`branches`] say of an output.
fn judge(message: &[u8]) -> Vec<Holds> {
    let message: Value = serde_json::from_slice(message).expect("an output is JSON");
    let body = message["body"].as_u64().expect("a number");
    let holds = |yes| if yes { Holds::Yes } else { Holds::No };
    let torn = if body == 2 {
        Holds::Failed("it is torn".into())
    } else {
        Holds::No
    };
    vec![holds(body % 2 == 1), holds(body < 5), torn]
}

fn start(kind: Kind, concurrency: u32) -> Start {
    Start {
        contract: 1,
        broker_url: String::new(),
        identity: Identity {
            instance: "sim".into(),
            flow: "flow".into(),
            step: "step".into(),
            replica: 1,
            spec: "0".into(),
        },
        kind,
        routes: Routes {
            queue: "in".into(),
            order: None,
            outputs_exchange: "outputs".into(),
            outputs: BTreeMap::from([(
                "out".to_owned(),
                Output {
                    exchange: None,
                    key: Some("out".into()),
                    batch_max: 3,
                    in_order: false,
                    branches: Vec::new(),
                    steps: vec!["next".into(), "other".into()],
                },
            )]),
            own_key: "flow.step".into(),
            steps_exchange: "steps".into(),
            delay_exchanges: (0..DELAY_LEVELS)
                .map(|level| format!("delay.{level}"))
                .collect(),
            dead_exchange: "dead".into(),
            office_exchange: "office".into(),
        },
        config: serde_json::value::to_raw_value(&json!({})).expect("JSON"),
        env: BTreeMap::new(),
        redact: Vec::new(),
        settings: Settings {
            mode: Mode::Frames,
            concurrency,
            timeout_ms: 0,
            retry: Retry {
                attempts: 3,
                initial_ms: 250,
                factor: 1.0,
                max_ms: 1000,
                jitter: 0.5,
            },
            rebounds_max: 3,
            once: false,
            stream: false,
            track: false,
            from_flows: false,
            body_bytes_max: 1000,
            drain_ms: 1000,
            memory_bytes: 0,
        },
        handing: Handing::default(),
        paused: false,
    }
}

/// The ids of the outputs that these messages must have caused.
pub(crate) fn expected(bodies: &[Value], ids: &[MessageId]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (body, id) in bodies.iter().zip(ids) {
        let count = match body["do"].as_str() {
            Some("permanent" | "spoils" | "poison" | "kill_container") => 0,
            Some("flood") => 40,
            _ => 2,
        };
        all.extend(
            (0..count).map(|index| MessageId::derive(*id, "step", "out", index).to_string()),
        );
    }
    all
}

/// The ids of outputs.
pub(crate) fn ids(outputs: &[Value]) -> BTreeSet<String> {
    outputs
        .iter()
        .map(|output| output["id"].as_str().expect("an id").to_owned())
        .collect()
}

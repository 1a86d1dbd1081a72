//! The agent's real mind in a simulated world: a broker that keeps what it confirmed, a step that
//! answers, and a clock that jumps. Whoever holds the world may cut anything off at any call.
#![expect(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use towpath_agent::broker::{Addressed, Command, Content, Event, Publish};
use towpath_agent::clock::Now;
use towpath_agent::core::{Core, Memory};
use towpath_agent::limits::Limits;
use towpath_agent::log::Logger;
use towpath_agent::redact::Redact;
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;
use towpath_protocol::office::Report;
use towpath_protocol::start::{
    DELAY_LEVELS, Identity, Mode, Output, Retry, Routes, Settings, Start,
};

/// What goes wrong, and when: the number of the call before which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing.
    Never,
    /// The agent is killed.
    Agent(usize),
    /// The connection is lost.
    Connection(usize),
    /// The step process dies.
    Step(usize),
    /// Some of each, by chance.
    Chance(u64),
}

/// Everything but the agent.
pub(crate) struct World {
    pub(crate) broker: Broker,
    step: Step,
    core: Core,
    start: Start,
    now: Now,
    cut: Cut,
    pub(crate) calls: usize,
    chance: u64,
    lives: u64,
}

/// A broker: what it confirmed, it keeps.
#[derive(Default)]
pub(crate) struct Broker {
    queue: VecDeque<Bytes>,
    unacknowledged: BTreeMap<u64, Bytes>,
    tag: u64,
    generation: u64,
    is_up: bool,
    is_consuming: bool,
    answers: VecDeque<Event>,
    /// The lines of outputs, as often as they were published.
    pub(crate) outputs: Vec<Value>,
    /// The dead letters.
    pub(crate) dead: Vec<Value>,
    /// News.
    pub(crate) news: Vec<Value>,
    /// Answers to questions.
    pub(crate) found: Vec<Value>,
    /// Notes about what went into the ladder.
    pub(crate) waiting: Vec<Value>,
    /// How often the agent wanted the connection made again, and why.
    pub(crate) recycled: Vec<String>,
    /// Nothing comes back any more: no confirms and no deliveries.
    pub(crate) is_mute: bool,
    /// What is published is refused.
    pub(crate) refuses: bool,
}

/// A step that answers one message at a time, the newest first.
#[derive(Default)]
struct Step {
    is_there: bool,
    in_hand: Vec<Value>,
    says: VecDeque<Value>,
    most_in_hand: usize,
    /// It does nothing.
    is_idle: bool,
}

impl World {
    pub(crate) fn new(
        cut: Cut,
        kind: Kind,
        concurrency: u32,
        bodies: &[Value],
        batch: usize,
    ) -> (Self, Vec<MessageId>) {
        let start = start(kind, concurrency);
        let now = Now::read();
        let mut broker = Broker::default();
        let mut ids = Vec::new();
        for (index, chunk) in bodies.chunks(batch).enumerate() {
            let mut payload = String::new();
            for (offset, body) in chunk.iter().enumerate() {
                let mut bytes = [9; 16];
                bytes[..8].copy_from_slice(&((index * batch + offset) as u64).to_be_bytes());
                let id = MessageId::from_bytes(bytes);
                writeln!(
                    payload,
                    r#"{{"id":"{id}","lineage":{{"run":"{id}","version":1,"at":1}},"body":{body}}}"#
                )
                .expect("a string takes it");
                ids.push(id);
            }
            broker.queue.push_back(payload.into());
        }
        let core = mind(&start, 1, now);
        let chance = if let Cut::Chance(seed) = cut { seed } else { 0 };
        let world = Self {
            broker,
            step: Step::default(),
            core,
            start,
            now,
            cut,
            calls: 0,
            chance,
            lives: 1,
        };
        (world, ids)
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
        panic!(
            "it does not come to rest: {} in the queue, {} unacknowledged, {} in hand, state {:?}",
            self.broker.queue.len(),
            self.broker.unacknowledged.len(),
            self.step.in_hand.len(),
            self.core.state()
        );
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.broker.queue.is_empty() && self.broker.unacknowledged.is_empty()
    }

    pub(crate) fn most_in_hand(&self) -> usize {
        self.step.most_in_hand
    }

    fn random(&mut self) -> u64 {
        // Xorshift: any numbers do, as long as a seed gives them again.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    /// Counts a call, and breaks what is to break before it.
    fn call(&mut self) {
        self.calls += 1;
        match self.cut {
            Cut::Agent(at) if at == self.calls => self.kill_agent(),
            Cut::Connection(at) if at == self.calls => self.lose_connection(),
            Cut::Step(at) if at == self.calls => self.kill_step(),
            // So rarely that it gets somewhere in between.
            Cut::Chance(_) if self.calls < 3_000 => match self.random() % 400 {
                0 => self.kill_agent(),
                1 | 2 => self.lose_connection(),
                3 => self.kill_step(),
                4 => self.broker.refuses = true,
                5..20 => self.broker.refuses = false,
                _ => {}
            },
            Cut::Chance(_) => self.broker.refuses = false,
            _ => {}
        }
    }

    fn kill_agent(&mut self) {
        self.lives += 1;
        self.broker.disconnect();
        self.step = Step::default();
        self.core = mind(&self.start, self.lives, self.now);
    }

    fn lose_connection(&mut self) {
        if self.broker.is_up {
            self.broker.disconnect();
            self.core.on_broker(
                Event::Down {
                    reason: "cut".into(),
                },
                self.now,
            );
        }
    }

    pub(crate) fn kill_step(&mut self) {
        if self.step.is_there {
            self.step = Step {
                most_in_hand: self.step.most_in_hand,
                ..Step::default()
            };
            self.core.on_step_exit("was killed by the test", self.now);
        }
    }

    /// Lets everything run for so many rounds of 20 ms.
    pub(crate) fn run_for(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.turn();
        }
    }

    /// What the agent reports now.
    pub(crate) fn report(&self) -> Report {
        self.core.report(Memory::default(), self.now)
    }

    /// Asks the agent what it knows of a message.
    pub(crate) fn find(&mut self, id: MessageId) -> Value {
        let find = json!({"find": {"question": 7, "id": id}}).to_string();
        self.core.on_broker(Event::Answer(find.into()), self.now);
        while let Some(command) = self.core.take_command() {
            self.broker.obey(command);
        }
        self.broker.found.pop().expect("it answers")
    }

    /// The step takes no notice of what it has in hand.
    pub(crate) fn set_step_idle(&mut self, is_idle: bool) {
        self.step.is_idle = is_idle;
    }

    /// One round of everybody. Returns whether something happened.
    fn turn(&mut self) -> bool {
        self.now.instant += Duration::from_millis(20);
        self.now.wall_ms += 20;
        let before = self.calls;
        if !self.broker.is_up {
            self.broker.is_up = true;
            self.broker.generation += 1;
            let generation = self.broker.generation;
            self.core.on_broker(Event::Up { generation }, self.now);
        }
        self.core.advance(self.now);
        if self.core.wants_kill() {
            self.kill_step();
        }
        if self.core.wants_start(self.now) {
            self.step.is_there = true;
            self.core.on_step_start(self.now);
        }
        while let Some(command) = self.core.take_command() {
            // What was on its way on a connection that is cut is void; see `obey`.
            self.call();
            let recycled = self.broker.recycled.len();
            self.broker.obey(command);
            if self.broker.recycled.len() > recycled {
                self.broker.is_mute = false;
                self.lose_connection();
            }
        }
        if self.broker.has_event() {
            self.call();
            if let Some(event) = self.broker.next_event() {
                self.core.on_broker(event, self.now);
            }
        }
        let written = std::mem::take(self.core.to_step());
        self.step.read(&written);
        if self.core.reads_step() && self.step.has_something_to_say() {
            self.call();
            match self.step.next() {
                Some(Said::Line(line)) => {
                    self.core
                        .on_step_line(line.to_string().as_bytes(), self.now);
                }
                Some(Said::Dies) => self.kill_step(),
                None => {}
            }
        }
        self.calls > before
    }
}

impl Broker {
    fn disconnect(&mut self) {
        self.is_up = false;
        self.is_consuming = false;
        self.answers.clear();
        for payload in std::mem::take(&mut self.unacknowledged).into_values().rev() {
            self.queue.push_front(payload);
        }
    }

    fn obey(
        &mut self,
        Addressed {
            generation,
            command,
        }: Addressed,
    ) {
        if generation != self.generation || !self.is_up {
            return;
        }
        match command {
            Command::Publish(publish) => self.publish(&publish),
            Command::Ack { tag, multiple } => {
                assert!(
                    multiple || self.unacknowledged.contains_key(&tag),
                    "{tag} was acknowledged twice: the broker closes the channel"
                );
                let first = if multiple { 0 } else { tag };
                let gone: Vec<u64> = self
                    .unacknowledged
                    .range(first..=tag)
                    .map(|(tag, _)| *tag)
                    .collect();
                assert!(!gone.is_empty(), "up to {tag} nothing is unacknowledged");
                for tag in gone {
                    self.unacknowledged.remove(&tag);
                }
            }
            Command::Requeue { tag } => {
                let payload = self
                    .unacknowledged
                    .remove(&tag)
                    .expect("only what is held is given back");
                self.queue.push_front(payload);
            }
            Command::Consume => self.is_consuming = true,
            Command::Stop => {
                self.is_consuming = false;
                self.answers.push_back(Event::Stopped);
            }
            Command::Recycle { reason } => self.recycled.push(reason),
            Command::Close => {}
        }
    }

    fn publish(&mut self, publish: &Publish) {
        let number = publish.number;
        if self.refuses && publish.content != Content::Report {
            self.answers.push_back(Event::Confirmed {
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
                    let answer =
                        json!({"checkpoint": {"run": run, "checkpoint": saved}}).to_string();
                    self.answers.push_back(Event::Answer(answer.into()));
                }
                self.news.extend(news);
            }
            Content::Report => {}
            Content::Found => self.found.extend(values),
            Content::Waiting => self.waiting.extend(values),
            Content::Batch if &*publish.exchange == "outputs" => self.outputs.extend(values),
            // A delay: it is over at once.
            Content::Batch => self.queue.push_back(publish.payload.clone()),
        }
        self.answers.push_back(Event::Confirmed {
            number,
            accepted: true,
        });
    }

    fn has_event(&self) -> bool {
        let delivers = self.is_consuming && self.unacknowledged.len() < 4 && !self.queue.is_empty();
        !self.is_mute && (!self.answers.is_empty() || delivers)
    }

    fn next_event(&mut self) -> Option<Event> {
        if !self.has_event() {
            return None;
        }
        if let Some(event) = self.answers.pop_front() {
            return Some(event);
        }
        let payload = self.queue.pop_front()?;
        self.tag += 1;
        self.unacknowledged.insert(self.tag, payload.clone());
        Some(Event::Delivery {
            tag: self.tag,
            is_batch: true,
            payload,
        })
    }
}

enum Said {
    Line(Value),
    Dies,
}

impl Step {
    fn read(&mut self, bytes: &[u8]) {
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
                "message" | "tick" => self.in_hand.push(value.clone()),
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
        self.most_in_hand = self.most_in_hand.max(self.in_hand.len());
    }

    fn has_something_to_say(&self) -> bool {
        !self.says.is_empty() || (!self.is_idle && !self.in_hand.is_empty())
    }

    fn next(&mut self) -> Option<Said> {
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
        let message = self.in_hand.pop()?;
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
            Some("permanent") => {
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

fn mind(start: &Start, seed: u64, now: Now) -> Core {
    let limits = Limits {
        held_outputs: 10,
        ..Limits::default()
    };
    let logger = Logger::silent(&start.identity, Redact::default());
    Core::new(start.clone(), limits, logger, seed, now)
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
            outputs_exchange: "outputs".into(),
            outputs: BTreeMap::from([(
                "out".to_owned(),
                Output {
                    key: "out".into(),
                    batch_max: 3,
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
            body_bytes_max: 1000,
            drain_ms: 1000,
            memory_bytes: 0,
        },
        paused: false,
    }
}

/// The ids of the outputs that these messages must have caused.
pub(crate) fn expected(bodies: &[Value], ids: &[MessageId]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (body, id) in bodies.iter().zip(ids) {
        let count = match body["do"].as_str() {
            Some("permanent" | "poison") => 0,
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

//! A step that keeps an order, in a simulated world where things break by chance: the agent's real
//! mind, several replicas of it, and a broker that gives each queue to one of them at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use towpath_agent::broker::{Addressed, Command, Content, Event, Origin, Publish};
use towpath_agent::clock::Now;
use towpath_agent::core::{Core, KeyQuestion, Memory, key_of};
use towpath_agent::limits::Limits;
use towpath_agent::log::Logger;
use towpath_agent::redact::Redact;
use towpath_protocol::MessageId;
use towpath_protocol::handing::Handing;
use towpath_protocol::manifest::Kind;
use towpath_protocol::office::Report;
use towpath_protocol::start::{
    DELAY_LEVELS, Identity, Mode, Order, Output, Partition, Retry, Routes, Settings, Start,
    partition_of,
};

const PARTITIONS: usize = 4;
const TURN: Duration = Duration::from_millis(20);

/// What can happen, in so many turns out of ten thousand.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    kill_agent: u64,
    lose_connection: u64,
    kill_step: u64,
    refuse: u64,
    drain: u64,
    pause: u64,
}

const NONE: Faults = Faults {
    kill_agent: 0,
    lose_connection: 0,
    kill_step: 0,
    refuse: 0,
    drain: 0,
    pause: 0,
};

#[derive(Clone)]
struct Queued {
    payload: Bytes,
    origin: Origin,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Queued>,
    /// Who consumes it, in the order in which they came; the first gets what is there.
    consumers: Vec<usize>,
}

struct Replica {
    core: Core,
    is_step_there: bool,
    /// What the step has, with the connection by which it came.
    in_hand: Vec<(Value, u64)>,
    says: VecDeque<Value>,
    keys: VecDeque<KeyQuestion>,
    unacknowledged: BTreeMap<u64, (usize, Queued)>,
    tag: u64,
    generation: u64,
    is_up: bool,
    down_turns: u64,
    answers: VecDeque<Event>,
    /// Deliveries on their way, by queue: those of several come in any order.
    arriving: Vec<VecDeque<Event>>,
    is_paused: bool,
    is_draining: bool,
}

struct World {
    now: Now,
    /// The intake, then the partitions.
    queues: Vec<Queue>,
    replicas: Vec<Replica>,
    outputs: Vec<Value>,
    dead: Vec<Value>,
    refuses: bool,
    faults: Faults,
    chance: u64,
    lives: u64,
    /// A newcomer that prefers a queue gets it, once nothing of it is in other hands (RabbitMQ 4).
    heeds_preference: bool,
    /// What was written, by key: the number, and whether the writer was cut off since it was given
    /// the message.
    written: BTreeMap<u64, Vec<(u64, bool)>>,
    most_in_hand: usize,
    deaths: u32,
}

fn id(key: u64, number: u64) -> MessageId {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&key.to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    MessageId::from_bytes(bytes)
}

fn line(key: u64, number: u64, action: &str) -> String {
    let id = id(key, number);
    format!(
        r#"{{"id":"{id}","lineage":{{"run":"{id}","version":1,"at":1}},"body":{{"key":{key},"number":{number},"do":"{action}"}}}}"#
    )
}

impl World {
    /// `lines` are in the intake, `batch` in a delivery.
    fn new(seed: u64, replicas: usize, faults: Faults, lines: &[String], batch: usize) -> Self {
        let mut world = Self {
            now: Now::read(),
            queues: (0..=PARTITIONS).map(|_| Queue::default()).collect(),
            replicas: Vec::new(),
            outputs: Vec::new(),
            dead: Vec::new(),
            refuses: false,
            faults,
            chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            lives: 0,
            heeds_preference: seed.is_multiple_of(2),
            written: BTreeMap::new(),
            most_in_hand: 0,
            deaths: 0,
        };
        for chunk in lines.chunks(batch) {
            world.queues[0].ready.push_back(Queued {
                payload: (chunk.join("\n") + "\n").into(),
                origin: Origin::default(),
            });
        }
        for number in 0..replicas {
            let replica = world.replica(number);
            world.replicas.push(replica);
        }
        world
    }

    fn replica(&mut self, number: usize) -> Replica {
        self.lives += 1;
        let limits = Limits {
            sort_ahead: 7,
            reattach: Duration::from_secs(2),
            suspect_patience: Duration::from_millis(400),
            cancel_grace: Duration::from_millis(200),
            ..Limits::default()
        };
        let start = start(u32::try_from(number + 1).expect("few"));
        let logger = Logger::silent(&start.identity, Redact::default());
        Replica {
            core: Core::new(start, limits, logger, self.lives, self.now),
            is_step_there: false,
            in_hand: Vec::new(),
            says: VecDeque::new(),
            keys: VecDeque::new(),
            unacknowledged: BTreeMap::new(),
            tag: 0,
            generation: 0,
            is_up: false,
            down_turns: 0,
            answers: VecDeque::new(),
            arriving: (0..=PARTITIONS).map(|_| VecDeque::new()).collect(),
            is_paused: false,
            is_draining: false,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % below
    }

    /// Lets everything run until nothing is left to do; what breaks, breaks in the first turns.
    #[track_caller]
    fn run(&mut self) {
        let mut quiet = 0;
        for turn in 0..60_000 {
            if turn == 4_000 {
                self.faults = NONE;
                self.refuses = false;
                for replica in &mut self.replicas {
                    if std::mem::take(&mut replica.is_paused) {
                        replica.core.resume();
                    }
                }
            }
            self.turn();
            quiet = if self.is_settled() { quiet + 1 } else { 0 };
            if quiet > 50 {
                return;
            }
        }
        let ready: Vec<usize> = self.queues.iter().map(|queue| queue.ready.len()).collect();
        let of: Vec<_> = self
            .replicas
            .iter()
            .map(|it| {
                (
                    it.unacknowledged.len(),
                    it.in_hand.len(),
                    it.is_paused,
                    it.is_draining,
                )
            })
            .collect();
        let reports: Vec<Report> = self
            .replicas
            .iter()
            .map(|it| it.core.report(Memory::default(), self.now))
            .collect();
        panic!("it does not come to rest: {ready:?} in the queues, {of:?}, {reports:#?}");
    }

    fn is_settled(&self) -> bool {
        self.queues.iter().all(|queue| queue.ready.is_empty())
            && self.replicas.iter().all(|it| it.unacknowledged.is_empty())
    }

    fn turn(&mut self) {
        self.now.instant += TURN;
        self.now.wall_ms += 20;
        for replica in 0..self.replicas.len() {
            self.break_something(replica);
            self.turn_of(replica);
        }
    }

    fn break_something(&mut self, replica: usize) {
        let faults = self.faults;
        let mut hit = |rate| {
            let throw = self.random(10_000);
            throw < rate
        };
        let (kill_agent, lose, kill_step) = (
            hit(faults.kill_agent),
            hit(faults.lose_connection),
            hit(faults.kill_step),
        );
        let (refuse, drain, pause) = (hit(faults.refuse), hit(faults.drain), hit(faults.pause));
        if refuse {
            self.refuses = !self.refuses;
        }
        if kill_agent {
            self.replace(replica);
        }
        if lose {
            let turns = self.random(150);
            self.lose_connection(replica, turns);
        }
        if kill_step && self.replicas[replica].is_step_there {
            self.kill_step(replica);
        }
        let it = &mut self.replicas[replica];
        if pause {
            it.is_paused = !it.is_paused;
            if it.is_paused {
                it.core.pause();
            } else {
                it.core.resume();
            }
        }
        if drain && !it.is_draining {
            it.is_draining = true;
            it.core.drain(self.now);
        }
    }

    /// Another container in its place.
    fn replace(&mut self, replica: usize) {
        self.deaths += 1;
        self.give_back(replica);
        let new = self.replica(replica);
        self.replicas[replica] = new;
    }

    fn lose_connection(&mut self, replica: usize, turns: u64) {
        if !self.replicas[replica].is_up {
            return;
        }
        self.give_back(replica);
        let it = &mut self.replicas[replica];
        it.is_up = false;
        it.down_turns = turns;
        it.answers.clear();
        let reason = "cut".to_owned();
        it.core.on_broker(Event::Down { reason }, self.now);
    }

    fn kill_step(&mut self, replica: usize) {
        let it = &mut self.replicas[replica];
        it.is_step_there = false;
        it.in_hand.clear();
        it.says.clear();
        it.core.on_step_exit("was killed by the test", self.now);
    }

    /// The channel is gone: the queues give all of it to the next, in its order.
    fn give_back(&mut self, replica: usize) {
        for arriving in &mut self.replicas[replica].arriving {
            arriving.clear();
        }
        let all = std::mem::take(&mut self.replicas[replica].unacknowledged);
        for (queue, mut queued) in all.into_values().rev() {
            queued.origin.is_redelivered = true;
            queued.origin.returns += 1;
            self.queues[queue].ready.push_front(queued);
        }
        for queue in &mut self.queues {
            queue.consumers.retain(|it| *it != replica);
        }
    }

    fn turn_of(&mut self, replica: usize) {
        let now = self.now;
        let it = &mut self.replicas[replica];
        if !it.is_up {
            if it.down_turns == 0 {
                it.is_up = true;
                it.generation += 1;
                let generation = it.generation;
                it.core.on_broker(Event::Up { generation }, now);
            } else {
                it.down_turns -= 1;
            }
        }
        it.core.advance(now);
        if it.core.has_drained() || it.core.drain_is_late(now) {
            self.replace(replica);
            return;
        }
        if it.core.wants_kill() {
            self.kill_step(replica);
        }
        let it = &mut self.replicas[replica];
        if it.core.wants_start(now) {
            it.is_step_there = true;
            it.core.on_step_start(now);
        }
        while let Some(question) = it.core.take_key_question() {
            it.keys.push_back(question);
        }
        while let Some(command) = self.replicas[replica].core.take_command() {
            self.obey(replica, command);
        }
        if self.random(3) > 0 {
            self.answer_key(replica);
        }
        for _ in 0..=self.random(3) {
            self.deliver(replica);
        }
        let it = &mut self.replicas[replica];
        let written = std::mem::take(it.core.to_step());
        self.read_step(replica, &written);
        self.step_works(replica);
    }

    fn answer_key(&mut self, replica: usize) {
        // Several are answered at a time, in any order.
        let it = &mut self.replicas[replica];
        let Some(question) = it.keys.pop_back() else {
            return;
        };
        let message: Value = serde_json::from_slice(&question.message).expect("it is JSON");
        let key = serde_json::value::to_raw_value(&message["body"]["key"]).expect("JSON");
        it.core.on_key(question.number, key_of(&[key]));
    }

    fn obey(&mut self, replica: usize, addressed: Addressed) {
        let it = &mut self.replicas[replica];
        if addressed.generation != it.generation || !it.is_up {
            return;
        }
        match addressed.command {
            Command::Publish(publish) => self.publish(replica, &publish),
            Command::Ack { tag, multiple } => {
                let first = if multiple { 0 } else { tag };
                let tags: Vec<u64> = it
                    .unacknowledged
                    .range(first..=tag)
                    .map(|it| *it.0)
                    .collect();
                assert!(!tags.is_empty(), "{tag} is acknowledged twice, or unknown");
                for tag in tags {
                    it.unacknowledged.remove(&tag);
                }
            }
            Command::Requeue { .. } => panic!("what is given back alone is overtaken"),
            Command::Consume => {
                for number in 0..self.queues.len() {
                    self.queues[number].consumers.push(replica);
                }
            }
            Command::Stop => {
                self.give_back(replica);
                self.replicas[replica].answers.push_back(Event::Stopped);
            }
            Command::Recycle { .. } => self.lose_connection(replica, 0),
            Command::Close => {}
        }
    }

    fn publish(&mut self, replica: usize, publish: &Publish) {
        let refused = self.refuses && self.random(2) == 0;
        let accepted = !refused || matches!(publish.content, Content::Report | Content::Dead);
        if accepted {
            let lines = publish.payload.split(|byte| *byte == b'\n');
            let values = lines
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice(line).expect("lines are JSON"));
            match publish.content {
                Content::Dead => self.dead.extend(values),
                Content::Batch if &*publish.exchange == "outputs" => self.outputs.extend(values),
                Content::Sorted => {
                    let partition = publish.key.strip_prefix("step.partition.");
                    let number: usize = partition.and_then(|it| it.parse().ok()).expect("one");
                    for value in values {
                        let value: Value = value;
                        let key = value["body"]["key"].to_string();
                        assert_eq!(value["key"], key, "the message says its key");
                        assert_eq!(partition_of(&key, PARTITIONS), number);
                    }
                    self.queues[number + 1].ready.push_back(Queued {
                        payload: publish.payload.clone(),
                        origin: Origin::default(),
                    });
                }
                Content::Ledger | Content::Report => {}
                other => panic!("{other:?} goes to {}: it would be overtaken", publish.key),
            }
        }
        let number = publish.number;
        let event = Event::Confirmed { number, accepted };
        self.replicas[replica].answers.push_back(event);
    }

    /// Who gets what is in a queue.
    fn active(&mut self, queue: usize) -> Option<usize> {
        let consumers = &mut self.queues[queue].consumers;
        if self.heeds_preference && consumers.len() > 1 {
            let first = consumers[0];
            let best = *consumers
                .iter()
                .max_by_key(|replica| partition_of(&format!("{queue} {replica}"), 1_000))
                .expect("there are two");
            let has_some = self.replicas[first]
                .unacknowledged
                .values()
                .any(|it| it.0 == queue);
            if best != first {
                if has_some {
                    // It gets no more, and the other gets nothing yet.
                    return None;
                }
                consumers.retain(|it| *it != best);
                consumers.insert(0, best);
            }
        }
        self.queues[queue].consumers.first().copied()
    }

    fn deliver(&mut self, replica: usize) {
        if !self.replicas[replica].is_up {
            return;
        }
        if let Some(answer) = self.replicas[replica].answers.pop_front() {
            self.replicas[replica].core.on_broker(answer, self.now);
            return;
        }
        let count = u64::try_from(self.queues.len()).expect("few");
        let queue = usize::try_from(self.random(count)).expect("few");
        if let Some(event) = self.replicas[replica].arriving[queue].pop_front() {
            self.replicas[replica].core.on_broker(event, self.now);
            return;
        }
        if self.active(queue) != Some(replica) {
            return;
        }
        let it = &mut self.replicas[replica];
        if it
            .unacknowledged
            .values()
            .filter(|it| it.0 == queue)
            .count()
            >= 2
        {
            return;
        }
        let Some(queued) = self.queues[queue].ready.pop_front() else {
            return;
        };
        it.tag += 1;
        it.unacknowledged.insert(it.tag, (queue, queued.clone()));
        let event = Event::Delivery {
            queue: u16::try_from(queue).expect("few"),
            tag: it.tag,
            is_batch: true,
            origin: queued.origin,
            payload: queued.payload,
        };
        it.arriving[queue].push_back(event);
    }

    fn read_step(&mut self, replica: usize, bytes: &[u8]) {
        for frame in bytes
            .split(|byte| *byte == b'\n')
            .filter(|it| !it.is_empty())
        {
            let frame: Value = serde_json::from_slice(frame).expect("frames are JSON");
            if frame.get("hello").is_some() {
                let ready = json!({"ready": {"contract": 1}});
                self.replicas[replica].says.push_back(ready);
            }
            if let Some(message) = frame.get("message") {
                self.look(replica, message);
                let generation = self.replicas[replica].generation;
                self.replicas[replica]
                    .in_hand
                    .push((message.clone(), generation));
            }
        }
        let in_hand = self.replicas[replica].in_hand.len();
        self.most_in_hand = self.most_in_hand.max(in_hand);
    }

    /// One at a time: of a key, nobody who is connected has another in hand, and this replica none at
    /// all, were it only from an earlier connection.
    fn look(&self, replica: usize, message: &Value) {
        let key = &message["body"]["key"];
        for (number, it) in self.replicas.iter().enumerate() {
            for (other, generation) in &it.in_hand {
                let is_cut_off = !it.is_up || it.generation != *generation;
                let is_beside = other["body"]["key"] == *key && (number == replica || !is_cut_off);
                assert!(
                    !is_beside,
                    "{message} is handed over while {other} is in hand"
                );
            }
        }
    }

    fn step_works(&mut self, replica: usize) {
        let pace = self.random(4);
        let choice = self.random(1_000);
        let it = &mut self.replicas[replica];
        if !it.core.reads_step() || !it.is_step_there {
            return;
        }
        if let Some(frame) = it.says.pop_front() {
            it.core.on_step_line(frame.to_string().as_bytes(), self.now);
            return;
        }
        if pace == 0 || it.in_hand.is_empty() {
            return;
        }
        let index = usize::try_from(choice).expect("few") % it.in_hand.len();
        let (message, generation) = it.in_hand.remove(index);
        let is_late = !it.is_up || it.generation != generation;
        let id = &message["id"];
        let attempt = message["attempt"].as_u64().unwrap_or(1);
        let fail = |fate: &str| json!({"failed": {"id": id, "fate": fate, "reason": "no"}});
        let answer = match message["body"]["do"].as_str() {
            Some("fail_twice") if attempt < 3 => fail("retry"),
            Some("later") if message["rebounds"].as_u64().unwrap_or(0) < 2 => {
                json!({"failed": {"id": id, "fate": "rebound", "delay_ms": 700, "reason": "later"}})
            }
            Some("permanent") => fail("permanent"),
            Some("always") => fail("retry"),
            _ => {
                let number = |name: &str| message["body"][name].as_u64().expect("a number");
                let written = self.written.entry(number("key")).or_default();
                written.push((number("number"), is_late));
                it.says.push_back(json!({"emit": {"id": id, "body": 1}}));
                json!({"done": {"id": id}})
            }
        };
        it.says.push_back(answer);
    }
}

fn start(replica: u32) -> Start {
    let partitions = (0..PARTITIONS).map(|number| Partition {
        queue: format!("in.{number}"),
        key: format!("step.partition.{number}"),
    });
    Start {
        contract: 1,
        broker_url: String::new(),
        identity: Identity {
            instance: "sim".into(),
            flow: "flow".into(),
            step: "step".into(),
            replica,
            spec: "0".into(),
        },
        kind: Kind::Action,
        routes: Routes {
            queue: "in".into(),
            order: Some(Order {
                by: ".key".into(),
                partitions: partitions.collect(),
                batch_max: 16,
            }),
            outputs_exchange: "outputs".into(),
            outputs: BTreeMap::from([(
                "out".to_owned(),
                Output {
                    exchange: None,
                    key: Some("out".into()),
                    batch_max: 3,
                    in_order: false,
                    steps: vec!["next".into()],
                    branches: Vec::new(),
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
            concurrency: 3,
            timeout_ms: 0,
            retry: Retry {
                attempts: 4,
                initial_ms: 500,
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
            drain_ms: 3000,
            memory_bytes: 0,
        },
        handing: Handing::default(),
        paused: false,
    }
}

const KEYS: u64 = 9;
const NUMBERS: u64 = 12;

/// Messages of some keys, each key's numbered; some fail, come back later, or are given up.
fn lines() -> Vec<String> {
    let mut lines = Vec::new();
    for number in 0..NUMBERS {
        for key in 0..KEYS {
            let action = match (key, number) {
                (1, 3) | (2, 5) => "fail_twice",
                (3, 2) => "later",
                (4, 4) => "permanent",
                (5, 6) => "always",
                _ => "",
            };
            lines.push(line(key, number, action));
        }
    }
    lines
}

/// The numbers of a key that the step writes.
fn numbers(key: u64) -> Vec<u64> {
    let is_given_up = |number: &u64| matches!((key, *number), (4, 4) | (5, 6));
    (0..NUMBERS).filter(|number| !is_given_up(number)).collect()
}

#[track_caller]
fn check(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, 3, faults, &lines(), 5);
    world.run();
    let dead: BTreeSet<String> = world
        .dead
        .iter()
        .map(|letter| letter["message"]["id"].as_str().expect("an id").to_owned())
        .collect();
    for key in 0..KEYS {
        let written = &world.written[&key];
        let mut first = Vec::new();
        for (number, _) in written {
            if !first.contains(number) {
                first.push(*number);
            }
        }
        let expect: Vec<u64> = numbers(key)
            .into_iter()
            // Who dies three times with a message alone in hand has given it up.
            .filter(|number| {
                first.contains(number) || !dead.contains(&id(key, *number).to_string())
            })
            .collect();
        assert_eq!(first, expect, "key {key}, seed {seed}: {written:?}");
        // What is handled again is followed by all that came after it: the newest stays the newest.
        let last = written.iter().rev().find(|(_, is_late)| !is_late);
        let newest = expect.last().expect("there are some");
        let is_newest =
            last.is_none_or(|(number, _)| number == newest) || written.contains(&(*newest, true));
        assert!(is_newest, "key {key}, seed {seed}: {written:?}");
    }
    world
}

#[test]
fn messages_of_one_key_are_handled_in_order_one_at_a_time() {
    let faults = Faults {
        kill_agent: 12,
        lose_connection: 30,
        kill_step: 10,
        refuse: 20,
        drain: 12,
        pause: 15,
    };
    let mut deaths = 0;
    for seed in 1..=250 {
        deaths += check(seed, faults).deaths;
    }
    assert!(deaths > 250, "{deaths} replicas went in the middle of it");
}

#[test]
fn without_a_fault_each_is_handled_once_and_partitions_do_not_wait_for_each_other() {
    for seed in 1..=20 {
        let world = check(seed, NONE);
        for (key, written) in &world.written {
            let written: Vec<u64> = written.iter().map(|it| it.0).collect();
            assert_eq!(written, numbers(*key), "seed {seed}");
        }
        assert!(world.most_in_hand > 1, "partitions go on beside each other");
        let causes: Vec<&Value> = world.dead.iter().map(|letter| &letter["cause"]).collect();
        assert_eq!(causes.len(), 2, "{causes:?}");
        let attempts = world
            .dead
            .iter()
            .find(|letter| letter["cause"] == "attempts");
        let attempts = attempts.and_then(|letter| letter["attempts"].as_array());
        assert_eq!(
            attempts.map(Vec::len),
            Some(4),
            "all attempts are remembered"
        );
    }
}

#[test]
fn a_retry_holds_its_partition_and_no_other() {
    // Key 0 fails for two seconds; the keys of other partitions go on.
    let of = |key: u64| partition_of(&key.to_string(), PARTITIONS);
    let other = (1..99).find(|key| of(*key) != of(0)).expect("there is one");
    let same = (1..99).find(|key| of(*key) == of(0)).expect("there is one");
    let lines = [
        line(0, 0, "always"),
        line(0, 1, ""),
        line(same, 0, ""),
        line(other, 0, ""),
        line(other, 1, ""),
    ];
    let mut world = World::new(1, 1, NONE, &lines, 5);
    for _ in 0..60 {
        world.turn();
    }
    assert_eq!(world.written.get(&other).map(Vec::len), Some(2));
    assert_eq!(
        world.written.get(&0),
        None,
        "it waits for the one before it"
    );
    assert_eq!(
        world.written.get(&same),
        None,
        "so does what shares its partition"
    );
    let report = world.replicas[0].core.report(Memory::default(), world.now);
    let reason = report.reason.expect("it says why");
    assert!(
        reason.starts_with("1 messages are held until they are tried again"),
        "{reason}"
    );
    world.run();
    assert_eq!(world.dead.len(), 1);
    assert_eq!(
        world.written[&0],
        [(1, false)],
        "it goes on without the dead letter"
    );
    assert_eq!(world.written[&same], [(0, false)]);
}

#[test]
fn a_message_without_a_key_is_a_dead_letter_and_the_others_go_on() {
    let without = line(0, 0, "").replace("\"key\":0", "\"key\":null");
    let lines = [without, "no message".to_owned(), line(1, 0, "")];
    let mut world = World::new(1, 1, NONE, &lines, 3);
    world.run();
    assert_eq!(world.written[&1], [(0, false)]);
    let letters: Vec<(&Value, &Value)> = world
        .dead
        .iter()
        .map(|letter| (&letter["cause"], &letter["reason"]))
        .collect();
    let reason = "no key to order it by: the expression gives null";
    assert!(
        letters.contains(&(&json!("key"), &json!(reason))),
        "{letters:?}"
    );
    assert_eq!(letters.len(), 2);
}

#[test]
fn a_full_partition_holds_no_other_up_and_stops_no_drain() {
    let lines: Vec<String> = (0..40)
        .map(|number| line(number % 8, number / 8, ""))
        .collect();
    let mut world = World::new(3, 1, NONE, &lines, 5);
    world.refuses = true;
    for _ in 0..200 {
        world.turn();
    }
    world.replicas[0].core.pause();
    for _ in 0..400 {
        world.turn();
    }
    let report = world.replicas[0].core.report(Memory::default(), world.now);
    assert_eq!((report.held, report.unacknowledged), (0, 0), "{report:?}");
    world.refuses = false;
    world.replicas[0].core.resume();
    world.run();
    let written: usize = world.written.values().map(Vec::len).sum();
    assert_eq!(written, 40);
}

//! A small topology on a real broker, and the real agent with the test step.
#![expect(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use towpath_protocol::MessageId;
use towpath_protocol::handing::Handing;
use towpath_protocol::manifest::Kind;
use towpath_protocol::message::BATCH_TYPE;
use towpath_protocol::office::Report;
use towpath_protocol::start::{
    DELAY_LEVELS, Identity, Mode, Output, Retry, Routes, Settings, Start,
};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The broker's URL.
pub(crate) fn broker_url() -> String {
    std::env::var("TOWPATH_TEST_BROKER").unwrap_or_else(|_| {
        panic!(
            "set TOWPATH_TEST_BROKER to the AMQP URL of a RabbitMQ this test may use, such as \
             amqp://guest:guest@127.0.0.1:5672; `./test` starts one"
        )
    })
}

/// One step's queues and exchanges, of its own.
pub(crate) struct Bench {
    pub(crate) prefix: String,
    pub(crate) start: Start,
    _connection: Connection,
    channel: Channel,
    queues: Vec<String>,
    exchanges: Vec<String>,
}

fn args(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in pairs {
        table.insert((*key).into(), value.clone());
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value.as_bytes()))
}

impl Bench {
    /// Declares everything.
    pub(crate) async fn new(name: &str, adapt: impl FnOnce(&mut Start)) -> Self {
        let url = broker_url();
        let connection = Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap_or_else(|error| {
                panic!("no broker at TOWPATH_TEST_BROKER: {error}; `./test` starts one")
            });
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let prefix = format!(
            "test.{name}.{}",
            &uuid::Uuid::new_v4().simple().to_string()[..8]
        );
        let mut start = start(&prefix, &url);
        adapt(&mut start);
        let mut bench = Self {
            prefix,
            start,
            _connection: connection,
            channel,
            queues: Vec::new(),
            exchanges: Vec::new(),
        };
        bench.declare().await;
        bench
    }

    async fn exchange(&mut self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        self.channel
            .exchange_declare(name.into(), kind, options, FieldTable::default())
            .await
            .unwrap();
        self.exchanges.push(name.to_owned());
    }

    async fn queue(&mut self, name: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(name.into(), options, arguments)
            .await
            .unwrap();
        self.queues.push(name.to_owned());
    }

    async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions::default();
        self.channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                key.into(),
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    async fn declare(&mut self) {
        let routes = self.start.routes.clone();
        let quorum = || {
            args(&[
                ("x-queue-type", text("quorum")),
                ("x-delivery-limit", AMQPValue::LongInt(50)),
            ])
        };
        self.exchange(&routes.outputs_exchange, ExchangeKind::Direct)
            .await;
        self.exchange(&routes.steps_exchange, ExchangeKind::Topic)
            .await;
        self.exchange(&routes.dead_exchange, ExchangeKind::Fanout)
            .await;
        self.exchange(&routes.office_exchange, ExchangeKind::Direct)
            .await;
        self.queue(&routes.queue, quorum()).await;
        self.bind(
            &routes.queue,
            &routes.steps_exchange,
            &format!("#.{}", routes.own_key),
        )
        .await;
        for (queue, exchange, key) in [
            (self.out(), routes.outputs_exchange.clone(), "out"),
            (self.dead(), routes.dead_exchange.clone(), ""),
            (self.news(), routes.office_exchange.clone(), "news"),
            (self.reports(), routes.office_exchange.clone(), "report"),
            (self.notes(), routes.office_exchange.clone(), "waiting"),
            (self.ledger(), routes.office_exchange.clone(), "ledger"),
        ] {
            self.queue(&queue, quorum()).await;
            self.bind(&queue, &exchange, key).await;
        }
        // The lowest levels are enough for delays of some seconds; each leads on to the next.
        for level in 0..6 {
            let exchange = routes.delay_exchanges[level].clone();
            self.exchange(&exchange, ExchangeKind::Topic).await;
            let next = match level {
                0 => routes.steps_exchange.clone(),
                _ => routes.delay_exchanges[level - 1].clone(),
            };
            let ttl = 250_i64 << level;
            let arguments = args(&[
                ("x-queue-type", text("quorum")),
                ("x-message-ttl", AMQPValue::LongLongInt(ttl)),
                ("x-dead-letter-exchange", text(&next)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ]);
            self.queue(&exchange, arguments).await;
            let before = "*.".repeat(DELAY_LEVELS - 1 - level);
            self.bind(&exchange, &exchange, &format!("{before}1.#"))
                .await;
            self.channel
                .exchange_bind(
                    next.as_str().into(),
                    exchange.as_str().into(),
                    format!("{before}0.#").into(),
                    lapin::options::ExchangeBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .unwrap();
        }
    }

    pub(crate) fn out(&self) -> String {
        format!("{}.out", self.prefix)
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.deadletters", self.prefix)
    }

    pub(crate) fn news(&self) -> String {
        format!("{}.news", self.prefix)
    }

    pub(crate) fn ledger(&self) -> String {
        format!("{}.ledger", self.prefix)
    }

    /// Answers a claim with the same grant for all of its messages; returns their ids.
    pub(crate) async fn grant(&self, claim: &Value, grant: &Value) -> Vec<String> {
        let messages = claim["claim"]["messages"].as_array().expect("a claim");
        let grants = vec![grant.clone(); messages.len()];
        let question = &claim["claim"]["question"];
        let answer = json!({"claimed": {"question": question, "grants": grants}});
        let text = |key: &str| claim[key].as_str().expect("it can be answered").to_owned();
        self.answer(&text("correlation"), &text("reply_to"), &answer)
            .await;
        messages
            .iter()
            .map(|message| message[0].as_str().expect("an id").to_owned())
            .collect()
    }

    pub(crate) fn reports(&self) -> String {
        format!("{}.reports", self.prefix)
    }

    /// The queue of notes about messages that wait.
    pub(crate) fn notes(&self) -> String {
        format!("{}.notes", self.prefix)
    }

    /// Deletes the step's queue and declares it again after a while.
    pub(crate) async fn replace_queue(&mut self, pause: Duration) {
        let queue = self.start.routes.queue.clone();
        self.channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await
            .unwrap();
        tokio::time::sleep(pause).await;
        let arguments = args(&[
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", AMQPValue::LongInt(50)),
        ]);
        self.queue(&queue, arguments).await;
        self.queues.pop();
        let routes = &self.start.routes;
        let key = format!("#.{}", routes.own_key);
        self.bind(&queue, &routes.steps_exchange, &key).await;
    }

    /// Publishes messages with these bodies, so many in a batch.
    pub(crate) async fn publish(&self, bodies: &[Value], batch: usize) -> Vec<MessageId> {
        let mut ids = Vec::new();
        for chunk in bodies.chunks(batch) {
            let mut payload = String::new();
            for body in chunk {
                let id = MessageId::from_bytes(*uuid::Uuid::new_v4().as_bytes());
                let lineage = json!({"run": id, "version": 1, "at": 1});
                std::fmt::Write::write_fmt(
                    &mut payload,
                    format_args!("{{\"id\":\"{id}\",\"lineage\":{lineage},\"body\":{body}}}\n"),
                )
                .unwrap();
                ids.push(id);
            }
            self.publish_raw(payload.as_bytes(), BATCH_TYPE).await;
        }
        ids
    }

    /// Publishes a delivery as it is.
    pub(crate) async fn publish_raw(&self, payload: &[u8], kind: &str) {
        let routes = &self.start.routes;
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_type(kind.into());
        let confirm = self
            .channel
            .basic_publish(
                routes.steps_exchange.as_str().into(),
                routes.own_key.as_str().into(),
                BasicPublishOptions::default(),
                payload,
                properties,
            )
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirm.is_ack());
    }

    /// Reads a queue.
    pub(crate) async fn read(&self, queue: &str) -> Reader {
        let options = BasicConsumeOptions::default();
        let tag = format!("reader of {queue}");
        let consumer = self
            .channel
            .basic_consume(
                queue.into(),
                tag.as_str().into(),
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
        Reader {
            consumer,
            lines: Vec::new(),
        }
    }

    /// Answers questions for checkpoints, with what was saved before.
    pub(crate) async fn answer(&self, correlation: &str, reply_to: &str, answer: &Value) {
        let properties = BasicProperties::default().with_correlation_id(correlation.into());
        let payload = answer.to_string();
        self.channel
            .basic_publish(
                "".into(),
                reply_to.into(),
                BasicPublishOptions::default(),
                payload.as_bytes(),
                properties,
            )
            .await
            .unwrap()
            .await
            .unwrap();
    }

    /// Returns how many deliveries wait in a queue, unacknowledged ones not counted.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count()
    }

    /// Lets outputs go to another queue as well, which is full after so many deliveries.
    pub(crate) async fn limit_out(&self, deliveries: i32) {
        let queue = self.limited_out();
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let arguments = args(&[
            ("x-queue-type", text("quorum")),
            ("x-max-length", AMQPValue::LongInt(deliveries)),
            ("x-overflow", text("reject-publish")),
            ("x-expires", AMQPValue::LongInt(120_000)),
        ]);
        self.channel
            .queue_declare(queue.as_str().into(), options, arguments)
            .await
            .unwrap();
        self.bind(&queue, &self.start.routes.outputs_exchange, "out")
            .await;
    }

    /// The queue of [`Self::limit_out`].
    pub(crate) fn limited_out(&self) -> String {
        format!("{}.limited", self.prefix)
    }

    /// Closes the connections whose name begins so, with the broker's management API on the port
    /// 10000 above its own.
    pub(crate) fn close_connections_of(&self, name: &str) -> usize {
        let management = Management::of(&self.start.broker_url);
        let connections: Vec<Value> =
            serde_json::from_str(&management.ask("GET", "/api/connections")).unwrap_or_default();
        let mut closed = 0;
        for connection in connections {
            let own = connection["client_properties"]["connection_name"]
                .as_str()
                .unwrap_or_default();
            if own.starts_with(name) {
                let path = connection["name"]
                    .as_str()
                    .unwrap()
                    .replace(' ', "%20")
                    .replace('>', "%3E");
                management.ask("DELETE", &format!("/api/connections/{path}"));
                closed += 1;
            }
        }
        closed
    }

    /// Removes everything.
    pub(crate) async fn clean(self) {
        for queue in &self.queues {
            self.channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .unwrap();
        }
        for exchange in &self.exchanges {
            self.channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .unwrap();
        }
    }
}

/// The broker's management API, in the few words of HTTP that a test needs.
struct Management {
    host: String,
    authorization: String,
}

impl Management {
    fn of(url: &str) -> Self {
        if let Ok(url) = std::env::var("TOWPATH_TEST_MANAGEMENT") {
            return Self::from_authority(
                url.trim_start_matches("http://").trim_end_matches('/'),
                0,
            );
        }
        let (_, rest) = url.split_once("://").expect("an AMQP URL");
        Self::from_authority(rest.split('/').next().expect("a host"), 10_000)
    }

    fn from_authority(authority: &str, port_above: u16) -> Self {
        use base64::Engine;
        let (user, host) = authority
            .rsplit_once('@')
            .expect("a URL with user and password");
        let (host, port) = host.rsplit_once(':').unwrap_or((host, "5672"));
        let port: u16 = port.parse().expect("a port");
        Self {
            host: format!("{host}:{}", port + port_above),
            authorization: base64::engine::general_purpose::STANDARD.encode(user),
        }
    }

    fn ask(&self, method: &str, path: &str) -> String {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(&self.host).unwrap_or_else(|error| {
            panic!("the broker's management API is not at {}: {error}; set TOWPATH_TEST_MANAGEMENT to its URL with user and password", self.host)
        });
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Basic {}\r\n\r\n",
            self.host, self.authorization
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default()
    }
}

/// The ids of messages, each once.
pub(crate) fn ids(lines: &[Value]) -> BTreeSet<String> {
    let ids = lines.iter().filter_map(|line| line["id"].as_str());
    ids.map(str::to_owned).collect()
}

/// The ids of the first outputs of messages.
pub(crate) fn derived(parents: &[MessageId]) -> BTreeSet<String> {
    let ids = parents
        .iter()
        .map(|parent| MessageId::derive(*parent, "step", "out", 0));
    ids.map(|id| id.to_string()).collect()
}

/// Reads lines from a queue.
pub(crate) struct Reader {
    consumer: Consumer,
    lines: Vec<Value>,
}

impl Reader {
    /// Takes the next line.
    pub(crate) async fn next(&mut self, what: &str) -> Value {
        self.until(what, |lines| !lines.is_empty()).await;
        self.lines.remove(0)
    }

    /// Reads until enough is there, and returns all that was read.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        enough: impl Fn(&[Value]) -> bool,
    ) -> &mut Vec<Value> {
        let deadline = Instant::now() + DEADLINE;
        while !enough(&self.lines) {
            let wait = deadline.saturating_duration_since(Instant::now());
            let delivery = tokio::time::timeout(wait, self.consumer.next())
                .await
                .unwrap_or_else(|_| {
                    panic!(
                        "waited too long for {what}; there are {} lines of {} messages",
                        self.lines.len(),
                        ids(&self.lines).len()
                    )
                })
                .expect("the queue is there")
                .expect("the connection is there");
            for line in delivery
                .data
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
            {
                let mut value: Value = serde_json::from_slice(line).expect("lines are JSON");
                if let (Some(reply_to), Some(correlation)) = (
                    delivery.properties.reply_to(),
                    delivery.properties.correlation_id(),
                ) {
                    value["reply_to"] = reply_to.as_str().into();
                    value["correlation"] = correlation.as_str().into();
                }
                self.lines.push(value);
            }
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
        &mut self.lines
    }
}

/// Reports are documents of one line.
pub(crate) fn report(value: &Value) -> Report {
    serde_json::from_value(value.clone()).expect("a report")
}

fn start(prefix: &str, url: &str) -> Start {
    let name = |what: &str| format!("{prefix}.{what}");
    Start {
        contract: 1,
        broker_url: url.to_owned(),
        identity: Identity {
            instance: prefix.to_owned(),
            flow: "flow".into(),
            step: "step".into(),
            replica: 1,
            spec: "0".into(),
        },
        kind: Kind::Action,
        routes: Routes {
            queue: name("in"),
            order: None,
            outputs_exchange: name("outputs"),
            outputs: BTreeMap::from([(
                "out".to_owned(),
                Output {
                    exchange: None,
                    key: Some("out".into()),
                    batch_max: 256,
                    in_order: false,
                    branches: Vec::new(),
                    steps: vec!["next".into()],
                },
            )]),
            own_key: "flow.step".into(),
            steps_exchange: name("steps"),
            delay_exchanges: (0..DELAY_LEVELS)
                .map(|level| format!("{prefix}.delay.{level}"))
                .collect(),
            dead_exchange: name("dead"),
            office_exchange: name("office"),
        },
        config: serde_json::value::to_raw_value(&json!({})).unwrap(),
        env: BTreeMap::new(),
        redact: vec!["secret-in-reason".into(), "secret-in-log".into()],
        settings: Settings {
            mode: Mode::Frames,
            concurrency: 8,
            timeout_ms: 0,
            retry: Retry {
                attempts: 3,
                initial_ms: 250,
                factor: 1.0,
                max_ms: 1000,
                jitter: 0.0,
            },
            rebounds_max: 3,
            once: false,
            stream: false,
            track: false,
            from_flows: false,
            body_bytes_max: 100_000,
            drain_ms: 20_000,
            memory_bytes: 0,
        },
        handing: Handing::default(),
        paused: false,
    }
}

/// A running agent.
pub(crate) struct Agent {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Starts the real binary with the test step.
    pub(crate) fn start(start: &Start) -> Self {
        Self::start_with(
            start,
            test_step().as_os_str().to_str().expect("a path"),
            &[],
        )
    }

    /// Starts the real binary with any program.
    pub(crate) fn start_with(start: &Start, program: &str, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_towpath-agent"))
            .args(options)
            .args(["--", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin
            .write_all(&serde_json::to_vec(start).unwrap())
            .unwrap();
        drop(stdin);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stdout) = (log.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// Returns the process id of its step.
    pub(crate) fn step_pid(&self) -> Option<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has exited.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "the agent does not exit; its log: {:#?}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Drains it.
    pub(crate) async fn drain(mut self) {
        self.signal(Signal::TERM);
        let code = self.exit_code().await;
        assert_eq!(code, Some(0), "its log: {:#?}", self.log());
    }

    /// Returns its log.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line in its log.
    pub(crate) async fn logs(&self, part: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.log().iter().any(|line| line.contains(part)) {
            assert!(
                Instant::now() < deadline,
                "no `{part}` in its log: {:#?}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The test step, which Cargo builds with the tests.
pub(crate) fn test_step() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_BIN_EXE_towpath-agent"));
    target.with_file_name("examples").join("test_step")
}

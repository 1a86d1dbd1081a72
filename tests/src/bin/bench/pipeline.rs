//! A trigger and three actions, each an agent with a real step process that parses and writes JSON,
//! joined by quorum queues: throughput, idle latency, memory.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towpath::broker::Broker as _;
use towpath::broker::rabbit::Rabbit;
use towpath::broker::topology::{Declaration, FlowTopology, Names, Topology, declarations};
use towpath::ledger::Sighting;
use towpath::metrics::Metrics;
use towpath::office::Office;
use towpath::reports::Reports;
use towpath::schedule::system_clock;
use towpath::store::Store;
use towpath::store::flows::NewVersion;
use towpath::store::records::{RunRecord, RunState};
use towpath_protocol::MessageId;
use towpath_protocol::frame::{TickBody, Why};
use towpath_protocol::handing::Handing;
use towpath_protocol::manifest::Kind;
use towpath_protocol::message::{BATCH_COUNT_HEADER, BATCH_TYPE, Lineage, Message};
use towpath_protocol::start::{Identity, Mode, Output, Retry, Routes, Settings, Start};

use crate::{Plan, broker};

/// The steps of the flow, in order: the trigger and three actions.
const STEPS: [&str; 4] = ["source", "first", "second", "third"];
const PREFIX: &str = "towpath-bench";
/// Messages that are sent before the ones that are timed: connections, caches and a broker that
/// has only just started settle down.
const WARM_UP: u64 = 300;

/// What was measured while nothing else happened.
pub(crate) struct Idle {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) agent_mib: f64,
    pub(crate) step_mib: f64,
}

/// What was measured under load.
pub(crate) struct Loaded {
    /// Messages a second.
    pub(crate) rate: f64,
    pub(crate) agent_mib: f64,
    pub(crate) step_mib: f64,
    /// How long after the last message all was known of the run, in milliseconds, if it is kept.
    pub(crate) behind_ms: Option<f64>,
}

/// What is kept of each message beside the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing.
    Nothing,
    /// That it is settled: `once: true` on the actions.
    Settlements,
    /// What came of its run: `track: true`.
    Runs,
}

/// A broker with the flow's queues on it, and the control plane's office, with a store on disk.
struct Bench {
    connection: lapin::Connection,
    channel: Channel,
    sink: Consumer,
    broker: Arc<Rabbit>,
    store: Store,
    office: JoinSet<()>,
    shutdown: CancellationToken,
    _data: tempfile::TempDir,
}

impl Bench {
    async fn begin(plan: &Plan) -> Result<Self> {
        let connection = broker::connect(&plan.broker_url).await?;
        let channel = broker::publisher(&connection).await?;
        remove(&channel).await?;
        let shutdown = CancellationToken::new();
        let broker = Arc::new(Rabbit::start(&plan.broker_url, shutdown.clone())?);
        broker.declare(&topology(), &[]).await?;
        let data = tempfile::tempdir()?;
        let store = Store::open(data.path())?;
        store
            .store_version(NewVersion {
                flow: PREFIX.into(),
                ..NewVersion::default()
            })
            .await?;
        let office = Office {
            broker: Arc::clone(&broker) as _,
            store: store.clone(),
            names: names(),
            reports: Reports::default(),
            inquiry: towpath::inquiry::Inquiry::default(),
            metrics: Metrics::new(),
            runs_changed: Arc::new(Notify::new()),
            registrations_changed: Arc::new(Notify::new()),
            flows: tokio::sync::watch::channel(Arc::default()).1,
            waiters: towpath::ingress::Waiters::default(),
            rates: towpath::rates::Rates::default(),
            containers: Arc::new(towpath::rates::Containers::default),
            // Nobody dies here, so nobody need be looked for.
            sightings: Arc::new(|_| Sighting::default()),
            clock: system_clock(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(office.run(shutdown.clone()));
        let consuming = connection.create_channel().await?;
        let sink = broker::consume(&consuming, &queue("sink"), 0, true).await?;
        Ok(Self {
            connection,
            channel,
            sink,
            broker,
            store,
            office: tasks,
            shutdown,
            _data: data,
        })
    }

    async fn end(self) -> Result<()> {
        self.shutdown.cancel();
        self.office.join_all().await;
        self.broker.closed().await;
        remove(&self.channel).await?;
        Ok(self.connection.close(200, "done".into()).await?)
    }
}

/// Sends one message after the other through the flow.
pub(crate) async fn idle(plan: &Plan, kept: Kept) -> Result<Idle> {
    let mut bench = Bench::begin(plan).await?;
    let mut agents = spawn(plan, Kind::Webhook, plan.messages, kept).await?;
    let (p50_ms, p99_ms) = one_by_one(plan, &bench.channel, &mut bench.sink).await?;
    let (agent_mib, step_mib) = memory(&agents)?;
    stop(&mut agents).await?;
    bench.end().await?;
    Ok(Idle {
        p50_ms,
        p99_ms,
        agent_mib,
        step_mib,
    })
}

/// Sends messages through the flow as fast as they come.
pub(crate) async fn loaded(plan: &Plan, messages: u64, kept: Kept) -> Result<Loaded> {
    let mut bench = Bench::begin(plan).await?;
    let mut agents = spawn(plan, Kind::Poll, messages, kept).await?;
    let run = MessageId::from_bytes(*uuid::Uuid::now_v7().as_bytes());
    if kept == Kept::Runs {
        bench.store.run_started(&run_record(run)).await?;
    }
    let rate = all_at_once(run, messages, &bench.channel, &mut bench.sink).await?;
    let behind_ms = match kept {
        Kept::Runs => Some(until_known(&bench.store, run, messages).await?),
        Kept::Nothing | Kept::Settlements => None,
    };
    let (agent_mib, step_mib) = memory(&agents)?;
    stop(&mut agents).await?;
    bench.end().await?;
    Ok(Loaded {
        rate,
        agent_mib,
        step_mib,
        behind_ms,
    })
}

/// The run that is fired.
fn run_record(id: MessageId) -> RunRecord {
    RunRecord {
        id,
        flow: PREFIX.into(),
        step: STEPS[0].into(),
        connection: "default".into(),
        version: 1,
        why: Why::Manual,
        state: RunState::Recorded,
        due: now_ms(),
        started_at: now_ms(),
        ended_at: None,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: None,
        tracked: true,
        cancel_at: None,
    }
}

/// Waits until it is known that every message is done at every step; how long that took, in
/// milliseconds.
async fn until_known(store: &Store, run: MessageId, messages: u64) -> Result<f64> {
    let began = Instant::now();
    loop {
        let progress = store.runs_progress(vec![run]).await?;
        let actions = progress
            .iter()
            .flat_map(|it| &it.steps)
            .filter(|it| STEPS[1..].contains(&it.step.as_str()));
        let done: u64 = actions.map(|it| it.done).sum();
        if done == 3 * messages {
            return Ok(began.elapsed().as_secs_f64() * 1000.0);
        }
        ensure!(
            began.elapsed() < Duration::from_secs(120),
            "{done} of {} messages are known to be done after two minutes",
            3 * messages
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Fires the trigger and waits for all messages at the end; messages a second.
async fn all_at_once(
    run: MessageId,
    messages: u64,
    channel: &Channel,
    sink: &mut Consumer,
) -> Result<f64> {
    let body = serde_json::to_string(&TickBody {
        why: Why::Manual,
        due: now_ms(),
        payload: None,
    })?;
    let began = Instant::now();
    publish_as(run, channel, "source", &body).await?;
    let mut arrived = 0;
    while arrived < messages {
        arrived += next(sink).await?.0;
    }
    let rate = arrived as f64 / began.elapsed().as_secs_f64();
    ensure!(
        arrived == messages,
        "{arrived} messages arrived of {messages}"
    );
    Ok(rate)
}

/// Sends one message after the other and times each.
async fn one_by_one(plan: &Plan, channel: &Channel, sink: &mut Consumer) -> Result<(f64, f64)> {
    let mut times = Vec::new();
    for number in 0..plan.idle_messages + WARM_UP {
        let began = Instant::now();
        publish(channel, "source", &order(number).to_string()).await?;
        next(sink).await?;
        if number >= WARM_UP {
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    Ok((at(50), at(99)))
}

/// Takes the next delivery at the end of the flow: how many messages, and their lines.
async fn next(sink: &mut Consumer) -> Result<(u64, Vec<u8>)> {
    let delivery = tokio::time::timeout(Duration::from_secs(60), sink.next())
        .await
        .context("nothing arrived for a minute")?
        .context("the consumer ended")??;
    let count = delivery
        .properties
        .headers()
        .as_ref()
        .and_then(|headers| headers.inner().get(BATCH_COUNT_HEADER))
        .and_then(AMQPValue::as_long_uint)
        .map_or_else(
            || {
                delivery
                    .data
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .count() as u64
            },
            u64::from,
        );
    Ok((count, delivery.data))
}

/// Publishes one root message to a step's queue.
pub(crate) async fn publish(channel: &Channel, step: &str, body: &str) -> Result<()> {
    let id = MessageId::from_bytes(*uuid::Uuid::now_v7().as_bytes());
    publish_as(id, channel, step, body).await
}

async fn publish_as(id: MessageId, channel: &Channel, step: &str, body: &str) -> Result<()> {
    let lineage = Lineage {
        run: id,
        version: 1,
        flow: None,
        tracked: false,
        at: now_ms(),
        connection: "default".into(),
        trace: None,
    };
    let lineage = RawValue::from_string(serde_json::to_string(&lineage)?)?;
    let body = RawValue::from_string(body.to_owned())?;
    let line = serde_json::to_string(&Message::root(id, &lineage, &body))? + "\n";
    let properties = broker::durable().with_type(BATCH_TYPE.into());
    let exchange = names().steps();
    let key = Names::step_key(PREFIX, step);
    let confirm = channel
        .basic_publish(
            exchange.into(),
            key.into(),
            BasicPublishOptions::default(),
            line.as_bytes(),
            properties,
        )
        .await?
        .await?;
    ensure!(confirm.is_ack(), "the broker refused a message");
    Ok(())
}

/// Starts an agent and a step process for each step, and waits until all consume.
async fn spawn(plan: &Plan, kind: Kind, messages: u64, kept: Kept) -> Result<Vec<Child>> {
    let mut agents = Vec::new();
    for index in 0..STEPS.len() {
        let kind = if index == 0 { kind } else { Kind::Action };
        let mode = if kind == Kind::Poll { "source" } else { "work" };
        let mut agent = Command::new(plan.binaries.join("towpath-agent"))
            .arg("--")
            .arg(plan.binaries.join(format!("bench-{mode}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start an agent")?;
        let document = serde_json::to_vec(&start(index, kind, messages, kept, &plan.broker_url)?)?;
        let mut stdin = agent
            .stdin
            .take()
            .context("an agent has no standard input")?;
        stdin.write_all(&document).await?;
        drop(stdin);
        agents.push(agent);
    }
    let connection = broker::connect(&plan.broker_url).await?;
    for step in STEPS {
        wait_for_consumer(&connection, &queue(step)).await?;
    }
    Ok(agents)
}

async fn wait_for_consumer(connection: &lapin::Connection, name: &str) -> Result<()> {
    let channel = connection.create_channel().await?;
    let options = lapin::options::QueueDeclareOptions {
        passive: true,
        durable: true,
        ..Default::default()
    };
    for _ in 0..200 {
        let seen = channel
            .queue_declare(name.into(), options, FieldTable::default())
            .await?;
        if seen.consumer_count() > 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("no agent consumes {name}")
}

/// What an agent reads on standard input.
pub(crate) fn start(
    index: usize,
    kind: Kind,
    messages: u64,
    kept: Kept,
    broker_url: &str,
) -> Result<Start> {
    let step = STEPS[index];
    let names = names();
    let key = topology().flows[0].port_key(step, "out");
    Ok(Start {
        contract: towpath_protocol::CONTRACT,
        broker_url: broker_url.to_owned(),
        identity: Identity {
            instance: PREFIX.into(),
            flow: PREFIX.into(),
            step: step.into(),
            replica: 1,
            spec: "bench".into(),
        },
        kind,
        routes: Routes {
            queue: queue(step),
            order: None,
            outputs_exchange: names.flow(PREFIX),
            outputs: BTreeMap::from([(
                "out".to_owned(),
                Output {
                    exchange: None,
                    key: Some(key),
                    batch_max: 1024,
                    in_order: false,
                    branches: Vec::new(),
                    steps: vec![STEPS.get(index + 1).copied().unwrap_or("sink").to_owned()],
                },
            )]),
            own_key: Names::step_key(PREFIX, step),
            steps_exchange: names.steps(),
            delay_exchanges: names.delays(),
            dead_exchange: names.dead(),
            office_exchange: names.office(),
        },
        config: RawValue::from_string(json!({ "messages": messages }).to_string())?,
        env: BTreeMap::new(),
        redact: Vec::new(),
        settings: Settings {
            mode: Mode::Frames,
            concurrency: if kind == Kind::Poll { 1 } else { 1024 },
            timeout_ms: if kind == Kind::Poll { 0 } else { 30_000 },
            retry: Retry {
                attempts: 8,
                initial_ms: 1_000,
                factor: 2.0,
                max_ms: 600_000,
                jitter: 0.2,
            },
            rebounds_max: 100,
            once: kept == Kept::Settlements && kind == Kind::Action,
            stream: false,
            track: kept == Kept::Runs,
            from_flows: false,
            body_bytes_max: towpath_protocol::BODY_BYTES_MAX,
            drain_ms: 10_000,
            memory_bytes: 0,
        },
        handing: Handing::default(),
        paused: false,
    })
}

/// Stops the agents as the control plane does: with a drain.
async fn stop(agents: &mut Vec<Child>) -> Result<()> {
    for agent in agents.iter() {
        if let Some(id) = agent.id() {
            Command::new("kill")
                .args(["-TERM", &id.to_string()])
                .status()
                .await?;
        }
    }
    for mut agent in agents.drain(..) {
        let status = tokio::time::timeout(Duration::from_secs(20), agent.wait())
            .await
            .context("an agent did not drain")??;
        ensure!(status.success(), "an agent ended with {status}");
    }
    Ok(())
}

/// Resident memory of an agent and of a step, the largest of the actions', in MiB.
fn memory(agents: &[Child]) -> Result<(f64, f64)> {
    let (mut agent_mib, mut step_mib) = (0.0_f64, 0.0_f64);
    for agent in &agents[1..] {
        let id = agent.id().context("an agent is gone")?;
        agent_mib = agent_mib.max(resident_mib(id)?);
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        for child in children.split_whitespace() {
            step_mib = step_mib.max(resident_mib(child.parse()?)?);
        }
    }
    Ok((agent_mib, step_mib))
}

fn resident_mib(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

pub(crate) fn queue(step: &str) -> String {
    names().queue(PREFIX, step)
}

fn names() -> Names {
    Names::new(PREFIX)
}

/// What the control plane declares for the flow, and a queue at its end.
fn topology() -> Topology {
    let mut steps = vec![(STEPS[0].to_owned(), Vec::new())];
    for (before, step) in STEPS.iter().zip(STEPS[1..].iter().chain(&["sink"])) {
        let after = ((*before).to_owned(), "out".to_owned());
        steps.push(((*step).to_owned(), vec![after]));
    }
    let flow = FlowTopology {
        flow: PREFIX.to_owned(),
        steps,
        aliases: Vec::new(),
        ..FlowTopology::default()
    };
    Topology {
        names: names(),
        flows: vec![flow],
    }
}

/// Declares what the flow needs, as the control plane does.
pub(crate) async fn declare(plan: &Plan) -> Result<()> {
    let shutdown = CancellationToken::new();
    let broker = Rabbit::start(&plan.broker_url, shutdown.clone())?;
    broker.declare(&topology(), &[]).await?;
    shutdown.cancel();
    broker.closed().await;
    Ok(())
}

/// Removes what is declared, if it is there.
pub(crate) async fn remove(channel: &Channel) -> Result<()> {
    for declaration in declarations(&topology()) {
        match declaration {
            Declaration::Queue(queue) => {
                let options = QueueDeleteOptions::default();
                channel.queue_delete(queue.name.into(), options).await?;
            }
            Declaration::Exchange(exchange) => {
                let options = ExchangeDeleteOptions::default();
                channel
                    .exchange_delete(exchange.name.into(), options)
                    .await?;
            }
            Declaration::Binding(_) => {}
        }
    }
    Ok(())
}

/// An order of some 200 bytes.
pub(crate) fn order(number: u64) -> serde_json::Value {
    json!({
        "id": number, "number": format!("SO-{number:07}"), "customer": {"id": number % 997, "name": "Grace Hopper", "email": "grace@example.com"},
        "currency": "EUR", "total_cents": 12_345 + number % 1000, "paid": true, "tags": ["web", "gift"],
    })
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| {
            time.as_secs() * 1000 + u64::from(time.subsec_millis())
        })
}

//! Which exchanges, queues and bindings there should be: pure, from names alone.
//!
//! The table is in ARCHITECTURE.md ("The broker").
//!
//! # Invariants
//!
//! - `every_delay_reaches_its_step_after_exactly_that_delay`.
//! - `every_exchange_leads_somewhere`: what no binding matches reaches the queue of lost messages;
//!   an unroutable dead letter would block all dead lettering of its queue.
//! - `dead_lettering_is_at_least_once`: it needs the strategy *and* `reject-publish`, or the broker
//!   falls back to at-most-once without a word.
//! - `every_queue_is_bounded`.
//! - `a_step_that_keeps_an_order_has_an_intake_and_partitions`, each read by one replica at a time. Its
//!   intake has another name than the queue it would have without: a queue is either of the two kinds
//!   for ever.
//! - `a_message_never_goes_by_an_old_and_a_new_way`: the key of a port names the steps it leads to,
//!   so that a replica of an earlier version goes on sending by the ways of that version. Bindings
//!   cannot be exchanged in one instant; keys can.
//! - `what_is_handed_over_goes_to_the_first_steps_of_the_other_flow_alone`, by a key that names them.
//! - `a_branch_has_a_way_of_its_own`: a step that does not take everything, or not as it comes, is
//!   reached by a key that names it and what makes it a branch, and by none that leads elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use towpath_flow::model;
use towpath_protocol::office::{LEDGER_KEY, NEWS_KEY, REPORT_KEY, WAITING_KEY};
use towpath_protocol::runs::RUNS_KEY;
use towpath_protocol::start::{DELAY_LEVELS, DELAY_UNIT_MS};

/// How often a batch may come back unsettled (an agent died with it) before the broker gives it up.
/// The default is none on RabbitMQ 3 and 20 on 4: an agent that is killed a few times while a
/// machine is out of memory must not cost messages.
pub const DELIVERY_LIMIT: u64 = 50;

/// The delivery limit of queues that only the control plane reads: in effect none, because such a
/// queue has no further place for what it gives up. Not left out: 4.x would then take 20.
const DELIVERY_LIMIT_NONE: u64 = 1 << 30;

/// The most deliveries in a step's queue, unless the settings say otherwise. Past it publishers are
/// held back: the trigger slows, the webhook answers 429. Of single small messages that is some
/// minutes of a busy flow.
pub const STEP_QUEUE_DELIVERIES_MAX: u64 = 100_000;

/// The most bytes in a step's queue: half a GiB, so that a handful of full ones fit on a small disk.
pub const STEP_QUEUE_BYTES_MAX: u64 = 512 << 20;

/// The most bytes in a partition of a step that keeps an order: 64 MiB, so that eight of them are
/// about one queue of a step.
pub const PARTITION_BYTES_MAX: u64 = 64 << 20;

/// The most deliveries in a queue of the ladder or of dead letters. They are shared by all flows,
/// and a full one holds all of them back, so it is far above what a step's queue holds.
const SHARED_QUEUE_DELIVERIES_MAX: u64 = 1_000_000;

/// The most bytes in a queue of the ladder or of dead letters: 4 GiB.
const SHARED_QUEUE_BYTES_MAX: u64 = 4 << 30;

/// The most reports that wait while the control plane is away; the oldest are forgotten, because
/// each report replaces the ones before it.
const REPORTS_MAX: u64 = 10_000;

/// The most bytes of reports: 64 MiB.
const REPORTS_BYTES_MAX: u64 = 64 << 20;

/// The most notes about waiting messages that wait while the control plane is away; the oldest are
/// forgotten. A note is about a batch of retries, so these are about a million of them.
const WAITING_MAX: u64 = 20_000;

/// The most bytes of such notes: 256 MiB.
const WAITING_BYTES_MAX: u64 = 256 << 20;

/// The second word of the routing keys of partitions.
const PARTITION: &str = "partition";
/// The most reports of what came of runs that wait while the control plane is away or behind. A full
/// queue refuses them, and agents go on without: the runs then say that not all of them is known. A
/// report is about up to thousands of messages, and in a quiet flow about one.
const RUNS_MAX: u64 = 500_000;

/// The most bytes of such reports: 512 MiB, some ten million messages for a flow of three steps.
const RUNS_BYTES_MAX: u64 = 512 << 20;

/// The names of one instance on its broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The instance.
    pub instance: String,
}

impl Names {
    /// Names what belongs to `instance`.
    pub fn new(instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
        }
    }
    /// The exchange and the queue of what was published to nowhere.
    pub fn lost(&self) -> String {
        format!("{}.lost", self.instance)
    }
    /// The exchange and the queue of dead letters.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.instance)
    }
    /// The exchange of what agents tell the control plane.
    pub fn office(&self) -> String {
        format!("{}.office", self.instance)
    }
    /// The queue of news.
    pub fn news(&self) -> String {
        format!("{}.news", self.instance)
    }
    /// The queue of the ledger.
    pub fn ledger(&self) -> String {
        format!("{}.ledger", self.instance)
    }
    /// The queue of reports of what came of runs.
    pub fn runs(&self) -> String {
        format!("{}.runs", self.instance)
    }
    /// The queue of notes about messages that wait in the delay ladder.
    pub fn waiting(&self) -> String {
        format!("{}.waiting", self.instance)
    }
    /// The queue of reports.
    pub fn reports(&self) -> String {
        format!("{}.reports", self.instance)
    }
    /// The exchange that delivers to a step by `<flow>.<step>`.
    pub fn steps(&self) -> String {
        format!("{}.steps", self.instance)
    }
    /// The exchange and the queue of a level of the delay ladder.
    pub fn delay(&self, level: usize) -> String {
        format!("{}.delay.{level}", self.instance)
    }
    /// The exchanges of all levels, finest first.
    pub fn delays(&self) -> Vec<String> {
        (0..DELAY_LEVELS).map(|level| self.delay(level)).collect()
    }
    /// The exchange and the routing key by which something comes to a step after a delay, rounded
    /// up to the next unit and cut to what the ladder can do.
    pub fn delayed(&self, delay: Duration, flow: &str, step: &str) -> (String, String) {
        let units = delay.as_millis().div_ceil(u128::from(DELAY_UNIT_MS));
        let units = u32::try_from(units)
            .unwrap_or(u32::MAX)
            .min((1 << DELAY_LEVELS) - 1);
        if units == 0 {
            return (self.steps(), Self::step_key(flow, step));
        }
        let mut key = String::with_capacity(2 * DELAY_LEVELS + flow.len() + step.len() + 1);
        for level in (0..DELAY_LEVELS).rev() {
            key.push_str(if units >> level & 1 == 1 { "1." } else { "0." });
        }
        key.push_str(&Self::step_key(flow, step));
        (self.delay(units.ilog2() as usize), key)
    }
    /// The exchange that joins the steps of a flow.
    pub fn flow(&self, flow: &str) -> String {
        format!("{}.flow.{flow}", self.instance)
    }
    /// The queue of a step.
    pub fn queue(&self, flow: &str, step: &str) -> String {
        format!("{}.flow.{flow}.{step}", self.instance)
    }
    /// The queue into which everything comes for a step that keeps an order.
    pub fn intake(&self, flow: &str, step: &str) -> String {
        self.queue(flow, &format!("{step}.in"))
    }
    /// The queue of a partition of such a step.
    pub fn partition(&self, flow: &str, step: &str, number: u32) -> String {
        self.queue(flow, &format!("{step}.{number}"))
    }
    /// All queues of a step that has so many partitions, or none: first that into which everything
    /// comes.
    pub fn queues(&self, flow: &str, step: &str, partitions: Option<u32>) -> Vec<String> {
        let parts = Self::queue_parts(step, partitions);
        parts.iter().map(|part| self.queue(flow, part)).collect()
    }
    /// What their names end with, after the name of the flow.
    pub fn queue_parts(step: &str, partitions: Option<u32>) -> Vec<String> {
        let Some(partitions) = partitions else {
            return vec![step.to_owned()];
        };
        let numbers = (0..partitions).map(|number| format!("{step}.{number}"));
        std::iter::once(format!("{step}.in"))
            .chain(numbers)
            .collect()
    }
    /// The step of such an end of a name.
    pub fn step_of_part(part: &str) -> &str {
        part.split_once('.').map_or(part, |(step, _)| step)
    }
    /// The flow and the step of a queue's name.
    pub fn parse_queue<'a>(&self, queue: &'a str) -> Option<(&'a str, &'a str)> {
        let (flow, part) = queue
            .strip_prefix(&self.instance)?
            .strip_prefix(".flow.")?
            .split_once('.')?;
        Some((flow, Self::step_of_part(part)))
    }
    /// The routing key that leads to a partition, in its flow's exchange.
    pub fn partition_key(step: &str, number: u32) -> String {
        format!("{step}.{PARTITION}.{number}")
    }
    /// The step of such a key; none if it is not that of a partition: those of ports end with eight
    /// digits.
    pub fn parse_partition_key(key: &str) -> Option<&str> {
        let (step, rest) = key.split_once('.')?;
        let number = rest.strip_prefix(PARTITION)?.strip_prefix('.')?;
        let is_number =
            (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(step)
    }
    /// The routing key of a step's port that leads to these steps, in its flow's exchange:
    /// `<step>.<port>.<hash of the steps>`.
    pub fn port_key<'a>(
        step: &str,
        port: &str,
        successors: impl IntoIterator<Item = &'a str>,
    ) -> String {
        let successors: BTreeSet<&str> = successors.into_iter().collect();
        let mut hasher = blake3::Hasher::new();
        for successor in successors {
            // No id holds a space.
            hasher.update(successor.as_bytes()).update(b" ");
        }
        let tag = &hasher.finalize().to_hex()[..8];
        format!("{step}.{port}.{tag}")
    }
    /// The step and the port of such a key. Those of earlier releases end with the port.
    pub fn parse_port_key(key: &str) -> (&str, &str) {
        let (step, rest) = key.split_once('.').unwrap_or((key, ""));
        (step, rest.split_once('.').map_or(rest, |(port, _)| port))
    }
    /// The routing key that leads from a step's port to one branch alone:
    /// `<step>.<port>.<tag of the branch>.<step of the branch>`; see [`branch_tag`].
    pub fn branch_key(step: &str, port: &str, branch: &str, tag: &str) -> String {
        format!("{step}.{port}.{tag}.{branch}")
    }
    /// The step that such a key leads to; none if it is not that of a branch.
    pub fn parse_branch_key(key: &str) -> Option<&str> {
        key.splitn(4, '.').nth(3)
    }
    /// The routing key of a step, in the exchange of steps.
    pub fn step_key(flow: &str, step: &str) -> String {
        format!("{flow}.{step}")
    }
}

/// Names what makes a step a branch, for its routing key: its condition, and whether it keeps an
/// order, because that changes its queue. None if it takes everything.
pub fn branch_tag(when: Option<&str>, keeps_order: bool) -> Option<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(when?.as_bytes());
    if keeps_order {
        // No condition holds this byte.
        hasher.update(b"\0");
    }
    Some(hasher.finalize().to_hex()[..8].to_owned())
}

/// The steps that take what other flows hand to a flow, by the name of the flow.
pub type Entries = BTreeMap<String, Vec<EntryStep>>;

/// A step that takes what other flows hand to its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryStep {
    /// The step.
    pub step: String,
    /// How many partitions it has, if it keeps an order.
    pub partitions: Option<u32>,
}

impl EntryStep {
    /// The end of the name of the queue into which everything comes for it.
    fn part(&self) -> String {
        Names::queue_parts(&self.step, self.partitions).swap_remove(0)
    }
}

impl From<&str> for EntryStep {
    /// A step that keeps no order.
    fn from(step: &str) -> Self {
        Self {
            step: step.to_owned(),
            partitions: None,
        }
    }
}

/// An action that hands messages to another flow. It runs nowhere and has no queue: they go straight
/// to those of the other flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The action.
    pub step: String,
    /// The (step, port) that it takes messages from.
    pub after: Vec<(String, String)>,
    /// Its condition.
    pub when: Option<String>,
    /// The other flow.
    pub to: String,
    /// The steps of that flow that take them, in order.
    pub entry: Vec<EntryStep>,
}

impl Handover {
    /// What an action hands over; to whom there is seen when all flows are known.
    pub fn new(of: &model::Handover) -> Self {
        Self {
            step: of.id.clone(),
            after: of.after.clone(),
            when: of.when.clone(),
            to: of.to.clone(),
            entry: Vec::new(),
        }
    }

    /// Names what makes its way, for its routing key, as [`branch_tag`] does: the condition, the
    /// flow, and the queues there, so that the key names what it leads to.
    pub fn tag(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.to.as_bytes());
        for step in &self.entry {
            // No name holds a space.
            hasher.update(b" ").update(step.part().as_bytes());
        }
        if let Some(when) = &self.when {
            hasher.update(b" when ").update(when.as_bytes());
        }
        hasher.finalize().to_hex()[..8].to_owned()
    }

    /// The key that leads to it from a port, in the exchange of its own flow.
    pub fn key_after(&self, step: &str, port: &str) -> String {
        Names::branch_key(step, port, &self.step, &self.tag())
    }

    /// The keys that lead to it, in the exchange of its own flow: each of them to the same steps.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        let after = self.after.iter();
        after.map(|(step, port)| self.key_after(step, port))
    }

    /// The steps that it leads to, as they are called outside of their flow: `<flow>/<step>`.
    pub fn leads_to(&self) -> Vec<String> {
        let name = |entry: &EntryStep| format!("{}/{}", self.to, entry.step);
        self.entry.iter().map(name).collect()
    }
}

/// Everything that should be on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The instance's names.
    pub names: Names,
    /// The flows.
    pub flows: Vec<FlowTopology>,
}

/// What one flow needs on the broker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowTopology {
    /// The flow.
    pub flow: String,
    /// Its steps that have a queue, each with the (step, port) it takes messages from.
    pub steps: Vec<(String, Vec<(String, String)>)>,
    /// Those of them that keep an order, each with its number of partitions.
    pub ordered: BTreeMap<String, u32>,
    /// Those of them that are branches, each with its [`branch_tag`].
    pub branches: BTreeMap<String, String>,
    /// What it hands to other flows.
    pub handovers: Vec<Handover>,
    /// The steps that take what other flows hand to it, in order.
    pub entry: Vec<EntryStep>,
    /// Steps that it had once, each with the step that takes what still comes for it.
    pub aliases: Vec<(String, String)>,
}

impl Topology {
    /// Puts in what flows hand over where it leads to, as the flows are now.
    pub fn join(&mut self) {
        let entries: Entries = self
            .flows
            .iter()
            .map(|flow| (flow.flow.clone(), flow.entry.clone()))
            .collect();
        for handover in self.flows.iter_mut().flat_map(|flow| &mut flow.handovers) {
            handover.entry = entries.get(&handover.to).cloned().unwrap_or_default();
        }
    }
}

impl FlowTopology {
    /// The end of the name of the queue into which everything comes for a step.
    fn part(&self, step: &str) -> String {
        let mut parts = Names::queue_parts(step, self.ordered.get(step).copied());
        parts.swap_remove(0)
    }

    /// The routing key by which a step's port leads to those that take everything.
    pub fn port_key(&self, step: &str, port: &str) -> String {
        let leads_to = self.steps.iter().filter(|(follower, sources)| {
            let mut sources = sources.iter();
            !self.branches.contains_key(follower)
                && sources.any(|(from, by)| from == step && by == port)
        });
        let leads_to: Vec<String> = leads_to
            .map(|(successor, _)| self.part(successor))
            .collect();
        Names::port_key(step, port, leads_to.iter().map(String::as_str))
    }

    /// The routing key by which a step's port leads to one that follows it.
    pub fn key_to(&self, step: &str, port: &str, follower: &str) -> String {
        match self.branches.get(follower) {
            Some(tag) => Names::branch_key(step, port, follower, tag),
            None => self.port_key(step, port),
        }
    }
}

/// One thing that should be on the broker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Declaration {
    /// A durable exchange.
    Exchange(Exchange),
    /// A durable queue.
    Queue(Queue),
    /// A way from an exchange to a queue or to another exchange.
    Binding(Binding),
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// The exchange that gets what no binding matches.
    pub alternate: Option<String>,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExchangeKind {
    /// Everything everywhere.
    Fanout,
    /// By the whole key.
    Direct,
    /// By patterns of words.
    Topic,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: QueueKind,
    /// The most deliveries it holds.
    pub deliveries_max: u64,
    /// The most bytes it holds.
    pub bytes_max: u64,
    /// How often a delivery may come back.
    pub delivery_limit: u64,
    /// How long a delivery stays before it is dead-lettered.
    pub wait: Option<Duration>,
    /// Where what it gives up goes, at least once.
    pub dead_letter_exchange: Option<String>,
    /// Whether one consumer at a time gets what is in it, and the next only when that one is gone.
    pub single_active: bool,
}

/// What a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QueueKind {
    /// A quorum queue: a confirm means that it is on disk; a full one refuses.
    Durable,
    /// A classic queue that forgets the oldest when it is full.
    Forgetful,
}

/// A way from an exchange to a queue or to another exchange.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The exchange it leads from.
    pub source: String,
    /// What it matches.
    pub key: String,
    /// Where it leads.
    pub destination: Destination,
}

/// Where a binding leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// A queue.
    Queue(String),
    /// An exchange.
    Exchange(String),
}

/// A value of a queue's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

impl Queue {
    fn durable(name: String) -> Self {
        Self {
            name,
            kind: QueueKind::Durable,
            deliveries_max: SHARED_QUEUE_DELIVERIES_MAX,
            bytes_max: SHARED_QUEUE_BYTES_MAX,
            delivery_limit: DELIVERY_LIMIT_NONE,
            wait: None,
            dead_letter_exchange: None,
            single_active: false,
        }
    }

    /// Lists the arguments that the broker is given.
    pub fn arguments(&self) -> Vec<(&'static str, Argument)> {
        let text = |text: &str| Argument::Text(text.to_owned());
        let mut arguments = vec![
            ("x-max-length", Argument::Number(self.deliveries_max)),
            ("x-max-length-bytes", Argument::Number(self.bytes_max)),
        ];
        match self.kind {
            QueueKind::Durable => arguments.extend([
                ("x-queue-type", text("quorum")),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", Argument::Number(self.delivery_limit)),
            ]),
            QueueKind::Forgetful => {
                arguments.extend([
                    ("x-queue-type", text("classic")),
                    ("x-overflow", text("drop-head")),
                ]);
            }
        }
        if let Some(wait) = self.wait {
            let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            arguments.push(("x-message-ttl", Argument::Number(wait)));
        }
        if self.single_active {
            arguments.push(("x-single-active-consumer", Argument::Flag(true)));
        }
        if let Some(exchange) = &self.dead_letter_exchange {
            // No dead-letter routing key: a delivery keeps the key it has, which says where it goes.
            arguments.push(("x-dead-letter-exchange", text(exchange)));
            arguments.push(("x-dead-letter-strategy", text("at-least-once")));
        }
        arguments
    }
}

/// Lists everything that should be on the broker, in an order in which it can be made.
pub fn declarations(topology: &Topology) -> Vec<Declaration> {
    declarations_bounded(topology, STEP_QUEUE_DELIVERIES_MAX)
}

/// The same, with another bound for the queues of steps.
pub fn declarations_bounded(topology: &Topology, step_deliveries_max: u64) -> Vec<Declaration> {
    let names = &topology.names;
    let mut all = instance_declarations(names);
    all.extend(delay_ladder(names));
    for flow in &topology.flows {
        all.extend(flow_declarations(names, flow, step_deliveries_max));
    }
    // Bindings last: both of their ends are there then.
    all.sort_by_key(|declaration| match declaration {
        Declaration::Exchange(_) => 0,
        Declaration::Queue(_) => 1,
        Declaration::Binding(_) => 2,
    });
    all
}

/// Lists the bindings that former flows needed and the topology does not.
pub fn stale_bindings(topology: &Topology, former: &[FlowTopology]) -> Vec<Binding> {
    let wanted: BTreeSet<Declaration> = declarations(topology).into_iter().collect();
    let former: BTreeSet<Declaration> = former
        .iter()
        .flat_map(|flow| flow_declarations(&topology.names, flow, STEP_QUEUE_DELIVERIES_MAX))
        .collect();
    former
        .difference(&wanted)
        .filter_map(|declaration| match declaration {
            Declaration::Binding(binding) => Some(binding.clone()),
            Declaration::Exchange(_) | Declaration::Queue(_) => None,
        })
        .collect()
}

fn instance_declarations(names: &Names) -> Vec<Declaration> {
    let exchange = |name: String, kind| {
        Declaration::Exchange(Exchange {
            name,
            kind,
            alternate: Some(names.lost()),
        })
    };
    let bind = |source: String, key: &str, queue: String| {
        Declaration::Binding(Binding {
            source,
            key: key.to_owned(),
            destination: Destination::Queue(queue),
        })
    };
    vec![
        Declaration::Exchange(Exchange {
            name: names.lost(),
            kind: ExchangeKind::Fanout,
            alternate: None,
        }),
        Declaration::Queue(Queue::durable(names.lost())),
        bind(names.lost(), "", names.lost()),
        exchange(names.dead(), ExchangeKind::Fanout),
        Declaration::Queue(Queue::durable(names.dead())),
        bind(names.dead(), "", names.dead()),
        exchange(names.office(), ExchangeKind::Direct),
        Declaration::Queue(Queue::durable(names.news())),
        bind(names.office(), NEWS_KEY, names.news()),
        Declaration::Queue(Queue {
            kind: QueueKind::Forgetful,
            deliveries_max: REPORTS_MAX,
            bytes_max: REPORTS_BYTES_MAX,
            ..Queue::durable(names.reports())
        }),
        bind(names.office(), REPORT_KEY, names.reports()),
        Declaration::Queue(Queue::durable(names.ledger())),
        bind(names.office(), LEDGER_KEY, names.ledger()),
        Declaration::Queue(Queue {
            kind: QueueKind::Forgetful,
            deliveries_max: WAITING_MAX,
            bytes_max: WAITING_BYTES_MAX,
            ..Queue::durable(names.waiting())
        }),
        bind(names.office(), WAITING_KEY, names.waiting()),
        Declaration::Queue(Queue {
            deliveries_max: RUNS_MAX,
            bytes_max: RUNS_BYTES_MAX,
            ..Queue::durable(names.runs())
        }),
        bind(names.office(), RUNS_KEY, names.runs()),
        exchange(names.steps(), ExchangeKind::Topic),
    ]
}

fn delay_ladder(names: &Names) -> Vec<Declaration> {
    (0..DELAY_LEVELS)
        .flat_map(|level| delay_level(names, level))
        .collect()
}

fn delay_level(names: &Names, level: usize) -> [Declaration; 4] {
    let name = names.delay(level);
    let next = level
        .checked_sub(1)
        .map_or_else(|| names.steps(), |below| names.delay(below));
    let bit = |bit: char, destination| {
        let key = format!("{}{bit}.#", "*.".repeat(DELAY_LEVELS - 1 - level));
        Declaration::Binding(Binding {
            source: name.clone(),
            key,
            destination,
        })
    };
    [
        Declaration::Exchange(Exchange {
            name: name.clone(),
            kind: ExchangeKind::Topic,
            alternate: Some(names.lost()),
        }),
        Declaration::Queue(Queue {
            wait: Some(Duration::from_millis(DELAY_UNIT_MS << level)),
            dead_letter_exchange: Some(next.clone()),
            ..Queue::durable(name.clone())
        }),
        bit('1', Destination::Queue(name.clone())),
        bit('0', Destination::Exchange(next)),
    ]
}

fn flow_declarations(
    names: &Names,
    flow: &FlowTopology,
    step_deliveries_max: u64,
) -> Vec<Declaration> {
    let mut all = vec![Declaration::Exchange(Exchange {
        name: names.flow(&flow.flow),
        kind: ExchangeKind::Direct,
        alternate: Some(names.lost()),
    })];
    for (step, sources) in &flow.steps {
        let partitions = flow.ordered.get(step).copied();
        let queue = names.queue(&flow.flow, &flow.part(step));
        let bind = |source: String, key: String| {
            Declaration::Binding(Binding {
                source,
                key,
                destination: Destination::Queue(queue.clone()),
            })
        };
        let of_step = Queue {
            deliveries_max: step_deliveries_max,
            bytes_max: STEP_QUEUE_BYTES_MAX,
            delivery_limit: DELIVERY_LIMIT,
            dead_letter_exchange: Some(names.dead()),
            single_active: partitions.is_some(),
            ..Queue::durable(queue.clone())
        };
        for number in 0..partitions.unwrap_or(0) {
            let partition = names.partition(&flow.flow, step, number);
            all.push(Declaration::Queue(Queue {
                name: partition.clone(),
                bytes_max: PARTITION_BYTES_MAX,
                ..of_step.clone()
            }));
            all.push(Declaration::Binding(Binding {
                source: names.flow(&flow.flow),
                key: Names::partition_key(step, number),
                destination: Destination::Queue(partition),
            }));
        }
        all.push(Declaration::Queue(of_step));
        all.push(bind(
            names.steps(),
            format!("#.{}", Names::step_key(&flow.flow, step)),
        ));
        for (source, port) in sources {
            let key = flow.key_to(source, port, step);
            all.push(bind(names.flow(&flow.flow), key));
        }
    }
    for handover in &flow.handovers {
        for key in handover.keys() {
            all.extend(handover.entry.iter().map(|step| {
                Declaration::Binding(Binding {
                    source: names.flow(&flow.flow),
                    key: key.clone(),
                    destination: Destination::Queue(names.queue(&handover.to, &step.part())),
                })
            }));
        }
    }
    for (former, successor) in &flow.aliases {
        all.push(Declaration::Binding(Binding {
            source: names.steps(),
            key: format!("#.{}", Names::step_key(&flow.flow, former)),
            destination: Destination::Queue(names.queue(&flow.flow, &flow.part(successor))),
        }));
    }
    all
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;

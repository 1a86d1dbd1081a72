//! From a checked flow, its images and its secrets to what a replica is made from: pure.
//!
//! # Invariants
//!
//! - `the_same_gives_the_same_hash`: applying an unchanged flow replaces nothing; the version of
//!   the flow is not part of the hash.
//! - `whatever_a_replica_is_made_from_changes_the_hash`: what runs is never different from what
//!   should run without showing.
//! - `the_hash_says_nothing_without_the_key`: it is a label that everyone can read, and there are
//!   secrets in what it is made from.
//! - `a_change_elsewhere_does_not_change_the_hash`: only the steps that changed are replaced.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use towpath_flow::limits::HELD_MAX;
use towpath_flow::model::{Access, Fires, Flow, Limits, Step, Validate};
use towpath_flow::{FilledStep, Replicas};
use towpath_protocol::CONTRACT;
use towpath_protocol::answer::REPLY_PORT;
use towpath_protocol::handing::{BURST_PART, Batch, Handing, Misfit, Rate, Validation};
use towpath_protocol::manifest::Kind;
use towpath_protocol::runs::RUNS_KEY;
use towpath_protocol::start::{
    Branch, Identity, Order, Output, Partition, Routes, Settings, Start,
};

use super::intent::{Held, intent};
use super::{DesiredFlow, DesiredStep, FlowState};
use crate::broker::topology::{Entries, Handover, Names, branch_tag};
use crate::engine::{Folder, Image, ReplicaSpec};

/// How many messages are in the hands of a replica when neither flow nor manifest says.
pub const CONCURRENCY_DEFAULT: u32 = 16;

/// The most messages in a batch, however many its reader takes: beyond this nothing is gained, and
/// what is given back when a replica goes is delivered again as a whole.
pub const BATCH_MAX: u32 = 1024;

/// The most messages in a batch for a step that keeps an order: one replica sorts them all, and what it
/// had not finished is sorted again by the next.
pub const INTAKE_BATCH_MAX: u32 = 64;

/// The most messages that go into a partition together.
pub const PARTITION_BATCH_MAX: u32 = 16;

/// The most answers in a batch: somebody waits for each.
const ANSWERS_MAX: u32 = 16;

/// The most messages in a batch that is handed to another flow, whose steps are not looked at here:
/// few enough that its replicas share the work.
const HANDOVER_BATCH_MAX: u32 = 32;

/// How often a step may say "later" of one message. With the usual waits this is days.
pub const REBOUNDS_MAX: u32 = 1_000;

/// How long a replica may take to finish what it holds: as long as one message may take, but at
/// least this, because a process also needs to end; and at most [`DRAIN_MAX`].
pub const DRAIN_MIN: Duration = Duration::from_secs(30);

/// The longest drain: whoever stops a flow waits for it. What is not finished is delivered again.
pub const DRAIN_MAX: Duration = Duration::from_secs(600);

/// What the engine waits beyond the drain before it kills: the agent must be the first to give up.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// What all replicas of an instance share.
#[derive(Clone)]
pub struct Ground {
    /// The instance's names.
    pub names: Names,
    /// The broker as agents reach it, with its credentials.
    pub broker_url: String,
    /// The hash of the agent that runs them.
    pub agent: String,
    /// The largest body, in bytes.
    pub body_bytes_max: usize,
    /// The folders of the host that steps may use.
    pub folders: Arc<BTreeMap<String, PathBuf>>,
    /// The key of the hashes.
    pub key: [u8; 32],
}

/// What is known of a step beside what its flow says. It holds secrets, and so has no `Debug`.
#[derive(Clone)]
pub struct StepFacts {
    /// The step with its placeholders filled in, or why they cannot be.
    pub filled: Result<FilledStep, String>,
    /// The image, or why there is none.
    pub image: Result<Image, String>,
    /// How many replicas an operator wants, if one said.
    pub replicas: Option<u32>,
    /// What an operator said that this step should be doing, if one said.
    pub held: Option<FlowState>,
}

/// What the replicas of a step are made from. It holds secrets, and so has no `Debug`.
#[derive(Clone)]
pub struct Blueprint {
    image: Image,
    command: Vec<String>,
    limits: Limits,
    folders: Vec<Folder>,
    drain: Duration,
    start: Start,
}

impl Blueprint {
    /// Makes what replica number `replica` is created from.
    pub fn replica(&self, replica: u32, paused: bool) -> ReplicaSpec {
        let mut start = self.start.clone();
        start.identity.replica = replica;
        start.paused = paused;
        ReplicaSpec {
            name: container_name(&start.identity),
            image: self.image.clone(),
            command: self.command.clone(),
            limits: self.limits.clone(),
            folders: self.folders.clone(),
            stop_seconds: u32::try_from((self.drain + STOP_MARGIN).as_secs()).unwrap_or(u32::MAX),
            start,
        }
    }
}

impl Blueprint {
    /// Names what the step does, and with what: its image and its `with`. Unlike the hash of all that
    /// its replicas are made from, it stays when anything else changes.
    pub fn configured(&self, key: &[u8; 32]) -> String {
        let mut hasher = blake3::Hasher::new_keyed(key);
        // No id of an image holds a space.
        hasher.update(self.image.id.as_bytes()).update(b" ");
        hasher.update(self.start.config.get().as_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// The most messages in the hands of one replica.
    pub fn concurrency(&self) -> u32 {
        self.start.settings.concurrency
    }
}

/// The name of a replica's container.
pub fn container_name(identity: &Identity) -> String {
    let Identity {
        instance,
        flow,
        step,
        replica,
        spec,
    } = identity;
    format!(
        "{instance}.{flow}.{step}.{replica}.{}",
        spec.get(..8).unwrap_or(spec)
    )
}

/// Says what should be of a flow.
pub fn desired_flow(
    ground: &Ground,
    flow: Arc<Flow>,
    version: u32,
    state: FlowState,
    facts: &BTreeMap<String, StepFacts>,
    entries: &Entries,
) -> DesiredFlow {
    let held: Held = facts
        .iter()
        .filter_map(|(step, facts)| Some((step.clone(), facts.held?)))
        .collect();
    let steps = flow
        .steps
        .iter()
        .map(|step| {
            let intent = intent(&flow, state, &held, step);
            DesiredStep {
                state: intent.state,
                because: intent.because,
                ..desired_step(ground, &flow, step, facts, entries)
            }
        })
        .collect();
    DesiredFlow {
        flow,
        version,
        state,
        steps,
    }
}

fn desired_step(
    ground: &Ground,
    flow: &Flow,
    step: &Step,
    facts: &BTreeMap<String, StepFacts>,
    entries: &Entries,
) -> DesiredStep {
    let known = facts.get(&step.id);
    let exclusive = kind(flow, step) == Kind::Poll;
    let wanted = known.and_then(|facts| facts.replicas);
    let (replicas, autoscale) = match (wanted, step.replicas) {
        (Some(count), _) | (None, Replicas::Fixed(count)) => (count, None),
        (None, Replicas::Auto(auto)) => (auto.min, Some(auto)),
    };
    let drain = drain(step.timeout);
    let made = match known {
        Some(known) => blueprint(ground, flow, step, known, facts, entries),
        None => Err("nothing is known of it yet".to_owned()),
    };
    let blueprint = made.as_ref().ok().cloned().map(Arc::new);
    DesiredStep {
        id: step.id.clone(),
        state: FlowState::Running,
        because: None,
        replicas: if exclusive { replicas.min(1) } else { replicas },
        autoscale,
        scaling: None,
        exclusive,
        drain,
        image: known.and_then(|facts| facts.image.clone().ok()),
        spec: blueprint
            .as_ref()
            .map(|it| it.start.identity.spec.clone())
            .unwrap_or_default(),
        blocked: made.err(),
        blueprint,
    }
}

fn blueprint(
    ground: &Ground,
    flow: &Flow,
    step: &Step,
    known: &StepFacts,
    facts: &BTreeMap<String, StepFacts>,
    entries: &Entries,
) -> Result<Blueprint, String> {
    let image = known.image.clone()?;
    let filled = known.filled.clone()?;
    if let Some(argument) = filled.command.iter().position(|argument| {
        filled
            .secrets
            .iter()
            .any(|it| !it.is_empty() && argument.contains(it))
    }) {
        // A command line is shown by the engine to whoever asks.
        return Err(format!(
            "its `command` has a secret in part {}; use `env`",
            argument + 1
        ));
    }
    let config = RawValue::from_string(filled.with.to_string())
        .map_err(|_| "its `with` cannot be written as JSON".to_owned())?;
    let folders = folders(ground, step)?;
    let drain = drain(step.timeout);
    let kind = kind(flow, step);
    let mut start = Start {
        contract: CONTRACT,
        broker_url: ground.broker_url.clone(),
        identity: Identity {
            instance: ground.names.instance.clone(),
            flow: flow.name.clone(),
            step: step.id.clone(),
            replica: 0,
            spec: String::new(),
        },
        kind,
        routes: routes(&ground.names, flow, step, facts, entries),
        config,
        env: filled.env,
        redact: filled.secrets.into_iter().collect(),
        settings: Settings {
            mode: step.mode,
            concurrency: concurrency(flow, step, Some(&image)),
            timeout_ms: millis(step.timeout),
            retry: step.retry.clone(),
            rebounds_max: REBOUNDS_MAX,
            once: step.once,
            stream: step.is_trigger && flow.fires == Fires::Stream,
            track: flow.track,
            from_flows: flow.fires == Fires::Flows,
            body_bytes_max: ground.body_bytes_max,
            drain_ms: millis(drain),
            memory_bytes: step.limits.memory_bytes,
        },
        handing: handing(step, &image),
        paused: false,
    };
    let made_from = MadeFrom {
        agent: &ground.agent,
        image: &image.id,
        command: &filled.command,
        writable: step.limits.writable,
        image_privileges: step.limits.image_privileges,
        cpus: step.limits.cpus,
        pids: step.limits.pids,
        folders: &folders,
        start: &start,
    };
    start.identity.spec = hash(&ground.key, &made_from)?;
    Ok(Blueprint {
        image,
        command: filled.command,
        limits: step.limits.clone(),
        folders,
        drain,
        start,
    })
}

/// The folders that a step may use, with where they are.
fn folders(ground: &Ground, step: &Step) -> Result<Vec<Folder>, String> {
    let folder = |(name, access): (&String, &Access)| {
        let path = ground.folders.get(name).ok_or_else(|| {
            format!("the settings of the control plane have no folder `{name}` any more")
        })?;
        Ok(Folder {
            name: name.clone(),
            path: path.clone(),
            access: *access,
        })
    };
    step.limits.folders.iter().map(folder).collect()
}

/// How messages are handed to a step.
fn handing(step: &Step, image: &Image) -> Handing {
    let misfit = match step.handing.validate {
        Validate::Off => None,
        Validate::Warn => Some(Misfit::Warn),
        Validate::DeadLetter => Some(Misfit::DeadLetter),
    };
    let manifest = image.manifest.as_ref();
    let schema = manifest.and_then(|manifest| manifest.input.clone());
    Handing {
        validate: misfit
            .zip(schema)
            .map(|(misfit, schema)| Validation { schema, misfit }),
        rate: step.handing.rate,
        batch: step.handing.batch,
    }
}

/// Everything that a replica is made from, but its number and whether it begins paused.
#[derive(Serialize)]
struct MadeFrom<'a> {
    agent: &'a str,
    image: &'a str,
    command: &'a [String],
    writable: bool,
    image_privileges: bool,
    cpus: f64,
    pids: u32,
    folders: &'a [Folder],
    start: &'a Start,
}

fn hash(key: &[u8; 32], made_from: &MadeFrom<'_>) -> Result<String, String> {
    let text = serde_json::to_vec(made_from)
        .map_err(|_| "what it is made from cannot be written as JSON".to_owned())?;
    Ok(blake3::keyed_hash(key, &text).to_hex().as_str()[..32].to_owned())
}

fn kind(flow: &Flow, step: &Step) -> Kind {
    match flow.fires {
        _ if !step.is_trigger => Kind::Action,
        // A trigger that takes what other flows hand over does not run.
        Fires::Webhook | Fires::Flows => Kind::Webhook,
        Fires::Every(_) | Fires::Cron(_) | Fires::Stream => Kind::Poll,
    }
}

fn concurrency(flow: &Flow, step: &Step, image: Option<&Image>) -> u32 {
    if kind(flow, step) == Kind::Poll {
        // One tick after the other: their checkpoints are in one order.
        return 1;
    }
    if let Some(batch) = step.handing.batch {
        return batch.max;
    }
    let manifest = image.and_then(|image| image.manifest.as_ref());
    step.concurrency
        .or_else(|| manifest.and_then(|manifest| manifest.concurrency))
        .unwrap_or(CONCURRENCY_DEFAULT)
        .max(1)
}

/// The most messages in one delivery for a step with a rate: what it is handed in the tenth of a
/// second. All of a delivery wait in one replica for their turn.
fn delivery_of_rate(rate: Rate, batch: Option<Batch>) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and cut"
    )]
    let turns = (rate.per_second() * BURST_PART).min(f64::from(BATCH_MAX)) as u32;
    turns.max(1) * batch.map_or(1, |batch| batch.max)
}

/// The most messages that go into a partition together: if each takes as long as it may, a delivery
/// and the one before it are settled in the time that a message may be held.
fn partition_batch(step: &Step) -> u32 {
    let of_rate = step.handing.rate.map(|rate| delivery_of_rate(rate, None));
    let by_time = (HELD_MAX / 2).as_millis() / step.timeout.as_millis().max(1);
    u32::try_from(by_time)
        .unwrap_or(u32::MAX)
        .clamp(1, PARTITION_BATCH_MAX)
        .min(of_rate.unwrap_or(PARTITION_BATCH_MAX))
}

fn routes(
    names: &Names,
    flow: &Flow,
    step: &Step,
    facts: &BTreeMap<String, StepFacts>,
    entries: &Entries,
) -> Routes {
    let no_output = || Output {
        exchange: None,
        key: None,
        batch_max: BATCH_MAX,
        in_order: false,
        steps: Vec::new(),
        branches: Vec::new(),
    };
    let mut outputs = BTreeMap::new();
    for successor in &flow.steps {
        let image = facts
            .get(&successor.id)
            .and_then(|facts| facts.image.as_ref().ok());
        let handing = &successor.handing;
        let of_rate = |rate| delivery_of_rate(rate, handing.batch);
        let takes = if successor.order.is_some() {
            INTAKE_BATCH_MAX
        } else {
            concurrency(flow, successor, image)
                .min(BATCH_MAX)
                .min(handing.rate.map_or(BATCH_MAX, of_rate))
        };
        for (from, port) in &successor.after {
            if *from != step.id {
                continue;
            }
            let output = outputs.entry(port.clone()).or_insert_with(no_output);
            if let Some(tag) = branch_of(successor) {
                output.branches.push(Branch {
                    step: successor.id.clone(),
                    key: Names::branch_key(&step.id, port, &successor.id, &tag),
                    batch_max: takes,
                    in_order: successor.order.is_some(),
                    when: successor.when.clone(),
                    handed_to: Vec::new(),
                });
            } else {
                let others = successors(flow, &step.id, port);
                let others = others.iter().map(String::as_str);
                output.key = Some(Names::port_key(&step.id, port, others));
                output.steps.push(successor.id.clone());
                output.batch_max = output.batch_max.min(takes);
                output.in_order |= successor.order.is_some();
            }
        }
    }
    for handover in &flow.handovers {
        let handover = Handover {
            entry: entries.get(&handover.to).cloned().unwrap_or_default(),
            ..Handover::new(handover)
        };
        for ((from, port), key) in handover.after.iter().zip(handover.keys()) {
            if *from != step.id {
                continue;
            }
            let output = outputs.entry(port.clone()).or_insert_with(no_output);
            output.branches.push(Branch {
                step: handover.step.clone(),
                key,
                batch_max: HANDOVER_BATCH_MAX,
                in_order: handover.entry.iter().any(|it| it.partitions.is_some()),
                when: handover.when.clone(),
                handed_to: handover.leads_to(),
            });
        }
    }
    if flow.webhook.as_ref().is_some_and(|it| it.reply.is_some()) {
        outputs.insert(REPLY_PORT.to_owned(), answers(names));
    }
    let partitions = step.order.as_ref().map(|order| order.partitions);
    Routes {
        queue: names
            .queues(&flow.name, &step.id, partitions)
            .swap_remove(0),
        order: step.order.as_ref().map(|order| Order {
            by: order.by.clone(),
            partitions: (0..order.partitions)
                .map(|number| Partition {
                    queue: names.partition(&flow.name, &step.id, number),
                    key: Names::partition_key(&step.id, number),
                })
                .collect(),
            batch_max: partition_batch(step),
        }),
        outputs_exchange: names.flow(&flow.name),
        outputs,
        own_key: Names::step_key(&flow.name, &step.id),
        steps_exchange: names.steps(),
        delay_exchanges: names.delays(),
        dead_exchange: names.dead(),
        office_exchange: names.office(),
    }
}

/// The way of answers to those who wait for them: with the reports of runs, so that what is said of a
/// run is known in the order in which it happened.
fn answers(names: &Names) -> Output {
    Output {
        exchange: Some(names.office()),
        key: Some(RUNS_KEY.to_owned()),
        batch_max: ANSWERS_MAX,
        in_order: false,
        steps: Vec::new(),
        branches: Vec::new(),
    }
}

/// What makes a step a branch, as routing keys have it; none if it takes everything.
fn branch_of(step: &Step) -> Option<String> {
    branch_tag(step.when.as_deref(), step.order.is_some())
}

/// The steps that take everything that leaves by a port, as the names of their queues have them.
fn successors(flow: &Flow, step: &str, port: &str) -> Vec<String> {
    flow.steps
        .iter()
        .filter(|it| branch_of(it).is_none())
        .filter(|it| it.after.iter().any(|(from, by)| from == step && by == port))
        .map(|it| {
            let partitions = it.order.as_ref().map(|order| order.partitions);
            Names::queue_parts(&it.id, partitions).swap_remove(0)
        })
        .collect()
}

fn drain(timeout: Duration) -> Duration {
    timeout.clamp(DRAIN_MIN, DRAIN_MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

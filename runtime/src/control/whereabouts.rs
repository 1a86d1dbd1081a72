//! Where a message is: one pure function from all that is known to what a person is told.
//!
//! A message goes to every step after the one that emitted it, so it may be at several steps, and is
//! somewhere else in each. At one step several sources may know of it; the one that saw it last is
//! believed, and what does not agree with it is said.
//!
//! # Invariants
//!
//! - `what_was_seen_last_is_believed`.
//! - `what_does_not_agree_is_said`.
//! - `unknown_says_how_far_the_memory_reaches`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use towpath_protocol::MessageId;
use towpath_protocol::answer::REPLY_PORT;
use towpath_protocol::message::PastAttempt;
use towpath_protocol::office::{Found, Happened, Holding, What};
use towpath_protocol::start::Identity;
use utoipa::ToSchema;

use crate::ingress::Entered;
use crate::reconcile::FlowState;
use crate::reconcile::intent::Intent;
use crate::store::records::{DeadState, RunRecord, RunState};

/// A step of a flow.
type StepKey = (String, String);

/// All that is known of a message.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) now: u64,
    /// Its dead letters, whatever became of them.
    pub(super) letters: Vec<Letter>,
    /// Notes that it went into the delay ladder.
    pub(super) notes: Vec<Note>,
    /// What the ledger has of it.
    pub(super) ledger: Vec<Entry>,
    /// The run, if it is a tick.
    pub(super) run: Option<RunRecord>,
    /// What took it in by a webhook of late.
    pub(super) entered: Option<Entered>,
    /// What agents answered.
    pub(super) answers: Vec<Found>,
    /// Who did not answer, as people call them.
    pub(super) silent: Vec<String>,
    /// The flows, and where the outputs of their steps go.
    pub(super) flows: BTreeMap<String, Wiring>,
    /// The deliveries that are ready in the steps' queues; a step is left out if it is not known.
    pub(super) ready: BTreeMap<StepKey, u64>,
}

impl Facts {
    /// Whether a step is an action that hands messages to another flow.
    fn hands_over(&self, flow: &str, step: &str) -> bool {
        let wiring = self.flows.get(flow);
        wiring.is_some_and(|wiring| wiring.handovers.contains_key(step))
    }
}

/// How a flow's steps are joined.
#[derive(Debug, Clone)]
pub(super) struct Wiring {
    /// What each step should be doing, and because of what, if it does not simply run.
    pub(super) intents: BTreeMap<String, Intent>,
    /// The step that fires it, or takes its requests.
    pub(super) trigger: String,
    /// Each step with the (step, port) it takes messages from.
    pub(super) steps: Vec<(String, Vec<(String, String)>)>,
    /// Those of them that do not take everything, or not as it comes.
    pub(super) branches: BTreeSet<String>,
    /// What it hands to other flows: by the action that does, the flow and the steps that take it.
    pub(super) handovers: BTreeMap<String, (String, Vec<String>)>,
}

impl Wiring {
    /// The steps that take everything that a step emits by a port.
    fn after(&self, step: &str, port: &str) -> Vec<&str> {
        let takes = |after: &[(String, String)]| {
            after.iter().any(|(other, by)| other == step && by == port)
        };
        let is_branch = |step: &String| self.branches.contains(step);
        let steps = self.steps.iter();
        let steps = steps.filter(|(step, after)| !is_branch(step) && takes(after));
        steps.map(|(step, _)| step.as_str()).collect()
    }
}

/// A dead letter.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) id: u64,
    pub(super) flow: String,
    pub(super) step: String,
    pub(super) at: u64,
    pub(super) replica: u32,
    pub(super) reason: String,
    pub(super) state: DeadState,
    pub(super) attempts: Vec<PastAttempt>,
    pub(super) run: Option<MessageId>,
    pub(super) parent: Option<MessageId>,
}

/// A note that a message waits.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) flow: String,
    pub(super) step: String,
    pub(super) run: MessageId,
    /// The attempt that comes next.
    pub(super) attempt: u32,
    pub(super) attempts: u32,
    pub(super) reason: String,
    pub(super) since: u64,
    pub(super) due: u64,
}

/// An entry of the ledger.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) flow: String,
    pub(super) step: String,
    pub(super) state: EntryState,
}

#[derive(Debug, Clone)]
pub(super) enum EntryState {
    Settled {
        at: u64,
    },
    Claimed {
        replica: u32,
        since: u64,
        until: u64,
    },
}

/// What is known of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Whereabouts {
    /// The message.
    pub id: String,
    /// Where it is; if it is at several steps, the place that most needs looking at.
    pub state: Place,
    /// Where it is, step by step; empty if nothing is known.
    pub steps: Vec<AtStep>,
    /// What does not agree, in sentences.
    pub contradictions: Vec<String>,
    /// The attempts at it that are known, oldest first.
    pub attempts: Vec<Attempt>,
    /// Its run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The message it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What was made from it, the newest at most.
    pub children: Vec<Child>,
    /// How many agents answered.
    pub answered: u32,
    /// The agents that did not answer in time.
    pub silent: Vec<String>,
    /// Since when those that answered remember everything, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered_since: Option<u64>,
    /// The deliveries in queues, where it may be unseen; only if nothing is known of it.
    pub queued_deliveries: u64,
}

/// A message at a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AtStep {
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// Where it is there.
    pub place: Place,
    /// Which replica has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<u32>,
    /// Since when it is so, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Until when it is so, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// The attempt that it is at, or that comes next, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How many attempts there are in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The number of its dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter: Option<String>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many deliveries are ready in the step's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    /// What happens next, in a sentence.
    pub next: String,
}

/// Where a message can be. The order is that of what needs looking at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A step gave it up, and nobody has decided what becomes of it.
    Dead,
    /// Somebody claimed it, and does not say more.
    Claimed,
    /// In the hands of a step.
    InHand,
    /// Decided, and waiting for the broker's confirms.
    Settling,
    /// In the delay ladder; or held by its replica, of a step that keeps an order.
    Waiting,
    /// Taken by a replica, and not yet handed to the step.
    Taken,
    /// In the step's queue.
    Queued,
    /// Given up, and discarded by someone.
    Discarded,
    /// Done.
    Settled,
    /// A step emitted it, and no condition of the steps after it held for it: it went nowhere.
    Unmatched,
    /// It was sent to the step, and there is no trace of it: it was handled longer ago than anybody
    /// remembers, or it was lost with what an operator deleted.
    Untraced,
    /// Nothing is known of it.
    Unknown,
}

/// A try at a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// Which, from 1.
    pub attempt: u32,
    /// When it ended, in milliseconds since 1970.
    pub at: u64,
    /// Which replica tried.
    pub replica: u32,
    /// How it ended.
    pub outcome: String,
    /// The last lines that were logged during it, if it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// The message that a message was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Parent {
    /// Its id.
    pub id: String,
    /// The step that made this one from it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The port that this one left it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// A message that was made from a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Child {
    /// Its id.
    pub id: String,
    /// The step that made it.
    pub step: String,
    /// The port it left by.
    pub port: String,
    /// When the broker had it, in milliseconds since 1970.
    pub at: u64,
}

/// What one source says of the message at one step.
#[derive(Debug, Clone)]
struct Sign {
    /// When it was so.
    at: u64,
    /// It is so now, for all that its source knows.
    is_now: bool,
    at_step: AtStep,
}

/// How many children are told.
const CHILDREN_MAX: usize = 100;

/// How long a message that was emitted may be under way to an empty queue, or a letter to the store,
/// before it counts as gone.
const UNDER_WAY_MS: u64 = 10_000;

/// How long it may take from a death to the broker's confirm of its dead letter.
const CONFIRMED_MS: u64 = 600_000;

/// Says where a message is.
pub(super) fn whereabouts(id: MessageId, facts: &Facts) -> Whereabouts {
    let mut steps: Vec<AtStep> = Vec::new();
    let mut contradictions = Vec::new();
    for (key, signs) in signs(id, facts) {
        steps.push(decide(&key, signs, facts, &mut contradictions));
    }
    let state = steps
        .iter()
        .map(|step| step.place)
        .min()
        .unwrap_or(Place::Unknown);
    let is_unknown = matches!(state, Place::Unknown | Place::Untraced);
    Whereabouts {
        id: id.to_string(),
        state,
        steps,
        contradictions,
        attempts: attempts(id, facts),
        run: run(id, facts),
        parent: parent(id, facts),
        children: children(id, facts),
        answered: u32::try_from(facts.answers.len()).unwrap_or(u32::MAX),
        silent: facts.silent.clone(),
        remembered_since: facts.answers.iter().map(|answer| answer.reach).max(),
        queued_deliveries: if is_unknown {
            facts.ready.values().sum()
        } else {
            0
        },
    }
}

/// Collects what every source says, step by step.
fn signs(id: MessageId, facts: &Facts) -> BTreeMap<StepKey, Vec<Sign>> {
    let mut signs: BTreeMap<StepKey, Vec<Sign>> = BTreeMap::new();
    let mut insert = |at: u64, is_now: bool, at_step: AtStep| {
        let key = (at_step.flow.clone(), at_step.step.clone());
        let sign = Sign {
            at,
            is_now,
            at_step,
        };
        signs.entry(key).or_default().push(sign);
    };
    for answer in &facts.answers {
        if let Some(holding) = &answer.now {
            insert(facts.now, true, taken(&answer.identity, holding));
        }
        for event in answer.events.iter().filter(|event| event.id == id) {
            for at_step in happened(event, answer, facts) {
                let at = match event.what {
                    What::Emitted { .. } => came(event.at),
                    _ => event.at,
                };
                insert(at, false, at_step);
            }
        }
    }
    for letter in &facts.letters {
        let is_open = matches!(letter.state, DeadState::Open | DeadState::Discarded);
        if !is_open && facts.hands_over(&letter.flow, &letter.step) {
            // What is replayed is not at the action, which handed it over.
            for at_step in sent(&letter.flow, &letter.step, letter.at, facts) {
                insert(came(letter.at), false, at_step);
            }
            continue;
        }
        insert(letter.at, false, died(letter));
    }
    for note in &facts.notes {
        insert(note.due, note.due > facts.now, waits(note, facts.now));
    }
    for entry in &facts.ledger {
        let mut at_step = AtStep::new(&entry.flow, &entry.step, Place::Settled);
        match entry.state {
            EntryState::Settled { at } => {
                at_step.since = Some(at);
                insert(at, false, at_step);
            }
            EntryState::Claimed {
                replica,
                since,
                until,
            } => {
                at_step.place = Place::Claimed;
                at_step.replica = Some(replica);
                at_step.since = Some(since);
                at_step.until = Some(until);
                insert(since, false, at_step);
            }
        }
    }
    if let Some(Entered { flow, to, at, .. }) = &facts.entered
        && let Some(wiring) = facts.flows.get(&**flow)
    {
        for at_step in to.iter().flat_map(|step| sent(flow, step, *at, facts)) {
            insert(came(*at), false, at_step);
        }
        if to.is_empty() {
            let mut at_step = AtStep::new(flow, &wiring.trigger, Place::Unmatched);
            at_step.since = Some(*at);
            at_step.reason = Some("no condition (`when`) of the first actions held for it".into());
            insert(*at, false, at_step);
        }
    }
    if let Some(run) = &facts.run {
        let (at, at_step) = tick(run, facts.now);
        insert(at, false, at_step);
    }
    signs
}

/// What an agent says that has the message.
fn taken(who: &Identity, holding: &Holding) -> AtStep {
    let mut at_step = AtStep::new(&who.flow, &who.step, Place::Taken);
    at_step.replica = Some(who.replica);
    match holding {
        Holding::Waiting => {}
        Holding::InHand { since, attempt } => {
            at_step.place = Place::InHand;
            at_step.since = Some(*since);
            at_step.attempt = Some(*attempt);
        }
        Holding::Held { due, attempt } => {
            at_step.place = Place::Waiting;
            at_step.until = Some(*due);
            at_step.attempt = Some(*attempt);
        }
        Holding::Settling => at_step.place = Place::Settling,
    }
    at_step
}

/// What a note about a message in the delay ladder says.
fn waits(note: &Note, now: u64) -> AtStep {
    let is_back = note.due <= now;
    let place = if is_back {
        Place::Queued
    } else {
        Place::Waiting
    };
    let mut at_step = AtStep::new(&note.flow, &note.step, place);
    at_step.since = Some(if is_back { note.due } else { note.since });
    at_step.until = (!is_back).then_some(note.due);
    at_step.attempt = Some(note.attempt);
    at_step.attempts = Some(note.attempts);
    at_step.reason = Some(note.reason.clone());
    at_step
}

/// What a dead letter says.
fn died(letter: &Letter) -> AtStep {
    let place = match letter.state {
        DeadState::Open => Place::Dead,
        DeadState::Discarded => Place::Discarded,
        DeadState::Replaying | DeadState::Replayed => Place::Queued,
    };
    let mut at_step = AtStep::new(&letter.flow, &letter.step, place);
    at_step.since = Some(letter.at);
    at_step.letter = Some(letter.id.to_string());
    at_step.replica = (letter.replica > 0).then_some(letter.replica);
    at_step.reason = match place {
        Place::Queued if letter.state == DeadState::Replaying => {
            Some(format!("dead letter {} is being replayed", letter.id))
        }
        Place::Queued => Some(format!("dead letter {} was replayed", letter.id)),
        _ => Some(letter.reason.clone()),
    };
    at_step
}

/// When a message came to a step at the latest that was said to be sent there at `at`: that is noted
/// after the broker's confirm, and the step may have been faster.
fn came(at: u64) -> u64 {
    at.saturating_sub(UNDER_WAY_MS)
}

/// Where a message is that was sent to a step: there, or, if that hands it to another flow, at the
/// steps of that which take it.
fn sent(flow: &str, step: &str, at: u64, facts: &Facts) -> Vec<AtStep> {
    let queued = |flow: &str, step: &str, reason| {
        let mut at_step = AtStep::new(flow, step, Place::Queued);
        at_step.since = Some(at);
        at_step.reason = reason;
        at_step
    };
    let wiring = facts.flows.get(flow);
    match wiring.and_then(|wiring| wiring.handovers.get(step)) {
        Some((other, steps)) => {
            let reason = format!("the flow `{flow}` handed it over");
            let steps = steps.iter();
            steps
                .map(|step| queued(other, step, Some(reason.clone())))
                .collect()
        }
        None => vec![queued(flow, step, None)],
    }
}

/// What an event says of the message it happened to: at the step it happened in, or at the steps
/// that it was emitted to.
fn happened(event: &Happened, answer: &Found, facts: &Facts) -> Vec<AtStep> {
    let who = &answer.identity;
    let here = |place, attempt: Option<u32>| {
        let mut at_step = AtStep::new(&who.flow, &who.step, place);
        at_step.replica = Some(who.replica);
        at_step.since = Some(event.at);
        at_step.attempt = attempt;
        at_step
    };
    match &event.what {
        What::Emitted {
            to: Some(branch), ..
        } => sent(&who.flow, branch, event.at, facts),
        What::Unmatched { port, .. } => {
            let mut at_step = here(Place::Unmatched, None);
            at_step.reason = Some(format!(
                "no condition (`when`) of the steps after the port `{port}` held for it"
            ));
            vec![at_step]
        }
        What::Emitted { port, to: None, .. } => {
            let Some(wiring) = facts.flows.get(&who.flow) else {
                return Vec::new();
            };
            let next = wiring.after(&who.step, port);
            if next.is_empty() && port == REPLY_PORT {
                let mut at_step = here(Place::Settled, None);
                at_step.reason = Some("it is an answer of the flow".to_owned());
                return vec![at_step];
            }
            next.into_iter()
                .map(|step| {
                    let mut at_step = AtStep::new(&who.flow, step, Place::Queued);
                    at_step.since = Some(event.at);
                    at_step
                })
                .collect()
        }
        // What became of it is said when it is settled.
        What::Joined { .. } => Vec::new(),
        What::Done { attempt } => vec![here(Place::Settled, Some(*attempt))],
        What::Repeated => vec![here(Place::Settled, None)],
        // The store knows what became of it.
        What::Dead { .. } if is_stored(event.at, &who.step, facts) => Vec::new(),
        What::Dead { attempt } => {
            let mut at_step = here(Place::Dead, Some(*attempt));
            at_step.reason = Some("its dead letter is on its way to the store".to_owned());
            vec![at_step]
        }
        What::Delayed { attempt, due } => {
            let mut at_step = here(Place::Waiting, Some(attempt + 1));
            at_step.until = Some(*due);
            if *due <= facts.now {
                at_step.place = Place::Queued;
                at_step.since = Some(*due);
                at_step.until = None;
            }
            vec![at_step]
        }
    }
}

/// Whether the dead letter of a death at a step is in the store.
fn is_stored(died_at: u64, step: &str, facts: &Facts) -> bool {
    facts.letters.iter().any(|letter| {
        letter.step == step
            && letter.at <= died_at + UNDER_WAY_MS
            && died_at < letter.at + CONFIRMED_MS
    })
}

/// What is known of a tick: its run.
fn tick(run: &RunRecord, now: u64) -> (u64, AtStep) {
    let (at, place) = match run.state {
        RunState::Done => (run.ended_at.unwrap_or(run.started_at), Place::Settled),
        RunState::Failed | RunState::Abandoned => {
            // Only that it ended is known; a dead letter says more, and is as new.
            (run.started_at, Place::Untraced)
        }
        _ if run.next_at.is_some_and(|next| next > now) => (run.started_at, Place::Waiting),
        _ => (run.started_at, Place::Queued),
    };
    let mut at_step = AtStep::new(&run.flow, &run.step, place);
    at_step.since = Some(at);
    at_step.until = run.next_at.filter(|_| place == Place::Waiting);
    at_step.reason.clone_from(&run.reason);
    (at, at_step)
}

/// Decides where the message is at one step.
fn decide(
    key: &StepKey,
    mut signs: Vec<Sign>,
    facts: &Facts,
    contradictions: &mut Vec<String>,
) -> AtStep {
    let step = format!("{}/{}", key.0, key.1);
    let is_held = |place: Place| matches!(place, Place::InHand | Place::Settling | Place::Taken);
    let holders: Vec<u32> = signs
        .iter()
        .filter(|sign| is_held(sign.at_step.place))
        .filter_map(|sign| sign.at_step.replica)
        .collect();
    if holders.len() > 1 {
        contradictions.push(format!(
            "replicas {} of {step} have it at the same time: the broker delivered it again when a \
             connection was lost; without `once: true` it may be handled by each of them",
            holders
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(" and ")
        ));
    }
    // What is so now comes before what was so; of what was, the newest; at one moment, a store's
    // record before an agent's memory of the same thing.
    let rank = |sign: &Sign| {
        let is_letter = sign.at_step.letter.is_some();
        (sign.is_now, sign.at, is_letter)
    };
    signs.sort_by_key(|sign| std::cmp::Reverse(rank(sign)));
    let (believed, others) = signs.split_first().map_or_else(
        || (AtStep::new(&key.0, &key.1, Place::Unknown), Vec::new()),
        |(first, others)| (first.at_step.clone(), others.to_vec()),
    );
    let mut believed = complete(believed, &others);
    let is_on_its_way = matches!(
        believed.place,
        Place::InHand | Place::Taken | Place::Waiting
    );
    let replayed_at = facts
        .letters
        .iter()
        .filter(|letter| letter.state != DeadState::Open && letter.step == key.1)
        .map(|letter| letter.at)
        .max();
    if is_on_its_way
        && let Some(settled) = others.iter().find(|sign| {
            matches!(sign.at_step.place, Place::Settled)
                && replayed_at.is_none_or(|replayed| replayed < sign.at)
        })
    {
        let by = settled
            .at_step
            .replica
            .map_or_else(String::new, |replica| format!(" by replica {replica}"));
        contradictions.push(format!(
            "it was settled at {step}{by} already: it came a second time (without `once: true` a \
             message is handled at least once)"
        ));
    }
    if is_on_its_way
        && let Some(letter) = others
            .iter()
            .find(|sign| sign.at_step.place == Place::Dead && sign.at_step.letter.is_some())
    {
        contradictions.push(format!(
            "dead letter {} of it is open as well: it came a second time",
            letter.at_step.letter.clone().unwrap_or_default()
        ));
    }
    believed.ready = facts.ready.get(key).copied();
    if believed.place == Place::Queued && is_gone(&believed, facts) {
        believed.place = Place::Untraced;
    }
    believed.next = next(&believed, facts);
    believed
}

/// Takes what is missing from what others say of the same.
fn complete(mut believed: AtStep, others: &[Sign]) -> AtStep {
    let same = |sign: &&Sign| sign.at_step.place == believed.place;
    if let Some(other) = others.iter().find(same).map(|sign| &sign.at_step) {
        believed.replica = believed.replica.or(other.replica);
        believed.attempt = believed.attempt.or(other.attempt);
        believed.attempts = believed.attempts.or(other.attempts);
        if believed.letter.is_none() {
            believed.letter.clone_from(&other.letter);
        }
        if believed.reason.is_none() {
            believed.reason.clone_from(&other.reason);
        }
    }
    believed
}

/// Whether a message that was sent to a step is not there any more: its queue is empty, and no agent
/// has it.
fn is_gone(at_step: &AtStep, facts: &Facts) -> bool {
    let since = at_step.since.unwrap_or(0);
    at_step.ready == Some(0) && since + UNDER_WAY_MS < facts.now && facts.silent.is_empty()
}

/// What happens next.
fn next(at_step: &AtStep, facts: &Facts) -> String {
    let flow = &at_step.flow;
    let held_up = match facts.flows.get(flow) {
        None => Some(format!("nothing: there is no flow `{flow}` any more")),
        Some(wiring) => wiring.intents.get(&at_step.step).and_then(stands_still),
    };
    match at_step.place {
        Place::Queued => held_up.unwrap_or_else(|| {
            format!(
                "a replica of `{}` takes it as soon as those before it are taken",
                at_step.step
            )
        }),
        Place::Taken => held_up.unwrap_or_else(|| {
            "it is handed to the step as soon as there is a place in its hands".to_owned()
        }),
        Place::InHand => {
            "the step answers, or is told to come back when its time is over".to_owned()
        }
        Place::Claimed => {
            "who claimed it says more, or somebody else takes it over when the claim is over"
                .to_owned()
        }
        Place::Settling => "it is settled as soon as the broker confirms".to_owned(),
        Place::Waiting => match at_step.attempt {
            Some(attempt) => format!(
                "attempt {attempt}{} begins when its time has come",
                at_step
                    .attempts
                    .map_or_else(String::new, |all| format!(" of {all}"))
            ),
            None => "it is tried again when its time has come".to_owned(),
        },
        Place::Dead => match &at_step.letter {
            Some(letter) => format!(
                "nothing until someone decides: `towpath dead show {letter}`, `towpath dead replay {letter}`"
            ),
            None => "it is in `towpath dead list` in a moment".to_owned(),
        },
        Place::Discarded => "nothing: it was discarded".to_owned(),
        Place::Settled => "nothing: it is done here".to_owned(),
        Place::Unmatched => "nothing: no step takes it".to_owned(),
        Place::Untraced => {
            "nothing: it was handled longer ago than anybody remembers, or an operator dropped it"
                .to_owned()
        }
        Place::Unknown => "nothing that is known".to_owned(),
    }
}

/// What is to be said of a step that takes nothing.
fn stands_still(intent: &Intent) -> Option<String> {
    match intent.state {
        FlowState::Running | FlowState::Draining => None,
        FlowState::Paused | FlowState::Stopped => Some(format!(
            "nothing as long as {}",
            intent.because.as_deref().unwrap_or("the step is held")
        )),
    }
}

fn attempts(id: MessageId, facts: &Facts) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    for letter in &facts.letters {
        attempts.extend(letter.attempts.iter().map(|past| Attempt {
            flow: letter.flow.clone(),
            step: letter.step.clone(),
            attempt: past.attempt,
            at: past.at,
            replica: past.replica,
            outcome: past.reason.clone(),
            log: past.log.clone(),
        }));
    }
    for answer in &facts.answers {
        let who = &answer.identity;
        for event in answer.events.iter().filter(|event| event.id == id) {
            let (attempt, outcome) = match &event.what {
                What::Done { attempt } => (*attempt, "done".to_owned()),
                What::Dead { attempt } => (*attempt, "given up".to_owned()),
                What::Delayed { attempt, due } => {
                    // The note about it knows why.
                    let note = facts.notes.iter().find(|note| {
                        note.step == who.step && note.due.abs_diff(*due) < UNDER_WAY_MS / 10
                    });
                    let outcome =
                        note.map_or_else(|| "put off".to_owned(), |note| note.reason.clone());
                    (*attempt, outcome)
                }
                What::Emitted { .. }
                | What::Unmatched { .. }
                | What::Joined { .. }
                | What::Repeated => continue,
            };
            let is_known = attempts.iter().any(|known| {
                (&known.flow, &known.step, known.attempt, known.replica)
                    == (&who.flow, &who.step, attempt, who.replica)
                    && known.at.abs_diff(event.at) < UNDER_WAY_MS
            });
            if !is_known {
                attempts.push(Attempt {
                    flow: who.flow.clone(),
                    step: who.step.clone(),
                    attempt,
                    at: event.at,
                    replica: who.replica,
                    outcome,
                    log: Vec::new(),
                });
            }
        }
    }
    attempts.sort_by(|a, b| (a.at, a.attempt, &a.step).cmp(&(b.at, b.attempt, &b.step)));
    attempts.dedup();
    attempts
}

fn run(id: MessageId, facts: &Facts) -> Option<String> {
    let run = facts
        .run
        .as_ref()
        .map(|_| id)
        .or_else(|| facts.letters.iter().find_map(|letter| letter.run))
        .or_else(|| facts.notes.first().map(|note| note.run))?;
    Some(run.to_string())
}

fn parent(id: MessageId, facts: &Facts) -> Option<Parent> {
    for answer in &facts.answers {
        for event in &answer.events {
            if event.id == id
                && let What::Emitted { parent, port, .. } | What::Unmatched { parent, port } =
                    &event.what
            {
                return Some(Parent {
                    id: parent.to_string(),
                    step: Some(answer.identity.step.clone()),
                    port: Some(port.clone()),
                });
            }
        }
    }
    let parent = facts.letters.iter().find_map(|letter| letter.parent)?;
    Some(Parent {
        id: parent.to_string(),
        step: None,
        port: None,
    })
}

fn children(id: MessageId, facts: &Facts) -> Vec<Child> {
    let mut children: BTreeMap<(u64, MessageId), Child> = BTreeMap::new();
    for answer in &facts.answers {
        for event in &answer.events {
            let (of, port) = match &event.what {
                What::Emitted { parent, port, .. } | What::Unmatched { parent, port }
                    if *parent == id && event.id != id =>
                {
                    (event.id, port)
                }
                What::Joined { output, port } if event.id == id => (*output, port),
                _ => continue,
            };
            let child = Child {
                id: of.to_string(),
                step: answer.identity.step.clone(),
                port: port.clone(),
                at: event.at,
            };
            children.insert((event.at, of), child);
        }
    }
    // Emitted twice, it is one message all the same.
    let mut seen = std::collections::BTreeSet::new();
    let mut children: Vec<Child> = children
        .into_values()
        .filter(|child| seen.insert((child.id.clone(), child.step.clone(), child.port.clone())))
        .collect();
    let surplus = children.len().saturating_sub(CHILDREN_MAX);
    children.drain(..surplus);
    children
}

impl AtStep {
    fn new(flow: &str, step: &str, place: Place) -> Self {
        Self {
            flow: flow.to_owned(),
            step: step.to_owned(),
            place,
            replica: None,
            since: None,
            until: None,
            attempt: None,
            attempts: None,
            letter: None,
            reason: None,
            ready: None,
            next: String::new(),
        }
    }
}

#[cfg(test)]
mod tests;

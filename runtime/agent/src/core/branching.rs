//! Which of the steps after this one an output goes to, where they have conditions.
//!
//! Conditions are evaluated elsewhere: questions go out ([`Core::take_questions`]), verdicts come back
//! in the same order ([`Core::on_verdicts`]).
//!
//! # Invariants
//!
//! - `nothing_is_lost_wherever_it_is_cut_with_branches`: an output that waits for its verdict counts
//!   as one that waits for its confirm.
//! - `an_output_goes_to_exactly_the_branches_that_hold_for_it`, and what none holds for is counted.
//! - `a_condition_that_fails_makes_a_dead_letter_of_its_step`, and stops no other branch.
//! - Outputs go to a branch in the order in which they were emitted.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::message::REASON_BYTES_MAX;
use towpath_protocol::office::{DeadCause, DeadLetter};
use towpath_protocol::start::Routes;
use towpath_step_jq::judge::Holds;

use super::Core;
use crate::clock::Now;
use crate::journal;
use crate::lanes::{Copy, LaneId, Lanes, Member};
use crate::redact::cut;

/// Which conditions hold for an output?
#[derive(Debug, Clone)]
pub struct Question {
    /// The number of the port it leaves by.
    pub port: u16,
    /// The output, as it goes on.
    pub message: Bytes,
}

/// The steps behind a port that are branches.
#[derive(Debug, Default)]
struct Port {
    /// Those that take everything; with the lane of all others, if there are such.
    always: Vec<LaneId>,
    /// Those that have a condition, each with its lane.
    conditional: Vec<(LaneId, String)>,
}

/// An output that waits for its verdict.
#[derive(Debug)]
struct Waiting {
    port: u16,
    /// Its line, with its line end.
    line: Bytes,
    id: MessageId,
    member: Member,
}

/// The outputs that wait for their verdicts.
#[derive(Debug, Default)]
pub(super) struct Branching {
    ports: Vec<Port>,
    waiting: VecDeque<Waiting>,
    asked: VecDeque<Waiting>,
    bytes: usize,
    /// Why there are no verdicts.
    pub(super) trouble: Option<String>,
}

impl Branching {
    pub(super) fn new(routes: &Routes, lanes: &Lanes) -> Self {
        let ports = (0..).zip(routes.outputs.values()).map(|(number, output)| {
            let mut port = Port::default();
            if lanes.has_all(number) {
                port.always.push(LaneId::Port(number));
            }
            for (branch, lane) in output.branches.iter().zip(lanes.branches(number)) {
                match branch.when {
                    Some(_) => port
                        .conditional
                        .push((LaneId::Branch(lane), branch.step.clone())),
                    None => port.always.push(LaneId::Branch(lane)),
                }
            }
            port
        });
        Self {
            ports: ports.collect(),
            ..Self::default()
        }
    }

    /// The bytes of outputs that wait for their verdicts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether outputs wait for their verdicts.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.asked.is_empty()
    }
}

/// The conditions of a step's ports, in the order of [`Question::port`] and of the verdicts.
pub fn conditions(routes: &Routes) -> Vec<Vec<String>> {
    let of_port = |output: &towpath_protocol::start::Output| {
        let branches = output.branches.iter();
        branches.filter_map(|branch| branch.when.clone()).collect()
    };
    routes.outputs.values().map(of_port).collect()
}

impl Core {
    /// Publishes an output to those that take everything, and asks about the others. Returns how
    /// many confirms and verdicts it awaits now.
    pub(super) fn send_output(
        &mut self,
        port: u16,
        line: &[u8],
        id: MessageId,
        member: Member,
        now: Now,
    ) -> u64 {
        let ways = &self.branching.ports[usize::from(port)];
        for (index, lane) in ways.always.iter().enumerate() {
            let copy = Copy {
                id,
                is_first: index == 0,
            };
            self.lanes
                .push_output(*lane, line, member, copy, now.instant);
        }
        let mut awaited = ways.always.len() as u64;
        if !ways.conditional.is_empty() {
            self.branching.bytes += line.len();
            self.branching.waiting.push_back(Waiting {
                port,
                line: Bytes::copy_from_slice(line),
                id,
                member,
            });
            awaited += 1;
        }
        awaited
    }

    /// Takes the next questions, if the ones before are answered.
    pub fn take_questions(&mut self) -> Option<Vec<Question>> {
        let limits = &self.setup.limits;
        let Branching { waiting, asked, .. } = &mut self.branching;
        if !asked.is_empty() || waiting.is_empty() {
            return None;
        }
        let mut bytes = 0;
        while asked.len() < limits.questions {
            let fits = |it: &Waiting| bytes == 0 || bytes + it.line.len() <= limits.question_bytes;
            let Some(next) = waiting.pop_front_if(|it| fits(it)) else {
                break;
            };
            bytes += next.line.len();
            asked.push_back(next);
        }
        let question = |it: &Waiting| Question {
            port: it.port,
            message: it.line.slice(..it.line.len() - 1),
        };
        Some(asked.iter().map(question).collect())
    }

    /// Notes why there are no verdicts yet.
    pub fn on_no_verdicts(&mut self, why: &str) {
        let why = self.setup.redact.apply(why);
        if self.branching.trouble.as_ref() != Some(&why) {
            self.logger.agent("error", None, &why);
        }
        self.branching.trouble = Some(why);
    }

    /// The questions that were taken last are answered: for each, what its conditions say.
    pub fn on_verdicts(&mut self, verdicts: Vec<Vec<Holds>>, now: Now) {
        self.moved_at = now.instant;
        self.branching.trouble = None;
        let asked = std::mem::take(&mut self.branching.asked);
        for (output, verdict) in asked.into_iter().zip(verdicts) {
            self.branching.bytes = self.branching.bytes.saturating_sub(output.line.len());
            self.send_to_branches(&output, verdict, now);
        }
    }

    fn send_to_branches(&mut self, output: &Waiting, verdict: Vec<Holds>, now: Now) {
        let ways = &self.branching.ports[usize::from(output.port)];
        let goes_anyway = !ways.always.is_empty();
        let mut letters = Vec::new();
        let mut copies: u32 = 0;
        for ((lane, step), holds) in ways.conditional.iter().zip(verdict) {
            match holds {
                Holds::Yes => {
                    let copy = Copy {
                        id: output.id,
                        is_first: !goes_anyway && copies == 0,
                    };
                    self.lanes
                        .push_output(*lane, &output.line, output.member, copy, now.instant);
                    copies += 1;
                }
                Holds::No => {}
                Holds::Failed(why) => letters.push((*lane, step.clone(), why)),
            }
        }
        if !goes_anyway && copies == 0 && letters.is_empty() {
            self.counters.unmatched += 1;
            let parent = self.records.get(output.member.record).id;
            let event = journal::Event::Unmatched {
                parent: parent.unwrap_or(output.id),
                port: output.port,
            };
            self.journal.push(output.id, now.wall_ms, event);
        }
        let tracked = self.run_of(output.member.record);
        for (lane, step, why) in letters {
            let letter = self.letter_of(output, &step, &why, now);
            self.lanes
                .push(LaneId::Astray, &letter, output.member, now.instant);
            copies += 1;
            // What is dead at a step was emitted for it.
            if let (Some(run), Some(way)) = (tracked, self.lanes.way(lane)) {
                self.report_output(run, output.id, way, output.member, now);
                copies += 1;
            }
        }
        let record = self.records.get(output.member.record);
        record.unconfirmed += u64::from(copies);
        if let Some(tick) = &mut record.tick {
            tick.grow_epoch_of(output.member.epoch, u64::from(copies));
        }
        // The verdict is there; it was awaited like a confirm.
        self.on_confirmed(output.member, now);
    }

    /// Makes a dead letter of an output, for the step whose condition failed for it.
    fn letter_of(&self, output: &Waiting, step: &str, why: &str, now: Now) -> Vec<u8> {
        let reason = format!("its condition (`when`) failed for the message: {why}");
        let text = String::from_utf8_lossy(&output.line);
        let message = RawValue::from_string(text.trim_end().to_owned());
        let mut identity = self.setup.identity.clone();
        step.clone_into(&mut identity.step);
        let letter = DeadLetter {
            identity,
            at: now.wall_ms,
            cause: DeadCause::Condition,
            reason: cut(&self.setup.redact.apply(&reason), REASON_BYTES_MAX),
            chain: Vec::new(),
            attempts: Vec::new(),
            message: message.expect("an output was encoded as JSON"),
        };
        let mut line = serde_json::to_vec(&letter).expect("a dead letter is JSON");
        line.push(b'\n');
        line
    }
}

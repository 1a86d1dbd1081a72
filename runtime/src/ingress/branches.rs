//! Where a request goes that no step handles first: to the actions that follow the trigger, those with
//! a condition only if it holds.
//!
//! # Invariants
//!
//! - `a_request_goes_to_exactly_the_branches_that_hold_for_it`.
//! - `a_request_that_no_condition_holds_for_is_taken_and_counted`.
//! - `a_condition_that_fails_makes_a_dead_letter`, and stops no other branch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use towpath_protocol::DEFAULT_PORT;
use towpath_protocol::message::BATCH_TYPE;
use towpath_protocol::office::{DEAD_TYPE, DeadCause, DeadLetter};
use towpath_protocol::start::Identity;
use towpath_step_jq::judge::{Holds, Judge};

use super::worker::Route;
use super::{IngressError, WAITING_MAX};
use crate::broker::topology::Names;
use crate::live::LiveFlow;

/// How long a request waits for its verdict: as long as the worst condition may take, tried alone a
/// few times, and less than a sender waits.
const VERDICT_MAX: Duration = Duration::from_secs(10);

/// The most sets of conditions that have a worker process at a time; each takes some MiB.
const JUDGES_MAX: usize = 32;

/// Where a message goes, by which route and in which words.
#[derive(Debug)]
pub(super) struct Way {
    /// The steps it leads to.
    pub(super) steps: Vec<String>,
    pub(super) route: Route,
    /// What is published: the message, or a dead letter of it.
    pub(super) line: String,
}

/// The judges of all flows whose first actions have conditions. Clones share them.
#[derive(Clone)]
pub(super) struct Branches {
    program: PathBuf,
    judges: Arc<Mutex<BTreeMap<Vec<String>, Arc<Judge>>>>,
    /// As many requests as may wait for their confirms may wait for their verdicts.
    waiting: Arc<Semaphore>,
}

impl Branches {
    /// `program` is the binary that serves as worker.
    pub(super) fn new(program: PathBuf) -> Self {
        Self {
            program,
            judges: Arc::default(),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// The ways of a message from a trigger without an image; none if no condition holds.
    pub(super) async fn ways(
        &self,
        names: &Names,
        flow: &LiveFlow,
        line: &str,
        now: u64,
    ) -> Result<Vec<Way>, IngressError> {
        let trigger = &flow.trigger.step;
        let route = |exchange: String, key: String, kind| Route {
            exchange,
            key,
            kind,
        };
        let mut ways = Vec::new();
        let mut conditional = Vec::new();
        let first = flow.steps.iter().filter(|(_, after)| {
            let mut after = after.iter();
            after.any(|(step, port)| step == trigger && port == DEFAULT_PORT)
        });
        let mut all = Vec::new();
        for (step, _) in first {
            let to = |line: String| Way {
                steps: vec![step.clone()],
                route: route(
                    names.flow(&flow.name),
                    flow.key_to(trigger, DEFAULT_PORT, step),
                    BATCH_TYPE,
                ),
                line,
            };
            match flow.branches.get(step).map(|branch| &branch.when) {
                Some(Some(when)) => conditional.push((when.clone(), to(String::new()))),
                Some(None) => ways.push(to(line.to_owned())),
                None => all.push(step.clone()),
            }
        }
        if !all.is_empty() {
            ways.push(Way {
                steps: all,
                route: route(
                    names.flow(&flow.name),
                    flow.port_key(trigger, DEFAULT_PORT),
                    BATCH_TYPE,
                ),
                line: line.to_owned(),
            });
        }
        if conditional.is_empty() {
            return Ok(ways);
        }
        let (conditions, branches): (Vec<String>, Vec<Way>) = conditional.into_iter().unzip();
        let verdict = self.verdict(conditions, line).await?;
        for (way, holds) in branches.into_iter().zip(verdict) {
            match holds {
                Holds::Yes => ways.push(Way {
                    line: line.to_owned(),
                    ..way
                }),
                Holds::No => {}
                Holds::Failed(why) => ways.push(Way {
                    route: route(names.dead(), String::new(), DEAD_TYPE),
                    line: letter(names, flow, &way.steps.concat(), line, &why, now),
                    steps: way.steps,
                }),
            }
        }
        Ok(ways)
    }

    async fn verdict(
        &self,
        conditions: Vec<String>,
        line: &str,
    ) -> Result<Vec<Holds>, IngressError> {
        let permit = self.waiting.try_acquire();
        let _permit = permit.map_err(|_| IngressError::Full)?;
        let judge = self.judge(&conditions);
        let mut trouble = |why: &str| tracing::error!(why, "a webhook has to wait");
        let judged = judge.judge(vec![raw(line)], &mut trouble);
        match timeout(VERDICT_MAX, judged).await {
            Ok(mut verdicts) => verdicts.pop().ok_or(IngressError::Unavailable(None)),
            Err(_) => Err(IngressError::Unavailable(None)),
        }
    }

    /// The judge of these conditions. Where there are too many, those that nobody waits for make room.
    fn judge(&self, conditions: &[String]) -> Arc<Judge> {
        // Nothing in here panics half-way through a change.
        let mut judges = self.judges.lock().unwrap_or_else(PoisonError::into_inner);
        if judges.len() >= JUDGES_MAX && !judges.contains_key(conditions) {
            judges.retain(|_, judge| Arc::strong_count(judge) > 1);
        }
        let new = || Arc::new(Judge::new(self.program.clone(), conditions.to_vec()));
        Arc::clone(judges.entry(conditions.to_vec()).or_insert_with(new))
    }
}

/// A dead letter of the step whose condition failed.
fn letter(names: &Names, flow: &LiveFlow, step: &str, line: &str, why: &str, now: u64) -> String {
    let letter = DeadLetter {
        identity: Identity {
            instance: names.instance.clone(),
            flow: flow.name.clone(),
            step: step.to_owned(),
            replica: 0,
            spec: String::new(),
        },
        at: now,
        cause: DeadCause::Condition,
        reason: format!("its condition (`when`) failed for the message: {why}"),
        chain: Vec::new(),
        attempts: Vec::new(),
        message: raw(line),
    };
    serde_json::to_string(&letter).expect("a dead letter is JSON")
}

fn raw(line: &str) -> Box<RawValue> {
    RawValue::from_string(line.to_owned()).expect("a message was written as JSON")
}

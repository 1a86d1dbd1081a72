//! Where a message is: gathers what everybody knows; [`super::whereabouts`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::timeout;
use towpath_protocol::MessageId;
use towpath_protocol::start::Identity;

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::whereabouts::{
    Entry, EntryState, Facts, Letter, Note, Whereabouts, Wiring, whereabouts,
};
use crate::inquiry::{Address, Answers};
use crate::live::LiveFlow;
use crate::reconcile::intent::intent;
use crate::store::dead_letters::{DeadQuery, KeptLetter};
use crate::store::ledger::{LedgerRecord, LedgerState};
use crate::store::now_ms;
use crate::store::waiting::WaitingRecord;

/// How long agents may take to answer.
const ASK: Duration = Duration::from_secs(2);

/// How long the broker may take to say how much is in its queues.
const COUNT: Duration = Duration::from_secs(2);

/// An agent that has said nothing for so long is not asked: it reports every ten seconds.
const SILENT_MS: u64 = 30_000;

/// The most dead letters of one message that are looked at.
const LETTERS_MAX: u32 = 100;

impl Control {
    /// Says where a message is, what was tried, and what happens next.
    pub async fn why(&self, id: &str) -> Result<Whereabouts, ControlError> {
        let id: MessageId = id.parse().map_err(|_| bad_id(id))?;
        let store = &self.catalog.store;
        let query = DeadQuery {
            message: Some(id),
            limit: LETTERS_MAX,
            ..DeadQuery::default()
        };
        let (answers, ready, letters, notes, ledger, run) = tokio::join!(
            self.ask_agents(id),
            self.ready_everywhere(),
            store.dead_letters(query),
            store.waiting_of(id),
            store.ledger_of(id),
            store.run(id),
        );
        let facts = Facts {
            now: now_ms(),
            letters: letters?.iter().map(letter).collect(),
            notes: notes?.into_iter().map(note).collect(),
            ledger: ledger?.iter().filter_map(entry).collect(),
            run: run?,
            entered: self.entered.find(id),
            silent: self.silent(&answers),
            answers: answers.found,
            flows: self.wirings().await?,
            ready,
        };
        Ok(whereabouts(id, &facts))
    }

    /// Asks every agent that is there.
    async fn ask_agents(&self, id: MessageId) -> Answers {
        let there = self.agents_there();
        let mut agents = self.reports.addresses(now_ms().saturating_sub(SILENT_MS));
        agents.retain(|Address { identity, .. }| there.contains(&key(identity)));
        self.inquiry.ask(&*self.broker, agents, id, ASK).await
    }

    /// The replicas that have a container: flow, step, number, spec.
    fn agents_there(&self) -> BTreeSet<(String, String, u32, String)> {
        let status = self.reconciler.status.borrow();
        let mut there = BTreeSet::new();
        for (flow, seen) in &status.flows {
            for (step, seen) in &seen.steps {
                let with_container = seen.replicas.iter().filter(|it| it.container.is_some());
                there.extend(
                    with_container
                        .map(|it| (flow.clone(), step.clone(), it.replica, it.spec.clone())),
                );
            }
        }
        there
    }

    /// Who is there and did not answer.
    fn silent(&self, answers: &Answers) -> Vec<String> {
        let mut silent = self.agents_there();
        for found in &answers.found {
            silent.remove(&key(&found.identity));
        }
        silent
            .into_iter()
            .map(|(flow, step, replica, _)| format!("replica {replica} of {flow}/{step}"))
            .collect()
    }

    /// How the steps of all flows are joined, and what each should be doing.
    async fn wirings(&self) -> Result<BTreeMap<String, Wiring>, ControlError> {
        let mut wirings = BTreeMap::new();
        let entries = self.catalog.entries().await?;
        for record in self.catalog.store.flows().await? {
            let flow = self.catalog.flow(&record)?;
            let wiring = Wiring {
                intents: flow
                    .steps
                    .iter()
                    .map(|step| {
                        let intent = intent(&flow, record.state, &record.held, step);
                        (step.id.clone(), intent)
                    })
                    .collect(),
                trigger: flow.trigger_id.clone(),
                steps: flow
                    .steps
                    .iter()
                    .map(|step| (step.id.clone(), step.after.clone()))
                    .collect(),
                handovers: flow
                    .handovers
                    .iter()
                    .map(|it| {
                        let entry = entries.get(&it.to).into_iter().flatten();
                        let entry = entry.map(|it| it.step.clone()).collect();
                        (it.id.clone(), (it.to.clone(), entry))
                    })
                    .collect(),
                branches: LiveFlow::new(&flow, record.version, record.applied_at, record.state)
                    .branches
                    .into_keys()
                    .collect(),
            };
            wirings.insert(record.name, wiring);
        }
        Ok(wirings)
    }

    /// How many deliveries are ready in each step's queue, if the broker says it.
    async fn ready_everywhere(&self) -> BTreeMap<(String, String), u64> {
        let live = self.live.borrow().clone();
        let steps: Vec<(String, String)> = live
            .iter()
            .flat_map(|(flow, it)| {
                it.steps
                    .iter()
                    .map(|(step, _)| (flow.clone(), step.clone()))
            })
            .collect();
        let queues: Vec<Vec<String>> = steps
            .iter()
            .map(|(flow, step)| self.queues_of(flow, step))
            .collect();
        let depths = timeout(COUNT, self.broker.depths(&queues.concat())).await;
        let Ok(Ok(depths)) = depths else {
            return BTreeMap::new();
        };
        steps
            .into_iter()
            .zip(queues)
            .map(|(step, queues)| {
                let ready = queues.iter().filter_map(|queue| depths.get(queue));
                (step, ready.map(|depth| depth.ready).sum())
            })
            .collect()
    }
}

fn bad_id(text: &str) -> ControlError {
    let message = format!("`{text}` is no id of a message");
    ControlError::new(ErrorKind::Bad, "bad_message_id", message).hint(
        "it is 32 hexadecimal digits: `message_id` in log lines, `message` in `towpath dead show`",
    )
}

fn key(identity: &Identity) -> (String, String, u32, String) {
    (
        identity.flow.clone(),
        identity.step.clone(),
        identity.replica,
        identity.spec.clone(),
    )
}

fn letter(letter: &KeptLetter) -> Letter {
    Letter {
        id: letter.id,
        flow: letter.flow.clone(),
        step: letter.step.clone(),
        at: letter.at,
        replica: letter.replica,
        reason: letter.reason.clone(),
        state: letter.state,
        attempts: letter.attempts.clone(),
        run: letter.run,
        parent: parent(&letter.message),
    }
}

/// The parent that a message names, if it can be read.
fn parent(message: &RawValue) -> Option<MessageId> {
    serde_json::from_str::<towpath_protocol::message::Message<'_>>(message.get())
        .ok()?
        .parent
}

fn note(note: WaitingRecord) -> Note {
    Note {
        flow: note.flow,
        step: note.step,
        run: note.run,
        attempt: note.attempt,
        attempts: note.attempts,
        reason: note.reason,
        since: note.since,
        due: note.due,
    }
}

fn entry(record: &LedgerRecord) -> Option<Entry> {
    let state = match record.state {
        LedgerState::Settled { at } => EntryState::Settled { at },
        LedgerState::Claimed {
            replica,
            since,
            until,
            ..
        } => EntryState::Claimed {
            replica,
            since,
            until,
        },
        LedgerState::Open => return None,
    };
    Some(Entry {
        flow: record.flow.clone(),
        step: record.step.clone(),
        state,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use towpath_protocol::office::{Found, Holding, Report, ToAgent};

    use super::super::testing::{Bench, FLOW, draft};
    use super::*;
    use crate::control::Place;

    #[tokio::test]
    async fn a_bad_id_is_refused_and_for_an_unknown_one_it_is_said_who_did_not_answer() {
        let bench = Bench::new().await;
        bench.control.apply(&draft(FLOW)).await.unwrap();
        bench.settle().await;
        for bad in ["", "x", "0123", &"g".repeat(32), &"0".repeat(33)] {
            let error = bench.control.why(bad).await.unwrap_err();
            assert_eq!((error.kind, error.code), (ErrorKind::Bad, "bad_message_id"));
            assert!(error.hint.unwrap().contains("32 hexadecimal digits"));
        }
        let found = bench.control.why(&"0".repeat(32)).await.unwrap();
        assert_eq!(found.state, Place::Unknown);
        assert_eq!(found.answered, 0);
        assert_eq!(
            found.silent,
            [
                "replica 1 of orders/crm",
                "replica 2 of orders/crm",
                "replica 1 of orders/shape"
            ]
        );
    }

    #[tokio::test]
    async fn an_agent_that_is_there_is_asked_and_believed() {
        let bench = Bench::new().await;
        bench.control.apply(&draft(FLOW)).await.unwrap();
        bench.settle().await;
        let (control, broker) = (&bench.control, &bench.broker);
        let there = control.agents_there();
        let (flow, step, replica, spec) = there.iter().next().unwrap().clone();
        let identity = Identity {
            instance: "t".into(),
            flow,
            step,
            replica,
            spec,
        };
        let report: Report = serde_json::from_value(json!({
            "identity": identity, "incarnation": "a", "at": 1, "state": "running", "in_hand": 1,
            "held": 1, "unacknowledged": 1, "restarts": 0, "latency": {"counts": [], "sum_us": 0},
            "counters": {"received": 1, "deliveries": 1, "emitted": 0, "unconnected": 0, "done": 0,
                "failed": 0, "retried": 0, "rebounded": 0, "dead": 0, "timed_out": 0, "crashed": 0},
        }))
        .unwrap();
        control.reports.record(report, now_ms());
        control.reports.note_address(&identity, "reply.1");
        let id = "01".repeat(16);
        let answering = async {
            let answer = loop {
                if let Some(answer) = broker.answers().pop() {
                    break answer;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            assert_eq!(answer.reply_to, "reply.1");
            let Ok(ToAgent::Find(find)) = serde_json::from_slice(&answer.body) else {
                panic!("it asks")
            };
            control.inquiry.answered(Found {
                identity: identity.clone(),
                question: find.question,
                now: Some(Holding::InHand {
                    since: 1,
                    attempt: 2,
                }),
                events: Vec::new(),
                reach: 1,
            });
        };
        let (found, ()) = tokio::join!(control.why(&id), answering);
        let found = found.unwrap();
        assert_eq!(found.state, Place::InHand);
        assert_eq!(found.steps[0].replica, Some(identity.replica));
        assert_eq!(found.silent.len(), 2, "the others are not heard of");
    }
}

//! Asking agents what they know of one message, through the broker.
//!
//! # Invariants
//!
//! - `whoever_does_not_answer_is_named_and_not_waited_for`.
//! - Nobody is asked about a question that nobody waits for any more, and late answers are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use towpath_protocol::MessageId;
use towpath_protocol::office::{Find, Found, ToAgent};
use towpath_protocol::start::Identity;

use crate::broker::Broker;

/// The most agents that are asked at a time; every one of them looks through its memory.
const ASKED_MAX: usize = 1_000;

/// The questions that are open. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Inquiry {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    questions: BTreeMap<u64, mpsc::Sender<Found>>,
}

/// Where an agent can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Who it is.
    pub identity: Identity,
    /// Its direct reply-to.
    pub reply_to: String,
}

/// What came of a question.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// What the agents know, one answer each.
    pub found: Vec<Found>,
    /// Who did not answer in time.
    pub silent: Vec<Identity>,
}

/// A question, which is forgotten when nobody waits for it any more.
struct Question<'a> {
    inquiry: &'a Inquiry,
    number: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.inquiry.lock().questions.remove(&self.number);
    }
}

impl Inquiry {
    /// Asks agents about a message, and waits for their answers, but not for long.
    pub async fn ask(
        &self,
        broker: &dyn Broker,
        mut agents: Vec<Address>,
        id: MessageId,
        wait: Duration,
    ) -> Answers {
        let deadline = Instant::now() + wait;
        agents.truncate(ASKED_MAX);
        if agents.is_empty() {
            return Answers::default();
        }
        let (sender, mut receiver) = mpsc::channel(agents.len());
        let question = self.open(sender);
        let find = ToAgent::Find(Find {
            question: question.number,
            id,
        });
        let body = Bytes::from(serde_json::to_vec(&find).expect("a question is JSON"));
        let correlation = question.number.to_string();
        let asked = agents
            .iter()
            .map(|agent| broker.reply(&agent.reply_to, &correlation, body.clone()));
        // Who cannot be asked does not answer, and is named for that.
        drop(timeout_at(deadline, join_all(asked)).await);
        let mut missing: BTreeSet<Identity> =
            agents.into_iter().map(|agent| agent.identity).collect();
        let mut found = Vec::new();
        while !missing.is_empty()
            && let Ok(Some(answer)) = timeout_at(deadline, receiver.recv()).await
        {
            if missing.remove(&answer.identity) {
                found.push(answer);
            }
        }
        Answers {
            found,
            silent: missing.into_iter().collect(),
        }
    }

    /// An answer came.
    pub fn answered(&self, found: Found) {
        let waiting = self.lock().questions.get(&found.question).cloned();
        // Too late, or twice: nobody needs it.
        if let Some(waiting) = waiting
            && let Err(error) = waiting.try_send(found)
        {
            tracing::debug!(%error, "an answer of an agent is not needed");
        }
    }

    fn open(&self, sender: mpsc::Sender<Found>) -> Question<'_> {
        let mut open = self.lock();
        if open.last == 0 {
            // An answer to a question of an earlier control plane is not taken for one to ours.
            open.last = u64::from(rand::random::<u32>()) << 16;
        }
        open.last += 1;
        let number = open.last;
        open.questions.insert(number, sender);
        drop(open);
        Question {
            inquiry: self,
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing in here panics half-way through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::simulated::Simulated;

    fn identity(replica: u32) -> Identity {
        Identity {
            instance: "t".into(),
            flow: "orders".into(),
            step: "crm".into(),
            replica,
            spec: "s".into(),
        }
    }

    fn address(replica: u32) -> Address {
        Address {
            identity: identity(replica),
            reply_to: format!("reply.{replica}"),
        }
    }

    fn found(question: u64, replica: u32) -> Found {
        Found {
            identity: identity(replica),
            question,
            now: None,
            events: Vec::new(),
            reach: 5,
        }
    }

    #[tokio::test]
    async fn whoever_does_not_answer_is_named_and_not_waited_for() {
        let (broker, inquiry) = (Simulated::new(1), Inquiry::default());
        let id = MessageId::from_bytes([1; 16]);
        let agents = vec![address(1), address(2)];
        let asking = inquiry.ask(&broker, agents, id, Duration::from_millis(300));
        let answering = async {
            let question = loop {
                let answers = broker.answers();
                if answers.len() == 2 {
                    assert_eq!(answers[0].reply_to, "reply.1");
                    let asked: ToAgent = serde_json::from_slice(&answers[0].body).unwrap();
                    let ToAgent::Find(find) = asked else {
                        panic!("it asks")
                    };
                    assert_eq!(find.id, id);
                    break find.question;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            inquiry.answered(found(question + 1, 2));
            inquiry.answered(found(question, 1));
            inquiry.answered(found(question, 1));
        };
        let (answers, ()) = tokio::join!(asking, answering);
        assert_eq!(answers.found.len(), 1);
        assert_eq!(answers.silent, [identity(2)]);
        assert!(inquiry.lock().questions.is_empty());
    }
}

//! Waiting for what a flow answers.

use tokio::time::Instant;
use towpath_protocol::{MessageId, answer};

use super::waiters::Waiter;
use super::{Answer, Ingress, IngressError};
use crate::engine::chain;
use crate::store::answers::{KeptAnswer, Outcome};

impl Ingress {
    /// What to answer a request that the broker has: at once if it does not wait. Of one that came
    /// before, the answer may be there already.
    pub(super) async fn reply(
        &self,
        id: MessageId,
        waits: Option<(Waiter, Instant)>,
        mut may_be_there: bool,
    ) -> Result<Answer, IngressError> {
        let Some((mut waiter, until)) = waits else {
            return Ok(Answer::Taken(id));
        };
        loop {
            if may_be_there && let Some(outcome) = self.outcome(id).await {
                return outcome;
            }
            may_be_there = true;
            // Cancel-safe: both only wait.
            tokio::select! {
                is_new = waiter.changed() => if !is_new { return Ok(Answer::Taken(id)) },
                () = tokio::time::sleep_until(until) => return Ok(Answer::Taken(id)),
            }
        }
    }

    /// What came of a request that waits; none if that is still open.
    async fn outcome(&self, id: MessageId) -> Option<Result<Answer, IngressError>> {
        match self.store.outcome_of(id).await {
            Ok(Outcome::Answered(kept)) => Some(Ok(Answer::Replied(id, read(&kept)))),
            Ok(Outcome::Over { has_dead: true }) => Some(Err(IngressError::GivenUp { run: id })),
            Ok(Outcome::Over { has_dead: false } | Outcome::Unknown) => Some(Ok(Answer::Taken(id))),
            Ok(Outcome::Open) => None,
            Err(error) => {
                tracing::warn!("cannot look for the answer of a run: {}", chain(&error));
                None
            }
        }
    }
}

/// An answer that is kept. It was written by the office.
fn read(kept: &KeptAnswer) -> answer::Answer {
    serde_json::from_str(&kept.answer).expect("what is kept was read before")
}

//! The desk that keeps the ledger: claims are answered after what they are answered with is stored.
//!
//! # Invariants
//!
//! - `a_claim_is_answered_after_what_was_settled_before`: entries are taken in their order.
//! - Nobody takes over from somebody else while entries may be unread that waited while nobody read.
//! - An answer that is lost is asked for again, and is the same.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use towpath_protocol::office::{Claim, Claimed, Grant, LedgerEntry, ToAgent};

use super::{Office, lines, settle, until_stored};
use crate::broker::Delivery;
use crate::engine::chain;
use crate::ledger::Moment;

/// How many deliveries are taken at a time. All that are there are written in one transaction: the
/// more there are, the less each costs.
pub(super) const WINDOW: u16 = 512;

/// How long nothing must have been read for it to be possible that entries wait on the broker: whoever
/// is told that a message is in other hands asks again sooner.
const SILENCE_MS: u64 = 5_000;

/// How long it takes to read what has waited: tens of thousands of entries a second.
const CATCH_UP_MS: u64 = 5_000;

/// Where an entry's answer goes.
type Reply = Option<(String, String)>;

impl Office {
    pub(super) async fn read_ledger(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut batch = Vec::new();
        let (mut read_at, mut caught_up_at) = (0, 0);
        while deliveries.recv_many(&mut batch, usize::from(WINDOW)).await > 0 {
            let arrived = (self.clock)();
            if arrived.saturating_sub(read_at) > SILENCE_MS {
                caught_up_at = arrived.saturating_add(CATCH_UP_MS);
            }
            let (entries, replies) = read(&batch);
            let entries = Arc::new(entries);
            let answers = until_stored(|| {
                let sightings = Arc::clone(&self.sightings);
                let now = (self.clock)();
                let moment = Moment {
                    now,
                    takeovers: now >= caught_up_at,
                };
                self.store
                    .ledger(Arc::clone(&entries), sightings, moment)
                    .boxed()
            })
            .await;
            read_at = (self.clock)();
            let asked = entries.iter().zip(replies).zip(answers);
            let answered = asked.filter_map(|((entry, reply), grants)| match (entry, grants) {
                (LedgerEntry::Claim(claim), Some(grants)) => Some((claim, reply, grants)),
                _ => None,
            });
            join_all(answered.map(|(claim, reply, grants)| self.grant(claim, reply, grants))).await;
            for entry in entries.iter() {
                if let LedgerEntry::Settled(handled) = entry {
                    let identity = &handled.identity;
                    let count = handled.messages.len() as u64;
                    self.metrics
                        .ledger_settled(&identity.flow, &identity.step, count);
                }
            }
            batch.drain(..).for_each(settle);
        }
    }

    async fn grant(&self, claim: &Claim, reply: Reply, grants: Vec<Grant>) {
        let (flow, step) = (&claim.identity.flow, &claim.identity.step);
        self.metrics.ledger_answers(flow, step, &grants);
        let Some((reply_to, correlation)) = reply else {
            tracing::error!(flow, step, "a claim does not say where to answer");
            return;
        };
        let answer = ToAgent::Claimed(Claimed {
            question: claim.question,
            grants,
        });
        let body = serde_json::to_vec(&answer).expect("an answer is JSON");
        // Who asked and got no answer asks again.
        if let Err(error) = self
            .broker
            .reply(&reply_to, &correlation, body.into())
            .await
        {
            tracing::warn!(flow, step, error = %chain(&error), "cannot answer a claim");
        }
    }
}

fn read(batch: &[Delivery]) -> (Vec<LedgerEntry>, Vec<Reply>) {
    let mut entries = Vec::with_capacity(batch.len());
    let mut replies = Vec::with_capacity(batch.len());
    for delivery in batch {
        for line in lines(&delivery.body) {
            match serde_json::from_slice::<LedgerEntry>(line) {
                Ok(entry) => {
                    entries.push(entry);
                    replies.push(delivery.reply.clone());
                }
                // It can never be read; an older control plane must not stand still over what a
                // newer agent has to say.
                Err(error) => {
                    tracing::error!(%error, "an entry of the ledger that cannot be read is dropped");
                }
            }
        }
    }
    (entries, replies)
}

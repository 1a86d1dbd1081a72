//! The control plane as far as agents know it: who claimed which message, and what is settled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use towpath_protocol::MessageId;
use towpath_protocol::office::{Claim, Claimed, Grant, LedgerEntry, ToAgent};

/// An entry, the replica whose it is, and the number of its connection.
pub(crate) type Waiting = (usize, u64, LedgerEntry);

type Key = (MessageId, u32);

/// Who has a message.
#[derive(Debug, Clone)]
struct Holder {
    incarnation: String,
    until: Instant,
    is_alone: bool,
    deaths: u32,
}

/// The ledger.
#[derive(Default)]
pub(crate) struct Ledger {
    holders: BTreeMap<Key, Holder>,
    settled: BTreeSet<Key>,
    gone: BTreeSet<String>,
    /// Nobody reads the ledger's queue.
    pub(crate) is_away: bool,
    waiting: Vec<Waiting>,
    /// How many entries there were.
    pub(crate) entries: usize,
}

impl Ledger {
    /// A container is known to be gone.
    pub(crate) fn is_gone(&mut self, incarnation: &str) {
        self.gone.insert(incarnation.to_owned());
    }

    pub(crate) fn is_settled(&self, id: &str) -> bool {
        self.settled.iter().any(|key| key.0.to_string() == id)
    }

    /// Returns how many messages are settled.
    pub(crate) fn settled(&self) -> usize {
        self.settled.len()
    }

    /// Returns how many messages somebody has.
    pub(crate) fn held(&self) -> usize {
        self.holders.len()
    }

    pub(crate) fn take_waiting(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// Takes up an entry; returns the answer.
    pub(crate) fn note(&mut self, waiting: Waiting, now: Instant) -> Option<ToAgent> {
        if self.is_away {
            self.waiting.push(waiting);
            return None;
        }
        self.entries += 1;
        match waiting.2 {
            LedgerEntry::Claim(claim) => {
                let grants = claim.messages.iter();
                let grants = grants.map(|key| self.grant(*key, &claim, now)).collect();
                Some(ToAgent::Claimed(Claimed {
                    question: claim.question,
                    grants,
                }))
            }
            LedgerEntry::Settled(told) => {
                for key in told.messages {
                    self.holders.remove(&key);
                    self.settled.insert(key);
                }
                None
            }
            LedgerEntry::Released(told) => {
                for key in told.messages {
                    if self
                        .holders
                        .get(&key)
                        .is_some_and(|it| it.incarnation == told.incarnation)
                    {
                        self.holders.remove(&key);
                    }
                }
                None
            }
        }
    }

    fn grant(&mut self, key: Key, claim: &Claim, now: Instant) -> Grant {
        if self.settled.contains(&key) {
            return Grant::Settled;
        }
        let mut deaths = 0;
        let mut uncertain = false;
        if let Some(holder) = self.holders.get(&key) {
            let is_same = holder.incarnation == claim.incarnation;
            let is_gone = self.gone.contains(&holder.incarnation);
            if !is_same && !is_gone && now < holder.until {
                return Grant::Busy { again_ms: 100 };
            }
            uncertain = !is_same;
            deaths = holder.deaths + u32::from(is_gone && holder.is_alone);
        }
        let holder = Holder {
            incarnation: claim.incarnation.clone(),
            until: now + Duration::from_millis(claim.lease_ms),
            is_alone: claim.alone,
            deaths,
        };
        self.holders.insert(key, holder);
        Grant::Yours {
            uncertain,
            deaths,
            death: (deaths > 0).then(|| "killed by the memory limit, 256 MiB".to_owned()),
        }
    }
}

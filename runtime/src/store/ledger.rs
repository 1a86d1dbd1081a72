//! The ledger: which messages of a step are in somebody's hands, and which are settled.
//!
//! Everything that has come in is written in one transaction, in its order; who may have a message
//! is decided by [`crate::ledger`].
//!
//! # Invariants
//!
//! - `a_settlement_always_counts`, whoever says so; a release counts only from who has the message.
//! - `it_survives_a_restart`.
//! - `it_goes_with_its_flow`, and old settlements go with time, a little at a time.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use towpath_protocol::MessageId;
use towpath_protocol::office::{Claim, Grant, Handled, LedgerEntry};
use towpath_protocol::start::Identity;

use super::{Store, StoreError};
use crate::ledger::{Entry, Hold, Holder, Moment, Open, Sighting, decide, end, is_over};

/// Says what is known of a replica from elsewhere.
pub type Sightings = Arc<dyn Fn(&Identity) -> Sighting + Send + Sync>;

/// What an incarnation is answered that another one took the place of: in vain, whatever it is.
const BUSY_FOR_NOBODY: Grant = Grant::Busy { again_ms: 1_000 };

/// What the ledger has about a message of a step, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRecord {
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// How often the message had been replayed.
    pub replays: u32,
    /// What is known.
    pub state: LedgerState,
}

/// How a message is in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerState {
    /// It is settled.
    Settled {
        /// Since when, in milliseconds since 1970.
        at: u64,
    },
    /// A replica has it.
    Claimed {
        /// Which.
        replica: u32,
        /// Since when, in milliseconds since 1970.
        since: u64,
        /// Until when the claim holds.
        until: u64,
        /// Somebody who is gone had it before.
        uncertain: bool,
        /// How many containers died while they had it alone in their hands.
        deaths: u32,
    },
    /// Nobody has it, and somebody who is gone had it.
    Open,
}

impl Store {
    /// Takes entries in, in one transaction: first all settlements, because they always count, then
    /// the others in their order. Returns one answer an entry: the grants of a claim, and nothing for
    /// the others.
    pub async fn ledger(
        &self,
        entries: Arc<Vec<LedgerEntry>>,
        sightings: Sightings,
        moment: Moment,
    ) -> Result<Vec<Option<Vec<Grant>>>, StoreError> {
        self.with("write the ledger", move |database| {
            let transaction = database.transaction()?;
            let mut book = Book {
                transaction: &transaction,
                steps: HashMap::new(),
                agents: HashMap::new(),
                sightings,
                moment,
            };
            for entry in entries.iter() {
                if let LedgerEntry::Settled(handled) = entry {
                    book.settle(handled)?;
                }
            }
            let mut answers = Vec::with_capacity(entries.len());
            for entry in entries.iter() {
                answers.push(match entry {
                    LedgerEntry::Claim(claim) => Some(book.claim(claim)?),
                    LedgerEntry::Settled(_) => None,
                    LedgerEntry::Released(handled) => {
                        book.release(handled)?;
                        None
                    }
                });
            }
            transaction.commit()?;
            Ok(answers)
        })
        .await
    }

    /// What the ledger has about a message, step by step.
    pub async fn ledger_of(&self, id: MessageId) -> Result<Vec<LedgerRecord>, StoreError> {
        self.with("read the ledger", move |database| {
            let steps = database
                .prepare_cached("SELECT id, flow, step FROM ledger_steps WHERE gone = 0")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<rusqlite::Result<Vec<(i64, String, String)>>>()?;
            let mut records = Vec::new();
            for (number, flow, step) in steps {
                for (key, state) in states(database, number, id)? {
                    records.push(LedgerRecord {
                        flow: flow.clone(),
                        step: step.clone(),
                        replays: replays(&key),
                        state,
                    });
                }
            }
            Ok(records)
        })
        .await
    }

    /// How many messages of each step (flow, step) are claimed and not settled.
    pub async fn ledger_claims(&self) -> Result<Vec<(String, String, u64)>, StoreError> {
        self.with("count claims", |database| {
            database
                .prepare_cached(
                    "SELECT flow, ledger_steps.step, count(*) FROM ledger_claims
                     JOIN ledger_steps ON ledger_steps.id = ledger_claims.step
                     WHERE gone = 0 AND holder IS NOT NULL GROUP BY flow, ledger_steps.step",
                )?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        })
        .await
    }

    /// Forgets what was settled, or claimed and never heard of again, before `before`, and what is
    /// of flows that are gone: at most about `limit` messages. Returns how many, so that whoever
    /// asks can come again while there are more.
    pub async fn forget_ledger(&self, before: u64, limit: u32) -> Result<usize, StoreError> {
        self.with("forget old settlements", move |database| {
            let transaction = database.transaction()?;
            let mut count = transaction.execute(
                "DELETE FROM ledger_settled WHERE (step, message) IN
                     (SELECT step, message FROM ledger_settled WHERE at < ?1 ORDER BY at LIMIT ?2)",
                params![before, limit],
            )?;
            count += transaction.execute(
                "DELETE FROM ledger_claims WHERE since < ?1 AND until < ?1",
                [before],
            )?;
            count += forget_gone(&transaction, limit)?;
            transaction.execute(
                "DELETE FROM ledger_holders WHERE since < ?1
                     AND id NOT IN (SELECT holder FROM ledger_claims WHERE holder IS NOT NULL)",
                [before],
            )?;
            transaction.commit()?;
            Ok(count)
        })
        .await
    }
}

/// Says that the steps of a flow are gone. Their messages are forgotten by and by, because there
/// may be millions; a flow of the same name begins anew.
pub(super) fn forget_flow(transaction: &Transaction<'_>, flow: &str) -> rusqlite::Result<()> {
    transaction.execute("UPDATE ledger_steps SET gone = 1 WHERE flow = ?1", [flow])?;
    Ok(())
}

fn forget_gone(transaction: &Transaction<'_>, limit: u32) -> rusqlite::Result<usize> {
    let gone = transaction
        .prepare_cached("SELECT id FROM ledger_steps WHERE gone = 1")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let mut count = 0;
    for step in gone {
        count += transaction.execute(
            "DELETE FROM ledger_settled WHERE step = ?1 AND message IN
                 (SELECT message FROM ledger_settled WHERE step = ?1 LIMIT ?2)",
            params![step, limit],
        )?;
        count += transaction.execute("DELETE FROM ledger_claims WHERE step = ?1", [step])?;
        transaction.execute("DELETE FROM ledger_holders WHERE step = ?1", [step])?;
        transaction.execute(
            "DELETE FROM ledger_steps WHERE id = ?1
                 AND NOT EXISTS (SELECT 1 FROM ledger_settled WHERE step = ?1)",
            [step],
        )?;
    }
    Ok(count)
}

/// What one transaction knows.
struct Book<'a> {
    transaction: &'a Transaction<'a>,
    steps: HashMap<(String, String), i64>,
    agents: HashMap<i64, Agent>,
    sightings: Sightings,
    moment: Moment,
}

/// One start of an agent, and what is known of its replica.
struct Agent {
    holder: Holder,
    sighting: Sighting,
}

impl Book<'_> {
    fn claim(&mut self, claim: &Claim) -> rusqlite::Result<Vec<Grant>> {
        let step = self.step(&claim.identity)?;
        let asker = self.asker(step, &claim.identity, &claim.incarnation)?;
        let is_late = {
            let agent = self.agent(asker, &claim.identity)?;
            is_over(&agent.holder, &agent.sighting)
        };
        let mut grants = Vec::with_capacity(claim.messages.len());
        for (id, replays) in &claim.messages {
            let key = Key::new(*id, *replays);
            let entry = self.entry(step, &key, asker, &claim.identity)?;
            let mut grant = decide(entry.as_ref(), self.moment);
            if is_late && grant != Grant::Settled {
                grant = BUSY_FOR_NOBODY;
            }
            if let Grant::Yours {
                uncertain,
                deaths,
                death,
            } = &grant
            {
                self.transaction
                    .prepare_cached(
                        "INSERT INTO ledger_claims
                             (step, message, holder, since, until, alone, uncertain, deaths, death)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                         ON CONFLICT (step, message) DO UPDATE SET holder = ?3, since = ?4,
                             until = ?5, alone = ?6, uncertain = ?7, deaths = ?8, death = ?9",
                    )?
                    .execute(params![
                        step,
                        key.bytes(),
                        asker,
                        self.moment.now,
                        // SQLite has signed numbers.
                        self.moment.now.saturating_add(claim.lease_ms).min(FOR_EVER),
                        claim.alone,
                        uncertain,
                        deaths,
                        death,
                    ])?;
            }
            grants.push(grant);
        }
        Ok(grants)
    }

    fn settle(&mut self, handled: &Handled) -> rusqlite::Result<()> {
        let step = self.step(&handled.identity)?;
        let mut settle = self.transaction.prepare_cached(
            "INSERT OR IGNORE INTO ledger_settled (step, message, at) VALUES (?1, ?2, ?3)",
        )?;
        let mut end = self
            .transaction
            .prepare_cached("DELETE FROM ledger_claims WHERE step = ?1 AND message = ?2")?;
        for (id, replays) in &handled.messages {
            let key = Key::new(*id, *replays);
            settle.execute(params![step, key.bytes(), self.moment.now])?;
            end.execute(params![step, key.bytes()])?;
        }
        Ok(())
    }

    fn release(&mut self, handled: &Handled) -> rusqlite::Result<()> {
        let step = self.step(&handled.identity)?;
        let Some(holder) = self.known(step, &handled.identity, &handled.incarnation)? else {
            return Ok(());
        };
        // What somebody may have done to it is still so when the next one asks. The deaths are
        // not kept: whoever releases a message has counted them among its attempts.
        let mut keep = self.transaction.prepare_cached(
            "UPDATE ledger_claims SET holder = NULL, until = 0, alone = 0, deaths = 0, death = NULL
             WHERE step = ?1 AND message = ?2 AND holder = ?3 AND uncertain",
        )?;
        let mut end = self.transaction.prepare_cached(
            "DELETE FROM ledger_claims WHERE step = ?1 AND message = ?2 AND holder = ?3",
        )?;
        for (id, replays) in &handled.messages {
            let key = Key::new(*id, *replays);
            if keep.execute(params![step, key.bytes(), holder])? == 0 {
                end.execute(params![step, key.bytes(), holder])?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        step: i64,
        key: &Key,
        asker: i64,
        identity: &Identity,
    ) -> rusqlite::Result<Option<Entry>> {
        let is_settled = self
            .transaction
            .prepare_cached("SELECT 1 FROM ledger_settled WHERE step = ?1 AND message = ?2")?
            .exists(params![step, key.bytes()])?;
        if is_settled {
            return Ok(Some(Entry::Settled));
        }
        let row = self
            .transaction
            .prepare_cached(
                "SELECT holder, since, until, alone, uncertain, deaths, death FROM ledger_claims
                 WHERE step = ?1 AND message = ?2",
            )?
            .query_row(params![step, key.bytes()], read_claim)
            .optional()?;
        let Some((holder, since, mut hold, open)) = row else {
            return Ok(None);
        };
        let Some(holder) = holder else {
            return Ok(Some(Entry::Open(open)));
        };
        hold.is_askers = holder == asker;
        if !hold.is_askers {
            let agent = self.agent(holder, identity)?;
            hold.end = end(&agent.holder, since, &agent.sighting);
        }
        Ok(Some(Entry::Open(Open {
            hold: Some(hold),
            ..open
        })))
    }

    /// The number of a step, given now if it has none.
    fn step(&mut self, identity: &Identity) -> rusqlite::Result<i64> {
        let name = (identity.flow.clone(), identity.step.clone());
        if let Some(step) = self.steps.get(&name) {
            return Ok(*step);
        }
        let found = self
            .transaction
            .prepare_cached(
                "SELECT id FROM ledger_steps WHERE flow = ?1 AND step = ?2 AND gone = 0",
            )?
            .query_row(params![name.0, name.1], |row| row.get(0))
            .optional()?;
        let step = match found {
            Some(step) => step,
            None => self
                .transaction
                .prepare_cached("INSERT INTO ledger_steps (flow, step) VALUES (?1, ?2)")?
                .insert(params![name.0, name.1])?,
        };
        self.steps.insert(name, step);
        Ok(step)
    }

    /// The number of an incarnation, if it has one.
    fn known(
        &self,
        step: i64,
        identity: &Identity,
        incarnation: &str,
    ) -> rusqlite::Result<Option<i64>> {
        self.transaction
            .prepare_cached(
                "SELECT id FROM ledger_holders
                 WHERE step = ?1 AND replica = ?2 AND spec = ?3 AND incarnation = ?4",
            )?
            .query_row(
                params![step, identity.replica, identity.spec, incarnation],
                |row| row.get(0),
            )
            .optional()
    }

    /// The number of an incarnation, given now if it has none.
    fn asker(
        &mut self,
        step: i64,
        identity: &Identity,
        incarnation: &str,
    ) -> rusqlite::Result<i64> {
        if let Some(holder) = self.known(step, identity, incarnation)? {
            return Ok(holder);
        }
        // It is newer than those of its replica that are remembered here.
        self.agents.clear();
        self.transaction
            .prepare_cached(
                "INSERT INTO ledger_holders (step, replica, spec, incarnation, since)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .insert(params![
                step,
                identity.replica,
                identity.spec,
                incarnation,
                self.moment.now
            ])
    }

    /// What is known of one start of an agent; `identity` is that of any agent of the same step.
    fn agent(&mut self, number: i64, identity: &Identity) -> rusqlite::Result<&Agent> {
        if !self.agents.contains_key(&number) {
            let agent = self.read_agent(number, identity)?;
            self.agents.insert(number, agent);
        }
        Ok(&self.agents[&number])
    }

    fn read_agent(&self, number: i64, identity: &Identity) -> rusqlite::Result<Agent> {
        let (replica, spec, incarnation) = self
            .transaction
            .prepare_cached("SELECT replica, spec, incarnation FROM ledger_holders WHERE id = ?1")?
            .query_row([number], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))
            })?;
        let identity = Identity {
            replica,
            spec,
            ..identity.clone()
        };
        let others = self
            .transaction
            .prepare_cached(
                "SELECT id, incarnation, since FROM ledger_holders
                 WHERE step = (SELECT step FROM ledger_holders WHERE id = ?1)
                   AND replica = ?2 AND spec = ?3 ORDER BY id",
            )?
            .query_map(params![number, identity.replica, identity.spec], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<Vec<(i64, String, u64)>>>()?;
        let older = others.iter().filter(|(id, ..)| *id < number);
        let newest = others.iter().rfind(|(id, ..)| *id > number);
        let holder = Holder {
            older: older
                .map(|(_, incarnation, _)| incarnation.clone())
                .collect(),
            newer_since: newest.map(|(.., since)| *since),
            incarnation,
        };
        Ok(Agent {
            holder,
            sighting: (self.sightings)(&identity),
        })
    }
}

/// The latest time that can be stored.
const FOR_EVER: u64 = i64::MAX as u64;

/// A message, as the ledger has it: its id, and how often it was replayed if it was.
struct Key {
    bytes: [u8; 20],
    length: usize,
}

impl Key {
    fn new(id: MessageId, replays: u32) -> Self {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(id.as_bytes());
        bytes[16..].copy_from_slice(&replays.to_be_bytes());
        Self {
            bytes,
            length: if replays == 0 { 16 } else { 20 },
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn replays(key: &[u8]) -> u32 {
    key.get(16..)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// Who has it, since when, and what else there is to say.
fn read_claim(row: &Row<'_>) -> rusqlite::Result<(Option<i64>, u64, Hold, Open)> {
    let hold = Hold {
        is_askers: false,
        until: row.get(2)?,
        alone: row.get(3)?,
        end: None,
    };
    let open = Open {
        hold: None,
        uncertain: row.get(4)?,
        deaths: row.get(5)?,
        death: row.get(6)?,
    };
    Ok((row.get(0)?, row.get(1)?, hold, open))
}

fn states(
    database: &Connection,
    step: i64,
    id: MessageId,
) -> rusqlite::Result<Vec<(Vec<u8>, LedgerState)>> {
    let first = Key::new(id, 0);
    let last = Key::new(id, u32::MAX);
    let range = params![step, first.bytes(), last.bytes()];
    let mut found = database
        .prepare_cached(
            "SELECT message, at FROM ledger_settled
             WHERE step = ?1 AND message BETWEEN ?2 AND ?3 ORDER BY message",
        )?
        .query_map(range, |row| {
            Ok((row.get(0)?, LedgerState::Settled { at: row.get(1)? }))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let claimed = database
        .prepare_cached(
            "SELECT message, replica, ledger_claims.since, until, uncertain, deaths
             FROM ledger_claims LEFT JOIN ledger_holders ON ledger_holders.id = holder
             WHERE ledger_claims.step = ?1 AND message BETWEEN ?2 AND ?3 ORDER BY message",
        )?
        .query_map(range, |row| {
            let replica: Option<u32> = row.get(1)?;
            let state = match replica {
                None => LedgerState::Open,
                Some(replica) => LedgerState::Claimed {
                    replica,
                    since: row.get(2)?,
                    until: row.get(3)?,
                    uncertain: row.get(4)?,
                    deaths: row.get(5)?,
                },
            };
            Ok((row.get(0)?, state))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    found.extend(claimed);
    Ok(found)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;

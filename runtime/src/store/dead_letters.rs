//! Dead letters: messages that were given up, until someone decides.
//!
//! # Invariants
//!
//! - `a_dead_letter_is_stored_once`, however often the broker delivers it.
//! - `it_outlives_its_flow`.
//! - `a_dead_tick_ends_its_run`, in the same transaction.
//! - `a_trigger_that_fails_for_good_makes_one_letter`, which counts.
//! - `a_dead_letter_is_decided_once`: whoever changes its state says from which.

use std::ops::Deref;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, params_from_iter};
use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::message::{Lineage, Message};
use towpath_protocol::office::DeadCause;

use super::records::{DeadLetterRecord, DeadState, OpenDeadLetters};
use super::{Store, StoreError, columns, now_ms, tracking};
use crate::fingerprint;

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct DeadQuery {
    /// Of these only; all if there are none.
    pub ids: Vec<u64>,
    /// With this fingerprint only.
    pub group: Option<String>,
    /// Of this flow only.
    pub flow: Option<String>,
    /// Of this step only.
    pub step: Option<String>,
    /// That came to this kind of end only.
    pub cause: Option<DeadCause>,
    /// That died at this time or later only, in milliseconds since 1970.
    pub since: Option<u64>,
    /// That died before this time only, in milliseconds since 1970.
    pub until: Option<u64>,
    /// Of this message only.
    pub message: Option<MessageId>,
    /// In this state only.
    pub state: Option<DeadState>,
    /// With a smaller number than this only: the next page.
    pub before: Option<u64>,
    /// At most this many.
    pub limit: u32,
}

/// A dead letter, with what the store knows of it beside the record.
#[derive(Debug, Clone)]
pub struct KeptLetter {
    /// What was stored.
    pub record: DeadLetterRecord,
    /// What kind it is: see [`fingerprint`].
    pub fingerprint: String,
    /// How often the same happened to the same trigger since, without a letter of its own.
    pub repeats: u64,
    /// When it happened last, in milliseconds since 1970.
    pub last_at: u64,
    /// The body that someone put in place of its own.
    pub edited: Option<Box<RawValue>>,
    /// The job that has it, or sent it.
    pub job: Option<u64>,
}

impl Deref for KeptLetter {
    type Target = DeadLetterRecord;

    fn deref(&self) -> &DeadLetterRecord {
        &self.record
    }
}

/// Where a dead letter was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadPlace {
    /// Its number.
    pub id: u64,
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// The port by which it left the step, if it was lost on the way to the next.
    pub port: Option<String>,
}

/// What became of a letter that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is new.
    New,
    /// A trigger failed again in the way of an open letter, which counts it.
    Repeated,
    /// It was there.
    Known,
}

impl Store {
    /// Stores dead letters, in one transaction, and ends the active runs whose ticks they are.
    /// Returns how many were not there yet.
    pub async fn insert_dead_letters(
        &self,
        letters: Vec<DeadLetterRecord>,
    ) -> Result<u64, StoreError> {
        let stored = self.store_dead_letters(letters).await?;
        Ok(stored.iter().filter(|it| **it != Stored::Known).count() as u64)
    }

    /// Stores dead letters, in one transaction, and ends the active runs whose ticks they are.
    /// Returns what became of each.
    pub async fn store_dead_letters(
        &self,
        letters: Vec<DeadLetterRecord>,
    ) -> Result<Vec<Stored>, StoreError> {
        self.with("store dead letters", move |database| {
            let transaction = database.transaction()?;
            let stored = letters
                .iter()
                .map(|letter| store(&transaction, letter))
                .collect::<rusqlite::Result<_>>()?;
            for letter in &letters {
                tracking::died(&transaction, letter, now_ms())?;
            }
            transaction.commit()?;
            Ok(stored)
        })
        .await
    }

    /// A dead letter.
    pub async fn dead_letter(&self, id: u64) -> Result<Option<KeptLetter>, StoreError> {
        self.with("read a dead letter", move |database| one(database, id))
            .await
    }

    /// Dead letters, newest first.
    pub async fn dead_letters(&self, query: DeadQuery) -> Result<Vec<KeptLetter>, StoreError> {
        self.with("list dead letters", move |database| {
            let (conditions, mut values) = conditions(&query);
            values.push(Value::Integer(i64::from(query.limit)));
            // Chosen by number first, from an index alone, so that what is sorted is no bodies.
            database
                .prepare_cached(&format!(
                    "SELECT * FROM dead_letters WHERE id IN (
                         SELECT id FROM dead_letters WHERE {conditions} ORDER BY id DESC LIMIT ?)
                     ORDER BY id DESC"
                ))?
                .query_map(params_from_iter(values), read_letter)?
                .collect()
        })
        .await
    }

    /// The numbers of dead letters, oldest first; `limit` and `before` do not matter.
    pub async fn dead_letter_ids(&self, query: DeadQuery) -> Result<Vec<u64>, StoreError> {
        self.with("find dead letters", move |database| {
            let query = DeadQuery {
                before: None,
                ..query
            };
            let (conditions, values) = conditions(&query);
            database
                .prepare_cached(&format!(
                    "SELECT id FROM dead_letters WHERE {conditions} ORDER BY id"
                ))?
                .query_map(params_from_iter(values), |row| row.get(0))?
                .collect()
        })
        .await
    }

    /// Where dead letters were given up: number, flow, step and port, in the order of the numbers.
    pub async fn dead_places(&self, ids: Vec<u64>) -> Result<Vec<DeadPlace>, StoreError> {
        self.with("find where messages died", move |database| {
            let mut find = database
                .prepare_cached("SELECT id, flow, step, port FROM dead_letters WHERE id = ?1")?;
            let place = |row: &Row<'_>| {
                Ok(DeadPlace {
                    id: row.get(0)?,
                    flow: row.get(1)?,
                    step: row.get(2)?,
                    port: row.get(3)?,
                })
            };
            ids.iter()
                .filter_map(|id| find.query_row([id], place).optional().transpose())
                .collect()
        })
        .await
    }

    /// Changes the state of a dead letter if it is `from`. Returns whether it was.
    pub async fn change_dead_letter(
        &self,
        id: u64,
        from: DeadState,
        to: DeadState,
    ) -> Result<bool, StoreError> {
        Ok(self.change_dead_letters(vec![id], from, to).await? == 1)
    }

    /// Says that a dead letter that somebody took was sent: to its step, or to an earlier one.
    /// Returns whether it was taken.
    pub async fn dead_letter_sent(&self, id: u64, to: Option<String>) -> Result<bool, StoreError> {
        self.with("note that a dead letter was sent", move |database| {
            let transaction = database.transaction()?;
            let now = now_ms();
            let changed = transaction.execute(
                "UPDATE dead_letters SET state = 'replayed', changed_at = ?2
                 WHERE id = ?1 AND state = 'replaying' AND job IS NULL",
                params![id, now],
            )?;
            if changed == 1
                && let Some(letter) = one(&transaction, id)?
            {
                tracking::replayed(&transaction, &letter, to.as_deref(), now)?;
            }
            transaction.commit()?;
            Ok(changed == 1)
        })
        .await
    }

    /// Changes the state of those dead letters that are `from` and in no job, in one transaction.
    /// Returns how many were.
    pub async fn change_dead_letters(
        &self,
        ids: Vec<u64>,
        from: DeadState,
        to: DeadState,
    ) -> Result<u64, StoreError> {
        self.with("change dead letters", move |database| {
            let transaction = database.transaction()?;
            let mut changed = 0;
            {
                let mut change = transaction.prepare_cached(
                    "UPDATE dead_letters SET state = ?3, changed_at = ?4
                     WHERE id = ?1 AND state = ?2 AND job IS NULL",
                )?;
                let (from, to, now) = (columns::word(from), columns::word(to), now_ms());
                for id in ids {
                    changed += change.execute(params![id, from, to, now])?;
                }
            }
            transaction.commit()?;
            Ok(changed as u64)
        })
        .await
    }

    /// Puts bodies in the place of those of open dead letters, or their own back, in one
    /// transaction. Returns how many were open.
    pub async fn edit_dead_letters(
        &self,
        bodies: Vec<(u64, Option<Box<RawValue>>)>,
    ) -> Result<u64, StoreError> {
        self.with("edit dead letters", move |database| {
            let transaction = database.transaction()?;
            let mut edited = 0;
            for (id, body) in bodies {
                edited += transaction
                    .prepare_cached(
                        "UPDATE dead_letters SET edited = ?2 WHERE id = ?1 AND state = 'open'",
                    )?
                    .execute(params![id, body.as_ref().map(|body| body.get())])?;
            }
            transaction.commit()?;
            Ok(edited as u64)
        })
        .await
    }

    /// How many dead letters are open.
    pub async fn open_dead_letters(&self) -> Result<Vec<OpenDeadLetters>, StoreError> {
        self.count_dead_letters(DeadState::Open).await
    }

    /// How many dead letters are in a state.
    pub async fn count_dead_letters(
        &self,
        state: DeadState,
    ) -> Result<Vec<OpenDeadLetters>, StoreError> {
        self.with("count dead letters", move |database| {
            database
                .prepare_cached(
                    "SELECT flow, step, connection, count(*) FROM dead_letters WHERE state = ?1
                     GROUP BY flow, step, connection",
                )?
                .query_map([columns::word(state)], |row| {
                    Ok(OpenDeadLetters {
                        flow: row.get(0)?,
                        step: row.get(1)?,
                        connection: row.get(2)?,
                        count: row.get(3)?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// Forgets dead letters that were replayed or discarded before `at`, in milliseconds since
    /// 1970, and the groups and jobs that have none left.
    pub async fn forget_decided(&self, at: u64) -> Result<usize, StoreError> {
        self.with("forget dead letters", move |database| {
            let transaction = database.transaction()?;
            let forgotten = transaction.execute(
                "DELETE FROM dead_letters WHERE state IN ('replayed', 'discarded') AND changed_at < ?1",
                [at],
            )?;
            transaction.execute(
                "DELETE FROM dead_groups WHERE id NOT IN (SELECT fingerprint FROM dead_letters)",
                [],
            )?;
            transaction.execute(
                "DELETE FROM replay_jobs WHERE state IN ('done', 'cancelled') AND changed_at < ?1",
                [at],
            )?;
            transaction.commit()?;
            Ok(forgotten)
        })
        .await
    }
}

/// Reads a dead letter.
pub(super) fn one(database: &Connection, id: u64) -> rusqlite::Result<Option<KeptLetter>> {
    database
        .prepare_cached("SELECT * FROM dead_letters WHERE id = ?1")?
        .query_row([id], read_letter)
        .optional()
}

/// The conditions of a query, and what is at their question marks.
fn conditions(query: &DeadQuery) -> (String, Vec<Value>) {
    let number = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    let mut conditions = vec!["1"];
    let mut values = Vec::new();
    let mut add = |condition: &'static str, value: Option<Value>| {
        if let Some(value) = value {
            conditions.push(condition);
            values.push(value);
        }
    };
    let text = |text: &Option<String>| text.clone().map(Value::Text);
    let ids = (!query.ids.is_empty()).then(|| {
        let ids: Vec<String> = query.ids.iter().map(u64::to_string).collect();
        Value::Text(format!("[{}]", ids.join(",")))
    });
    add("id IN (SELECT value FROM json_each(?))", ids);
    add("fingerprint = ?", text(&query.group));
    add("flow = ?", text(&query.flow));
    add("step = ?", text(&query.step));
    add(
        "cause = ?",
        query.cause.map(|cause| Value::Text(columns::word(cause))),
    );
    add("last_at >= ?", query.since.map(number));
    add("at < ?", query.until.map(number));
    add(
        "message_id = ?",
        query.message.map(|id| Value::Text(id.to_string())),
    );
    add(
        "state = ?",
        query.state.map(|state| Value::Text(columns::word(state))),
    );
    add("id < ?", query.before.map(number));
    (conditions.join(" AND "), values)
}

fn store(transaction: &Transaction<'_>, letter: &DeadLetterRecord) -> rusqlite::Result<Stored> {
    let run: Option<String> = transaction
        .prepare_cached("SELECT state FROM runs WHERE id = ?1")?
        .query_row([letter.message_id.to_string()], |row| row.get(0))
        .optional()?;
    match run.as_deref() {
        Some("recorded" | "published") => {
            transaction
                .prepare_cached(
                    "UPDATE runs SET state = 'failed', ended_at = ?2, reason = ?3, next_at = NULL
                     WHERE id = ?1",
                )?
                .execute(params![
                    letter.message_id.to_string(),
                    letter.at,
                    letter.reason
                ])?;
            if repeat(transaction, letter)? {
                return Ok(Stored::Repeated);
            }
        }
        // Only a dead tick fails a run, in the transaction that stored or counted it.
        Some("failed") => return Ok(Stored::Known),
        _ => {}
    }
    Ok(if insert(transaction, letter)? {
        Stored::New
    } else {
        Stored::Known
    })
}

/// Counts the dead tick of a run at the open letter of an earlier one that failed in the same way,
/// if there is one; the letter then tells of the newest.
fn repeat(transaction: &Transaction<'_>, letter: &DeadLetterRecord) -> rusqlite::Result<bool> {
    let print = fingerprint::of(&letter.flow, &letter.step, letter.cause, &letter.reason);
    let changed = transaction
        .prepare_cached(
            "UPDATE dead_letters
             SET repeats = repeats + 1, last_at = ?4, reason = ?5, chain = ?6, attempts = ?7, replica = ?8
             WHERE id = (SELECT max(id) FROM dead_letters
                         WHERE state = 'open' AND fingerprint = ?1 AND connection = ?2
                           AND message_id = run AND message_id <> ?3 AND port IS NULL)",
        )?
        .execute(params![
            print.id,
            letter.connection,
            letter.message_id.to_string(),
            letter.at,
            letter.reason,
            json(&letter.chain)?,
            json(&letter.attempts)?,
            letter.replica,
        ])?;
    Ok(changed == 1)
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(columns::unreadable)
}

fn insert(transaction: &Transaction<'_>, letter: &DeadLetterRecord) -> rusqlite::Result<bool> {
    let print = fingerprint::of(&letter.flow, &letter.step, letter.cause, &letter.reason);
    group(transaction, letter, &print)?;
    let changed = transaction
        .prepare_cached(
            "INSERT INTO dead_letters (digest, flow, step, port, version, connection, run, message_id, cause,
                reason, chain, attempts, replica, at, replays, state, changed_at, message, fingerprint,
                entered_at, last_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19,
                ?20, ?14)
             ON CONFLICT (digest) DO NOTHING",
        )?
        .execute(params![
            letter.digest(),
            letter.flow,
            letter.step,
            letter.port,
            letter.version,
            letter.connection,
            letter.run.map(|run| run.to_string()),
            letter.message_id.to_string(),
            columns::word(letter.cause),
            letter.reason,
            json(&letter.chain)?,
            json(&letter.attempts)?,
            letter.replica,
            letter.at,
            letter.replays,
            columns::word(letter.state),
            now_ms(),
            letter.message.get(),
            print.id,
            entered_at(letter),
        ])?;
    Ok(changed == 1)
}

/// Notes what a fingerprint stands for.
fn group(
    transaction: &Transaction<'_>,
    letter: &DeadLetterRecord,
    print: &fingerprint::Fingerprint,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO dead_groups (id, flow, step, cause, pattern) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            print.id,
            letter.flow,
            letter.step,
            columns::word(letter.cause),
            print.pattern
        ])?;
    Ok(())
}

/// When the message entered its flow, or died if that cannot be read: the order of a replay.
fn entered_at(letter: &DeadLetterRecord) -> u64 {
    serde_json::from_str::<Message<'_>>(letter.message.get())
        .ok()
        .and_then(|message| serde_json::from_str::<Lineage>(message.lineage.get()).ok())
        .map_or(letter.at, |lineage| lineage.at)
}

/// Gives the letters of an older version what was not stored with them, and gives back what
/// somebody was just sending when the process ended.
pub(super) fn bring_up_to_date(database: &mut Connection) -> rusqlite::Result<()> {
    /// How many are changed in one transaction.
    const TOGETHER: u32 = 1_000;
    loop {
        let transaction = database.transaction()?;
        let letters: Vec<KeptLetter> = transaction
            .prepare_cached("SELECT * FROM dead_letters WHERE fingerprint = '' LIMIT ?1")?
            .query_map([TOGETHER], read_letter)?
            .collect::<rusqlite::Result<_>>()?;
        for letter in &letters {
            let print = fingerprint::of(&letter.flow, &letter.step, letter.cause, &letter.reason);
            group(&transaction, letter, &print)?;
            transaction
                .prepare_cached(
                    "UPDATE dead_letters SET fingerprint = ?2, entered_at = ?3, last_at = at WHERE id = ?1",
                )?
                .execute(params![letter.id, print.id, entered_at(letter)])?;
        }
        transaction.commit()?;
        if letters.is_empty() {
            break;
        }
    }
    database.execute(
        "UPDATE dead_letters SET state = 'open' WHERE state = 'replaying' AND job IS NULL",
        [],
    )?;
    Ok(())
}

/// Reads a row with all columns.
pub(super) fn read_letter(row: &Row<'_>) -> rusqlite::Result<KeptLetter> {
    let record = DeadLetterRecord {
        id: row.get("id")?,
        flow: row.get("flow")?,
        step: row.get("step")?,
        port: row.get("port")?,
        version: row.get("version")?,
        connection: row.get("connection")?,
        run: columns::optional_id(row, "run")?,
        message_id: columns::id(row, "message_id")?,
        cause: columns::unword(row, "cause")?,
        reason: row.get("reason")?,
        chain: columns::json(row, "chain")?,
        attempts: columns::json(row, "attempts")?,
        replica: row.get("replica")?,
        at: row.get("at")?,
        replays: row.get("replays")?,
        state: columns::unword(row, "state")?,
        message: columns::raw(row, "message")?
            .ok_or_else(|| columns::unreadable("a dead letter has a message"))?,
    };
    Ok(KeptLetter {
        record,
        fingerprint: row.get("fingerprint")?,
        repeats: row.get("repeats")?,
        last_at: row.get("last_at")?,
        edited: columns::raw(row, "edited")?,
        job: row.get("job")?,
    })
}

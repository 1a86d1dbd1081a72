//! Dead letters: messages that were given up, until someone decides.
//!
//! # Invariants
//!
//! - `a_dead_letter_is_stored_once`, however often the broker delivers it.
//! - `it_outlives_its_flow`.
//! - `a_dead_tick_ends_its_run`, in the same transaction.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::records::{DeadLetterRecord, DeadState, OpenDeadLetters};
use super::{Store, StoreError, columns, now_ms};

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct DeadQuery {
    /// Of this flow only.
    pub flow: Option<String>,
    /// Of this step only.
    pub step: Option<String>,
    /// In this state only.
    pub state: Option<DeadState>,
    /// With a smaller number than this only: the next page.
    pub before: Option<u64>,
    /// At most this many.
    pub limit: u32,
}

impl Store {
    /// Stores dead letters, in one transaction, and ends the active runs whose ticks they are.
    /// Returns how many were not there yet.
    pub async fn insert_dead_letters(
        &self,
        letters: Vec<DeadLetterRecord>,
    ) -> Result<u64, StoreError> {
        self.with("store dead letters", move |database| {
            let transaction = database.transaction()?;
            let mut new = 0;
            for letter in &letters {
                new += insert(&transaction, letter)?;
                transaction.execute(
                    "UPDATE runs SET state = 'failed', ended_at = ?2, reason = ?3, next_at = NULL
                     WHERE id = ?1 AND state IN ('recorded', 'published')",
                    params![letter.message_id.to_string(), letter.at, letter.reason],
                )?;
            }
            transaction.commit()?;
            Ok(new)
        })
        .await
    }

    /// A dead letter.
    pub async fn dead_letter(&self, id: u64) -> Result<Option<DeadLetterRecord>, StoreError> {
        self.with("read a dead letter", move |database| {
            database
                .prepare_cached("SELECT * FROM dead_letters WHERE id = ?1")?
                .query_row([id], read_letter)
                .optional()
        })
        .await
    }

    /// Dead letters, newest first.
    pub async fn dead_letters(
        &self,
        query: DeadQuery,
    ) -> Result<Vec<DeadLetterRecord>, StoreError> {
        self.with("list dead letters", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM dead_letters
                     WHERE (?1 IS NULL OR flow = ?1) AND (?2 IS NULL OR step = ?2)
                       AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR id < ?4)
                     ORDER BY id DESC LIMIT ?5",
                )?
                .query_map(
                    params![
                        query.flow,
                        query.step,
                        query.state.map(columns::word),
                        query.before,
                        query.limit
                    ],
                    read_letter,
                )?
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
        self.with("change a dead letter", move |database| {
            let changed = database.execute(
                "UPDATE dead_letters SET state = ?3, changed_at = ?4 WHERE id = ?1 AND state = ?2",
                params![id, columns::word(from), columns::word(to), now_ms()],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    /// How many dead letters are open.
    pub async fn open_dead_letters(&self) -> Result<Vec<OpenDeadLetters>, StoreError> {
        self.with("count dead letters", |database| {
            database
                .prepare_cached(
                    "SELECT flow, step, connection, count(*) FROM dead_letters WHERE state = 'open'
                     GROUP BY flow, step, connection",
                )?
                .query_map([], |row| {
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

    /// Forgets dead letters that were replayed or discarded before `at`, in milliseconds since 1970.
    pub async fn forget_decided(&self, at: u64) -> Result<usize, StoreError> {
        self.with("forget dead letters", move |database| {
            database.execute(
                "DELETE FROM dead_letters WHERE state <> 'open' AND changed_at < ?1",
                [at],
            )
        })
        .await
    }
}

fn insert(transaction: &Transaction<'_>, letter: &DeadLetterRecord) -> rusqlite::Result<u64> {
    let json = |value: serde_json::Result<String>| value.map_err(columns::unreadable);
    let changed = transaction
        .prepare_cached(
            "INSERT INTO dead_letters (digest, flow, step, port, version, connection, run, message_id, cause,
                reason, chain, attempts, replica, at, replays, state, changed_at, message)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
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
            json(serde_json::to_string(&letter.chain))?,
            json(serde_json::to_string(&letter.attempts))?,
            letter.replica,
            letter.at,
            letter.replays,
            columns::word(letter.state),
            now_ms(),
            letter.message.get(),
        ])?;
    Ok(changed as u64)
}

fn read_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetterRecord> {
    Ok(DeadLetterRecord {
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
    })
}

//! Where triggers are in their sources.
//!
//! A checkpoint has a version, which each write raises by one, whoever writes: whoever wants to
//! replace it says which version it has seen. What was taken away keeps its version, so that a
//! number never means two things.
//!
//! # Invariants
//!
//! - `only_the_active_run_moves_the_checkpoint`: what an abandoned run still says is not stored.
//! - `of_two_writers_only_the_one_who_saw_the_last_version_writes`.
//! - `a_save_that_is_said_twice_is_stored_once`.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::value::RawValue;
use towpath_protocol::MessageId;

use super::{Store, StoreError, columns, now_ms};

/// A trigger's position in its source.
#[derive(Debug, Clone)]
pub struct CheckpointRecord {
    /// Raised by one with each write, from 1.
    pub version: u64,
    /// The run that saved it; none if a person wrote it.
    pub run: Option<MessageId>,
    /// The number that the trigger gave it; 0 if a person wrote it.
    pub number: u64,
    /// The position; none if a person took it away.
    pub value: Option<Box<RawValue>>,
    /// When it was written, in milliseconds since 1970.
    pub saved_at: u64,
}

/// Which checkpoint.
#[derive(Debug, Clone)]
pub struct CheckpointKey {
    /// The flow.
    pub flow: String,
    /// The trigger's step.
    pub step: String,
    /// The external account.
    pub connection: String,
}

/// What became of a checkpoint that a run wanted to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// It is stored.
    Yes,
    /// It was stored before: it is said twice.
    Repeated,
    /// The run is not the trigger's active one.
    NotActive,
    /// Somebody else has written since the run began.
    Overtaken {
        /// What there is now.
        version: u64,
    },
}

/// What became of a checkpoint that a person wanted to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is stored.
    Yes {
        /// Its version.
        version: u64,
    },
    /// A run is active, which may save at any time.
    Active {
        /// The run.
        run: MessageId,
    },
    /// It is another version than the one that was named.
    Changed {
        /// What there is now; 0 if there never was one.
        version: u64,
    },
}

impl Store {
    /// The last position of a trigger; none if there never was one.
    pub async fn checkpoint(
        &self,
        key: &CheckpointKey,
    ) -> Result<Option<CheckpointRecord>, StoreError> {
        let key = key.clone();
        self.with("read a checkpoint", move |database| read(database, &key))
            .await
    }

    /// Stores what a run says of a trigger's position. `follows` is the version that it replaces; an
    /// agent that is older than versions does not know.
    pub async fn save_checkpoint(
        &self,
        key: &CheckpointKey,
        run: MessageId,
        number: u64,
        value: Box<RawValue>,
        follows: Option<u64>,
    ) -> Result<Saved, StoreError> {
        let key = key.clone();
        self.with("save a checkpoint", move |database| {
            let transaction = database.transaction()?;
            let is_active = transaction
                .prepare_cached(
                    "SELECT 1 FROM runs WHERE id = ?1 AND flow = ?2 AND connection = ?3
                     AND state IN ('recorded', 'published')",
                )?
                .exists(params![run.to_string(), key.flow, key.connection])?;
            if !is_active {
                return Ok(Saved::NotActive);
            }
            let before = read(&transaction, &key)?;
            let version = before.as_ref().map_or(0, |before| before.version);
            if let Some(follows) = follows.filter(|follows| *follows != version) {
                let is_repeated = before.is_some_and(|before| {
                    before.version == follows + 1
                        && before.run == Some(run)
                        && before.number == number
                });
                return Ok(if is_repeated {
                    Saved::Repeated
                } else {
                    Saved::Overtaken { version }
                });
            }
            let now = now_ms();
            transaction.execute(
                "UPDATE runs SET checkpoint_after = ?2, progress_at = ?3 WHERE id = ?1",
                params![run.to_string(), super::runs::shown(value.get()), now],
            )?;
            let record = CheckpointRecord {
                version: version + 1,
                run: Some(run),
                number,
                value: Some(value),
                saved_at: now,
            };
            write(&transaction, &key, &record)?;
            transaction.commit()?;
            Ok(Saved::Yes)
        })
        .await
    }

    /// Stores what a person says of a trigger's position; none takes it away. Refused while a run is
    /// active, unless `beside_a_run`, and if `follows` is another version than there is.
    pub async fn write_checkpoint(
        &self,
        key: &CheckpointKey,
        value: Option<Box<RawValue>>,
        follows: Option<u64>,
        beside_a_run: bool,
    ) -> Result<Written, StoreError> {
        let key = key.clone();
        self.with("write a checkpoint", move |database| {
            let transaction = database.transaction()?;
            let active = transaction
                .prepare_cached(
                    "SELECT id FROM runs WHERE flow = ?1 AND connection = ?2
                     AND state IN ('recorded', 'published')",
                )?
                .query_row([&key.flow, &key.connection], |row| columns::id(row, "id"))
                .optional()?;
            if let Some(run) = active.filter(|_| !beside_a_run) {
                return Ok(Written::Active { run });
            }
            let before = read(&transaction, &key)?;
            let version = before.map_or(0, |before| before.version);
            if follows.is_some_and(|follows| follows != version) {
                return Ok(Written::Changed { version });
            }
            let record = CheckpointRecord {
                version: version + 1,
                run: None,
                number: 0,
                value,
                saved_at: now_ms(),
            };
            write(&transaction, &key, &record)?;
            transaction.commit()?;
            Ok(Written::Yes {
                version: record.version,
            })
        })
        .await
    }
}

fn read(database: &Connection, key: &CheckpointKey) -> rusqlite::Result<Option<CheckpointRecord>> {
    database
        .prepare_cached(
            "SELECT * FROM checkpoints WHERE flow = ?1 AND step = ?2 AND connection = ?3",
        )?
        .query_row([&key.flow, &key.step, &key.connection], read_row)
        .optional()
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<CheckpointRecord> {
    Ok(CheckpointRecord {
        version: row.get("version")?,
        run: columns::optional_id(row, "run")?,
        number: row.get("number")?,
        value: columns::raw(row, "value")?,
        saved_at: row.get("saved_at")?,
    })
}

fn write(
    database: &Connection,
    key: &CheckpointKey,
    record: &CheckpointRecord,
) -> rusqlite::Result<()> {
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO checkpoints
                (flow, step, connection, version, run, number, value, saved_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            key.flow,
            key.step,
            key.connection,
            record.version,
            record.run.map(|run| run.to_string()),
            record.number,
            record.value.as_ref().map(|value| value.get()),
            record.saved_at,
        ])?;
    Ok(())
}

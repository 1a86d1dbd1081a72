//! Runs: firings of triggers.
//!
//! # Invariants
//!
//! - `a_trigger_has_one_active_run_at_a_time`: two would share one checkpoint.
//! - `at_most_one_further_run_is_remembered`.
//! - `an_end_is_an_end`: a run that has ended is never active again.
//! - `a_run_that_nobody_has_is_cancelled_at_once`; one that an agent has, when that left it.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde_json::value::RawValue;
use towpath_protocol::MessageId;

use super::records::{RunRecord, RunState};
use super::{Store, StoreError, columns, now_ms, tracking};

/// The most finished runs of a flow that are remembered.
const RUNS_MAX: u32 = 500;

/// The most runs of a flow that are remembered, whether or not all that came of them is settled: a
/// flow whose messages wait for days must not fill the store.
const UNFINISHED_MAX: u32 = 5_000;

/// How much of a checkpoint is kept with a run, for people: what a cursor takes.
const CHECKPOINT_CHARS_MAX: usize = 1_000;

/// What became of the wish to cancel a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// It is cancelled: nobody has its tick.
    Ended,
    /// An agent has its tick, or may have it, and is to be told.
    Asked,
    /// It was over.
    Over(RunState),
    /// There is none.
    Unknown,
}

/// What a trigger that begins a tick is to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The run is cancelled: its tick is not to be handed over.
    pub is_cancelled: bool,
}

impl Store {
    /// Records a run. Returns false, and records nothing, if there is no such flow or if it has an
    /// active run for this connection; of one that is to be remembered, if one is already.
    pub async fn run_started(&self, run: &RunRecord) -> Result<bool, StoreError> {
        let run = run.clone();
        self.with("record a run", move |database| {
            let transaction = database.transaction()?;
            let changed = transaction.execute(
                "INSERT INTO runs (id, flow, step, connection, version, why, state, due, started_at, ended_at,
                    emitted, attempts, next_at, reason, payload, tracked)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16
                 WHERE EXISTS (SELECT 1 FROM flows WHERE name = ?2)
                 ON CONFLICT DO NOTHING",
                params![
                    run.id.to_string(),
                    run.flow,
                    run.step,
                    run.connection,
                    run.version,
                    columns::word(run.why),
                    columns::word(run.state),
                    run.due,
                    run.started_at,
                    run.ended_at,
                    run.emitted,
                    run.attempts,
                    run.next_at,
                    run.reason,
                    run.payload.as_ref().map(|payload| payload.get()),
                    run.tracked,
                ],
            )?;
            if changed == 1 && run.tracked {
                tracking::begin(&transaction, run.id, &run.step, now_ms())?;
            }
            transaction.execute(
                "DELETE FROM runs WHERE flow = ?1 AND state NOT IN ('queued', 'recorded', 'published') AND (
                 (tracked <> 1 OR finished_at IS NOT NULL) AND due <
                     (SELECT due FROM runs WHERE flow = ?1 ORDER BY due DESC LIMIT 1 OFFSET ?2)
                 OR due < (SELECT due FROM runs WHERE flow = ?1 ORDER BY due DESC LIMIT 1 OFFSET ?3))",
                params![run.flow, RUNS_MAX, UNFINISHED_MAX],
            )?;
            transaction.commit()?;
            Ok(changed == 1)
        })
        .await
    }

    /// Lets the run that is remembered begin, unless one is active; it is due now, and makes up for
    /// whatever was due until now. Returns it.
    pub async fn run_released(
        &self,
        flow: &str,
        now: u64,
    ) -> Result<Option<RunRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("let a run begin", move |database| {
            database
                .prepare_cached(
                    "UPDATE runs SET state = 'recorded', due = ?2, started_at = ?2
                     WHERE flow = ?1 AND state = 'queued' AND NOT EXISTS (
                        SELECT 1 FROM runs WHERE flow = ?1 AND state IN ('recorded', 'published'))
                     RETURNING *",
                )?
                .query_row(params![flow, now], read_run)
                .optional()
        })
        .await
    }

    /// Says that the tick of a run is with the broker.
    pub async fn run_published(&self, run: MessageId) -> Result<(), StoreError> {
        self.with("record a published tick", move |database| {
            database.execute(
                "UPDATE runs SET state = 'published' WHERE id = ?1 AND state = 'recorded'",
                [run.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Says that the tick of a run was taken, and where its trigger is.
    pub async fn run_began(
        &self,
        run: MessageId,
        checkpoint: Option<&RawValue>,
        now: u64,
    ) -> Result<Begun, StoreError> {
        let checkpoint = checkpoint.map(|value| shown(value.get()));
        self.with("record that a run began", move |database| {
            let transaction = database.transaction()?;
            let key = run.to_string();
            transaction.execute(
                "UPDATE runs SET next_at = NULL, progress_at = ?3,
                     checkpoint_before = CASE WHEN began_at IS NULL THEN ?2 ELSE checkpoint_before END,
                     began_at = coalesce(began_at, ?3)
                 WHERE id = ?1 AND state IN ('recorded', 'published')",
                params![key, checkpoint, now],
            )?;
            let is_cancelled = transaction
                .query_row(
                    "SELECT state = 'cancelled'
                         OR (cancel_at IS NOT NULL AND state IN ('recorded', 'published'))
                     FROM runs WHERE id = ?1",
                    [key],
                    |row| row.get(0),
                )
                .optional()?;
            transaction.commit()?;
            Ok(Begun {
                is_cancelled: is_cancelled.unwrap_or(false),
            })
        })
        .await
    }

    /// Says that an active run will be tried again; one that is to be cancelled ends.
    pub async fn run_retries(
        &self,
        run: MessageId,
        reason: &str,
        next: u64,
        is_rebound: bool,
    ) -> Result<bool, StoreError> {
        let reason = reason.to_owned();
        self.with("record a failed attempt at a run", move |database| {
            let transaction = database.transaction()?;
            let changed = transaction.execute(
                "UPDATE runs SET attempts = attempts + 1, reason = ?2, next_at = ?3, is_rebound = ?4
                 WHERE id = ?1 AND state IN ('recorded', 'published')",
                params![run.to_string(), reason, next, is_rebound],
            )?;
            if is_to_be_cancelled(&transaction, run)? {
                cancelled(&transaction, run, now_ms())?;
            }
            transaction.commit()?;
            Ok(changed == 1)
        })
        .await
    }

    /// Cancels a run: at once if nobody has its tick, else as soon as whoever has it leaves it.
    pub async fn cancel_run(&self, run: MessageId, now: u64) -> Result<Cancelling, StoreError> {
        self.with("cancel a run", move |database| {
            let transaction = database.transaction()?;
            let found: Option<(RunState, bool)> = transaction
                .query_row(
                    "SELECT state, began_at IS NOT NULL AND next_at IS NULL AS is_held
                     FROM runs WHERE id = ?1",
                    [run.to_string()],
                    |row| Ok((columns::unword(row, "state")?, row.get(1)?)),
                )
                .optional()?;
            let cancelling = match found {
                None => Cancelling::Unknown,
                Some((state, _)) if !state.is_active() && state != RunState::Queued => {
                    Cancelling::Over(state)
                }
                Some((_, is_held)) => {
                    transaction.execute(
                        "UPDATE runs SET cancel_at = coalesce(cancel_at, ?2) WHERE id = ?1",
                        params![run.to_string(), now],
                    )?;
                    if is_held {
                        Cancelling::Asked
                    } else {
                        cancelled(&transaction, run, now)?;
                        Cancelling::Ended
                    }
                }
            };
            transaction.commit()?;
            Ok(cancelling)
        })
        .await
    }

    /// The active runs that are to be cancelled.
    pub async fn runs_to_cancel(&self) -> Result<Vec<RunRecord>, StoreError> {
        self.with("list runs to cancel", |database| {
            database
                .prepare_cached(
                    "SELECT * FROM runs
                     WHERE state IN ('recorded', 'published') AND cancel_at IS NOT NULL",
                )?
                .query_map([], read_run)?
                .collect()
        })
        .await
    }

    /// Says how an active run ended. Returns whether it was active.
    pub async fn run_ended(
        &self,
        run: MessageId,
        state: RunState,
        at: u64,
        emitted: Option<u64>,
        reason: Option<String>,
    ) -> Result<bool, StoreError> {
        self.with("record the end of a run", move |database| {
            let transaction = database.transaction()?;
            let changed = transaction.execute(
                "UPDATE runs SET state = ?2, ended_at = ?3, emitted = ?4, reason = ?5, next_at = NULL
                 WHERE id = ?1 AND state IN ('recorded', 'published')",
                params![run.to_string(), columns::word(state), at, emitted, reason],
            )?;
            if changed == 1 {
                // Of an abandoned tick nobody says any more that it is settled.
                let is_gone = state == RunState::Abandoned;
                let step = is_gone.then(|| trigger_of(&transaction, run)).transpose()?;
                tracking::end(&transaction, run, step.as_deref(), now_ms())?;
            }
            transaction.commit()?;
            Ok(changed == 1)
        })
        .await
    }

    /// The run of a flow that has not ended, if there is one.
    pub async fn active_run(&self, flow: &str) -> Result<Option<RunRecord>, StoreError> {
        self.one_run(
            "flow = ?1 AND state IN ('recorded', 'published') ORDER BY due DESC LIMIT 1",
            flow,
        )
        .await
    }

    /// The run of a flow that was due last, if it has begun.
    pub async fn last_run(&self, flow: &str) -> Result<Option<RunRecord>, StoreError> {
        Ok(self.last_runs(flow, 1).await?.pop())
    }

    /// The runs of a flow that have begun, the newest first.
    pub async fn last_runs(&self, flow: &str, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("read the last runs", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM runs WHERE flow = ?1 AND state <> 'queued'
                     ORDER BY due DESC, started_at DESC LIMIT ?2",
                )?
                .query_map(params![flow, limit], read_run)?
                .collect()
        })
        .await
    }

    /// A run.
    pub async fn run(&self, id: MessageId) -> Result<Option<RunRecord>, StoreError> {
        self.one_run("id = ?1", &id.to_string()).await
    }

    /// The last runs of a flow, newest first.
    pub async fn runs(&self, flow: &str, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("list runs", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM runs WHERE flow = ?1 ORDER BY due DESC, started_at DESC LIMIT ?2",
                )?
                .query_map(params![flow, limit], read_run)?
                .collect()
        })
        .await
    }

    async fn one_run(
        &self,
        which: &'static str,
        key: &str,
    ) -> Result<Option<RunRecord>, StoreError> {
        let key = key.to_owned();
        self.with("read a run", move |database| {
            database
                .prepare_cached(&format!("SELECT * FROM runs WHERE {which}"))?
                .query_row([key], read_run)
                .optional()
        })
        .await
    }
}

fn read_run(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    Ok(RunRecord {
        id: columns::id(row, "id")?,
        flow: row.get("flow")?,
        step: row.get("step")?,
        connection: row.get("connection")?,
        version: row.get("version")?,
        why: columns::unword(row, "why")?,
        state: columns::unword(row, "state")?,
        due: row.get("due")?,
        started_at: row.get("started_at")?,
        ended_at: row.get("ended_at")?,
        emitted: row.get("emitted")?,
        attempts: row.get("attempts")?,
        next_at: row.get("next_at")?,
        reason: row.get("reason")?,
        payload: columns::raw(row, "payload")?,
        tracked: row.get::<_, u8>("tracked")? != 0,
        cancel_at: row.get("cancel_at")?,
    })
}

/// Ends a run that nobody works at any more as cancelled.
fn cancelled(transaction: &Transaction<'_>, run: MessageId, now: u64) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE runs SET state = 'cancelled', ended_at = ?2, next_at = NULL
         WHERE id = ?1 AND state IN ('queued', 'recorded', 'published')",
        params![run.to_string(), now],
    )?;
    let step = trigger_of(transaction, run)?;
    tracking::end(transaction, run, Some(&step), now)
}

fn is_to_be_cancelled(transaction: &Transaction<'_>, run: MessageId) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached(
            "SELECT 1 FROM runs WHERE id = ?1 AND cancel_at IS NOT NULL
                 AND state IN ('recorded', 'published')",
        )?
        .exists([run.to_string()])
}

fn trigger_of(transaction: &Transaction<'_>, run: MessageId) -> rusqlite::Result<String> {
    transaction
        .prepare_cached("SELECT step FROM runs WHERE id = ?1")?
        .query_row([run.to_string()], |row| row.get(0))
}

/// As much of a checkpoint as is kept with a run.
pub(super) fn shown(checkpoint: &str) -> String {
    match checkpoint.char_indices().nth(CHECKPOINT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &checkpoint[..end]),
        None => checkpoint.to_owned(),
    }
}
